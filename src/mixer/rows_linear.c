/* Owns: the rows of the outer core with features of their own: feature maps, normalisers, two passes. */
#include "mixer/outer.h"

const ln_mixer ln_rows_linear[] = {{0}};
