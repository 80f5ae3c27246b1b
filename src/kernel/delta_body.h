/* The bodies of the delta kernels, written once and compiled for each instruction set by including this file
 * (delta.c, x86/delta_*.c) after lanes_*.h and
 *
 *   lanes_mask, lanes_below (n)       which lanes are before n, for n in any relation to 0 and W
 *   multiply_where (mask, a, b)       a b there, a elsewhere
 *   turn_keys (to, key, n, columns)   to[c, j] = key[j, c], 16 j, 0 from n on
 *   LN_DELTA_NAME, LN_DELTA_SET */
#include <string.h>

#include "kernel/delta.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { BLOCK = LN_DELTA_BLOCK, PARTS = BLOCK / W, MOST = W == 16 ? 8 : 4 /* vectors of a row at once */ };

INLINE lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
INLINE void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}

/* ---- one token ---- */

/* Two passes over `vectors` vectors of columns, the second from the last row back: what the first read last is still
 * in the nearest cache. */
INLINE void step_columns(const ln_delta_step *s, int64_t column, int vectors, bool second, bool keep) {
    const int64_t rows = s->rows, from = s->before_stride, to = s->after_stride;
    const float *const before = s->before + column, *const read = s->read, *const decay = s->decay, *const key = s->key,
                       *const query = s->query, *const write_key = s->write_key;
    float *const after = keep ? s->after + column : NULL;
    lanes y[MOST], out[MOST], value[MOST];
    UNROLL for (int v = 0; v < vectors; v++) {
        y[v] = s->add ? load(s->add + column + v * W) : splat(0);
        out[v] = splat(0);
        value[v] = second ? load(s->write_value + column + v * W) : splat(0);
    }
    for (int64_t k = 0; k < rows; k++) {
        const lanes a = splat(read[k]);
        UNROLL for (int v = 0; v < vectors; v++) y[v] = multiply_add(a, load(before + k * from + v * W), y[v]);
    }
    for (int64_t k = rows - 1; k >= 0; k--) {
        const lanes d = splat(decay[k]), kk = splat(key[k]), q = splat(query[k]);
        const lanes w = splat(second ? write_key[k] : 0);
        UNROLL for (int v = 0; v < vectors; v++) {
            lanes x = multiply_add(kk, y[v], multiply(d, load(before + k * from + v * W)));
            if (second) x = multiply_add(w, value[v], x);
            out[v] = multiply_add(q, x, out[v]);
            if (keep) store(after + k * to + v * W, x);
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) store(s->output + column + v * W, out[v]);
}

INLINE void step_form(const ln_delta_step *s, bool second, bool keep) {
    int64_t column = 0;
    for (; column + MOST * W <= s->columns; column += MOST * W) step_columns(s, column, MOST, second, keep);
    if (MOST > 4)
        for (; column + 4 * W <= s->columns; column += 4 * W) step_columns(s, column, 4, second, keep);
    for (; column < s->columns; column += W) step_columns(s, column, 1, second, keep);
}

static void step(const ln_delta_step *s) {
    if (s->write_key && s->after)
        step_form(s, true, true);
    else if (s->write_key)
        step_form(s, true, false);
    else if (s->after)
        step_form(s, false, true);
    else
        step_form(s, false, false);
}

/* ---- triangles ---- */

static void solve(float *y, int64_t y_stride, const float *a, int64_t a_stride, int64_t n, int64_t columns) {
    for (int64_t column = 0; column < columns; column += W) {
        if (n == BLOCK) {
            lanes x[BLOCK];
            UNROLL for (int i = 0; i < BLOCK; i++) x[i] = load(y + i * y_stride + column);
            UNROLL for (int j = 0; j < BLOCK; j++) {
                UNROLL for (int i = 1; i < BLOCK; i++) if (i > j) x[i] =
                    multiply_add(splat(a[i * a_stride + j]), x[j], x[i]);
            }
            UNROLL for (int i = 0; i < BLOCK; i++) store(y + i * y_stride + column, x[i]);
            continue;
        }
        for (int64_t i = 1; i < n; i++) {
            lanes x = load(y + i * y_stride + column);
            for (int64_t j = 0; j < i; j++)
                x = multiply_add(splat(a[i * a_stride + j]), load(y + j * y_stride + column), x);
            store(y + i * y_stride + column, x);
        }
    }
}

static void solve_transposed(float *y, int64_t y_stride, const float *a, int64_t a_stride, int64_t n, int64_t columns) {
    for (int64_t column = 0; column < columns; column += W)
        for (int64_t j = n - 2; j >= 0; j--) {
            lanes x = load(y + j * y_stride + column);
            for (int64_t i = j + 1; i < n; i++)
                x = multiply_add(splat(a[i * a_stride + j]), load(y + i * y_stride + column), x);
            store(y + j * y_stride + column, x);
        }
}

/* ---- decays ---- */

static void multiply_rows(float *y, const float *x, const float *z, int64_t z_stride, const float *factor, int64_t rows,
                          int64_t columns) {
    for (int64_t i = 0; i < rows; i++, x += columns, y += columns) {
        const lanes f = splat(factor ? factor[i] : 1);
        if (z)
            for (int64_t c = 0; c < columns; c += W)
                store(y + c, multiply(multiply(f, load(x + c)), load(z + i * z_stride + c)));
        else
            for (int64_t c = 0; c < columns; c += W) store(y + c, multiply(f, load(x + c)));
    }
}

/* Products of decays below this are 0: what follows would be denormal, which is slow, and is nothing beside what is
 * remembered. */
static const float nothing = 0x1p-100f;

static void mask(float *read, float *query, int64_t stride, const float *decay, int64_t n, int64_t micro,
                 int64_t columns, float *after, float *before, float *upto) {
    float product = 1;
    memset(after, 0, (size_t)columns * sizeof *after);
    for (int64_t i = 0; i < n; i++) {
        const int64_t filled = (i + W) / W * W; /* i or more, i + 1 or more with the query's */
        float *row = read + i * stride;
        for (int64_t j = 0; j < filled && j < columns; j += W) {
            store(row + j, multiply(load(row + j), load(after + j)));
            float some[W];
            store(some, multiply(splat(decay[i]), load(after + j)));
            for (int l = 0; l < W; l++) after[j + l] = some[l] < nothing ? 0 : some[l];
        }
        memset(row + i, 0, (size_t)(columns - i) * sizeof *row);
        after[i] = 1;
        before[i] = product;
        product = product * decay[i] < nothing ? 0 : product * decay[i];
        upto[i] = product;
        if (i % micro != micro - 1) continue;
        row = query + i / micro * stride;
        for (int64_t j = 0; j < filled && j < columns; j += W) store(row + j, multiply(load(row + j), load(after + j)));
        memset(row + i + 1, 0, (size_t)(columns - i - 1) * sizeof *row);
    }
}

static void gates(const ln_delta_gates *g) {
    const int64_t columns = g->columns;
    for (int64_t c = 0; c < columns; c += W) {
        const lanes prefix = load(g->prefix + c);
        lanes product = splat(1);
        for (int64_t i = 0; i < g->tokens; i++) {
            const int64_t at = i * columns + c;
            const lanes read = multiply(product, load(g->read + at));
            store(g->read_in + at, read);
            store(g->read_all + at, multiply(prefix, read));
            product = multiply(product, load(g->decay + at));
            const lanes query = multiply(product, load(g->query + at));
            store(g->query_in + at, query);
            store(g->query_all + at, multiply(prefix, query));
        }
        store(g->block + c, product);
        store(g->prefix + c, multiply(prefix, product));
        product = splat(1);
        for (int64_t i = g->tokens - 1; i >= 0; i--) {
            const int64_t at = i * columns + c;
            store(g->key + at, multiply(product, load(g->key + at)));
            if (g->write_key) store(g->write_key + at, multiply(product, load(g->write_key + at)));
            product = multiply(product, load(g->decay + at));
        }
    }
}

/* The keys of a column lie a lane each and are decayed as the rows go by; sums of HALF rows stay in registers, and what
 * the keys have become is kept for the other half. */
enum { HALF = W == 16 ? 8 : W == 8 ? 2 : 1 };

INLINE void pairs_rows(float *read_a, float *query_a, int64_t stride, const float *read, const float *query,
                       const float *decay, const int i, int64_t columns, float *keys) {
    lanes r[HALF][PARTS], q[HALF][PARTS];
    lanes_mask below[HALF][PARTS];
    UNROLL for (int h = 0; h < HALF; h++) UNROLL for (int p = 0; p < PARTS; p++) {
        below[h][p] = lanes_below(i + h - p * W);
        r[h][p] = q[h][p] = splat(0);
    }
    for (int64_t c = 0; c < columns; c++) UNROLL for (int p = 0; p < PARTS; p++) {
            lanes k = load(keys + c * BLOCK + p * W);
            UNROLL for (int h = 0; h < HALF; h++) {
                const int64_t at = (i + h) * columns + c;
                r[h][p] = multiply_add(splat(read[at]), k, r[h][p]);
                k = multiply_where(below[h][p], k, splat(decay[at]));
                q[h][p] = multiply_add(splat(query[at]), k, q[h][p]);
            }
            store(keys + c * BLOCK + p * W, k);
        }
    UNROLL for (int h = 0; h < HALF; h++) {
        float *const to_read = read_a + (i + h) * stride, *const to_query = query_a + (i + h) * stride;
        UNROLL for (int p = 0; p < PARTS; p++) {
            store(to_read + p * W, r[h][p]);
            store(to_query + p * W, q[h][p]);
        }
        for (int64_t j = i + h; j < BLOCK; j++) {
            to_read[j] = 0;
            if (j > i + h) to_query[j] = 0;
        }
    }
}

/* One row, as the last ones of a short block. */
static void pairs_row(float *read_a, float *query_a, const float *read, const float *query, const float *decay,
                      int64_t i, int64_t columns, float *keys) {
    float r[BLOCK] = {0}, q[BLOCK] = {0};
    for (int64_t c = 0; c < columns; c++)
        for (int64_t j = 0; j <= i; j++) {
            float *k = keys + c * BLOCK + j;
            r[j] += read[c] * *k;
            if (j < i) *k *= decay[c];
            q[j] += query[c] * *k;
        }
    r[i] = 0;
    memcpy(read_a, r, sizeof r);
    memcpy(query_a, q, sizeof q);
}

static void pairs(float *read_a, float *query_a, int64_t stride, const float *read, const float *query,
                  const float *key, const float *decay, int64_t n, int64_t columns, float *scratch) {
    int64_t i = 0;
    turn_keys(scratch, key, n, columns);
    for (; i + HALF <= n; i += HALF) pairs_rows(read_a, query_a, stride, read, query, decay, (int)i, columns, scratch);
    for (; i < n; i++)
        pairs_row(read_a + i * stride, query_a + i * stride, read + i * columns, query + i * columns,
                  decay + i * columns, i, columns, scratch);
}

static void pairs_gradient(const ln_delta_pairs *p) {
    for (int64_t c = 0; c < p->columns; c += W) {
        lanes key[BLOCK], key_gradient[BLOCK];
        for (int64_t j = 0; j < p->n; j++) {
            key[j] = load(p->key + j * p->columns + c);
            key_gradient[j] = load(p->key_gradient + j * p->columns + c);
        }
        for (int64_t i = 0; i < p->n; i++) {
            const int64_t at = i * p->columns + c;
            const float *da = p->read_a + i * p->stride, *db = p->query_a + i * p->stride;
            const lanes decay = load(p->decay + at), read = load(p->read + at), query = load(p->query + at);
            const lanes late = multiply(decay, query);
            lanes between = splat(1), dr = splat(0), dq = splat(0);
            for (int64_t j = i - 1; j >= 0; j--) {
                const lanes a = splat(da[j]), b = splat(db[j]), k = multiply(between, key[j]);
                dr = multiply_add(a, k, dr);
                dq = multiply_add(b, k, dq);
                key_gradient[j] = multiply_add(between, multiply_add(a, read, multiply(b, late)), key_gradient[j]);
                between = multiply(between, load(p->decay + j * p->columns + c));
            }
            const lanes own = splat(db[i]);
            dq = multiply_add(own, key[i], multiply(decay, dq));
            key_gradient[i] = multiply_add(own, query, key_gradient[i]);
            store(p->read_gradient + at, add(load(p->read_gradient + at), dr));
            store(p->query_gradient + at, add(load(p->query_gradient + at), dq));
        }
        for (int64_t j = 0; j < p->n; j++) store(p->key_gradient + j * p->columns + c, key_gradient[j]);
    }
}

LN_DELTA_SET {
    *kernels = (ln_delta_kernels){.name = LN_DELTA_NAME,
                                  .step = step,
                                  .solve = solve,
                                  .solve_transposed = solve_transposed,
                                  .multiply = multiply_rows,
                                  .mask = mask,
                                  .gates = gates,
                                  .pairs = pairs,
                                  .pairs_gradient = pairs_gradient};
}
