/* Naive recurrences of the rows of src/mixer/rows_scan.c. */
#include <math.h>

#include "mixer_check.h"

static void hgrn(const oracle_call *c) {
    const int64_t n = c->output_columns;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            double h = c->state_in[head * n + i];
            for (int64_t t = 0; t < c->tokens; t++)
                oracle_output(c, t, head)[i] = h =
                    exp(oracle_input(c, 1, t, head)[i]) * h + oracle_input(c, 0, t, head)[i];
            c->state_out[head * n + i] = h;
        }
}

const mixer_oracle oracle_scan[] = {{.name = "hgrn", .run = hgrn}, {0}};
