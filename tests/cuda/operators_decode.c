/* Decoding over pages (linnet/cuda.h) as an engineer uses it: pages are filled by append, in the middle of a pool whose
 * other pages are poison, one more step is appended, and a run sees all. Against attention of the processor over what
 * unpack reads out of the pages, which in turn is what was appended but for the rounding of the format. */
#include "operators.h"

enum { SEQUENCES = 4, PAGES_MOST = 16 };
static const int32_t LENGTHS[SEQUENCES] = {75, 0, 33, 1};
enum { CAPACITY = 80, TOKENS = 109 /* of LENGTHS */ };

typedef struct decode_work {
    const char *name;
    linnet_type precision, type, output;
    int64_t heads, key_value_heads, key_size, value_size, queries, page_tokens, window;
    float soft_cap, scale;
    bool sinks, token_major;
} decode_work;

#define BF16 LINNET_BF16
#define F16 LINNET_F16
#define F32 LINNET_F32
static const decode_work WORKS[] = {
    {"decode bf16", BF16, BF16, F32, 8, 2, 128, 0, 1, 16, 0, 0, 0, false, false},
    {"decode bf16, 3 queries, window", BF16, F32, BF16, 4, 2, 128, 0, 3, 32, 20, 0, 0.2f, false, false},
    {"decode bf16, token major, sinks", BF16, BF16, F32, 16, 1, 64, 0, 1, 16, 0, 0, 0, true, true},
    {"decode bf16, contiguous", BF16, BF16, BF16, 4, 4, 96, 0, 1, 0, 0, 0, 0, false, false},
    {"decode f16, cap", F16, F16, F32, 6, 2, 128, 0, 2, 64, 0, 10, 0, false, false},
    {"decode bf16, size 192", BF16, BF16, F32, 4, 2, 192, 0, 1, 16, 0, 0, 0, false, false},
    {"decode bf16, size 256", BF16, BF16, F32, 4, 2, 256, 0, 1, 16, 0, 0, 0, false, false},
    {"decode q8_0", LINNET_Q8_0, F32, F32, 8, 2, 128, 0, 1, 16, 0, 0, 0, true, false},
    {"decode q4_0", LINNET_Q4_0, BF16, F32, 8, 2, 128, 0, 4, 32, 0, 0, 0, false, false},
    {"decode q4", LINNET_Q4, BF16, BF16, 12, 1, 128, 0, 1, 64, 30, 0, 0, false, false},
    {"decode q2, contiguous", LINNET_Q2, F16, F32, 4, 2, 64, 0, 1, 0, 0, 0, 0, false, false},
    {"decode latent", BF16, BF16, F32, 20, 1, 576, 512, 1, 64, 0, 0, 0, false, false},
    {"decode latent f16, window", F16, F16, F32, 80, 1, 576, 512, 1, 32, 25, 0, 0, false, false},
    {"decode latent, 2 queries, sinks", BF16, F32, BF16, 16, 1, 576, 512, 2, 16, 0, 0, 0.05f, true, false},
};
const int decode_works = sizeof WORKS / sizeof WORKS[0];

/* What a format loses of normal numbers. */
static double loss_of(linnet_type precision) {
    switch (precision) {
    case LINNET_Q8_0:
        return 0.01;
    case LINNET_Q4_0:
    case LINNET_Q4:
        return 0.12;
    case LINNET_Q2:
        return 0.5;
    default:
        return 5e-3;
    }
}

/* Of numbers that f16 has, or is near: those of bf16 above 2^-14. */
static uint16_t f16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const int exponent = (int)(bits >> 23 & 255) - 112;
    return (uint16_t)((bits >> 16 & 0x8000) | (exponent > 0 ? (uint32_t)exponent << 10 | (bits >> 13 & 1023) : 0));
}
/* Rounded in place, on the device as `type`. */
static void *sent_as(linnet_type type, float *x, int64_t count) {
    uint16_t *bits = rounded(x, count);
    for (int64_t i = 0; type == F16 && i < count; i++) {
        if (fabsf(x[i]) < 0x1p-14f) x[i] = 0;
        bits[i] = f16_bits(x[i]);
    }
    void *to = type == F32 ? sent(x, count * 4) : sent(bits, count * 2);
    free(bits);
    return to;
}

typedef struct decode_case {
    const decode_work *of;
    linnet_cuda_decode_settings settings;
    linnet_cuda_decode *decode;
    linnet_cuda_decode_tensors tensors;
    int64_t value_size, value_heads; /* value_heads 0: in the keys */
    float *given[2];                 /* keys and values, of all sequences */
    float *kept[2];                  /* as pages have them */
    float *query, *sinks;
    void *workspace;
} decode_case;

/* ---- making a case ---- */

static void *pool(const decode_case *c, int64_t pages) {
    return poisoned((int64_t)linnet_cuda_decode_page_bytes(c->decode) * pages);
}

static void case_pages(decode_case *c) {
    const decode_work *w = c->of;
    const int64_t each = w->page_tokens ? (CAPACITY + w->page_tokens - 1) / w->page_tokens : 1;
    int32_t table[SEQUENCES * PAGES_MOST];
    memset(table, 0x7f, sizeof table);
    for (int64_t s = 0; w->page_tokens && s < SEQUENCES; s++)
        for (int64_t i = 0; i * w->page_tokens < LENGTHS[s]; i++) /* 7: no page twice */
            table[s * each + i] = (int32_t)((s * each + i) * 7 % (SEQUENCES * each));
    linnet_cuda_decode_tensors *t = &c->tensors;
    t->key.data = pool(c, SEQUENCES * each);
    if (c->value_heads) t->value.data = pool(c, SEQUENCES * each);
    if (w->token_major) {
        t->key.head_stride = w->key_size * 2;
        t->key.token_stride = w->key_size * 2 * w->key_value_heads;
        t->key.page_stride = t->key.token_stride * w->page_tokens;
        void *values = t->value.data;
        t->value = t->key;
        t->value.data = values;
    }
    if (w->page_tokens) t->page_table = sent(table, SEQUENCES * each * 4);
}

static void case_open(decode_case *c, const decode_work *w) {
    memset(c, 0, sizeof *c);
    c->of = w;
    c->value_size = w->value_size ? w->value_size : w->key_size;
    c->value_heads = w->value_size ? 0 : w->key_value_heads;
    linnet_cuda_decode_settings *s = &c->settings;
    *s = linnet_cuda_decode_settings_default();
    s->precision = w->precision, s->type = w->type, s->output = w->output;
    s->sequences = SEQUENCES, s->queries = w->queries;
    s->heads = w->heads, s->key_value_heads = w->key_value_heads;
    s->key_size = w->key_size, s->value_size = w->value_size, s->value_in_key = w->value_size != 0;
    s->capacity = CAPACITY, s->page_tokens = w->page_tokens;
    s->scale = w->scale, s->soft_cap = w->soft_cap, s->window = w->window, s->sinks = w->sinks;
    must(linnet_cuda_decode_open(cuda, s, &c->decode), w->name);
    char text[400];
    EXPECT(linnet_cuda_decode_text(c->decode, text, sizeof text) > 1, "%s: says nothing of its kernel", w->name);
    c->tensors.size = sizeof c->tensors;
    case_pages(c);
    const int64_t tokens = SEQUENCES * w->queries;
    c->query = random_floats(tokens * w->heads * w->key_size, 1);
    c->sinks = random_floats(w->heads, 1);
    c->tensors.query.data = sent_as(w->type, c->query, tokens * w->heads * w->key_size);
    if (w->sinks) c->tensors.sinks = sent(c->sinks, w->heads * 4);
    c->workspace = poisoned((int64_t)linnet_cuda_decode_workspace(c->decode));
    must(linnet_cuda_decode_prepare(c->decode, c->workspace, NULL), w->name);
}

static void case_close(decode_case *c) {
    void *const there[] = {c->tensors.key.data,
                           c->tensors.value.data,
                           c->tensors.query.data,
                           (void *)(uintptr_t)c->tensors.page_table,
                           (void *)(uintptr_t)c->tensors.lengths,
                           (void *)(uintptr_t)c->tensors.sinks,
                           c->workspace};
    for (size_t i = 0; i < sizeof there / sizeof there[0]; i++) linnet_cuda_release(cuda, there[i]);
    for (int side = 0; side < 2; side++) {
        free(c->given[side]);
        free(c->kept[side]);
    }
    free(c->query);
    free(c->sinks);
    linnet_cuda_decode_close(c->decode);
}

/* ---- pages ---- */

static int64_t row_of(const decode_case *c, int side) {
    return side ? c->value_heads * c->value_size : c->of->key_value_heads * c->of->key_size;
}

/* The last `count` tokens of so long sequences: rows that lie before a sequence are there, and must not be taken. */
static void append(decode_case *c, const int32_t *lengths, int64_t count) {
    linnet_tensor rows[2] = {{0}, {0}};
    for (int side = 0; side < 2; side++) {
        const int64_t row = row_of(c, side);
        float *x = malloc((size_t)(SEQUENCES * count * row + 1) * sizeof *x);
        int64_t before = 0;
        for (int64_t s = 0; s < SEQUENCES; before += LENGTHS[s++])
            for (int64_t i = 0; i < count; i++) {
                const int64_t token = lengths[s] - count + i;
                float *to = x + (s * count + i) * row;
                for (int64_t k = 0; k < row; k++) to[k] = token < 0 ? NAN : c->given[side][(before + token) * row + k];
            }
        if (row) rows[side].data = sent_as(c->of->type, x, SEQUENCES * count * row);
        free(x);
    }
    linnet_cuda_release(cuda, (void *)(uintptr_t)c->tensors.lengths);
    c->tensors.lengths = sent(lengths, SEQUENCES * 4);
    must(linnet_cuda_decode_append(c->decode, &c->tensors, count, rows[0], rows[1], NULL), c->of->name);
    must(linnet_cuda_wait(cuda, NULL), c->of->name);
    linnet_cuda_release(cuda, rows[0].data);
    linnet_cuda_release(cuda, rows[1].data);
}

static void fill(decode_case *c) {
    int32_t before[SEQUENCES];
    for (int side = 0; side < 2; side++) {
        const int64_t count = TOKENS * row_of(c, side);
        c->given[side] = random_floats(count, 1);
        free(rounded(c->given[side], count));
    }
    for (int s = 0; s < SEQUENCES; s++) before[s] = LENGTHS[s] > c->of->queries ? LENGTHS[s] - (int)c->of->queries : 0;
    append(c, before, CAPACITY);
    append(c, LENGTHS, c->of->queries);
}

static void read_back(decode_case *c) {
    void *there[2] = {poisoned(TOKENS * row_of(c, 0) * 2), poisoned(TOKENS * row_of(c, 1) * 2)};
    int64_t before = 0;
    for (int64_t s = 0; s < SEQUENCES; before += LENGTHS[s++]) {
        const linnet_tensor key = {.data = (char *)there[0] + before * row_of(c, 0) * 2},
                            value = {.data = (char *)there[1] + before * row_of(c, 1) * 2};
        must(linnet_cuda_decode_unpack(c->decode, &c->tensors, s, 0, LENGTHS[s], key, value, NULL), c->of->name);
    }
    must(linnet_cuda_wait(cuda, NULL), c->of->name);
    for (int side = 0; side < 2; side++) {
        const int64_t count = TOKENS * row_of(c, side);
        c->kept[side] = fetched_bf16(there[side], count);
        const double lost = distance(c->kept[side], c->given[side], count);
        EXPECT(lost <= loss_of(c->of->precision), "%s: %s in pages differ by %.2e from those appended", c->of->name,
               side ? "values" : "keys", lost);
        linnet_cuda_release(cuda, there[side]);
    }
}

/* ---- running ---- */

static void on_processor(const decode_case *c, float *output, float *sums) {
    const decode_work *w = c->of;
    linnet_attention_settings s = linnet_attention_settings_default();
    int64_t queries[SEQUENCES + 1] = {0}, keys[SEQUENCES + 1] = {0};
    for (int i = 0; i < SEQUENCES; i++) {
        queries[i + 1] = queries[i] + w->queries;
        keys[i + 1] = keys[i] + LENGTHS[i];
    }
    s.type = F32;
    s.heads = w->heads, s.key_value_heads = w->key_value_heads, s.key_size = w->key_size, s.value_size = c->value_size;
    s.sequences = SEQUENCES, s.query_offsets = queries, s.key_offsets = keys;
    s.causal = true, s.window = w->window, s.soft_cap = w->soft_cap, s.scale = w->scale, s.sinks = w->sinks;
    linnet_attention_tensors t = {.size = sizeof t, .log_sum_exp = sums, .sinks = c->sinks};
    t.query.data = c->query, t.key.data = c->kept[0], t.output.data = output;
    t.value.data = c->value_heads ? c->kept[1] : c->kept[0];
    if (!c->value_heads) t.value.token_stride = t.value.head_stride = w->key_size;
    linnet_attention_plan *plan;
    must(linnet_attention_plan_open(context, &s, &plan), w->name);
    void *workspace = aligned_alloc(64, (size_t)linnet_attention_workspace(plan) + 64);
    must(linnet_attention_forward(plan, &t, workspace), w->name);
    linnet_attention_plan_close(plan);
    free(workspace);
}

static void check_sums(const decode_case *c, const float *want, void *there) {
    const int64_t count = SEQUENCES * c->of->queries * c->of->heads;
    float *got = fetched(there, count);
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) wrong += !(got[i] == want[i] || fabsf(got[i] - want[i]) < 2e-2f);
    EXPECT(wrong == 0, "%s: %lld of %lld log_sum_exp differ", c->of->name, (long long)wrong, (long long)count);
    free(got);
}

static void check_run(decode_case *c) {
    const decode_work *w = c->of;
    const int64_t rows = SEQUENCES * w->queries * w->heads, count = rows * c->value_size;
    const int64_t bytes = count * (w->output == BF16 ? 2 : 4);
    pair output = pair_open(count, w->output == BF16);
    float *sums = random_floats(rows, 1);
    on_processor(c, output.here, sums);
    c->tensors.output.data = output.there;
    c->tensors.log_sum_exp = poisoned(rows * 4);
    void *first = malloc((size_t)bytes), *second = malloc((size_t)bytes), *stream, *graph;
    must(linnet_cuda_decode_run(c->decode, &c->tensors, c->workspace, NULL), w->name);
    must(linnet_cuda_fetch(cuda, first, output.there, (uint64_t)bytes), w->name);
    must(linnet_cuda_stream_open(cuda, &stream), w->name);
    must(linnet_cuda_graph_begin(cuda, stream), w->name);
    must(linnet_cuda_decode_run(c->decode, &c->tensors, c->workspace, stream), w->name);
    must(linnet_cuda_graph_end(cuda, stream, &graph), w->name);
    for (int i = 0; i < 2; i++) must(linnet_cuda_graph_run(cuda, graph, stream), w->name);
    must(linnet_cuda_wait(cuda, stream), w->name);
    must(linnet_cuda_fetch(cuda, second, output.there, (uint64_t)bytes), w->name);
    linnet_cuda_graph_close(cuda, graph);
    linnet_cuda_stream_close(cuda, stream);
    EXPECT(memcmp(first, second, (size_t)bytes) == 0, "%s: runs differ", w->name);
    pair_expect(&output, TOLERANCE, w->name, "output");
    check_sums(c, sums, c->tensors.log_sum_exp);
    linnet_cuda_release(cuda, c->tensors.log_sum_exp);
    pair_close(&output);
    free(sums);
    free(first);
    free(second);
}

/* ---- what is refused ---- */

static void refuse(linnet_cuda_decode_settings s, linnet_status status, const char *word) {
    linnet_cuda_decode *decode;
    const linnet_status got = linnet_cuda_decode_open(cuda, &s, &decode);
    EXPECT(got == status && !decode && strstr(linnet_last_error(context), word), "should be refused with '%s': %d %s",
           word, got, linnet_last_error(context));
    linnet_cuda_decode_close(decode);
}

static void check_refused_settings(void) {
    linnet_cuda_decode_settings good = linnet_cuda_decode_settings_default(), s;
    good.heads = 8, good.key_value_heads = 2, good.key_size = 128, good.capacity = 64, good.page_tokens = 16;
#define REFUSE(field, x, status, word) (s = good, s.field = x, refuse(s, status, word))
    REFUSE(type, LINNET_Q8_0, LINNET_ERROR_ARGUMENT, "queries");
    REFUSE(output, F16, LINNET_ERROR_ARGUMENT, "output");
    REFUSE(precision, LINNET_Q5, LINNET_ERROR_ARGUMENT, "precision");
    REFUSE(sequences, -1, LINNET_ERROR_ARGUMENT, "sequences");
    REFUSE(queries, 9, LINNET_ERROR_ARGUMENT, "1 to 8 queries");
    REFUSE(heads, 7, LINNET_ERROR_ARGUMENT, "key_value_heads");
    REFUSE(heads, 0, LINNET_ERROR_ARGUMENT, "heads");
    REFUSE(key_size, 0, LINNET_ERROR_ARGUMENT, "key_size");
    REFUSE(key_size, 40, LINNET_ERROR_UNSUPPORTED, "40");
    REFUSE(value_size, 64, LINNET_ERROR_UNSUPPORTED, "64");
    REFUSE(value_in_key, true, LINNET_ERROR_ARGUMENT, "value_in_key");
    REFUSE(capacity, -1, LINNET_ERROR_ARGUMENT, "capacity");
    REFUSE(page_tokens, 24, LINNET_ERROR_ARGUMENT, "page_tokens");
    REFUSE(page_tokens, 8, LINNET_ERROR_ARGUMENT, "page_tokens");
    REFUSE(window, -1, LINNET_ERROR_ARGUMENT, "window");
    REFUSE(scale, -1, LINNET_ERROR_ARGUMENT, "scale");
    REFUSE(soft_cap, INFINITY, LINNET_ERROR_ARGUMENT, "soft_cap");
#undef REFUSE
    linnet_cuda_decode *none;
    EXPECT(linnet_cuda_decode_open(cuda, NULL, &none) == LINNET_ERROR_ARGUMENT && !none, "no settings");
}

static void expect_refused(linnet_status got, const char *word) {
    EXPECT(got == LINNET_ERROR_ARGUMENT && strstr(linnet_last_error(context), word),
           "should be refused with '%s': %d %s", word, got, linnet_last_error(context));
}

/* With everything of a case right but one. */
static void check_refused_tensors(void) {
    decode_case c;
    case_open(&c, &WORKS[2]);
    fill(&c);
    linnet_cuda_decode_tensors good = c.tensors, t;
    good.output.data = c.workspace; /* nothing is written */
    char *const odd = (char *)good.query.data + 2;
#define REFUSE(field, x, word) \
    (t = good, t.field = x, expect_refused(linnet_cuda_decode_run(c.decode, &t, c.workspace, NULL), word))
    REFUSE(query.data, NULL, "queries");
    REFUSE(query.data, odd, "queries");
    REFUSE(query.head_stride, 12, "queries");
    REFUSE(output.data, odd, "output");
    REFUSE(key.data, NULL, "pages");
    REFUSE(key.data, odd, "aligned");
    REFUSE(value.data, NULL, "pages");
    REFUSE(value.token_stride, 24, "16 bytes");
    REFUSE(key.page_stride, good.key.page_stride + 16, "page_stride");
    REFUSE(page_table, NULL, "page_table");
    REFUSE(table_stride, 4, "table_stride");
    REFUSE(lengths, NULL, "lengths");
    REFUSE(sinks, NULL, "sinks");
#undef REFUSE
    expect_refused(linnet_cuda_decode_run(c.decode, &good, NULL, NULL), "workspace");
    expect_refused(linnet_cuda_decode_prepare(c.decode, (char *)c.workspace + 16, NULL), "workspace");
    const linnet_tensor rows = good.query, none = {0};
    expect_refused(linnet_cuda_decode_append(c.decode, &good, -1, rows, rows, NULL), "tokens");
    expect_refused(linnet_cuda_decode_append(c.decode, &good, CAPACITY + 1, rows, rows, NULL), "tokens");
    expect_refused(linnet_cuda_decode_append(c.decode, &good, 1, none, rows, NULL), "keys");
    expect_refused(linnet_cuda_decode_append(c.decode, &good, 1, rows, (linnet_tensor){.data = odd}, NULL), "values");
    expect_refused(linnet_cuda_decode_unpack(c.decode, &good, SEQUENCES, 0, 1, rows, rows, NULL), "sequence");
    expect_refused(linnet_cuda_decode_unpack(c.decode, &good, 0, CAPACITY, 1, rows, rows, NULL), "capacity");
    expect_refused(linnet_cuda_decode_unpack(c.decode, &good, 0, 0, 1, rows, none, NULL), "values");
    expect_refused(linnet_cuda_graph_begin(cuda, NULL), "stream");
    expect_refused(linnet_cuda_graph_run(cuda, NULL, NULL), "graph");
    EXPECT(linnet_cuda_decode_append(c.decode, &good, 0, none, none, NULL) == LINNET_OK, "no tokens are refused: %s",
           linnet_last_error(context));
    case_close(&c);
}

void check_decode(void) {
    for (int i = 0; i < decode_works; i++) {
        decode_case c;
        case_open(&c, &WORKS[i]);
        fill(&c);
        read_back(&c);
        check_run(&c);
        case_close(&c);
    }
    check_refused_settings();
    check_refused_tensors();
}
