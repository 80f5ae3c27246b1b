/* The inside of a linnet_model: hyperparameters, and the layers, whose parts (part.h) hold weights as matrices into the
 * mapped file. Fused projections are split into matrices by rows: no copy. */
#ifndef LN_MODEL_MODEL_H
#define LN_MODEL_MODEL_H

#include "kernel/kernel.h"
#include "linnet/tokenizer.h"
#include "model/architecture.h"
#include "model/gate.h"
#include "model/part.h"

typedef struct ln_hyperparameters {
    int64_t layers, width, heads, key_value_heads, key_size, value_size, feed_forward, vocabulary, context_length;
    int64_t window;
    float norm_epsilon, score_scale, score_cap, logit_cap, embedding_scale;
    /* From here on not part of the model's fingerprint. heads to value_size are 0 where no layer attends. */
    int64_t attention_layers;
    float logit_scale;
    bool value_in_key; /* values are the first columns of the keys (memory/pages.h) */
} ln_hyperparameters;

typedef enum ln_rope_scaling { LN_ROPE_PLAIN, LN_ROPE_LINEAR, LN_ROPE_YARN, LN_ROPE_LONG } ln_rope_scaling;

typedef struct ln_rope {
    int64_t size; /* values of a head that rotate; the rest pass */
    bool half;
    double base, base_local, factor, magnitude, beta_fast, beta_slow;
    bool truncate;
    ln_rope_scaling scaling;
    int64_t original_context;
    const float *divisors;                     /* [size / 2] of llama 3; NULL: none */
    const float *long_factors, *short_factors; /* [size / 2] */
} ln_rope;

struct linnet_model {
    linnet_context *context;
    linnet_file *file;
    const ln_architecture *architecture;
    ln_hyperparameters hyper;
    ln_rope rope;
    ln_kernels kernels;
    ln_matrix embedding, head;
    ln_norm embedding_norm, output_norm;
    ln_layer *layers;
    bool parallel;               /* some block has more than one part */
    void *own;                   /* the architecture's, from ln_file_own: what all layers share */
    ln_gate *gate;               /* NULL: it has none */
    int64_t *windows;            /* [layers] of what they attend to; 0: all, or nothing */
    int64_t *state_floats;       /* [layers] */
    ln_state_heads *state_heads; /* [layers] */
    bool *attends;               /* [layers]: have keys and values */
    bool *taken;                 /* [tensors] while opening: which have found their place */
    void *on_device;             /* its weights on a device (device.h); NULL: none */
    linnet_tokenizer *tokenizer;
    char tokenizer_error[1024];
    char *name;
    uint64_t parameters, weight_bytes, resident_bytes, fingerprint;
};

/* Cosines and sines [tokens, size / 2] of positions first .. first + tokens - 1. inverse [size / 2] from
 * ln_rope_frequencies. */
void ln_rope_angles(const ln_rope *rope, const double *inverse, double magnitude, int64_t first, int64_t tokens,
                    float *cosine, float *sine);
/* Angular frequencies [size / 2] of a session with room for `context` tokens, and the factor on cosine and sine. */
double ln_rope_frequencies(const ln_rope *rope, bool local, int64_t context, double *inverse);

#endif
