/* Owns: tokenizers from a tokenizer.json: the model (BPE), its added tokens, what goes around a text.
 *
 * What is not understood is refused by its name: a tokenizer that is nearly right would feed a model with noise. */
#include "model/tokenizer_json.h"

#include <string.h>

#include "base/checked.h"
#include "model/huggingface.h"

const char *ln_json_name(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

bool ln_json_flag(const json_t *object, const char *name, bool fallback) {
    const json_t *value = json_object_get(object, name);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

typedef struct reading {
    linnet_tokenizer *tokenizer;
    linnet_context *context;
    const json_t *root, *model, *added;
    ln_text json, vocab, merges;
    char *arena;
    ln_text *texts; /* by id */
    int64_t count;
} reading;

static linnet_status damaged(const reading *r, const char *where) {
    return ln_fail(r->context, LINNET_ERROR_FORMAT, "tokenizer.json: %s is not of the form that the tokenizer needs",
                   where);
}

/* ---- tokens ---- */

/* The entries of the vocabulary, to texts where that is not NULL; *entries, *largest id. */
static bool scan_vocab(reading *r, int64_t *entries, int64_t *largest) {
    ln_json_reader reader = {.at = r->vocab.data, .end = r->vocab.data + r->vocab.bytes, .arena = r->arena};
    *entries = 0;
    *largest = -1;
    if (!ln_json_take(&reader, '{')) return false;
    if (ln_json_take(&reader, '}')) return true;
    do {
        ln_text text;
        int64_t id;
        if (!ln_json_take_text(&reader, &text) || !ln_json_take(&reader, ':') || !ln_json_take_integer(&reader, &id))
            return false;
        ++*entries;
        *largest = ln_max_i64(*largest, id);
        if (r->texts) r->texts[id] = text;
    } while (ln_json_take(&reader, ','));
    if (r->texts) r->arena = reader.arena;
    return ln_json_take(&reader, '}');
}

static bool added_entry(const json_t *entry, int64_t *id, ln_text *text) {
    const json_t *content = json_object_get(entry, "content"), *number = json_object_get(entry, "id");
    *id = json_is_integer(number) ? json_integer_value(number) : -1;
    *text = (ln_text){json_string_value(content), json_string_length(content)};
    return *id >= 0 && text->data;
}

static linnet_status find_size(reading *r) {
    int64_t entries, largest, id;
    if (!scan_vocab(r, &entries, &largest)) return damaged(r, "model.vocab");
    const json_t *entry;
    size_t index;
    json_array_foreach(r->added, index, entry) {
        ln_text text;
        if (!added_entry(entry, &id, &text)) return damaged(r, "an entry of added_tokens");
        largest = ln_max_i64(largest, id);
        entries++;
    }
    if (!entries) return damaged(r, "model.vocab, which is empty,");
    /* A few unused ids are common; billions of them would be an attack. */
    if (largest >= 16 * entries + 65536 || largest >= INT32_MAX / 2)
        return ln_fail(r->context, LINNET_ERROR_FORMAT, "tokenizer.json: token id %lld is too large for %lld tokens",
                       (long long)largest, (long long)entries);
    r->count = largest + 1;
    return LINNET_OK;
}

static bool is_byte_text(ln_text text) {
    return text.bytes == 6 && memcmp(text.data, "<0x", 3) == 0 && text.data[5] == '>';
}

static void set_kinds(reading *r) {
    uint8_t *kinds = r->tokenizer->vocabulary.kinds;
    const bool byte_fallback = ln_json_flag(r->model, "byte_fallback", false);
    const char *unknown = ln_json_name(r->model, "unk_token");
    for (int64_t id = 0; id < r->count; id++) {
        kinds[id] = r->texts[id].data ? LN_TOKEN_NORMAL : LN_TOKEN_UNUSED;
        if (byte_fallback && r->texts[id].data && is_byte_text(r->texts[id])) kinds[id] = LN_TOKEN_BYTE;
    }
    const json_t *entry;
    size_t index;
    json_array_foreach(r->added, index, entry) {
        int64_t id;
        ln_text text;
        added_entry(entry, &id, &text);
        r->texts[id] = text;
        const bool is_unknown = strlen(unknown) == text.bytes && memcmp(unknown, text.data, text.bytes) == 0;
        kinds[id] = !ln_json_flag(entry, "special", false) ? LN_TOKEN_USER
                    : is_unknown                           ? LN_TOKEN_UNKNOWN
                                                           : LN_TOKEN_CONTROL;
    }
}

static linnet_status read_vocabulary(reading *r, bool byte_level) {
    ln_vocabulary *vocabulary = &r->tokenizer->vocabulary;
    linnet_status status = find_size(r);
    if (status != LINNET_OK) return status;
    r->texts = ln_allocate_zero(r->context, (uint64_t)r->count, sizeof *r->texts, "texts of the tokens");
    vocabulary->kinds = ln_allocate(r->context, (uint64_t)r->count, 1, "vocabulary");
    if (!r->texts || !vocabulary->kinds) return LINNET_ERROR_MEMORY;
    int64_t entries, largest;
    if (!scan_vocab(r, &entries, &largest)) return damaged(r, "model.vocab");
    set_kinds(r);
    return ln_vocabulary_build(vocabulary, r->texts, r->count, byte_level);
}

/* ---- merges ---- */

/* "a b" or ["a", "b"] */
static bool take_merge(ln_json_reader *reader, ln_text *left, ln_text *right) {
    if (ln_json_take(reader, '['))
        return ln_json_take_text(reader, left) && ln_json_take(reader, ',') && ln_json_take_text(reader, right) &&
               ln_json_take(reader, ']');
    ln_text pair;
    if (!ln_json_take_text(reader, &pair)) return false;
    const char *space = memchr(pair.data, ' ', pair.bytes);
    if (!space) return false;
    *left = (ln_text){pair.data, (size_t)(space - pair.data)};
    *right = (ln_text){space + 1, pair.bytes - left->bytes - 1};
    return true;
}

static linnet_status add_merges(reading *r, const ln_text *pairs, int count, uint32_t rank) {
    int first;
    if (!ln_vocabulary_add_merges(&r->tokenizer->vocabulary, pairs, count, rank, &first)) return LINNET_OK;
    const ln_text left = pairs[2 * first], right = pairs[2 * first + 1];
    return ln_fail(r->context, LINNET_ERROR_FORMAT,
                   "tokenizer.json: merge %u joins '%.*s' and '%.*s', which, or whose sum, is no token",
                   rank + (uint32_t)first, left.bytes < 100 ? (int)left.bytes : 100, left.data,
                   right.bytes < 100 ? (int)right.bytes : 100, right.data);
}

static linnet_status read_merges(reading *r) {
    /* Each merge but the last is followed by a comma of its own, or each is in brackets. */
    ln_json_reader peek = {.at = r->merges.data, .end = r->merges.data ? r->merges.data + r->merges.bytes : NULL};
    const char each = ln_json_take(&peek, '[') && ln_json_take(&peek, '[') ? '[' : ',';
    uint64_t most = 1;
    for (size_t i = 0; i < r->merges.bytes; i++) most += r->merges.data[i] == each;
    linnet_status status = ln_vocabulary_reserve_merges(&r->tokenizer->vocabulary, most);
    if (status != LINNET_OK || !r->merges.data) return status;
    ln_json_reader reader = {.at = r->merges.data, .end = r->merges.data + r->merges.bytes};
    if (!ln_json_take(&reader, '[')) return damaged(r, "model.merges");
    if (ln_json_take(&reader, ']')) return LINNET_OK;
    ln_text pairs[2 * LN_MERGE_BATCH];
    uint32_t rank = 0;
    int batch = 0;
    bool more = true;
    for (; more && status == LINNET_OK; batch %= LN_MERGE_BATCH) {
        if (!batch) reader.arena = r->arena; /* the texts of one batch at a time */
        if (!take_merge(&reader, &pairs[2 * batch], &pairs[2 * batch + 1]))
            return damaged(r, "an entry of model.merges");
        more = ln_json_take(&reader, ',');
        if (++batch < LN_MERGE_BATCH && more) continue;
        status = add_merges(r, pairs, batch, rank);
        rank += (uint32_t)batch;
    }
    return status != LINNET_OK || ln_json_take(&reader, ']') ? status : damaged(r, "model.merges");
}

/* ---- the model ---- */

static linnet_status check_model(const reading *r) {
    static const char *const unsupported[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = ln_json_name(r->model, "type");
    if (strcmp(type, "BPE") != 0 && !(!*type && r->vocab.data && r->merges.data))
        return ln_fail(r->context, LINNET_ERROR_UNSUPPORTED,
                       "tokenizer.json: a model of the kind '%s' is not understood; the kind that is: BPE", type);
    if (!r->vocab.data) return damaged(r, "model.vocab");
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (*ln_json_name(r->model, unsupported[i]))
            return ln_fail(r->context, LINNET_ERROR_UNSUPPORTED, "tokenizer.json: model.%s is not understood",
                           unsupported[i]);
    return LINNET_OK;
}

static linnet_status read_model(reading *r, bool byte_level) {
    ln_vocabulary *vocabulary = &r->tokenizer->vocabulary;
    linnet_status status = read_vocabulary(r, byte_level);
    if (status == LINNET_OK) status = read_merges(r);
    if (status != LINNET_OK) return status;
    vocabulary->ignore_merges = ln_json_flag(r->model, "ignore_merges", false);
    vocabulary->fuse_unknown = ln_json_flag(r->model, "fuse_unk", false);
    if (byte_level || ln_json_flag(r->model, "byte_fallback", false))
        ln_vocabulary_find_bytes(vocabulary);
    else
        memset(vocabulary->bytes, 0xFF, sizeof vocabulary->bytes);
    const char *unknown = ln_json_name(r->model, "unk_token");
    vocabulary->unknown = ln_vocabulary_find_written(vocabulary, (ln_text){unknown, strlen(unknown)});
    return LINNET_OK;
}

/* ---- added tokens ---- */

/* The text for which a token stands in normalised text, appended. */
static linnet_status normalise_added(reading *r, int steps, ln_text text, ln_buffer *out) {
    ln_buffer scratch[2] = {{.context = r->context}, {.context = r->context}};
    linnet_status status = LINNET_OK;
    for (int i = 0; i < steps && status == LINNET_OK; i++)
        status = ln_step_rewrite(&r->tokenizer->steps[i], &text.data, &text.bytes, true, &scratch[i % 2]);
    if (status == LINNET_OK) ln_buffer_append(out, text.data, text.bytes);
    for (int i = 0; i < 2; i++) ln_buffer_release(&scratch[i]);
    return out->failed ? LINNET_ERROR_MEMORY : status;
}

/* steps: those of the normaliser, which come first. */
static linnet_status read_added(reading *r, int steps) {
    const uint64_t count = json_array_size(r->added);
    ln_added *added = ln_allocate_zero(r->context, count, sizeof *added, "added tokens");
    if (!added) return LINNET_ERROR_MEMORY;
    ln_buffer normalised = {.context = r->context};
    linnet_status status = LINNET_OK;
    for (uint64_t i = 0; i < count && status == LINNET_OK; i++) {
        const json_t *entry = json_array_get(r->added, i);
        int64_t id;
        ln_text text;
        added_entry(entry, &id, &text);
        added[i] = (ln_added){.id = (int32_t)id,
                              .special = ln_json_flag(entry, "special", false),
                              .left_strip = ln_json_flag(entry, "lstrip", false),
                              .right_strip = ln_json_flag(entry, "rstrip", false),
                              .single_word = ln_json_flag(entry, "single_word", false),
                              .normalised = ln_json_flag(entry, "normalized", false)};
        added[i].text = ln_table_bytes(&r->tokenizer->vocabulary.pieces, id, &added[i].bytes);
        if (!added[i].normalised) continue;
        const size_t start = normalised.bytes;
        status = normalise_added(r, steps, text, &normalised);
        added[i].bytes = normalised.bytes - start;
    }
    size_t start = 0;
    for (uint64_t i = 0; i < count && status == LINNET_OK; i++) {
        if (!added[i].normalised) continue;
        added[i].text = normalised.data ? normalised.data + start : "";
        start += added[i].bytes;
    }
    r->tokenizer->added_text = normalised.data;
    if (status == LINNET_OK) status = ln_tokenizer_set_added(r->tokenizer, added, (int64_t)count);
    ln_release(r->context, added);
    return status;
}

/* ---- tokenizer_config.json ---- */

/* The token that the configuration names: a text, or an object with `content`. */
static int32_t named_token(const linnet_tokenizer *tokenizer, const json_t *config, const char *name, int32_t other) {
    const json_t *value = json_object_get(config, name);
    const char *text = json_is_object(value) ? ln_json_name(value, "content") : ln_json_name(config, name);
    const int32_t id = ln_vocabulary_find_written(&tokenizer->vocabulary, (ln_text){text, strlen(text)});
    return id >= 0 ? id : other;
}

static int32_t key_token(const linnet_tokenizer *tokenizer, const linnet_file *file, const char *name) {
    const int64_t id = ln_key_integer(ln_file_key(file, name), 0, -1);
    return id >= 0 && id < tokenizer->vocabulary.size ? (int32_t)id : LN_NO_TOKEN;
}

/* Makes a token stand, or not stand, at the outer end of what goes before (or after) the text. */
static linnet_status set_around(linnet_tokenizer *tokenizer, int32_t **ids, int *count, int32_t id, bool wanted,
                                bool before) {
    const int at = before ? 0 : *count - 1;
    const bool there = *count && (*ids)[at] == id;
    if (id < 0 || there == wanted) return LINNET_OK;
    if (!wanted) {
        --*count;
        if (before) memmove(*ids, *ids + 1, (size_t)*count * sizeof **ids);
        return LINNET_OK;
    }
    int32_t *grown = ln_reallocate(tokenizer->context, *ids, ((uint64_t)*count + 1) * sizeof **ids, "tokenizer");
    if (!grown) return LINNET_ERROR_MEMORY;
    *ids = grown;
    if (before) memmove(grown + 1, grown, (size_t)*count * sizeof *grown);
    grown[before ? 0 : *count] = id;
    ++*count;
    return LINNET_OK;
}

static linnet_status read_config(linnet_tokenizer *tokenizer, const linnet_file *file) {
    const ln_text text = ln_key_text(ln_file_key(file, "tokenizer.huggingface.config"), 0);
    ln_json config = {0};
    linnet_status status = LINNET_OK;
    if (text.data)
        status = ln_json_open(tokenizer->context, "tokenizer_config.json", text.data, text.bytes, true, &config);
    if (status != LINNET_OK) return status;
    tokenizer->begin =
        named_token(tokenizer, config.root, "bos_token", key_token(tokenizer, file, "tokenizer.ggml.bos_token_id"));
    tokenizer->end =
        named_token(tokenizer, config.root, "eos_token", key_token(tokenizer, file, "tokenizer.ggml.eos_token_id"));
    tokenizer->padding =
        named_token(tokenizer, config.root, "pad_token", key_token(tokenizer, file, "tokenizer.ggml.padding_token_id"));
    if (tokenizer->begin < 0 && tokenizer->prefix_count == 1) tokenizer->begin = tokenizer->prefix[0];
    if (tokenizer->end < 0 && tokenizer->suffix_count == 1) tokenizer->end = tokenizer->suffix[0];
    const json_t *begin = json_object_get(config.root, "add_bos_token");
    const json_t *end = json_object_get(config.root, "add_eos_token");
    if (json_is_boolean(begin))
        status = set_around(tokenizer, &tokenizer->prefix, &tokenizer->prefix_count, tokenizer->begin,
                            json_is_true(begin), true);
    if (status == LINNET_OK && json_is_boolean(end))
        status = set_around(tokenizer, &tokenizer->suffix, &tokenizer->suffix_count, tokenizer->end, json_is_true(end),
                            false);
    ln_json_close(tokenizer->context, &config);
    return status;
}

/* ---- the whole ---- */

static linnet_status read_parts(reading *r, const linnet_file *file) {
    linnet_tokenizer *tokenizer = r->tokenizer;
    bool byte_level = false;
    linnet_status status = check_model(r);
    if (status == LINNET_OK) status = ln_json_normalizer(tokenizer, json_object_get(r->root, "normalizer"));
    const int normaliser_steps = tokenizer->step_count;
    if (status == LINNET_OK) status = ln_tokenizer_add_step(tokenizer, LN_STEP_ADDED, NULL);
    if (status == LINNET_OK)
        status = ln_json_pre_tokenizer(tokenizer, json_object_get(r->root, "pre_tokenizer"), &byte_level);
    if (status == LINNET_OK) status = read_model(r, byte_level);
    if (status == LINNET_OK) status = read_added(r, normaliser_steps);
    if (status == LINNET_OK) status = ln_json_decoder(tokenizer, json_object_get(r->root, "decoder"));
    if (status == LINNET_OK) status = ln_json_post_processor(tokenizer, json_object_get(r->root, "post_processor"));
    if (status == LINNET_OK) status = read_config(tokenizer, file);
    if (status != LINNET_OK) return status;
    const bool marks = !byte_level && !tokenizer->vocabulary.ignore_merges;
    if (!marks || !ln_vocabulary_cuts_at_marks(&tokenizer->vocabulary)) return LINNET_OK;
    return ln_tokenizer_add_step(tokenizer, LN_STEP_MARKS, NULL);
}

linnet_status ln_tokenizer_read_json(linnet_tokenizer *tokenizer, const linnet_file *file, ln_text json) {
    linnet_context *context = tokenizer->context;
    reading r = {.tokenizer = tokenizer, .context = context, .json = json};
    ln_buffer rest = {.context = context};
    ln_json root = {0};
    linnet_status status = ln_json_cut(context, json, &r.vocab, &r.merges, &rest);
    if (status == LINNET_OK) status = ln_json_open(context, "tokenizer.json", rest.data, rest.bytes, true, &root);
    ln_buffer_release(&rest);
    char *arena = NULL;
    if (status == LINNET_OK) {
        r.root = root.root;
        r.model = json_object_get(root.root, "model");
        r.added = json_object_get(root.root, "added_tokens");
        const uint64_t longest = r.vocab.bytes > r.merges.bytes ? r.vocab.bytes : r.merges.bytes;
        r.arena = arena = ln_allocate(context, longest, 2, "texts of the tokens");
        status = arena ? read_parts(&r, file) : LINNET_ERROR_MEMORY;
    }
    ln_json_close(context, &root);
    ln_release(context, arena);
    ln_release(context, r.texts);
    return status;
}
