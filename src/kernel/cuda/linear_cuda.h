/* Linear attention with diagonal decay on an NVIDIA GPU: family (I),
 *
 *     S[t] = decay[t] S[t-1] + write[t] key[t] value[t]^T,    output[t] = scale S[t]^T query[t] + skip value[t],
 *
 * decay being e^g of a head, of a token and head, of each key channel or of each value channel (GLA, 2312.06635;
 * Mamba-2, 2405.21060; lightning attention, 2401.04658; retention, 2307.08621). With a normaliser, dot[t] being scale
 * n[t] . q,
 *
 *     n[t] = decay[t] n[t-1] + write[t] key[t],   output[t] = scale S[t]^T q / weight[t],
 *     weight = max(|dot|, e^-maximum) + 1e-6   mLSTM (2405.04517); ln_cuda_mlstm_gates makes decay, write and maximum
 *              max(|dot|, 1)                   mLSTM with sigmoid gates (2503.14376), made by ln_cuda_gate_sigmoid
 *              dot + 1e-10                     linear attention of features that are not negative (2006.16236)
 *
 * The work is done by chunks of 64 tokens. A sequence is cut into segments where there are fewer heads than the device
 * has room for: a first pass leaves what each segment adds to the state, a scan joins them, a last pass, which starts
 * from the right states, writes the outputs. Reversed time is the same walk from a sequence's last token to its first,
 * in which the decay between tokens i and i + 1 is that of token i + 1: what gradients need, see
 * linear_backward_cuda.h.
 *
 * States are float32, [sequence][head][key][value], with a normaliser followed by [key] of n, of mLSTM by one maximum
 * besides: the rows of linnet/mixer.h have the same layout. */
#ifndef LN_KERNEL_CUDA_LINEAR_H
#define LN_KERNEL_CUDA_LINEAR_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ln_cuda_linear_decay {
    LN_CUDA_LINEAR_TOKEN, /* decay [token, head]; strides of 0 make it one of a head, or of all; no data: none */
    LN_CUDA_LINEAR_KEY,   /* [token, head, key_size] */
    LN_CUDA_LINEAR_VALUE  /* [token, head, value_size] */
} ln_cuda_linear_decay;

typedef enum ln_cuda_linear_sum {
    LN_CUDA_SUM_NONE,    /* no normaliser */
    LN_CUDA_SUM_MAXIMUM, /* mLSTM's */
    LN_CUDA_SUM_ONE,     /* at least 1 */
    LN_CUDA_SUM_PLAIN    /* itself */
} ln_cuda_linear_sum;

typedef struct ln_cuda_linear {
    int64_t heads, key_heads; /* value head h reads key head h / (heads / key_heads) */
    int64_t key_size, value_size;
    int64_t sequences;
    const int64_t *offsets; /* on the host, [sequences + 1], ascending from 0 */
    float scale;
    ln_cuda_linear_decay decay;
    bool tiled_heads;             /* value head h reads key head h % key_heads */
    ln_cuda_linear_sum normalise; /* what outputs are divided by; decay by tokens alone */
    bool reverse;                 /* time runs from the last token to the first; not with normalise */
    bool output_float32;          /* output is float32, else bf16 */
    /* The walks of a gradient (linear_backward_cuda.h); zeros otherwise. Which of the inputs have as many heads as
     * values though they stand for queries or keys, or the reverse. Whether states outside are [value][key]. Whether
     * the states between all segments, and behind the last, stay in the workspace. What the states outside are divided
     * by. */
    bool query_whole, key_whole, value_shared, state_turned, state_kept;
    float state_divisor; /* 0: 1 */
    bool weighted;       /* of a gradient: tensors have a write */
    int64_t state_gap;   /* floats behind the state of each head that are not its */
    int64_t state_row;   /* values of a row of states outside, where there are others beside its own; 0: none */
} ln_cuda_linear;

/* Tokens first .. first + tokens - 1 (rows of the tensors) of one head, value columns column .. */
typedef struct ln_cuda_linear_task {
    int32_t first, tokens, end; /* end: of the sequence */
    int32_t head, column, sequence;
    int32_t from, to; /* the states between segments that it starts from and leaves; or one of: */
} ln_cuda_linear_task;
enum { LN_CUDA_STATE_GIVEN = -1 /* state_in, state_out */, LN_CUDA_STATE_NONE = -2 /* zeros, nothing */ };

typedef struct ln_cuda_linear_kernel {
    const char *name;
    int key_size, columns; /* columns: of values, for one task */
    ln_cuda_linear_decay decay;
    bool normalise;
    int reverse; /* 0: forward alone, 1: either way */
    int threads, shared_bytes, major;
    int blocks; /* of a multiprocessor */
    /* Starts a pass; of major 9 the arguments are the descriptions of query, key, value and decay, then the run. The
     * first pass leaves states, the last one outputs. NULL: the end of the table. */
    ln_cuda_code (*start)(void *const *arguments, bool last, int tasks, void *stream);
} ln_cuda_linear_kernel;

typedef struct ln_cuda_linear_plan {
    ln_cuda_device device;
    const ln_cuda_linear_kernel *kernel;
    int64_t segment;            /* tokens, a multiple of 64 */
    int64_t first_tasks, tasks; /* of the first and of the last pass */
    int64_t slots, chains;      /* states between segments, heads that have some */
    int64_t workspace;          /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_linear_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_linear_kernel *ln_cuda_linear_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. segment 0: chosen. */
ln_cuda_code ln_cuda_linear_plan_make(const ln_cuda_linear *linear, const ln_cuda_device *device,
                                      const ln_cuda_linear_kernel *kernel, int64_t segment, ln_cuda_linear_plan *plan);
/* The tasks of the plan on the host: those of the first pass, then those of the last. */
void ln_cuda_linear_tasks(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan, ln_cuda_linear_task *tasks);
/* Fills a workspace from `tasks`; waits for the stream. Two runs may not use one workspace at the same time. */
ln_cuda_code ln_cuda_linear_prepare(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                    const ln_cuda_linear_task *tasks, void *workspace, void *stream);

/* float32 [token, head], or a constant of a head with a token_stride of 0; data NULL: left out. */
typedef struct ln_cuda_gate {
    const float *data;
    int64_t token_stride, head_stride;
} ln_cuda_gate;

typedef struct ln_cuda_linear_tensors {
    ln_cuda_tensor query, key, value; /* bf16 */
    ln_cuda_tensor output;
    ln_cuda_tensor decay;        /* float32, of key or value channels: natural logarithms <= 0, -inf allowed */
    ln_cuda_gate token_decay;    /* of tokens */
    ln_cuda_gate write, maximum; /* maximum: of mLSTM alone */
    const float *skip;           /* [heads]; NULL: none. Of tokens' decays */
    const float *state_in;       /* NULL: zeros */
    float *state_out;            /* NULL: not wanted; may be state_in */
    const int64_t *state_slots;  /* on the device, [sequences], no two alike: where both lie; NULL: 0, 1, ... */
} ln_cuda_linear_tensors;

/* Starts the work on the stream of the current device; may be captured in a graph. With state_kept no output data: the
 * states alone. */
ln_cuda_code ln_cuda_linear_forward(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                    const ln_cuda_linear_tensors *tensors, void *workspace, void *stream);

/* The states that state_kept leaves: slot n of a head is the one at the beginning of its n-th segment in time,
 * [value][key] of `floats` numbers; that of sequence s and head h begins at slot chain[s * heads + h][0]. */
typedef struct ln_cuda_linear_slots {
    const float *data;
    int64_t floats;
    const int32_t (*chains)[2]; /* first slot and count, on the device */
} ln_cuda_linear_slots;
ln_cuda_linear_slots ln_cuda_linear_kept(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                         const void *workspace);

/* Floats of the state of one head. */
int64_t ln_cuda_linear_state_floats(const ln_cuda_linear *linear);

/* mLSTM's gates: m[t] = max(decay[t] + m[t-1], input[t]); the decay and the write that keep the state divided by e^m.
 * decay, write, maximum: [tokens][heads] on the device. The maxima of states are read and written in place of
 * state_in and state_out (NULL: 0, not wanted; slots as in tensors). `offsets` as in the problem, but on the device. */
ln_cuda_code ln_cuda_mlstm_gates(const ln_cuda_linear *linear, const int64_t *offsets, ln_cuda_gate input,
                                 ln_cuda_gate decay, float *decay_out, float *write_out, float *maximum_out,
                                 const float *state_in, float *state_out, const int64_t *state_slots, void *stream);

#ifdef __cplusplus
}
#endif
#endif
