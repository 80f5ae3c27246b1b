/* Owns: `bench attention --device cuda` and `bench mixers --device cuda`: the speed of operators on a GPU, in sizes
 * that fill one. Inputs are random; a figure is the median over repetitions, each of as many runs as take 20 ms,
 * started together and waited for once.
 *
 * TFLOP/s count 2 (key_size + value_size) for every pair of query and key, half of the square where causal, 2.5 times
 * that for gradients; of mixers multiply and add of their recurrence. TB/s count inputs, outputs and states once. A
 * decode work is a graph of 20 runs over pages in random order, a figure one of them.
 * Percent are of the nearer of two peaks, measured before: products, and a copy's bytes. Clock and power are read while
 * the work runs. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_shared.h"
#include "linnet/cuda.h"

typedef struct work {
    const char *name, *row; /* row NULL: attention */
    linnet_mixer_form form;
    int64_t sequences, tokens, heads, key_heads, key_size, value_size, slots; /* tokens: of each sequence */
    bool causal;
} work;

/* A token of each sequence against `tokens` keys in pages. */
typedef struct paged_work {
    work of;
    linnet_type precision;
    int64_t page_tokens;
} paged_work;

static const work works[] = {
    {"attention d128 full 16k", NULL, 0, 1, 16384, 16, 16, 128, 128, 0, false},
    {"attention d128 causal 16k", NULL, 0, 1, 16384, 16, 16, 128, 128, 0, true},
    {"attention d128 causal 8k x 2", NULL, 0, 2, 8192, 16, 16, 128, 128, 0, true},
    {"attention d128 causal 2k x 8", NULL, 0, 8, 2048, 16, 16, 128, 128, 0, true},
    {"attention d64 full 16k", NULL, 0, 1, 16384, 32, 32, 64, 64, 0, false},
    {"attention d256 full 16k", NULL, 0, 1, 16384, 8, 8, 256, 256, 0, false},
    {"attention d192/128 causal 16k", NULL, 0, 1, 16384, 16, 16, 192, 128, 0, true},
    {"attention backward d128 full 16k", NULL, LINNET_MIXER_BACKWARD, 1, 16384, 16, 16, 128, 128, 0, false},
    {"attention backward d128 causal 16k", NULL, LINNET_MIXER_BACKWARD, 1, 16384, 16, 16, 128, 128, 0, true},
    {"simple_gla forward 1 x 65536", "simple_gla", LINNET_MIXER_FORWARD, 1, 65536, 32, 32, 128, 128, 0, false},
    {"simple_gla forward 8 x 8192", "simple_gla", LINNET_MIXER_FORWARD, 8, 8192, 32, 32, 128, 128, 0, false},
    {"gla forward 1 x 32768", "gla", LINNET_MIXER_FORWARD, 1, 32768, 16, 16, 128, 128, 0, false},
    {"gated_delta_rule forward 1 x 32768", "gated_delta_rule", LINNET_MIXER_FORWARD, 1, 32768, 64, 16, 128, 128, 0,
     false},
    {"gated_delta_rule forward 8 x 4096", "gated_delta_rule", LINNET_MIXER_FORWARD, 8, 4096, 64, 16, 128, 128, 0,
     false},
    {"kda forward 1 x 8192", "kda", LINNET_MIXER_FORWARD, 1, 8192, 64, 64, 128, 128, 0, false},
    {"rwkv7 forward 1 x 32768", "rwkv7", LINNET_MIXER_FORWARD, 1, 32768, 64, 64, 64, 64, 0, false},
    {"selective_scan forward 8 x 8192", "selective_scan", LINNET_MIXER_FORWARD, 8, 8192, 1, 1, 1, 4096, 16, false},
    {"short_convolution forward 8 x 8192", "short_convolution", LINNET_MIXER_FORWARD, 8, 8192, 1, 1, 1, 4096, 4, false},
    {"simple_gla backward 1 x 16384", "simple_gla", LINNET_MIXER_BACKWARD, 1, 16384, 32, 32, 128, 128, 0, false},
    {"gated_delta_rule backward 1 x 32768", "gated_delta_rule", LINNET_MIXER_BACKWARD, 1, 32768, 32, 16, 128, 128, 0,
     false},
    {"gated_delta_rule step 256", "gated_delta_rule", LINNET_MIXER_STEP, 256, 1, 32, 32, 128, 128, 0, false},
    {"gla step 256", "gla", LINNET_MIXER_STEP, 256, 1, 32, 32, 128, 128, 0, false},
};

static const paged_work paged_works[] = {
    {{"attention decode 16 x 8k", NULL, LINNET_MIXER_STEP, 16, 8192, 32, 8, 128, 128, 0, false}, LINNET_BF16, 16},
    {{"attention decode 64 x 8k", NULL, LINNET_MIXER_STEP, 64, 8192, 32, 8, 128, 128, 0, false}, LINNET_BF16, 16},
    {{"attention decode 1 x 128k", NULL, LINNET_MIXER_STEP, 1, 131072, 32, 8, 128, 128, 0, false}, LINNET_BF16, 16},
    {{"attention decode 1 x 1k", NULL, LINNET_MIXER_STEP, 1, 1024, 32, 8, 128, 128, 0, false}, LINNET_BF16, 16},
    {{"attention decode q4_0 64 x 8k", NULL, LINNET_MIXER_STEP, 64, 8192, 32, 8, 128, 128, 0, false}, LINNET_Q4_0, 16},
    {{"attention decode latent 16, 64 x 8k", NULL, LINNET_MIXER_STEP, 64, 8192, 16, 1, 576, 512, 0, false},
     LINNET_BF16,
     64},
    {{"attention decode latent 128, 64 x 8k", NULL, LINNET_MIXER_STEP, 64, 8192, 128, 1, 576, 512, 0, false},
     LINNET_BF16,
     64},
};
enum { PAGED_WORKS = sizeof paged_works / sizeof paged_works[0] };
enum { WORKS = sizeof works / sizeof works[0], MOST_ROUNDS = 1000, MOST_BLOCKS = 64, STEPS = 20 };

typedef struct bench {
    const cli_arguments *arguments;
    linnet_context *context;
    linnet_cuda *cuda;
    void *blocks[MOST_BLOCKS]; /* on the device */
    int block_count;
    const work *work;
    const paged_work *paged; /* NULL: no such */
    linnet_cuda_attention *attention;
    linnet_attention_tensors attention_tensors;
    linnet_cuda_mixer *mixer;
    linnet_mixer_tensors mixer_tensors;
    linnet_cuda_decode *decode;
    linnet_cuda_decode_tensors decode_tensors;
    void *stream, *graph; /* graph: STEPS runs of a decode work */
    int64_t *offsets;
    void *workspace;
    linnet_peaks peaks;
    double flops, bytes;
    char why[400];
} bench;

static int failed(const bench *b) {
    return cli_error("%s", linnet_last_error(b->context));
}

/* ---- tensors ---- */

static void *room(bench *b, double bytes) {
    void *block = NULL;
    if (b->block_count == MOST_BLOCKS || bytes > 0x1p46 ||
        linnet_cuda_allocate(b->cuda, (uint64_t)bytes, &block) != LINNET_OK)
        return NULL;
    b->blocks[b->block_count++] = block;
    return block;
}

static float draw(uint32_t *state, linnet_mixer_range range) {
    *state = *state * 1664525 + 1013904223;
    const float unit = (float)(*state >> 8) * 0x1p-24f, even = (2 * unit - 1) * 1.7320508f;
    switch (range) {
    case LINNET_RANGE_DECAY:
        return -0.1f * unit;
    case LINNET_RANGE_NEGATIVE:
        return -0.1f - unit;
    case LINNET_RANGE_POSITIVE:
        return 0.1f + 0.4f * unit;
    case LINNET_RANGE_UNIT:
    case LINNET_RANGE_TWICE:
        return unit;
    case LINNET_RANGE_SMALL:
        return 0.05f * even;
    default:
        return even;
    }
}

static void *random_block(bench *b, linnet_type type, int64_t count, linnet_mixer_range range, float scale) {
    const size_t width = type == LINNET_BF16 ? 2 : 4;
    float *values = malloc((size_t)count * width + 4);
    void *block = values ? room(b, (double)count * (double)width) : NULL;
    uint32_t state = (uint32_t)b->block_count;
    for (int64_t i = 0; block && i < count; i++) {
        const float value = draw(&state, range) * scale;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (type == LINNET_BF16)
            ((uint16_t *)(void *)values)[i] = (uint16_t)(bits >> 16);
        else
            values[i] = value;
    }
    if (block && linnet_cuda_send(b->cuda, block, values, (uint64_t)count * width) != LINNET_OK) block = NULL;
    free(values);
    b->bytes += (double)count * (double)width;
    return block;
}

/* ---- making a work ---- */

static int make_attention(bench *b) {
    const work *w = b->work;
    const int64_t tokens = w->sequences * w->tokens;
    linnet_attention_settings s = linnet_attention_settings_default();
    s.type = s.output = LINNET_BF16;
    s.heads = w->heads, s.key_value_heads = w->key_heads, s.key_size = w->key_size, s.value_size = w->value_size;
    s.sequences = w->sequences, s.query_offsets = b->offsets, s.causal = w->causal;
    s.backward = w->form == LINNET_MIXER_BACKWARD;
    if (linnet_cuda_attention_open(b->cuda, &s, &b->attention) != LINNET_OK) return failed(b);
    linnet_cuda_attention_text(b->attention, b->why, sizeof b->why);
    b->flops = 2.0 * (double)(w->key_size + w->value_size) * (double)w->heads * (double)w->sequences *
               (double)w->tokens * (double)w->tokens * (w->causal ? 0.5 : 1) * (s.backward ? 2.5 : 1);
    linnet_attention_tensors *t = &b->attention_tensors;
    *t = (linnet_attention_tensors){.size = sizeof *t};
    t->query.data = random_block(b, LINNET_BF16, tokens * w->heads * w->key_size, LINNET_RANGE_ANY, 1);
    t->key.data = random_block(b, LINNET_BF16, tokens * w->key_heads * w->key_size, LINNET_RANGE_ANY, 1);
    t->value.data = random_block(b, LINNET_BF16, tokens * w->key_heads * w->value_size, LINNET_RANGE_ANY, 1);
    t->output.data = room(b, 2.0 * (double)(tokens * w->heads * w->value_size));
    b->workspace = room(b, (double)linnet_cuda_attention_workspace(b->attention));
    bool fits = t->query.data && t->key.data && t->value.data && t->output.data && b->workspace;
    if (s.backward) {
        t->log_sum_exp = room(b, 4.0 * (double)(tokens * w->heads));
        t->output_gradient.data = random_block(b, LINNET_BF16, tokens * w->heads * w->value_size, LINNET_RANGE_ANY, 1);
        t->query_gradient.data = room(b, 2.0 * (double)(tokens * w->heads * w->key_size));
        t->key_gradient.data = room(b, 2.0 * (double)(tokens * w->key_heads * w->key_size));
        t->value_gradient.data = room(b, 2.0 * (double)(tokens * w->key_heads * w->value_size));
        fits &= t->log_sum_exp && t->output_gradient.data && t->query_gradient.data && t->key_gradient.data &&
                t->value_gradient.data;
    }
    if (!fits || linnet_cuda_attention_prepare(b->attention, b->workspace, NULL) != LINNET_OK) return failed(b);
    return linnet_cuda_attention_forward(b->attention, t, b->workspace, NULL) == LINNET_OK ? CLI_OK : failed(b);
}

static bool mixer_inputs(bench *b, const linnet_mixer_settings *s) {
    linnet_mixer_tensors *t = &b->mixer_tensors;
    linnet_mixer_input input;
    bool fits = true;
    for (int k = 0; linnet_mixer_input_of(s, k, &input); k++) {
        const int64_t count = (input.parameter ? 1 : s->tokens) * input.heads * input.columns;
        const bool direction = !strcmp(input.name, "key") || !strcmp(input.name, "query");
        t->input[k].data =
            random_block(b, input.type, count, input.range, direction ? (float)(1 / sqrt((double)input.columns)) : 1);
        fits &= t->input[k].data != NULL;
        if (b->work->form != LINNET_MIXER_BACKWARD) continue;
        t->input_gradient[k].data = room(b, 4.0 * (double)count);
        fits &= t->input_gradient[k].data != NULL;
    }
    return fits;
}

static int make_mixer(bench *b) {
    const work *w = b->work;
    linnet_mixer_settings s = linnet_mixer_settings_default(w->row);
    s.type = s.output = LINNET_BF16;
    s.heads = w->heads, s.key_heads = w->key_heads, s.key_size = w->key_size, s.value_size = w->value_size;
    s.slots = w->slots, s.sequences = w->sequences, s.tokens = w->sequences * w->tokens;
    if (linnet_cuda_mixer_open(b->cuda, &s, w->form, &b->mixer) != LINNET_OK) return failed(b);
    linnet_cuda_mixer_text(b->mixer, b->why, sizeof b->why);
    linnet_mixer_tensors *t = &b->mixer_tensors;
    *t = (linnet_mixer_tensors){.size = sizeof *t};
    const int64_t outputs = s.tokens * s.heads * linnet_mixer_output_columns(&s),
                  states = s.sequences * linnet_mixer_state_floats(&s);
    b->flops = linnet_mixer_flops(b->context, &s, w->form) * (double)(s.tokens * s.heads);
    bool fits = mixer_inputs(b, &s);
    void *output = random_block(b, LINNET_BF16, outputs, LINNET_RANGE_ANY, 1);
    if (w->form == LINNET_MIXER_BACKWARD)
        t->output_gradient.data = output;
    else
        t->output.data = output;
    if (w->form == LINNET_MIXER_STEP) {
        t->state_in = t->state_out = random_block(b, LINNET_F32, states, LINNET_RANGE_SMALL, 1);
        b->bytes += 4.0 * (double)states;
        fits &= t->state_in != NULL;
    }
    b->workspace = room(b, (double)linnet_cuda_mixer_workspace(b->mixer));
    if (!fits || !output || !b->workspace) return failed(b);
    return linnet_cuda_mixer_prepare(b->mixer, b->workspace, NULL) == LINNET_OK ? CLI_OK : failed(b);
}

/* ---- making a work over pages ---- */

/* A random order of all pages, so that no sequence has neighbours. */
static int32_t *random_table(int64_t pages) {
    int32_t *table = malloc((size_t)pages * sizeof *table);
    uint32_t state = 1;
    for (int64_t i = 0; table && i < pages; i++) table[i] = (int32_t)i;
    for (int64_t i = pages - 1; table && i > 0; i--) {
        const int64_t other = (int64_t)((double)(state = state * 1664525 + 1013904223) * 0x1p-32 * (double)(i + 1));
        const int32_t held = table[i];
        table[i] = table[other], table[other] = held;
    }
    return table;
}

static bool make_pages(bench *b) {
    const work *w = b->work;
    const int64_t pages = w->sequences * (w->tokens / b->paged->page_tokens);
    const double bytes = (double)linnet_cuda_decode_page_bytes(b->decode) * (double)pages;
    const bool latent = w->key_size != w->value_size;
    linnet_cuda_decode_tensors *t = &b->decode_tensors;
    int32_t *table = random_table(pages);
    void *on_device = room(b, 4.0 * (double)pages), *lengths = room(b, 4.0 * (double)w->sequences);
    bool fits = table && on_device && lengths &&
                linnet_cuda_send(b->cuda, on_device, table, (uint64_t)pages * sizeof *table) == LINNET_OK;
    free(table);
    t->page_table = on_device, t->lengths = lengths;
    t->key.data = room(b, bytes);
    if (!latent) t->value.data = room(b, bytes);
    b->bytes += bytes * (latent ? 1 : 2);
    return fits && t->key.data && (latent || t->value.data);
}

/* Pages in pieces of the same random rows. */
static linnet_status fill_pages(bench *b) {
    const work *w = b->work;
    const int64_t piece = w->sequences * w->tokens < 32768 ? w->tokens : 32768 / w->sequences, heads = w->key_heads;
    const double counted = b->bytes;
    const linnet_tensor key = {.data = random_block(b, LINNET_BF16, w->sequences * piece * heads * w->key_size,
                                                    LINNET_RANGE_ANY, 1)},
                        value = {.data = random_block(b, LINNET_BF16, w->sequences * piece * heads * w->value_size,
                                                      LINNET_RANGE_ANY, 1)};
    int32_t *lengths = malloc((size_t)w->sequences * sizeof *lengths);
    linnet_status status = key.data && value.data && lengths ? LINNET_OK : LINNET_ERROR_MEMORY;
    for (int64_t until = piece; until <= w->tokens && status == LINNET_OK; until += piece) {
        for (int64_t s = 0; s < w->sequences; s++) lengths[s] = (int32_t)until;
        status = linnet_cuda_send(b->cuda, (void *)(uintptr_t)b->decode_tensors.lengths, lengths,
                                  (uint64_t)w->sequences * sizeof *lengths);
        if (status == LINNET_OK)
            status = linnet_cuda_decode_append(b->decode, &b->decode_tensors, piece, key, value, NULL);
        if (status == LINNET_OK) status = linnet_cuda_wait(b->cuda, NULL);
    }
    free(lengths);
    b->bytes = counted;
    return status;
}

static linnet_status make_graph(bench *b) {
    linnet_status status = linnet_cuda_stream_open(b->cuda, &b->stream);
    if (status == LINNET_OK) status = linnet_cuda_graph_begin(b->cuda, b->stream);
    if (status != LINNET_OK) return status;
    for (int i = 0; i < STEPS && status == LINNET_OK; i++)
        status = linnet_cuda_decode_run(b->decode, &b->decode_tensors, b->workspace, b->stream);
    const linnet_status ended = linnet_cuda_graph_end(b->cuda, b->stream, &b->graph);
    return status == LINNET_OK ? ended : status;
}

static int make_decode(bench *b) {
    const work *w = b->work;
    linnet_cuda_decode_settings s = linnet_cuda_decode_settings_default();
    s.output = LINNET_BF16, s.precision = b->paged->precision, s.page_tokens = b->paged->page_tokens;
    s.heads = w->heads, s.key_value_heads = w->key_heads, s.key_size = w->key_size, s.value_size = w->value_size;
    s.value_in_key = w->key_size != w->value_size, s.sequences = w->sequences, s.capacity = w->tokens;
    if (linnet_cuda_decode_open(b->cuda, &s, &b->decode) != LINNET_OK) return failed(b);
    linnet_cuda_decode_text(b->decode, b->why, sizeof b->why);
    b->flops = 2.0 * (double)(w->key_size + w->value_size) * (double)w->heads * (double)(w->sequences * w->tokens);
    linnet_cuda_decode_tensors *t = &b->decode_tensors;
    *t = (linnet_cuda_decode_tensors){.size = sizeof *t};
    t->query.data = random_block(b, LINNET_BF16, w->sequences * w->heads * w->key_size, LINNET_RANGE_ANY, 1);
    t->output.data = room(b, 2.0 * (double)(w->sequences * w->heads * w->value_size));
    b->workspace = room(b, (double)linnet_cuda_decode_workspace(b->decode));
    if (!make_pages(b) || !t->query.data || !t->output.data || !b->workspace || fill_pages(b) != LINNET_OK ||
        linnet_cuda_decode_prepare(b->decode, b->workspace, NULL) != LINNET_OK)
        return failed(b);
    return make_graph(b) == LINNET_OK ? CLI_OK : failed(b);
}

/* ---- timing ---- */

/* Of so many runs at once. */
static int steps_of(const bench *b) {
    return b->graph ? STEPS : 1;
}

static linnet_status start(const bench *b) {
    if (b->graph) return linnet_cuda_graph_run(b->cuda, b->graph, b->stream);
    if (b->mixer) return linnet_cuda_mixer_run(b->mixer, &b->mixer_tensors, b->workspace, NULL);
    return (b->work->form == LINNET_MIXER_BACKWARD ? linnet_cuda_attention_backward : linnet_cuda_attention_forward)(
        b->attention, &b->attention_tensors, b->workspace, NULL);
}

/* Seconds of `runs` runs; negative: failed. */
static double seconds_of(const bench *b, int runs) {
    const double began = cli_seconds();
    linnet_status status = LINNET_OK;
    for (int i = 0; i < runs && status == LINNET_OK; i++) status = start(b);
    if (status == LINNET_OK) status = linnet_cuda_wait(b->cuda, b->stream);
    return status == LINNET_OK ? cli_seconds() - began : -1;
}

/* Clock and power while runs are under way, for about as long as the driver's power meter looks back. */
static linnet_status read_state(const bench *b, double once, linnet_cuda_info *info) {
    const int runs = (int)(0.1 / once) + 1;
    linnet_status status = LINNET_OK;
    for (int i = 0; i < runs && status == LINNET_OK; i++) status = start(b);
    if (status == LINNET_OK) status = linnet_cuda_describe(b->cuda, info);
    const linnet_status waited = linnet_cuda_wait(b->cuda, b->stream);
    return status == LINNET_OK ? waited : status;
}

static double percent_of_peak(const bench *b, double seconds) {
    const double operations = b->peaks.bf16_operations > 0 ? b->flops / seconds / b->peaks.bf16_operations : 0,
                 bytes = b->peaks.read_bytes > 0 ? b->bytes / seconds / b->peaks.read_bytes : 0;
    return 100 * (operations > bytes ? operations : bytes);
}

/* With the shape, so that a peer can do the same work. */
static int print_json(const bench *b, double seconds, double percent, const linnet_cuda_info *info) {
    static const char *const forms[] = {
        [LINNET_MIXER_FORWARD] = "forward", [LINNET_MIXER_STEP] = "step", [LINNET_MIXER_BACKWARD] = "backward"};
    const work *w = b->work;
    return cli_json_line(
        json_pack("{ss ss sb sI sI sI sI sI sI sb sf sf sf sf sf sf ss}", "work", w->name, "form",
                  b->paged ? "decode" : forms[w->form], "comparable",
                  !b->paged || (b->paged->precision == LINNET_BF16 && w->key_size == w->value_size), "sequences",
                  (json_int_t)w->sequences, "tokens", (json_int_t)w->tokens, "heads", (json_int_t)w->heads, "key_heads",
                  (json_int_t)w->key_heads, "key_size", (json_int_t)w->key_size, "value_size",
                  (json_int_t)w->value_size, "causal", w->causal, "seconds", seconds, "flops", b->flops, "bytes",
                  b->bytes, "percent_of_peak", percent, "clock", info->clock, "power", info->power, "kernel", b->why));
}

static int time_work(const bench *b) {
    double samples[MOST_ROUNDS];
    const double once = seconds_of(b, 1) < 0 ? -1 : seconds_of(b, 3) / 3;
    if (once <= 0) return failed(b);
    const int runs = once < 0.02 ? (int)(0.02 / once) + 1 : 1, rounds = (int)b->arguments->repetitions;
    for (int round = 0; round < rounds; round++) {
        const double seconds = seconds_of(b, runs);
        if (seconds < 0) return failed(b);
        samples[round] = seconds / runs / steps_of(b);
    }
    const double median = cli_median(samples, rounds), percent = percent_of_peak(b, median);
    linnet_cuda_info info = {.size = sizeof info};
    if (read_state(b, once, &info) != LINNET_OK) return failed(b);
    if (b->arguments->json) return print_json(b, median, percent, &info);
    printf("| %-36s | %9.3f | %8.1f | %6.2f | %4.0f %% | %5.0f | %4.0f | %s |\n", b->work->name, 1e3 * median,
           1e-12 * b->flops / median, 1e-12 * b->bytes / median, percent, info.clock, info.power, b->why);
    fflush(stdout);
    return CLI_OK;
}

static void drop(bench *b) {
    linnet_cuda_attention_close(b->attention);
    linnet_cuda_mixer_close(b->mixer);
    linnet_cuda_graph_close(b->cuda, b->graph);
    linnet_cuda_stream_close(b->cuda, b->stream);
    linnet_cuda_decode_close(b->decode);
    while (b->block_count > 0) linnet_cuda_release(b->cuda, b->blocks[--b->block_count]);
    free(b->offsets);
    b->attention = NULL;
    b->mixer = NULL;
    b->decode = NULL;
    b->graph = b->stream = NULL;
    b->offsets = NULL;
    b->bytes = b->flops = 0;
}

static int run_work(bench *b) {
    const work *w = b->work;
    b->offsets = malloc(((size_t)w->sequences + 1) * sizeof *b->offsets);
    if (!b->offsets) return cli_error("not enough memory for %s", w->name);
    for (int64_t s = 0; s <= w->sequences; s++) b->offsets[s] = s * w->tokens;
    int status = w->row ? make_mixer(b) : b->paged ? make_decode(b) : make_attention(b);
    if (status == CLI_OK) status = time_work(b);
    drop(b);
    return status;
}

static int print_head(bench *b) {
    linnet_cuda_info info = {.size = sizeof info};
    b->peaks.size = sizeof b->peaks;
    if (linnet_cuda_measure_peaks(b->cuda, &b->peaks) != LINNET_OK || linnet_cuda_describe(b->cuda, &info) != LINNET_OK)
        return failed(b);
    if (b->arguments->json)
        return cli_json_line(json_pack("{ss si si si sI sf sf}", "device", info.name, "major", info.major, "minor",
                                       info.minor, "multiprocessors", info.multiprocessors, "memory",
                                       (json_int_t)info.memory, "bf16_operations", b->peaks.bf16_operations,
                                       "copy_bytes", b->peaks.read_bytes));
    printf("%s, compute capability %d.%d, %d multiprocessors, %s of memory\n", info.name, info.major, info.minor,
           info.multiprocessors, cli_size(info.memory));
    printf("peaks: %.0f TFLOP/s (bf16 products), %.2f TB/s (a copy, read and written)\n\n",
           1e-12 * b->peaks.bf16_operations, 1e-12 * b->peaks.read_bytes);
    printf("| %-36s | %9s | %8s | %6s | %6s | %5s | %4s | %s |\n| :-- | --: | --: | --: | --: | --: | --: | :-- |\n",
           "work", "ms", "TFLOP/s", "TB/s", "peak", "MHz", "W", "kernel");
    return CLI_OK;
}

int cli_bench_device(const cli_arguments *arguments, bool attention, bool mixers) {
    bench b = {.arguments = arguments};
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    if (linnet_context_open(&settings, &b.context) != LINNET_OK) return cli_error("not enough memory");
    int status = linnet_cuda_open(b.context, 0, &b.cuda) == LINNET_OK ? CLI_OK : failed(&b);
    if (status == CLI_OK) status = print_head(&b);
    for (int i = 0; i < WORKS && status == CLI_OK; i++) {
        b.work = &works[i];
        if ((works[i].row ? mixers : attention) && cli_wanted(works[i].name, arguments->works)) status = run_work(&b);
    }
    for (int i = 0; i < PAGED_WORKS && attention && status == CLI_OK; i++) {
        b.paged = &paged_works[i];
        b.work = &paged_works[i].of;
        if (cli_wanted(b.work->name, arguments->works)) status = run_work(&b);
    }
    linnet_cuda_close(b.cuda);
    linnet_context_close(b.context);
    return status;
}
