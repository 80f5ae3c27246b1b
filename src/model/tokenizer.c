/* Owns: the tokenizer as a whole: making it, encoding a text with it, asking about its tokens.
 *
 * Encoding: prefix (where asked) + tokens of the text + suffix. Added tokens are cut out first; what lies between goes
 * through the steps. Control tokens are looked for only under LINNET_TOKENIZE_SPECIAL; other added tokens always, as in
 * Hugging Face's tokenizers (which look for all of them always). */
#include "model/tokenizer.h"

#include <string.h>

#include "base/checked.h"
#include "model/chat_template.h"

/* ---- putting together ---- */

linnet_status ln_tokenizer_add_step(linnet_tokenizer *tokenizer, ln_step_kind kind, ln_step **step) {
    enum { MOST_STEPS = 64 };
    if (!tokenizer->steps)
        tokenizer->steps = ln_allocate_zero(tokenizer->context, MOST_STEPS, sizeof *tokenizer->steps, "tokenizer");
    if (!tokenizer->steps) return LINNET_ERROR_MEMORY;
    if (tokenizer->step_count == MOST_STEPS)
        return ln_fail(tokenizer->context, LINNET_ERROR_UNSUPPORTED, "the tokenizer has more than %d steps",
                       MOST_STEPS);
    ln_step *added = &tokenizer->steps[tokenizer->step_count++];
    added->kind = kind;
    if (step) *step = added;
    return LINNET_OK;
}

static bool set_text(linnet_context *context, char **text, size_t *bytes, const char *from, size_t count) {
    *text = ln_copy_text(context, from, count);
    *bytes = count;
    return *text != NULL;
}

linnet_status ln_step_set_literal(linnet_context *context, ln_step *step, const char *text, size_t bytes) {
    return set_text(context, &step->literal, &step->literal_bytes, text, bytes) ? LINNET_OK : LINNET_ERROR_MEMORY;
}

linnet_status ln_step_set_text(linnet_context *context, ln_step *step, const char *text, size_t bytes) {
    return set_text(context, &step->text, &step->text_bytes, text, bytes) ? LINNET_OK : LINNET_ERROR_MEMORY;
}

void ln_step_close(linnet_context *context, ln_step *step) {
    ln_regex_close(step->regex);
    ln_release(context, step->literal);
    ln_release(context, step->text);
}

linnet_status ln_step_set_regex(linnet_context *context, ln_step *step, const char *regex, size_t bytes) {
    const linnet_status status = ln_step_set_literal(context, step, regex, bytes);
    return status == LINNET_OK ? ln_regex_open(context, regex, bytes, &step->regex) : status;
}

linnet_status ln_tokenizer_add_split(linnet_tokenizer *tokenizer, const char *regex, size_t bytes) {
    ln_step *step = NULL;
    const linnet_status status = ln_tokenizer_add_step(tokenizer, LN_STEP_SPLIT, &step);
    return status == LINNET_OK ? ln_step_set_regex(tokenizer->context, step, regex, bytes) : status;
}

linnet_status ln_tokenizer_add_replace(linnet_tokenizer *tokenizer, const char *literal, const char *text) {
    ln_step *step = NULL;
    linnet_status status = ln_tokenizer_add_step(tokenizer, LN_STEP_REPLACE, &step);
    if (status == LINNET_OK) status = ln_step_set_literal(tokenizer->context, step, literal, strlen(literal));
    return status == LINNET_OK ? ln_step_set_text(tokenizer->context, step, text, strlen(text)) : status;
}

linnet_status ln_tokenizer_add_prepend(linnet_tokenizer *tokenizer, const char *text, ln_when when) {
    ln_step *step = NULL;
    const linnet_status status = ln_tokenizer_add_step(tokenizer, LN_STEP_PREPEND, &step);
    if (status != LINNET_OK) return status;
    step->when = when;
    return ln_step_set_text(tokenizer->context, step, text, strlen(text));
}

linnet_status ln_tokenizer_set_added(linnet_tokenizer *tokenizer, const ln_added *tokens, int64_t count) {
    static const char word[] = "[\\w\\x{200C}\\x{200D}]"; /* as Rust has it, in which they are looked for */
    linnet_status status = ln_added_open(tokenizer->context, tokens, count, false, &tokenizer->raw);
    if (status == LINNET_OK) status = ln_added_open(tokenizer->context, tokens, count, true, &tokenizer->normalised);
    for (int64_t i = 0; i < count && status == LINNET_OK; i++)
        if (tokens[i].single_word && !tokenizer->word)
            status = ln_regex_open(tokenizer->context, word, sizeof word - 1, &tokenizer->word);
    return status;
}

static bool byte_of_token(const char *text, size_t bytes, unsigned char *byte) {
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return false;
    unsigned value = 0;
    for (int i = 3; i < 5; i++) {
        const char c = text[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + (unsigned)(c - '0');
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + (unsigned)(c - 'A' + 10);
        else
            return false;
    }
    *byte = (unsigned char)value;
    return true;
}

/* One token through the replacements, by two buffers in turn. */
static linnet_status write_token(const ln_step *replacements, int count, const char *text, size_t bytes,
                                 ln_buffer scratch[2], ln_buffer *out) {
    for (int i = 0; i < count; i++) {
        ln_buffer *next = &scratch[i % 2];
        next->bytes = 0;
        const linnet_status status = ln_replace(&replacements[i], next, text, bytes);
        if (status != LINNET_OK) return status;
        text = next->data ? next->data : "";
        bytes = next->bytes;
    }
    ln_buffer_append(out, text, bytes);
    return out->failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

linnet_status ln_tokenizer_set_written(linnet_tokenizer *tokenizer, const ln_step *replacements, int count,
                                       bool bytes_too) {
    ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    linnet_context *context = tokenizer->context;
    vocabulary->written.offsets = ln_allocate(context, (uint64_t)vocabulary->size + 1, sizeof(uint32_t), "vocabulary");
    if (!vocabulary->written.offsets) return LINNET_ERROR_MEMORY;
    ln_buffer out = {.context = context}, scratch[2] = {{.context = context}, {.context = context}};
    ln_buffer_append(&out, "", 0);
    linnet_status status = LINNET_OK;
    for (int64_t id = 0; id < vocabulary->size && status == LINNET_OK; id++) {
        size_t bytes;
        unsigned char byte;
        const char *piece = ln_table_bytes(&vocabulary->pieces, id, &bytes);
        vocabulary->written.offsets[id] = (uint32_t)out.bytes;
        if (vocabulary->kinds[id] == LN_TOKEN_CONTROL || vocabulary->kinds[id] == LN_TOKEN_UNKNOWN)
            ln_buffer_append(&out, piece, bytes);
        else if (bytes_too && byte_of_token(piece, bytes, &byte))
            ln_buffer_append(&out, &byte, 1);
        else
            status = write_token(replacements, count, piece, bytes, scratch, &out);
        if (out.bytes > UINT32_MAX)
            status = ln_fail(context, LINNET_ERROR_FORMAT, "the texts of the tokens have more than 4 GiB");
    }
    vocabulary->written.offsets[vocabulary->size] = (uint32_t)out.bytes;
    if (out.failed && status == LINNET_OK) status = LINNET_ERROR_MEMORY;
    for (int i = 0; i < 2; i++) ln_buffer_release(&scratch[i]);
    vocabulary->written.bytes = out.data;
    return status;
}

/* ---- where generation ends ---- */

static bool is_end_name(const char *text, size_t bytes) {
    static const char *const names[] = {
        "<|im_end|>",      "<|eot_id|>",         "<|eom_id|>", "<end_of_turn>", "<|end|>",  "</s>",  "<|endoftext|>",
        "<|end_of_text|>", "<end_of_utterance>", "<EOT>",      "<|return|>",    "<|call|>", "[EOT]",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == bytes && memcmp(names[i], text, bytes) == 0) return true;
    return false;
}

static bool listed(const linnet_tokenizer *tokenizer, int64_t id) {
    for (int64_t i = 0; i < tokenizer->end_count; i++)
        if (tokenizer->ends[i] == id) return true;
    return false;
}

static void add_end(linnet_tokenizer *tokenizer, int64_t id, int64_t capacity) {
    if (id < 0 || id >= tokenizer->vocabulary.size || listed(tokenizer, id) || tokenizer->end_count == capacity) return;
    tokenizer->ends[tokenizer->end_count++] = (int32_t)id;
}

/* The ids that the file names, and added tokens with names that are only used for ends. */
static linnet_status set_ends(linnet_tokenizer *tokenizer, const linnet_file *file) {
    enum { MOST_ENDS = 256 };
    static const char *const keys[] = {"tokenizer.linnet.end_token_ids", "tokenizer.ggml.eos_token_id",
                                       "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    tokenizer->ends = ln_allocate(tokenizer->context, MOST_ENDS, sizeof *tokenizer->ends, "end tokens");
    if (!tokenizer->ends) return LINNET_ERROR_MEMORY;
    add_end(tokenizer, tokenizer->end, MOST_ENDS);
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const ln_key *key = ln_file_key(file, keys[k]);
        const uint64_t count = key ? key->count : 0;
        for (uint64_t i = 0; i < count && i < MOST_ENDS; i++) add_end(tokenizer, ln_key_integer(key, i, -1), MOST_ENDS);
    }
    const ln_added_set *sets[] = {&tokenizer->raw, &tokenizer->normalised};
    for (int s = 0; s < 2; s++)
        for (int64_t i = 0; i < sets[s]->count; i++) {
            size_t bytes;
            const char *text = ln_table_bytes(&tokenizer->vocabulary.pieces, sets[s]->tokens[i].id, &bytes);
            if (is_end_name(text, bytes)) add_end(tokenizer, sets[s]->tokens[i].id, MOST_ENDS);
        }
    return LINNET_OK;
}

/* ---- opening and closing ---- */

linnet_status ln_tokenizer_make(linnet_context *context, const linnet_file *file, linnet_tokenizer **tokenizer) {
    *tokenizer = NULL;
    const ln_key *json = ln_file_key(file, "tokenizer.huggingface.json");
    const ln_text text = ln_key_text(json, 0);
    if (!text.data && !ln_file_key(file, "tokenizer.ggml.model"))
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s carries no tokenizer: neither tokenizer.json beside it nor the key tokenizer.ggml.model",
                       file->path ? file->path : "the file");
    linnet_tokenizer *made = ln_allocate_zero(context, 1, sizeof *made, "tokenizer");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = made->vocabulary.context = context;
    made->begin = made->end = made->padding = made->vocabulary.unknown = LN_NO_TOKEN;
    linnet_status status = text.data ? ln_tokenizer_read_json(made, file, text) : ln_tokenizer_read_gguf(made, file);
    if (status == LINNET_OK) status = set_ends(made, file);
    const ln_text chat = ln_key_text(ln_file_key(file, "tokenizer.chat_template"), 0);
    if (status == LINNET_OK && chat.data && !made->chat_template &&
        !set_text(context, &made->chat_template, &made->chat_template_bytes, chat.data, chat.bytes))
        status = LINNET_ERROR_MEMORY;
    if (status == LINNET_OK)
        *tokenizer = made;
    else
        linnet_tokenizer_close(made);
    return status;
}

linnet_status linnet_tokenizer_open(linnet_context *context, const char *path, linnet_tokenizer **tokenizer) {
    *tokenizer = NULL;
    linnet_file *file;
    linnet_status status = ln_file_open_tokenizer(context, path, &file);
    if (status != LINNET_OK) return status;
    status = ln_tokenizer_make(context, file, tokenizer);
    linnet_file_close(file);
    return status;
}

void linnet_tokenizer_close(linnet_tokenizer *tokenizer) {
    if (!tokenizer) return;
    linnet_context *context = tokenizer->context;
    ln_vocabulary_close(&tokenizer->vocabulary);
    for (int i = 0; i < tokenizer->step_count; i++) ln_step_close(context, &tokenizer->steps[i]);
    ln_regex_close(tokenizer->word);
    ln_template_close(tokenizer->compiled_template);
    void *blocks[] = {tokenizer->raw.tokens,   tokenizer->normalised.tokens,
                      tokenizer->added_text,   tokenizer->steps,
                      tokenizer->prefix,       tokenizer->suffix,
                      tokenizer->ends,         tokenizer->strip,
                      tokenizer->chat_template};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) ln_release(context, blocks[i]);
    ln_release(context, tokenizer);
}

/* ---- encoding ---- */

linnet_status linnet_tokenize(const linnet_tokenizer *tokenizer, const char *text, size_t bytes, int flags,
                              int32_t *ids, int64_t capacity, int64_t *count) {
    linnet_context *context = tokenizer->context;
    *count = 0;
    if (bytes > INT32_MAX || capacity < 0 || (bytes && !text) || (capacity && !ids))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a text of %zu bytes cannot be tokenised at once", bytes);
    ln_encoder encoder = {.tokenizer = tokenizer, .ids = ids, .capacity = capacity, .flags = flags};
    encoder.last = LN_NO_TOKEN;
    const uint64_t buffers = (uint64_t)tokenizer->step_count + 1;
    encoder.buffers = ln_allocate_zero(context, buffers, sizeof *encoder.buffers, "text being tokenised");
    if (!encoder.buffers) return LINNET_ERROR_MEMORY;
    for (uint64_t i = 0; i < buffers; i++) encoder.buffers[i].context = context;
    const bool begin = flags & LINNET_TOKENIZE_BEGIN;
    for (int i = 0; begin && i < tokenizer->prefix_count; i++) ln_encoder_emit(&encoder, tokenizer->prefix[i]);
    ln_encode_added(&encoder, &tokenizer->raw, 0, text ? text : "", bytes, true);
    for (int i = 0; begin && i < tokenizer->suffix_count; i++) ln_encoder_emit(&encoder, tokenizer->suffix[i]);
    for (uint64_t i = 0; i < buffers; i++) ln_buffer_release(&encoder.buffers[i]);
    ln_release(context, encoder.buffers);
    ln_release(context, encoder.symbols);
    ln_release(context, encoder.heap);
    *count = encoder.count;
    return encoder.status;
}

/* ---- questions ---- */

int64_t linnet_tokenizer_size(const linnet_tokenizer *tokenizer) {
    return tokenizer->vocabulary.size;
}

const char *linnet_token_bytes(const linnet_tokenizer *tokenizer, int32_t id, size_t *bytes) {
    *bytes = 0;
    const ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    if (id < 0 || id >= vocabulary->size) return NULL;
    return ln_table_bytes(vocabulary->written.bytes ? &vocabulary->written : &vocabulary->pieces, id, bytes);
}

bool linnet_token_is_special(const linnet_tokenizer *tokenizer, int32_t id) {
    if (id < 0 || id >= tokenizer->vocabulary.size) return false;
    const uint8_t kind = tokenizer->vocabulary.kinds[id];
    return kind == LN_TOKEN_CONTROL || kind == LN_TOKEN_UNKNOWN;
}

bool linnet_token_is_end(const linnet_tokenizer *tokenizer, int32_t id) {
    return listed(tokenizer, id);
}

int32_t linnet_token_begin(const linnet_tokenizer *tokenizer) {
    return tokenizer->begin;
}

int32_t linnet_token_end(const linnet_tokenizer *tokenizer) {
    return tokenizer->end;
}
