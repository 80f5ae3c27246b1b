/* Owns: rows made of other rows. */
#include "mixer/mixer.h"

const ln_mixer ln_rows_routed[] = {{0}};
