/* Owns: the rows of the cell core. */
#include "mixer/mixer.h"

const ln_mixer ln_rows_cell[] = {{0}};
