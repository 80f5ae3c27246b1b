/* The parts of reading a Hugging Face folder: JSON, safetensors, config.json in GGUF's keys, names in GGUF's names. */
#ifndef LN_MODEL_HUGGINGFACE_H
#define LN_MODEL_HUGGINGFACE_H

#include <jansson.h>

#include "model/architecture.h"
#include "model/gguf_write.h"

/* ---- JSON (jansson), its memory counted by estimate while it lives ---- */

typedef struct ln_json {
    json_t *root; /* an object */
    uint64_t accounted;
} ln_json;

/* path names the text in errors. Integers become reals (a config may hold larger ones than 64 bits) unless `exact`. */
linnet_status ln_json_open(linnet_context *context, const char *path, const void *text, uint64_t bytes, bool exact,
                           ln_json *json);
void ln_json_close(linnet_context *context, ln_json *json);

/* ---- safetensors ---- */

/* A tensor of a safetensors file, checked. info->type is LINNET_TYPE_AUTO where Linnet has no such type or shape; its
 * name lives until the call returns. */
typedef linnet_status (*ln_take_stored)(void *user, const linnet_tensor_info *info, const char *dtype);
/* Maps the file for as long as `file` lives. */
linnet_status ln_safetensors_read(linnet_file *file, const char *path, ln_take_stored take, void *user);

/* ---- config.json ---- */

typedef struct ln_config {
    linnet_file *file;
    const char *path;       /* of config.json, for errors */
    const json_t *root;     /* config.json */
    const json_t *text;     /* its text_config, or root */
    const json_t *generate; /* generation_config.json, or NULL */
    const char *model_type;
    const ln_architecture *architecture; /* NULL where it is not known */
} ln_config;

/* Takes a float32 tensor that no file holds, [count]; `values` live as long as the file. */
typedef linnet_status (*ln_take_made)(void *user, const char *name, const float *values, int64_t count);

linnet_status ln_config_open(linnet_file *file, const char *path, const json_t *root, const json_t *generate,
                             ln_config *config);
linnet_status ln_config_keys(const ln_config *config, ln_key_writer *keys, ln_take_made take, void *user);
/* Rotary scaling: part of ln_config_keys. */
linnet_status ln_config_rope(const ln_config *config, ln_key_writer *keys, ln_take_made take, void *user);
bool ln_config_tied(const ln_config *config);

/* An array with a number for each layer: [layers]. */
void ln_config_layers(const ln_config *config, ln_key_writer *keys, const char *suffix, const int32_t *values,
                      int64_t layers);
/* layer_types[i], or NULL. */
const char *ln_config_layer_type(const ln_config *config, int64_t layer);
/* A number of the text model; false where it is null, or missing without a default. */
bool ln_config_number(const ln_config *config, const char *name, double *value);
int64_t ln_config_head_size(const ln_config *config);
/* "ARCHITECTURE.suffix" in name[256] */
const char *ln_config_name(const ln_config *config, const char *suffix, char *name);
/* Writes that key, if the count is positive. */
void ln_config_whole(const ln_config *config, ln_key_writer *keys, const char *suffix, int64_t count);
/* The same of the whole part of what was computed from numbers of the file, which may be anything. */
void ln_config_size(const ln_config *config, ln_key_writer *keys, const char *suffix, double size);
void ln_config_float(const ln_config *config, ln_key_writer *keys, const char *suffix, double value);

/* ---- names ---- */

typedef enum ln_name_fate { LN_NAME_KNOWN, LN_NAME_IGNORED, LN_NAME_UNKNOWN } ln_name_fate;
/* The GGUF name of a weight, to text[capacity], and the row that says it. Ignored: weights that are not part of a text
 * model, or are computed. */
ln_name_fate ln_gguf_name(const ln_architecture *architecture, const char *name, char *text, size_t capacity,
                          const ln_name_row **row);

#endif
