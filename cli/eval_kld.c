/* Owns: how far a compressed cache leads astray: two sessions read the same text piece by piece, one with the full
 * cache (float16, or the precision of --precision), one with the policy, which compresses as it reads. For each token
 * but a window's first, with p and q the two distributions of it, divergence = sum_v p(v) log(p(v) / q(v)),   agreement
 * = [argmax p = argmax q],   loss = -log q(token), in nats, float64 sums. A window is `length` tokens of the text;
 * windows do not overlap. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

enum { MOST_BYTES = 32 << 20, MOST_WINDOWS = 16 };

int64_t eval_windows(const eval_run *run, int64_t length) {
    const int64_t there = run->source->text_ids.count / length, asked = run->arguments->windows;
    const int64_t most = asked ? asked : MOST_WINDOWS;
    return there < most ? there : most;
}

int eval_open_full(eval_run *run, const eval_cell *cell, linnet_session **full) {
    cli_arguments arguments = *run->arguments;
    if (arguments.precision == LINNET_TYPE_AUTO) arguments.precision = LINNET_F16;
    /* Other pieces round otherwise. */
    arguments.piece = linnet_session_plan(run->engine->session).piece;
    const linnet_session_settings settings = cli_session_settings(&arguments, cell->length, 0);
    const linnet_status status = linnet_session_open(run->engine->model, &settings, full);
    return status == LINNET_OK ? CLI_OK : cli_engine_fail(run->engine, status);
}

/* ---- comparing ---- */

typedef struct comparison {
    float *rows;              /* logits of the full cache, of this piece */
    const int32_t *ids;       /* of the piece; the token after it follows where there is one */
    int64_t vocabulary, left; /* rows that a token follows */
    eval_outcome *outcome;
} comparison;

static linnet_status keep_rows(void *user, int64_t first, int64_t count, const float *logits) {
    const comparison *c = user;
    memcpy(c->rows + first * c->vocabulary, logits, (size_t)(count * c->vocabulary) * sizeof *logits);
    return LINNET_OK;
}

static double log_sum(const float *row, int64_t count, int64_t *best) {
    *best = 0;
    for (int64_t i = 1; i < count; i++)
        if (row[i] > row[*best]) *best = i;
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)expf(row[i] - row[*best]);
    return log(sum) + (double)row[*best];
}

static linnet_status compare_rows(void *user, int64_t first, int64_t count, const float *logits) {
    comparison *c = user;
    for (int64_t i = 0; i < count && first + i < c->left; i++) {
        const float *p = c->rows + (first + i) * c->vocabulary, *q = logits + i * c->vocabulary;
        int64_t best_p, best_q;
        const double of_p = log_sum(p, c->vocabulary, &best_p), of_q = log_sum(q, c->vocabulary, &best_q);
        double divergence = 0;
        for (int64_t v = 0; v < c->vocabulary; v++) {
            const double log_p = (double)p[v] - of_p;
            divergence += (double)expf((float)log_p) * (log_p - ((double)q[v] - of_q));
        }
        const int32_t next = c->ids[first + i + 1];
        c->outcome->divergence += divergence;
        c->outcome->squares += divergence * divergence;
        c->outcome->loss += of_q - (double)q[next];
        c->outcome->full_loss += of_p - (double)p[next];
        c->outcome->score += best_p == best_q;
        c->outcome->questions++;
    }
    return LINNET_OK;
}

static int64_t piece_of(const eval_run *run) {
    const int64_t fits = MOST_BYTES / (run->engine->info.vocabulary * (int64_t)sizeof(float));
    const int64_t planned = linnet_session_plan(run->engine->session).piece;
    return fits < 1 ? 1 : fits < planned ? fits : planned;
}

int eval_measure_window(eval_run *run, eval_cell *cell, linnet_session *full, int64_t number, eval_outcome *outcome) {
    const cli_engine *engine = run->engine;
    int32_t *ids = run->source->text_ids.id + number * cell->length;
    const int64_t piece = piece_of(run);
    *outcome = (eval_outcome){.documents = 1, .tokens = cell->length};
    comparison c = {.vocabulary = engine->info.vocabulary, .outcome = outcome};
    c.rows = malloc((size_t)(piece * c.vocabulary) * sizeof *c.rows);
    if (!c.rows) return cli_error("not enough memory for the logits of a piece");
    linnet_status status = linnet_session_rewind(full, 0);
    if (status == LINNET_OK) status = linnet_session_rewind(engine->session, 0);
    const int32_t first = ids[0];
    if (run->source->begin >= 0) ids[0] = run->source->begin;
    for (int64_t at = 0; status == LINNET_OK && at < cell->length; at += piece) {
        const int64_t count = cell->length - at < piece ? cell->length - at : piece;
        eval_progress(run, cell, at, cell->length);
        c.ids = ids + at;
        c.left = cell->length - 1 - at < count ? cell->length - 1 - at : count;
        status = linnet_session_feed_logits(full, c.ids, count, keep_rows, &c);
        const double began = cli_seconds();
        if (status == LINNET_OK) status = linnet_session_feed_logits(engine->session, c.ids, count, compare_rows, &c);
        outcome->seconds += cli_seconds() - began;
    }
    ids[0] = first;
    free(c.rows);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    eval_take_usage(run, outcome);
    outcome->end = linnet_session_usage(engine->session).pages;
    outcome->resident = 0; /* of two sessions */
    return CLI_OK;
}
