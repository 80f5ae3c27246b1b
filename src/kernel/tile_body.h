/* The bodies of the tile kernels, written once and compiled for each instruction set by including this file after
 * lanes_*.h and what it needs beside that:
 *
 *   VECTORS                  of a register tile of ROWS x VECTORS sums
 *   load_some, store_some    the first n lanes; the others are 0
 *   exponential_of (v)       e^v for v <= 0, 0 below LN_TILE_LEAST; NaN stays
 *   differences (x, y, n)    x - y[i] in double, rounded; n lanes
 *   multiply_first (v, f, n) the first n lanes times f (none for n <= 0, all for n >= W)
 *   transpose_lanes (x[W])   in place
 *   LN_TILE_NAME, LN_TILE_SET
 *
 * A register tile is ROWS rows by VECTORS vectors of sums: a step of k loads VECTORS vectors of b and broadcasts ROWS
 * values of a. Where b is given by its rows, it is turned into such vectors first, PANEL x DEPTH at a time. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/tile.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { ROWS = 6, PANEL = W * VECTORS, DEPTH = 128, BLOCK = LN_TILE_BLOCK };

INLINE lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
INLINE void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}

/* ---- products ---- */

typedef struct place {
    float *c;
    int64_t c_stride;
    const float *a;
    int64_t a_row, a_column;
    const float *b;
    int64_t b_stride;
    bool add;
} place;

/* last: lanes of the last vector, W unless `part`. */
INLINE void block(const place *p, int64_t k, int64_t last, const int rows, const int vectors, const bool part) {
    lanes sum[ROWS][VECTORS];
    const float *a = p->a, *b = p->b;
    const int64_t a_row = p->a_row, a_column = p->a_column;
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) {
        const float *at = p->c + r * p->c_stride + v * W;
        sum[r][v] = !p->add ? splat(0) : part && v == vectors - 1 ? load_some(at, last) : load(at);
    }
    for (int64_t l = 0; l < k; l++, a += a_column, b += p->b_stride) {
        lanes x[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) x[v] =
            part && v == vectors - 1 ? load_some(b + v * W, last) : load(b + v * W);
        UNROLL for (int r = 0; r < rows; r++) {
            const lanes factor = splat(a[r * a_row]);
            UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(factor, x[v], sum[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) {
        float *at = p->c + r * p->c_stride + v * W;
        if (part && v == vectors - 1)
            store_some(at, sum[r][v], last);
        else
            store(at, sum[r][v]);
    }
}

INLINE void block_of(const place *p, int64_t k, int64_t last, int64_t rows, const int vectors, const bool part) {
    switch (rows) {
    case 1:
        block(p, k, last, 1, vectors, part);
        break;
    case 2:
        block(p, k, last, 2, vectors, part);
        break;
    case 3:
        block(p, k, last, 3, vectors, part);
        break;
    case 4:
        block(p, k, last, 4, vectors, part);
        break;
    case 5:
        block(p, k, last, 5, vectors, part);
        break;
    default:
        block(p, k, last, ROWS, vectors, part);
    }
}

/* c[rows, columns] of columns <= PANEL */
static void panel(const place *p, int64_t rows, int64_t columns, int64_t k) {
    const int64_t last = (columns - 1) % W + 1;
    switch ((columns - 1) / W + (last == W ? 0 : VECTORS)) {
    case 0:
        block_of(p, k, W, rows, 1, false);
        break;
    case VECTORS:
        block_of(p, k, last, rows, 1, true);
        break;
    case 1:
        block_of(p, k, W, rows, 2, false);
        break;
    case VECTORS + 1:
        block_of(p, k, last, rows, 2, true);
        break;
#if LN_TILE_VECTORS > 2
    case 2:
        block_of(p, k, W, rows, 3, false);
        break;
    case VECTORS + 2:
        block_of(p, k, last, rows, 3, true);
        break;
    case 3:
        block_of(p, k, W, rows, 4, false);
        break;
    case VECTORS + 3:
        block_of(p, k, last, rows, 4, true);
        break;
#endif
    }
}

/* What of a is not zero: all, k up to the row, or from the row on. */
typedef enum shape { WHOLE, LOWER, UPPER } shape;

static void products(place p, int64_t m, int64_t n, int64_t k, shape of) {
    for (int64_t j = 0; j < n; j += PANEL)
        for (int64_t i = 0; i < m; i += ROWS) {
            const int64_t rows = ln_min_i64(ROWS, m - i), begin = of == UPPER ? i : 0,
                          end = of == LOWER ? ln_min_i64(k, i + rows) : k;
            const place at = {p.c + i * p.c_stride + j,
                              p.c_stride,
                              p.a + i * p.a_row + begin * p.a_column,
                              p.a_row,
                              p.a_column,
                              p.b + begin * p.b_stride + j,
                              p.b_stride,
                              p.add};
            panel(&at, rows, ln_min_i64(PANEL, n - j), end - begin);
        }
}

static void product(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                    int64_t m, int64_t n, int64_t k, bool add) {
    products((place){c, c_stride, a, a_stride, 1, b, b_stride, add}, m, n, k, WHOLE);
}
static void product_ta(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    products((place){c, c_stride, a, 1, a_stride, b, b_stride, add}, m, n, k, WHOLE);
}
static void lower(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                  int64_t m, int64_t n, bool add) {
    products((place){c, c_stride, a, a_stride, 1, b, b_stride, add}, m, n, m, LOWER);
}
static void lower_ta(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t n, bool add) {
    products((place){c, c_stride, a, 1, a_stride, b, b_stride, add}, m, n, m, UPPER);
}

/* to[l][j] = b[j][l] of n <= PANEL rows; vectors beyond are zeros to their end. */
static void turn(float *to, const float *b, int64_t b_stride, int64_t n, int64_t k) {
    for (int64_t j = 0; j < n; j += W)
        for (int64_t l = 0; l < k; l += W) {
            lanes x[W];
            const int64_t some = ln_min_i64(W, k - l);
            const float *at = b + j * b_stride + l;
            if (n - j >= W && some == W) {
                UNROLL for (int i = 0; i < W; i++) x[i] = load(at + i * b_stride);
            } else {
                for (int i = 0; i < W; i++) x[i] = j + i < n ? load_some(at + i * b_stride, some) : splat(0);
            }
            transpose_lanes(x);
            UNROLL for (int i = 0; i < W; i++) store(to + (l + i) * PANEL + j, x[i]);
        }
}

static void products_tb(place p, int64_t m, int64_t n, int64_t k, shape of) {
    _Alignas(64) float turned[DEPTH * PANEL];
    const bool add = p.add;
    for (int64_t j = 0; j < n; j += PANEL)
        for (int64_t l = 0; l == 0 || l < k; l += DEPTH) {
            const int64_t columns = ln_min_i64(PANEL, n - j), depth = ln_min_i64(DEPTH, k - l);
            turn(turned, p.b + j * p.b_stride + l, p.b_stride, columns, depth);
            for (int64_t i = of == LOWER ? j / ROWS * ROWS : 0; i < m; i += ROWS) {
                const int64_t rows = ln_min_i64(ROWS, m - i),
                              some = of == LOWER ? ln_min_i64(columns, i + rows - j) : columns;
                const place at = {p.c + i * p.c_stride + j,
                                  p.c_stride,
                                  p.a + i * p.a_row + l,
                                  p.a_row,
                                  1,
                                  turned,
                                  PANEL,
                                  add || l > 0};
                panel(&at, rows, some, depth);
            }
        }
}

static void product_tb(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    products_tb((place){c, c_stride, a, a_stride, 1, b, b_stride, add}, m, n, k, WHOLE);
}
static void lower_tb(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t k) {
    products_tb((place){c, c_stride, a, a_stride, 1, b, b_stride, false}, m, m, k, LOWER);
}

/* ---- rows and columns of factors ---- */

static void decay_lower(float *a, int64_t stride, const double *rows, const double *columns, float factor, bool strict,
                        int64_t m) {
    const lanes all = splat(factor);
    for (int64_t i = 0; i < m; i++) {
        const int64_t end = strict ? i : i + 1;
        float *row = a + i * stride;
        for (int64_t j = 0; j < end; j += W) {
            const int64_t some = ln_min_i64(W, end - j);
            const lanes decay = rows ? multiply(all, exponential_of(differences(rows[i], columns + j, some))) : all;
            store_some(row + j, multiply(load_some(row + j, some), decay), some);
        }
        if (end < m) memset(row + end, 0, (size_t)(m - end) * sizeof *row);
    }
}

/* One vector of each row, of n lanes. */
#define EACH(DO)                                               \
    do {                                                       \
        for (int64_t i = 0; i < m; i++) {                      \
            int64_t j = 0;                                     \
            for (; j + W <= n; j += W) DO(load, store, );      \
            if (j < n) DO(load_some, store_some, COMMA n - j); \
        }                                                      \
    } while (0)
#define COMMA ,
#define AT(x) x + i *x##_stride + j

static void scale_rows(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                       int64_t n) {
#define DO(LOAD, STORE, SOME) STORE(AT(c), multiply(splat(factors[i]), LOAD(AT(a) SOME)) SOME)
    EACH(DO);
#undef DO
}
static void scale_columns(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                          int64_t n) {
#define DO(LOAD, STORE, SOME) STORE(AT(c), multiply(LOAD(factors + j SOME), LOAD(AT(a) SOME)) SOME)
    EACH(DO);
#undef DO
}
static void multiply_tiles(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b,
                           int64_t b_stride, int64_t m, int64_t n) {
#define DO(LOAD, STORE, SOME) STORE(AT(c), multiply(LOAD(AT(b) SOME), LOAD(AT(a) SOME)) SOME)
    EACH(DO);
#undef DO
}

/* ---- pairs of a block under decays of columns ---- */

/* The lanes are columns; n of them. */
INLINE void read_columns(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *y,
                         const float *factors, int64_t stride, const int m, int64_t n, const bool before) {
    lanes decayed[BLOCK];
    UNROLL for (int i = 0; i < BLOCK; i++) decayed[i] = splat(0);
    UNROLL for (int i = 0; i < BLOCK; i++) {
        if (i >= m) continue;
        lanes sum = load_some(z + i * z_stride, n);
        const lanes factor = load_some(factors + i * stride, n);
        if (before)
            UNROLL for (int j = 0; j < BLOCK; j++) if (j < i) sum =
                multiply_add(splat(a[i * a_stride + j]), decayed[j], sum);
        UNROLL for (int j = 0; j < BLOCK; j++) if (j < i) decayed[j] = multiply(decayed[j], factor);
        decayed[i] = load_some(y + i * stride, n);
        if (!before)
            UNROLL for (int j = 0; j < BLOCK; j++) if (j <= i) sum =
                multiply_add(splat(a[i * a_stride + j]), decayed[j], sum);
        store_some(z + i * z_stride, sum, n);
    }
}

/* From the last row to the first: decayed[i] is x[i] decayed to just after row j. */
INLINE void write_columns(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *x,
                          const float *factors, int64_t stride, const int m, int64_t n, const bool before) {
    lanes decayed[BLOCK];
    UNROLL for (int i = 0; i < BLOCK; i++) decayed[i] = splat(0);
    UNROLL for (int back = 0; back < BLOCK; back++) {
        const int j = BLOCK - 1 - back;
        if (j >= m) continue;
        lanes sum = load_some(z + j * z_stride, n);
        const lanes factor = j + 1 < m ? load_some(factors + (j + 1) * stride, n) : splat(1);
        UNROLL for (int i = 0; i < BLOCK; i++) if (i < m && i > j + before) decayed[i] = multiply(decayed[i], factor);
        decayed[j] = load_some(x + j * stride, n);
        UNROLL for (int i = 0; i < BLOCK; i++) if (i < m && i >= j + before) sum =
            multiply_add(splat(a[i * a_stride + j]), decayed[i], sum);
        store_some(z + j * z_stride, sum, n);
    }
}

#define COLUMNS(NAME, OF)                                                                          \
    static void NAME(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *x, \
                     const float *factors, int64_t stride, int64_t m, int64_t n, bool before) {    \
        for (int64_t c = 0; c < n; c += W) {                                                       \
            const int64_t some = ln_min_i64(W, n - c);                                             \
            if (before)                                                                            \
                OF(z + c, z_stride, a, a_stride, x + c, factors + c, stride, (int)m, some, true);  \
            else if (m == BLOCK)                                                                   \
                OF(z + c, z_stride, a, a_stride, x + c, factors + c, stride, BLOCK, some, false);  \
            else                                                                                   \
                OF(z + c, z_stride, a, a_stride, x + c, factors + c, stride, (int)m, some, false); \
        }                                                                                          \
    }
COLUMNS(block_read, read_columns)
COLUMNS(block_write, write_columns)

/* The lanes are the rows of y, column after column. Sums of pairs above the diagonal are made too, of values not
 * decayed, and thrown away. */
INLINE void score_columns(lanes sum[BLOCK][BLOCK / W], const float (*y)[BLOCK], const float (*x)[BLOCK],
                          const float (*factors)[BLOCK], const bool before) {
    for (int c = 0; c < BLOCK; c++) {
        lanes decayed[BLOCK / W];
        UNROLL for (int v = 0; v < BLOCK / W; v++) decayed[v] = load(&y[c][v * W]);
        UNROLL for (int i = 0; i < BLOCK; i++) {
            const lanes reader = splat(x[i][c]), factor = splat(factors[i][c]);
            if (before)
                UNROLL for (int v = 0; v < BLOCK / W; v++) sum[i][v] = multiply_add(reader, decayed[v], sum[i][v]);
            UNROLL for (int v = 0; v < BLOCK / W; v++) decayed[v] = multiply_first(decayed[v], factor, i - v * W);
            if (!before)
                UNROLL for (int v = 0; v < BLOCK / W; v++) sum[i][v] = multiply_add(reader, decayed[v], sum[i][v]);
        }
    }
}

static void block_scores(float *a, int64_t a_stride, const float *x, const float *y, const float *factors,
                         int64_t stride, int64_t m, int64_t n, bool before) {
    _Alignas(64) float xs[BLOCK][BLOCK], fs[BLOCK][BLOCK], ys[BLOCK][BLOCK];
    lanes sum[BLOCK][BLOCK / W];
    UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int v = 0; v < BLOCK / W; v++) sum[i][v] = splat(0);
    memset(xs, 0, sizeof xs);
    memset(fs, 0, sizeof fs);
    for (int64_t c = 0; c < n; c += BLOCK) {
        for (int v = 0; v < BLOCK / W; v++) {
            const int64_t left = n - c - v * W, some = left < 0 ? 0 : ln_min_i64(W, left);
            for (int64_t i = 0; i < m; i++) {
                const int64_t at = i * stride + c + v * W;
                store(&xs[i][v * W], some ? load_some(x + at, some) : splat(0));
                store(&fs[i][v * W], some ? load_some(factors + at, some) : splat(0));
            }
            for (int u = 0; u < BLOCK / W; u++) {
                lanes t[W];
                UNROLL for (int i = 0; i < W; i++) t[i] =
                    some && u * W + i < m ? load_some(y + (u * W + i) * stride + c + v * W, some) : splat(0);
                transpose_lanes(t);
                UNROLL for (int i = 0; i < W; i++) store(&ys[v * W + i][u * W], t[i]);
            }
        }
        if (before)
            score_columns(sum, (const float(*)[BLOCK])ys, (const float(*)[BLOCK])xs, (const float(*)[BLOCK])fs, true);
        else
            score_columns(sum, (const float(*)[BLOCK])ys, (const float(*)[BLOCK])xs, (const float(*)[BLOCK])fs, false);
    }
    for (int i = 0; i < BLOCK; i++)
        for (int v = 0; v < BLOCK / W; v++) store(&xs[i][v * W], sum[i][v]);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) a[i * a_stride + j] = j < i + !before ? xs[i][j] : 0;
}

INLINE void decay_columns(float *factors, float *prefix, float *suffix, float *whole, const float *g, int64_t stride,
                          int64_t m, int64_t n, bool before) {
    lanes sum = splat(0);
    for (int64_t i = 0; i < m; i++) {
        const lanes gate = load_some(g + i * stride, n);
        if (before) store_some(prefix + i * stride, exponential_of(sum), n);
        sum = add(sum, gate);
        if (!before) store_some(prefix + i * stride, exponential_of(sum), n);
        store_some(factors + i * stride, exponential_of(gate), n);
    }
    store_some(whole, exponential_of(sum), n);
    sum = splat(0);
    for (int64_t i = m - 1; i >= 0; i--) {
        store_some(suffix + i * stride, exponential_of(sum), n);
        sum = add(sum, load_some(g + i * stride, n));
    }
}

static void block_decays(float *factors, float *prefix, float *suffix, float *whole, const float *g, int64_t stride,
                         int64_t m, int64_t n, bool before) {
    for (int64_t c = 0; c < n; c += W)
        decay_columns(factors + c, prefix + c, suffix + c, whole + c, g + c, stride, m, ln_min_i64(W, n - c), before);
}

/* ---- one token ---- */

enum { ACROSS = 8 };

INLINE void step_columns(const ln_tile_step *s, int64_t column, const int vectors, int64_t last, const bool part,
                         const bool by_row, const bool by_column, const bool before) {
    lanes sum[ACROSS], value[ACROSS];
    UNROLL for (int v = 0; v < vectors; v++) {
        const float *at = s->value + column + v * W;
        sum[v] = splat(0);
        value[v] = part && v == vectors - 1 ? load_some(at, last) : load(at);
    }
    const float *in = s->in + column;
    float *out = s->out + column;
    for (int64_t r = 0; r < s->features; r++, in += s->stride, out += s->stride) {
        const lanes key = splat(s->key[r]), query = splat(s->query[r]);
        const lanes decay = by_row ? splat(s->rows[r]) : key, own = before ? splat(s->bonus[r] * s->key[r]) : key;
        UNROLL for (int v = 0; v < vectors; v++) {
            const bool some = part && v == vectors - 1;
            const lanes old = some ? load_some(in + v * W, last) : load(in + v * W);
            lanes kept = by_row ? multiply(decay, old) : old;
            if (by_column) {
                const float *at = s->columns_decay + column + v * W;
                kept = multiply(kept, some ? load_some(at, last) : load(at));
            }
            kept = multiply_add(key, value[v], kept);
            sum[v] = multiply_add(query, before ? multiply_add(own, value[v], old) : kept, sum[v]);
            if (some)
                store_some(out + v * W, kept, last);
            else
                store(out + v * W, kept);
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        const lanes scaled = multiply(splat(s->scale), sum[v]);
        if (part && v == vectors - 1)
            store_some(s->sums + column + v * W, scaled, last);
        else
            store(s->sums + column + v * W, scaled);
    }
}

INLINE void step_all(const ln_tile_step *s, const bool by_row, const bool by_column, const bool before) {
    int64_t c = 0;
    for (; c + ACROSS * W <= s->columns; c += ACROSS * W)
        step_columns(s, c, ACROSS, W, false, by_row, by_column, before);
    for (; c + W <= s->columns; c += W) step_columns(s, c, 1, W, false, by_row, by_column, before);
    if (c < s->columns) step_columns(s, c, 1, s->columns - c, true, by_row, by_column, before);
}

static void step_outer(const ln_tile_step *given) {
    ln_tile_step s = *given;
    if (!s.in) {
        for (int64_t r = 0; r < s.features; r++) memset(s.out + r * s.stride, 0, (size_t)s.columns * sizeof *s.out);
        s.in = s.out;
    }
    if (s.bonus && s.rows && !s.columns_decay)
        step_all(&s, true, false, true);
    else if (s.bonus)
        step_all(&s, s.rows, s.columns_decay, true);
    else if (s.columns_decay)
        step_all(&s, s.rows, true, false);
    else if (s.rows)
        step_all(&s, true, false, false);
    else
        step_all(&s, false, false, false);
}

LN_TILE_SET {
    *kernels = (ln_tile_kernels){.name = LN_TILE_NAME,
                                 .product = product,
                                 .product_ta = product_ta,
                                 .product_tb = product_tb,
                                 .lower = lower,
                                 .lower_ta = lower_ta,
                                 .lower_tb = lower_tb,
                                 .decay_lower = decay_lower,
                                 .scale_rows = scale_rows,
                                 .scale_columns = scale_columns,
                                 .multiply = multiply_tiles,
                                 .block_scores = block_scores,
                                 .block_read = block_read,
                                 .block_write = block_write,
                                 .block_decays = block_decays,
                                 .step_outer = step_outer};
}
