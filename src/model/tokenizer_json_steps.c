/* Owns: the pipelines of a tokenizer.json (normalizer, pre_tokenizer, decoder, post_processor) as steps.
 *
 * Each is a tree of {"type": ...} objects whose Sequences are flattened; one table a pipeline has a row for each type
 * that is understood. */
#include <string.h>

#include "model/tokenizer_json.h"

typedef struct pipeline pipeline;
typedef linnet_status (*read_step)(pipeline *p, const json_t *json);

typedef struct step_row {
    const char *type;
    read_step read;
} step_row;

struct pipeline {
    linnet_tokenizer *tokenizer;
    linnet_context *context;
    const char *name; /* "normalizer" */
    const char *list; /* the member of a Sequence that holds its parts */
    const step_row *rows;
    /* pre_tokenizer: pieces are bytes from here on, and what cuts characters can no longer follow */
    bool byte_level;
    /* decoder */
    ln_step *replacements;
    int replacement_count;
    bool bytes, fused;
};

enum { DEEPEST_SEQUENCE = 8, MOST_REPLACEMENTS = 16 };

static linnet_status unsupported(const pipeline *p, const char *what) {
    return ln_fail(p->context, LINNET_ERROR_UNSUPPORTED, "tokenizer.json: %s '%s' is not understood", p->name, what);
}

static linnet_status read_pipeline(pipeline *p, const json_t *json, int depth) {
    if (!json || json_is_null(json)) return LINNET_OK;
    const char *type = ln_json_name(json, "type");
    if (strcmp(type, "Sequence") == 0) {
        if (depth == DEEPEST_SEQUENCE) return unsupported(p, "Sequence in Sequence in Sequence");
        const json_t *parts = json_object_get(json, p->list);
        linnet_status status = LINNET_OK;
        for (size_t i = 0; i < json_array_size(parts) && status == LINNET_OK; i++)
            status = read_pipeline(p, json_array_get(parts, i), depth + 1);
        return status;
    }
    if (p->byte_level) return unsupported(p, "after ByteLevel");
    for (const step_row *row = p->rows; row->type; row++)
        if (strcmp(row->type, type) == 0) return row->read ? row->read(p, json) : LINNET_OK;
    return unsupported(p, type);
}

/* {"String": "..."} or {"Regex": "..."} */
static linnet_status read_pattern(pipeline *p, const json_t *json, ln_step *step) {
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *literal = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    if (json_is_string(literal))
        return ln_step_set_literal(p->context, step, json_string_value(literal), json_string_length(literal));
    if (json_is_string(regex))
        return ln_step_set_regex(p->context, step, json_string_value(regex), json_string_length(regex));
    return unsupported(p, "pattern");
}

static linnet_status read_replacement(pipeline *p, const json_t *json, ln_step *step) {
    const linnet_status status = read_pattern(p, json, step);
    const char *text = ln_json_name(json, "content");
    return status == LINNET_OK ? ln_step_set_text(p->context, step, text, strlen(text)) : status;
}

/* ---- normalizer ---- */

static linnet_status read_prepend(pipeline *p, const json_t *json) {
    return ln_tokenizer_add_prepend(p->tokenizer, ln_json_name(json, "prepend"), LN_ALWAYS);
}

static linnet_status read_replace(pipeline *p, const json_t *json) {
    ln_step *step = NULL;
    const linnet_status status = ln_tokenizer_add_step(p->tokenizer, LN_STEP_REPLACE, &step);
    return status == LINNET_OK ? read_replacement(p, json, step) : status;
}

static linnet_status read_nfc(pipeline *p, const json_t *json) {
    (void)json;
    return ln_tokenizer_add_step(p->tokenizer, LN_STEP_NFC, NULL);
}

static linnet_status read_strip_spaces(pipeline *p, const json_t *json) {
    ln_step *step = NULL;
    const linnet_status status = ln_tokenizer_add_step(p->tokenizer, LN_STEP_STRIP, &step);
    if (status != LINNET_OK) return status;
    step->left = ln_json_flag(json, "strip_left", true);
    step->right = ln_json_flag(json, "strip_right", true);
    return LINNET_OK;
}

linnet_status ln_json_normalizer(linnet_tokenizer *tokenizer, const json_t *json) {
    static const step_row rows[] = {
        {"Prepend", read_prepend}, {"Replace", read_replace}, {"NFC", read_nfc}, {"Strip", read_strip_spaces}, {0}};
    pipeline p = {.tokenizer = tokenizer,
                  .context = tokenizer->context,
                  .name = "normalizer",
                  .list = "normalizers",
                  .rows = rows};
    return read_pipeline(&p, json, 0);
}

/* ---- pre_tokenizer ---- */

static const char *const behaviours[] = {[LN_ISOLATED] = "Isolated",
                                         [LN_REMOVED] = "Removed",
                                         [LN_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                         [LN_MERGED_WITH_NEXT] = "MergedWithNext",
                                         [LN_CONTIGUOUS] = "Contiguous"};

static linnet_status read_behaviour(pipeline *p, const json_t *json, ln_step *step) {
    const char *name = ln_json_name(json, "behavior");
    for (size_t i = 0; i < sizeof behaviours / sizeof *behaviours; i++) {
        if (strcmp(behaviours[i], name) != 0) continue;
        step->behaviour = (ln_behaviour)i;
        return LINNET_OK;
    }
    return unsupported(p, *name ? name : "without behavior");
}

static linnet_status add_split(pipeline *p, const char *regex, ln_behaviour behaviour) {
    const linnet_status status = ln_tokenizer_add_split(p->tokenizer, regex, strlen(regex));
    if (status == LINNET_OK) p->tokenizer->steps[p->tokenizer->step_count - 1].behaviour = behaviour;
    return status;
}

static linnet_status read_split(pipeline *p, const json_t *json) {
    ln_step *step = NULL;
    linnet_status status = ln_tokenizer_add_step(p->tokenizer, LN_STEP_SPLIT, &step);
    if (status != LINNET_OK) return status;
    step->invert = ln_json_flag(json, "invert", false);
    status = read_behaviour(p, json, step);
    return status == LINNET_OK ? read_pattern(p, json, step) : status;
}

static linnet_status read_byte_level(pipeline *p, const json_t *json) {
    linnet_status status = LINNET_OK;
    if (ln_json_flag(json, "add_prefix_space", true))
        status = ln_tokenizer_add_prepend(p->tokenizer, " ", LN_UNLESS_PRESENT);
    if (status == LINNET_OK && ln_json_flag(json, "use_regex", true)) status = add_split(p, ln_gpt2_split, LN_ISOLATED);
    p->byte_level = true;
    return status;
}

/* "prepend_scheme", or in older files "add_prefix_space". */
static linnet_status read_scheme(pipeline *p, const json_t *json, bool *prepends, ln_when *when) {
    const char *scheme = ln_json_name(json, "prepend_scheme");
    if (!*scheme) scheme = ln_json_flag(json, "add_prefix_space", true) ? "always" : "never";
    *prepends = strcmp(scheme, "never") != 0;
    *when = strcmp(scheme, "first") == 0 ? LN_FIRST_UNLESS_PRESENT : LN_UNLESS_PRESENT;
    return !*prepends || strcmp(scheme, "first") == 0 || strcmp(scheme, "always") == 0 ? LINNET_OK
                                                                                       : unsupported(p, scheme);
}

static linnet_status check_mark(pipeline *p, const json_t *json) {
    const char *replacement = ln_json_name(json, "replacement");
    return !*replacement || strcmp(replacement, LN_SPACE_MARK) == 0 ? LINNET_OK : unsupported(p, replacement);
}

static linnet_status read_metaspace(pipeline *p, const json_t *json) {
    bool prepends;
    ln_when when;
    linnet_status status = read_scheme(p, json, &prepends, &when);
    if (status == LINNET_OK) status = check_mark(p, json);
    if (status == LINNET_OK) status = ln_tokenizer_add_replace(p->tokenizer, " ", LN_SPACE_MARK);
    if (status == LINNET_OK && prepends) status = ln_tokenizer_add_prepend(p->tokenizer, LN_SPACE_MARK, when);
    if (status == LINNET_OK && ln_json_flag(json, "split", true))
        status = add_split(p, LN_SPACE_MARK, LN_MERGED_WITH_NEXT);
    return status;
}

static linnet_status read_digits(pipeline *p, const json_t *json) {
    return add_split(p, ln_json_flag(json, "individual_digits", false) ? "\\p{N}" : "\\p{N}+", LN_ISOLATED);
}

static linnet_status read_punctuation(pipeline *p, const json_t *json) {
    linnet_status status = add_split(p, "[!-/:-@\\[-`{-~\\p{P}]", LN_ISOLATED);
    if (status == LINNET_OK && json_object_get(json, "behavior"))
        status = read_behaviour(p, json, &p->tokenizer->steps[p->tokenizer->step_count - 1]);
    return status;
}

static linnet_status read_white_space(pipeline *p, const json_t *json) {
    (void)json;
    const linnet_status status = add_split(p, "\\w+|[^\\w\\s]+", LN_REMOVED);
    if (status == LINNET_OK) p->tokenizer->steps[p->tokenizer->step_count - 1].invert = true;
    return status;
}

static linnet_status read_white_space_split(pipeline *p, const json_t *json) {
    (void)json;
    return add_split(p, "\\s", LN_REMOVED);
}

linnet_status ln_json_pre_tokenizer(linnet_tokenizer *tokenizer, const json_t *json, bool *byte_level) {
    static const step_row rows[] = {{"Split", read_split},
                                    {"ByteLevel", read_byte_level},
                                    {"Metaspace", read_metaspace},
                                    {"Digits", read_digits},
                                    {"Punctuation", read_punctuation},
                                    {"Whitespace", read_white_space},
                                    {"WhitespaceSplit", read_white_space_split},
                                    {0}};
    pipeline p = {.tokenizer = tokenizer,
                  .context = tokenizer->context,
                  .name = "pre_tokenizer",
                  .list = "pretokenizers",
                  .rows = rows};
    const linnet_status status = read_pipeline(&p, json, 0);
    *byte_level = p.byte_level;
    return status;
}

/* ---- decoder ---- */

static ln_step *add_replacement(pipeline *p) {
    if (p->replacement_count == MOST_REPLACEMENTS) return NULL;
    ln_step *step = &p->replacements[p->replacement_count++];
    step->kind = LN_STEP_REPLACE;
    return step;
}

static linnet_status read_decoded_replacement(pipeline *p, const json_t *json) {
    ln_step *step = add_replacement(p);
    if (!step || p->fused) return unsupported(p, "Replace");
    return read_replacement(p, json, step);
}

static linnet_status read_decoded_bytes(pipeline *p, const json_t *json) {
    (void)json;
    p->bytes = true;
    return LINNET_OK;
}

static linnet_status read_fuse(pipeline *p, const json_t *json) {
    (void)json;
    p->fused = true;
    return LINNET_OK;
}

static linnet_status read_decoded_strip(pipeline *p, const json_t *json) {
    linnet_tokenizer *tokenizer = p->tokenizer;
    const json_int_t start = json_integer_value(json_object_get(json, "start"));
    const json_t *content = json_object_get(json, "content");
    if (!p->fused || tokenizer->strip || start < 0 || json_integer_value(json_object_get(json, "stop")) != 0)
        return unsupported(p, "Strip other than once, at the start, after Fuse");
    tokenizer->strip_bytes = json_string_length(content);
    tokenizer->strip_count = (size_t)start;
    tokenizer->strip = ln_copy_text(p->context, json_string_value(content), tokenizer->strip_bytes);
    return tokenizer->strip ? LINNET_OK : LINNET_ERROR_MEMORY;
}

static linnet_status read_decoded_metaspace(pipeline *p, const json_t *json) {
    ln_when when;
    linnet_status status = read_scheme(p, json, &p->tokenizer->first_without_marks, &when);
    if (status == LINNET_OK) status = check_mark(p, json);
    ln_step *step = add_replacement(p);
    if (!step) return unsupported(p, "Metaspace");
    if (status == LINNET_OK) status = ln_step_set_literal(p->context, step, LN_SPACE_MARK, sizeof LN_SPACE_MARK - 1);
    return status == LINNET_OK ? ln_step_set_text(p->context, step, " ", 1) : status;
}

static linnet_status read_decoded_byte_level(pipeline *p, const json_t *json) {
    (void)json;
    return p->tokenizer->vocabulary.byte_level ? LINNET_OK : unsupported(p, "ByteLevel without its pre_tokenizer");
}

linnet_status ln_json_decoder(linnet_tokenizer *tokenizer, const json_t *json) {
    static const step_row rows[] = {{"ByteLevel", read_decoded_byte_level},
                                    {"Replace", read_decoded_replacement},
                                    {"ByteFallback", read_decoded_bytes},
                                    {"Fuse", read_fuse},
                                    {"Strip", read_decoded_strip},
                                    {"Metaspace", read_decoded_metaspace},
                                    {0}};
    ln_step replacements[MOST_REPLACEMENTS] = {0};
    pipeline p = {.tokenizer = tokenizer,
                  .context = tokenizer->context,
                  .name = "decoder",
                  .list = "decoders",
                  .rows = rows,
                  .replacements = replacements};
    linnet_status status = read_pipeline(&p, json, 0);
    if (status == LINNET_OK && (p.replacement_count || p.bytes))
        status = ln_tokenizer_set_written(tokenizer, replacements, p.replacement_count, p.bytes);
    for (int i = 0; i < p.replacement_count; i++) ln_step_close(tokenizer->context, &replacements[i]);
    return status;
}

/* ---- post_processor ---- */

static linnet_status add_around(pipeline *p, bool before, const json_t *id) {
    linnet_tokenizer *tokenizer = p->tokenizer;
    int32_t **ids = before ? &tokenizer->prefix : &tokenizer->suffix;
    int *count = before ? &tokenizer->prefix_count : &tokenizer->suffix_count;
    const json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    if (value < 0 || value >= tokenizer->vocabulary.size) return unsupported(p, "with an id that is no token");
    int32_t *grown = ln_reallocate(p->context, *ids, ((uint64_t)*count + 1) * sizeof *grown, "tokenizer");
    if (!grown) return LINNET_ERROR_MEMORY;
    *ids = grown;
    grown[(*count)++] = (int32_t)value;
    return LINNET_OK;
}

static linnet_status read_template(pipeline *p, const json_t *json) {
    const json_t *single = json_object_get(json, "single"), *tokens = json_object_get(json, "special_tokens");
    bool before = true;
    linnet_status status = LINNET_OK;
    for (size_t i = 0; i < json_array_size(single) && status == LINNET_OK; i++) {
        const json_t *part = json_array_get(single, i), *special = json_object_get(part, "SpecialToken");
        if (json_object_get(part, "Sequence")) before = false;
        const json_t *ids = json_object_get(json_object_get(tokens, ln_json_name(special, "id")), "ids");
        if (special && !json_array_size(ids)) return unsupported(p, "naming a token without ids");
        for (size_t k = 0; k < json_array_size(ids) && status == LINNET_OK; k++)
            status = add_around(p, before, json_array_get(ids, k));
    }
    return status;
}

/* "cls" and "sep": ["text", id] */
static linnet_status read_pair(pipeline *p, const json_t *json) {
    const linnet_status status = add_around(p, true, json_array_get(json_object_get(json, "cls"), 1));
    return status == LINNET_OK ? add_around(p, false, json_array_get(json_object_get(json, "sep"), 1)) : status;
}

linnet_status ln_json_post_processor(linnet_tokenizer *tokenizer, const json_t *json) {
    static const step_row rows[] = {{"TemplateProcessing", read_template},
                                    {"ByteLevel", NULL},
                                    {"RobertaProcessing", read_pair},
                                    {"BertProcessing", read_pair},
                                    {0}};
    pipeline p = {.tokenizer = tokenizer,
                  .context = tokenizer->context,
                  .name = "post_processor",
                  .list = "processors",
                  .rows = rows};
    return read_pipeline(&p, json, 0);
}
