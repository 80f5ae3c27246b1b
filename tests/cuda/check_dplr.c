/* Diagonal plus low rank on a GPU against its recurrence in float64. */
#include "kernel/cuda/dplr_cuda.h"
#include "recurrent.h"

/* How the state comes: not at all, from one array to another, in place by slots. */
enum { NO_STATE, APART, IN_PLACE };
/* Decays: as RWKV-7 has them, e^-0.6065 and more; close to 1; any, none at all among them. */
enum { MILD, SLOW, ANY };

typedef struct work {
    const char *name;
    int heads, key_heads, size;
    int lengths[BATCH_MOST];
    int layout, state, decays, segment; /* segment: chunks at once; 0: chosen */
    bool float32, strange;              /* strange: a first value that is no number */
} work;

static const work WORKS[] = {
    {"one token", 2, 2, 64, {1, -1}, .state = APART, .float32 = true},
    {"a chunk", 1, 1, 64, {16, -1}, .state = APART, .float32 = true},
    {"a chunk of 128", 1, 1, 128, {16, -1}, .state = APART, .float32 = true},
    {"100 tokens", 2, 1, 64, {100, -1}, .state = APART, .float32 = true},
    {"ragged", 2, 2, 64, {33, 0, 1, 64, 15, -1}, .layout = PADDED, .state = IN_PLACE},
    {"ragged, segments", 2, 2, 64, {133, 0, 17, 64, 15, -1}, HEAD_MAJOR, IN_PLACE, .segment = 2, .float32 = true},
    {"128, segments", 2, 1, 128, {133, 40, -1}, PADDED, IN_PLACE, .segment = 3, .float32 = true},
    {"any decay", 2, 2, 64, {70, 31, -1}, .state = APART, .decays = ANY, .float32 = true},
    {"any decay, 128", 1, 1, 128, {50, -1}, .state = APART, .decays = ANY},
    {"slow decay", 1, 1, 64, {300, -1}, .state = APART, .decays = SLOW, .segment = 7, .float32 = true},
    {"no state", 1, 1, 64, {50, 9, -1}, .float32 = true},
    {"strange values", 2, 2, 64, {40, 40, -1}, .state = APART, .float32 = true, .strange = true},
    {"4000 tokens", 4, 4, 64, {4000, 129, 2047, -1}, .state = IN_PLACE, .segment = 40},
    {"4000 tokens, slow", 4, 4, 64, {4000, 129, 2047, -1}, .state = IN_PLACE, .decays = SLOW},
    {"3000 tokens of 128", 4, 2, 128, {3000, 129, 2047, -1}, .state = IN_PLACE, .decays = SLOW},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

enum { QUERY, KEY, VALUE, A, B, DECAY, INPUTS };

typedef struct problem {
    const work *of;
    batch batch;
    ln_cuda_dplr dplr;
    ln_cuda_dplr_plan plan;
    tensor input[INPUTS], output, state_in, state_out;
    slots slots;
    void *workspace;
} problem;

/* As RWKV-7 makes them: a = -k / |k|, b = -a times factors from 0 to 1. */
static void directions_make(problem *p) {
    tensor *a = &p->input[A], *b = &p->input[B];
    for (int64_t t = 0; t < a->tokens; t++)
        for (int64_t head = 0; head < a->heads; head++) {
            double square = 1e-12;
            for (int64_t i = 0; i < a->size; i++) square += pow(tensor_at(a, t, head, i), 2);
            for (int64_t i = 0; i < a->size; i++) {
                const double x = tensor_at(a, t, head, i) / sqrt(square);
                tensor_set(a, t, head, i, -x);
                tensor_set(b, t, head, i, x * random_uniform());
            }
        }
    tensor_send(a);
    tensor_send(b);
}

static void decays_make(problem *p) {
    tensor *decay = &p->input[DECAY];
    for (int64_t i = 0; i < decay->elements; i++) {
        const double kind = random_uniform(), x = random_uniform();
        double g = p->of->decays == SLOW ? -0.01 * x : -0.6065 * x;
        if (p->of->decays == ANY) g = kind < 0.2 ? 0 : kind < 0.25 ? -88 : kind < 0.27 ? -INFINITY : -8 * x * x * x;
        ((float *)decay->host)[i] = (float)g;
    }
    tensor_send(decay);
}

static void problem_open(problem *p, const work *w, tensor_make *make) {
    *p = (problem){.of = w, .batch = batch_of(w->lengths)};
    const int64_t tokens = batch_tokens(&p->batch), size = w->size;
    p->dplr =
        (ln_cuda_dplr){w->heads, w->key_heads, size, size, p->batch.sequences, p->batch.offsets, 0.5f, w->float32};
    p->slots = slots_open(p->batch.sequences);
    const int64_t pool = w->state == IN_PLACE ? p->slots.count : p->batch.sequences;
    for (int i = QUERY; i <= B; i++)
        p->input[i] =
            make(tokens, i == VALUE ? w->heads : w->key_heads, size, w->layout, ELEMENT_BF16, i == KEY ? 0.3f : 1);
    p->input[DECAY] = make(tokens, w->heads, size, w->layout, ELEMENT_FLOAT32, 1);
    p->output = make(tokens, w->heads, size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->state_in = make(pool, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = make(pool, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 1);
    if (!p->state_in.host) return;
    directions_make(p);
    decays_make(p);
    if (w->strange) {
        tensor_set(&p->input[VALUE], p->batch.offsets[1], 0, 5, NAN);
        tensor_send(&p->input[VALUE]);
    }
}

static void problem_close(problem *p) {
    for (int i = 0; i < INPUTS; i++) tensor_close(&p->input[i]);
    tensor_close(&p->output);
    tensor_close(&p->state_in);
    tensor_close(&p->state_out);
    device_close(p->slots.device);
    device_close(p->workspace);
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const work *w = p->of;
    const ln_cuda_dplr_tensors tensors = {.query = p->input[QUERY].device,
                                          .key = p->input[KEY].device,
                                          .value = p->input[VALUE].device,
                                          .a = p->input[A].device,
                                          .b = p->input[B].device,
                                          .decay = p->input[DECAY].device,
                                          .output = p->output.device,
                                          .state_in = w->state == NO_STATE   ? NULL
                                                      : w->state == IN_PLACE ? p->state_out.device.data
                                                                             : p->state_in.device.data,
                                          .state_out = w->state == NO_STATE ? NULL : p->state_out.device.data,
                                          .state_slots = w->state == IN_PLACE ? p->slots.device : NULL};
    return ln_cuda_dplr_forward(&p->dplr, &p->plan, &tensors, p->workspace, stream);
}

/* ---- float64 ---- */

static void oracle_token(const problem *p, int64_t t, int head, double *s, double *output) {
    const int size = p->of->size, shared = head / (p->of->heads / p->of->key_heads);
    double *y = doubles(size);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) y[j] += tensor_at(&p->input[A], t, shared, i) * s[i * size + j];
    for (int j = 0; j < size; j++) output[j] = 0;
    for (int i = 0; i < size; i++) {
        const double decay = exp(tensor_at(&p->input[DECAY], t, head, i)), b = tensor_at(&p->input[B], t, shared, i),
                     key = tensor_at(&p->input[KEY], t, shared, i), query = tensor_at(&p->input[QUERY], t, shared, i);
        for (int j = 0; j < size; j++) {
            double *at = &s[i * size + j];
            *at = decay * *at + b * y[j] + key * tensor_at(&p->input[VALUE], t, head, j);
            output[j] += (double)p->dplr.scale * query * *at;
        }
    }
    free(y);
}

static void oracle(const problem *p, double *output, double *state) {
    const work *w = p->of;
    tensor_doubles(&p->state_in, state);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++) {
            const int64_t slot = w->state == IN_PLACE ? p->slots.host[s] : s;
            double *own = state + dense_place(&p->state_out, slot, head);
            if (w->state == NO_STATE) memset(own, 0, (size_t)(w->size * w->size) * sizeof *own);
            for (int64_t t = p->batch.offsets[s]; t < p->batch.offsets[s + 1]; t++)
                oracle_token(p, t, head, own, output + dense_place(&p->output, t, head));
        }
}

/* ---- checks ---- */

static void states_begin(problem *p) {
    tensor_poison(&p->output);
    tensor_poison(&p->state_out);
    if (p->of->state == IN_PLACE)
        device_send(p->state_out.device.data, p->state_in.host, p->state_in.elements * element_bytes(ELEMENT_FLOAT32));
}

static bool problem_prepare(problem *p, const ln_cuda_device *device, int64_t records) {
    ln_cuda_code code = ln_cuda_dplr_plan_make(&p->dplr, device, 0, &p->plan);
    if (p->of->segment && !code) records = p->of->segment * p->dplr.sequences * p->dplr.heads * p->plan.kernel->record;
    if (!code && records) code = ln_cuda_dplr_plan_make(&p->dplr, device, records, &p->plan);
    EXPECT(code == LN_CUDA_OK, "%s: plan gave %d: %s", p->of->name, code, p->plan.why);
    if (code) return false;
    p->workspace = device_open(p->plan.workspace);
    code = ln_cuda_dplr_prepare(&p->dplr, &p->plan, p->workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static void check_work(problem *p) {
    const char *name = p->of->name, *kernel = p->plan.kernel->name;
    double *output = doubles(p->output.tokens * p->output.heads * p->output.size),
           *state = doubles(p->state_in.elements);
    oracle(p, output, state);
    states_begin(p);
    run_now(forward, p, name, kernel);
    tensor_fetch(&p->output);
    tensor_fetch(&p->state_out);
    tensor_expect_written(&p->output, name, kernel);
    const double error = tensor_error(&p->output, output),
                 kept = p->of->state == NO_STATE ? 0 : tensor_error(&p->state_out, state);
    EXPECT(error < 6e-3, "%s, %s: relative error %.2e", name, kernel, error);
    EXPECT(kept < 5e-3, "%s, %s: relative error of the state %.2e", name, kernel, kept);
    cudaGraphExec_t graph = run_capture(forward, p, name, kernel);
    states_begin(p);
    run_graph(graph, name, kernel);
    tensor_expect_same(&p->output, name, kernel, "output");
    tensor_expect_same(&p->state_out, name, kernel, "state");
    cudaGraphExecDestroy(graph);
    printf("  %-20s %-12s %.2e, state %.2e\n", name, kernel, error, kept);
    free(output);
    free(state);
}

static double products_of(const work *w) {
    const batch b = batch_of(w->lengths);
    return (double)batch_tokens(&b) * w->heads * w->size * w->size * 10;
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        if (!work_wanted(options, WORKS[i].name, products_of(&WORKS[i]))) continue;
        problem p;
        problem_open(&p, &WORKS[i], tensor_random);
        if (problem_prepare(&p, device, 0)) check_work(&p);
        problem_close(&p);
        fflush(stdout);
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, old = {0, 7, 5, 40, 65536, 4 << 20};
    const int64_t offsets[2] = {0, 32768}, wrong[2] = {1, 2};
    ln_cuda_dplr dplr = {64, 64, 64, 64, 1, offsets, 1, false};
    ln_cuda_dplr_plan plan;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, 0, &plan) == LN_CUDA_OK && plan.segment > 1 &&
               plan.workspace < hopper.cache_bytes,
           "%s", plan.why);
    ln_cuda_dplr_tensors tensors = {0};
    EXPECT(ln_cuda_dplr_forward(&dplr, &plan, &tensors, NULL, NULL) == LN_CUDA_ARGUMENT, "without tensors");
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &old, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    dplr.key_size = 96;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    EXPECT(ln_cuda_dplr_forward(&dplr, &plan, &tensors, NULL, NULL) == LN_CUDA_UNSUPPORTED, "without a plan");
    dplr.key_size = 64, dplr.offsets = wrong;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, 0, &plan) == LN_CUDA_ARGUMENT, "%s", plan.why);
    dplr.offsets = offsets, dplr.key_heads = 7;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, 0, &plan) == LN_CUDA_ARGUMENT, "%s", plan.why);
}

/* ---- speed ---- */

static const work BENCH[] = {
    {"64 heads of 64, 32768", 64, 64, 64, {32768, -1}, .state = APART},
    {"64 heads of 64, 8 x 4096", 64, 64, 64, {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, -1}, .state = APART},
    {"32 heads of 128, 32768", 32, 32, 128, {32768, -1}, .state = APART},
    {"32 heads of 128, 8 x 4096", 32, 32, 128, {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, -1}, .state = APART},
};

/* Decays of a bench: mild ones, the same again after each million. */
static void decays_large(problem *p) {
    tensor part = tensor_random(1, 1, 1 << 20, PACKED, ELEMENT_FLOAT32, 1), *decay = &p->input[DECAY];
    for (int64_t i = 0; i < part.elements; i++) ((float *)part.host)[i] = -0.6f * (float)random_uniform();
    for (int64_t at = 0; at < decay->elements; at += part.elements)
        device_send((char *)decay->device.data + at * 4, part.host,
                    4 * (decay->elements - at < part.elements ? decay->elements - at : part.elements));
    tensor_close(&part);
    /* Small directions, so that states stay finite. */
    for (int i = A; i <= B; i++) {
        tensor_close(&p->input[i]);
        p->input[i] = tensor_large(batch_tokens(&p->batch), p->of->key_heads, p->of->size, PACKED, ELEMENT_BF16,
                                   0.5f / (float)p->of->size);
    }
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    static const int64_t ROOM[] = {16 << 20, 32 << 20, 64 << 20, 256 << 20, INT64_C(4) << 30};
    for (size_t i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) {
        const work *w = &BENCH[i];
        if (!strstr(w->name, options->works)) continue;
        problem p;
        problem_open(&p, w, tensor_large);
        decays_large(&p);
        const double bytes = (double)p.output.elements * 2 * (p.of->key_heads * 4 / p.of->heads + 2 + 2);
        for (size_t room = 0; room < sizeof ROOM / sizeof ROOM[0]; room++) {
            if (!problem_prepare(&p, device, ROOM[room])) continue;
            void *contexts[] = {&p};
            timing time;
            time_in_turns(forward, contexts, 1, options->rounds, &time);
            printf("dplr %-26s %-10s %5lld chunks at once %8.3f ms, %6.3f TB/s of inputs and outputs\n", w->name,
                   p.plan.kernel->name, (long long)p.plan.segment, time.median, 1e-9 * bytes / time.median);
            device_close(p.workspace);
        }
        p.workspace = NULL;
        problem_close(&p);
        fflush(stdout);
    }
}

const suite cuda_suite_dplr = {"dplr", WORK_COUNT, check_plans, check, bench};
