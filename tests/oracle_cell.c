/* Naive recurrences of the rows of src/mixer/rows_cell.c. */
#include "mixer_check.h"

const mixer_oracle oracle_cell[] = {{0}};
