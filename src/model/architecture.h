/* The table of architectures: what distinguishes one transformer from another, as data. Adding a model is adding a row
 * here and, where its tensors have other names, rows to the name table of huggingface.c. */
#ifndef LN_MODEL_ARCHITECTURE_H
#define LN_MODEL_ARCHITECTURE_H

#include "model/file.h"

typedef enum ln_nonlinearity { LN_SILU, LN_GELU_TANH } ln_nonlinearity;

enum { /* traits */
       LN_ROPE_INTERLEAVED =
           1 << 0, /* in GGUF files rotary pairs are neighbours: converters reorder the rows of q and k */
       LN_NORM_PLUS_ONE = 1 << 1,    /* Hugging Face stores w and multiplies by 1 + w; GGUF stores 1 + w */
       LN_EMBEDDING_SCALED = 1 << 2, /* embeddings are multiplied by sqrt(width) */
       LN_POST_NORMS = 1 << 3 /* attention and feed-forward outputs have norms too: other names in Hugging Face files */
};

typedef struct ln_architecture {
    const char *name;           /* general.architecture */
    const char *model_types[4]; /* model_type of config.json, NULL-ended */
    unsigned traits;
    ln_nonlinearity activation;
    int window_period;     /* with a window set: layer i slides unless (i + 1) % period == 0; 0: every layer slides */
    int no_rope_period;    /* layer i has no rotation where (i + 1) % period == 0; 0: all rotate */
    float rope_base_local; /* of sliding layers, which then rotate without scaling; 0: as the others */
    int scale_by_width_layers; /* the size with this many layers scales scores by 1 / sqrt(width / heads) */
} ln_architecture;

const ln_architecture *ln_architecture_find(const char *name, size_t bytes);
const ln_architecture *ln_architecture_of_model_type(const char *model_type, size_t bytes);
/* "llama, qwen2, ..." written to text[capacity] */
void ln_architecture_names(char *text, size_t capacity);

#endif
