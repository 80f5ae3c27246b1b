/* Linnet: model files. A GGUF file or a Hugging Face folder is mapped, checked and described; weights stay in the file.
 */
#ifndef LINNET_MODEL_H
#define LINNET_MODEL_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- files: what inspect and convert see. Any well-formed file opens, known architecture or not. ---- */

typedef struct linnet_file linnet_file;

typedef struct linnet_tensor_info {
    const char *name; /* GGUF name, "blk.0.attn_q.weight" */
    linnet_type type;
    int dimensions;  /* 1 to 4 */
    int64_t size[4]; /* size[0] runs fastest: a weight of y = W x has size[0] inputs, size[1] outputs */
    uint64_t bytes;
    const void *data; /* in the mapped file, or made at opening where the file stores it otherwise */
} linnet_tensor_info;

/* path: a GGUF file, a .safetensors file, or a folder with config.json and *.safetensors. */
LINNET_API linnet_status linnet_file_open(linnet_context *context, const char *path, linnet_file **file);
LINNET_API void linnet_file_close(linnet_file *file);
LINNET_API int64_t linnet_file_tensors(const linnet_file *file);
LINNET_API bool linnet_file_tensor(const linnet_file *file, int64_t index, linnet_tensor_info *info);
LINNET_API int64_t linnet_file_keys(const linnet_file *file);
/* Key `index`, and its value as text for people (long arrays shortened) written to text[capacity]. NULL past the end.
 */
LINNET_API const char *linnet_file_key(const linnet_file *file, int64_t index, char *text, size_t capacity);
/* The text of the key `name` (not terminated), or NULL where the file has no text under that name. */
LINNET_API const char *linnet_file_text(const linnet_file *file, const char *name, size_t *bytes);
/* "GGUF v3", "safetensors folder" */
LINNET_API const char *linnet_file_kind(const linnet_file *file);

typedef struct linnet_text_key {
    const char *name, *value;
} linnet_text_key;

typedef struct linnet_convert_settings {
    size_t size;
    linnet_type type;            /* F32, F16, BF16, Q8_0, Q4_0 */
    const linnet_text_key *keys; /* written in the place of the source's texts of these names, or beside its keys */
    int64_t key_count;
    /* Merging key-value heads (after P062): the model is written with this many, which divide those it has, and every
     * cache of it takes as much less. 0: as many as it has. */
    int64_t key_value_heads;
    bool mean_heads; /* neighbours become their mean (GQA, Ainslie et al. 2023), without calibration */
    /* What the model is run on to learn how its heads are used: ids, else text, whose tokenizer the model must have. Of
     * a long text the first 4096 tokens count; more than key_size times the heads that become one should be there. */
    const int32_t *calibration_ids;
    int64_t calibration_count;
    const char *calibration_text; /* terminated */
} linnet_convert_settings;

/* Q8_0, no keys, all heads. */
LINNET_API linnet_convert_settings linnet_convert_settings_default(void);

/* Writes a GGUF v3 file with the weights of `source` in the settings' type. Vectors stay float32; a matrix whose rows
 * are no multiple of the block is written as F16; with Q4_0 the embedding and the output matrix are Q8_0. The output
 * appears whole or not at all: it is written beside its place and renamed, so a full disk leaves the old file.
 * settings NULL: the defaults. */
LINNET_API linnet_status linnet_convert(linnet_context *context, const char *source, const char *output,
                                        const linnet_convert_settings *settings);

/* ---- models: files whose architecture Linnet runs ---- */

typedef struct linnet_model linnet_model;

typedef struct linnet_model_info {
    size_t size;
    const char *architecture; /* "qwen3" */
    const char *name;         /* general.name, or "" */
    int64_t layers, width, heads, key_value_heads, key_size, value_size, vocabulary;
    int64_t context_length; /* tokens the model was trained for */
    int64_t window;         /* of its sliding layers; 0: none */
    int64_t window_layers;  /* layers that see only the window */
    uint64_t parameters;
    uint64_t weight_bytes;         /* mapped weights */
    uint64_t resident_bytes;       /* allocated when opening: tables, vocabulary, converted vectors */
    int64_t attention_layers;      /* layers with keys and values */
    uint64_t state_bytes;          /* of the recurrent states of one sequence */
    int64_t experts, experts_used; /* of a feed-forward part, and by one token; 0: it has none */
} linnet_model_info;

/* An architecture that is not known is named in the error, with those that are. */
LINNET_API linnet_status linnet_model_open(linnet_context *context, const char *path, linnet_model **model);
LINNET_API void linnet_model_close(linnet_model *model);
LINNET_API linnet_model_info linnet_model_describe(const linnet_model *model);
/* The file behind a model, owned by it: for its keys and tensors. */
LINNET_API const linnet_file *linnet_model_file(const linnet_model *model);
/* The names of the architectures that this library runs, index 0 and up; NULL past the end. */
LINNET_API const char *linnet_architecture(int index);

#ifdef __cplusplus
}
#endif
#endif
