/* Owns: the rows of the outer core. */
#include "mixer/mixer.h"

const ln_mixer ln_rows_outer[] = {{0}};
