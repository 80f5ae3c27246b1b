/* Mergers: what becomes of tokens that are evicted. A key that stands for n tokens has weight n: attention adds log n
 * to its scores, so that where the n keys and values are the same nothing changes. Rows that are not finite are never
 * merged.
 *
 *     key <- (n key + m key') / (n + m), value likewise, n <- n + m */
#ifndef LN_MEMORY_MERGE_H
#define LN_MEMORY_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel/kernel.h"
#include "memory/policy.h"

typedef struct ln_merge {
    const ln_kernels *kernels;
    int64_t key_size, value_size;
    int64_t kept;
    float *keys, *values; /* [kept][size] */
    float *counts;        /* [kept]: tokens that each stands for */
    int64_t evicted;
    const float *evicted_keys, *evicted_values; /* [evicted][size] */
    const float *evicted_counts;                /* [evicted]; NULL: 1 each */
    void *workspace;                            /* ln_merge_workspace bytes, 64-aligned */
    double similar;                             /* evicted keys whose cosine with every kept key is below it are gone */
    int32_t *into;                              /* [evicted], out: the kept token that each was merged into; -1: gone */
    float *best;                                /* [evicted]: only for ln_merge_find */
} ln_merge;

/* `similar` where nobody says otherwise. */
#define LN_MERGE_SIMILAR 0.6

struct ln_merger {
    const char *name, *source, *rule;
    bool summary; /* the first kept token is a summary, made by the merger, whose count begins at 0 */
    void (*merge)(const ln_merge *merge);
};

/* The same in parts, where not all kept tokens are at hand at once. First ln_merge_begin, then for each part of the
 * kept keys ln_merge_find, which changes `into` where it has one more similar: names[i] of its kept token i; keys alone
 * are read. Then ln_merge_add: evicted token i into the kept one `to`. A summary is not looked for. */
void ln_merge_begin(const ln_merge *merge);
void ln_merge_find(const ln_merge *merge, const int32_t *names);
void ln_merge_add(const ln_merge *merge, int64_t i, int64_t to);

/* Bytes, however many tokens there are. */
uint64_t ln_merge_workspace(int64_t key_size);

const ln_merger *ln_merger_of(const char *name);
const ln_merger *ln_merger_at(int index);

#endif
