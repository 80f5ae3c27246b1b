/* Naive recurrences of the rows of src/mixer/rows_delta.c. */
#include "mixer_check.h"

const mixer_oracle oracle_delta[] = {{0}};
