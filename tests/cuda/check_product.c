/* Products with weights of a model against float64 of the decoded weights. */
#include "check.h"

#include "kernel/cuda/product_cuda.h"
#include "kernel/cuda/row_work_cuda.h"

typedef struct work {
    const char *name;
    ln_cuda_raw_kind raw;
    int rows[LN_CUDA_PRODUCT_MOST], columns, tokens; /* rows 0: not so many matrices */
    bool gated, gelu;
    float gate_scale;
} work;

static const work WORKS[] = {
    {"bf16, one token", LN_CUDA_RAW_BF16, {48}, 192, 1},
    {"f32, 8 tokens, odd sizes", LN_CUDA_RAW_F32, {37, 5}, 72, 8},
    {"f16, 9 tokens", LN_CUDA_RAW_F16, {16, 33, 1}, 136, 9},
    {"q8_0, one token", LN_CUDA_RAW_Q8_0, {48}, 512, 1},
    {"q8_0, 3 tokens, half a tile", LN_CUDA_RAW_Q8_0, {40, 24, 24}, 96, 3},
    {"q8_0, 16 tokens", LN_CUDA_RAW_Q8_0, {64}, 1056, 16},
    {"q4_0, one token", LN_CUDA_RAW_Q4_0, {48}, 576, 1},
    {"q4_0, 7 tokens, half a tile", LN_CUDA_RAW_Q4_0, {40, 24, 24}, 96, 7},
    {"q4_0, 6 tokens", LN_CUDA_RAW_Q4_0, {16}, 2080, 6},
    {"bf16, gated", LN_CUDA_RAW_BF16, {80, 80}, 128, 1, true, false, 1},
    {"q8_0, gated", LN_CUDA_RAW_Q8_0, {33, 33}, 160, 12, true, true, 0.5f},
    {"q4_0, gated", LN_CUDA_RAW_Q4_0, {96, 96}, 96, 2, true, false, 1},
    {"bf16, 33 tokens", LN_CUDA_RAW_BF16, {40}, 72, 33},
    {"bf16, 130 tokens", LN_CUDA_RAW_BF16, {150, 16}, 200, 130},
    {"q8_0, 50 tokens", LN_CUDA_RAW_Q8_0, {130}, 96, 50},
    {"q4_0, 40 tokens, gated", LN_CUDA_RAW_Q4_0, {72, 72}, 160, 40, true, true, 2},
    {"q4_0, 512 tokens", LN_CUDA_RAW_Q4_0, {1024}, 1024, 512},
    {"bf16, 300 tokens", LN_CUDA_RAW_BF16, {3000}, 2048, 300},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static ln_cuda_weight_kind kind_of(ln_cuda_raw_kind raw) {
    return raw == LN_CUDA_RAW_Q8_0   ? LN_CUDA_WEIGHT_Q8_0
           : raw == LN_CUDA_RAW_Q4_0 ? LN_CUDA_WEIGHT_Q4_0
                                     : LN_CUDA_WEIGHT_BF16;
}
static int64_t raw_bytes(ln_cuda_raw_kind raw, int64_t count) {
    switch (raw) {
    case LN_CUDA_RAW_F32:
        return 4 * count;
    case LN_CUDA_RAW_Q8_0:
        return count / 32 * 34;
    case LN_CUDA_RAW_Q4_0:
        return count / 32 * 18;
    default:
        return 2 * count;
    }
}

/* Random rows of a file, and what they mean (as bf16, where that is how they are kept). */
static void fill(ln_cuda_raw_kind raw, int64_t count, unsigned char *bytes, double *values) {
    for (int64_t i = 0; i < count; i++) {
        const float x = random_normal();
        if (raw == LN_CUDA_RAW_F32) memcpy(bytes + 4 * i, &x, 4);
        if (raw == LN_CUDA_RAW_F16 || raw == LN_CUDA_RAW_BF16) {
            const uint16_t half = raw == LN_CUDA_RAW_F16 ? f16_of(x) : bf16_of(x);
            memcpy(bytes + 2 * i, &half, 2);
        }
        values[i] = (double)of_bf16(bf16_of(raw == LN_CUDA_RAW_F16 ? of_f16(f16_of(x)) : x));
    }
    if (kind_of(raw) == LN_CUDA_WEIGHT_BF16) return;
    const int codes = raw == LN_CUDA_RAW_Q8_0 ? 32 : 16;
    for (int64_t block = 0; block < count / 32; block++) {
        unsigned char *at = bytes + block * (2 + codes);
        const uint16_t scale = f16_of(0.01f * random_normal());
        memcpy(at, &scale, 2);
        for (int i = 0; i < codes; i++) at[2 + i] = (unsigned char)random_next();
        for (int i = 0; i < 32; i++) {
            const int code =
                raw == LN_CUDA_RAW_Q8_0 ? (int8_t)at[2 + i] : (i < 16 ? at[2 + i] & 15 : at[2 + i - 16] >> 4) - 8;
            values[block * 32 + i] = (double)of_f16(scale) * code;
        }
    }
}

typedef struct setting {
    const work *of;
    ln_cuda_product product;
    ln_cuda_product_plan plan;
    void *workspace, *library, *memory[LN_CUDA_PRODUCT_MOST];
    double *values[LN_CUDA_PRODUCT_MOST], *x;
} setting;

static void open_matrix(setting *s, int i) {
    const work *w = s->of;
    const int64_t rows = w->rows[i], count = rows * w->columns, bytes = raw_bytes(w->raw, count);
    unsigned char *raw = malloc((size_t)bytes);
    void *sent = device_open(bytes);
    int64_t scales;
    s->values[i] = malloc((size_t)count * sizeof(double));
    fill(w->raw, count, raw, s->values[i]);
    device_send(sent, raw, bytes);
    s->memory[i] = device_open(ln_cuda_weight_bytes(kind_of(w->raw), rows, w->columns, &scales));
    ln_cuda_weight *weight = &s->product.weight[i];
    *weight = (ln_cuda_weight){kind_of(w->raw), rows, w->columns, s->memory[i], NULL};
    if (weight->kind != LN_CUDA_WEIGHT_BF16) weight->scales = (char *)s->memory[i] + scales;
    /* In two pieces, where there are rows for them. */
    const int64_t first = rows > 16 ? 16 : rows;
    ln_cuda_code code = ln_cuda_weight_place(weight, w->raw, sent, 0, first, NULL);
    if (!code && first < rows) {
        void *rest = device_open(bytes);
        device_send(rest, raw + raw_bytes(w->raw, first * w->columns), raw_bytes(w->raw, (rows - first) * w->columns));
        code = ln_cuda_weight_place(weight, w->raw, rest, first, rows - first, NULL);
        must(cudaDeviceSynchronize(), "placing weights");
        device_close(rest);
    }
    EXPECT(code == LN_CUDA_OK, "%s: placing weights gave code %d", w->name, code);
    must(cudaDeviceSynchronize(), "placing weights");
    device_close(sent);
    free(raw);
    s->product.stride[i] = rows + 8;
    s->product.y[i] = device_open(w->tokens * (rows + 8) * 4);
}

static void open_x(setting *s) {
    const work *w = s->of;
    const int64_t stride = ln_cuda_padded(w->columns) + 64, count = w->tokens * stride;
    uint16_t *rows = calloc((size_t)count, 2);
    s->x = malloc((size_t)(w->tokens * w->columns) * sizeof(double));
    for (int t = 0; t < w->tokens; t++)
        for (int c = 0; c < w->columns; c++) {
            rows[t * stride + c] = bf16_of(random_normal());
            s->x[t * w->columns + c] = (double)of_bf16(rows[t * stride + c]);
        }
    void *x = device_open(count * 2);
    device_send(x, rows, count * 2);
    free(rows);
    s->product.x = x;
    s->product.x_stride = stride;
}

static bool open_setting(setting *s, const work *w, const ln_cuda_device *device, void *library) {
    *s = (setting){.of = w, .library = library};
    s->product.tokens = w->tokens;
    s->product.gated = w->gated;
    s->product.activation = w->gelu ? LN_CUDA_GELU_TANH : LN_CUDA_SILU;
    s->product.gate_scale = w->gate_scale;
    for (; s->product.count < LN_CUDA_PRODUCT_MOST && w->rows[s->product.count]; s->product.count++)
        open_matrix(s, s->product.count);
    open_x(s);
    if (w->gated) {
        s->product.given_stride = w->rows[0] + 3;
        s->product.given = device_open(w->tokens * s->product.given_stride * 2);
    }
    const ln_cuda_code code = ln_cuda_product_plan_make(&s->product, device, library, &s->plan);
    EXPECT(code == LN_CUDA_OK, "%s: the plan gave code %d: %s", w->name, code, s->plan.why);
    s->workspace = device_open(s->plan.workspace);
    return code == LN_CUDA_OK;
}

static void close_setting(setting *s) {
    for (int i = 0; i < s->product.count; i++) {
        device_close(s->memory[i]);
        device_close(s->product.y[i]);
        free(s->values[i]);
    }
    device_close((void *)(uintptr_t)s->product.x);
    if (s->product.given) device_close(s->product.given);
    device_close(s->workspace);
    free(s->x);
}

static ln_cuda_code start(void *context, void *stream) {
    const setting *s = context;
    return ln_cuda_product_run(&s->product, &s->plan, s->library, s->workspace, stream);
}

static double value_of(const setting *s, int matrix, int64_t token, int64_t row) {
    const int64_t columns = s->of->columns;
    double sum = 0;
    for (int64_t c = 0; c < columns; c++) sum += s->values[matrix][row * columns + c] * s->x[token * columns + c];
    return sum;
}

static double activation_of(const work *w, double x) {
    if (w->gelu) return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    return x / (1 + exp(-x));
}

/* Rows as fetched, against the oracle; gaps untouched. */
static void compare_within(const setting *s, int matrix, const void *fetched, bool half, int64_t stride,
                           const char *kernel, double bound) {
    const work *w = s->of;
    const int64_t rows = w->rows[matrix], count = w->tokens * rows;
    double *got = calloc((size_t)count, sizeof *got), *want = calloc((size_t)count, sizeof *want);
    bool gaps = true;
    for (int64_t t = 0; t < w->tokens; t++) {
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = t * stride + r;
            got[t * rows + r] =
                half ? (double)of_bf16(((const uint16_t *)fetched)[at]) : (double)((const float *)fetched)[at];
            want[t * rows + r] = value_of(s, matrix, t, r);
            if (w->gated)
                want[t * rows + r] =
                    activation_of(w, (double)w->gate_scale * want[t * rows + r]) * value_of(s, 1, t, r);
        }
        for (int64_t r = rows; r < stride; r++)
            gaps = gaps && (half ? ((const uint16_t *)fetched)[t * stride + r] == 0xffff
                                 : ((const uint32_t *)fetched)[t * stride + r] == 0xffffffffu);
    }
    const double error = relative_error(got, want, count);
    EXPECT(error <= bound, "%s, %s, matrix %d: off by %.3g, allowed %.3g", w->name, kernel, matrix, error, bound);
    EXPECT(gaps, "%s, %s: gaps between rows were written", w->name, kernel);
    free(got);
    free(want);
}

static void compare(const setting *s, int matrix, const void *fetched, bool half, int64_t stride, const char *kernel) {
    const bool rounded = !s->plan.few && kind_of(s->of->raw) != LN_CUDA_WEIGHT_BF16;
    compare_within(s, matrix, fetched, half, stride, kernel, half || rounded ? 4e-3 : 3e-5);
}

static void check_work(const work *w, const ln_cuda_device *device, void *library, const char *kernel) {
    setting s;
    if (open_setting(&s, w, device, library)) {
        const bool half = w->gated;
        for (int i = 0; i < (half ? 1 : s.product.count); i++) {
            const int64_t stride = half ? s.product.given_stride : s.product.stride[i];
            const int64_t bytes = w->tokens * stride * (half ? 2 : 4);
            void *y = half ? s.product.given : s.product.y[i], *one = malloc((size_t)bytes),
                 *other = malloc((size_t)bytes);
            device_poison(y, bytes);
            run_now(start, &s, w->name, kernel);
            device_fetch(one, y, bytes);
            compare(&s, i, one, half, stride, kernel);
            device_poison(y, bytes);
            cudaGraphExec_t graph = run_capture(start, &s, w->name, kernel);
            run_graph(graph, w->name, kernel);
            cudaGraphExecDestroy(graph);
            device_fetch(other, y, bytes);
            expect_same_bits(one, other, bytes, w->name, kernel, "a captured run");
            free(one);
            free(other);
        }
    }
    close_setting(&s);
}

/* ---- a product that finishes its row first ---- */

typedef struct finish {
    float *x, *finished, *given, *norm;
    void *h;
    double *stream; /* what finished should be; s->x becomes h */
} finish;

static float *open_floats(int64_t count, float deviation, float middle, double *values) {
    float *host = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) values[i] = (double)(host[i] = middle + deviation * random_normal());
    float *data = device_open(count * 4);
    device_send(data, host, count * 4);
    free(host);
    return data;
}

static void norm_of(double *row, const double *weight, int64_t width) {
    double squares = 0;
    for (int64_t i = 0; i < width; i++) squares += row[i] * row[i];
    for (int64_t i = 0; i < width; i++) row[i] = row[i] / sqrt(squares / (double)width + 1e-5) * weight[i];
}

/* all: with factors, and h; else x + given and the norm that follows. */
static finish open_finish(setting *s, ln_cuda_rows *rows, bool all) {
    const int64_t width = s->of->columns;
    finish f = {.stream = malloc((size_t)width * sizeof(double))};
    double *values = malloc((size_t)(3 * width) * sizeof *values), *x = values, *given = x + width,
           *norm = given + width;
    f.x = open_floats(width, 2, 0, x);
    f.given = open_floats(width, 3, 1, given);
    f.norm = open_floats(width, 0.3f, 1, norm);
    f.finished = device_open(width * 4);
    f.h = device_open(width * 2);
    *rows = (ln_cuda_rows){.tokens = 1,
                           .width = width,
                           .epsilon = 1e-5f,
                           .x = f.x,
                           .h = all ? f.h : NULL,
                           .h_stride = width,
                           .next = {f.norm, NULL},
                           .given = f.given,
                           .scale = all ? 0.5f : 1,
                           .keep = all ? 1.5f : 1,
                           .add = all ? 0.25f : 1,
                           .finished = f.finished};
    for (int64_t i = 0; i < width; i++)
        f.stream[i] = s->x[i] = (double)rows->keep * x[i] + (double)rows->add * (double)rows->scale * given[i];
    norm_of(s->x, norm, width);
    free(values);
    return f;
}

static void close_finish(finish *f) {
    void *const blocks[] = {f->x, f->finished, f->given, f->norm, f->h};
    for (int i = 0; i < 5; i++) device_close(blocks[i]);
    free(f->stream);
}

static const work FINISHES[] = {
    {"bf16, finishing", LN_CUDA_RAW_BF16, {40, 8}, 4096, 1, false, false, 0},
    {"q8_0, finishing", LN_CUDA_RAW_Q8_0, {33}, 2112, 1, false, false, 0},
    {"q4_0, finishing", LN_CUDA_RAW_Q4_0, {40, 24, 24}, 320, 1, false, false, 0},
    {"q4_0, finishing, gated", LN_CUDA_RAW_Q4_0, {96, 96}, 192, 1, true, false, 1},
    {"bf16, finishing, gated", LN_CUDA_RAW_BF16, {200, 200}, 1024, 1, true, false, 1},
};

static void check_finish(const work *w, const ln_cuda_device *device, bool all) {
    setting s;
    ln_cuda_rows rows;
    if (open_setting(&s, w, device, NULL)) {
        finish f = open_finish(&s, &rows, all);
        const int64_t stride = w->gated ? s.product.given_stride : s.product.stride[0];
        const int64_t bytes = stride * (w->gated ? 2 : 4), width = w->columns;
        void *y = w->gated ? s.product.given : s.product.y[0], *one = malloc((size_t)bytes);
        float *stream = malloc((size_t)width * 4);
        double *got = malloc((size_t)width * sizeof *got);
        s.product.rows = &rows;
        device_poison(y, bytes);
        device_poison(f.finished, width * 4);
        run_now(start, &s, w->name, "own");
        device_fetch(one, y, bytes);
        /* What goes into the product is not rounded to bf16 first, but for bf16. */
        compare_within(&s, 0, one, w->gated, stride, "own",
                       kind_of(w->raw) == LN_CUDA_WEIGHT_BF16 ? 1e-2
                       : w->gated                             ? 4e-3
                                                              : 1e-4);
        device_fetch(stream, f.finished, width * 4);
        for (int64_t i = 0; i < width; i++) got[i] = (double)stream[i];
        double error = relative_error(got, f.stream, width);
        EXPECT(error <= 1e-5, "%s: the stream is off by %.3g", w->name, error);
        if (all) {
            uint16_t *h = malloc((size_t)width * 2);
            device_fetch(h, f.h, width * 2);
            for (int64_t i = 0; i < width; i++) got[i] = (double)of_bf16(h[i]);
            error = relative_error(got, s.x, width);
            EXPECT(error <= 4e-3, "%s: h is off by %.3g", w->name, error);
            free(h);
        }
        free(got);
        free(stream);
        free(one);
        close_finish(&f);
    }
    close_setting(&s);
}

static double work_of(const work *w) {
    double rows = 0;
    for (int i = 0; i < LN_CUDA_PRODUCT_MOST; i++) rows += w->rows[i];
    return rows * w->columns * w->tokens;
}

static void check(const ln_cuda_device *device, const check_options *options) {
    char why[LN_CUDA_WHY] = "";
    void *library = ln_cuda_library_open(why);
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        if (!work_wanted(options, w->name, work_of(w))) continue;
        if (kernel_wanted(options, "own")) check_work(w, device, NULL, "own");
        if (library && w->tokens > LN_CUDA_PRODUCT_FEW && kernel_wanted(options, "cuBLASLt"))
            check_work(w, device, library, "cuBLASLt");
    }
    for (unsigned i = 0; i < sizeof FINISHES / sizeof FINISHES[0]; i++)
        for (int all = 0; all < 2; all++)
            if (work_wanted(options, FINISHES[i].name, 0) && kernel_wanted(options, "own"))
                check_finish(&FINISHES[i], device, all);
    if (!library) printf("product: %s\n", why);
    ln_cuda_library_close(library);
}

/* ---- plans ---- */

static void plans(void) {
    const ln_cuda_device device = {0, 9, 0, 132, 232448, 52428800}, old = {0, 7, 5, 40, 65536, 4194304};
    ln_cuda_product product = {.count = 1, .tokens = 1};
    ln_cuda_product_plan plan;
    product.weight[0] = (ln_cuda_weight){LN_CUDA_WEIGHT_Q4_0, 4096, 4096, NULL, NULL};
    EXPECT(ln_cuda_product_plan_make(&product, &device, NULL, &plan) == LN_CUDA_OK && plan.few &&
               plan.workspace == 4096 * 17 / 8,
           "one token: %s", plan.why);
    product.tokens = 1000;
    EXPECT(ln_cuda_product_plan_make(&product, &device, NULL, &plan) == LN_CUDA_OK && !plan.few &&
               plan.workspace == 2 * 4096 * 4096,
           "many tokens: %s", plan.why);
    EXPECT(ln_cuda_product_plan_make(&product, &old, NULL, &plan) == LN_CUDA_UNSUPPORTED && strstr(plan.why, "7.5"),
           "an old device: %s", plan.why);
    product.count = 2;
    product.weight[1] = (ln_cuda_weight){LN_CUDA_WEIGHT_BF16, 4096, 4096, NULL, NULL};
    EXPECT(ln_cuda_product_plan_make(&product, &device, NULL, &plan) == LN_CUDA_ARGUMENT, "two kinds: %s", plan.why);
    product.count = 0;
    EXPECT(ln_cuda_product_plan_make(&product, &device, NULL, &plan) == LN_CUDA_ARGUMENT, "none: %s", plan.why);
    int64_t scales;
    const int64_t bytes = ln_cuda_weight_bytes(LN_CUDA_WEIGHT_Q4_0, 17, 65, &scales);
    EXPECT(scales == 32 * 128 / 2 && bytes == scales + 256, "bytes of a weight: %lld, %lld", (long long)bytes,
           (long long)scales);
}

/* ---- times ---- */

static const work BENCH[] = {
    {"q4_0, 28672 x 4096, 1 token", LN_CUDA_RAW_Q4_0, {14336, 14336}, 4096, 1, true, false, 1},
    {"q8_0, 28672 x 4096, 1 token", LN_CUDA_RAW_Q8_0, {14336, 14336}, 4096, 1, true, false, 1},
    {"bf16, 28672 x 4096, 1 token", LN_CUDA_RAW_BF16, {14336, 14336}, 4096, 1, true, false, 1},
    {"q4_0, 4096 x 14336, 1 token", LN_CUDA_RAW_Q4_0, {4096}, 14336, 1},
    {"q4_0, 6144 x 4096, 1 token", LN_CUDA_RAW_Q4_0, {4096, 1024, 1024}, 4096, 1},
    {"q8_0, 6144 x 4096, 1 token", LN_CUDA_RAW_Q8_0, {4096, 1024, 1024}, 4096, 1},
    {"q4_0, 128256 x 4096, 1 token", LN_CUDA_RAW_Q4_0, {128256}, 4096, 1},
    {"q4_0, 128256 x 4096, 8 tokens", LN_CUDA_RAW_Q4_0, {128256}, 4096, 8},
    {"q4_0, 128256 x 4096, 16 tokens", LN_CUDA_RAW_Q4_0, {128256}, 4096, 16},
    {"q8_0, 128256 x 4096, 1 token", LN_CUDA_RAW_Q8_0, {128256}, 4096, 1},
    {"bf16, 128256 x 4096, 1 token", LN_CUDA_RAW_BF16, {128256}, 4096, 1},
    {"bf16, 14336 x 4096, 2048 tokens", LN_CUDA_RAW_BF16, {14336}, 4096, 2048},
    {"q4_0, 14336 x 4096, 2048 tokens", LN_CUDA_RAW_Q4_0, {14336}, 4096, 2048},
};

enum { BENCH_WORDS = 1 << 17 }; /* of 8 bytes, again and again */

/* Without values on the host: codes are what the memory holds. */
static void open_bench(setting *s, const work *w, const ln_cuda_device *device, void *library) {
    *s = (setting){.of = w, .library = library};
    s->product.tokens = w->tokens;
    s->product.gated = w->gated;
    s->product.gate_scale = w->gate_scale;
    for (int i = 0; i < LN_CUDA_PRODUCT_MOST && w->rows[i]; i++, s->product.count++) {
        int64_t scales;
        const int64_t bytes = ln_cuda_weight_bytes(kind_of(w->raw), w->rows[i], w->columns, &scales);
        uint64_t *host = malloc((size_t)bytes);
        s->memory[i] = device_open(bytes);
        /* Numbers near 1 in bf16, or codes of any bits with scales near 2^-7. */
        for (int64_t k = 0; k < bytes / 8; k++) host[k] = k < BENCH_WORDS ? random_next() : host[k - BENCH_WORDS];
        const int64_t first = kind_of(w->raw) == LN_CUDA_WEIGHT_BF16 ? 0 : scales / 8;
        const uint64_t mask = first ? 0x03ff03ff03ff03ffu : 0x807f807f807f807fu,
                       set = first ? 0x2000200020002000u : 0x3f003f003f003f00u;
        for (int64_t k = first; k < bytes / 8; k++) host[k] = (host[k] & mask) | set;
        device_send(s->memory[i], host, bytes);
        free(host);
        s->product.weight[i] = (ln_cuda_weight){kind_of(w->raw), w->rows[i], w->columns, s->memory[i],
                                                first ? (char *)s->memory[i] + scales : NULL};
        s->product.stride[i] = w->rows[i];
        s->product.y[i] = device_open((int64_t)w->tokens * w->rows[i] * 4);
    }
    open_x(s);
    s->product.given_stride = w->rows[0];
    if (w->gated) s->product.given = device_open((int64_t)w->tokens * w->rows[0] * 2);
    EXPECT(ln_cuda_product_plan_make(&s->product, device, library, &s->plan) == LN_CUDA_OK, "%s: %s", w->name,
           s->plan.why);
    s->workspace = device_open(s->plan.workspace);
}

/* Products one after the other in a graph, as in the pass of a model: with more weights than caches hold, each read
 * once. */
static const work ROWS[] = {
    {"q4_0, 6144 x 4096", LN_CUDA_RAW_Q4_0, {4096, 1024, 1024}, 4096, 1},
    {"q4_0, 4096 x 4096", LN_CUDA_RAW_Q4_0, {4096}, 4096, 1},
    {"q4_0, 28672 x 4096, gated", LN_CUDA_RAW_Q4_0, {14336, 14336}, 4096, 1, true, false, 1},
    {"q4_0, 4096 x 14336", LN_CUDA_RAW_Q4_0, {4096}, 14336, 1},
    {"q4_0, 28672 x 4096, gated, 4 tokens", LN_CUDA_RAW_Q4_0, {14336, 14336}, 4096, 4, true, false, 1},
    {"q4_0, 28672 x 4096, gated, 8 tokens", LN_CUDA_RAW_Q4_0, {14336, 14336}, 4096, 8, true, false, 1},
    {"q4_0, 28672 x 4096, gated, 16 tokens", LN_CUDA_RAW_Q4_0, {14336, 14336}, 4096, 16, true, false, 1},
    {"q8_0, 6144 x 4096", LN_CUDA_RAW_Q8_0, {4096, 1024, 1024}, 4096, 1},
    {"q8_0, 4096 x 4096", LN_CUDA_RAW_Q8_0, {4096}, 4096, 1},
    {"q8_0, 28672 x 4096, gated", LN_CUDA_RAW_Q8_0, {14336, 14336}, 4096, 1, true, false, 1},
    {"q8_0, 4096 x 14336", LN_CUDA_RAW_Q8_0, {4096}, 14336, 1},
    {"bf16, 3072 x 2048", LN_CUDA_RAW_BF16, {2048, 512, 512}, 2048, 1},
    {"bf16, 2048 x 2048", LN_CUDA_RAW_BF16, {2048}, 2048, 1},
    {"bf16, 16384 x 2048, gated", LN_CUDA_RAW_BF16, {8192, 8192}, 2048, 1, true, false, 1},
    {"bf16, 2048 x 8192", LN_CUDA_RAW_BF16, {2048}, 8192, 1},
    {"bf16, 28672 x 4096, gated", LN_CUDA_RAW_BF16, {14336, 14336}, 4096, 1, true, false, 1},
    {"bf16, 28672 x 4096, gated, 16 tokens", LN_CUDA_RAW_BF16, {14336, 14336}, 4096, 16, true, false, 1},
};
enum { IN_A_ROW = 24, ROW_BYTES = 300 << 20 };

static double weight_bytes(const work *w) {
    double bytes = 0;
    int64_t scales;
    for (int m = 0; m < LN_CUDA_PRODUCT_MOST && w->rows[m]; m++)
        bytes += (double)ln_cuda_weight_bytes(kind_of(w->raw), w->rows[m], w->columns, &scales);
    return bytes;
}

typedef struct in_a_row {
    setting settings[IN_A_ROW];
    int count;
    cudaGraphExec_t graph;
} in_a_row;

static ln_cuda_code start_all(void *context, void *stream) {
    in_a_row *all = context;
    ln_cuda_code code = LN_CUDA_OK;
    for (int i = 0; i < all->count && !code; i++) code = start(&all->settings[i], stream);
    return code;
}
static ln_cuda_code start_captured(void *context, void *stream) {
    in_a_row *all = context;
    return ln_cuda_code_of(cudaGraphLaunch(all->graph, stream));
}

static void bench_row(const work *w, const ln_cuda_device *device, int rounds) {
    static in_a_row all;
    const double bytes = weight_bytes(w);
    timing t;
    void *contexts[] = {&all};
    all.count = (int)(ROW_BYTES / bytes) + 2;
    if (all.count > IN_A_ROW) all.count = IN_A_ROW;
    for (int i = 0; i < all.count; i++) open_bench(&all.settings[i], w, device, NULL);
    all.graph = run_capture(start_all, &all, w->name, "own");
    time_in_turns(start_captured, contexts, 1, rounds, &t);
    printf("%-36s in a row  %8.4f ms  %7.3f TB/s\n", w->name, t.median / all.count, bytes * all.count / t.median / 1e9);
    cudaGraphExecDestroy(all.graph);
    for (int i = 0; i < all.count; i++) close_setting(&all.settings[i]);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    char why[LN_CUDA_WHY] = "";
    void *library = ln_cuda_library_open(why);
    if (!library) printf("product: %s\n", why);
    for (unsigned i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) {
        const work *w = &BENCH[i];
        if (!work_wanted(options, w->name, 0)) continue;
        const bool many = w->tokens > LN_CUDA_PRODUCT_FEW;
        for (int with = 0; with < (library && many ? 2 : 1); with++) {
            setting s;
            timing t;
            open_bench(&s, w, device, with ? library : NULL);
            void *contexts[] = {&s};
            time_in_turns(start, contexts, 1, options->rounds, &t);
            const double bytes = weight_bytes(w);
            if (many)
                printf("%-36s %-9s %8.3f ms  %7.1f TFLOP/s\n", w->name, with ? "cuBLASLt" : "own", t.median,
                       2 * work_of(w) / t.median / 1e9);
            else
                printf("%-36s %-9s %8.4f ms  %7.3f TB/s\n", w->name, "own", t.median, bytes / t.median / 1e9);
            close_setting(&s);
        }
    }
    ln_cuda_library_close(library);
    for (unsigned i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++)
        if (work_wanted(options, ROWS[i].name, 0)) bench_row(&ROWS[i], device, options->rounds);
}

const suite cuda_suite_product = {"product", WORK_COUNT, plans, check, bench};
