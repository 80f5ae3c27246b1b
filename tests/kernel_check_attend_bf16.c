/* Attention's bf16 kernels (matrix units): against float64 over the same bf16 operands, and timed.
 *
 * Weights e_j off by a relative error of at most d give an output off by sum_j p_j d |v_j - output| / (1 - d): the
 * bound that the output is held to, with what float32 sums add. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

enum { BLOCKS_MOST = 6, ROWS_MOST = 96, PAGES = LN_BF16_BLOCK / LN_PAGE_TOKENS };

static const double weight_error = 6.2e-3;

typedef enum seen_kind { ALL, SOME, CAUSAL } seen_kind;

typedef struct scene {
    const ln_attend_bf16 *kernels;
    linnet_type precision;
    int64_t rows, key_size, value_size, blocks, count[BLOCKS_MOST], keys;
    double spread; /* of base-2 scores */
    seen_kind kind;

    ln_page_layout layout;
    ln_random random;
    uint16_t *query_codes; /* [rows][key_size] */
    double *key, *value;   /* [keys][size], as the kernels see them */
    uint64_t (*seen)[BLOCKS_MOST][LN_BF16_BLOCK / 64];
    guarded query, keys_packed, values_packed, sum, output;
    float length[ROWS_MOST], block_length[BLOCKS_MOST], maximum[ROWS_MOST], factor;
    int64_t stride;
} scene;

static double rounded(double x) {
    return (double)ln_bf16_float(ln_float_bf16((float)x));
}

/* A code of any plain format; Q8_0: its int8. */
static double put_code(scene *s, unsigned char *at, int64_t i) {
    const float x = (float)ln_random_normal(&s->random);
    float kept;
    if (s->precision == LINNET_Q8_0) {
        const int8_t q = (int8_t)(x * 40 > 127 ? 127 : x * 40 < -127 ? -127 : x * 40);
        at[i] = (unsigned char)q;
        return q;
    }
    const ln_format *format = ln_format_of(s->precision);
    format->encode(&x, at + i * s->layout.key_bits / 8, 1);
    format->decode(at + i * s->layout.key_bits / 8, &kept, 1);
    return (double)kept;
}

static double put_scale(scene *s, unsigned char *at, int64_t i) {
    const uint16_t code = ln_float_f16((float)(0.02 + 0.02 * ln_random_unit(&s->random)));
    memcpy(at + 2 * i, &code, 2);
    return (double)ln_f16_float(code);
}

/* A page of `tokens` random tokens among bytes that are not numbers, packed. */
static void make_page(scene *s, int64_t first, int64_t tokens, int64_t page, float *length) {
    guarded memory = guarded_open(s->layout.bytes);
    unsigned char *at = memory.data;
    const bool blocks = s->precision == LINNET_Q8_0;
    memset(at, 0xff, s->layout.bytes);
    for (int64_t t = 0; t < tokens; t++) {
        double *key = s->key + (first + t) * s->key_size, *value = s->value + (first + t) * s->value_size, scale = 1;
        for (int64_t i = 0; i < s->key_size; i++) {
            if (blocks && i % 32 == 0) scale = put_scale(s, at + s->layout.key_scales, i + t);
            key[i] = rounded(put_code(s, at, i * LN_PAGE_TOKENS + t) * scale);
        }
        for (int64_t i = 0; i < s->value_size; i++) {
            const int64_t panel = i / LN_PANEL, left = s->value_size - panel * LN_PANEL;
            const int64_t columns = left < LN_PANEL ? left : LN_PANEL;
            if (blocks && i % LN_PANEL == 0)
                scale = put_scale(s, at + s->layout.value_scales, panel * LN_PAGE_TOKENS + t);
            value[i] = rounded(
                put_code(s, at + s->layout.values, panel * LN_PANEL * LN_PAGE_TOKENS + t * columns + i % LN_PANEL) *
                scale);
        }
    }
    const ln_attend_bf16 *k = s->kernels;
    const float here = k->pack_keys(&s->layout, at, tokens, s->keys_packed.data + page * k->key_bytes(s->key_size));
    *length = here > *length ? here : *length;
    k->pack_values(&s->layout, at, tokens, s->values_packed.data + page * k->value_bytes(s->value_size));
    guarded_close(&memory);
}

static bool visible(const scene *s, int64_t row, int64_t b, int64_t i) {
    return s->kind == ALL || (s->seen[row][b][i / 64] >> i % 64 & 1);
}

static void make_seen(scene *s) {
    for (int64_t r = 0; r < s->rows; r++) {
        for (int64_t b = 0, key = 0; b < s->blocks; key += s->count[b++]) {
            for (int64_t i = 0; i < LN_BF16_BLOCK; i++) {
                bool yes = i >= s->count[b] || ln_random_below(&s->random, 3) > 0; /* beyond count: anything */
                if (r % 7 == 3) yes = false;
                if (s->kind == CAUSAL) yes = key + i <= r + s->keys - s->rows;
                s->seen[r][b][i / 64] |= (uint64_t)yes << i % 64;
            }
        }
    }
}

static void scene_open(scene *s, uint64_t seed) {
    const ln_attend_bf16 *k = s->kernels;
    ln_random_seed(&s->random, seed);
    ln_page_layout_of(s->precision, s->precision, s->key_size, s->value_size, &s->layout);
    s->keys = 0;
    for (int64_t b = 0; b < s->blocks; b++) s->keys += s->count[b];
    s->query_codes = malloc((size_t)(s->rows * s->key_size) * sizeof *s->query_codes);
    s->key = malloc((size_t)(s->keys * s->key_size) * sizeof(double));
    s->value = malloc((size_t)(s->keys * s->value_size) * sizeof(double));
    s->seen = calloc((size_t)s->rows, sizeof *s->seen);
    if (!s->query_codes || !s->key || !s->value || !s->seen) exit(2);
    s->query = guarded_open((size_t)(s->rows * k->query_bytes(s->key_size)));
    s->keys_packed = guarded_open((size_t)(s->blocks * PAGES * k->key_bytes(s->key_size)));
    s->values_packed = guarded_open((size_t)(s->blocks * PAGES * k->value_bytes(s->value_size)));
    s->sum = guarded_open((size_t)(s->rows * LN_ATTEND_LANES) * sizeof(float));
    s->stride = (s->value_size + 15) / 16 * 16;
    s->output = guarded_open((size_t)(s->rows * s->stride) * sizeof(float));
    for (int64_t r = 0; r < s->rows; r++) {
        uint16_t *q = s->query_codes + r * s->key_size;
        for (int64_t i = 0; i < s->key_size; i++) q[i] = ln_float_bf16((float)ln_random_normal(&s->random));
        s->length[r] = k->pack_query(LINNET_BF16, q, s->key_size, r, s->query.data);
    }
    for (int64_t b = 0, key = 0; b < s->blocks; key += s->count[b++]) {
        s->block_length[b] = 0;
        for (int64_t t = 0; t < s->count[b]; t += LN_PAGE_TOKENS)
            make_page(s, key + t, s->count[b] - t < LN_PAGE_TOKENS ? s->count[b] - t : LN_PAGE_TOKENS,
                      b * PAGES + t / LN_PAGE_TOKENS, &s->block_length[b]);
    }
    make_seen(s);
    s->factor = (float)(s->spread / sqrt((double)s->key_size));
}

static void scene_close(scene *s) {
    guarded_close(&s->query);
    guarded_close(&s->keys_packed);
    guarded_close(&s->values_packed);
    guarded_close(&s->sum);
    guarded_close(&s->output);
    free(s->seen);
    free(s->value);
    free(s->key);
    free(s->query_codes);
}

/* Rows row .. row + rows - 1 alone. halves: by scores and finish. */
static void run_rows(scene *s, int64_t row, int64_t rows, bool halves) {
    const ln_attend_bf16 *k = s->kernels;
    enum { STRIDE = LN_BF16_BLOCK + 16 };
    guarded memory = guarded_open((size_t)(rows * STRIDE) * sizeof(float));
    float *scores = (float *)(void *)memory.data;
    const ln_attend_bf16_tile tile = {.rows = rows,
                                      .key_size = s->key_size,
                                      .value_size = s->value_size,
                                      .query = s->query.data + row * k->query_bytes(s->key_size),
                                      .length = s->length + row,
                                      .factor = s->factor,
                                      .maximum = s->maximum + row,
                                      .sum = (float *)(void *)s->sum.data + row * LN_ATTEND_LANES,
                                      .output = (float *)(void *)s->output.data + row * s->stride,
                                      .output_stride = s->stride};
    for (int64_t r = row; r < row + rows; r++) s->maximum[r] = -INFINITY;
    memset(tile.sum, 0, (size_t)(rows * LN_ATTEND_LANES) * sizeof(float));
    memset(tile.output, 0, (size_t)(rows * s->stride) * sizeof(float));
    uint64_t(*seen)[LN_BF16_BLOCK / 64] = calloc((size_t)rows, sizeof *seen);
    if (!seen) exit(2);
    for (int64_t b = 0; b < s->blocks; b++) {
        for (int64_t r = 0; r < rows; r++) memcpy(seen[r], s->seen[row + r][b], sizeof *seen);
        ln_attend_bf16_block block = {.keys = s->keys_packed.data + b * PAGES * k->key_bytes(s->key_size),
                                      .values = s->values_packed.data + b * PAGES * k->value_bytes(s->value_size),
                                      .count = s->count[b],
                                      .length = s->block_length[b],
                                      .seen = s->kind == ALL || halves ? NULL : (const void *)seen};
        if (!halves) {
            k->step(&tile, &block);
            continue;
        }
        k->scores(&tile, &block, 1, scores, STRIDE);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < s->count[b]; i++)
                if (!visible(s, row + r, b, i)) scores[r * STRIDE + i] = -INFINITY;
        k->finish(&tile, &block, s->factor, scores, STRIDE);
    }
    free(seen);
    guarded_close(&memory);
}

static double sum_of(const float *lanes) {
    double sum = 0;
    for (int i = 0; i < LN_ATTEND_LANES; i++) sum += (double)lanes[i];
    return sum;
}

/* The worst error of a row, in units of its bound. */
static double row_error(const scene *s, int64_t r) {
    double *score = malloc((size_t)s->keys * sizeof *score), most = -INFINITY, sum = 0, worst = 0;
    if (!score) exit(2);
    for (int64_t b = 0, j = 0; b < s->blocks; b++) {
        for (int64_t i = 0; i < s->count[b]; i++, j++) {
            double dot = 0;
            for (int64_t d = 0; d < s->key_size; d++)
                dot += (double)ln_bf16_float(s->query_codes[r * s->key_size + d]) * s->key[j * s->key_size + d];
            score[j] = visible(s, r, b, i) ? (double)s->factor * dot : -INFINITY;
            most = fmax(most, score[j]);
        }
    }
    const double size = fabs(most == -INFINITY ? 0 : most);
    const double relative = weight_error + 1e-6 * (size + s->spread * sqrt((double)s->key_size));
    const double got_sum = sum_of((const float *)(const void *)s->sum.data + r * LN_ATTEND_LANES);
    const float *got = (const float *)(const void *)s->output.data + r * s->stride;
    if (most == -INFINITY) {
        free(score);
        bool zero = got_sum == 0 && s->maximum[r] == -INFINITY;
        for (int64_t d = 0; d < s->value_size; d++) zero &= got[d] == 0;
        return zero ? 0 : INFINITY;
    }
    for (int64_t j = 0; j < s->keys; j++) sum += score[j] = exp2(score[j] - most);
    for (int64_t d = 0; d < s->value_size; d++) {
        double want = 0, around = 0, weight = 0;
        for (int64_t j = 0; j < s->keys; j++) want += score[j] / sum * s->value[j * s->value_size + d];
        for (int64_t j = 0; j < s->keys; j++) {
            around += score[j] / sum * fabs(s->value[j * s->value_size + d] - want);
            weight += score[j] / sum * fabs(s->value[j * s->value_size + d]);
        }
        const double error = fabs((double)got[d] / got_sum - want) / (relative * around + 2e-6 * weight + 1e-30);
        if (!(error <= worst)) worst = error;
    }
    const double sum_error = fabs((double)s->maximum[r] + log2(got_sum) - most - log2(sum)) / (1.5 * relative);
    if (!(sum_error <= worst)) worst = sum_error;
    free(score);
    return worst;
}

static double scene_error(scene *s) {
    double worst = 0;
    const size_t output_bytes = (size_t)(s->rows * s->stride) * sizeof(float);
    float *before = malloc(output_bytes), maximum[ROWS_MOST];
    if (!before) exit(2);
    run_rows(s, 0, s->rows, false);
    for (int64_t r = 0; r < s->rows; r++) {
        const double error = row_error(s, r);
        if (!(error <= worst)) worst = error;
    }
    memcpy(before, s->output.data, output_bytes);
    memcpy(maximum, s->maximum, sizeof maximum);
    /* The same bits by halves, and for each group of rows alone. */
    run_rows(s, 0, s->rows, true);
    if (memcmp(before, s->output.data, output_bytes) != 0) worst = INFINITY;
    if (memcmp(maximum, s->maximum, (size_t)s->rows * sizeof(float)) != 0) worst = INFINITY;
    for (int64_t r = 0; r < s->rows; r += LN_BF16_ROWS) run_rows(s, r, LN_BF16_ROWS, false);
    if (memcmp(before, s->output.data, output_bytes) != 0) worst = INFINITY;
    free(before);
    return worst;
}

double check_attend_bf16_slot(const ln_attend_bf16 *kernels, linnet_type precision) {
    static const int64_t sizes[][2] = {{8, 8},   {16, 24},   {24, 16},   {40, 48},   {64, 64},  {72, 40},
                                       {104, 8}, {128, 128}, {192, 128}, {256, 256}, {576, 512}};
    double worst = 0;
    int64_t next = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = ALL; kind <= CAUSAL; kind++) {
            for (int spread = 0; spread < 3; spread++) {
                scene s = {.kernels = kernels,
                           .precision = precision,
                           .rows = LN_BF16_ROWS * (1 + next % 3),
                           .key_size = sizes[i][0],
                           .value_size = sizes[i][1],
                           .blocks = 1 + next % BLOCKS_MOST,
                           .spread = spread == 0   ? 2
                                     : spread == 1 ? 60
                                                   : 1e4,
                           .kind = (seen_kind)kind};
                if (sizes[i][0] > 192) s.blocks = 2;
                for (int64_t b = 0; b < s.blocks; b++) s.count[b] = 1 + (next * 37 + b * 53) % LN_BF16_BLOCK;
                if (next % 2) s.count[0] = LN_BF16_BLOCK;
                scene_open(&s, (uint64_t)++next);
                const double error = scene_error(&s);
                if (!(error <= 1))
                    printf("%s %s: %lld x %lld, %lld rows, %lld keys, mask %d, spread %g: %g\n", kernels->name,
                           linnet_type_name(precision), (long long)s.key_size, (long long)s.value_size,
                           (long long)s.rows, (long long)s.keys, kind, s.spread, error);
                if (!(error <= worst)) worst = error;
                scene_close(&s);
            }
        }
    }
    return worst;
}

/* ---- timing ---- */

enum { TIMED_ROWS = 512, TIMED_KEYS = 4096 };

typedef struct timing {
    ln_attend_bf16_tile tile;
    ln_attend_bf16_block block;
    const ln_attend_bf16 *kernels;
} timing;

static void run_tile(void *argument) {
    timing *t = argument;
    const ln_attend_bf16 *k = t->kernels;
    const unsigned char *keys = t->block.keys, *values = t->block.values;
    for (int64_t r = 0; r < TIMED_ROWS; r++) t->tile.maximum[r] = -INFINITY;
    for (int64_t key = 0; key < TIMED_KEYS; key += LN_BF16_BLOCK) {
        ln_attend_bf16_block block = t->block;
        block.keys = keys + key / LN_PAGE_TOKENS * k->key_bytes(t->tile.key_size);
        block.values = values + key / LN_PAGE_TOKENS * k->value_bytes(t->tile.value_size);
        k->step(&t->tile, &block);
    }
}

void check_attend_bf16_speed(check *c, const ln_attend_bf16 *k, int64_t size) {
    enum { PAGES_TIMED = TIMED_KEYS / LN_PAGE_TOKENS };
    const int64_t stride = size + 16;
    guarded query = guarded_open((size_t)(TIMED_ROWS * k->query_bytes(size)));
    guarded keys = guarded_open((size_t)(PAGES_TIMED * k->key_bytes(size)));
    guarded values = guarded_open((size_t)(PAGES_TIMED * k->value_bytes(size)));
    guarded rows = guarded_open((size_t)TIMED_ROWS * (LN_ATTEND_LANES + (size_t)stride) * sizeof(float));
    static float length[TIMED_ROWS], maximum[TIMED_ROWS];
    ln_page_layout layout;
    ln_page_layout_of(LINNET_BF16, LINNET_BF16, size, size, &layout);
    uint16_t *page = malloc(layout.bytes), *row = malloc((size_t)size * sizeof *row);
    if (!page || !row) exit(2);
    ln_random random;
    ln_random_seed(&random, 1);
    timing t = {.kernels = k};
    for (int64_t p = 0; p < PAGES_TIMED; p++) {
        for (uint64_t i = 0; p == 0 && i < layout.bytes / sizeof *page; i++)
            page[i] = ln_float_bf16((float)ln_random_normal(&random));
        t.block.length =
            k->pack_keys(&layout, (unsigned char *)page, LN_PAGE_TOKENS, keys.data + p * k->key_bytes(size));
        k->pack_values(&layout, (unsigned char *)page, LN_PAGE_TOKENS, values.data + p * k->value_bytes(size));
    }
    for (int64_t r = 0; r < TIMED_ROWS; r++) {
        for (int64_t i = 0; i < size; i++) row[i] = ln_float_bf16((float)ln_random_normal(&random));
        length[r] = k->pack_query(LINNET_BF16, row, size, r, query.data);
    }
    float *sum = (float *)(void *)rows.data;
    t.tile = (ln_attend_bf16_tile){.rows = TIMED_ROWS,
                                   .key_size = size,
                                   .value_size = size,
                                   .query = query.data,
                                   .length = length,
                                   .factor = 1.4427f / sqrtf((float)size),
                                   .maximum = maximum,
                                   .sum = sum,
                                   .output = sum + TIMED_ROWS * LN_ATTEND_LANES,
                                   .output_stride = stride};
    t.block.keys = keys.data;
    t.block.values = values.data;
    t.block.count = LN_BF16_BLOCK;
    char what[32];
    snprintf(what, sizeof what, "d %d", (int)size);
    check_speed(c, what, LN_PEAK_BF16, 4.0 * TIMED_ROWS * TIMED_KEYS * (double)size, check_time(run_tile, &t));
    free(row);
    free(page);
    guarded_close(&rows);
    guarded_close(&values);
    guarded_close(&keys);
    guarded_close(&query);
}
