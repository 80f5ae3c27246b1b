/* The delta kernels against float64, in blocks of every height; the step timed on a state of 128 x 128. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

enum { ROWS = 48, COLUMNS = 144, AREA = 192 * COLUMNS, BLOCK = LN_DELTA_BLOCK };

typedef struct arrays {
    float x[5][AREA], decay[AREA], got[5][AREA];
    double want[5][AREA];
} arrays;

static void fill(arrays *a, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    for (int i = 0; i < AREA; i++) {
        const double unit = ln_random_unit(&random);
        a->decay[i] = (float)(unit < 0.1 ? 0 : unit < 0.2 ? 1e-38 : unit < 0.3 ? 1 : unit);
        for (int k = 0; k < 5; k++) {
            a->x[k][i] = (float)(0.3 * ln_random_normal(&random));
            a->got[k][i] = (float)ln_random_normal(&random);
            a->want[k][i] = (double)a->got[k][i];
        }
    }
}

/* In units of `terms` roundings. */
static double compare(const arrays *a, int k, double terms) {
    double error = 0;
    for (int i = 0; i < AREA; i++) {
        const double allowed = 6e-8 * (4 + terms) * (1 + fabs(a->want[k][i]));
        const double off = fabs((double)a->got[k][i] - a->want[k][i]) / allowed;
        if (!(off <= error)) error = off;
    }
    return error;
}

static double check_step(const ln_delta_kernels *k, arrays *a, int64_t rows, int way) {
    const int64_t columns = way & 1 ? COLUMNS : 128 - BLOCK * (way % 4), stride = COLUMNS;
    ln_delta_step s = {.rows = rows,
                       .columns = columns,
                       .before = a->x[0],
                       .after = a->got[0],
                       .before_stride = stride,
                       .after_stride = stride,
                       .decay = a->decay,
                       .read = a->x[1],
                       .key = a->x[2],
                       .add = way & 2 ? a->x[3] : NULL,
                       .write_key = way & 4 ? a->x[3] + 200 : NULL,
                       .write_value = a->x[3] + 600,
                       .query = a->x[4],
                       .output = a->got[1]};
    for (int64_t v = 0; v < columns; v++) {
        double y = s.add ? (double)s.add[v] : 0, output = 0;
        for (int64_t i = 0; i < rows; i++) y += (double)s.read[i] * (double)s.before[i * stride + v];
        for (int64_t i = 0; i < rows; i++) {
            double x = (double)s.decay[i] * (double)s.before[i * stride + v] + (double)s.key[i] * y;
            if (s.write_key) x += (double)s.write_key[i] * (double)s.write_value[v];
            if (!(way & 8)) a->want[0][i * stride + v] = x;
            output += (double)s.query[i] * x;
        }
        a->want[1][v] = output;
    }
    if (way & 8) s.after = NULL;
    k->step(&s);
    return fmax(compare(a, 0, (double)rows), compare(a, 1, (double)rows));
}

static double check_solve(const ln_delta_kernels *k, arrays *a, int64_t n, int way) {
    const float *m = a->x[0];
    double *y = a->want[0];
    for (int64_t step = 0; step < n; step++)
        for (int64_t other = 0; other < step; other++)
            for (int64_t c = 0; c < 80; c++) {
                const int64_t i = way ? n - 1 - step : step, j = way ? n - 1 - other : other;
                y[i * COLUMNS + c] += (double)m[way ? j * ROWS + i : i * ROWS + j] * y[j * COLUMNS + c];
            }
    (way ? k->solve_transposed : k->solve)(a->got[0], COLUMNS, m, ROWS, n, 80);
    return compare(a, 0, 64);
}

static double product(const float *decay, int64_t stride, int64_t after, int64_t upto) {
    double p = 1;
    for (int64_t t = after + 1; t <= upto; t++) p *= (double)decay[t * stride];
    return p;
}

static double check_mask(const ln_delta_kernels *k, arrays *a, int64_t n, int micro) {
    n = n * micro > ROWS ? ROWS / micro * micro : n * micro;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < ROWS; j++) {
            const int64_t m = i / micro;
            a->want[0][i * ROWS + j] *= j < i ? product(a->decay, 1, j, i - 1) : 0;
            if (i % micro == micro - 1) a->want[1][m * ROWS + j] *= j <= i ? product(a->decay, 1, j, i) : 0;
        }
        a->want[2][i] = product(a->decay, 1, i, n - 1);
        a->want[3][i] = product(a->decay, 1, -1, i - 1);
        a->want[4][i] = product(a->decay, 1, -1, i);
    }
    for (int64_t i = n; i < ROWS; i++) a->want[2][i] = 0;
    k->mask(a->got[0], a->got[1], ROWS, a->decay, n, micro, ROWS, a->got[2], a->got[3], a->got[4]);
    double error = 0;
    for (int i = 0; i < 5; i++) error = fmax(error, compare(a, i, (double)n));
    return error;
}

static double check_gates(const ln_delta_kernels *k, arrays *a, int64_t n, int way) {
    float *room = a->x[4];
    ln_delta_gates g = {n,
                        COLUMNS,
                        a->decay,
                        a->x[0],
                        a->x[1],
                        a->got[0],
                        way ? a->got[1] : NULL,
                        a->got[2],
                        a->got[3],
                        room,
                        room + BLOCK * COLUMNS,
                        a->x[3],
                        a->got[4]};
    double error = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < COLUMNS; c++) {
            const int64_t at = i * COLUMNS + c;
            const double after = product(a->decay + c, COLUMNS, i, n - 1);
            a->want[0][at] *= after;
            if (way) a->want[1][at] *= after;
            a->want[2][at] = (double)g.read[at] * product(a->decay + c, COLUMNS, -1, i - 1);
            a->want[3][at] = (double)g.query[at] * product(a->decay + c, COLUMNS, -1, i);
            a->want[4][c] = product(a->decay + c, COLUMNS, -1, n - 1);
        }
    float prefix[COLUMNS];
    memcpy(prefix, g.prefix, sizeof prefix);
    k->gates(&g);
    for (int i = 0; i < 5; i++) error = fmax(error, compare(a, i, 16));
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < COLUMNS; c++) {
            const int64_t at = i * COLUMNS + c;
            error = fmax(error, fabs((double)(g.read_all[at] - g.read_in[at] * prefix[c])) / 1e-6);
            error = fmax(error, fabs((double)(g.query_all[at] - g.query_in[at] * prefix[c])) / 1e-6);
        }
    return error;
}

static double check_pairs(const ln_delta_kernels *k, arrays *a, int64_t n, int way) {
    (void)way;
    const float *read = a->x[0], *query = a->x[1], *key = a->x[2];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < BLOCK; j++) {
            double x = 0, y = 0;
            for (int64_t c = 0; c < COLUMNS; c++) {
                const double kk = (double)key[j * COLUMNS + c];
                if (j < i) x += (double)read[i * COLUMNS + c] * kk * product(a->decay + c, COLUMNS, j, i - 1);
                if (j <= i) y += (double)query[i * COLUMNS + c] * kk * product(a->decay + c, COLUMNS, j, i);
            }
            a->want[0][i * ROWS + j] = x;
            a->want[1][i * ROWS + j] = y;
        }
    k->pairs(a->got[0], a->got[1], ROWS, read, query, key, a->decay, n, COLUMNS, a->x[4]);
    return fmax(compare(a, 0, COLUMNS), compare(a, 1, COLUMNS));
}

static double check_pairs_gradient(const ln_delta_kernels *k, arrays *a, int64_t n, int way) {
    (void)way;
    const float *da = a->x[3], *db = a->x[4];
    const ln_delta_pairs p = {n,       COLUMNS, ROWS,     da,        db,        a->x[0],
                              a->x[1], a->x[2], a->decay, a->got[0], a->got[1], a->got[2]};
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++)
            for (int64_t c = 0; c < COLUMNS; c++) {
                const int64_t ic = i * COLUMNS + c, jc = j * COLUMNS + c;
                const double before = j < i ? (double)da[i * ROWS + j] * product(a->decay + c, COLUMNS, j, i - 1) : 0,
                             upto = (double)db[i * ROWS + j] * product(a->decay + c, COLUMNS, j, i);
                a->want[0][ic] += before * (double)p.key[jc];
                a->want[1][ic] += upto * (double)p.key[jc];
                a->want[2][jc] += before * (double)p.read[ic] + upto * (double)p.query[ic];
            }
    k->pairs_gradient(&p);
    return fmax(compare(a, 0, 32), fmax(compare(a, 1, 32), compare(a, 2, 32)));
}

static double check_multiply(const ln_delta_kernels *k, arrays *a, int64_t n, int way) {
    const float *z = way ? a->x[1] : NULL, *factor = way == 2 ? NULL : a->x[2];
    const int64_t stride = way == 1 ? 0 : COLUMNS;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < COLUMNS; c++)
            a->want[0][i * COLUMNS + c] = (double)a->x[0][i * COLUMNS + c] * (z ? (double)z[i * stride + c] : 1) *
                                          (factor ? (double)factor[i] : 1);
    k->multiply(a->got[0], a->x[0], z, stride, factor, n, COLUMNS);
    return compare(a, 0, 0);
}

/* ---- running ---- */

static const struct {
    const char *name;
    double (*run)(const ln_delta_kernels *k, arrays *a, int64_t n, int way);
    int first, ways;
} checks[] = {{"delta_step", check_step, 0, 16},       {"delta_solve", check_solve, 0, 2},
              {"delta_mask", check_mask, 1, 4},        {"delta_gates", check_gates, 0, 2},
              {"delta_pairs", check_pairs, 0, 1},      {"delta_pairs_gradient", check_pairs_gradient, 0, 1},
              {"delta_multiply", check_multiply, 0, 3}};

typedef struct job {
    const ln_delta_kernels *kernels;
    arrays *a;
    int64_t times;
} job;

static void run_step(void *argument) {
    const job *j = argument;
    const ln_delta_step s = {.rows = 128,
                             .columns = 128,
                             .before = j->a->x[0],
                             .after = j->a->x[0],
                             .before_stride = 128,
                             .after_stride = 128,
                             .decay = j->a->decay,
                             .read = j->a->x[1],
                             .key = j->a->x[2],
                             .add = j->a->x[3],
                             .query = j->a->x[4],
                             .output = j->a->got[1]};
    for (int64_t i = 0; i < j->times; i++) j->kernels->step(&s);
}
static void run_solve(void *argument) {
    const job *j = argument;
    for (int64_t i = 0; i < j->times; i++) j->kernels->solve(j->a->got[0], 128, j->a->x[0], 64, BLOCK, 128);
}
static void run_pairs(void *argument) {
    const job *j = argument;
    for (int64_t i = 0; i < j->times; i++)
        j->kernels->pairs(j->a->got[0], j->a->got[1], 64, j->a->x[0], j->a->x[1], j->a->x[2], j->a->decay, BLOCK, 128,
                          j->a->x[4]);
}

static void time_kernel(check *c, const char *name, arrays *a) {
    enum { TIMES = 1000 };
    job j = {&c->kernels.delta, a, TIMES};
    fill(a, 1);
    memset(a->x, 0, sizeof a->x);
    if (strcmp(name, "delta_step") == 0)
        check_speed(c, "state", LN_PEAKS, TIMES * 2.0 * 128 * 128 * 4, check_time(run_step, &j));
    if (strcmp(name, "delta_solve") == 0)
        check_speed(c, "", LN_PEAK_F32, TIMES * 16.0 * 15 * 128, check_time(run_solve, &j));
    if (strcmp(name, "delta_pairs") == 0)
        check_speed(c, "", LN_PEAK_F32, TIMES * 16.0 * 16 * 128 * 2, check_time(run_pairs, &j));
}

void check_delta(check *c) {
    arrays *a = malloc(sizeof *a);
    if (!a) exit(2);
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (!check_begin(c, checks[i].name, c->kernels.delta.name)) continue;
        double error = 0;
        for (int64_t n = 1; n <= BLOCK; n++)
            for (int way = checks[i].first; way < checks[i].first + checks[i].ways; way++) {
                fill(a, (uint64_t)(n + 100 * way));
                error = fmax(error, checks[i].run(&c->kernels.delta, a, n, way));
            }
        check_error(c, checks[i].name, c->kernels.delta.name, error);
        if (c->bench) time_kernel(c, checks[i].name, a);
        check_end(c);
    }
    free(a);
}
