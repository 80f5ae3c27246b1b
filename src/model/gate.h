/* What a model itself says of how much its tokens will be needed: of each layer, one number for a token and key-value
 * head, from the input h of the layer's attention (P218):
 *     gate = D silu(U h + u) + d.
 * Larger is more needed; above 0 the token should stay. The weights are tensors attn_keep_up and attn_keep_down of the
 * model's file, or of a file beside it: MODEL.gate.gguf beside MODEL.gguf, so that the model's own file stays one that
 * other readers know. */
#ifndef LN_MODEL_GATE_H
#define LN_MODEL_GATE_H

#include "kernel/kernel.h"
#include "linnet/model.h"

enum { LN_GATE_HIDDEN_MOST = 1024 };

typedef struct ln_gate_layer {
    ln_matrix up;                            /* [hidden, width] */
    const float *up_bias, *down, *down_bias; /* [hidden], [heads, hidden], [heads] */
} ln_gate_layer;

typedef struct ln_gate {
    linnet_context *context;
    linnet_file *beside; /* NULL: the tensors are the model's own */
    int64_t layers, width, heads, hidden;
    ln_gate_layer *layer;
    /* [layers][heads], NULL: unknown. How the tokens that the gates choose together divide over the heads, mean 1: a
     * head that gets its share and keeps its own best does as well. By how much the loss rises where that head alone
     * sees only sinks and recent tokens. */
    float *share, *importance;
} ln_gate;

/* Whether a tensor of a model is its gate's: its name without "blk.N.". */
bool ln_gate_owns(const char *name);

/* *gate stays NULL where the model has none. `file` is the model's; both outlive the gate. */
linnet_status ln_gate_open(linnet_context *context, linnet_file *file, int64_t layers, int64_t width, int64_t heads,
                           ln_gate **gate);
void ln_gate_close(ln_gate *gate);

/* Bytes of workspace, 64-byte aligned, for at most `tokens` tokens. */
uint64_t ln_gate_workspace(const ln_gate *gate, const ln_kernels *kernels, int threads, int64_t tokens);
/* h [tokens, width], aligned to 64 bytes -> score [tokens, heads]. A token's bits do not depend on the others' or on
 * the threads, save that few tokens may be multiplied in another order than many. */
void ln_gate_run(const ln_gate *gate, const ln_kernels *kernels, ln_team *team, int64_t layer, const float *h,
                 int64_t tokens, float *score, void *workspace);

#endif
