/* Owns: the file of a calibration.
 *
 *     {"linnet": "calibration", "version": 1, "model": fingerprint in hexadecimal, "tokens": n,
 *      "heads": [[a figure a key-value head] a layer],
 *      "rows": [{"policy": text, "share": x, "divergence": x, "recalled": x, "agreement": x, "prompt": x, "decode":
 * x}]} */
#include "generate/calibration.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/map.h"
#include "generate/session.h"
#include "memory/heads.h"
#include "model/huggingface.h"

enum { VERSION = 1, ROW_TEXT = 512 };
static const double FULL_HEADS = 0.25; /* share of the heads that keep everything */

char *ln_calibration_path(const linnet_model *model) {
    static const char ending[] = ".gguf", name[] = ".calibration.json";
    const char *path = model->file->path;
    size_t bytes = strlen(path);
    while (bytes > 1 && path[bytes - 1] == '/') bytes--;
    const size_t tail = sizeof ending - 1;
    if (bytes > tail && !strncmp(path + bytes - tail, ending, tail)) bytes -= tail;
    char *made = ln_allocate_zero(model->context, 1, bytes + sizeof name, "path of the calibration");
    if (!made) return NULL;
    memcpy(made, path, bytes);
    memcpy(made + bytes, name, sizeof name);
    return made;
}

/* ---- reading ---- */

static linnet_status refuse(const linnet_model *model, const char *path, const char *what) {
    return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s %s; remove it, or make it anew with 'linnet calibrate'",
                   path, what);
}

static bool number_of(const json_t *object, const char *key, double least, double most, double *number) {
    const json_t *value = json_object_get(object, key);
    *number = json_number_value(value);
    return json_is_number(value) && *number >= least && *number <= most;
}

static bool read_row(const json_t *object, ln_calibration_row *row) {
    const char *policy = json_string_value(json_object_get(object, "policy"));
    if (!policy || strlen(policy) >= sizeof row->policy) return false;
    strcpy(row->policy, policy);
    return number_of(object, "share", 0, 16, &row->share) &&
           number_of(object, "divergence", 0, 1e9, &row->divergence) &&
           number_of(object, "recalled", 0, 1e9, &row->recalled) &&
           number_of(object, "agreement", 0, 1, &row->agreement) && number_of(object, "prompt", 0, 1e9, &row->prompt) &&
           number_of(object, "decode", 0, 1e9, &row->decode);
}

static bool read_figures(const json_t *layers, ln_calibration *c) {
    if (json_array_size(layers) != (size_t)c->layers) return false;
    for (int64_t l = 0; l < c->layers; l++) {
        const json_t *heads = json_array_get(layers, (size_t)l);
        if (json_array_size(heads) != (size_t)c->heads) return false;
        for (int64_t h = 0; h < c->heads; h++) {
            const json_t *figure = json_array_get(heads, (size_t)h);
            if (!json_is_number(figure)) return false;
            c->figures[l * c->heads + h] = json_number_value(figure);
        }
    }
    return true;
}

ln_calibration *ln_calibration_make(const linnet_model *model, int64_t rows) {
    const int64_t layers = model->hyper.layers, heads = model->hyper.key_value_heads;
    const uint64_t bytes = sizeof(ln_calibration) + (uint64_t)rows * sizeof(ln_calibration_row) +
                           (uint64_t)(layers * heads) * sizeof(double);
    ln_calibration *c = ln_allocate_zero(model->context, 1, bytes, "calibration");
    if (!c) return NULL;
    *c = (ln_calibration){.layers = layers, .heads = heads, .count = rows};
    c->rows = (ln_calibration_row *)(void *)(c + 1);
    c->figures = (double *)(void *)(c->rows + rows);
    return c;
}

static linnet_status read_all(const linnet_model *model, const char *path, const json_t *root,
                              ln_calibration **calibration) {
    char fingerprint[32];
    const char *model_text = json_string_value(json_object_get(root, "model"));
    const json_t *rows = json_object_get(root, "rows");
    double version, tokens;
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)model->fingerprint);
    if (!number_of(root, "version", VERSION, VERSION, &version) || !number_of(root, "tokens", 1, 1e12, &tokens) ||
        !model_text || !json_is_array(rows) || json_array_size(rows) > LN_CALIBRATION_ROWS)
        return refuse(model, path, "is no calibration of this version");
    if (strcmp(model_text, fingerprint) != 0)
        return refuse(model, path, "was made with another model or other weights");
    ln_calibration *c = ln_calibration_make(model, (int64_t)json_array_size(rows));
    if (!c) return LINNET_ERROR_MEMORY;
    c->tokens = (int64_t)tokens;
    bool good = read_figures(json_object_get(root, "heads"), c);
    for (int64_t i = 0; good && i < c->count; i++) good = read_row(json_array_get(rows, (size_t)i), &c->rows[i]);
    if (!good) {
        ln_release(model->context, c);
        return refuse(model, path, "has a row that cannot be read");
    }
    *calibration = c;
    return LINNET_OK;
}

linnet_status ln_calibration_open(const linnet_model *model, ln_calibration **calibration) {
    linnet_context *context = model->context;
    *calibration = NULL;
    char *path = ln_calibration_path(model);
    if (!path) return LINNET_ERROR_MEMORY;
    linnet_status status = LINNET_OK;
    if (access(path, F_OK) == 0) {
        ln_map map;
        ln_json json = {0};
        status = ln_map_open(context, path, &map);
        if (status == LINNET_OK) {
            status = ln_json_open(context, path, map.data, map.bytes, false, &json);
            ln_map_close(&map);
        }
        if (status == LINNET_OK) status = read_all(model, path, json.root, calibration);
        ln_json_close(context, &json);
    }
    ln_release(context, path);
    return status;
}

void ln_calibration_close(const linnet_model *model, ln_calibration *calibration) {
    ln_release(model->context, calibration);
}

/* ---- writing ---- */

static void put(ln_output *output, const char *format, ...) LINNET_PRINTF(2, 3);
static void put(ln_output *output, const char *format, ...) {
    char text[ROW_TEXT];
    va_list arguments;
    va_start(arguments, format);
    const int bytes = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (bytes > 0) ln_output_write(output, text, bytes < ROW_TEXT ? (size_t)bytes : ROW_TEXT - 1);
}

linnet_status ln_calibration_write(const linnet_model *model, const ln_calibration *c, const char *path) {
    ln_output output;
    const linnet_status status = ln_output_open(model->context, path, &output);
    if (status != LINNET_OK) return status;
    put(&output,
        "{\"linnet\": \"calibration\", \"version\": %d, \"model\": \"%016llx\", \"tokens\": %lld,\n \"heads\": [",
        VERSION, (unsigned long long)model->fingerprint, (long long)c->tokens);
    for (int64_t l = 0; l < c->layers; l++) {
        put(&output, "%s[", l ? ",\n           " : "");
        for (int64_t h = 0; h < c->heads; h++) put(&output, "%s%.4f", h ? ", " : "", c->figures[l * c->heads + h]);
        put(&output, "]");
    }
    put(&output, "],\n \"rows\": [");
    for (int64_t i = 0; i < c->count; i++) {
        const ln_calibration_row *r = &c->rows[i];
        put(&output,
            "%s\n  {\"policy\": \"%s\", \"share\": %.6g, \"divergence\": %.6g, \"recalled\": %.6g, \"agreement\": "
            "%.6g, "
            "\"prompt\": %.4g, \"decode\": %.4g}",
            i ? "," : "", r->policy, r->share, r->divergence, r->recalled, r->agreement, r->prompt, r->decode);
    }
    put(&output, "\n ]}\n");
    return ln_output_close(&output, true);
}

/* ---- figures ---- */

static double between(double a, double b, double t) {
    return a + (b - a) * t;
}

bool ln_calibration_at(const ln_calibration *c, const char *policy, double share, ln_calibration_row *row) {
    const ln_calibration_row *below = NULL, *above = NULL;
    for (int64_t i = 0; i < c->count; i++) {
        const ln_calibration_row *r = &c->rows[i];
        if (strcmp(r->policy, policy) != 0) continue;
        if (r->share <= share && (!below || r->share > below->share)) below = r;
        if (r->share >= share && (!above || r->share < above->share)) above = r;
    }
    if (!below) return false;
    *row = *below;
    if (!above || above == below) return true;
    const double t = log(share / below->share) / log(above->share / below->share);
    row->share = share;
    row->divergence = between(below->divergence, above->divergence, t);
    row->recalled = between(below->recalled, above->recalled, t);
    row->agreement = between(below->agreement, above->agreement, t);
    row->prompt = between(below->prompt, above->prompt, t);
    row->decode = between(below->decode, above->decode, t);
    return true;
}

/* ---- the table of heads ---- */

linnet_status ln_session_heads(const linnet_model *model, const ln_policy *policy, uint8_t **kinds) {
    *kinds = NULL;
    if (!policy || !policy->allocator || !policy->allocator->kinds) return LINNET_OK;
    ln_calibration *c;
    const linnet_status status = ln_calibration_open(model, &c);
    if (status != LINNET_OK) return status;
    if (!c)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "policy %s needs to know what the model's heads look at; run 'linnet calibrate' once",
                       policy->row->name);
    int64_t lanes = 0;
    uint8_t *table = ln_allocate_zero(model->context, (uint64_t)c->layers, (uint64_t)c->heads, "table of heads");
    for (int64_t l = 0; l < c->layers; l++) {
        if (model->windows[l] || !model->attends[l]) continue;
        memmove(c->figures + lanes, c->figures + l * c->heads, (size_t)c->heads * sizeof *c->figures);
        lanes += c->heads;
    }
    if (table) ln_head_table(c->figures, lanes, 1, ln_policy_parameter_of(policy, "full", FULL_HEADS), table);
    ln_calibration_close(model, c);
    *kinds = table;
    return table ? LINNET_OK : LINNET_ERROR_MEMORY;
}
