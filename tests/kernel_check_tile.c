/* The tile kernels against float64, at odd sizes and cut in two; timed at 64 tokens and a state of 128 x 128. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

enum { MOST = 160, STRIDE = 168, AREA = MOST * STRIDE };

typedef struct tiles {
    float a[AREA], b[AREA], c[AREA], d[AREA], factors[AREA], part[AREA], vector[4][STRIDE];
    double want[AREA], rows[MOST + 1];
} tiles;

static void fill(tiles *t, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    t->rows[0] = 0;
    for (int i = 0; i < AREA; i++) {
        t->a[i] = (float)ln_random_normal(&random);
        t->b[i] = (float)ln_random_normal(&random);
        t->c[i] = (float)ln_random_normal(&random);
        const double unit = ln_random_unit(&random);
        t->factors[i] = (float)(unit < 0.1 ? 0 : unit < 0.2 ? 1 : unit);
    }
    for (int i = 0; i < MOST; i++) {
        const double unit = ln_random_unit(&random);
        t->rows[i + 1] = t->rows[i] - (unit < 0.1 ? 1000 : unit < 0.2 ? 88 : unit < 0.4 ? 0 : unit);
    }
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < STRIDE; i++) t->vector[v][i] = (float)ln_random_unit(&random);
    memcpy(t->d, t->c, sizeof t->d);
}

/* Largest difference in units of `terms` roundings of values of about one; and nothing else may have been written. */
static double compare(const tiles *t, const float *got, int64_t m, int64_t n, double terms, bool below) {
    double error = 0;
    for (int64_t i = 0; i < MOST; i++)
        for (int64_t j = 0; j < STRIDE; j++) {
            const int64_t at = i * STRIDE + j;
            if (i >= m || j >= n) {
                if (got[at] != t->d[at]) return INFINITY;
                continue;
            }
            if (below && j > i) continue;
            const double allowed = 6e-8 * (4 + terms) * (1 + fabs(t->want[at]) + sqrt(terms));
            const double off = fabs((double)got[at] - t->want[at]) / allowed;
            if (!(off <= error)) error = off;
        }
    return error;
}

/* ---- products: kinds of a and b, and shapes ---- */

typedef struct kind {
    const char *name;
    bool ta, tb, lower;
} kind;
static const kind kinds[] = {{"tile_product", 0, 0, 0}, {"tile_product_ta", 1, 0, 0}, {"tile_product_tb", 0, 1, 0},
                             {"tile_lower", 0, 0, 1},   {"tile_lower_ta", 1, 0, 1},   {"tile_lower_tb", 0, 1, 1}};

static void run_kind(const ln_tile_kernels *k, const kind *of, float *c, const float *a, const float *b, int64_t m,
                     int64_t n, int64_t depth, bool add) {
    if (of->lower && of->tb)
        k->lower_tb(c, STRIDE, a, STRIDE, b, STRIDE, m, depth);
    else if (of->lower)
        (of->ta ? k->lower_ta : k->lower)(c, STRIDE, a, STRIDE, b, STRIDE, m, n, add);
    else
        (of->ta   ? k->product_ta
         : of->tb ? k->product_tb
                  : k->product)(c, STRIDE, a, STRIDE, b, STRIDE, m, n, depth, add);
}

static double check_product(const ln_tile_kernels *k, const kind *of, tiles *t, int64_t m, int64_t n, int64_t depth,
                            bool add) {
    if (of->lower && of->tb) {
        n = m;
        add = false;
    } else if (of->lower) {
        depth = m;
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = i + 1; j < m; j++) t->a[i * STRIDE + j] = 0;
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = add ? (double)t->c[i * STRIDE + j] : 0;
            for (int64_t l = 0; l < depth; l++)
                sum += (double)t->a[of->ta ? l * STRIDE + i : i * STRIDE + l] *
                       (double)t->b[of->tb ? j * STRIDE + l : l * STRIDE + j];
            t->want[i * STRIDE + j] = sum;
        }
    memcpy(t->part, t->c, sizeof t->part);
    run_kind(k, of, t->c, t->a, t->b, m, n, depth, add);
    const double error = compare(t, t->c, m, n, (double)depth, of->lower && of->tb);
    if (of->lower) return error;
    /* The same bits where the tile is cut. */
    const int64_t i = m / 3, j = n / 2;
    const float *right = of->tb ? t->b + j * STRIDE : t->b + j, *below = of->ta ? t->a + i : t->a + i * STRIDE;
    run_kind(k, of, t->part, t->a, t->b, i, j, depth, add);
    run_kind(k, of, t->part + j, t->a, right, i, n - j, depth, add);
    run_kind(k, of, t->part + i * STRIDE, below, t->b, m - i, n, depth, add);
    return memcmp(t->part, t->c, sizeof t->part) == 0 ? error : INFINITY;
}

/* ---- decays ---- */

static double decay(const tiles *t, int64_t from, int64_t to, int64_t c) {
    double product = 1;
    for (int64_t i = from + 1; i <= to; i++) product *= (double)t->factors[i * STRIDE + c];
    return product;
}

static double check_decay_lower(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool strict) {
    (void)n;
    const double *columns = t->rows + 1, *rows = strict ? t->rows : columns;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++)
            t->want[i * STRIDE + j] =
                j < i + !strict ? 0.25 * exp(rows[i] - columns[j]) * (double)t->c[i * STRIDE + j] : 0;
    k->decay_lower(t->c, STRIDE, rows, columns, 0.25f, strict, m);
    return compare(t, t->c, m, m, 0, false);
}
static double check_scale(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool columns) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            t->want[i * STRIDE + j] = (double)t->vector[0][columns ? j : i] * (double)t->a[i * STRIDE + j];
    (columns ? k->scale_columns : k->scale_rows)(t->c, STRIDE, t->a, STRIDE, t->vector[0], m, n);
    return compare(t, t->c, m, n, 0, false);
}
static double check_multiply(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool same) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const int64_t at = i * STRIDE + j;
            t->want[at] = (double)t->b[at] * (double)(same ? t->c[at] : t->a[at]);
        }
    k->multiply(t->c, STRIDE, same ? t->c : t->a, STRIDE, t->b, STRIDE, m, n);
    return compare(t, t->c, m, n, 0, false);
}
static double check_scores(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before) {
    m = m < 16 ? m : 16;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) {
            double sum = 0;
            for (int64_t c = 0; j < i + !before && c < n; c++)
                sum += (double)t->a[i * STRIDE + c] * decay(t, j, i - before, c) * (double)t->b[j * STRIDE + c];
            t->want[i * STRIDE + j] = sum;
        }
    k->block_scores(t->c, STRIDE, t->a, t->b, t->factors, STRIDE, m, n, before);
    return compare(t, t->c, m, m, (double)n, false);
}
static double check_columns(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before, bool write) {
    m = m < 16 ? m : 16;
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < n; c++) {
            double sum = (double)t->c[i * STRIDE + c];
            for (int64_t j = 0; j < m; j++) {
                const int64_t reader = write ? j : i, writer = write ? i : j;
                if (writer < reader + !before)
                    sum += (double)t->a[reader * STRIDE + writer] * decay(t, writer, reader - before, c) *
                           (double)t->b[j * STRIDE + c];
            }
            t->want[i * STRIDE + c] = sum;
        }
    (write ? k->block_write : k->block_read)(t->c, STRIDE, t->a, STRIDE, t->b, t->factors, STRIDE, m, n, before);
    return compare(t, t->c, m, n, 16, false);
}
static double check_read(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before) {
    return check_columns(k, t, m, n, before, false);
}
static double check_write(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before) {
    return check_columns(k, t, m, n, before, true);
}
static double check_decays(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before) {
    double error = 0;
    m = m < 16 ? m : 16;
    for (int i = 0; i < AREA; i++)
        t->a[i] = t->factors[i] == 0 ? -INFINITY : t->factors[i] == 1 ? 0 : -8 * t->factors[i];
    for (int part = 0; part < 3; part++) {
        memcpy(t->c, t->d, sizeof t->c);
        float *out[3] = {t->part, t->part, t->part};
        out[part] = t->c;
        k->block_decays(out[0], out[1], out[2], t->vector[0], t->a, STRIDE, m, n, before);
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < n; c++) {
                double sum = part == 0 ? (double)t->a[i * STRIDE + c] : 0;
                for (int64_t l = 0; part == 1 && l < i + !before; l++) sum += (double)t->a[l * STRIDE + c];
                for (int64_t l = i + 1; part == 2 && l < m; l++) sum += (double)t->a[l * STRIDE + c];
                t->want[i * STRIDE + c] = exp(sum);
            }
        error = fmax(error, compare(t, t->c, m, n, 0, false));
    }
    return error;
}
static double check_step(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool before) {
    double error = 0;
    for (int way = 0; way < 6; way++) {
        const bool by_row = way & 1, by_column = way == 2, empty = way == 4;
        memcpy(t->c, t->d, sizeof t->c);
        ln_tile_step s = {.out = t->c,
                          .in = empty      ? NULL
                                : way == 3 ? t->c
                                           : t->b,
                          .stride = STRIDE,
                          .features = m,
                          .columns = n,
                          .rows = by_row ? t->vector[0] : NULL,
                          .columns_decay = by_column ? t->vector[1] : NULL,
                          .query = t->a,
                          .key = t->a + STRIDE,
                          .value = t->a + 2 * STRIDE,
                          .bonus = before ? t->vector[2] : NULL,
                          .scale = 0.5f,
                          .sums = t->vector[3]};
        double *sums = t->want + (MOST - 1) * STRIDE;
        for (int64_t c = 0; c < n; c++) sums[c] = 0;
        for (int64_t r = 0; r < m; r++)
            for (int64_t c = 0; c < n; c++) {
                const double old = s.in ? (double)s.in[r * STRIDE + c] : 0, add = (double)s.key[r] * (double)s.value[c];
                const double kept =
                    old * (by_row ? (double)s.rows[r] : 1) * (by_column ? (double)s.columns_decay[c] : 1) + add;
                t->want[r * STRIDE + c] = kept;
                sums[c] += 0.5 * (double)s.query[r] * (before ? old + (double)s.bonus[r] * add : kept);
            }
        k->step_outer(&s);
        error = fmax(error, compare(t, t->c, m, n, 0, false));
        for (int64_t c = 0; c < n; c++)
            error = fmax(error, fabs((double)s.sums[c] - sums[c]) / (6e-8 * (4 + (double)m) * (1 + sqrt((double)m))));
    }
    return error;
}

static const struct {
    const char *name;
    double (*check)(const ln_tile_kernels *k, tiles *t, int64_t m, int64_t n, bool way);
} others[] = {{"tile_decay_lower", check_decay_lower}, {"tile_scale", check_scale},
              {"tile_multiply", check_multiply},       {"tile_block_scores", check_scores},
              {"tile_block_read", check_read},         {"tile_block_write", check_write},
              {"tile_block_decays", check_decays},     {"tile_step_outer", check_step}};

/* ---- bf16: values that it holds, so that products and pairs are exact ---- */

typedef struct halves {
    uint16_t a[MOST * 192];
    uint32_t b[96 * 192];
    float c[MOST * 192];
} halves;

static double short_value(ln_random *random) {
    return (double)((int64_t)ln_random_below(random, 65) - 32) / 8;
}

static double check_half(const ln_tile_bf16 *k, tiles *t, halves *h, int64_t m, int64_t n, int64_t depth, int way) {
    const bool a_turned = way & 1, b_turned = way & 2, add = way & 4;
    const ln_tile_shape shape = (ln_tile_shape)(way % 3);
    if (shape == LN_TILE_LOWER) depth = m;
    if (shape == LN_TILE_BELOW) n = m;
    ln_random random;
    ln_random_seed(&random, (uint64_t)(m * 1000 + n + way));
    memset(h, 0xff, sizeof *h); /* NaN wherever nothing was packed */
    float factors[MOST], *x = t->a, *y = t->b;
    for (int i = 0; i < AREA; i++) x[i] = y[i] = NAN;
    double left[MOST], right[MOST];
    for (int64_t l = 0; l < depth; l++) factors[l] = l % 3 == 1 ? 0.5f : 1;
    for (int64_t l = 0; l < depth; l++) {
        for (int64_t i = 0; i < m; i++)
            x[a_turned ? l * STRIDE + i : i * STRIDE + l] =
                shape == LN_TILE_LOWER && l > i ? 0 : (float)short_value(&random);
        for (int64_t j = 0; j < n; j++) y[b_turned ? j * STRIDE + l : l * STRIDE + j] = (float)short_value(&random);
    }
    const int64_t a_stride = ln_tile_whole(depth, 32), b_stride = ln_tile_whole(n, 16);
    if (a_turned)
        k->rows_turned(h->a, a_stride, x, STRIDE, factors, m, depth);
    else
        k->rows(h->a, a_stride, x, STRIDE, m, depth);
    (b_turned ? k->pairs_turned : k->pairs)(h->b, b_stride, y, STRIDE, depth, n);
    for (int64_t i = 0; add && i < MOST * 192; i++) h->c[i] = 1;
    k->product(h->c, 192, h->a, a_stride, h->b, b_stride, m, n, depth, add, shape);
    double error = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < (shape == LN_TILE_BELOW ? i + 1 : n); j++) {
            double sum = add;
            for (int64_t l = 0; l < depth; l++) {
                left[l] = (double)x[a_turned ? l * STRIDE + i : i * STRIDE + l] * (a_turned ? (double)factors[l] : 1);
                right[l] = (double)y[b_turned ? j * STRIDE + l : l * STRIDE + j];
                sum += left[l] * right[l];
            }
            const double off = fabs((double)h->c[i * 192 + j] - sum) / (6e-8 * (1 + (double)depth * 8));
            if (!(off <= error)) error = off;
        }
    return error;
}

static const int64_t half_sizes[] = {1, 5, 16, 17, 31, 32, 48, 64, 90, 128};

double check_tile_bf16(const ln_tile_bf16 *kernels) {
    tiles *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    halves *h = aligned_alloc(64, (sizeof *h + 63) / 64 * 64);
    if (!t || !h) exit(2);
    double error = 0;
    for (int s = 0; s < 96; s++) {
        const double off = check_half(kernels, t, h, half_sizes[s % 10], half_sizes[s * 7 / 3 % 10],
                                      half_sizes[s * 11 / 4 % 10], s % 24);
        if (!(off <= error)) error = off;
    }
    free(t);
    free(h);
    return error;
}

typedef struct half_timing {
    const ln_tile_bf16 *kernels;
    halves *halves;
    tiles *tiles;
} half_timing;
static void time_half(void *argument) {
    const half_timing *t = argument;
    for (int i = 0; i < 50; i++)
        t->kernels->product(t->halves->c, 192, t->halves->a, 128, t->halves->b, 128, 64, 128, 128, true, LN_TILE_WHOLE);
}
static void time_half_state(void *argument) {
    const half_timing *t = argument;
    for (int i = 0; i < 50; i++)
        t->kernels->product(t->halves->c, 128, t->halves->a, 64, t->halves->b, 128, 128, 128, 64, true, LN_TILE_WHOLE);
}
static void time_packing(void *argument) {
    const half_timing *t = argument;
    for (int i = 0; i < 50; i++) {
        t->kernels->rows(t->halves->a, 128, t->tiles->a, STRIDE, 64, 128);
        t->kernels->rows_turned(t->halves->a, 64, t->tiles->a, STRIDE, NULL, 128, 64);
        t->kernels->pairs(t->halves->b, 128, t->tiles->a, STRIDE, 64, 128);
        t->kernels->pairs_turned(t->halves->b, 64, t->tiles->a, STRIDE, 128, 64);
    }
}

static void check_half_family(check *c, tiles *t) {
    const ln_tile_bf16 *k = &c->kernels.tile.bf16;
    if (!k->name || !check_begin(c, "tile_product_bf16", k->name)) return;
    check_error(c, "tile_product_bf16", k->name, check_tile_bf16(k));
    halves *h = aligned_alloc(64, (sizeof *h + 63) / 64 * 64);
    if (!h) exit(2);
    memset(h, 0, sizeof *h);
    if (c->bench) {
        half_timing of = {k, h, t};
        fill(t, 1);
        check_speed(c, "64 x 128 x 128", LN_PEAK_BF16, 50 * 2.0 * 64 * 128 * 128, check_time(time_half, &of));
        check_speed(c, "128 x 128 x 64", LN_PEAK_BF16, 50 * 2.0 * 64 * 128 * 128, check_time(time_half_state, &of));
        check_speed(c, "packing", LN_PEAKS, 50 * 4.0 * 4 * 64 * 128, check_time(time_packing, &of));
    }
    check_end(c);
    free(h);
}

/* ---- times ---- */

typedef struct timing {
    const ln_tile_kernels *kernels;
    tiles *tiles;
    int which;
} timing;
enum { TOKENS = 64, SIZE = 128, REPEATS = 50 };

static void time_product(void *argument) {
    const timing *t = argument;
    const kind *of = &kinds[t->which];
    for (int i = 0; i < REPEATS; i++)
        run_kind(t->kernels, of, t->tiles->c, t->tiles->a, t->tiles->b, of->ta && !of->lower ? SIZE : TOKENS, SIZE,
                 of->ta || of->lower ? of->tb ? SIZE : TOKENS : SIZE, !of->tb);
}
static double operations(const kind *of) {
    if (of->lower) return 1.0 * TOKENS * (TOKENS + 1) * SIZE;
    return 2.0 * TOKENS * SIZE * SIZE;
}
static void time_other(void *argument) {
    const timing *t = argument;
    tiles *x = t->tiles;
    const ln_tile_kernels *k = t->kernels;
    for (int i = 0; i < REPEATS; i++) switch (t->which) {
        case 0:
            k->decay_lower(x->c, STRIDE, x->rows + 1, x->rows + 1, 1, false, TOKENS);
            break;
        case 1:
            k->scale_rows(x->c, STRIDE, x->c, STRIDE, x->vector[0], TOKENS, SIZE);
            break;
        case 2:
            k->multiply(x->c, STRIDE, x->a, STRIDE, x->b, STRIDE, TOKENS, SIZE);
            break;
        case 3:
            k->block_scores(x->c, STRIDE, x->a, x->b, x->factors, STRIDE, 16, SIZE, false);
            break;
        case 4:
            k->block_read(x->c, STRIDE, x->a, STRIDE, x->b, x->factors, STRIDE, 16, SIZE, false);
            break;
        case 5:
            k->block_write(x->c, STRIDE, x->a, STRIDE, x->b, x->factors, STRIDE, 16, SIZE, false);
            break;
        case 6:
            k->block_decays(x->part, x->part, x->part, x->vector[0], x->c, STRIDE, 16, SIZE, false);
            break;
        default:
            k->step_outer(&(ln_tile_step){.out = x->c,
                                          .in = x->c,
                                          .stride = SIZE,
                                          .features = SIZE,
                                          .columns = SIZE,
                                          .rows = x->vector[0],
                                          .query = x->a,
                                          .key = x->a + SIZE,
                                          .value = x->a + 2 * SIZE,
                                          .scale = 1,
                                          .sums = x->vector[3]});
        }
}

void check_tile(check *c) {
    static const int64_t sizes[] = {1, 5, 6, 16, 17, 40, 64, 66, 127, 130};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    const ln_tile_kernels *k = &c->kernels.tile;
    tiles *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t) exit(2);
    for (int i = 0; i < 6; i++) {
        if (!check_begin(c, kinds[i].name, k->name)) continue;
        double error = 0;
        for (int s = 0; s < 40; s++) {
            fill(t, (uint64_t)s + 1);
            error = fmax(error, check_product(k, &kinds[i], t, sizes[s % SIZES], sizes[s * 7 / 3 % SIZES],
                                              s == 3 ? 0 : sizes[s * 11 / 4 % SIZES], s & 1));
        }
        check_error(c, kinds[i].name, k->name, error);
        if (c->bench) {
            timing of = {k, t, i};
            fill(t, 1);
            check_speed(c, "64 x 128 x 128", LN_PEAK_F32, REPEATS * operations(&kinds[i]),
                        check_time(time_product, &of));
        }
        check_end(c);
    }
    for (int i = 0; i < 8; i++) {
        if (!check_begin(c, others[i].name, k->name)) continue;
        double error = 0;
        for (int s = 0; s < 40; s++) {
            fill(t, (uint64_t)s + 1);
            error = fmax(error, others[i].check(k, t, sizes[s % SIZES], sizes[s * 7 / 3 % SIZES], s & 1));
        }
        check_error(c, others[i].name, k->name, error);
        if (c->bench) {
            timing of = {k, t, i};
            const int rows = i == 7 ? SIZE : i < 3 ? TOKENS : 16;
            fill(t, 1);
            check_speed(c, "elements, of 4 bytes", LN_PEAKS, REPEATS * 4.0 * rows * (i == 0 ? TOKENS : SIZE),
                        check_time(time_other, &of));
        }
        check_end(c);
    }
    check_half_family(c, t);
    free(t);
}
