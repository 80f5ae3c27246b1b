/* Selectors: which pages a query of a decoding step reads.
 *
 * Units of one or more consecutive pages have summaries: vectors of key_size numbers. Vectors of 32 units are
 * themselves the keys of a page (kernel/attend.h), so that scoring is the product that attention has:
 *
 *     box      largest and smallest number of each channel: score = sum_d max(q_d max_d, q_d min_d) >= q . k of every
 * key mean     score = q . mean of the keys centres  score = max over centres c of q . c, centres of clusters of
 * similar keys
 *
 * A unit may have several such parts, of runs of its tokens; the largest score counts. Each row of queries has scores
 * from its best unit down, and a unit counts as its best row has it. */
#ifndef LN_MEMORY_SELECT_H
#define LN_MEMORY_SELECT_H

#include "kernel/kernel.h"
#include "memory/policy.h"

typedef enum ln_summary_kind { LN_SUMMARY_BOX, LN_SUMMARY_MEAN, LN_SUMMARY_CENTRES } ln_summary_kind;

struct ln_selector {
    const char *name, *source, *rule;
    ln_summary_kind kind;
    int parts; /* of a page, a power of two up to 4 */
    int open;  /* pages of a unit, where the policy says nothing else ("open") */
    int reuse; /* steps that a selection lasts, likewise ("reuse") */
};

const ln_selector *ln_selector_of(const char *name);
const ln_selector *ln_selector_at(int index);

/* How the pages of a lane are summarised. */
typedef struct ln_summary {
    const ln_selector *selector;
    int64_t key_size, unit; /* unit: pages */
    int vectors;
    ln_page_layout layout; /* of 32 vectors */
} ln_summary;

/* false: the key size is impossible. */
bool ln_summary_of(const ln_policy *policy, int64_t key_size, ln_summary *summary);
/* Of a lane of so many pages. */
uint64_t ln_summary_bytes(const ln_summary *summary, int64_t pages);
/* Takes page n of a lane in, after all before it. keys: [32][key_size]. */
void ln_summary_add(const ln_summary *summary, unsigned char *lane, int64_t n, const float *keys);
/* Floats of workspace for so many pages. */
int64_t ln_summary_workspace(const ln_summary *summary, int64_t pages);
/* score[u] of each unit, for rows of queries `stride` apart; rows scaled as attention's are. Returns the units. */
int64_t ln_summary_score(const ln_summary *summary, const ln_kernels *kernels, const unsigned char *lane, int64_t pages,
                         const float *const *queries, int64_t rows, float scale, float *score, float *workspace);
/* The best pages, whole units, at most `most`: the best ones that are at most `first`, whose number is *front, before
 * the others; at least one unit of each. Ties: the later unit. Returns how many pages; chosen: room for all pages. */
int64_t ln_summary_choose(const ln_summary *summary, const float *score, int64_t pages, int64_t first, int64_t most,
                          int32_t *chosen, int64_t *front);

#endif
