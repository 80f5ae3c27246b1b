/* Naive recurrences of the rows of src/mixer/rows_outer.c. */
#include "mixer_check.h"

const mixer_oracle oracle_outer[] = {{0}};
