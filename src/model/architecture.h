/* The table of architectures: what distinguishes one model from another, as data. A transformer is a row of
 * architecture.c. A model of other layers is a file architecture_NAME.c with its row, its names and its function that
 * makes a layer, and a line in the table. */
#ifndef LN_MODEL_ARCHITECTURE_H
#define LN_MODEL_ARCHITECTURE_H

#include "model/file.h"

typedef enum ln_nonlinearity { LN_SILU, LN_GELU_TANH, LN_RELU_SQUARED } ln_nonlinearity;

enum { /* traits */
       LN_ROPE_INTERLEAVED =
           1 << 0, /* in GGUF files rotary pairs are neighbours: converters reorder the rows of q and k */
       LN_NORM_PLUS_ONE = 1 << 1,    /* Hugging Face stores w and multiplies by 1 + w; GGUF stores 1 + w */
       LN_EMBEDDING_SCALED = 1 << 2, /* embeddings are multiplied by sqrt(width) */
       LN_POST_NORMS =
           1 << 3, /* attention and feed-forward outputs have norms too: other names in Hugging Face files */
       LN_NO_ATTENTION = 1 << 4,         /* no layer attends: there are no heads */
       LN_EXPERTS_RENORMALISED = 1 << 5, /* weights of the experts chosen add up to 1, where no key says otherwise */
       LN_ATTENTION_GATED = 1 << 6,      /* the product of queries also gives each head's gate (ln_attention_weights) */
       LN_GATES_APART = 1 << 8, /* GGUF has two tensors where Hugging Face has gate and up projections in one */
       LN_MULTIPLIED = 1 << 9,  /* GGUF has weights multiplied by what config.json says beside them */
       LN_MAMBA2 = 1 << 10      /* GGUF has the vectors of Mamba-2 mixers with one axis more */
};

/* A tensor of a Hugging Face folder: the name in a layer or beside the layers, without .weight or .bias or (A_log) as a
 * whole, and the name in GGUF; with a / before it, that of a tensor beside the layers. */
typedef struct ln_name_row {
    const char *huggingface, *gguf;
    unsigned trait; /* only for architectures with this trait; 0: for all that no row above serves */
    /* Where GGUF holds other values: applied to a float32 copy. rows, columns: its last two dimensions. */
    void (*change)(float *values, int64_t rows, int64_t columns);
    bool transpose; /* GGUF holds the transpose of the last two dimensions */
    /* Of a vector that GGUF holds as row `part` of a matrix of `parts` rows, each a tensor of its own here; 0: not. */
    int part, parts;
    bool flat; /* GGUF holds one row */
} ln_name_row;

typedef enum ln_config_kind { LN_CONFIG_NUMBER, LN_CONFIG_WHOLE, LN_CONFIG_FLAG } ln_config_kind;

typedef struct ln_config_row {
    const char *name, *suffix; /* in config.json; in GGUF, after the architecture's name */
    ln_config_kind kind;
    double fallback; /* where the config leaves it out; NAN: nothing is written */
} ln_config_row;

struct ln_config;
struct ln_key_writer;
struct ln_layer;

typedef struct ln_architecture {
    const char *name;           /* general.architecture */
    const char *model_types[4]; /* model_type of config.json, NULL-ended */
    unsigned traits;
    ln_nonlinearity activation;
    int window_period;     /* with a window set: layer i slides unless (i + 1) % period == 0; 0: every layer slides */
    int no_rope_period;    /* layer i has no rotation where (i + 1) % period == 0; 0: all rotate */
    float rope_base_local; /* of sliding layers, which then rotate without scaling; 0: as the others */
    int scale_by_width_layers; /* the size with this many layers scales scores by 1 / sqrt(width / heads) */

    /* What other layers than a transformer's need; NULL: nothing. */
    const ln_name_row *names;    /* of tensors, before the common ones; ends with a row of NULLs */
    const ln_config_row *config; /* numbers of config.json; ends with a row of NULLs */
    /* What rows cannot say; keys written here stand for those that the common rows would write. */
    linnet_status (*write_keys)(const struct ln_config *config, struct ln_key_writer *keys);
    /* The row that a config of this model_type means, where names differ by it. */
    const struct ln_architecture *(*choose)(const struct ln_config *config);
    linnet_status (*open)(linnet_model *model); /* reads keys of its own before the layers are made */
    linnet_status (*make_layer)(linnet_model *model, int64_t index, struct ln_layer *layer);
} ln_architecture;

/* Of transformers with experts. */
extern const ln_config_row ln_experts_config[];
/* A write_keys of models whose router is a sigmoid. */
linnet_status ln_experts_sigmoid(const struct ln_config *config, struct ln_key_writer *keys);
extern const ln_architecture ln_architecture_lfm2;
extern const ln_architecture ln_architecture_rwkv6, ln_architecture_rwkv7;
extern const ln_architecture ln_architecture_mamba, ln_architecture_mamba2, ln_architecture_falcon_h1,
    ln_architecture_granite_hybrid, ln_architecture_granite, ln_architecture_granite_moe;
extern const ln_architecture ln_architecture_qwen3next, ln_architecture_minimax, ln_architecture_kimi_linear;
extern const ln_architecture ln_architecture_gla, ln_architecture_retnet, ln_architecture_xlstm;

const ln_architecture *ln_architecture_find(const char *name, size_t bytes);
const ln_architecture *ln_architecture_of_model_type(const char *model_type, size_t bytes);
/* "llama, qwen2, ..." written to text[capacity] */
void ln_architecture_names(char *text, size_t capacity);

#endif
