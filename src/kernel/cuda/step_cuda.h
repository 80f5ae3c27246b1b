/* One token of each of many sequences on an NVIDIA GPU, for every rule whose state is a matrix S [key_size, value_size]
 * of a head. Each state is read once and written once; it lies anywhere in a pool, in the layout of the mixers' row of
 * the rule's name. All rules are
 *
 *     y = x + read^T S,   S' = diag(decay) S + key y^T ( + write_key value^T ),   output = scale S'^T query ( + skip ).
 *
 *     simple_gla         decay: a head's         x = value                    (no decay: linear attention; the same for
 *     gla                decay: a key channel's  x = value                     every token: stride 0)
 *     gla_value          decay: a value column's x = value
 *     ssd                decay = e^(step rate)   x = step value, skip of its own
 *     mlstm              decay and gate of exponentials kept divided by their maximum; output divided by |n . query|
 *     mlstm_sigmoid      decay: a head's         x = value / (1 + e^-gate)
 *     delta_rule         no decay                x = beta value, read = -beta key
 *     gated_delta_rule   decay: a head's         x = beta value, read = -beta decay key
 *     kda                decay: a key channel's  likewise
 *     dplr               decay: a key channel's  x = 0, read = a, key = b, and the second product   (RWKV-7: scale 1)
 *
 * `strength` is beta, the step size, the input gate. With `normalise` linear attention is divided by the sum of its
 * weights, n . query + 1e-10, mlstm_sigmoid by max(|n . query|, 1). */
#ifndef LN_KERNEL_CUDA_STEP_H
#define LN_KERNEL_CUDA_STEP_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ln_cuda_step_rule {
    LN_CUDA_STEP_SIMPLE_GLA,
    LN_CUDA_STEP_GLA,
    LN_CUDA_STEP_GLA_VALUE,
    LN_CUDA_STEP_SSD,
    LN_CUDA_STEP_MLSTM,
    LN_CUDA_STEP_MLSTM_SIGMOID,
    LN_CUDA_STEP_DELTA_RULE,
    LN_CUDA_STEP_GATED_DELTA_RULE,
    LN_CUDA_STEP_KDA,
    LN_CUDA_STEP_DPLR,
    LN_CUDA_STEP_RULES
} ln_cuda_step_rule;

enum { LN_CUDA_STEP_OUTER, LN_CUDA_STEP_DELTA, LN_CUDA_STEP_LOW_RANK }; /* no read; with key; with a and b */
/* Of what. */
enum { LN_CUDA_STEP_NO_DECAY, LN_CUDA_STEP_HEAD_DECAY, LN_CUDA_STEP_KEY_DECAY, LN_CUDA_STEP_VALUE_DECAY };
enum { LN_CUDA_STEP_PLAIN, LN_CUDA_STEP_BETA, LN_CUDA_STEP_SIZE, LN_CUDA_STEP_GATE, LN_CUDA_STEP_SIGMOID };

/* A rule: where its decay and what it writes come from. */
typedef struct ln_cuda_step_parts {
    const char *name; /* of the mixers' row */
    int kind, decay, strength;
} ln_cuda_step_parts;
extern const ln_cuda_step_parts ln_cuda_step_rules[LN_CUDA_STEP_RULES];

typedef struct ln_cuda_step {
    ln_cuda_step_rule rule;
    int64_t sequences, heads, key_heads; /* head h reads query and key head h / (heads / key_heads), or */
    bool tiled_heads;                    /* h % key_heads */
    int64_t key_size, value_size;        /* key_size at most 256 */
    float scale;
    bool normalise;      /* simple_gla and mlstm_sigmoid: divided by the sum of weights; mlstm always is */
    bool normalise_keys; /* delta rules: queries and keys are divided by (sum of squares + 1e-6)^1/2 */
    bool output_float32; /* output is float32, else bf16 */
    /* Floats from a slot's state to the next, and from a head's to the next. 0: they follow one another. Multiples of
     * 4 are faster; those of mlstm, whose heads hold a row and a number more, are not unless given here. With
     * `normalise` they hold a row more. */
    int64_t slot_stride, head_stride;
} ln_cuda_step;

typedef struct ln_cuda_step_kernel {
    const char *name;
    int kind, key_size, columns, threads; /* key_size: at most; columns: of a block */
    bool aligned;                         /* four floats of a state at once */
    ln_cuda_code (*start)(const void *run, int64_t blocks, void *stream);
} ln_cuda_step_kernel;

typedef struct ln_cuda_step_plan {
    ln_cuda_device device;
    const ln_cuda_step_kernel *kernel;
    int64_t slot_stride, head_stride;
    char why[LN_CUDA_WHY];
} ln_cuda_step_plan;

typedef struct ln_cuda_step_tensors {
    ln_cuda_tensor query, key, value, a, b; /* bf16; a and b of dplr */
    ln_cuda_tensor decay, strength;         /* float32, at any strides; no data: no decay */
    const float *rate, *skip;               /* [heads], of ssd; skip may be NULL */
    ln_cuda_tensor output;
    const float *state_in; /* NULL: zeros */
    float *state_out;      /* NULL: not wanted; may be state_in */
    /* On the device, [sequences], no two alike: where the states lie; NULL: 0, 1, ... A sequence in a negative slot
     * does not take part: nothing of it is read or written. */
    const int64_t *state_slots;
} ln_cuda_step_tensors;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_step_kernel *ln_cuda_step_kernels(int row);
/* Chooses a kernel; `kernel` not NULL: takes that one or fails. There is no workspace. */
ln_cuda_code ln_cuda_step_plan_make(const ln_cuda_step *step, const ln_cuda_device *device,
                                    const ln_cuda_step_kernel *kernel, ln_cuda_step_plan *plan);
ln_cuda_code ln_cuda_step_forward(const ln_cuda_step *step, const ln_cuda_step_plan *plan,
                                  const ln_cuda_step_tensors *tensors, void *stream);

#ifdef __cplusplus
}
#endif
#endif
