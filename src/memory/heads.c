/* Owns: which heads look far back. */
#include "memory/heads.h"

#include <math.h>

typedef struct echoes {
    int64_t period;
    double *echo, *induction; /* [group] */
} echoes;

static void take(void *taker, const ln_columns *columns, const ln_columns_block *block) {
    const echoes *e = taker;
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t t = columns->position + ln_columns_token(columns, block->row + r);
        const int64_t head = (block->row + r) % columns->group;
        const float *weights = block->weights + r * LN_ATTEND_STRIDE;
        for (int64_t same = t - e->period; same >= 0; same -= e->period) {
            const int64_t at = same - block->key;
            if (at >= 0 && at < block->count) e->echo[head] += (double)weights[at];
            if (at + 1 >= 0 && at + 1 < block->count) e->induction[head] += (double)weights[at + 1];
        }
    }
}

void ln_head_echo(const ln_columns *columns, int64_t period, void *workspace, double *echo, double *induction) {
    int64_t tokens = 0;
    for (int64_t h = 0; h < columns->group; h++) echo[h] = induction[h] = 0;
    ln_columns_run(columns, workspace, take, &(echoes){period, echo, induction});
    for (int64_t t = 0; t < columns->tokens; t++)
        tokens += columns->position + ln_columns_token(columns, t * columns->group) >= period;
    for (int64_t h = 0; tokens > 0 && h < columns->group; h++) {
        echo[h] /= (double)tokens;
        induction[h] /= (double)tokens;
    }
}

/* The largest of the group's; NaN counts as nothing. */
static double figure_of(const double *figures, int64_t head, int64_t group) {
    double most = -INFINITY;
    for (int64_t i = head * group; i < (head + 1) * group; i++) most = fmax(most, figures[i]);
    return most;
}

void ln_head_table(const double *figures, int64_t heads, int64_t group, double share, uint8_t *kinds) {
    const double wanted = ceil(fmin(fmax(share, 0), 1) * (double)heads - 1e-9);
    for (int64_t h = 0; h < heads; h++) {
        const double figure = figure_of(figures, h, group);
        int64_t before = 0;
        for (int64_t other = 0; other < heads; other++) {
            const double x = figure_of(figures, other, group);
            before += x > figure || (x == figure && other < h);
        }
        if ((double)before < wanted) kinds[h] = LN_HEAD_FULL;
    }
}
