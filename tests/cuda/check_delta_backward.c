/* Gradients of the delta rules against float64: the recurrence token by token, forward with every state kept, then
 * back. Bound: 1e-2 of the length of each gradient, that of bf16 operands in products of products; 3e-2 of that of
 * decays, whose parts cancel, and 1e-1 of those of decays and beta where few tokens count, for decays are strong or
 * there are no more. */
#include "check.h"

#include "kernel/cuda/delta_backward_cuda.h"

/* HARD: some decays are 0, some -inf, some tiny, and some betas are 0. */
enum { SEQUENCES = 8, MILD = 0, NEAR_ONE, STRONG, HARD, DECAYS };

typedef struct work {
    const char *name;
    int heads, key_heads, key_size, value_size;
    int tokens[SEQUENCES]; /* ended by a count of -1 or the array's end; 0: an empty sequence */
    ln_cuda_delta_decay decay;
    int kind, layout;
    bool tiled, normalise, float32, bf16, stateless;
    bool infinite, missing; /* odd sequences hold infinite numbers; their second token's decays are no numbers */
    float beta;             /* the greatest; 0: 1 */
} work;

#define ENDED -1
static const work WORKS[] = {
    {"one token", 2, 1, 64, 64, {1, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"64: a chunk", 1, 1, 64, 64, {64, ENDED}, LN_CUDA_DECAY_NONE, .normalise = true, .stateless = true},
    {"64: 130, gated", 2, 1, 64, 64, {130, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true, .float32 = true},
    {"128: a chunk", 1, 1, 128, 128, {64, ENDED}, LN_CUDA_DECAY_HEAD, .layout = PADDED},
    {"128: 70, groups", 2, 1, 128, 64, {70, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true, .bf16 = true},
    {"128: 70, tiled heads", 4, 2, 128, 64, {70, ENDED}, LN_CUDA_DECAY_HEAD, .tiled = true, .normalise = true},
    {"64: ragged", 2, 1, 64, 64, {30, 0, 65, 1, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true, .layout = HEAD_MAJOR},
    {"64: infinite neighbours",
     1,
     1,
     64,
     64,
     {30, 70, 20, 5, ENDED},
     LN_CUDA_DECAY_HEAD,
     .normalise = true,
     .infinite = true},
    {"64: decay missing", 1, 1, 64, 64, {30, 70, 20, 5, ENDED}, LN_CUDA_DECAY_HEAD, .missing = true},
    {"64: hard decays", 2, 1, 64, 64, {100, ENDED}, LN_CUDA_DECAY_HEAD, HARD, .normalise = true},
    {"64: strong decays, beta 2", 2, 1, 64, 64, {100, ENDED}, LN_CUDA_DECAY_HEAD, STRONG, .normalise = true, .beta = 2},
    {"128: 200, decays near 1",
     2,
     1,
     128,
     128,
     {200, ENDED},
     LN_CUDA_DECAY_HEAD,
     NEAR_ONE,
     .normalise = true,
     .layout = PADDED},
    {"128: 1000, no decays", 4, 2, 128, 128, {1000, ENDED}, LN_CUDA_DECAY_NONE, .normalise = true},
    {"128: ragged, groups of 4",
     8,
     2,
     128,
     128,
     {128, 1, 0, 333, 64, 65, 190, ENDED},
     LN_CUDA_DECAY_HEAD,
     NEAR_ONE,
     .normalise = true,
     .float32 = true},
    {"128: 700, hard decays", 4, 2, 128, 128, {700, ENDED}, LN_CUDA_DECAY_HEAD, HARD, .normalise = true, .bf16 = true},
    {"128: 1500, mild", 2, 2, 128, 128, {1500, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true, .stateless = true},
    {"128/256: 150", 2, 1, 128, 256, {150, ENDED}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"channel, one token", 2, 1, 64, 64, {1, ENDED}, LN_CUDA_DECAY_KEY, .normalise = true},
    {"channel, 64: 130", 2, 1, 64, 64, {130, ENDED}, LN_CUDA_DECAY_KEY, .normalise = true},
    {"channel, 64: decay missing", 1, 1, 64, 64, {30, 70, 20, 5, ENDED}, LN_CUDA_DECAY_KEY, .missing = true},
    {"channel, 64: hard decays", 2, 1, 64, 64, {100, ENDED}, LN_CUDA_DECAY_KEY, HARD, .normalise = true},
    {"channel, 64: strong decays", 1, 1, 64, 64, {100, ENDED}, LN_CUDA_DECAY_KEY, STRONG, .normalise = true},
    {"channel, 128: 70", 1, 1, 128, 128, {70, ENDED}, LN_CUDA_DECAY_KEY, .bf16 = true},
    {"channel, 128: 700", 4, 2, 128, 128, {700, ENDED}, LN_CUDA_DECAY_KEY, NEAR_ONE, .normalise = true},
    {"channel, 128: ragged", 4, 4, 128, 128, {128, 1, 0, 333, 65, ENDED}, LN_CUDA_DECAY_KEY, .normalise = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static const work BENCH[] = {
    {"gated, 32/16 heads, 32k",
     32,
     16,
     128,
     128,
     {32768, ENDED},
     LN_CUDA_DECAY_HEAD,
     .normalise = true,
     .bf16 = true,
     .stateless = true},
    {"gated, 32/16 heads, 8k",
     32,
     16,
     128,
     128,
     {8192, ENDED},
     LN_CUDA_DECAY_HEAD,
     .normalise = true,
     .bf16 = true,
     .stateless = true},
    {"gated, 32/16 heads, 4k x 8",
     32,
     16,
     128,
     128,
     {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096},
     LN_CUDA_DECAY_HEAD,
     .normalise = true,
     .bf16 = true,
     .stateless = true},
    {"channel, 64 heads, 8k",
     64,
     64,
     128,
     128,
     {8192, ENDED},
     LN_CUDA_DECAY_KEY,
     .normalise = true,
     .bf16 = true,
     .stateless = true},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0], KERNELS_MOST = 16 };

/* ---- a case ---- */

enum { QUERY, KEY, VALUE, OUTPUT, BETA, DECAY, STATE_IN, STATE_OUT, INPUTS };
static const char *const INPUT_NAMES[INPUTS] = {"query", "key",   "value",    "output",
                                                "beta",  "decay", "state in", "state out"};

typedef struct problem {
    const work *of;
    int64_t offsets[SEQUENCES + 1], slots[SEQUENCES];
    ln_cuda_delta_backward delta;
    tensor input[INPUTS], gradient[INPUTS]; /* of OUTPUT and STATE_OUT the input is the gradient */
    bool wanted[INPUTS];
    int64_t *device_slots;
    const ln_cuda_delta_backward_plan *plan;
    void *workspace;
} problem;

static int sequences_of(const work *w) {
    int count = 0;
    while (count < SEQUENCES && w->tokens[count] >= 0) count++;
    return count;
}

/* Whether a sequence is not compared. */
static bool spoiled(const work *w, int sequence) {
    return (w->infinite || w->missing) && sequence % 2;
}

static double decay_drawn(int kind) {
    const double u = random_uniform();
    if (kind == NEAR_ONE) return -1e-3 * u;
    if (kind == STRONG) return -30 * u;
    if (kind == HARD) return u < 0.1 ? -INFINITY : u < 0.3 ? 0 : u < 0.4 ? -200 * u : -0.2 * u;
    return -0.2 * u;
}

static void problem_draw(problem *p) {
    const work *w = p->of;
    tensor *beta = &p->input[BETA], *decay = &p->input[DECAY];
    for (int64_t i = 0; i < beta->elements; i++)
        ((float *)beta->host)[i] =
            w->kind == HARD && random_uniform() < 0.2 ? 0 : (float)random_uniform() * (w->beta > 0 ? w->beta : 1);
    for (int64_t i = 0; i < decay->elements; i++) ((float *)decay->host)[i] = (float)decay_drawn(w->kind);
    for (int s = 1; s < sequences_of(w) && w->missing; s += 2)
        for (int64_t head = 0; head < decay->heads; head++)
            for (int64_t i = 0; i < decay->size; i++) tensor_set(decay, p->offsets[s] + 1, head, i, (double)NAN);
    tensor_send(beta);
    tensor_send(decay);
    for (int s = 1; s < sequences_of(w) && w->infinite; s += 2)
        for (int64_t token = p->offsets[s]; token < p->offsets[s + 1]; token++)
            for (int i = 0; i < 4; i++)
                for (int64_t head = 0; head < p->input[i].heads; head++)
                    tensor_set(&p->input[i], token, head, 3, i % 2 ? (double)INFINITY : (double)NAN);
    for (int i = 0; i < 4; i++) tensor_send(&p->input[i]);
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    const int sequences = sequences_of(w);
    for (int s = 0; s < sequences; s++) {
        p->offsets[s + 1] = p->offsets[s] + w->tokens[s];
        p->slots[s] = (s + 1) % sequences;
    }
    const int64_t tokens = p->offsets[sequences], state = (int64_t)w->key_size * w->value_size;
    p->delta.forward = (ln_cuda_delta){.heads = w->heads,
                                       .key_heads = w->key_heads,
                                       .tiled_heads = w->tiled,
                                       .key_size = w->key_size,
                                       .value_size = w->value_size,
                                       .sequences = sequences,
                                       .offsets = p->offsets,
                                       .scale = 1 / sqrtf((float)w->key_size),
                                       .decay = w->decay,
                                       .normalise_keys = w->normalise};
    p->delta.output_gradient_float32 = w->float32;
    p->delta.gradients_bf16 = w->bf16;
    const element gradient = w->bf16 ? ELEMENT_BF16 : ELEMENT_FLOAT32;
    const float key = w->normalise ? 1 : 1 / sqrtf((float)w->key_size);
    const int64_t decays = w->decay == LN_CUDA_DECAY_KEY ? w->key_size : 1;
    p->input[QUERY] = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    p->input[KEY] = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, key);
    p->input[VALUE] = tensor_random(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->input[OUTPUT] =
        tensor_random(tokens, w->heads, w->value_size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->input[BETA] = tensor_open(tokens, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->input[DECAY] = tensor_open(tokens, w->heads, decays, PACKED, ELEMENT_FLOAT32);
    p->input[STATE_IN] = tensor_random(sequences, w->heads, state, PACKED, ELEMENT_FLOAT32, 1);
    p->input[STATE_OUT] = tensor_random(sequences, w->heads, state, PACKED, ELEMENT_FLOAT32, 1);
    for (int i = 0; i < INPUTS; i++) {
        const tensor *of = &p->input[i];
        p->wanted[i] = i != OUTPUT && i != STATE_OUT && (i != DECAY || w->decay != LN_CUDA_DECAY_NONE);
        p->gradient[i] = tensor_open(of->tokens, of->heads, of->size, i < 3 ? w->layout : PACKED,
                                     i < 3 ? gradient : ELEMENT_FLOAT32);
    }
    p->device_slots = device_open((int64_t)sizeof p->slots);
    device_send(p->device_slots, p->slots, (int64_t)sizeof p->slots);
    problem_draw(p);
}
static void problem_close(problem *p) {
    for (int i = 0; i < INPUTS; i++) {
        tensor_close(&p->input[i]);
        tensor_close(&p->gradient[i]);
    }
    device_close(p->device_slots);
}

static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const bool states = !p->of->stateless;
    const ln_cuda_delta_backward_tensors tensors = {
        .query = p->input[QUERY].device,
        .key = p->input[KEY].device,
        .value = p->input[VALUE].device,
        .beta = p->input[BETA].device.data,
        .decay = p->of->decay == LN_CUDA_DECAY_NONE ? NULL : p->input[DECAY].device.data,
        .state_in = states ? p->input[STATE_IN].device.data : NULL,
        .state_slots = p->device_slots,
        .output_gradient = p->input[OUTPUT].device,
        .state_out_gradient = states ? p->input[STATE_OUT].device.data : NULL,
        .query_gradient = p->gradient[QUERY].device,
        .key_gradient = p->gradient[KEY].device,
        .value_gradient = p->gradient[VALUE].device,
        .beta_gradient = p->gradient[BETA].device.data,
        .decay_gradient = p->gradient[DECAY].device.data,
        .state_in_gradient = p->gradient[STATE_IN].device.data,
    };
    return ln_cuda_delta_backward_run(&p->delta, p->plan, &tensors, p->workspace, stream);
}

/* ---- float64 ---- */

typedef struct rows { /* of one token and head */
    double *query, *key, *value, *output, *decay, *read, *error;
    double query_norm, key_norm, beta;
} rows;

static int64_t key_head(const work *w, int64_t head) {
    return w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
}

static double load_unit(const problem *p, int input, int64_t token, int64_t head, double *to) {
    const work *w = p->of;
    double square = 0, norm = 1;
    for (int i = 0; i < w->key_size; i++) {
        to[i] = tensor_at(&p->input[input], token, head, i);
        square += to[i] * to[i];
    }
    if (w->normalise) norm = 1 / sqrt(square + 1e-6);
    for (int i = 0; i < w->key_size; i++) to[i] *= norm;
    return norm;
}

static void load_token(const problem *p, int64_t token, int64_t head, rows *r) {
    const work *w = p->of;
    r->query_norm = load_unit(p, QUERY, token, key_head(w, head), r->query);
    r->key_norm = load_unit(p, KEY, token, key_head(w, head), r->key);
    for (int v = 0; v < w->value_size; v++) {
        r->value[v] = tensor_at(&p->input[VALUE], token, head, v);
        r->output[v] = tensor_at(&p->input[OUTPUT], token, head, v) * (double)p->delta.forward.scale;
    }
    for (int k = 0; k < w->key_size; k++)
        r->decay[k] = w->decay == LN_CUDA_DECAY_NONE
                          ? 1
                          : exp(tensor_at(&p->input[DECAY], token, head, w->decay == LN_CUDA_DECAY_KEY ? k : 0));
    r->beta = tensor_at(&p->input[BETA], token, head, 0);
}

/* error = value - (e^decay state)^T key; `to` the state after. */
static void step(const work *w, const rows *r, const double *state, double *to) {
    const int n = w->value_size;
    for (int v = 0; v < n; v++) r->error[v] = r->value[v];
    for (int k = 0; k < w->key_size; k++)
        for (int v = 0; v < n; v++) r->error[v] -= r->decay[k] * state[k * n + v] * r->key[k];
    for (int k = 0; k < w->key_size; k++)
        for (int v = 0; v < n; v++) to[k * n + v] = r->decay[k] * state[k * n + v] + r->key[k] * r->beta * r->error[v];
}

static void add_unit(const problem *p, double *gradient, int64_t token, int64_t head, const double *x, double norm,
                     const double *d) {
    const work *w = p->of;
    double along = 0;
    for (int k = 0; k < w->key_size; k++) along += x[k] * d[k];
    double *to = gradient + (token * w->key_heads + key_head(w, head)) * w->key_size;
    for (int k = 0; k < w->key_size; k++) to[k] += w->normalise ? norm * (d[k] - x[k] * along) : d[k];
}

/* Of one token; d becomes the gradient of `state`, `next` is the state after. */
static void step_back(const problem *p, int64_t token, int64_t head, const rows *r, const double *state,
                      const double *next, double *d, double *const *gradient) {
    const work *w = p->of;
    const int n = w->value_size, keys = w->key_size;
    const int64_t at = token * w->heads + head;
    double *dq = r->read, *dk = dq + keys, *du = dk + keys, beta = 0;
    for (int v = 0; v < n; v++) du[v] = 0;
    for (int k = 0; k < keys; k++) {
        dq[k] = dk[k] = 0;
        for (int v = 0; v < n; v++) {
            d[k * n + v] += r->query[k] * r->output[v];
            dq[k] += next[k * n + v] * r->output[v];
            dk[k] += d[k * n + v] * r->beta * r->error[v];
            du[v] += d[k * n + v] * r->key[k];
        }
    }
    for (int v = 0; v < n; v++) {
        beta += du[v] * r->error[v];
        gradient[VALUE][at * n + v] = r->beta * du[v];
    }
    gradient[BETA][at] = beta;
    double all = 0;
    for (int k = 0; k < keys; k++) {
        double sum = 0;
        for (int v = 0; v < n; v++) {
            dk[k] -= r->decay[k] * state[k * n + v] * r->beta * du[v];
            d[k * n + v] = r->decay[k] * (d[k * n + v] - r->key[k] * r->beta * du[v]);
            sum += d[k * n + v] * state[k * n + v];
        }
        if (w->decay == LN_CUDA_DECAY_KEY) gradient[DECAY][at * keys + k] = sum;
        all += sum;
    }
    if (w->decay == LN_CUDA_DECAY_HEAD) gradient[DECAY][at] = all;
    add_unit(p, gradient[QUERY], token, head, r->query, r->query_norm, dq);
    add_unit(p, gradient[KEY], token, head, r->key, r->key_norm, dk);
}

static void oracle_head(const problem *p, int sequence, int64_t head, double *const *gradient) {
    const work *w = p->of;
    const int64_t n = w->tokens[sequence], state = (int64_t)w->key_size * w->value_size, most = 512;
    double *room = calloc((size_t)(10 * most + (n + 3) * state), sizeof *room);
    rows r = {
        room, room + most, room + 2 * most, room + 3 * most, room + 4 * most, room + 5 * most, room + 9 * most, 0, 0,
        0};
    double *states = room + 10 * most, *d = states + (n + 1) * state;
    for (int64_t i = 0; i < state && !w->stateless; i++) {
        states[i] = tensor_at(&p->input[STATE_IN], p->slots[sequence], head, i);
        d[i] = tensor_at(&p->input[STATE_OUT], sequence, head, i);
    }
    for (int64_t t = 0; t < n; t++) {
        load_token(p, p->offsets[sequence] + t, head, &r);
        step(w, &r, states + t * state, states + (t + 1) * state);
    }
    for (int64_t t = n - 1; t >= 0; t--) {
        load_token(p, p->offsets[sequence] + t, head, &r);
        step(w, &r, states + t * state, d + state); /* for `error` alone */
        step_back(p, p->offsets[sequence] + t, head, &r, states + t * state, states + (t + 1) * state, d, gradient);
    }
    memcpy(gradient[STATE_IN] + (sequence * w->heads + head) * state, d, (size_t)state * sizeof *d);
    free(room);
}

static void oracle_open(const problem *p, double **gradient) {
    for (int i = 0; i < INPUTS; i++) {
        const tensor *t = &p->gradient[i];
        gradient[i] = calloc((size_t)(t->tokens * t->heads * t->size + 1), sizeof(double));
    }
    for (int s = 0; s < sequences_of(p->of); s++)
        for (int64_t head = 0; head < p->of->heads && !spoiled(p->of, s); head++) oracle_head(p, s, head, gradient);
}

/* Of what was fetched, rows of sequences that are compared. */
static double compare(const problem *p, int input, const double *wanted) {
    const tensor *t = &p->gradient[input];
    double *got = calloc((size_t)(t->tokens * t->heads * t->size + 1), sizeof *got);
    for (int s = 0; s < sequences_of(p->of); s++) {
        const int64_t first = input == STATE_IN ? s : p->offsets[s],
                      end = input == STATE_IN ? s + 1 : p->offsets[s + 1];
        for (int64_t row = first; row < end && !spoiled(p->of, s); row++)
            for (int64_t head = 0; head < t->heads; head++)
                for (int64_t i = 0; i < t->size; i++)
                    got[(row * t->heads + head) * t->size + i] = tensor_at(t, row, head, i);
    }
    const double error = relative_error(got, wanted, t->tokens * t->heads * t->size);
    free(got);
    return error;
}

/* ---- runs ---- */

static double tokens_of(const work *w) {
    double tokens = 0;
    for (int s = 0; s < sequences_of(w); s++) tokens += w->tokens[s];
    return tokens;
}

static bool workspace_open(problem *p, const ln_cuda_delta_backward_plan *plan) {
    p->workspace = device_open(plan->workspace);
    p->plan = plan;
    const ln_cuda_code code = ln_cuda_delta_backward_prepare(&p->delta, plan, p->workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static void check_kernel(problem *p, const ln_cuda_device *device, const ln_cuda_delta_backward_kernel *kernel,
                         double *const *wanted) {
    const char *name = p->of->name;
    ln_cuda_delta_backward_plan plan;
    if (ln_cuda_delta_backward_plan_make(&p->delta, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!workspace_open(p, &plan)) return;
    for (int i = 0; i < INPUTS; i++) tensor_poison(&p->gradient[i]);
    run_now(backward, p, name, kernel->name);
    printf("  %-30s %-14s", name, kernel->name);
    for (int i = 0; i < INPUTS; i++) {
        if (!p->wanted[i]) continue;
        tensor_fetch(&p->gradient[i]);
        if (!spoiled(p->of, 1)) tensor_expect_written(&p->gradient[i], name, kernel->name);
        if (p->of->missing && i == QUERY)
            EXPECT(isnan(tensor_at(&p->gradient[i], p->offsets[2] - 1, 0, 0)),
                   "%s, %s: a number came of a decay that is none", name, kernel->name);
        const double error = compare(p, i, wanted[i]);
        const bool few =
            (i == DECAY || i == BETA) && (p->of->kind == STRONG || p->of->kind == HARD || tokens_of(p->of) < 16);
        EXPECT(error < (few          ? 1e-1
                        : i == DECAY ? 3e-2
                                     : 1e-2),
               "%s, %s: relative error of the gradient of %s %.2e", name, kernel->name, INPUT_NAMES[i], error);
        printf(" %s %.1e", INPUT_NAMES[i], error);
    }
    printf("\n");
    cudaGraphExec_t graph = run_capture(backward, p, name, kernel->name);
    for (int i = 0; i < INPUTS; i++) tensor_poison(&p->gradient[i]);
    run_graph(graph, name, kernel->name);
    for (int i = 0; i < INPUTS; i++)
        if (p->wanted[i]) tensor_expect_same(&p->gradient[i], name, kernel->name, INPUT_NAMES[i]);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        if (!work_wanted(options, w->name, tokens_of(w) * w->heads * w->key_size * w->value_size * 16)) continue;
        problem p;
        double *wanted[INPUTS];
        problem_open(&p, w);
        oracle_open(&p, wanted);
        for (int row = 0; ln_cuda_delta_backward_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_delta_backward_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_delta_backward_kernels(row), wanted);
        for (int k = 0; k < INPUTS; k++) free(wanted[k]);
        problem_close(&p);
    }
}

/* ---- without a GPU ---- */

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_delta_backward delta = {.forward = {.heads = 32,
                                                .key_heads = 16,
                                                .key_size = 128,
                                                .value_size = 128,
                                                .sequences = 1,
                                                .offsets = offsets,
                                                .scale = 0.1f,
                                                .decay = LN_CUDA_DECAY_HEAD}};
    ln_cuda_delta_backward_plan plan;
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 9 &&
               plan.chunks == 16,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &ampere, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 8,
           "plan: %s", plan.why);
    delta.forward.key_size = 48;
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED, "size: %s", plan.why);
    delta.forward.key_size = 128;
    delta.forward.key_heads = 15;
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "heads: %s", plan.why);
    delta.forward.key_heads = 16;
    delta.forward.offsets = wrong;
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    delta.forward.offsets = offsets;
    EXPECT(ln_cuda_delta_backward_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_OK, "again: %s", plan.why);
    const ln_cuda_delta_backward_tensors none = {.beta = NULL};
    char *const somewhere = (char *)(uintptr_t)4096;
    EXPECT(ln_cuda_delta_backward_run(&delta, &plan, &none, NULL, NULL) == LN_CUDA_ARGUMENT, "no workspace");
    EXPECT(ln_cuda_delta_backward_run(&delta, &plan, &none, somewhere + 16, NULL) == LN_CUDA_ARGUMENT, "16 bytes off");
    EXPECT(ln_cuda_delta_backward_run(&delta, &plan, &none, somewhere, NULL) == LN_CUDA_ARGUMENT, "no tensors");
    EXPECT(ln_cuda_delta_backward_prepare(&delta, &plan, NULL, NULL) == LN_CUDA_ARGUMENT, "nothing to prepare");
    plan.kernel = NULL;
    EXPECT(ln_cuda_delta_backward_run(&delta, &plan, &none, somewhere, NULL) == LN_CUDA_UNSUPPORTED, "no kernel");
    for (int row = 0; ln_cuda_delta_backward_kernels(row)->start; row++) {
        const ln_cuda_delta_backward_kernel *kernel = ln_cuda_delta_backward_kernels(row);
        EXPECT(kernel->shared_bytes <= (kernel->major == 9 ? 232448 : 101376), "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
    }
}

/* ---- times ---- */

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < BENCH_COUNT; i++) {
        const work *w = &BENCH[i];
        if (!strstr(w->name, options->works)) continue;
        problem opened, p[KERNELS_MOST];
        void *contexts[KERNELS_MOST];
        ln_cuda_delta_backward_plan plan[KERNELS_MOST];
        timing times[KERNELS_MOST];
        int kernels = 0;
        problem_open(&opened, w);
        for (int row = 0; ln_cuda_delta_backward_kernels(row)->start && kernels < KERNELS_MOST; row++) {
            const ln_cuda_delta_backward_kernel *kernel = ln_cuda_delta_backward_kernels(row);
            if (!kernel_wanted(options, kernel->name)) continue;
            if (ln_cuda_delta_backward_plan_make(&opened.delta, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
            p[kernels] = opened;
            contexts[kernels] = &p[kernels];
            if (workspace_open(&p[kernels], &plan[kernels])) kernels++;
        }
        time_in_turns(backward, contexts, kernels, options->rounds, times);
        const double products = 14.5 * 2 * 128 * 64 * 2; /* multiply-adds a token and head, less the pairs */
        for (int k = 0; k < kernels; k++)
            printf("%-30s %-16s %8.3f ms %7.1f TFLOP/s (best %.3f ms)\n", w->name, plan[k].kernel->name,
                   times[k].median,
                   products * (double)w->key_size * (double)w->value_size / 16384 * w->heads * tokens_of(w) /
                       times[k].median * 1e-9,
                   times[k].least);
        fflush(stdout);
        for (int k = 0; k < kernels; k++) device_close(p[k].workspace);
        problem_close(&opened);
    }
}

const suite cuda_suite_delta_backward = {"delta_backward", WORK_COUNT, check_plans, check, bench};
