/* Tokenizers, texts and chat templates from anybody. The first byte says what the rest is:
 *   j  a tokenizer.json, 0xFF, a text to tokenise with it
 *   t  a chat template
 *   s  GGUF keys of a SentencePiece vocabulary (any other byte: of byte-level BPE), parted by 0xFF; see fuzz_keys
 * The memory limit keeps honest but huge inputs short. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_template.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static linnet_context *open_context(void) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    settings.memory_limit = 256 << 20;
    linnet_context *context;
    return linnet_context_open(&settings, &context) == LINNET_OK ? context : NULL;
}

/* Every answer of a tokenizer must keep its word. */
static void use(const linnet_tokenizer *tokenizer, const char *text, size_t bytes) {
    enum { CAPACITY = 4096 };
    int32_t ids[CAPACITY];
    for (int flags = 0; flags < 4; flags++) {
        int64_t count = 0;
        if (linnet_tokenize(tokenizer, text, bytes, flags, ids, CAPACITY, &count) != LINNET_OK) continue;
        linnet_decoder *decoder;
        if (linnet_decoder_open(tokenizer, flags & 1, &decoder) != LINNET_OK) continue;
        const char *out;
        size_t length;
        for (int64_t i = 0; i < count && i < CAPACITY; i++) {
            if (ids[i] < 0 || ids[i] >= linnet_tokenizer_size(tokenizer)) abort();
            if (linnet_decode(decoder, ids[i], &out, &length) != LINNET_OK) break;
        }
        linnet_decode_end(decoder, &out, &length);
        linnet_decoder_close(decoder);
    }
}

/* What stands before the next byte 0xFF, which no UTF-8 has; *rest moves behind it. */
static ln_text take_part(ln_text *rest) {
    const char *end = rest->bytes ? memchr(rest->data, 0xFF, rest->bytes) : NULL;
    const ln_text part = {rest->data, end ? (size_t)(end - rest->data) : rest->bytes};
    const size_t used = part.bytes + (end != NULL);
    *rest = (ln_text){rest->data + used, rest->bytes - used};
    return part;
}

static void make_and_use(linnet_context *context, ln_key *keys, int64_t count, ln_text text) {
    static int64_t order[] = {0, 1, 2, 3, 4, 5, 6, 7};
    linnet_file file = {.context = context, .keys = keys, .key_count = count, .key_order = order};
    linnet_tokenizer *tokenizer;
    if (ln_tokenizer_make(context, &file, &tokenizer) != LINNET_OK) return;
    use(tokenizer, text.data, text.bytes);
    linnet_tokenizer_close(tokenizer);
    ln_key_writer written = ln_key_writer_open(context);
    ln_tokenizer_keys(context, &file, &written);
    ln_key_writer_close(&written);
}

static void fuzz_json(linnet_context *context, ln_text rest) {
    const ln_text json = take_part(&rest);
    ln_key key = {.name = "tokenizer.huggingface.json", .kind = LN_TEXT, .count = 1, .values = &json};
    make_and_use(context, &key, 1, rest);
}

enum { LINES = 1024 };

static uint64_t split_lines(ln_text text, ln_text *lines) {
    uint64_t count = 0;
    while (text.bytes && count < LINES) {
        const char *end = memchr(text.data, '\n', text.bytes);
        const size_t length = end ? (size_t)(end - text.data) : text.bytes;
        lines[count++] = (ln_text){text.data, length};
        text = (ln_text){text.data + length + (end != NULL), text.bytes - length - (end != NULL)};
    }
    return count;
}

/* tokens, merges (a line each), kinds (a byte each), the name of the splitting rule, the text */
static void fuzz_keys(linnet_context *context, bool scored, ln_text rest) {
    static ln_text tokens[LINES], merges[LINES];
    static float scores[LINES];
    static int32_t kinds[LINES];
    const ln_text model = scored ? (ln_text){"llama", 5} : (ln_text){"gpt2", 4};
    const uint64_t count = split_lines(take_part(&rest), tokens), merge_count = split_lines(take_part(&rest), merges);
    const ln_text kind_bytes = take_part(&rest), pre = take_part(&rest);
    for (uint64_t i = 0; i < count; i++) {
        scores[i] = -(float)i;
        kinds[i] = i < kind_bytes.bytes ? kind_bytes.data[i] - '0' : LN_TOKEN_NORMAL;
    }
    /* In the order of their names, as a file's index has them. */
    ln_key keys[] = {
        {.name = "tokenizer.ggml.merges", .kind = LN_TEXT, .array = true, .count = merge_count, .values = merges},
        {.name = "tokenizer.ggml.model", .kind = LN_TEXT, .count = 1, .values = &model},
        {.name = "tokenizer.ggml.pre", .kind = LN_TEXT, .count = 1, .values = &pre},
        {.name = "tokenizer.ggml.scores", .kind = LN_FLOAT, .array = true, .count = count, .values = scores},
        {.name = "tokenizer.ggml.token_type", .kind = LN_I32, .array = true, .count = count, .values = kinds},
        {.name = "tokenizer.ggml.tokens", .kind = LN_TEXT, .array = true, .count = count, .values = tokens}};
    make_and_use(context, keys, 6, rest);
}

static void fuzz_template(linnet_context *context, ln_text text) {
    static const linnet_message messages[] = {
        {"system", "Be brief."}, {"user", " one\ntwo "}, {"assistant", "<think>x</think>y"}, {"user", "\xC3\xA9"}};
    const ln_template_input input = {
        .messages = messages, .count = 4, .add_generation_prompt = true, .begin = {"<s>", 3}, .end = {"</s>", 4}};
    ln_template *compiled;
    if (ln_template_open(context, text.data, text.bytes, &compiled) != LINNET_OK) return;
    ln_buffer out = {.context = context};
    ln_template_render(compiled, &input, &out);
    ln_buffer_release(&out);
    ln_template_close(compiled);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (!bytes) return 0;
    linnet_context *context = open_context();
    if (!context) return 0;
    const uint64_t before = linnet_memory_used(context);
    const ln_text rest = {(const char *)data + 1, bytes - 1};
    if (data[0] == 'j')
        fuzz_json(context, rest);
    else if (data[0] == 't')
        fuzz_template(context, rest);
    else
        fuzz_keys(context, data[0] == 's', rest);
    if (linnet_memory_used(context) != before) abort();
    linnet_context_close(context);
    return 0;
}
