/* Owns: the rows of the wave core. */
#include "mixer/mixer.h"

const ln_mixer ln_rows_wave[] = {{0}};
