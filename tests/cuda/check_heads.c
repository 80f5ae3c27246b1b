/* Heads between products and attention, and attention for any sizes, against float64. */
#include "check.h"

#include "kernel/cuda/heads_cuda.h"

typedef struct work {
    const char *name;
    int tokens, heads, key_value_heads, key_size, value_size, rotary;
    bool half, bias, norm;
    int length, window; /* length: with the tokens */
    float cap;
    bool float16;
} work;

static const work WORKS[] = {
    {"one token", 1, 4, 2, 16, 16, 16, true, false, false, 1, 0, 0, false},
    {"7 tokens of 40, neighbours", 7, 6, 2, 24, 8, 16, false, true, false, 40, 0, 0, true},
    {"3 of 100, window, cap", 3, 4, 1, 40, 72, 40, true, false, true, 100, 33, 5, false},
    {"9 of 70, no rotation, window 1", 9, 2, 2, 72, 72, 0, true, true, true, 70, 1, 0, true},
    {"2 of 66, large heads", 2, 2, 1, 576, 512, 64, false, false, true, 66, 0, 0, false},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0], PAGE = 32 };

typedef struct part {
    int64_t heads, size, count;
    float *from, *bias, *norm; /* on the host */
    double *want;
    ln_cuda_head_rows rows;
} part;

static float *draw(int64_t count, float deviation, float middle) {
    float *values = calloc((size_t)count, sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = middle + deviation * random_normal();
    return values;
}
static void *send(const float *values, int64_t count) {
    void *data = device_open(count * 4);
    device_send(data, values, count * 4);
    return data;
}

static void turn(const work *w, double *head, const float *cosine, const float *sine) {
    for (int i = 0; i < w->rotary / 2; i++) {
        const int a = w->half ? i : 2 * i, b = w->half ? i + w->rotary / 2 : 2 * i + 1;
        const double x = head[a], y = head[b];
        head[a] = x * (double)cosine[i] - y * (double)sine[i];
        head[b] = x * (double)sine[i] + y * (double)cosine[i];
    }
}

static part open_part(const work *w, int which, const float *cosine, const float *sine, double epsilon) {
    part p = {.heads = which ? w->key_value_heads : w->heads, .size = which == 2 ? w->value_size : w->key_size};
    p.count = w->tokens * p.heads * p.size;
    p.from = draw(p.count, 1, 0);
    p.want = malloc((size_t)p.count * sizeof *p.want);
    if (w->bias) p.bias = draw(p.heads * p.size, 1, 0);
    if (w->norm && which < 2) p.norm = draw(p.size, 0.3f, 1);
    for (int64_t row = 0; row < w->tokens * p.heads; row++) {
        double *head = p.want + row * p.size, squares = 0;
        for (int64_t i = 0; i < p.size; i++) {
            head[i] = (double)p.from[row * p.size + i] + (p.bias ? (double)p.bias[row % p.heads * p.size + i] : 0);
            squares += head[i] * head[i];
        }
        const double factor = 1 / sqrt(squares / (double)p.size + epsilon);
        for (int64_t i = 0; i < p.size && p.norm; i++) head[i] *= factor * (double)p.norm[i];
        const int64_t pair = row / p.heads * (w->rotary / 2);
        if (which < 2) turn(w, head, cosine + pair, sine + pair);
    }
    p.rows = (ln_cuda_head_rows){p.heads,
                                 p.size,
                                 send(p.from, p.count),
                                 device_open(p.count * (which ? 4 : 2)),
                                 which > 0,
                                 p.bias ? send(p.bias, p.heads * p.size) : NULL,
                                 p.norm ? send(p.norm, p.size) : NULL,
                                 which < 2 && w->rotary > 0};
    return p;
}

static void close_part(part *p) {
    const void *const there[] = {p->rows.from, p->rows.to, p->rows.bias, p->rows.norm};
    for (int i = 0; i < 4; i++)
        if (there[i]) device_close((void *)(uintptr_t)there[i]);
    free(p->from);
    free(p->bias);
    free(p->norm);
    free(p->want);
}

static void compare(const work *w, const part *p, const char *what) {
    const int64_t bytes = p->count * (p->rows.float32 ? 4 : 2);
    double *got = malloc((size_t)p->count * sizeof *got);
    void *fetched = malloc((size_t)bytes);
    device_fetch(fetched, p->rows.to, bytes);
    for (int64_t i = 0; i < p->count; i++)
        got[i] = p->rows.float32 ? (double)((float *)fetched)[i] : (double)of_bf16(((uint16_t *)fetched)[i]);
    const double error = relative_error(got, p->want, p->count);
    EXPECT(error <= (p->rows.float32 ? 1e-6 : 4e-3), "%s: %s are off by %.3g", w->name, what, error);
    free(fetched);
    free(got);
}

static ln_cuda_code start_heads(void *context, void *stream) {
    return ln_cuda_heads_run(context, stream);
}

/* ---- attention ---- */

typedef struct setting {
    const work *of;
    ln_cuda_decode decode;
    ln_cuda_decode_tensors tensors;
    ln_cuda_heads heads; /* that write into pages */
} setting;

static ln_cuda_code start_attend(void *context, void *stream) {
    const setting *s = context;
    return ln_cuda_attend_any(&s->decode, &s->tensors, stream);
}

static double of_page(const work *w, uint16_t x) {
    return (double)(w->float16 ? of_f16(x) : of_bf16(x));
}

/* Where element i of a token and head is in pages [pages][heads][PAGE][size], by a table that counts backwards. */
static int64_t place(int64_t pages, int64_t heads, int64_t size, int64_t token, int64_t head, int64_t i) {
    return (((pages - 1 - token / PAGE) * heads + head) * PAGE + token % PAGE) * size + i;
}

static void attend(const work *w, const double *query, const uint16_t *keys, const uint16_t *values, int64_t pages,
                   double *want) {
    const int64_t group = w->heads / w->key_value_heads;
    double *weight = malloc((size_t)w->length * sizeof *weight);
    for (int64_t row = 0; row < w->tokens * w->heads; row++) {
        const int64_t head = row % w->heads / group, position = w->length - w->tokens + row / w->heads;
        const int64_t first = w->window && position >= w->window ? position - w->window + 1 : 0;
        double sum = 0, largest = -INFINITY, *to = want + row * w->value_size;
        for (int64_t t = first; t <= position; t++) {
            double score = 0;
            for (int64_t i = 0; i < w->key_size; i++)
                score += query[row * w->key_size + i] *
                         of_page(w, keys[place(pages, w->key_value_heads, w->key_size, t, head, i)]);
            score *= 0.25;
            weight[t] = w->cap > 0 ? (double)w->cap * tanh(score / (double)w->cap) : score;
            largest = fmax(largest, weight[t]);
        }
        memset(to, 0, (size_t)w->value_size * sizeof *to);
        for (int64_t t = first; t <= position; t++) {
            const double share = exp(weight[t] - largest);
            sum += share;
            for (int64_t i = 0; i < w->value_size; i++)
                to[i] += share * of_page(w, values[place(pages, w->key_value_heads, w->value_size, t, head, i)]);
        }
        for (int64_t i = 0; i < w->value_size; i++) to[i] /= sum;
    }
    free(weight);
}

static uint16_t *random_pages(const work *w, int64_t count) {
    uint16_t *made = malloc((size_t)count * 2);
    for (int64_t i = 0; i < count; i++) made[i] = w->float16 ? f16_of(random_normal()) : bf16_of(random_normal());
    return made;
}

static ln_cuda_page_part part_of(void *data, int64_t heads, int64_t size) {
    return (ln_cuda_page_part){data, heads * PAGE * size * 2, PAGE * size * 2, size * 2};
}

/* Tokens that were appended lie in the pages, rounded, and no others were touched. */
static void check_pages(const work *w, const part *p, uint16_t *pages, const uint16_t *fetched, int64_t count,
                        int64_t elements) {
    double *got = malloc((size_t)p->count * sizeof *got);
    for (int64_t t = 0; t < w->tokens; t++)
        for (int64_t i = 0; i < p->heads * p->size; i++) {
            const int64_t at = place(count, p->heads, p->size, w->length - w->tokens + t, i / p->size, i % p->size);
            got[t * p->heads * p->size + i] = of_page(w, fetched[at]);
            pages[at] = fetched[at];
        }
    const double error = relative_error(got, p->want, p->count);
    EXPECT(error <= 4e-3, "%s: what was appended is off by %.3g", w->name, error);
    EXPECT(!memcmp(pages, fetched, (size_t)elements * 2), "%s: other tokens were touched", w->name);
    free(got);
}

static void check_attention(const work *w, part *parts, const ln_cuda_heads *heads_run) {
    const int64_t pages = (w->length + PAGE - 1) / PAGE, heads = w->key_value_heads;
    const int64_t elements[2] = {pages * heads * PAGE * w->key_size, pages * heads * PAGE * w->value_size};
    const int64_t outputs = (int64_t)w->tokens * w->heads * w->value_size, queries = parts[0].count;
    const int32_t length = w->length;
    uint16_t *held[2], *fetched[2], *half = malloc((size_t)(queries + outputs) * 2);
    void *there[2];
    int32_t table[8];
    for (int i = 0; i < 2; i++) {
        held[i] = random_pages(w, elements[i]);
        fetched[i] = malloc((size_t)elements[i] * 2);
        there[i] = device_open(elements[i] * 2);
        device_send(there[i], held[i], elements[i] * 2);
    }
    for (int i = 0; i < pages; i++) table[i] = (int32_t)(pages - 1 - i);
    void *table_there = device_open(sizeof table), *length_there = device_open(4), *output = device_open(outputs * 2);
    device_send(table_there, table, sizeof table);
    device_send(length_there, &length, 4);
    setting s = {.of = w,
                 .heads = *heads_run,
                 .decode = {.sequences = 1,
                            .queries = w->tokens,
                            .heads = w->heads,
                            .key_value_heads = heads,
                            .key_size = w->key_size,
                            .value_size = w->value_size,
                            .capacity = w->length,
                            .page_tokens = PAGE,
                            .format = w->float16 ? LN_CUDA_PAGE_F16 : LN_CUDA_PAGE_BF16,
                            .query_element = LN_CUDA_ELEMENT_BF16,
                            .output_element = LN_CUDA_ELEMENT_BF16,
                            .scale = 0.25f,
                            .soft_cap = w->cap,
                            .window = w->window},
                 .tensors = {.query = {parts[0].rows.to, w->heads * w->key_size, w->key_size},
                             .output = {output, w->heads * w->value_size, w->value_size},
                             .key = part_of(there[0], heads, w->key_size),
                             .value = part_of(there[1], heads, w->value_size),
                             .page_table = table_there,
                             .table_stride = 8,
                             .lengths = length_there}};
    for (int i = 0; i < 2; i++)
        s.heads.part[i + 1].pages =
            (ln_cuda_head_pages){i ? s.tensors.value : s.tensors.key, s.decode.format, PAGE, table_there, length_there};
    run_now(start_heads, &s.heads, w->name, "heads into pages");
    for (int i = 0; i < 2; i++) {
        device_fetch(fetched[i], there[i], elements[i] * 2);
        check_pages(w, &parts[i + 1], held[i], fetched[i], pages, elements[i]);
    }
    run_now(start_attend, &s, w->name, "attend");
    double *query = malloc((size_t)queries * sizeof *query), *want = malloc((size_t)outputs * sizeof *want),
           *got = malloc((size_t)outputs * sizeof *got);
    device_fetch(half, parts[0].rows.to, queries * 2);
    for (int64_t i = 0; i < queries; i++) query[i] = (double)of_bf16(half[i]);
    attend(w, query, held[0], held[1], pages, want);
    device_fetch(half, output, outputs * 2);
    for (int64_t i = 0; i < outputs; i++) got[i] = (double)of_bf16(half[i]);
    const double error = relative_error(got, want, outputs);
    EXPECT(error <= 4e-3, "%s: attention is off by %.3g", w->name, error);
    /* Everything gathered is what the pages hold. */
    const ln_cuda_tensor keys = {device_open(length * heads * w->key_size * 2), heads * w->key_size, w->key_size},
                         values = {device_open(length * heads * w->value_size * 2), heads * w->value_size,
                                   w->value_size};
    EXPECT(ln_cuda_gather_any(&s.decode, &s.tensors, 1, length - 1, &keys, &values, NULL) == LN_CUDA_OK,
           "%s: gathering failed", w->name);
    must(cudaDeviceSynchronize(), "gathering");
    device_fetch(fetched[0], keys.data, (length - 1) * heads * w->key_size * 2);
    bool same = true;
    for (int64_t i = 0; i < (length - 1) * heads * w->key_size; i++) {
        const int64_t row = i / w->key_size;
        const double held_there =
            of_page(w, held[0][place(pages, heads, w->key_size, 1 + row / heads, row % heads, i % w->key_size)]);
        same = same && fetched[0][i] == bf16_of((float)held_there);
    }
    EXPECT(same, "%s: what was gathered is not what the pages hold", w->name);
    void *const devices[] = {there[0], there[1], table_there, length_there, output, keys.data, values.data};
    for (unsigned i = 0; i < sizeof devices / sizeof devices[0]; i++) device_close(devices[i]);
    void *const blocks[] = {held[0], held[1], fetched[0], fetched[1], half, query, want, got};
    for (unsigned i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

static void check_work(const work *w) {
    const int64_t pairs = w->rotary / 2;
    float *cosine = draw(w->tokens * pairs + 1, 1, 0), *sine = draw(w->tokens * pairs + 1, 1, 0);
    part parts[3];
    ln_cuda_heads heads = {.tokens = w->tokens, .epsilon = 1e-5f, .rotary_size = w->rotary, .half = w->half};
    heads.cosine = send(cosine, w->tokens * pairs + 1);
    heads.sine = send(sine, w->tokens * pairs + 1);
    for (int i = 0; i < 3; i++) {
        parts[i] = open_part(w, i, cosine, sine, 1e-5);
        heads.part[i] = parts[i].rows;
    }
    run_now(start_heads, &heads, w->name, "heads");
    compare(w, &parts[0], "queries");
    compare(w, &parts[1], "keys");
    compare(w, &parts[2], "values");
    check_attention(w, parts, &heads);
    for (int i = 0; i < 3; i++) close_part(&parts[i]);
    device_close((void *)(uintptr_t)heads.cosine);
    device_close((void *)(uintptr_t)heads.sine);
    free(cosine);
    free(sine);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    (void)device;
    for (int i = 0; i < WORK_COUNT; i++)
        if (work_wanted(options, WORKS[i].name, 0)) check_work(&WORKS[i]);
}

static void plans(void) {
    ln_cuda_heads heads = {.tokens = 1};
    EXPECT(ln_cuda_heads_run(&heads, NULL) == LN_CUDA_ARGUMENT, "no heads are taken");
    heads.part[0] = (ln_cuda_head_rows){.heads = 1, .size = 1 << 12, .from = (float *)&heads, .to = &heads};
    EXPECT(ln_cuda_heads_run(&heads, NULL) == LN_CUDA_UNSUPPORTED, "heads of any size are taken");
    const ln_cuda_decode decode = {.sequences = 2, .queries = 1, .heads = 1, .key_value_heads = 1};
    const ln_cuda_decode_tensors tensors = {0};
    EXPECT(ln_cuda_attend_any(&decode, &tensors, NULL) == LN_CUDA_ARGUMENT, "two sequences are taken");
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    (void)device, (void)options;
}

const suite cuda_suite_heads = {"heads", WORK_COUNT, plans, check, bench};
