/* What the rows of rows_routed.c are made of, a file a family. */
#ifndef LN_MIXER_STAGED_ROWS_H
#define LN_MIXER_STAGED_ROWS_H

#include "mixer/staged.h"

/* Memories of slots (staged_slots.c). */
extern const ln_staged ln_staged_gsa, ln_staged_abc;

double ln_slots_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
