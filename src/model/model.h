/* The inside of a linnet_model: hyperparameters, and the weights of each layer as matrices into the mapped file.
 *
 * All transformers of the table share one layer:
 *     x += norm_a'(O attend(rope(norm_q(Q h)), rope(norm_k(K h)), V h)),  h = norm_a(x)
 *     x += norm_f'(D (activation(G h) * U h)),                            h = norm_f(x)
 * where whatever the file has no tensor for is left out. Fused projections are split into matrices by rows: no copy. */
#ifndef LN_MODEL_MODEL_H
#define LN_MODEL_MODEL_H

#include "kernel/kernel.h"
#include "linnet/tokenizer.h"
#include "model/architecture.h"
#include "model/gate.h"

typedef struct ln_hyperparameters {
    int64_t layers, width, heads, key_value_heads, key_size, value_size, feed_forward, vocabulary, context_length;
    int64_t window;
    float norm_epsilon, score_scale, score_cap, logit_cap, embedding_scale;
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

typedef enum ln_rotation { LN_ROTATE_NOT, LN_ROTATE_GLOBAL, LN_ROTATE_LOCAL } ln_rotation;

typedef struct ln_layer {
    const float *attention_norm, *attention_post_norm, *feed_forward_norm, *feed_forward_post_norm;
    const float *query_norm, *key_norm;
    ln_matrix query, key, value, output, gate, up, down;
    const float *query_bias, *key_bias, *value_bias, *output_bias;
    int64_t window;
    ln_rotation rotation;
} ln_layer;

struct linnet_model {
    linnet_context *context;
    linnet_file *file;
    const ln_architecture *architecture;
    ln_hyperparameters hyper;
    ln_rope rope;
    ln_kernels kernels;
    ln_matrix embedding, head;
    const float *output_norm;
    ln_layer *layers;
    ln_gate *gate;    /* NULL: it has none */
    int64_t *windows; /* [layers] */
    bool *taken;      /* [tensors] while opening: which have found their place */
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
