/* A plan of the public attention operator (linnet/attention.h), for the files that make, run and extend it. */
#ifndef LN_MIXER_ATTENTION_PLAN_H
#define LN_MIXER_ATTENTION_PLAN_H

#include "base/checked.h"
#include "base/context.h"
#include "mixer/attention.h"
#include "mixer/pack.h"

struct linnet_attention_plan {
    linnet_context *context;
    linnet_attention_settings settings; /* settled, with copies of all arrays */
    ln_kernels kernels;
    ln_attention attention; /* but for sinks */
    ln_grid grid;
    ln_page_layout layout;      /* of packed keys and values */
    int64_t sequences, longest; /* longest: most queries of one */
    int64_t *query_offsets, *key_offsets;
    int64_t *first_page; /* [sequences + 1]: 32-token pages of keys before each sequence */
    /* Workspace of forward: sequences, slots, turned key factors, pages, operands of matrix units, and that of the
     * tile loop. */
    uint64_t slots_at, factors_at, pages_at, operands_at, run_at, forward_bytes, cached_bytes, backward_bytes;
};

static inline int64_t ln_plan_queries(const linnet_attention_plan *plan, int64_t sequence) {
    return plan->query_offsets[sequence + 1] - plan->query_offsets[sequence];
}
static inline int64_t ln_plan_keys(const linnet_attention_plan *plan, int64_t sequence) {
    return plan->key_offsets[sequence + 1] - plan->key_offsets[sequence];
}

/* Floats from one turned key factor to the next: no power of two, which would fall into few lines of the caches. */
static inline int64_t ln_plan_factor_stride(int64_t keys) {
    return (keys + 15) / 16 * 16 + 16;
}

linnet_status ln_plan_backward_bytes(const linnet_attention_plan *plan, uint64_t *bytes);
/* After a run. */
static inline linnet_status ln_plan_finish(const linnet_attention_plan *plan) {
    if (!ln_interrupted(plan->context)) return LINNET_OK;
    return ln_fail(plan->context, LINNET_INTERRUPTED, "attention was interrupted: its results are incomplete");
}
/* Refuses NULL tensors and factors that the plan needs. */
linnet_status ln_plan_check(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors, bool keys,
                            linnet_attention_tensors *settled);
/* Everything of a sequence but keys' pages. */
ln_attention_sequence ln_plan_sequence(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors,
                                       int64_t sequence, int64_t keys);

#endif
