/* What the rows of rows_routed.c are made of, a file a family. */
#ifndef LN_MIXER_STAGED_ROWS_H
#define LN_MIXER_STAGED_ROWS_H

#include "mixer/staged.h"

/* Memories of slots (staged_slots.c). */
extern const ln_staged ln_staged_gsa, ln_staged_abc;

/* A prefix read as a whole (staged_prefix.c), levels of a Fenwick tree (staged_levels.c). */
extern const ln_staged ln_staged_prefix, ln_staged_levels;
enum { LN_PREFIX_TOKENS, LN_PREFIX_TAYLOR }; /* options */

/* Memories that a router chooses (staged_memories.c). */
extern const ln_staged ln_staged_mom, ln_staged_sse;
enum { LN_MEMORIES_CHOSEN, LN_MEMORIES_SHARED, LN_MEMORIES_ROWS };

/* All keys before all queries (staged_whole.c). */
extern const ln_staged ln_staged_flowformer, ln_staged_rala, ln_staged_l2vit;

/* Softmax over few tokens that are kept (staged_kept.c). */
extern const ln_staged ln_staged_diag, ln_staged_scout;

double ln_kept_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
double ln_whole_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
double ln_memories_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
double ln_prefix_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
double ln_levels_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
double ln_slots_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
