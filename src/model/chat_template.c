/* Owns: linnet_chat_format: messages in the form of the model's chat template. */
#include "model/chat_template.h"

#include <string.h>

#include "model/tokenizer.h"

static ln_text written(const linnet_tokenizer *tokenizer, int32_t id) {
    ln_text text = {0};
    text.data = linnet_token_bytes(tokenizer, id, &text.bytes);
    return text;
}

/* Compiled when first asked for, as not every user of a tokenizer chats: the one thing of a tokenizer that changes. */
static linnet_status compile(const linnet_tokenizer *tokenizer) {
    if (tokenizer->compiled_template) return LINNET_OK;
    if (!tokenizer->chat_template)
        return ln_fail(tokenizer->context, LINNET_ERROR_UNSUPPORTED, "the model has no chat template");
    linnet_tokenizer *own = (linnet_tokenizer *)tokenizer;
    return ln_template_open(own->context, own->chat_template, own->chat_template_bytes, &own->compiled_template);
}

linnet_status linnet_chat_format(const linnet_tokenizer *tokenizer, const linnet_message *messages, int64_t count,
                                 bool add_generation_prompt, char *text, size_t capacity, size_t *bytes) {
    *bytes = 0;
    for (int64_t i = 0; i < count; i++)
        if (!messages[i].role || !messages[i].content)
            return ln_fail(tokenizer->context, LINNET_ERROR_ARGUMENT, "message %lld has no role or no content",
                           (long long)i);
    linnet_status status = compile(tokenizer);
    if (status != LINNET_OK) return status;
    const ln_template_input input = {.messages = messages,
                                     .count = count,
                                     .add_generation_prompt = add_generation_prompt,
                                     .begin = written(tokenizer, tokenizer->begin),
                                     .end = written(tokenizer, tokenizer->end),
                                     .padding = written(tokenizer, tokenizer->padding),
                                     .unknown = written(tokenizer, tokenizer->vocabulary.unknown)};
    ln_buffer out = {.context = tokenizer->context};
    status = ln_template_render(tokenizer->compiled_template, &input, &out);
    if (status == LINNET_OK) {
        *bytes = out.bytes;
        if (out.bytes && capacity) memcpy(text, out.data, out.bytes < capacity ? out.bytes : capacity);
    }
    ln_buffer_release(&out);
    return status;
}
