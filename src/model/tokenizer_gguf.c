/* Owns: tokenizers from the keys tokenizer.ggml.* of a GGUF file: byte-level BPE ("gpt2"), SentencePiece ("llama") and
 * the longest pieces from left to right ("rwkv").
 *
 * Keys of Linnet's own say what GGUF has no key for: tokenizer.linnet.split, the splitting rule as regular expressions,
 * in preference to the name in tokenizer.ggml.pre; tokenizer.linnet.nfc, that text is normalised first. */
#include <string.h>

#include "model/tokenizer.h"

static bool key_flag(const linnet_file *file, const char *name, bool fallback) {
    return ln_key_integer(ln_file_key(file, name), 0, fallback) != 0;
}

/* A token id; LN_NO_TOKEN where the key is missing or out of range. */
static int32_t key_token(const linnet_tokenizer *tokenizer, const linnet_file *file, const char *name,
                         int64_t fallback) {
    const int64_t id = ln_key_integer(ln_file_key(file, name), 0, fallback);
    return id >= 0 && id < tokenizer->vocabulary.size ? (int32_t)id : LN_NO_TOKEN;
}

/* A text in which \\n, \\t, \\r and \\xHH stand for bytes and \\ makes what follows itself, to out, which may be the
 * text. */
static size_t unescape(const char *text, size_t bytes, char *out) {
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '\\' && i + 1 < bytes) {
            c = text[++i];
            unsigned value = 0, digits = 0;
            for (; c == 'x' && digits < 2 && i + 1 + digits < bytes; digits++) {
                const char d = text[i + 1 + digits];
                const int digit = d >= '0' && d <= '9' ? d - '0' : d >= 'a' && d <= 'f' ? d - 'a' + 10 : -1;
                if (digit < 0) break;
                value = value * 16 + (unsigned)digit;
            }
            i += digits;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c == 'x' && digits == 2 ? (char)value : c;
        }
        out[count++] = c;
    }
    return count;
}

/* The vocabulary of texts as they are, or of what escapes in them stand for. */
static linnet_status build_escaped(ln_vocabulary *vocabulary, const ln_text *texts, int64_t count) {
    uint64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += texts[i].bytes; /* of one file */
    char *bytes = ln_allocate(vocabulary->context, total + 1, 1, "vocabulary"), *at = bytes;
    ln_text *plain = ln_allocate(vocabulary->context, (uint64_t)count, sizeof *plain, "vocabulary");
    linnet_status status = bytes && plain ? LINNET_OK : LINNET_ERROR_MEMORY;
    for (int64_t i = 0; status == LINNET_OK && i < count; i++) {
        plain[i] = (ln_text){at, unescape(texts[i].data, texts[i].bytes, at)};
        at += plain[i].bytes;
    }
    if (status == LINNET_OK) status = ln_vocabulary_build(vocabulary, plain, count, false);
    ln_release(vocabulary->context, plain);
    ln_release(vocabulary->context, bytes);
    return status;
}

static linnet_status read_tokens(linnet_tokenizer *tokenizer, const linnet_file *file, bool byte_level) {
    ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    const ln_key *tokens = ln_file_key(file, "tokenizer.ggml.tokens");
    const ln_key *kinds = ln_file_key(file, "tokenizer.ggml.token_type");
    if (!tokens || !tokens->array || tokens->kind != LN_TEXT || !tokens->count || tokens->count > INT32_MAX / 2)
        return ln_fail(tokenizer->context, LINNET_ERROR_FORMAT,
                       "the key tokenizer.ggml.tokens is missing, or no array of texts");
    if (kinds && kinds->count < tokens->count)
        return ln_fail(tokenizer->context, LINNET_ERROR_FORMAT,
                       "tokenizer.ggml.token_type has %llu entries for %llu tokens", (unsigned long long)kinds->count,
                       (unsigned long long)tokens->count);
    const int64_t count = (int64_t)tokens->count;
    vocabulary->kinds = ln_allocate(tokenizer->context, tokens->count, 1, "vocabulary");
    if (!vocabulary->kinds) return LINNET_ERROR_MEMORY;
    for (int64_t id = 0; id < count; id++) {
        const int64_t kind = ln_key_integer(kinds, (uint64_t)id, LN_TOKEN_NORMAL);
        const bool known = kind >= LN_TOKEN_NORMAL && kind <= (byte_level ? LN_TOKEN_UNUSED : LN_TOKEN_BYTE);
        vocabulary->kinds[id] = known ? (uint8_t)kind : LN_TOKEN_NORMAL;
    }
    if (vocabulary->greedy) return build_escaped(vocabulary, tokens->values, count);
    return ln_vocabulary_build(vocabulary, tokens->values, count, byte_level);
}

/* Control, unknown and user-defined tokens, as added tokens. */
static linnet_status read_added(linnet_tokenizer *tokenizer) {
    const ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    int64_t count = 0;
    for (int64_t id = 0; id < vocabulary->size; id++)
        count += vocabulary->kinds[id] >= LN_TOKEN_UNKNOWN && vocabulary->kinds[id] <= LN_TOKEN_USER;
    ln_added *added = ln_allocate_zero(tokenizer->context, (uint64_t)count, sizeof *added, "added tokens");
    if (!added) return LINNET_ERROR_MEMORY;
    count = 0;
    for (int64_t id = 0; id < vocabulary->size; id++) {
        if (vocabulary->kinds[id] < LN_TOKEN_UNKNOWN || vocabulary->kinds[id] > LN_TOKEN_USER) continue;
        ln_added *token = &added[count++];
        token->id = (int32_t)id;
        token->special = vocabulary->kinds[id] != LN_TOKEN_USER;
        token->text = ln_table_bytes(&vocabulary->pieces, id, &token->bytes);
    }
    const linnet_status status = ln_tokenizer_set_added(tokenizer, added, count);
    ln_release(tokenizer->context, added);
    return status;
}

static linnet_status read_ends(linnet_tokenizer *tokenizer, const linnet_file *file, bool add_begin, int64_t begin,
                               int64_t end) {
    tokenizer->begin = key_token(tokenizer, file, "tokenizer.ggml.bos_token_id", begin);
    tokenizer->end = key_token(tokenizer, file, "tokenizer.ggml.eos_token_id", end);
    tokenizer->padding = key_token(tokenizer, file, "tokenizer.ggml.padding_token_id", -1);
    tokenizer->prefix = ln_allocate(tokenizer->context, 1, sizeof(int32_t), "tokenizer");
    tokenizer->suffix = ln_allocate(tokenizer->context, 1, sizeof(int32_t), "tokenizer");
    if (!tokenizer->prefix || !tokenizer->suffix) return LINNET_ERROR_MEMORY;
    if (key_flag(file, "tokenizer.ggml.add_bos_token", add_begin) && tokenizer->begin >= 0)
        tokenizer->prefix[tokenizer->prefix_count++] = tokenizer->begin;
    if (key_flag(file, "tokenizer.ggml.add_eos_token", false) && tokenizer->end >= 0)
        tokenizer->suffix[tokenizer->suffix_count++] = tokenizer->end;
    return LINNET_OK;
}

/* ---- byte-level BPE ---- */

static linnet_status read_merges(linnet_tokenizer *tokenizer, const linnet_file *file) {
    const ln_key *key = ln_file_key(file, "tokenizer.ggml.merges");
    const uint64_t count = key && key->kind == LN_TEXT ? key->count : 0;
    const linnet_status status = ln_vocabulary_reserve_merges(&tokenizer->vocabulary, count);
    if (status != LINNET_OK) return status;
    uint64_t strays = 0;
    for (uint64_t start = 0; start < count; start += LN_MERGE_BATCH) {
        const int batch = (int)(count - start < LN_MERGE_BATCH ? count - start : LN_MERGE_BATCH);
        ln_text pairs[2 * LN_MERGE_BATCH];
        int first;
        for (int i = 0; i < batch; i++) {
            const ln_text merge = ln_key_text(key, start + (uint64_t)i);
            const char *space = merge.bytes > 1 ? memchr(merge.data + 1, ' ', merge.bytes - 1) : NULL;
            if (!space)
                return ln_fail(tokenizer->context, LINNET_ERROR_FORMAT,
                               "entry %llu of tokenizer.ggml.merges is not two pieces with a space between",
                               (unsigned long long)start + (unsigned long long)i);
            pairs[2 * i] = (ln_text){merge.data, (size_t)(space - merge.data)};
            pairs[2 * i + 1] = (ln_text){space + 1, merge.bytes - pairs[2 * i].bytes - 1};
        }
        strays += (uint64_t)ln_vocabulary_add_merges(&tokenizer->vocabulary, pairs, batch, (uint32_t)start, &first);
    }
    if (strays)
        ln_log(tokenizer->context, LINNET_LOG_WARNING, "%llu merges of the tokenizer name no tokens and are ignored",
               (unsigned long long)strays);
    return LINNET_OK;
}

static linnet_status add_rule(linnet_tokenizer *tokenizer, const linnet_file *file, bool *add_begin) {
    const ln_text name = ln_key_text(ln_file_key(file, "tokenizer.ggml.pre"), 0);
    const ln_split_rule *rule = name.data ? ln_split_rule_of_name(name.data, name.bytes) : NULL;
    if (rule) {
        tokenizer->vocabulary.ignore_merges = rule->ignore_merges;
        *add_begin = rule->add_begin;
    }
    const ln_key *own = ln_file_key(file, "tokenizer.linnet.split");
    linnet_status status = LINNET_OK;
    if (own && own->kind == LN_TEXT) {
        for (uint64_t i = 0; i < own->count && status == LINNET_OK; i++) {
            const ln_text regex = ln_key_text(own, i);
            status = ln_tokenizer_add_split(tokenizer, regex.data, regex.bytes);
        }
        return status;
    }
    if (!rule) {
        if (name.data)
            ln_log(
                tokenizer->context, LINNET_LOG_WARNING,
                "the splitting rule '%.*s' of the tokenizer (tokenizer.ggml.pre) is not known; text is split by that "
                "of gpt-2 and may become other tokens than the model was trained with",
                name.bytes < 100 ? (int)name.bytes : 100, name.data);
        rule = ln_split_rule_of_name("gpt-2", 5);
    }
    for (size_t i = 0; i < sizeof rule->regex / sizeof *rule->regex && rule->regex[i] && status == LINNET_OK; i++)
        status = ln_tokenizer_add_split(tokenizer, rule->regex[i], strlen(rule->regex[i]));
    return status;
}

static linnet_status read_byte_level(linnet_tokenizer *tokenizer, const linnet_file *file) {
    linnet_status status = read_tokens(tokenizer, file, true);
    if (status == LINNET_OK) status = read_merges(tokenizer, file);
    if (status != LINNET_OK) return status;
    ln_vocabulary_find_bytes(&tokenizer->vocabulary);
    tokenizer->vocabulary.unknown = key_token(tokenizer, file, "tokenizer.ggml.unknown_token_id", -1);
    if (key_flag(file, "tokenizer.linnet.nfc", false)) status = ln_tokenizer_add_step(tokenizer, LN_STEP_NFC, NULL);
    bool add_begin = false;
    if (status == LINNET_OK) status = add_rule(tokenizer, file, &add_begin);
    return status == LINNET_OK ? read_ends(tokenizer, file, add_begin, -1, -1) : status;
}

/* ---- SentencePiece ---- */

static linnet_status read_scores(linnet_tokenizer *tokenizer, const linnet_file *file) {
    ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    const ln_key *key = ln_file_key(file, "tokenizer.ggml.scores");
    if (!key || key->count < (uint64_t)vocabulary->size)
        return ln_fail(tokenizer->context, LINNET_ERROR_FORMAT,
                       "a SentencePiece vocabulary needs a score for each token (tokenizer.ggml.scores)");
    vocabulary->scores = ln_allocate(tokenizer->context, (uint64_t)vocabulary->size, sizeof(float), "vocabulary");
    if (!vocabulary->scores) return LINNET_ERROR_MEMORY;
    for (int64_t id = 0; id < vocabulary->size; id++)
        vocabulary->scores[id] = (float)ln_key_number(key, (uint64_t)id, 0);
    return LINNET_OK;
}

static linnet_status read_sentencepiece(linnet_tokenizer *tokenizer, const linnet_file *file) {
    static char mark[] = LN_SPACE_MARK, blank[] = " ";
    static const ln_step space = {
        .kind = LN_STEP_REPLACE, .literal = mark, .literal_bytes = 3, .text = blank, .text_bytes = 1};
    linnet_status status = read_tokens(tokenizer, file, false);
    if (status == LINNET_OK) status = read_scores(tokenizer, file);
    if (status == LINNET_OK) status = ln_vocabulary_reserve_merges(&tokenizer->vocabulary, 0);
    if (status == LINNET_OK) status = ln_tokenizer_set_written(tokenizer, &space, 1, true);
    if (status != LINNET_OK) return status;
    ln_vocabulary *vocabulary = &tokenizer->vocabulary;
    ln_vocabulary_find_bytes(vocabulary);
    vocabulary->fuse_unknown = true;
    vocabulary->unknown = key_token(tokenizer, file, "tokenizer.ggml.unknown_token_id", 0);
    if (key_flag(file, "tokenizer.ggml.add_space_prefix", true)) {
        status = ln_tokenizer_add_prepend(tokenizer, " ", LN_ALWAYS);
        tokenizer->strip = ln_copy_text(tokenizer->context, " ", 1);
        if (!tokenizer->strip) return LINNET_ERROR_MEMORY;
        tokenizer->strip_bytes = tokenizer->strip_count = 1;
    }
    if (status == LINNET_OK) status = ln_tokenizer_add_replace(tokenizer, " ", LN_SPACE_MARK);
    if (status == LINNET_OK && ln_vocabulary_cuts_at_marks(vocabulary))
        status = ln_tokenizer_add_step(tokenizer, LN_STEP_MARKS, NULL);
    return status == LINNET_OK ? read_ends(tokenizer, file, true, 1, 2) : status;
}

/* ---- the longest pieces ---- */

static linnet_status read_greedy(linnet_tokenizer *tokenizer, const linnet_file *file) {
    tokenizer->vocabulary.greedy = true;
    linnet_status status = read_tokens(tokenizer, file, false);
    if (status == LINNET_OK) status = ln_vocabulary_reserve_merges(&tokenizer->vocabulary, 0);
    if (status != LINNET_OK) return status;
    tokenizer->vocabulary.unknown = key_token(tokenizer, file, "tokenizer.ggml.unknown_token_id", -1);
    return read_ends(tokenizer, file, false, 0, 0);
}

linnet_status ln_tokenizer_read_gguf(linnet_tokenizer *tokenizer, const linnet_file *file) {
    const ln_text model = ln_key_text(ln_file_key(file, "tokenizer.ggml.model"), 0);
    linnet_status status;
    if (model.bytes == 4 && memcmp(model.data, "gpt2", 4) == 0)
        status = read_byte_level(tokenizer, file);
    else if (model.bytes == 5 && memcmp(model.data, "llama", 5) == 0)
        status = read_sentencepiece(tokenizer, file);
    else if (model.bytes == 4 && memcmp(model.data, "rwkv", 4) == 0)
        status = read_greedy(tokenizer, file);
    else
        return ln_fail(tokenizer->context, LINNET_ERROR_UNSUPPORTED,
                       "a tokenizer of the kind '%.*s' (tokenizer.ggml.model) is not understood; those that are: gpt2, "
                       "llama, rwkv",
                       model.bytes < 100 ? (int)model.bytes : 100, model.data ? model.data : "");
    return status == LINNET_OK ? read_added(tokenizer) : status;
}
