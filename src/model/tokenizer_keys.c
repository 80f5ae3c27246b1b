/* Owns: a tokenizer as tokenizer.ggml.* keys, for GGUF files made from Hugging Face folders.
 *
 * Byte-level BPE is said exactly where its splitting rule has a name or can be written as regular expressions
 * (tokenizer.linnet.split). Where keys say the tokenizer but nearly (SentencePiece exported as BPE, tokens that strip
 * blanks), other programs get the keys, and tokenizer.json is carried whole beside them: Linnet reads that. */
#include <string.h>

#include "base/checked.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

typedef struct writing {
    linnet_context *context;
    const linnet_file *file;
    const linnet_tokenizer *tokenizer;
    ln_key_writer *keys;
    int64_t size; /* tokens to write: those there are, and as many more as the model has rows */
    bool exact;
} writing;

/* ---- the splitting rule ---- */

static bool same_splits(const ln_split_rule *rule, const ln_step *splits, int count) {
    enum { MOST = sizeof rule->regex / sizeof *rule->regex };
    for (int i = 0; i < MOST; i++) {
        const char *regex = rule->regex[i];
        if ((i < count) != (regex != NULL)) return false;
        if (regex && strcmp(regex, splits[i].literal) != 0) return false;
    }
    return count <= MOST;
}

/* Writes the rule; steps that are no plain splits make the keys inexact. */
static void write_rule(writing *w) {
    const linnet_tokenizer *tokenizer = w->tokenizer;
    const bool ignore_merges = tokenizer->vocabulary.ignore_merges;
    const ln_step *splits = tokenizer->steps;
    int count = tokenizer->step_count;
    if (count && splits->kind == LN_STEP_NFC) {
        ln_write_integer(w->keys, "tokenizer.linnet.nfc", LN_BOOL, 1);
        splits++, count--;
    }
    if (count && splits->kind == LN_STEP_ADDED) splits++, count--;
    ln_text regexes[64];
    for (int i = 0; i < count; i++) {
        w->exact &= splits[i].kind == LN_STEP_SPLIT && splits[i].regex && splits[i].behaviour == LN_ISOLATED &&
                    !splits[i].invert;
        regexes[i] = (ln_text){splits[i].literal, splits[i].literal_bytes};
    }
    const ln_split_rule *rule;
    for (int i = 0; w->exact && (rule = ln_split_rule_at(i)); i++) {
        if (rule->ignore_merges != ignore_merges || !same_splits(rule, splits, count)) continue;
        ln_write_text(w->keys, "tokenizer.ggml.pre", rule->names, strcspn(rule->names, " "));
        return;
    }
    const char *nearest = ignore_merges ? "llama-bpe" : "gpt-2";
    ln_write_text(w->keys, "tokenizer.ggml.pre", nearest, strlen(nearest));
    if (w->exact) ln_write_array(w->keys, "tokenizer.linnet.split", LN_TEXT, regexes, (uint64_t)count);
    ln_log(
        w->context, LINNET_LOG_WARNING,
        "the splitting rule of the tokenizer has no name in GGUF; programs other than Linnet will split by that of %s",
        nearest);
}

/* ---- tokens and merges ---- */

/* The piece as files write it, appended. */
static void append_piece(const ln_vocabulary *vocabulary, int64_t id, ln_buffer *out) {
    size_t bytes;
    const char *piece = ln_table_bytes(&vocabulary->pieces, id, &bytes);
    if (!vocabulary->byte_level || vocabulary->kinds[id] != LN_TOKEN_NORMAL) {
        ln_buffer_append(out, piece, bytes);
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        char character[3];
        ln_byte_character((unsigned char)piece[i], character);
        ln_buffer_text(out, character);
    }
}

/* Texts were appended one after the other; lengths[i] are theirs. */
static void write_texts(writing *w, const char *name, const ln_buffer *all, ln_text *texts, uint64_t count) {
    const char *at = all->data;
    for (uint64_t i = 0; i < count; at += texts[i++].bytes) texts[i].data = at;
    ln_write_array(w->keys, name, LN_TEXT, texts, count);
}

static linnet_status write_tokens(writing *w) {
    const ln_vocabulary *vocabulary = &w->tokenizer->vocabulary;
    ln_buffer all = {.context = w->context};
    ln_text *texts = ln_allocate(w->context, (uint64_t)w->size, sizeof *texts, "tokens being written");
    int32_t *kinds = ln_allocate(w->context, (uint64_t)w->size, sizeof *kinds, "tokens being written");
    for (int64_t id = 0; texts && kinds && id < w->size; id++) {
        const size_t start = all.bytes;
        kinds[id] = id < vocabulary->size ? vocabulary->kinds[id] : LN_TOKEN_UNUSED;
        if (id < vocabulary->size) append_piece(vocabulary, id, &all);
        if (all.bytes == start) ln_buffer_format(&all, "[PAD%lld]", (long long)id);
        texts[id].bytes = all.bytes - start;
    }
    const bool made = texts && kinds && !all.failed;
    if (made) {
        write_texts(w, "tokenizer.ggml.tokens", &all, texts, (uint64_t)w->size);
        ln_write_array(w->keys, "tokenizer.ggml.token_type", LN_I32, kinds, (uint64_t)w->size);
    }
    ln_buffer_release(&all);
    ln_release(w->context, texts);
    ln_release(w->context, kinds);
    return made ? LINNET_OK : LINNET_ERROR_MEMORY;
}

/* The merges in the order of their ranks; *count of them. NULL: recorded. */
static const ln_merge **ordered_merges(writing *w, uint64_t *count) {
    const ln_vocabulary *vocabulary = &w->tokenizer->vocabulary;
    uint64_t ranks = 0;
    for (uint64_t i = 0; i <= vocabulary->merge_mask; i++)
        if (vocabulary->merges[i].left >= 0 && vocabulary->merges[i].rank >= ranks)
            ranks = (uint64_t)vocabulary->merges[i].rank + 1;
    const ln_merge **order = ln_allocate_zero(w->context, ranks, sizeof *order, "merges being written");
    if (!order) return NULL;
    for (uint64_t i = 0; i <= vocabulary->merge_mask; i++)
        if (vocabulary->merges[i].left >= 0) order[vocabulary->merges[i].rank] = &vocabulary->merges[i];
    *count = 0;
    for (uint64_t rank = 0; rank < ranks; rank++)
        if (order[rank]) order[(*count)++] = order[rank];
    return order;
}

static linnet_status write_merges(writing *w) {
    const ln_vocabulary *vocabulary = &w->tokenizer->vocabulary;
    uint64_t count;
    const ln_merge **order = ordered_merges(w, &count);
    if (!order) return LINNET_ERROR_MEMORY;
    ln_buffer all = {.context = w->context};
    ln_text *texts = ln_allocate(w->context, count, sizeof *texts, "merges being written");
    for (uint64_t i = 0; texts && i < count; i++) {
        const size_t start = all.bytes;
        append_piece(vocabulary, order[i]->left, &all);
        ln_buffer_append(&all, " ", 1);
        append_piece(vocabulary, order[i]->right, &all);
        texts[i].bytes = all.bytes - start;
    }
    const bool made = texts && !all.failed;
    if (made) write_texts(w, "tokenizer.ggml.merges", &all, texts, count);
    ln_buffer_release(&all);
    ln_release(w->context, texts);
    ln_release(w->context, order);
    return made ? LINNET_OK : LINNET_ERROR_MEMORY;
}

/* SentencePiece merges by the score of the result: here minus the rank of the first merge that makes it. */
static linnet_status write_scores(writing *w) {
    const ln_vocabulary *vocabulary = &w->tokenizer->vocabulary;
    const uint64_t slots = (uint64_t)vocabulary->merge_mask + 1;
    float *scores = ln_allocate(w->context, (uint64_t)w->size, sizeof *scores, "scores being written");
    if (!scores) return LINNET_ERROR_MEMORY;
    for (int64_t id = 0; id < w->size; id++) scores[id] = -(float)slots;
    for (uint64_t i = 0; i < slots; i++) {
        const ln_merge *merge = &vocabulary->merges[i];
        if (merge->left >= 0 && scores[merge->merged] < -(float)merge->rank)
            scores[merge->merged] = -(float)merge->rank;
    }
    ln_write_array(w->keys, "tokenizer.ggml.scores", LN_FLOAT, scores, (uint64_t)w->size);
    ln_release(w->context, scores);
    return LINNET_OK;
}

/* ---- the rest ---- */

static void write_id(writing *w, const char *name, int32_t id) {
    if (id >= 0) ln_write_integer(w->keys, name, LN_U32, id);
}

static void write_ends(writing *w) {
    const linnet_tokenizer *tokenizer = w->tokenizer;
    write_id(w, "tokenizer.ggml.bos_token_id", tokenizer->begin);
    write_id(w, "tokenizer.ggml.eos_token_id", tokenizer->end);
    write_id(w, "tokenizer.ggml.padding_token_id", tokenizer->padding);
    write_id(w, "tokenizer.ggml.unknown_token_id", tokenizer->vocabulary.unknown);
    const bool begins = tokenizer->prefix_count == 1 && tokenizer->prefix[0] == tokenizer->begin;
    const bool ends = tokenizer->suffix_count == 1 && tokenizer->suffix[0] == tokenizer->end;
    ln_write_integer(w->keys, "tokenizer.ggml.add_bos_token", LN_BOOL, begins);
    ln_write_integer(w->keys, "tokenizer.ggml.add_eos_token", LN_BOOL, ends);
    w->exact &= (begins || !tokenizer->prefix_count) && (ends || !tokenizer->suffix_count);
}

static bool plain_added(const linnet_tokenizer *tokenizer, const ln_added_set *set) {
    for (int64_t i = 0; i < set->count; i++) {
        const ln_added *token = &set->tokens[i];
        size_t bytes;
        const char *piece = ln_table_bytes(&tokenizer->vocabulary.pieces, token->id, &bytes);
        if (token->left_strip || token->right_strip || token->single_word) return false;
        if (bytes != token->bytes || memcmp(piece, token->text, bytes) != 0) return false;
    }
    return true;
}

static void write_space_prefix(writing *w) {
    bool prefix = false;
    for (int i = 0; i < w->tokenizer->step_count; i++) prefix |= w->tokenizer->steps[i].kind == LN_STEP_PREPEND;
    ln_write_integer(w->keys, "tokenizer.ggml.add_space_prefix", LN_BOOL, prefix);
}

static void carry_whole(writing *w) {
    static const char *const names[] = {"tokenizer.huggingface.json", "tokenizer.huggingface.config"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const ln_key *key = ln_file_key(w->file, names[i]);
        if (key) ln_write_key(w->keys, key);
    }
}

static linnet_status write_all(writing *w) {
    const linnet_tokenizer *tokenizer = w->tokenizer;
    const bool byte_level = tokenizer->vocabulary.byte_level;
    const char *model = byte_level ? "gpt2" : "llama";
    const linnet_tensor_info *rows = ln_file_find(w->file, "token_embd.weight");
    w->size = tokenizer->vocabulary.size;
    if (rows && rows->dimensions == 2) w->size = ln_max_i64(w->size, rows->size[1]);
    w->exact = byte_level && !tokenizer->vocabulary.fuse_unknown && plain_added(tokenizer, &tokenizer->raw) &&
               plain_added(tokenizer, &tokenizer->normalised);
    ln_write_text(w->keys, "tokenizer.ggml.model", model, strlen(model));
    linnet_status status = write_tokens(w);
    write_ends(w);
    if (byte_level)
        write_rule(w);
    else
        write_space_prefix(w);
    if (status == LINNET_OK) status = byte_level ? write_merges(w) : write_scores(w);
    if (!w->exact) carry_whole(w);
    return status == LINNET_OK ? ln_key_writer_status(w->keys) : status;
}

linnet_status ln_tokenizer_keys(linnet_context *context, const linnet_file *file, ln_key_writer *keys) {
    linnet_tokenizer *tokenizer;
    linnet_status status = ln_tokenizer_make(context, file, &tokenizer);
    if (status != LINNET_OK) return status;
    writing w = {.context = context, .file = file, .tokenizer = tokenizer, .keys = keys};
    status = write_all(&w);
    linnet_tokenizer_close(tokenizer);
    return status;
}
