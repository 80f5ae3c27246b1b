/* Owns: the rows of the delta core. */
#include "mixer/mixer.h"

const ln_mixer ln_rows_delta[] = {{0}};
