/* Scorers against the matrix of attention in float64, written down in full: in one piece and in many, with tokens in
 * any order and evicted between; what is kept equals a recomputation over the whole history; worst cases; threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "base/threads.h"
#include "lane.h"
#include "memory/score.h"

enum { GROUP = 2, KEY = 32, VALUE = 40, GUARD = 64 };

/* ---- calling a scorer ---- */

typedef struct caller {
    const ln_scorer *scorer;
    ln_policy policy;
    ln_policy_row row;
    void *state;
    float scores[LANE_SLOTS];
    float gate[LANE_TEXT];
    ln_scene_rotation rotation;
    bool rotates, quiet;
} caller;

static void call_open(caller *c, const char *name, lane *l) {
    memset(c, 0, sizeof *c);
    c->scorer = ln_scorer_of(name);
    assert_non_null(c->scorer);
    c->policy.row = &c->row;
    l->keeps = c->scorer->keeps;
    const ln_scene shape = {.pages = LANE_PAGES,
                            .piece = LANE_TEXT,
                            .observed = LANE_TEXT,
                            .group = l->group,
                            .key_size = l->key_size,
                            .value_size = l->value_size};
    if (c->scorer->state) c->state = calloc(1, c->scorer->state(&c->policy, &shape));
}

static void call_close(caller *c) {
    free(c->state);
}

static void set_parameter(caller *c, const char *name, double value) {
    c->policy.parameter[c->policy.parameters].name = name;
    c->policy.parameter[c->policy.parameters++].value = value;
}

/* The piece: the last `piece` tokens. */
static ln_scene scene_of(caller *c, lane *l, int64_t piece, float *lse) {
    const int64_t observed = c->scorer->observes ? c->scorer->observes(&c->policy, piece) : 0;
    assert_true(observed >= 0 && observed <= piece);
    free(lane_matrix(l, observed, lse));
    return (ln_scene){.kernels = &l->kernels,
                      .policy = &c->policy,
                      .view = &l->view,
                      .counts = l->counts,
                      .pages = l->pages,
                      .positions = l->positions,
                      .key_bias = l->biased ? l->bias : NULL,
                      .kept = l->kept,
                      .position = l->text,
                      .piece = piece,
                      .layer = 1,
                      .head = 2,
                      .group = l->group,
                      .key_size = l->key_size,
                      .value_size = l->value_size,
                      .scale = l->scale,
                      .soft_cap = l->soft_cap,
                      .rotation = c->rotates ? &c->rotation : NULL,
                      .observed = observed,
                      .query = l->query + (l->text - observed) * l->group * l->key_size,
                      .query_stride = l->group * l->key_size,
                      .query_head_stride = l->key_size,
                      .log_sum_exp = lse,
                      .log_sum_exp_stride = l->group,
                      .gate = c->gate + l->text - piece,
                      .gate_stride = 1,
                      .state = c->state};
}

static void run_scene(caller *c, ln_scene *scene) {
    const uint64_t bytes = c->scorer->workspace ? c->scorer->workspace(&c->policy, scene) : 0;
    assert_true(bytes < 1 << 28);
    unsigned char *workspace = aligned_alloc(64, bytes + GUARD);
    memset(workspace, 0xff, bytes + GUARD);
    scene->workspace = workspace;
    c->scorer->score(scene, c->quiet ? NULL : c->scores);
    for (int i = 0; i < GUARD; i++) assert_int_equal(workspace[bytes + (uint64_t)i], 0xff);
    free(workspace);
}

static void call(caller *c, lane *l, int64_t piece) {
    static float lse[LANE_TEXT * 8];
    ln_scene scene = scene_of(c, l, piece, lse);
    run_scene(c, &scene);
}

/* Scores of the tokens that are there, by position. */
static void check_scores(const lane *l, const caller *c, const double *wanted, double tolerance) {
    double most = 0;
    for (int64_t i = 0; i < 32 * l->pages; i++)
        if (lane_there(l, i)) most = fmax(most, fabs(wanted[l->positions[i]]));
    for (int64_t i = 0; i < 32 * l->pages; i++) {
        if (!lane_there(l, i)) continue;
        const double x = wanted[l->positions[i]], found = (double)c->scores[i];
        if (fabs(found - x) <= tolerance * most) continue;
        fprintf(stderr, "%s: position %d: %g instead of %g\n", c->scorer->name, (int)l->positions[i], found, x);
        fail();
    }
}

/* ---- histories ---- */

/* What a scorer remembers of attention, by position of the key, from all queries of the text. */
typedef struct history {
    double sum[LANE_TEXT], most[LANE_TEXT], average[LANE_TEXT], low[LANE_TEXT];
} history;

static void add_history(history *past, const lane *l, int64_t piece, int64_t average_window, int64_t low_window) {
    const int64_t slots = 32 * l->pages, average = ln_min_i64(piece, average_window),
                  low = ln_min_i64(piece, low_window);
    static float lse[LANE_TEXT * 8];
    double *matrix = lane_matrix(l, piece, lse);
    for (int64_t i = 0; i < slots; i++) {
        if (!lane_there(l, i)) continue;
        const int64_t key = l->positions[i];
        past->average[key] *= 1 - (double)average / (double)average_window;
        past->low[key] *= 1 - (double)low / (double)low_window;
        for (int64_t t = 0; t < piece; t++) {
            int64_t seen = 0;
            const int64_t end = lane_end(l) - piece + t;
            for (int64_t j = 0; j <= end; j++) seen += lane_there(l, j);
            for (int64_t h = 0; h < l->group; h++) {
                const double weight = matrix[(t * l->group + h) * slots + i] / (double)l->group;
                past->sum[key] += weight;
                past->most[key] = fmax(past->most[key], weight * (double)l->group);
                if (t >= piece - average) past->average[key] += weight / (double)average_window;
                if (t >= piece - low && i <= end && weight * (double)l->group * (double)seen < 1 - 1e-4)
                    past->low[key] += 1 / (double)(l->group * low_window);
            }
        }
    }
    free(matrix);
}

/* Mean or maximum over the neighbours in the text that are there and before `end`. */
static void pooled(const lane *l, const double *from, int64_t end, int64_t width, bool maximum, double *to) {
    static bool there[LANE_TEXT];
    memset(there, 0, sizeof there);
    for (int64_t i = 0; i < 32 * l->pages; i++)
        if (lane_there(l, i)) there[l->positions[i]] = true;
    for (int64_t p = 0; p < l->text; p++) {
        double sum = 0, most = 0;
        for (int64_t q = ln_max_i64(0, p - width / 2); q <= p + width / 2 && q < end; q++) {
            sum += there[q] ? from[q] : 0;
            most = fmax(most, there[q] ? from[q] : 0);
        }
        to[p] = p >= end ? from[p] : maximum ? most : sum / (double)width;
    }
}

enum { H2O, KVZIP, ALISA, TOVA, SNAPKV, SNAPKV_MAXIMUM, CRITICAL, SCISSORHANDS, EMS, OBSERVERS };
static const char *const observer_names[] = {"h2o",    "kvzip",    "alisa",        "tova", "snapkv",
                                             "snapkv", "critical", "scissorhands", "ems"};
static const int64_t observer_windows[] = {0, 0, 20, 1, 16, 16, 16, 50, 24}, POOLING = 5;

static void expect(const lane *l, int which, const history *past, double *wanted) {
    const int64_t window = observer_windows[which];
    double global = 0, local = 0, each[LANE_TEXT];
    for (int64_t p = 0; p < l->text; p++) {
        wanted[p] = which == H2O            ? past->sum[p]
                    : which == KVZIP        ? past->most[p]
                    : which == SCISSORHANDS ? -past->low[p]
                                            : past->average[p];
    }
    if (which == EMS) {
        for (int64_t i = 0; i < 32 * l->pages; i++) {
            if (!lane_there(l, i)) continue;
            const int64_t p = l->positions[i];
            global += past->sum[p] / (double)(l->text - p);
            local += past->average[p];
        }
        for (int64_t p = 0; p < l->text; p++)
            each[p] = past->sum[p] / (double)(l->text - p) / global / 2 + past->average[p] / local / 2;
        pooled(l, each, l->text - window, POOLING, false, wanted);
    }
    if (which == SNAPKV || which == SNAPKV_MAXIMUM || which == CRITICAL)
        pooled(l, past->average, l->text - window, POOLING, which == SNAPKV_MAXIMUM, wanted);
    for (int64_t p = 0; which == CRITICAL && p < l->text; p++) {
        double length = 0;
        for (int64_t i = 0; i < l->value_size; i++) length += fabs((double)l->value[p * l->value_size + i]);
        wanted[p] = (wanted[p] + 1e-4) * length;
    }
}

/* Pieces of several lengths, tokens evicted at random and moved between them. */
static void observe_history(int which, bool evicts, unsigned cpu) {
    static const int64_t pieces[] = {1, 70, 3, 130, 1, 33, 1, 60, 2};
    static history past;
    static double wanted[LANE_TEXT];
    memset(&past, 0, sizeof past);
    lane l;
    caller c;
    lane_open(&l, 100 + (uint64_t)which, cpu, GROUP, KEY, VALUE);
    call_open(&c, observer_names[which], &l);
    const int64_t window = observer_windows[which] ? observer_windows[which] : 1;
    c.policy.window = observer_windows[which];
    c.policy.pooling = POOLING;
    if (which == SNAPKV_MAXIMUM) set_parameter(&c, "pooling-maximum", 1);
    for (size_t n = 0; n < sizeof pieces / sizeof *pieces; n++) {
        lane_append(&l, pieces[n]);
        c.quiet = n % 3 == 2; /* then only what it keeps changes */
        call(&c, &l, pieces[n]);
        add_history(&past, &l, pieces[n], window, window);
        expect(&l, which, &past, wanted);
        if (!c.quiet) check_scores(&l, &c, wanted, 3e-5);
        bool keep[LANE_TEXT];
        for (int p = 0; p < LANE_TEXT; p++) keep[p] = p + 5 > l.text || ln_random_below(&l.random, 4) > 0;
        if (evicts) lane_repack(&l, keep, true);
    }
    call_close(&c);
    lane_close(&l);
}

static void test_observers(void **state) {
    (void)state;
    for (int which = 0; which < OBSERVERS; which++) {
        observe_history(which, false, ln_cpu_detect());
        observe_history(which, true, ln_cpu_detect());
    }
    observe_history(SNAPKV, true, 0);
}

/* A text in one piece and in several: what is summed over all queries is the same; what is of the last ones too. */
static void test_pieces(void **state) {
    (void)state;
    static const char *const names[] = {"h2o",   "kvzip",  "snapkv", "tova", "ems",     "zipcache", "keyformer",
                                        "lagkv", "window", "random", "gate", "keydiff", "l2norm"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        static double whole[LANE_TEXT];
        lane l;
        caller c;
        lane_open(&l, 7, ln_cpu_detect(), GROUP, KEY, VALUE);
        for (int turn = 0; turn < 2; turn++) {
            call_open(&c, names[n], &l);
            c.policy.window = 32;
            l.pages = 0, l.text = 0;
            const bool probes = strcmp(names[n], "zipcache") == 0;
            for (int64_t at = 0; at < 640;) { /* probes are chosen by piece: the same pieces */
                const int64_t piece = turn == 0 && !probes ? 640 : 160;
                lane_append(&l, piece);
                c.quiet = turn == 1 && at < 320;
                call(&c, &l, piece);
                if (turn == 1) lane_repack(&l, NULL, true);
                at += piece;
            }
            /* Once more, with scores by the new places; observing nothing. */
            if (turn == 1) {
                static float lse[1];
                ln_scene scene = scene_of(&c, &l, 0, lse);
                run_scene(&c, &scene);
                check_scores(&l, &c, whole, 1e-4);
            } else
                for (int64_t i = 0; i < 32 * l.pages; i++)
                    if (lane_there(&l, i)) whole[l.positions[i]] = (double)c.scores[i];
            call_close(&c);
        }
        lane_close(&l);
    }
}

/* ---- zipcache ---- */

/* With every query a probe the score is the column's mean over the queries that see the key; with some, it follows it.
 */
static void test_zipcache(void **state) {
    (void)state;
    enum { TEXT = 600 };
    lane l;
    caller c;
    lane_open(&l, 23, ln_cpu_detect(), GROUP, KEY, VALUE);
    for (int t = 0; t < TEXT; t++) /* some keys matter more: columns differ */
        for (int i = 0; i < KEY; i++) l.key[t * KEY + i] *= t % 17 == 0 ? 2.0f : 0.5f;
    call_open(&c, "zipcache", &l);
    lane_append(&l, TEXT);
    call(&c, &l, TEXT);
    static float lse[TEXT * GROUP];
    const int64_t slots = 32 * l.pages;
    double *matrix = lane_matrix(&l, TEXT, lse), x = 0, y = 0, xx = 0, yy = 0, xy = 0;
    for (int64_t i = 0; i < TEXT / 2; i++) {
        double sum = 0;
        for (int64_t r = 0; r < TEXT * GROUP; r++) sum += matrix[r * slots + i];
        const double full = log(sum / (double)(GROUP * (TEXT - i))), probed = log((double)c.scores[i]);
        x += full, y += probed, xx += full * full, yy += probed * probed, xy += full * probed;
    }
    const double n = TEXT / 2, correlation = (xy - x * y / n) / sqrt((xx - x * x / n) * (yy - y * y / n));
    if (!(correlation > 0.9)) fprintf(stderr, "correlation %g\n", correlation);
    assert_true(correlation > 0.9);
    free(matrix);
    call_close(&c);
    lane_close(&l);
}

/* ---- keyformer ---- */

/* Rows of softmax((x + noise) / tau) sum to 1: so the scores sum to the number of queries; the noise is fixed, and
 * without it, in the mean over seeds, the order is that of attention. */
static void test_keyformer(void **state) {
    (void)state;
    lane l;
    caller c;
    lane_open(&l, 31, ln_cpu_detect(), GROUP, KEY, VALUE);
    call_open(&c, "keyformer", &l);
    lane_append(&l, 100);
    call(&c, &l, 100);
    double sum = 0;
    for (int64_t i = 0; i < 32 * l.pages; i++) sum += lane_there(&l, i) ? (double)c.scores[i] : 0;
    assert_true(fabs(sum - 100) < 1e-2);
    for (int step = 1; step <= 120; step++) { /* tau rises to 2, and stays */
        lane_append(&l, 1);
        if (l.pages > LANE_PAGES - 20) lane_repack(&l, NULL, false);
        call(&c, &l, 1);
    }
    sum = 0;
    for (int64_t i = 0; i < 32 * l.pages; i++) sum += lane_there(&l, i) ? (double)c.scores[i] : 0;
    assert_true(fabs(sum - 220) < 1e-1);
    call_close(&c);
    /* One query that sees two keys, x = a and b: the mean weight of the first, over many positions, is that of the
     * integral of the Gumbel softmax, by quadrature. */
    const double difference = 1;
    double wanted = 0, found = 0;
    enum { QUADRATURE = 2000, QUERIES = 1000 };
    for (int i = 0; i < QUADRATURE; i++) /* the difference of two Gumbel variables is logistic */ {
        const double u = (i + 0.5) / QUADRATURE;
        wanted += 1 / (1 + exp(-(difference + log(u / (1 - u))))) / QUADRATURE;
    }
    for (int i = 0; i < KEY; i++) l.key[i] = i == 0, l.key[KEY + i] = 0;
    for (int q = 0; q < QUERIES; q++) {
        call_open(&c, "keyformer", &l);
        l.pages = 0, l.text = 0;
        lane_append(&l, 2);
        for (int i = 0; i < GROUP * KEY; i++) l.query[GROUP * KEY + i] = i % KEY == 0 ? sqrtf(KEY) : 0;
        memset(l.kept, 0, sizeof l.kept);
        static float lse[GROUP];
        free(lane_matrix(&l, 1, lse));
        ln_scene scene = scene_of(&c, &l, 2, (float[2 * GROUP]){0});
        scene.observed = 1;
        scene.query = l.query + GROUP * KEY;
        scene.log_sum_exp = lse;
        scene.position = 10 + q; /* another draw */
        run_scene(&c, &scene);
        found += (double)c.scores[0] / QUERIES;
        call_close(&c);
    }
    if (fabs(found - wanted) > 0.03) fprintf(stderr, "keyformer %g %g\n", found, wanted);
    assert_true(fabs(found - wanted) < 0.03);
    lane_close(&l);
}

/* ---- scorers of keys ---- */

static double norm_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void test_keys(void **state) {
    (void)state;
    enum { TEXT = 300 };
    static double wanted[5][LANE_TEXT];
    lane l;
    caller c;
    lane_open(&l, 41, ln_cpu_detect(), GROUP, KEY, VALUE);
    lane_append(&l, TEXT);
    lane_repack(&l, NULL, true);
    double mean[KEY] = {0}, length = 0;
    for (int p = 0; p < TEXT; p++)
        for (int i = 0; i < KEY; i++) mean[i] += (double)l.key[p * KEY + i] / norm_of(l.key + p * KEY, KEY) / TEXT;
    for (int i = 0; i < KEY; i++) length += mean[i] * mean[i];
    for (int p = 0; p < TEXT; p++) {
        const double norm = norm_of(l.key + p * KEY, KEY);
        double dot = 0;
        for (int i = 0; i < KEY; i++) dot += mean[i] * (double)l.key[p * KEY + i];
        wanted[0][p] = -norm;
        wanted[1][p] = -dot / norm / sqrt(length);
        wanted[2][p] = p - TEXT + 1;
        wanted[3][p] = (double)(l.value[p] = (float)(p % 7));
    }
    static const char *const names[] = {"l2norm", "keydiff", "window", "gate"};
    for (int n = 0; n < 4; n++) {
        call_open(&c, names[n], &l);
        for (int p = 0; p < TEXT; p++) c.gate[p] = (float)wanted[3][p];
        call(&c, &l, TEXT);
        check_scores(&l, &c, wanted[n], 1e-5);
        call_close(&c);
    }
    call_open(&c, "random", &l);
    call(&c, &l, TEXT);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < 32 * l.pages; i++) {
        if (!lane_there(&l, i)) continue;
        assert_true(c.scores[i] >= 0 && c.scores[i] < 1);
        sum += (double)c.scores[i], squares += (double)c.scores[i] * (double)c.scores[i];
    }
    assert_true(fabs(sum / TEXT - 0.5) < 0.06 && fabs(squares / TEXT - 1.0 / 3) < 0.06);
    call_close(&c);
    lane_close(&l);
}

/* ---- lagkv ---- */

static void lag_spreads(const float *x, int64_t size, int64_t begin, double *sum) {
    double spread[128], total = 0;
    for (int64_t t = 0; t < 128; t++) {
        double mean = 0, square = 0, y[64];
        for (int64_t i = 0; i < size; i++) {
            double least = INFINITY, most = -INFINITY;
            for (int64_t u = begin + 128; u < begin + 256; u++) {
                least = fmin(least, (double)x[u * size + i]);
                most = fmax(most, (double)x[u * size + i]);
            }
            y[i] = ((double)x[(begin + t) * size + i] - least) / (most - least);
            mean += y[i] / (double)size;
        }
        for (int64_t i = 0; i < size; i++) square += (y[i] - mean) * (y[i] - mean);
        total += spread[t] = exp(sqrt(square / (double)(size - 1)));
    }
    for (int64_t t = 0; t < 128; t++) sum[t] += spread[t] / total / 2;
}

static void test_lag(void **state) {
    (void)state;
    enum { TEXT = 128 * 4 + 60, SINKS = 4 };
    static double wanted[LANE_TEXT];
    lane l;
    caller c;
    lane_open(&l, 43, ln_cpu_detect(), GROUP, KEY, VALUE);
    call_open(&c, "lagkv", &l);
    c.policy.sinks = SINKS;
    for (int p = 0; p < TEXT; p++) wanted[p] = 2;
    for (int part = 0; part < 3; part++) {
        const int begin = SINKS + 128 * part;
        double sum[128] = {0};
        lag_spreads(l.key, KEY, begin, sum);
        lag_spreads(l.value, VALUE, begin, sum);
        for (int t = 0; t < 128; t++) {
            int rank = 0;
            for (int u = 0; u < 128; u++) rank += sum[u] < sum[t];
            wanted[begin + t] = (rank + 1) / 128.0;
        }
    }
    for (int64_t at = 0; at < TEXT;) {
        const int64_t piece = ln_min_i64(TEXT - at, 1 + (int64_t)ln_random_below(&l.random, 200));
        lane_append(&l, piece);
        call(&c, &l, piece);
        if ((at += piece) < TEXT) lane_repack(&l, NULL, true);
    }
    check_scores(&l, &c, wanted, 1e-6);
    call_close(&c);
    lane_close(&l);
}

/* ---- expected attention ---- */

static const double BASE = 10000;

static void rotate64(double *x, bool half, int64_t size, const double *cosine, const double *sine) {
    for (int64_t i = 0; i < size / 2; i++) {
        double *a = half ? x + i : x + 2 * i, *b = half ? x + i + size / 2 : x + 2 * i + 1;
        const double first = *a * cosine[i] - *b * sine[i], second = *a * sine[i] + *b * cosine[i];
        *a = first, *b = second;
    }
}

/* The definition: statistics of queries before rotation, the mean rotation as a sum over 512 positions. */
static void expected_scores(const lane *l, const caller *c, int64_t rotated, double epsilon, double *wanted) {
    enum { FUTURE = 512 };
    const int64_t n = l->text - c->policy.sinks;
    const bool half = c->rotation.half;
    static double mean[8][KEY], covariance[KEY][KEY], turn[KEY][KEY], product[KEY][KEY], *plain;
    double cosine[KEY / 2], sine[KEY / 2];
    plain = calloc((size_t)(l->group * l->text * KEY), sizeof *plain);
    memset(mean, 0, sizeof mean), memset(covariance, 0, sizeof covariance), memset(turn, 0, sizeof turn);
    for (int64_t h = 0; h < l->group; h++) {
        for (int64_t p = c->policy.sinks; p < l->text; p++) {
            double *x = plain + (h * l->text + p) * KEY;
            for (int64_t i = 0; i < KEY; i++) x[i] = (double)l->query[(p * l->group + h) * KEY + i];
            for (int64_t i = 0; i < rotated / 2; i++) {
                cosine[i] = cos((double)p * c->rotation.inverse[i]) / c->rotation.magnitude;
                sine[i] = -sin((double)p * c->rotation.inverse[i]) / c->rotation.magnitude;
            }
            rotate64(x, half, rotated, cosine, sine);
            for (int64_t i = 0; i < KEY; i++) mean[h][i] += x[i] / (double)n;
        }
        for (int64_t p = c->policy.sinks; p < l->text; p++)
            for (int64_t i = 0; i < KEY; i++)
                for (int64_t j = 0; j < KEY; j++)
                    covariance[i][j] += (plain[(h * l->text + p) * KEY + i] - mean[h][i]) *
                                        (plain[(h * l->text + p) * KEY + j] - mean[h][j]) / (double)(n * l->group);
    }
    for (int64_t f = 0; f < FUTURE; f++) {
        for (int64_t i = 0; i < rotated / 2; i++) {
            cosine[i] = cos((double)(l->text + f) * c->rotation.inverse[i]) * c->rotation.magnitude;
            sine[i] = sin((double)(l->text + f) * c->rotation.inverse[i]) * c->rotation.magnitude;
        }
        for (int64_t i = 0; i < KEY; i++) {
            double unit[KEY] = {0};
            unit[i] = 1;
            rotate64(unit, half, rotated, cosine, sine);
            for (int64_t j = 0; j < KEY; j++) turn[j][i] += unit[j] / FUTURE;
        }
    }
    for (int64_t i = 0; i < KEY; i++)
        for (int64_t j = 0; j < KEY; j++) {
            product[i][j] = 0;
            for (int64_t k = 0; k < KEY; k++) product[i][j] += turn[i][k] * covariance[k][j];
        }
    const double scale = (double)l->scale;
    double highest = 0;
    memset(wanted, 0, LANE_TEXT * sizeof *wanted);
    for (int64_t h = 0; h < l->group; h++) {
        double logits[LANE_TEXT], sum = 0;
        for (int64_t p = c->policy.sinks; p < l->text; p++) {
            const float *k = l->key + p * KEY;
            logits[p] = 0;
            for (int64_t i = 0; i < KEY; i++) {
                double ahead = 0, row = 0;
                for (int64_t j = 0; j < KEY; j++) {
                    double both = 0;
                    for (int64_t m = 0; m < KEY; m++) both += product[i][m] * turn[j][m];
                    ahead += turn[i][j] * mean[h][j];
                    row += both * (double)k[j];
                }
                logits[p] += scale * ahead * (double)k[i] + scale * scale / 2 * row * (double)k[i];
            }
            sum += exp(logits[p]);
        }
        for (int64_t p = c->policy.sinks; p < l->text; p++) wanted[p] += exp(logits[p]) / sum / (double)l->group;
    }
    for (int64_t p = c->policy.sinks; p < l->text; p++) {
        wanted[p] = (wanted[p] + epsilon) * norm_of(l->value + p * l->value_size, l->value_size);
        highest = fmax(highest, wanted[p]);
    }
    for (int64_t p = 0; p < c->policy.sinks; p++) wanted[p] = highest;
    free(plain);
}

static void test_expected(void **state) {
    (void)state;
    static double wanted[LANE_TEXT], inverse[KEY / 2];
    for (int variant = 0; variant < 3; variant++) {
        lane l;
        caller c;
        lane_open(&l, 53, ln_cpu_detect(), GROUP, KEY, VALUE);
        call_open(&c, "expected", &l);
        const int64_t rotated = variant == 0 ? 0 : variant == 1 ? KEY : KEY / 2;
        for (int i = 0; i < KEY / 2; i++) inverse[i] = pow(BASE, -2.0 * i / (double)(rotated ? rotated : 1));
        c.rotation = (ln_scene_rotation){rotated, variant == 1, variant == 2 ? 1.2 : 1, inverse};
        c.rotates = rotated > 0;
        c.policy.sinks = 4;
        if (variant) set_parameter(&c, "epsilon", 0.001);
        for (int64_t i = 0; i < LANE_TEXT * GROUP * KEY; i++) /* channels of several means and sizes */
            l.query[i] = l.query[i] * (i % KEY == 3 ? 2.0f : 0.5f) + (i % KEY % 3 == 0 ? 1.0f : -0.25f);
        static const int64_t pieces[] = {2, 1, 90, 1, 150};
        for (size_t n = 0; n < sizeof pieces / sizeof *pieces; n++) {
            lane_append(&l, pieces[n]);
            c.quiet = n == 2;
            call(&c, &l, pieces[n]);
            if (n + 1 < sizeof pieces / sizeof *pieces) lane_repack(&l, NULL, true);
        }
        expected_scores(&l, &c, rotated, variant ? 0.001 : 0.01, wanted);
        check_scores(&l, &c, wanted, 1e-4);
        call_close(&c);
        lane_close(&l);
    }
}

/* ---- all of them ---- */

/* One token; empty pages; logits that are huge; keys, values and queries that are not finite; nothing observed. */
static void test_worst(void **state) {
    (void)state;
    for (int n = 0; ln_scorer_at(n); n++) {
        for (int worst = 0; worst < 5; worst++) {
            lane l;
            caller c;
            lane_open(&l, 61, ln_cpu_detect(), GROUP, KEY, VALUE);
            call_open(&c, ln_scorer_at(n)->name, &l);
            assert_ptr_equal(ln_scorer_of(ln_scorer_at(n)->name), ln_scorer_at(n));
            if (worst == 1) l.scale = 1e20f;
            for (int64_t i = 0; worst == 2 && i < LANE_TEXT; i += 7) {
                l.key[i * KEY + i % KEY] = i % 2 ? NAN : INFINITY;
                l.value[i * VALUE] = i % 2 ? -INFINITY : NAN;
                l.query[i * KEY] = NAN;
            }
            for (int64_t i = 0; worst == 3 && i < LANE_TEXT * KEY; i++) l.key[i] = 0;
            for (int64_t i = 0; worst == 4 && i < LANE_TEXT * GROUP * KEY; i++) l.query[i] = 0;
            lane_append(&l, 1);
            call(&c, &l, 1);
            assert_true(c.scores[0] == c.scores[0]);
            lane_append(&l, 299);
            l.counts[3] = 0;
            call(&c, &l, 200);
            ln_scene scene = scene_of(&c, &l, 0, (float[1]){0});
            run_scene(&c, &scene);
            for (int64_t i = 0; i < 32 * l.pages; i++)
                assert_true(!lane_there(&l, i) || (c.scores[i] == c.scores[i] && fabsf(c.scores[i]) < INFINITY));
            call_close(&c);
            lane_close(&l);
        }
    }
}

typedef struct job {
    lane l;
    caller c;
    float lse[LANE_TEXT * GROUP];
    ln_scene scene;
} job;

static void run_job(void *argument, int64_t task, int worker) {
    (void)worker;
    job *j = (job *)argument + task;
    run_scene(&j->c, &j->scene);
}

/* The same bits for any number of threads, and twice. */
static void test_threads(void **state) {
    (void)state;
    enum { JOBS = 4 };
    static job jobs[JOBS];
    static float first[JOBS][LANE_SLOTS];
    for (int n = 0; ln_scorer_at(n); n++) {
        for (int turn = 0; turn < 2; turn++) {
            linnet_context_settings settings = linnet_context_settings_default();
            settings.threads = 1 + 2 * turn;
            linnet_context *context;
            ln_team *team;
            assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
            assert_int_equal(ln_team_open(context, settings.threads, &team), LINNET_OK);
            for (uint64_t i = 0; i < JOBS; i++) {
                lane_open(&jobs[i].l, i, ln_cpu_detect(), GROUP, KEY, VALUE);
                call_open(&jobs[i].c, ln_scorer_at(n)->name, &jobs[i].l);
                lane_append(&jobs[i].l, 150);
                jobs[i].scene = scene_of(&jobs[i].c, &jobs[i].l, 150, jobs[i].lse);
            }
            ln_parallel(team, JOBS, run_job, jobs);
            for (int i = 0; i < JOBS; i++) {
                if (turn) assert_memory_equal(jobs[i].c.scores, first[i], 150 * sizeof(float));
                memcpy(first[i], jobs[i].c.scores, sizeof first[i]);
                call_close(&jobs[i].c);
                lane_close(&jobs[i].l);
            }
            ln_team_close(context, team);
            linnet_context_close(context);
        }
    }
}

static void test_share(void **state) {
    (void)state;
    float a[3] = {1, 2, 3}, b[3] = {3, 2, -3}, *both[] = {a, b};
    ln_score_share(both, 2, 3);
    assert_true(a[0] == 2 && a[1] == 2 && a[2] == 0 && memcmp(a, b, sizeof a) == 0);
    assert_null(ln_scorer_of("nothing"));
    assert_null(ln_scorer_at(-1));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_observers), cmocka_unit_test(test_pieces),
                                       cmocka_unit_test(test_zipcache),  cmocka_unit_test(test_keyformer),
                                       cmocka_unit_test(test_keys),      cmocka_unit_test(test_lag),
                                       cmocka_unit_test(test_expected),  cmocka_unit_test(test_worst),
                                       cmocka_unit_test(test_threads),   cmocka_unit_test(test_share)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
