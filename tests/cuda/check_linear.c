/* Linear attention against float64: the recurrence, token by token. */
#include "check.h"

#include "kernel/cuda/linear_backward_cuda.h"
#include "oracle_linear.h"

enum { SEQUENCES = 8, KERNELS_MOST = 16, MOST_VALUES = 256 };

/* What the decays are like: of one in 16 of log sigmoid, down to -8 a token, or 0, -88 and -inf among small ones. */
typedef enum range { GENTLE, STRONG, WILD, NEVER } range;

typedef struct work {
    const char *name;
    int heads, key_heads, key_size, value_size;
    int tokens[SEQUENCES]; /* ended by a count of 0 after the first; -1: an empty sequence */
    ln_cuda_linear_decay decay;
    range range;
    bool constant;                                                            /* one decay of a head */
    bool tiled, write, skip, reverse, float32, state, infinite, whole, slots; /* slots: the last sequence's is 0 */
    ln_cuda_linear_sum normalise;
    int layout, segment;
} work;

#define MAXIMUM LN_CUDA_SUM_MAXIMUM
#define ONE LN_CUDA_SUM_ONE
#define PLAIN LN_CUDA_SUM_PLAIN
#define TOKEN LN_CUDA_LINEAR_TOKEN
#define KEY LN_CUDA_LINEAR_KEY
#define VALUE LN_CUDA_LINEAR_VALUE

static const work WORKS[] = {
    {"one token", 2, 2, 128, 128, {1}, TOKEN, GENTLE, .float32 = true, .state = true},
    {"64", 2, 1, 128, 128, {64}, TOKEN, GENTLE, .state = true},
    {"65", 2, 1, 128, 128, {65}, TOKEN, GENTLE, .float32 = true, .state = true},
    {"300 without decay", 2, 2, 128, 128, {300}, TOKEN, NEVER, .layout = PADDED},
    {"260 constant", 3, 3, 128, 128, {260}, TOKEN, GENTLE, .constant = true, .state = true},
    {"200 strong", 2, 2, 128, 128, {200}, TOKEN, STRONG, .layout = HEAD_MAJOR, .state = true},
    {"200 wild", 2, 2, 128, 128, {200}, TOKEN, WILD, .float32 = true, .state = true},
    {"ragged, groups", 4, 2, 128, 128, {70, 1, -1, 130}, TOKEN, GENTLE, .state = true, .infinite = true},
    {"ragged, tiled groups, write, skip",
     4,
     2,
     128,
     64,
     {70, 100},
     TOKEN,
     GENTLE,
     .tiled = true,
     .write = true,
     .skip = true,
     .layout = PADDED},
    {"segments", 2, 1, 128, 128, {500, 100, 300}, TOKEN, GENTLE, .state = true, .segment = 128, .float32 = true},
    {"segments, wild", 1, 1, 128, 128, {600}, TOKEN, WILD, .state = true, .segment = 128},
    {"reverse", 2, 1, 128, 128, {150, 64, 1}, TOKEN, GENTLE, .state = true, .reverse = true, .float32 = true},
    {"reverse, segments", 1, 1, 128, 128, {300, 500}, TOKEN, STRONG, .state = true, .reverse = true, .segment = 128},
    {"values of 256", 2, 1, 128, 256, {130}, TOKEN, GENTLE, .state = true},
    {"keys of 64", 4, 1, 64, 64, {200}, TOKEN, GENTLE, .state = true, .write = true, .skip = true},
    {"keys of 64, values of 128", 2, 1, 64, 128, {200}, TOKEN, GENTLE, .state = true, .segment = 64},
    {"keys of 256", 1, 1, 256, 128, {140}, TOKEN, GENTLE, .state = true, .float32 = true},
    {"long, hardly any decay", 1, 1, 128, 128, {1500}, TOKEN, GENTLE, .constant = true, .float32 = true},
    {"longer, no decay", 2, 2, 128, 128, {20000}, TOKEN, NEVER, .float32 = true},
    {"slots", 2, 1, 64, 64, {70, -1, 65, 100}, TOKEN, GENTLE, .state = true, .slots = true, .segment = 64},
    {"mlstm", 2, 1, 128, 128, {150, 1, 70}, TOKEN, GENTLE, .normalise = MAXIMUM, .write = true, .state = true},
    {"mlstm segments", 1, 1, 64, 64, {400, 64}, TOKEN, WILD, .normalise = MAXIMUM, .write = true, .segment = 128},
    {"mlstm sigmoid, slots",
     2,
     1,
     64,
     128,
     {150, 65},
     TOKEN,
     GENTLE,
     .normalise = ONE,
     .write = true,
     .state = true,
     .slots = true},
    {"plain sums", 2, 1, 128, 128, {150, 1, 200}, TOKEN, NEVER, .normalise = PLAIN, .state = true, .segment = 128},
    {"gla keys of 256", 1, 1, 256, 64, {100}, KEY, GENTLE, .state = true, .float32 = true},
    {"gla", 2, 1, 128, 128, {150, 64, -1, 70}, KEY, GENTLE, .state = true, .infinite = true},
    {"gla one token", 2, 2, 128, 128, {1}, KEY, GENTLE, .state = true},
    {"gla strong", 2, 2, 128, 128, {150}, KEY, STRONG, .state = true, .float32 = true},
    {"gla wild", 1, 1, 128, 128, {200}, KEY, WILD, .state = true, .layout = PADDED},
    {"gla wild segments", 1, 1, 64, 64, {500}, KEY, WILD, .state = true, .segment = 128},
    {"gla segments", 2, 1, 128, 128, {400, 30}, KEY, GENTLE, .state = true, .segment = 128},
    {"gla reverse", 1, 1, 128, 128, {300}, KEY, GENTLE, .state = true, .reverse = true, .segment = 128},
    {"gla reverse strong", 1, 1, 64, 64, {130}, KEY, STRONG, .state = true, .reverse = true},
    {"gla values of 256", 1, 1, 128, 256, {130}, KEY, GENTLE, .state = true},
    {"value decays", 2, 1, 128, 128, {150, 64}, VALUE, GENTLE, .state = true, .whole = true},
    {"value decays strong", 1, 1, 64, 64, {150}, VALUE, STRONG, .state = true, .float32 = true},
    {"value decays wild, reverse", 1, 1, 64, 128, {230}, VALUE, WILD, .state = true, .reverse = true, .segment = 64},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static const work BENCH[] = {
    {"simple 1 x 65536, 32 heads", 32, 32, 128, 128, {65536}, TOKEN, GENTLE, .layout = PACKED},
    {"simple 8 x 8192, 32 heads",
     32,
     32,
     128,
     128,
     {8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192},
     TOKEN,
     GENTLE,
     .layout = PACKED},
    {"simple 1 x 65536, 16 heads 128/256", 16, 16, 128, 256, {65536}, TOKEN, GENTLE, .layout = PACKED},
    {"ssd 1 x 32768, 64 heads 64, one key head of 128",
     64,
     1,
     128,
     64,
     {32768},
     TOKEN,
     GENTLE,
     .write = true,
     .skip = true},
    {"gla 1 x 32768, 16 heads", 16, 16, 128, 128, {32768}, KEY, GENTLE, .layout = PACKED},
    {"gla strong 1 x 32768, 16 heads", 16, 16, 128, 128, {32768}, KEY, STRONG, .layout = PACKED},
    {"mlstm 1 x 65536, 32 heads", 32, 32, 128, 128, {65536}, TOKEN, GENTLE, .write = true, .normalise = MAXIMUM},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0] };

/* ---- a case ---- */

typedef struct problem {
    const work *of;
    int64_t offsets[SEQUENCES + 1];
    ln_cuda_linear linear;
    tensor query, key, value, output, decay, token_decay, write, maximum, skip, state_in, state_out;
    int64_t *slots; /* on the device */
    const ln_cuda_linear_plan *plan;
    void *workspace;
} problem;

static int sequences_of(const work *w) {
    int count = 0;
    while (count < SEQUENCES && w->tokens[count]) count++;
    return count;
}

static double decay_of(range of) {
    const double x = (double)random_normal();
    switch (of) {
    case STRONG:
        return -8 * random_uniform();
    case WILD: {
        const double which = random_uniform();
        return which < 0.02 ? -INFINITY : which < 0.05 ? -88 : which < 0.2 ? 0 : -0.1 * random_uniform();
    }
    case GENTLE:
        return -log1p(exp(-x)) / 16;
    default:
        return 0;
    }
}

/* [token][head], all numbers from `make`. */
static tensor gates_open(int64_t tokens, int64_t heads, double (*make)(range), range of) {
    tensor t = tensor_open(tokens, 1, heads, PACKED, ELEMENT_FLOAT32);
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t h = 0; h < heads; h++) tensor_set(&t, i, 0, h, make(of));
    tensor_send(&t);
    return t;
}
static double write_of(range of) {
    (void)of;
    return 2 * random_uniform();
}
static double maximum_of(range of) {
    (void)of;
    return (double)random_normal();
}

static ln_cuda_linear linear_of(const work *w, const int64_t *offsets) {
    return (ln_cuda_linear){.heads = w->heads,
                            .key_heads = w->key_heads,
                            .key_size = w->key_size,
                            .value_size = w->value_size,
                            .sequences = sequences_of(w),
                            .offsets = offsets,
                            .scale = 1 / sqrtf((float)w->key_size),
                            .decay = w->decay,
                            .tiled_heads = w->tiled,
                            .normalise = w->normalise,
                            .reverse = w->reverse,
                            .output_float32 = w->float32,
                            .query_whole = w->whole,
                            .value_shared = w->whole};
}

static void offsets_of(const work *w, int64_t *offsets) {
    offsets[0] = 0;
    for (int s = 0; s < sequences_of(w); s++) offsets[s + 1] = offsets[s] + (w->tokens[s] > 0 ? w->tokens[s] : 0);
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    offsets_of(w, p->offsets);
    p->linear = linear_of(w, p->offsets);
    const int sequences = sequences_of(w);
    const int64_t tokens = p->offsets[sequences], channels = w->decay == KEY ? w->key_size : w->value_size;
    const int64_t query_heads = w->whole ? w->heads : w->key_heads, value_heads = w->whole ? w->key_heads : w->heads;
    p->query = tensor_random(tokens, query_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    p->key = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    p->value = tensor_random(tokens, value_heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->output = tensor_open(tokens, w->heads, w->value_size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16);
    p->token_decay = gates_open(w->constant ? 1 : tokens, w->heads, decay_of, w->range);
    p->write = gates_open(tokens, w->heads, write_of, w->range);
    p->maximum = gates_open(tokens, w->heads, maximum_of, w->range);
    p->skip = gates_open(1, w->heads, maximum_of, w->range);
    p->decay = tensor_open(w->decay == TOKEN ? 0 : tokens, w->heads, channels, w->layout, ELEMENT_FLOAT32);
    if (w->decay != TOKEN)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t h = 0; h < w->heads; h++)
                for (int64_t i = 0; i < channels; i++) tensor_set(&p->decay, t, h, i, decay_of(w->range));
    tensor_send(&p->decay);
    const int64_t floats = ln_cuda_linear_state_floats(&p->linear);
    p->state_in = tensor_random(sequences, w->heads, floats, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = tensor_open(sequences, w->heads, floats, PACKED, ELEMENT_FLOAT32);
    if (w->infinite)
        for (int s = 1; s < sequences; s += 2)
            for (int64_t t = p->offsets[s]; t < p->offsets[s + 1]; t++) {
                for (int64_t h = 0; h < value_heads; h++) tensor_set(&p->value, t, h, 0, INFINITY);
                for (int64_t h = 0; h < w->key_heads; h++) tensor_set(&p->key, t, h, 3, INFINITY);
            }
    for (int64_t t = 0; w->normalise == PLAIN && t < tokens; t++)
        for (int64_t h = 0; h < w->key_heads; h++)
            for (int64_t i = 0; i < w->key_size; i++) {
                tensor_set(&p->query, t, h, i, fabs(tensor_at(&p->query, t, h, i)));
                tensor_set(&p->key, t, h, i, fabs(tensor_at(&p->key, t, h, i)));
            }
    for (int64_t i = 0; w->normalise == PLAIN && i < sequences * w->heads * floats; i++)
        tensor_set(&p->state_in, 0, 0, i, fabs(tensor_at(&p->state_in, 0, 0, i)));
    tensor *const changed[] = {&p->value, &p->key, &p->query, &p->state_in};
    for (int i = 0; i < 4; i++) tensor_send(changed[i]);
    int64_t slots[SEQUENCES];
    for (int s = 0; s < sequences; s++) slots[s] = sequences - 1 - s;
    p->slots = device_open((int64_t)sizeof slots);
    device_send(p->slots, slots, sequences * (int64_t)sizeof *slots);
}

static void problem_close(problem *p) {
    tensor *all[] = {&p->query, &p->key,     &p->value, &p->output,   &p->decay,    &p->token_decay,
                     &p->write, &p->maximum, &p->skip,  &p->state_in, &p->state_out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) tensor_close(all[i]);
    device_close(p->slots);
}

/* The slot of a sequence. */
static int64_t slot_of(const problem *p, int sequence) {
    return p->of->slots ? p->linear.sequences - 1 - sequence : sequence;
}

static ln_cuda_gate gate_of(const tensor *t, bool wanted, bool constant) {
    return (ln_cuda_gate){wanted ? t->device.data : NULL, constant ? 0 : t->size, 1};
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const work *w = p->of;
    const ln_cuda_linear_tensors tensors = {.query = p->query.device,
                                            .key = p->key.device,
                                            .value = p->value.device,
                                            .output = p->output.device,
                                            .decay = p->decay.device,
                                            .token_decay = gate_of(&p->token_decay, w->range != NEVER, w->constant),
                                            .write = gate_of(&p->write, w->write, false),
                                            .maximum = gate_of(&p->maximum, w->normalise == MAXIMUM, false),
                                            .skip = w->skip ? p->skip.device.data : NULL,
                                            .state_in = w->state ? p->state_in.device.data : NULL,
                                            .state_out = p->state_out.device.data,
                                            .state_slots = w->slots ? p->slots : NULL};
    return ln_cuda_linear_forward(&p->linear, p->plan, &tensors, p->workspace, stream);
}

/* ---- float64 ---- */

static double factor_of(const problem *p, int64_t token, int64_t end, int64_t head, int key, int value) {
    const work *w = p->of;
    if (token >= end) return 1;
    if (w->decay == TOKEN)
        return w->range == NEVER ? 1 : exp(tensor_at(&p->token_decay, w->constant ? 0 : token, 0, head));
    return exp(tensor_at(&p->decay, token, head, w->decay == KEY ? key : value));
}

/* Of a state: n is one more. */
static int rows_of(const work *w) {
    return w->value_size + (w->normalise != LN_CUDA_SUM_NONE);
}

static void oracle_decay(const problem *p, double *state, int64_t token, int64_t end, int64_t head) {
    const work *w = p->of;
    const int rows = rows_of(w);
    for (int k = 0; k < w->key_size; k++) {
        double factor = factor_of(p, token, end, head, k, 0);
        for (int v = 0; v < rows; v++) {
            if (w->decay == VALUE) factor = factor_of(p, token, end, head, k, v);
            state[k * rows + v] *= factor;
        }
    }
}

/* The state [key][value], of mlstm with n as one more column, after the token; its output. */
static void oracle_step(const problem *p, double *state, int64_t token, int64_t end, int64_t head, double *output) {
    const work *w = p->of;
    const int rows = rows_of(w);
    const int64_t shared = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    const int64_t query_head = w->whole ? head : shared, value_head = w->whole ? shared : head;
    const double write = w->write ? tensor_at(&p->write, token, 0, head) : 1;
    oracle_decay(p, state, w->reverse ? token + 1 : token, end, head);
    double value[MOST_VALUES + 1];
    for (int v = 0; v < rows; v++) {
        output[v] = 0;
        value[v] = v < w->value_size ? tensor_at(&p->value, token, value_head, v) : 1;
    }
    for (int k = 0; k < w->key_size; k++) {
        const double key = write * tensor_at(&p->key, token, shared, k),
                     query = (double)p->linear.scale * tensor_at(&p->query, token, query_head, k);
        for (int v = 0; v < rows; v++) {
            state[k * rows + v] += key * value[v];
            output[v] += query * state[k * rows + v];
        }
    }
    double weight = w->normalise ? output[w->value_size] : 1;
    if (w->normalise == MAXIMUM) weight = fmax(fabs(weight), exp(-tensor_at(&p->maximum, token, 0, head))) + 1e-6;
    if (w->normalise == ONE) weight = fmax(fabs(weight), 1);
    for (int v = 0; v < w->value_size; v++) {
        output[v] /= weight;
        if (w->skip) output[v] += tensor_at(&p->skip, 0, 0, head) * value[v];
    }
}

/* The worst relative error of the outputs and of the state of one head of a sequence. */
static double compare_head(const problem *p, int sequence, int64_t head) {
    const work *w = p->of;
    const int64_t first = p->offsets[sequence], end = p->offsets[sequence + 1], count = (end - first) * w->value_size;
    const int rows = rows_of(w), size = w->key_size * rows;
    double *state = malloc((size_t)size * sizeof *state), *output = malloc((size_t)rows * sizeof *output);
    double *want = malloc((size_t)(count + size) * sizeof *want), *got = malloc((size_t)(count + size) * sizeof *got);
    const int64_t normaliser = (int64_t)w->key_size * w->value_size;
    for (int k = 0; k < w->key_size; k++)
        for (int v = 0; v < rows; v++) {
            const int64_t at = v < w->value_size ? k * w->value_size + v : normaliser + k;
            state[k * rows + v] = w->state ? tensor_at(&p->state_in, slot_of(p, sequence), head, at) : 0;
        }
    for (int64_t t = 0; t < end - first; t++) {
        const int64_t token = w->reverse ? end - 1 - t : first + t;
        oracle_step(p, state, token, end, head, output);
        for (int v = 0; v < w->value_size; v++) {
            want[t * w->value_size + v] = output[v];
            got[t * w->value_size + v] = tensor_at(&p->output, token, head, v);
        }
    }
    if (w->reverse && end > first) oracle_decay(p, state, first, end, head);
    for (int k = 0; k < w->key_size; k++)
        for (int v = 0; v < rows; v++) {
            const int64_t at = v < w->value_size ? k * w->value_size + v : normaliser + k;
            want[count + k * rows + v] = state[k * rows + v];
            got[count + k * rows + v] = tensor_at(&p->state_out, slot_of(p, sequence), head, at);
        }
    const double made = relative_error(got, want, count), kept = relative_error(got + count, want + count, size);
    /* Of a single token the sum of a key's few products may all but cancel. */
    const double worst = fmax(end - first == 1 ? made / 2 : made, kept);
    free(state);
    free(output);
    free(want);
    free(got);
    return worst;
}

static double compare(const problem *p) {
    double worst = 0;
    for (int s = 0; s < p->linear.sequences; s++)
        for (int64_t head = 0; head < p->of->heads; head++)
            if (!p->of->infinite || s % 2 == 0) worst = fmax(worst, compare_head(p, s, head));
    return worst;
}

/* ---- runs ---- */

static void *workspace_open(const problem *p, const ln_cuda_linear_plan *plan) {
    ln_cuda_linear_task *tasks = malloc((size_t)(plan->first_tasks + plan->tasks + 1) * sizeof *tasks);
    ln_cuda_linear_tasks(&p->linear, plan, tasks);
    void *workspace = device_open(plan->workspace);
    const ln_cuda_code code = ln_cuda_linear_prepare(&p->linear, plan, tasks, workspace, NULL);
    free(tasks);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return workspace;
}

static void check_kernel(problem *p, const ln_cuda_device *device, const ln_cuda_linear_kernel *kernel) {
    const char *name = p->of->name;
    ln_cuda_linear_plan plan;
    if (ln_cuda_linear_plan_make(&p->linear, device, kernel, p->of->segment, &plan) != LN_CUDA_OK) return;
    p->workspace = workspace_open(p, &plan);
    p->plan = &plan;
    tensor_poison(&p->output);
    tensor_poison(&p->state_out);
    run_now(forward, p, name, kernel->name);
    tensor_fetch(&p->output);
    tensor_fetch(&p->state_out);
    if (!p->of->infinite) tensor_expect_written(&p->output, name, kernel->name);
    const double worst = compare(p);
    EXPECT(worst < 5e-3, "%s, %s: relative error %.2e", name, kernel->name, worst);
    cudaGraphExec_t graph = run_capture(forward, p, name, kernel->name);
    tensor_poison(&p->output);
    tensor_poison(&p->state_out);
    run_graph(graph, name, kernel->name);
    tensor_expect_same(&p->output, name, kernel->name, "output");
    tensor_expect_same(&p->state_out, name, kernel->name, "states");
    printf("  %-36s %-28s %.2e\n", name, kernel->name, worst);
    fflush(stdout);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    if (work_wanted(options, "gates of mlstm", 1e4)) linear_gates_check();
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        int64_t offsets[SEQUENCES + 1];
        offsets_of(w, offsets);
        const double adds = (double)offsets[sequences_of(w)] * w->heads * w->key_size * w->value_size;
        if (!work_wanted(options, w->name, adds)) continue;
        problem p;
        problem_open(&p, w);
        for (int row = 0; ln_cuda_linear_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_linear_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_linear_kernels(row));
        problem_close(&p);
    }
    linear_gradients_check(device, options);
}

/* ---- without a GPU ---- */

/* Every token and column of every head is in one task of the last pass, and each slot is left and started from once. */
static void check_tasks(const work *w, const ln_cuda_device *device, const ln_cuda_linear_kernel *kernel) {
    int64_t offsets[SEQUENCES + 1];
    offsets_of(w, offsets);
    const ln_cuda_linear linear = linear_of(w, offsets);
    ln_cuda_linear_plan plan;
    if (ln_cuda_linear_plan_make(&linear, device, kernel, w->segment, &plan) != LN_CUDA_OK) return;
    ln_cuda_linear_task *tasks = malloc((size_t)(plan.first_tasks + plan.tasks + 1) * sizeof *tasks);
    ln_cuda_linear_tasks(&linear, &plan, tasks);
    int64_t tokens = 0, left = 0, started = 0;
    for (int64_t t = 0; t < plan.tasks; t++) {
        const ln_cuda_linear_task *task = &tasks[plan.first_tasks + t];
        tokens += task->tokens * kernel->columns;
        started += task->from >= 0;
        EXPECT(task->tokens <= plan.segment && task->from < plan.slots, "%s: a task of %d tokens from %d", w->name,
               task->tokens, task->from);
    }
    for (int64_t t = 0; t < plan.first_tasks; t++)
        left += (tasks[t].to >= 0 && tasks[t].to < plan.slots) + (tasks[t].from == LN_CUDA_STATE_GIVEN);
    const int64_t parts = w->value_size / kernel->columns;
    EXPECT(tokens == offsets[sequences_of(w)] * w->heads * w->value_size, "%s, %s: %lld tokens and columns in tasks",
           w->name, kernel->name, (long long)tokens);
    EXPECT(left == plan.slots * parts && started == plan.slots * parts, "%s, %s: %lld of %lld slots left", w->name,
           kernel->name, (long long)left, (long long)(plan.slots * parts));
    free(tasks);
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20};
    const int64_t offsets[2] = {0, 65536}, wrong[2] = {0, -1};
    ln_cuda_linear linear = {.heads = 32, .key_heads = 8, .key_size = 128, .value_size = 128, .sequences = 1};
    linear.offsets = offsets;
    linear.scale = 1;
    ln_cuda_linear_plan plan;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_OK && plan.kernel->major == 9 &&
               plan.tasks == 128,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_linear_plan_make(&linear, &ampere, NULL, 0, &plan) == LN_CUDA_OK && plan.kernel->major == 8,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 100, &plan) == LN_CUDA_ARGUMENT, "segment: %s", plan.why);
    linear.key_size = 40;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "size 40: %s", plan.why);
    linear.key_size = 128;
    linear.heads = 7;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_ARGUMENT, "7 heads: %s", plan.why);
    linear.heads = 32;
    linear.normalise = MAXIMUM;
    linear.reverse = true;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_ARGUMENT, "reverse: %s", plan.why);
    linear.normalise = LN_CUDA_SUM_NONE;
    linear.reverse = false;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_OK, "plan: %s", plan.why);
    const ln_cuda_linear_tensors none = {.state_in = NULL};
    EXPECT(ln_cuda_linear_forward(&linear, &plan, &none, (void *)256, NULL) == LN_CUDA_ARGUMENT, "no tensors");
    linear.offsets = wrong;
    EXPECT(ln_cuda_linear_plan_make(&linear, &hopper, NULL, 0, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    for (int row = 0; ln_cuda_linear_kernels(row)->start; row++) {
        const ln_cuda_linear_kernel *kernel = ln_cuda_linear_kernels(row);
        EXPECT(kernel->shared_bytes * kernel->blocks <= (kernel->major == 9 ? 232448 : 232448), "%s: %d bytes",
               kernel->name, kernel->shared_bytes);
        for (int i = 0; i < WORK_COUNT; i++) check_tasks(&WORKS[i], kernel->major == 9 ? &hopper : &ampere, kernel);
        for (int i = 0; i < BENCH_COUNT; i++) check_tasks(&BENCH[i], kernel->major == 9 ? &hopper : &ampere, kernel);
    }
    linear_gradients_plans();
}

/* ---- speed ---- */

/* A tensor of numbers that repeat every few million, so that large ones are soon made. */
static tensor bench_tensor(int64_t tokens, int64_t heads, int64_t size, element of, range kind) {
    tensor t = {.tokens = tokens, .heads = heads, .size = size, .row = size, .element = of};
    t.device.head_stride = size;
    t.device.token_stride = size * heads;
    t.elements = tokens * heads * size;
    const int64_t bytes = element_bytes(of), piece = t.elements < 1 << 21 ? t.elements : 1 << 21;
    t.device.data = device_open(t.elements * bytes);
    t.host = malloc((size_t)(piece * bytes));
    for (int64_t i = 0; i < piece; i++)
        if (of == ELEMENT_BF16)
            ((uint16_t *)t.host)[i] = bf16_of(random_normal());
        else
            ((float *)t.host)[i] = kind == NEVER ? 1 : (float)decay_of(kind);
    for (int64_t at = 0; at < t.elements; at += piece)
        device_send((char *)t.device.data + at * bytes, t.host,
                    (t.elements - at < piece ? t.elements - at : piece) * bytes);
    return t;
}

static void bench_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    offsets_of(w, p->offsets);
    p->linear = linear_of(w, p->offsets);
    const int64_t tokens = p->offsets[sequences_of(w)], channels = w->decay == TOKEN ? 1 : w->key_size;
    p->query = bench_tensor(tokens, w->key_heads, w->key_size, ELEMENT_BF16, NEVER);
    p->key = bench_tensor(tokens, w->key_heads, w->key_size, ELEMENT_BF16, NEVER);
    p->value = bench_tensor(tokens, w->heads, w->value_size, ELEMENT_BF16, NEVER);
    p->output = bench_tensor(tokens, w->heads, w->value_size, ELEMENT_BF16, NEVER);
    p->decay = bench_tensor(w->decay == TOKEN ? 1 : tokens, w->heads, channels, ELEMENT_FLOAT32, w->range);
    p->token_decay = bench_tensor(tokens, 1, w->heads, ELEMENT_FLOAT32, w->range);
    p->write = bench_tensor(tokens, 1, w->heads, ELEMENT_FLOAT32, NEVER);
    p->maximum = bench_tensor(tokens, 1, w->heads, ELEMENT_FLOAT32, NEVER);
    p->skip = bench_tensor(1, 1, w->heads, ELEMENT_FLOAT32, NEVER);
    const int64_t floats = ln_cuda_linear_state_floats(&p->linear);
    p->slots = device_open(8);
    p->state_in = bench_tensor(1, 1, 4, ELEMENT_FLOAT32, NEVER);
    p->state_out = bench_tensor(p->linear.sequences, w->heads, floats, ELEMENT_FLOAT32, NEVER);
}

static void bench_work(const work *w, const ln_cuda_device *device, const check_options *options) {
    problem p, of[KERNELS_MOST];
    void *contexts[KERNELS_MOST];
    ln_cuda_linear_plan plan[KERNELS_MOST];
    timing timings[KERNELS_MOST];
    int count = 0;
    bench_open(&p, w);
    for (int row = 0; ln_cuda_linear_kernels(row)->start && count < KERNELS_MOST; row++) {
        const ln_cuda_linear_kernel *kernel = ln_cuda_linear_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (ln_cuda_linear_plan_make(&p.linear, device, kernel, 0, &plan[count]) != LN_CUDA_OK) continue;
        of[count] = p;
        of[count].plan = &plan[count];
        of[count].workspace = workspace_open(&p, &plan[count]);
        contexts[count] = &of[count];
        count++;
    }
    time_in_turns(forward, contexts, count, options->rounds, timings);
    const double token = (double)p.offsets[p.linear.sequences] * w->heads;
    const double flops = token * (4 * w->key_size * w->value_size + 2 * 64 * (w->key_size + w->value_size));
    const double bytes = token * 2 * (2.0 * w->value_size + 2.0 * w->key_size * w->key_heads / w->heads) +
                         (w->decay == TOKEN ? 0 : token * 4 * w->key_size);
    for (int k = 0; k < count; k++) {
        printf("%-40s %-26s %8.3f ms (least %.3f) %7.1f TFLOP/s %6.3f TB/s of inputs and outputs; %s\n", w->name,
               plan[k].kernel->name, timings[k].median, timings[k].least, flops / timings[k].median * 1e-9,
               bytes / timings[k].median * 1e-9, plan[k].why);
        device_close(of[k].workspace);
    }
    problem_close(&p);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < BENCH_COUNT; i++)
        if (strstr(BENCH[i].name, options->works)) bench_work(&BENCH[i], device, options);
    linear_gradients_bench(device, options);
}

const suite cuda_suite_linear = {"linear", WORK_COUNT + 1 + LINEAR_GRADIENT_CASES, check_plans, check, bench};
