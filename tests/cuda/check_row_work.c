/* Embeddings, residuals, norms, angles and logits against float64. */
#include "check.h"

#include "kernel/cuda/row_work_cuda.h"

enum { MOST_TOKENS = 5, VOCABULARY = 50 };

typedef struct work {
    const char *name;
    int width, tokens;
    ln_cuda_weight_kind embedding;
    bool enter, next, bias, post, from_norm, embedding_norm; /* bias: of norms and of the part */
    float scale, keep, add;
} work;

static const work WORKS[] = {
    {"enter, bf16", 96, 3, LN_CUDA_WEIGHT_BF16, true, .next = true, .scale = 1},
    {"enter, q8_0, embedding norm", 160, 2, LN_CUDA_WEIGHT_Q8_0, true, .next = true, .bias = true, .scale = 12.5f,
     .embedding_norm = true},
    {"enter, q4_0, from the norm", 64, 1, LN_CUDA_WEIGHT_Q4_0, true, .next = true, .from_norm = true, .scale = 1},
    {"finish", 100, 4, LN_CUDA_WEIGHT_BF16, false, .next = true, .scale = 1, .keep = 1, .add = 1},
    {"finish, all", 1030, 2, LN_CUDA_WEIGHT_BF16, false, true, true, true, true, .scale = 0.5f, .keep = 1.5f,
     .add = 0.25f},
    {"finish, last", 72, 5, LN_CUDA_WEIGHT_BF16, false, .post = true, .scale = 1, .keep = 1, .add = 1},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static int64_t padded_to_tiles(int64_t columns) {
    return (columns + 63) / 64 * 64;
}

static void *send_floats(const double *values, int64_t count) {
    float *host = malloc((size_t)count * sizeof *host);
    for (int64_t i = 0; i < count; i++) host[i] = (float)values[i];
    void *data = device_open(count * 4);
    device_send(data, host, count * 4);
    free(host);
    return data;
}

/* Float32 numbers. */
static double *draw(int64_t count, double deviation, double middle) {
    double *values = calloc((size_t)count, sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = (double)(float)(middle + deviation * (double)random_normal());
    return values;
}

/* ---- embeddings, laid out by what product_cuda.h says ---- */

static void set_code(ln_cuda_weight_kind kind, unsigned char *codes, int64_t tiles, int64_t row, int64_t column,
                     int code) {
    const int64_t tile = row / 16 * tiles + column / 64, lane = row % 8 * 4 + column % 32 / 8, upper = row % 16 / 8,
                  half = column % 64 / 32, i = column % 8;
    if (kind == LN_CUDA_WEIGHT_Q8_0) {
        codes[tile * 1024 + half * 512 + lane * 16 + upper * 8 + i] = (unsigned char)code;
        return;
    }
    uint32_t word;
    unsigned char *at = codes + tile * 512 + lane * 16 + half * 8 + upper * 4;
    memcpy(&word, at, 4);
    const int shift = (int)(4 * (i % 4 * 2 + i / 4));
    word = (word & ~(15u << shift)) | (uint32_t)(code + 8) << shift;
    memcpy(at, &word, 4);
}

static ln_cuda_weight make_embedding(ln_cuda_weight_kind kind, int64_t width, double *values) {
    const int64_t padded = padded_to_tiles(width), rows = (VOCABULARY + 15) / 16 * 16, tiles = padded / 64;
    const int64_t codes = kind == LN_CUDA_WEIGHT_BF16   ? 2 * rows * padded
                          : kind == LN_CUDA_WEIGHT_Q8_0 ? rows * padded
                                                        : rows * padded / 2;
    unsigned char *host = calloc((size_t)codes, 1);
    uint16_t *scales = calloc((size_t)(rows * padded / 32), 2);
    for (int64_t row = 0; row < VOCABULARY; row++)
        for (int64_t column = 0; column < width; column++) {
            const float x = random_normal();
            if (kind == LN_CUDA_WEIGHT_BF16) {
                ((uint16_t *)(void *)host)[row * padded + column] = bf16_of(x);
                values[row * width + column] = (double)of_bf16(bf16_of(x));
                continue;
            }
            const int64_t at =
                (row / 16 * tiles + column / 64) * 32 + row % 8 * 4 + column % 64 / 32 * 2 + row % 16 / 8;
            if (column % 32 == 0) scales[at] = f16_of(0.1f * x);
            const int code =
                kind == LN_CUDA_WEIGHT_Q8_0 ? (int)(random_next() % 256) - 128 : (int)(random_next() % 16) - 8;
            set_code(kind, host, tiles, row, column, code);
            values[row * width + column] = (double)of_f16(scales[at]) * code;
        }
    ln_cuda_weight made = {kind, VOCABULARY, width, device_open(codes), device_open(rows * padded / 16)};
    device_send(made.codes, host, codes);
    device_send(made.scales, scales, rows * padded / 16);
    free(host);
    free(scales);
    return made;
}

/* ---- rows ---- */

typedef struct norm {
    double *weight, *bias;
    ln_cuda_norm device;
} norm;

static norm open_norm(bool there, bool biased, int64_t width) {
    norm made = {0};
    if (!there) return made;
    made.weight = draw(width, 0.3, 1);
    made.device.weight = send_floats(made.weight, width);
    if (biased) {
        made.bias = draw(width, 0.5, 0);
        made.device.bias = send_floats(made.bias, width);
    }
    return made;
}

static void close_norm(norm *n) {
    free(n->weight);
    free(n->bias);
    if (n->device.weight) device_close((void *)(uintptr_t)n->device.weight);
    if (n->device.bias) device_close((void *)(uintptr_t)n->device.bias);
}

static void apply_norm(const norm *n, double *row, int64_t width, double epsilon) {
    double mean = 0, squares = 0;
    if (!n->weight) return;
    for (int64_t i = 0; i < width && n->bias; i++) mean += row[i] / (double)width;
    for (int64_t i = 0; i < width; i++) squares += (row[i] - mean) * (row[i] - mean);
    const double factor = 1 / sqrt(squares / (double)width + epsilon);
    for (int64_t i = 0; i < width; i++) row[i] = (row[i] - mean) * factor * n->weight[i] + (n->bias ? n->bias[i] : 0);
}

typedef struct setting {
    ln_cuda_rows rows;
    ln_cuda_weight embedding;
    bool enter;
} setting;

static ln_cuda_code start(void *context, void *stream) {
    const setting *s = context;
    return s->enter ? ln_cuda_rows_enter(&s->rows, &s->embedding, stream) : ln_cuda_rows_finish(&s->rows, stream);
}

static void check_rows(const work *w) {
    const int64_t width = w->width, count = w->tokens * width, stride = padded_to_tiles(width);
    const double epsilon = 1e-5;
    int32_t ids[MOST_TOKENS];
    double *table = calloc((size_t)(VOCABULARY * width), sizeof *table), *x = draw(count, 2, 0),
           *given = draw(count, 1, 0), *bias = draw(width, 1, 0), *want = malloc((size_t)count * sizeof *want),
           *got = malloc((size_t)count * sizeof *got), *want_h = malloc((size_t)count * sizeof *want_h),
           *got_h = malloc((size_t)count * sizeof *got_h);
    float *fetched = malloc((size_t)count * 4);
    uint16_t *half = malloc((size_t)(w->tokens * stride) * 2);
    norm next = open_norm(w->next, w->bias, width), post = open_norm(w->post, w->bias, width),
         embedding = open_norm(w->embedding_norm, false, width);
    for (int t = 0; t < w->tokens; t++) ids[t] = (int32_t)(random_next() % VOCABULARY);
    void *ids_there = device_open(sizeof ids), *h = device_open(w->tokens * stride * 2);
    device_send(ids_there, ids, sizeof ids);
    setting s = {.enter = w->enter, .embedding = make_embedding(w->embedding, width, table)};
    s.rows = (ln_cuda_rows){.tokens = w->tokens,
                            .width = width,
                            .epsilon = (float)epsilon,
                            .x = send_floats(x, count),
                            .h = h,
                            .h_stride = stride,
                            .next = next.device,
                            .from_norm = w->from_norm,
                            .ids = ids_there,
                            .embedding_scale = w->scale,
                            .embedding_norm = embedding.device,
                            .given = send_floats(given, count),
                            .bias = w->bias ? send_floats(bias, width) : NULL,
                            .scale = w->scale,
                            .keep = w->keep,
                            .add = w->add,
                            .post = post.device};
    run_now(start, &s, w->name, "rows");
    device_fetch(fetched, s.rows.x, count * 4);
    device_fetch(half, h, w->tokens * stride * 2);
    bool gaps = true;
    for (int64_t t = 0; t < w->tokens; t++) {
        double *row = want + t * width;
        for (int64_t i = 0; i < width; i++)
            row[i] = w->enter ? (double)w->scale * table[ids[t] * width + i]
                              : (double)w->scale * (given[t * width + i] + (w->bias ? bias[i] : 0));
        apply_norm(w->enter ? &embedding : &post, row, width, epsilon);
        for (int64_t i = 0; i < width && !w->enter; i++)
            row[i] = (double)w->keep * x[t * width + i] + (double)w->add * row[i];
        memcpy(want_h + t * width, row, (size_t)width * sizeof *row);
        apply_norm(&next, want_h + t * width, width, epsilon);
        if (w->from_norm) memcpy(row, want_h + t * width, (size_t)width * sizeof *row);
        for (int64_t i = 0; i < width; i++) {
            got[t * width + i] = (double)fetched[t * width + i];
            got_h[t * width + i] = (double)of_bf16(half[t * stride + i]);
        }
        for (int64_t i = width; i < stride; i++) gaps = gaps && half[t * stride + i] == 0xffff;
    }
    const double error = relative_error(got, want, count), error_h = relative_error(got_h, want_h, count);
    EXPECT(error <= 2e-6, "%s: x is off by %.3g", w->name, error);
    EXPECT(error_h <= 4e-3, "%s: h is off by %.3g", w->name, error_h);
    EXPECT(gaps, "%s: gaps of h were written", w->name);
    device_close(s.rows.x);
    device_close((void *)(uintptr_t)s.rows.given);
    if (s.rows.bias) device_close((void *)(uintptr_t)s.rows.bias);
    device_close(s.embedding.codes);
    device_close(s.embedding.scales);
    device_close(ids_there);
    device_close(h);
    close_norm(&next);
    close_norm(&post);
    close_norm(&embedding);
    void *const blocks[] = {table, x, given, bias, want, got, want_h, got_h, fetched, half};
    for (unsigned i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

/* ---- angles ---- */

static void check_angles(void) {
    enum { PAIRS = 33, TOKENS = 4 };
    const int32_t position = 1000003;
    const double magnitude = 1.25;
    double inverse[PAIRS], got[2][PAIRS * TOKENS], want[2][PAIRS * TOKENS];
    float fetched[2][PAIRS * TOKENS];
    for (int i = 0; i < PAIRS; i++) inverse[i] = pow(10000, -i / (double)PAIRS);
    void *there = device_open(sizeof inverse), *at = device_open(4),
         *angles[2] = {device_open(sizeof fetched[0]), device_open(sizeof fetched[0])};
    device_send(there, inverse, sizeof inverse);
    device_send(at, &position, 4);
    const ln_cuda_code code = ln_cuda_angles(at, there, magnitude, PAIRS, TOKENS, angles[0], angles[1], NULL);
    EXPECT(code == LN_CUDA_OK, "angles gave code %d", code);
    must(cudaDeviceSynchronize(), "angles");
    for (int part = 0; part < 2; part++) {
        device_fetch(fetched[part], angles[part], sizeof fetched[part]);
        for (int i = 0; i < PAIRS * TOKENS; i++) {
            const double angle = (position + i / PAIRS) * inverse[i % PAIRS];
            got[part][i] = (double)fetched[part][i];
            want[part][i] = magnitude * (part ? sin(angle) : cos(angle));
        }
        const double error = relative_error(got[part], want[part], PAIRS * TOKENS);
        EXPECT(error <= 1e-6, "angles are off by %.3g", error);
        device_close(angles[part]);
    }
    device_close(there);
    device_close(at);
}

/* ---- logits ---- */

static void check_logits(int64_t tokens, int64_t vocabulary, int64_t named, float scale, float cap, bool ties) {
    const int64_t count = tokens * vocabulary;
    float *logits = malloc((size_t)count * 4), *fetched = malloc((size_t)count * 4);
    double *got = malloc((size_t)count * sizeof *got), *want = malloc((size_t)count * sizeof *want);
    for (int64_t i = 0; i < count; i++) logits[i] = ties ? (float)(random_next() % 3) : 4 * random_normal();
    float *last = logits + count - vocabulary;
    last[random_next() % (uint64_t)vocabulary] = NAN;
    void *there = device_open(count * 4), *best = device_open(4), *room = device_open(LN_CUDA_BEST_BYTES);
    device_send(there, logits, count * 4);
    const ln_cuda_code code = ln_cuda_logits(there, tokens, vocabulary, named, scale, cap, best, room, NULL);
    EXPECT(code == LN_CUDA_OK, "logits gave code %d", code);
    must(cudaDeviceSynchronize(), "logits");
    int32_t chosen, right = 0;
    device_fetch(&chosen, best, 4);
    device_fetch(fetched, there, count * 4);
    double largest = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        const double x = (double)scale * (double)logits[i];
        want[i] = isnan(x) ? 0 : cap > 0 ? (double)cap * tanh(x / (double)cap) : x;
        got[i] = isnan(x) && isnan(fetched[i]) ? 0 : (double)fetched[i];
    }
    for (int64_t i = 0; i < named; i++) {
        const double x = (double)fetched[count - vocabulary + i];
        if (!isnan(x) && x > largest) {
            largest = x;
            right = (int32_t)i;
        }
    }
    EXPECT(chosen == right, "of %lld logits %d was chosen, not %d", (long long)vocabulary, chosen, right);
    const double error = relative_error(got, want, count);
    EXPECT(error <= 1e-6, "logits are off by %.3g", error);
    device_close(there);
    device_close(best);
    device_close(room);
    free(logits);
    free(fetched);
    free(got);
    free(want);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    (void)device;
    for (int i = 0; i < WORK_COUNT; i++)
        if (work_wanted(options, WORKS[i].name, 0)) check_rows(&WORKS[i]);
    check_angles();
    check_logits(1, 1000, 1000, 1, 0, false);
    check_logits(2, 333, 200, 0.5f, 30, false);
    check_logits(1, 70000, 69999, 1, 0, true);
    check_logits(1, 3, 3, 1, 0, true);
}

static void plans(void) {
    float x[64];
    uint16_t h[64];
    ln_cuda_rows rows = {.tokens = 1, .width = 64, .x = x, .h = h, .h_stride = 64};
    EXPECT(ln_cuda_rows_finish(&rows, NULL) == LN_CUDA_ARGUMENT, "a part that gives nothing is taken");
    rows.h_stride = 63;
    rows.given = x;
    EXPECT(ln_cuda_rows_finish(&rows, NULL) == LN_CUDA_ARGUMENT, "rows that overlap are taken");
    rows.h_stride = rows.width = 1 << 20;
    EXPECT(ln_cuda_rows_finish(&rows, NULL) == LN_CUDA_UNSUPPORTED, "a row too long for a block is taken");
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    (void)device, (void)options;
}

const suite cuda_suite_row_work = {"row_work", WORK_COUNT + 5, plans, check, bench};
