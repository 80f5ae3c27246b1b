/* Naive recurrences of the rows of src/mixer/rows_wave.c. */
#include "mixer_check.h"

const mixer_oracle oracle_wave[] = {{0}};
