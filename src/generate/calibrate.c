/* Owns: making a calibration.
 *
 * A text of prose, in which facts ("The ticket number of Ada is 48213.") are planted between tokens, is read twice: by
 * a session that keeps all, and by one under the policy within its budget. Then both go on with the same probe: prose
 * that follows, then the facts again in another order. What the policy costs is how far its distributions of the next
 * token are from the full ones, divergence = mean over prose of KL(full, policy),   recalled = the same over the words
 * of facts that come again; the full cache is the reference, so that no task is needed that the model can do. The probe
 * is not seen while the text is compressed.
 *
 * What heads look at is found in random tokens that repeat themselves (P170): the share of attention that a head gives
 * to the token after the one that was like the present one, or to that one itself. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/random.h"
#include "generate/calibration.h"
#include "generate/session.h"
#include "memory/heads.h"

enum {
    FACTS = 12,
    LINE = 96,
    LINE_TOKENS = 48,
    PROSE_PROBE = 192,
    CHUNK = 16,
    DECODE = 24,
    SHARES = 5,
    PERIOD = 192,
    QUESTION = 1024
};
enum { PROSE = 1, FACT = 2 }; /* what a token of the probe is followed by; 0: what does not count */

static const char *const policies[] = {
    "full:keys=q8_0,values=q8_0",
    "quantized:keys=q5,values=q5",
    "quantized",
    "quantized:keys=q4,values=q3",
    "quantized:keys=q3,values=q3",
    "quantized:keys=q2,values=q2",
    "kivi",
    "window:keys=q8_0,values=q8_0",
    "snapkv:keys=q4,values=q4,rotate=1",
    "adakv:keys=q4,values=q4,rotate=1",
    "expected:keys=q4,values=q4,rotate=1",
    "keydiff:keys=q8_0,values=q8_0",
    "keydiff:keys=q4,values=q4,rotate=1",
    "keydiff:keys=q4,values=q4,rotate=1,near=q8_0",
    "duo:keys=q8_0,values=q8_0",
    "duo:keys=q4,values=q4,rotate=1,near=q8_0",
    "keydiff:keys=q4,values=q4,rotate=1,near=q8_0,recent=128",
    "keydiff:keys=q3,values=q3,rotate=1,near=q8_0",
    "gate:keys=q8_0,values=q8_0",
    "gate:keys=q4,values=q4,rotate=1,near=q8_0",
};
static const double shares[SHARES] = {1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 32};

const char *ln_calibration_policy(int index) {
    return index >= 0 && index < (int)(sizeof policies / sizeof *policies) ? policies[index] : NULL;
}

linnet_calibrate_settings linnet_calibrate_settings_default(void) {
    return (linnet_calibrate_settings){.size = sizeof(linnet_calibrate_settings), .seed = 1};
}

typedef struct fact {
    int32_t line[LINE_TOKENS], question[LINE_TOKENS], answer[LINE_TOKENS];
    int64_t line_tokens, question_tokens, answer_tokens;
} fact;

typedef struct trial {
    linnet_model *model;
    linnet_context *context;
    const linnet_calibrate_settings *settings;
    int64_t length;
    int32_t *text, *probe; /* [length], [probe_tokens] */
    uint8_t *counts;       /* [probe_tokens] */
    int64_t probe_tokens;
    float *rows; /* [2][CHUNK][vocabulary] */
    fact facts[FACTS];
    double full_prompt, full_decode;
} trial;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- the text ---- */

static linnet_status put_tokens(const trial *t, const char *text, int flags, int32_t *ids, int64_t *count) {
    const linnet_status status =
        linnet_tokenize(linnet_model_tokenizer(t->model), text, strlen(text), flags, ids, LINE_TOKENS, count);
    if (status != LINNET_OK || *count <= LINE_TOKENS) return status;
    return ln_fail(t->context, LINNET_ERROR_UNSUPPORTED, "this tokenizer cuts plain sentences into too many tokens");
}

/* The question in the form of the model's chat, or, where it has none, the line again up to what is asked for. */
static linnet_status put_question(const trial *t, const char *question, const char *head, fact *f, bool *asked) {
    char text[QUESTION];
    const linnet_message message = {"user", question};
    size_t bytes = 0;
    *asked = linnet_chat_format(linnet_model_tokenizer(t->model), &message, 1, true, text, sizeof text - 1, &bytes) ==
                 LINNET_OK &&
             bytes < sizeof text;
    if (!*asked) return put_tokens(t, head, 0, f->question, &f->question_tokens);
    text[bytes] = 0;
    return put_tokens(t, text, LINNET_TOKENIZE_SPECIAL, f->question, &f->question_tokens);
}

static linnet_status make_facts(trial *t, ln_random *random) {
    static const char *const names[] = {"Ada",  "Bram", "Cleo", "Dora", "Emil", "Faye", "Glen", "Hope", "Iris", "Joel",
                                        "Kira", "Liam", "Mona", "Nico", "Olga", "Pete", "Rosa", "Seth", "Tara", "Vera"};
    static const char *const things[] = {"ticket", "locker", "room", "badge", "parcel", "seat", "gate", "route"};
    if (!linnet_model_tokenizer(t->model))
        return ln_fail(t->context, LINNET_ERROR_UNSUPPORTED, "a model without a tokenizer cannot be calibrated");
    for (int i = 0; i < FACTS; i++) {
        char line[LINE], head[LINE], question[LINE], answer[LINE];
        fact *f = &t->facts[i];
        bool asked = false;
        const char *thing = things[ln_random_below(random, 8)];
        const int number = (int)(10000 + ln_random_below(random, 90000));
        snprintf(line, sizeof line, "\nThe %s number of %s is %d.\n", thing, names[i], number);
        snprintf(head, sizeof head, "\nThe %s number of %s is", thing, names[i]);
        snprintf(question, sizeof question, "What is the %s number of %s?", thing, names[i]);
        linnet_status status = put_tokens(t, line, 0, f->line, &f->line_tokens);
        if (status == LINNET_OK) status = put_question(t, question, head, f, &asked);
        snprintf(answer, sizeof answer, "%s%d", asked ? "" : " ", number);
        if (status == LINNET_OK) status = put_tokens(t, answer, 0, f->answer, &f->answer_tokens);
        if (status != LINNET_OK) return status;
    }
    return LINNET_OK;
}

/* Tokens at the end of the probe; `counts`: of what follows the last of them, and each but the last. */
static void put_probe(trial *t, const int32_t *ids, int64_t count, int kind) {
    if (kind && t->probe_tokens) t->counts[t->probe_tokens - 1] = (uint8_t)kind;
    for (int64_t i = 0; i < count; i++) {
        t->counts[t->probe_tokens] = i + 1 < count ? (uint8_t)kind : 0;
        t->probe[t->probe_tokens++] = ids[i];
    }
}

/* The text, and the probe after it. */
static void lay_text(trial *t, ln_random *random) {
    const linnet_calibrate_settings *s = t->settings;
    int64_t place[FACTS], left = t->length, next = 0, at = 0;
    for (int i = 0; i < FACTS; i++) left -= t->facts[i].line_tokens;
    for (int i = 0; i < FACTS; i++) /* ascending: one in each part of the first 7 eighths */
        place[i] = left * 7 / 8 * i / FACTS + (int64_t)ln_random_below(random, (uint64_t)(left * 7 / 8 / FACTS));
    int64_t prose = (int64_t)ln_random_below(random, (uint64_t)s->count);
    for (int64_t i = 0; i < left; i++) {
        for (; next < FACTS && place[next] == i; next++) {
            memcpy(t->text + at, t->facts[next].line, (size_t)t->facts[next].line_tokens * sizeof *t->text);
            at += t->facts[next].line_tokens;
        }
        t->text[at++] = s->prose[prose++ % s->count];
    }
    t->probe_tokens = 0;
    for (int i = 0; i < PROSE_PROBE; i++) put_probe(t, &s->prose[prose++ % s->count], 1, i > 0 ? PROSE : 0);
    for (int i = 0; i < FACTS; i++) {
        const fact *f = &t->facts[(i * 5 + 3) % FACTS];
        put_probe(t, f->question, f->question_tokens, 0);
        put_probe(t, f->answer, f->answer_tokens, FACT);
    }
}

/* ---- comparing ---- */

typedef struct taking {
    float *rows;
    int64_t vocabulary;
} taking;

static linnet_status take_rows(void *user, int64_t first, int64_t count, const float *logits) {
    taking *t = user;
    memcpy(t->rows + first * t->vocabulary, logits, (size_t)(count * t->vocabulary) * sizeof *t->rows);
    return LINNET_OK;
}

/* KL(full, other) of two rows of logits, and whether their largest are the same. */
static double divergence_of(const float *full, const float *other, int64_t n, bool *same) {
    double most[2] = {-INFINITY, -INFINITY}, sum[2] = {0}, mean = 0;
    int64_t best[2] = {0};
    const float *rows[2] = {full, other};
    for (int k = 0; k < 2; k++) {
        for (int64_t i = 0; i < n; i++)
            if ((double)rows[k][i] > most[k]) most[k] = (double)rows[k][best[k] = i];
        for (int64_t i = 0; i < n; i++) sum[k] += exp((double)rows[k][i] - most[k]);
    }
    for (int64_t i = 0; i < n; i++) {
        const double log_full = (double)full[i] - most[0] - log(sum[0]),
                     log_other = (double)other[i] - most[1] - log(sum[1]);
        mean += exp(log_full) * (log_full - log_other);
    }
    *same = best[0] == best[1];
    return fmax(0, mean);
}

static linnet_status compare(trial *t, linnet_session *full, linnet_session *other, ln_calibration_row *row) {
    const int64_t vocabulary = t->model->hyper.vocabulary;
    double sum[3] = {0}, count[3] = {0}, agreed = 0;
    for (int64_t at = 0; at < t->probe_tokens; at += CHUNK) {
        const int64_t n = ln_min_i64(CHUNK, t->probe_tokens - at);
        taking takes[2] = {{t->rows, vocabulary}, {t->rows + CHUNK * vocabulary, vocabulary}};
        linnet_status status = linnet_session_feed_logits(full, t->probe + at, n, take_rows, &takes[0]);
        if (status == LINNET_OK) status = linnet_session_feed_logits(other, t->probe + at, n, take_rows, &takes[1]);
        if (status != LINNET_OK) return status;
        for (int64_t i = 0; i < n; i++) {
            const int kind = t->counts[at + i];
            if (!kind) continue;
            bool same;
            sum[kind] +=
                divergence_of(takes[0].rows + i * vocabulary, takes[1].rows + i * vocabulary, vocabulary, &same);
            count[kind]++;
            agreed += same;
        }
    }
    row->divergence = sum[PROSE] / count[PROSE];
    row->recalled = sum[FACT] / count[FACT];
    row->agreement = agreed / (count[PROSE] + count[FACT]);
    return LINNET_OK;
}

/* ---- sessions ---- */

static uint64_t full_bytes(const trial *t) {
    const ln_hyperparameters *h = &t->model->hyper;
    return (uint64_t)(t->length * h->attention_layers * h->key_value_heads * (h->key_size + h->value_size)) *
           sizeof(uint16_t);
}

static linnet_session_settings settings_of(const trial *t, const char *policy, double share) {
    linnet_session_settings s = linnet_session_settings_default();
    s.context = t->length + t->probe_tokens + DECODE;
    s.policy = policy;
    s.precision = policy ? LINNET_TYPE_AUTO : LINNET_F16;
    s.cache = share > 0 ? (uint64_t)(share * (double)full_bytes(t)) : 0;
    return s;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Other work on the machine spoils some steps, not most. */
static double median(double *times, size_t count) {
    qsort(times, count, sizeof *times, ascending);
    return times[count / 2];
}

/* Reads the text; the speeds of that and of decoding after it (on a fork) in the row. */
static linnet_status read_text(trial *t, linnet_session *session, ln_calibration_row *row) {
    const double began = seconds();
    linnet_status status = linnet_session_feed(session, t->text, t->length);
    row->prompt = (double)t->length / (seconds() - began);
    linnet_session *fork = NULL;
    if (status == LINNET_OK) status = linnet_session_fork(session, &fork);
    double taken[DECODE];
    for (int i = 0; i < DECODE && status == LINNET_OK; i++) {
        const double then = seconds();
        status = linnet_session_feed(fork, t->probe + i, 1);
        taken[i] = seconds() - then;
    }
    if (status == LINNET_OK) row->decode = 1 / median(taken, DECODE);
    linnet_session_close(fork);
    return status;
}

/* One row; `refused`: the policy does not fit there. */
static linnet_status try_policy(trial *t, const linnet_session *full, const char *policy, double share,
                                ln_calibration_row *row, bool *refused) {
    linnet_session *session = NULL, *reference = NULL;
    const linnet_session_settings settings = settings_of(t, policy, share);
    linnet_status status = linnet_session_open(t->model, &settings, &session);
    *refused = status == LINNET_ERROR_MEMORY || status == LINNET_ERROR_UNSUPPORTED || status == LINNET_ERROR_ARGUMENT;
    if (*refused) return LINNET_OK;
    *row = (ln_calibration_row){.share = share};
    snprintf(row->policy, sizeof row->policy, "%s", policy);
    if (status == LINNET_OK && share == 0)
        row->share = (double)linnet_session_plan(session).pages / (double)full_bytes(t);
    if (status == LINNET_OK) status = read_text(t, session, row);
    if (status == LINNET_OK) status = linnet_session_fork((linnet_session *)(uintptr_t)full, &reference);
    if (status == LINNET_OK) status = compare(t, reference, session, row);
    row->prompt /= t->full_prompt;
    row->decode /= t->full_decode;
    linnet_session_close(reference);
    linnet_session_close(session);
    return status;
}

/* A policy that gives nothing up has one budget: what it takes. */
static linnet_status try_budgets(trial *t, const linnet_session *full, const char *text, ln_calibration *c) {
    ln_policy policy;
    if (ln_policy_parse(t->context, text, &policy) != LINNET_OK) return LINNET_OK; /* a part that this build lacks */
    const int budgets = policy.scorer ? SHARES : 1;
    for (int i = 0; i < budgets; i++) {
        bool refused;
        const linnet_status status =
            try_policy(t, full, text, policy.scorer ? shares[i] : 0, &c->rows[c->count], &refused);
        if (status != LINNET_OK) return status;
        c->count += !refused;
    }
    return LINNET_OK;
}

static linnet_status try_all(trial *t, ln_calibration *c) {
    linnet_session *full = NULL;
    ln_calibration_row row = {0};
    const linnet_session_settings settings = settings_of(t, NULL, 0);
    linnet_status status = linnet_session_open(t->model, &settings, &full);
    if (status == LINNET_OK) status = read_text(t, full, &row);
    t->full_prompt = row.prompt;
    t->full_decode = row.decode;
    const int count = (int)(sizeof policies / sizeof *policies);
    for (int i = 0; i < count && status == LINNET_OK; i++) {
        ln_progress(t->context, "calibrating", i, count);
        status = try_budgets(t, full, policies[i], c);
    }
    if (status == LINNET_OK) ln_progress(t->context, "calibrating", count, count);
    linnet_session_close(full);
    return status;
}

/* ---- what heads look at ---- */

typedef struct echo_state {
    double figure; /* the largest of the group's, over all tokens of the second round */
} echo_state;

static int64_t echo_observes(const ln_policy *policy, int64_t piece) {
    (void)policy;
    return piece;
}
static uint64_t echo_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    (void)shape;
    return sizeof(echo_state);
}
static uint64_t echo_workspace(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return ln_columns_workspace(shape->key_size);
}

static void echo_score(ln_scene *s, float *score) {
    enum { GROUP_MOST = 256 };
    double echo[GROUP_MOST], induction[GROUP_MOST];
    echo_state *state = s->state;
    for (int64_t i = 0; i < s->pages * LN_PAGE_TOKENS; i++) score[i] = 0;
    const ln_columns columns = {.kernels = s->kernels,
                                .view = s->view,
                                .head = s->view_head,
                                .counts = s->counts,
                                .pages = s->pages,
                                .group = s->group,
                                .key_size = s->key_size,
                                .scale = s->scale,
                                .soft_cap = s->soft_cap,
                                .tokens = s->observed,
                                .position = s->position - s->observed,
                                .query = s->query,
                                .query_stride = s->query_stride,
                                .query_head_stride = s->query_head_stride,
                                .log_sum_exp = s->log_sum_exp,
                                .log_sum_exp_stride = s->log_sum_exp_stride};
    if (s->position <= PERIOD || s->group > GROUP_MOST) return;
    ln_head_echo(&columns, PERIOD, s->workspace, echo, induction);
    for (int64_t g = 0; g < s->group; g++) state->figure = fmax(state->figure, fmax(echo[g], induction[g]));
}

static const ln_scorer echo_scorer = {.name = "echo",
                                      .source = "P170",
                                      .rule = "what heads look at in a text that repeats itself",
                                      .defaults = "",
                                      .observes = echo_observes,
                                      .state = echo_bytes,
                                      .workspace = echo_workspace,
                                      .score = echo_score};

static linnet_status watch_heads(trial *t, ln_random *random, ln_calibration *c) {
    const int64_t heads = c->heads, piece = 64;
    ln_policy policy;
    linnet_status status = ln_policy_parse(t->context, "full", &policy);
    if (status != LINNET_OK) return status;
    policy.scorer = &echo_scorer;
    ln_memory_shape shape = ln_session_shape(t->model, 2 * PERIOD, piece, LINNET_F16, &policy, UINT64_MAX / 4);
    ln_ragged_shape lanes;
    if (!ln_memory_lanes(&shape, &lanes)) return LINNET_OK;
    policy.scorer = NULL; /* room for everything */
    status = ln_ragged_least(t->context, &lanes, &shape.lane_bytes);
    policy.scorer = &echo_scorer;
    shape.lane_bytes = lanes.bytes = 2 * shape.lane_bytes;
    if (status != LINNET_OK) return status;
    const ln_forward_shape forward_shape = {.piece = piece,
                                            .slice = t->model->hyper.feed_forward,
                                            .step = t->model->hyper.feed_forward,
                                            .exact = true,
                                            .lanes = ln_session_lanes(t->model, &shape)};
    ln_forward forward = {0};
    ln_memory *memory = NULL;
    int32_t ids[2 * PERIOD];
    for (int i = 0; i < PERIOD; i++)
        ids[i] = ids[i + PERIOD] = (int32_t)ln_random_below(random, (uint64_t)t->model->hyper.vocabulary);
    status = ln_forward_open(t->model, &forward_shape, 2 * PERIOD, &forward);
    if (status == LINNET_OK) status = ln_memory_open(t->context, &shape, &memory);
    for (int64_t i = 0; i < 2 * PERIOD && status == LINNET_OK; i += piece)
        status = ln_forward_run(&forward, memory, ids + i, piece);
    for (int64_t l = 0; l < c->layers && status == LINNET_OK; l++) {
        for (int64_t h = 0; h < heads; h++) {
            const echo_state *state = ln_memory_lane_state(memory, l, h);
            c->figures[l * heads + h] = state ? state->figure : 0;
        }
    }
    ln_memory_close(memory);
    ln_forward_close(&forward);
    return status;
}

/* ---- the whole ---- */

static linnet_status run(trial *t, ln_calibration *c, const char *path) {
    ln_random random;
    ln_random_seed(&random, t->settings->seed);
    linnet_status status = make_facts(t, &random);
    if (status != LINNET_OK) return status;
    lay_text(t, &random);
    status = watch_heads(t, &random, c);
    /* Plans of head tables read the file: it is there before they are tried. */
    if (status == LINNET_OK) status = ln_calibration_write(t->model, c, path);
    if (status == LINNET_OK) status = try_all(t, c);
    return status == LINNET_OK ? ln_calibration_write(t->model, c, path) : status;
}

linnet_status linnet_calibrate(linnet_model *model, const linnet_calibrate_settings *settings) {
    linnet_context *context = model->context;
    linnet_calibrate_settings s = linnet_calibrate_settings_default();
    if (settings) memcpy(&s, settings, settings->size < sizeof s ? settings->size : sizeof s);
    if (!model->hyper.attention_layers)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "policies are about keys and values, and no layer of this model keeps any");
    const int64_t trained = model->hyper.context_length;
    trial t = {.model = model, .context = context, .settings = &s};
    t.length = s.length ? s.length : ln_max_i64(1024, ln_min_i64(4096, trained / 2));
    if (!s.prose || s.count < 256 || t.length < 1024 || t.length > 1 << 24)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "calibration needs at least 256 tokens of prose, and texts of 1024 tokens or more");
    for (int64_t i = 0; i < s.count; i++)
        if (s.prose[i] < 0 || s.prose[i] >= model->hyper.vocabulary)
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "token %lld of the prose is outside the vocabulary",
                           (long long)i);
    const int64_t probe = PROSE_PROBE + 2 * FACTS * LINE_TOKENS;
    const uint64_t vocabulary = (uint64_t)model->hyper.vocabulary;
    char *path = s.path ? ln_copy_text(context, s.path, strlen(s.path)) : ln_calibration_path(model);
    ln_calibration *c = ln_calibration_make(model, LN_CALIBRATION_ROWS);
    t.text = ln_allocate(context, (uint64_t)(t.length + probe), sizeof *t.text, "text of the calibration");
    t.counts = ln_allocate(context, (uint64_t)probe, 1, "text of the calibration");
    t.rows = ln_allocate(context, 2 * CHUNK * vocabulary, sizeof *t.rows, "logits of the calibration");
    linnet_status status = LINNET_ERROR_MEMORY;
    if (path && c && t.text && t.counts && t.rows) {
        t.probe = t.text + t.length;
        c->tokens = t.length;
        c->count = 0;
        status = run(&t, c, path);
    }
    ln_release(context, t.rows);
    ln_release(context, t.counts);
    ln_release(context, t.text);
    ln_calibration_close(model, c);
    ln_release(context, path);
    return status;
}
