/* Owns: portable tile kernels, and choosing among instruction sets. */
#include "kernel/tile.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"

/* ---- products: rows of c stay in the first cache while rows of b are added to them ---- */

static void rows_product(float *c, int64_t c_stride, const float *a, int64_t a_row, int64_t a_column, const float *b,
                         int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add) {
    for (int64_t i = 0; i < m; i++) {
        float *row = c + i * c_stride;
        if (!add) memset(row, 0, (size_t)n * sizeof *row);
        for (int64_t l = 0; l < k; l++) {
            const float factor = a[i * a_row + l * a_column], *from = b + l * b_stride;
            for (int64_t j = 0; j < n; j++) row[j] += factor * from[j];
        }
    }
}

static void product(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                    int64_t m, int64_t n, int64_t k, bool add) {
    rows_product(c, c_stride, a, a_stride, 1, b, b_stride, m, n, k, add);
}
static void product_ta(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    rows_product(c, c_stride, a, 1, a_stride, b, b_stride, m, n, k, add);
}
static void product_tb(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = add ? c[i * c_stride + j] : 0;
            for (int64_t l = 0; l < k; l++) sum += a[i * a_stride + l] * b[j * b_stride + l];
            c[i * c_stride + j] = sum;
        }
}

static void lower(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                  int64_t m, int64_t n, bool add) {
    for (int64_t i = 0; i < m; i += LN_TILE_BLOCK) {
        const int64_t rows = ln_min_i64(LN_TILE_BLOCK, m - i);
        product(c + i * c_stride, c_stride, a + i * a_stride, a_stride, b, b_stride, rows, n, i + rows, add);
    }
}
static void lower_ta(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t n, bool add) {
    for (int64_t i = 0; i < m; i += LN_TILE_BLOCK)
        product_ta(c + i * c_stride, c_stride, a + i * a_stride + i, a_stride, b + i * b_stride, b_stride,
                   ln_min_i64(LN_TILE_BLOCK, m - i), n, m - i, add);
}
static void lower_tb(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t k) {
    for (int64_t i = 0; i < m; i += LN_TILE_BLOCK) {
        const int64_t rows = ln_min_i64(LN_TILE_BLOCK, m - i);
        product_tb(c + i * c_stride, c_stride, a + i * a_stride, a_stride, b, b_stride, rows, i + rows, k, false);
    }
}

/* ---- decays ---- */

static float decay_of(float x) {
    return x < LN_TILE_LEAST ? 0 : expf(x);
}

static void decay_lower(float *a, int64_t stride, const double *rows, const double *columns, float factor, bool strict,
                        int64_t m) {
    for (int64_t i = 0; i < m; i++) {
        const int64_t end = strict ? i : i + 1;
        float *row = a + i * stride;
        for (int64_t j = 0; j < end; j++) row[j] *= rows ? factor * decay_of((float)(rows[i] - columns[j])) : factor;
        for (int64_t j = end; j < m; j++) row[j] = 0;
    }
}

static void scale_rows(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                       int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * c_stride + j] = factors[i] * a[i * a_stride + j];
}
static void scale_columns(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *factors, int64_t m,
                          int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * c_stride + j] = factors[j] * a[i * a_stride + j];
}
static void multiply(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                     int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * c_stride + j] = b[i * b_stride + j] * a[i * a_stride + j];
}

static void block_scores(float *a, int64_t a_stride, const float *x, const float *y, const float *factors,
                         int64_t stride, int64_t m, int64_t n, bool before) {
    float decayed[LN_TILE_BLOCK];
    for (int64_t i = 0; i < m; i++) memset(a + i * a_stride, 0, (size_t)m * sizeof *a);
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < m; i++) {
            const int64_t end = before ? i : i + 1;
            if (before)
                for (int64_t j = 0; j < end; j++) a[i * a_stride + j] += x[i * stride + c] * decayed[j];
            for (int64_t j = 0; j < i; j++) decayed[j] *= factors[i * stride + c];
            decayed[i] = y[i * stride + c];
            if (!before)
                for (int64_t j = 0; j < end; j++) a[i * a_stride + j] += x[i * stride + c] * decayed[j];
        }
}

static void block_read(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *y,
                       const float *factors, int64_t stride, int64_t m, int64_t n, bool before) {
    float decayed[LN_TILE_BLOCK];
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < m; i++) {
            float sum = z[i * z_stride + c];
            if (before)
                for (int64_t j = 0; j < i; j++) sum += a[i * a_stride + j] * decayed[j];
            for (int64_t j = 0; j < i; j++) decayed[j] *= factors[i * stride + c];
            decayed[i] = y[i * stride + c];
            if (!before)
                for (int64_t j = 0; j <= i; j++) sum += a[i * a_stride + j] * decayed[j];
            z[i * z_stride + c] = sum;
        }
}

/* From the last row to the first: decayed[i] is x[i] decayed to just after row j. */
static void block_write(float *z, int64_t z_stride, const float *a, int64_t a_stride, const float *x,
                        const float *factors, int64_t stride, int64_t m, int64_t n, bool before) {
    float decayed[LN_TILE_BLOCK];
    for (int64_t c = 0; c < n; c++)
        for (int64_t j = m - 1; j >= 0; j--) {
            if (j + 1 < m)
                for (int64_t i = before ? j + 2 : j + 1; i < m; i++) decayed[i] *= factors[(j + 1) * stride + c];
            decayed[j] = x[j * stride + c];
            float sum = z[j * z_stride + c];
            for (int64_t i = before ? j + 1 : j; i < m; i++) sum += a[i * a_stride + j] * decayed[i];
            z[j * z_stride + c] = sum;
        }
}

static void block_decays(float *factors, float *prefix, float *suffix, float *whole, const float *g, int64_t stride,
                         int64_t m, int64_t n, bool before) {
    for (int64_t c = 0; c < n; c++) {
        float sum = 0;
        for (int64_t i = 0; i < m; i++) {
            const float gate = g[i * stride + c];
            if (before) prefix[i * stride + c] = decay_of(sum);
            sum += gate;
            if (!before) prefix[i * stride + c] = decay_of(sum);
            factors[i * stride + c] = decay_of(gate);
        }
        whole[c] = decay_of(sum);
        sum = 0;
        for (int64_t i = m - 1; i >= 0; i--) {
            suffix[i * stride + c] = decay_of(sum);
            sum += g[i * stride + c];
        }
    }
}

/* ---- one token ---- */

static void step_outer(const ln_tile_step *s) {
    memset(s->sums, 0, (size_t)s->columns * sizeof *s->sums);
    for (int64_t r = 0; r < s->features; r++) {
        const float decay = s->rows ? s->rows[r] : 1, key = s->key[r], query = s->scale * s->query[r];
        const float own = s->bonus ? s->bonus[r] * key : 0;
        float *out = s->out + r * s->stride;
        for (int64_t c = 0; c < s->columns; c++) {
            const float old = s->in ? s->in[r * s->stride + c] : 0;
            const float kept = decay * old * (s->columns_decay ? s->columns_decay[c] : 1) + key * s->value[c];
            s->sums[c] += query * (s->bonus ? old + own * s->value[c] : kept);
            out[c] = kept;
        }
    }
}

void ln_tile_fill_portable(ln_tile_kernels *kernels) {
    *kernels = (ln_tile_kernels){.name = "tile__portable",
                                 .product = product,
                                 .product_ta = product_ta,
                                 .product_tb = product_tb,
                                 .lower = lower,
                                 .lower_ta = lower_ta,
                                 .lower_tb = lower_tb,
                                 .decay_lower = decay_lower,
                                 .scale_rows = scale_rows,
                                 .scale_columns = scale_columns,
                                 .multiply = multiply,
                                 .block_scores = block_scores,
                                 .block_read = block_read,
                                 .block_write = block_write,
                                 .block_decays = block_decays,
                                 .step_outer = step_outer};
}

void ln_tile_choose(unsigned cpu, ln_tile_kernels *kernels) {
    (void)cpu;
    ln_tile_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_tile_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_tile_fill_avx512(kernels);
    if (cpu & LN_CPU_AVX512_BF16) ln_tile_fill_avx512bf16(kernels);
    if (cpu & LN_CPU_AMX_BF16) ln_tile_fill_amx(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_tile_fill_neon(kernels);
#endif
}
