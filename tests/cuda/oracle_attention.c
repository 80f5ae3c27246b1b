/* Owns: works of attention with their tensors, and attention in float64, as its formula says. */
#include "oracle_attention.h"

const attention_work ATTENTION_BENCH[] = {
    {"d128 full 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = false},
    {"d128 causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true},
    {"d128 causal 8k x 2", 16, 16, 128, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d128 causal 4k x 4", 16, 16, 128, 128, {4096, 4096, 4096, 4096}, {4096, 4096, 4096, 4096}, .causal = true},
    {"d128 causal 2k x 8",
     16,
     16,
     128,
     128,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = true},
    {"d128 full 2k x 8",
     16,
     16,
     128,
     128,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = false},
    {"d64 full 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = false},
    {"d64 causal 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = true},
    {"d256 full 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = false},
    {"d256 causal 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = true},
    {"d96 full 16k", 16, 16, 96, 96, {16384}, {16384}, .causal = false},
    {"d192 causal 8k x 2", 16, 16, 192, 192, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d64 causal 2k x 8",
     32,
     32,
     64,
     64,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = true},
    {"d192/128 causal 8k x 2", 16, 16, 192, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d128 causal 16k, 64/8 heads", 64, 8, 128, 128, {16384}, {16384}, .causal = true},
    {"d128 window 1024 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .window = 1024},
    {"d128 cap causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .cap = 30},
    {"d128 f16 full 16k", 16, 16, 128, 128, {16384}, {16384}, .half = true},
    {"d128 f16 causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .half = true},
    {"d128 half of the tiles, 16k", 16, 16, 128, 128, {16384}, {16384}, .query_tile = 128, .key_tile = 128},
    {"d128 rank 16 full 16k", 16, 16, 128, 128, {16384}, {16384}, .rank = 16},
};
const int ATTENTION_BENCH_COUNT = sizeof ATTENTION_BENCH / sizeof ATTENTION_BENCH[0];

/* ---- shapes ---- */

int attention_sequences(const attention_work *w) {
    int count = 0;
    while (count < SEQUENCES && (w->queries[count] || w->keys[count])) count++;
    return count;
}

double attention_pairs(const attention_work *w) {
    double pairs = 0;
    for (int s = 0; s < attention_sequences(w); s++) {
        const double n = w->queries[s], m = w->keys[s];
        pairs += w->window && w->causal && w->window < n ? w->window * n - 0.5 * w->window * w->window
                 : w->causal                             ? n * m / 2
                                                         : n * m;
    }
    return pairs * w->heads * (w->query_tile ? 0.5 : 1);
}

static int tiles_of(int tokens, int tile) {
    return (tokens + tile - 1) / tile;
}

/* About half of the tiles, the first of the first list, and of the second none. */
static void draw_lists(attention_case *c) {
    const attention_work *w = c->of;
    const int key_tiles = tiles_of(w->keys[0], w->key_tile),
              lists = tiles_of(w->queries[0], w->query_tile) * (w->per_head ? w->heads : 1);
    c->list_offsets = calloc((size_t)lists + 1, sizeof *c->list_offsets);
    c->listed = malloc((size_t)(lists * key_tiles) * sizeof *c->listed);
    for (int l = 0; l < lists; l++) {
        int64_t count = c->list_offsets[l];
        for (int tile = 0; tile < key_tiles && l != 1; tile++)
            if (random_uniform() < 0.5 || (l == 0 && tile == 0)) c->listed[count++] = tile;
        c->list_offsets[l + 1] = count;
    }
}

void attention_case_describe(attention_case *c, const attention_work *w) {
    memset(c, 0, sizeof *c);
    c->of = w;
    const int sequences = attention_sequences(w);
    for (int s = 0; s < sequences; s++) {
        c->query_offsets[s + 1] = c->query_offsets[s] + w->queries[s];
        c->key_offsets[s + 1] = c->key_offsets[s] + w->keys[s];
    }
    if (w->query_tile) draw_lists(c);
    c->attention = (ln_cuda_attention){.heads = w->heads,
                                       .key_value_heads = w->key_value_heads,
                                       .key_size = w->key_size,
                                       .value_size = w->value_size,
                                       .sequences = sequences,
                                       .query_offsets = c->query_offsets,
                                       .key_offsets = c->key_offsets,
                                       .scale = 1 / sqrtf((float)w->key_size),
                                       .soft_cap = w->cap,
                                       .causal = w->causal,
                                       .window = w->window,
                                       .output_float32 = w->float32,
                                       .half = w->half,
                                       .rank = w->rank,
                                       .query_tile = w->query_tile,
                                       .key_tile = w->key_tile,
                                       .list_per_head = w->per_head,
                                       .list_offsets = c->list_offsets,
                                       .listed = c->listed};
}

/* ---- tensors ---- */

void attention_infinite_rows(tensor *t, const int64_t *offsets, int64_t sequences) {
    for (int64_t s = 1; s < sequences; s += 2)
        for (int64_t token = offsets[s]; token < offsets[s + 1]; token++)
            for (int64_t head = 0; head < t->heads; head++) tensor_set(t, token, head, 0, INFINITY);
    tensor_send(t);
}

void attention_case_open(attention_case *c, const attention_work *w) {
    attention_case_describe(c, w);
    const int64_t sequences = c->attention.sequences;
    const int64_t queries = c->query_offsets[sequences], keys = c->key_offsets[sequences];
    const element input = w->half ? ELEMENT_F16 : ELEMENT_BF16, output = w->float32 ? ELEMENT_FLOAT32 : input;
    c->query = tensor_random(queries, w->heads, w->key_size, w->layout, input, w->stretch > 0 ? w->stretch : 1);
    c->key = tensor_random(keys, w->key_value_heads, w->key_size, w->layout, input, 1);
    c->value = tensor_random(keys, w->key_value_heads, w->value_size, w->layout, input, 1);
    c->sinks = tensor_random(1, 1, w->heads, PACKED, ELEMENT_FLOAT32, 3);
    c->query_factors = tensor_random(queries, w->heads, w->rank, PACKED, ELEMENT_FLOAT32, 0.7f);
    c->key_factors = tensor_random(keys, w->key_value_heads, w->rank, PACKED, ELEMENT_FLOAT32, 0.7f);
    c->output = tensor_open(queries, w->heads, w->value_size, w->layout, output);
    c->log_sum_exp = tensor_open(queries, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    if (!w->infinite) return;
    attention_infinite_rows(&c->key, c->key_offsets, sequences);
    attention_infinite_rows(&c->value, c->key_offsets, sequences);
}

void attention_case_close(attention_case *c) {
    tensor *const all[] = {&c->query, &c->key,           &c->value,       &c->output,
                           &c->sinks, &c->query_factors, &c->key_factors, &c->log_sum_exp};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_close(all[i]);
    free(c->list_offsets);
    free(c->listed);
}

/* ---- runs ---- */

bool attention_workspace(const attention_case *c, const ln_cuda_attention_plan *plan, void **workspace) {
    ln_cuda_task *tasks = malloc((size_t)plan->tables + 1);
    ln_cuda_attention_tasks(&c->attention, plan, tasks);
    *workspace = device_open(plan->workspace);
    const ln_cuda_code code = ln_cuda_attention_prepare(plan, tasks, *workspace, NULL);
    free(tasks);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", c->of->name, code);
    return code == LN_CUDA_OK;
}

ln_cuda_code attention_forward(void *context, void *stream) {
    const attention_case *c = context;
    const ln_cuda_attention_tensors tensors = {.query = c->query.device,
                                               .key = c->key.device,
                                               .value = c->value.device,
                                               .output = c->output.device,
                                               .log_sum_exp = c->log_sum_exp.device.data,
                                               .sinks = c->of->sinks ? c->sinks.device.data : NULL,
                                               .query_factors = c->query_factors.device.data,
                                               .key_factors = c->key_factors.device.data};
    return ln_cuda_attention_forward(&c->attention, c->plan, &tensors, c->workspace, stream);
}

/* ---- float64 ---- */

bool attention_sees(const attention_case *c, int sequence, int64_t row, int64_t head, int64_t key) {
    const attention_work *w = c->of;
    const int64_t position = row + w->keys[sequence] - w->queries[sequence];
    if (w->causal && key > position) return false;
    if (w->window && (position - key >= w->window || (!w->causal && key - position >= w->window))) return false;
    if (!w->query_tile) return true;
    const int64_t list = (w->per_head ? head * tiles_of(w->queries[0], w->query_tile) : 0) + row / w->query_tile;
    for (int64_t i = c->list_offsets[list]; i < c->list_offsets[list + 1]; i++)
        if (c->listed[i] == key / w->key_tile) return true;
    return false;
}

static double number_at(const tensor *t, int64_t place) {
    if (t->element == ELEMENT_FLOAT32) return (double)((const float *)t->host)[place];
    const uint16_t bits = ((const uint16_t *)t->host)[place];
    return (double)(t->element == ELEMENT_BF16 ? of_bf16(bits) : of_f16(bits));
}

double attention_dot(const tensor *a, int64_t a_token, int64_t a_head, const tensor *b, int64_t b_token,
                     int64_t b_head) {
    const int64_t of_a = tensor_place(a, a_token, a_head), of_b = tensor_place(b, b_token, b_head);
    double sum = 0;
    for (int64_t i = 0; i < a->size; i++) sum += number_at(a, of_a + i) * number_at(b, of_b + i);
    return sum;
}

double attention_score(const attention_case *c, int64_t query, int64_t key, int64_t head, double *slope) {
    const attention_work *w = c->of;
    const int64_t shared = head / (w->heads / w->key_value_heads);
    const double cap = (double)w->cap;
    double x = attention_dot(&c->query, query, head, &c->key, key, shared) * (double)c->attention.scale;
    const double t = cap > 0 ? tanh(x / cap) : 0;
    if (slope) *slope = 1 - t * t;
    if (cap > 0) x = cap * t;
    return w->rank ? x + attention_dot(&c->query_factors, query, head, &c->key_factors, key, shared) : x;
}

double attention_row(const attention_case *c, int sequence, int64_t row, int64_t head, double *output) {
    const attention_work *w = c->of;
    const int64_t m = w->keys[sequence], token = c->query_offsets[sequence] + row,
                  shared = head / (w->heads / w->key_value_heads);
    const double sink = w->sinks ? tensor_at(&c->sinks, 0, 0, head) : -INFINITY;
    double *score = malloc((size_t)(m + 1) * sizeof *score), most = sink;
    for (int64_t j = 0; j < m; j++) {
        score[j] = -INFINITY;
        if (!attention_sees(c, sequence, row, head, j)) continue;
        score[j] = attention_score(c, token, c->key_offsets[sequence] + j, head, NULL);
        if (score[j] > most) most = score[j];
    }
    double sum = most > -INFINITY ? exp(sink - most) : 0;
    for (int i = 0; i < w->value_size; i++) output[i] = 0;
    for (int64_t j = 0; j < m; j++) {
        if (score[j] == -INFINITY) continue;
        const double weight = exp(score[j] - most);
        const int64_t at = tensor_place(&c->value, c->key_offsets[sequence] + j, shared);
        sum += weight;
        for (int i = 0; i < w->value_size; i++) output[i] += weight * number_at(&c->value, at + i);
    }
    for (int i = 0; i < w->value_size && sum > 0; i++) output[i] /= sum;
    free(score);
    return sum > 0 ? most + log(sum) : -INFINITY;
}
