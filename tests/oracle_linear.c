/* Naive recurrences of the rows of src/mixer/rows_linear.c. */
#include "mixer_check.h"

const mixer_oracle oracle_linear[] = {{0}};
