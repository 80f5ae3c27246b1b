/* Owns: chat templates. */
#include "model/chat_template.h"

#include "model/tokenizer.h"

void ln_template_close(ln_template *compiled) {
    (void)compiled;
}

linnet_status linnet_chat_format(const linnet_tokenizer *tokenizer, const linnet_message *messages, int64_t count,
                                 bool add_generation_prompt, char *text, size_t capacity, size_t *bytes) {
    (void)messages, (void)count, (void)add_generation_prompt, (void)text, (void)capacity;
    *bytes = 0;
    return ln_fail(tokenizer->context, LINNET_ERROR_UNSUPPORTED, "the model has no chat template");
}
