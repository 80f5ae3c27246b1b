/* Gradients of linear attention against float64: the recurrence forward with all its states kept, then backward. */
#include "oracle_linear.h"

#include "kernel/cuda/linear_backward_cuda.h"

enum { SEQUENCES = 4, MOST = 256 };

typedef struct work {
    const char *name;
    int heads, key_heads, key_size, value_size;
    int tokens[SEQUENCES];
    bool keys;       /* decays of keys, not of tokens */
    double strength; /* of decays: up to so much a token; 0: none */
    bool hard;       /* some decays are 0, -88 and -inf */
    bool tiled, write, skip, state, float32;
    int layout;
} work;

static const work WORKS[] = {
    {"gradients", 2, 2, 128, 128, {150, 64, 1}, .strength = 0.2, .state = true, .float32 = true},
    {"gradients, groups", 4, 2, 128, 128, {100}, .strength = 0.1, .layout = PADDED},
    {"gradients, segments", 1, 1, 128, 128, {600, 300}, .strength = 0.1, .state = true},
    {"gradients, strong", 1, 1, 128, 128, {300}, .strength = 3, .state = true, .float32 = true},
    {"gradients, hard", 1, 1, 128, 128, {300}, .strength = 0.3, .hard = true, .state = true, .float32 = true},
    {"gradients, write, skip, tiled groups",
     4,
     2,
     64,
     64,
     {200},
     .strength = 0.1,
     .write = true,
     .skip = true,
     .tiled = true,
     .state = true},
    {"gradients without decay, values of 256", 1, 1, 128, 256, {130}, .float32 = true, .state = true},
    {"gradients, keys", 2, 1, 128, 128, {150, 64}, .keys = true, .strength = 0.1, .state = true, .float32 = true},
    {"gradients, keys, segments", 1, 1, 64, 64, {600}, .keys = true, .strength = 0.1, .state = true},
    {"gradients, keys, hard", 1, 1, 128, 128, {290}, .keys = true, .strength = 1, .hard = true, .float32 = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

typedef struct problem {
    const work *of;
    int64_t offsets[SEQUENCES + 1];
    ln_cuda_linear linear;
    tensor query, key, value, decay, write, skip, state_in; /* given; decay [token][head][1 or key_size] */
    tensor output_gradient, state_gradient;                 /* given */
    tensor query_out, key_out, value_out, decay_out, write_out, skip_out, state_out;
    const ln_cuda_linear_gradient_plan *plan;
    void *workspace;
} problem;

static int sequences_of(const work *w) {
    int count = 0;
    while (count < SEQUENCES && w->tokens[count]) count++;
    return count;
}

static double decay_of(const work *w) {
    const double which = random_uniform();
    if (w->hard && which < 0.1) return which < 0.02 ? -INFINITY : which < 0.05 ? -88 : 0;
    return -w->strength * random_uniform();
}

static tensor numbers_open(const work *w, int64_t tokens, int64_t columns, bool decays) {
    tensor t = tensor_open(tokens, w->heads, columns, PACKED, ELEMENT_FLOAT32);
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t h = 0; h < w->heads; h++)
            for (int64_t c = 0; c < columns; c++) tensor_set(&t, i, h, c, decays ? decay_of(w) : 2 * random_uniform());
    tensor_send(&t);
    return t;
}

static ln_cuda_linear linear_of(const work *w, const int64_t *offsets) {
    return (ln_cuda_linear){.heads = w->heads,
                            .key_heads = w->key_heads,
                            .key_size = w->key_size,
                            .value_size = w->value_size,
                            .sequences = sequences_of(w),
                            .offsets = offsets,
                            .scale = 1 / sqrtf((float)w->key_size),
                            .decay = w->keys ? LN_CUDA_LINEAR_KEY : LN_CUDA_LINEAR_TOKEN,
                            .tiled_heads = w->tiled,
                            .output_float32 = w->float32};
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    const int count = sequences_of(w), channels = w->keys ? w->key_size : 1;
    for (int s = 0; s < count; s++) p->offsets[s + 1] = p->offsets[s] + w->tokens[s];
    p->linear = linear_of(w, p->offsets);
    const int64_t tokens = p->offsets[count], floats = ln_cuda_linear_state_floats(&p->linear);
    const element type = w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16;
    p->query = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    p->key = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    p->value = tensor_random(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->output_gradient = tensor_random(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->decay = numbers_open(w, tokens, channels, true);
    p->write = numbers_open(w, tokens, 1, false);
    p->skip = numbers_open(w, 1, 1, false);
    p->state_in = tensor_random(count, w->heads, floats, PACKED, ELEMENT_FLOAT32, 1);
    p->state_gradient = tensor_random(count, w->heads, floats, PACKED, ELEMENT_FLOAT32, 1);
    p->query_out = tensor_open(tokens, w->key_heads, w->key_size, w->layout, type);
    p->key_out = tensor_open(tokens, w->key_heads, w->key_size, w->layout, type);
    p->value_out = tensor_open(tokens, w->heads, w->value_size, w->layout, type);
    p->decay_out = tensor_open(tokens, w->heads, channels, PACKED, ELEMENT_FLOAT32);
    p->write_out = tensor_open(tokens, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->skip_out = tensor_open(1, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->state_out = tensor_open(count, w->heads, floats, PACKED, ELEMENT_FLOAT32);
}

enum { GIVEN = 9, MADE = 7 };
static void tensors_list(problem *p, tensor *(*list)[GIVEN + MADE]) {
    tensor *all[GIVEN + MADE] = {&p->query_out, &p->key_out,   &p->value_out,       &p->decay_out,
                                 &p->state_out, &p->write_out, &p->skip_out,        &p->query,
                                 &p->key,       &p->value,     &p->decay,           &p->write,
                                 &p->skip,      &p->state_in,  &p->output_gradient, &p->state_gradient};
    memcpy(*list, all, sizeof all);
}
/* Of those made, write and skip come last: not all works have them. */
static int made_of(const work *w) {
    return w->write ? MADE : MADE - 2;
}

static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const work *w = p->of;
    const ln_cuda_gate write = {w->write ? p->write.device.data : NULL, w->heads, 1};
    const ln_cuda_gate token_decay = {w->keys || w->strength <= 0 ? NULL : p->decay.device.data, w->heads, 1};
    const ln_cuda_linear_tensors tensors = {.query = p->query.device,
                                            .key = p->key.device,
                                            .value = p->value.device,
                                            .decay = p->decay.device,
                                            .token_decay = token_decay,
                                            .write = write,
                                            .skip = w->skip ? p->skip.device.data : NULL,
                                            .state_in = w->state ? p->state_in.device.data : NULL};
    ln_cuda_linear_gradients gradients = {.output = p->output_gradient.device,
                                          .state_out = w->state ? p->state_gradient.device.data : NULL,
                                          .query = p->query_out.device,
                                          .key = p->key_out.device,
                                          .value = p->value_out.device,
                                          .write = w->write ? p->write_out.device.data : NULL,
                                          .skip = w->skip ? p->skip_out.device.data : NULL,
                                          .state_in = p->state_out.device.data};
    if (w->keys)
        gradients.decay = p->decay_out.device;
    else
        gradients.token_decay = p->decay_out.device.data;
    return ln_cuda_linear_backward(&p->linear, p->plan, &tensors, &gradients, p->workspace, stream);
}

/* ---- float64 ---- */

/* Gradients of one sequence, in rows like the tensors': [token][head or key head][column]. */
typedef struct wanted {
    double *query, *key, *value, *decay, *write, *skip, *state;
} wanted;

static void oracle_head(const problem *p, int s, int64_t head, const wanted *want) {
    const work *w = p->of;
    const int K = w->key_size, V = w->value_size, size = K * V, channels = w->keys ? K : 1;
    const int64_t first = p->offsets[s], count = w->tokens[s];
    const int64_t shared = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    const double scale = (double)p->linear.scale;
    double *states = malloc((size_t)((count + 1) * size) * sizeof *states), *D = malloc((size_t)size * sizeof *D);
    double factor[MOST], q[MOST], k[MOST], v[MOST], out[MOST];
    for (int i = 0; i < size; i++) {
        states[i] = w->state ? tensor_at(&p->state_in, s, head, i) : 0;
        D[i] = w->state ? tensor_at(&p->state_gradient, s, head, i) : 0;
    }
    for (int pass = 0; pass < 2; pass++)
        for (int64_t n = 0; n < count; n++) {
            const int64_t t = pass ? count - 1 - n : n, token = first + t, row = t * w->heads + head;
            const double write = w->write ? tensor_at(&p->write, token, head, 0) : 1,
                         skip = w->skip ? tensor_at(&p->skip, 0, head, 0) : 0;
            const double *old = states + t * size;
            double *now = states + (t + 1) * size, *query = want->query + (t * w->key_heads + shared) * K,
                   *key = want->key + (t * w->key_heads + shared) * K, *value = want->value + row * V;
            for (int i = 0; i < K; i++) {
                factor[i] = w->strength <= 0 ? 1 : exp(tensor_at(&p->decay, token, head, w->keys ? i : 0));
                q[i] = scale * tensor_at(&p->query, token, shared, i);
                k[i] = tensor_at(&p->key, token, shared, i);
            }
            for (int j = 0; j < V; j++) {
                v[j] = tensor_at(&p->value, token, head, j);
                out[j] = tensor_at(&p->output_gradient, token, head, j);
            }
            for (int i = 0; i < K; i++) {
                double along = 0;
                for (int j = 0; j < V; j++) {
                    if (!pass) {
                        now[i * V + j] = factor[i] * old[i * V + j] + write * k[i] * v[j];
                        query[i] += scale * now[i * V + j] * out[j];
                        continue;
                    }
                    double *d = D + i * V + j;
                    *d += q[i] * out[j];
                    key[i] += write * *d * v[j];
                    value[j] += write * *d * k[i];
                    want->write[row] += k[i] * *d * v[j];
                    *d *= factor[i];
                    along += *d * old[i * V + j];
                }
                if (pass) want->decay[row * channels + (w->keys ? i : 0)] += along;
            }
            for (int j = 0; j < V && pass; j++) {
                value[j] += skip * out[j];
                want->skip[head] += v[j] * out[j];
            }
        }
    for (int i = 0; i < size; i++) want->state[head * size + i] = D[i];
    free(states);
    free(D);
}

static double compare_rows(const tensor *t, const double *want, int64_t first, int64_t count) {
    const int64_t numbers = count * t->heads * t->size;
    double *got = malloc((size_t)(numbers + 1) * sizeof *got);
    for (int64_t i = 0; i < numbers; i++)
        got[i] = tensor_at(t, first + i / (t->heads * t->size), i / t->size % t->heads, i % t->size);
    const double error = relative_error(got, want, numbers);
    free(got);
    return error;
}

enum { QUERY, KEY, VALUE, DECAY, STATE, WRITE, SKIP };
static void compare(const problem *p, double (*worst)[MADE]) {
    const work *w = p->of;
    int64_t most = 0;
    for (int s = 0; s < sequences_of(w); s++) most = w->tokens[s] > most ? w->tokens[s] : most;
    const size_t rows = (size_t)most * (size_t)w->heads, numbers = rows * MOST + (size_t)(MOST * MOST * w->heads);
    double *skip = calloc((size_t)w->heads, sizeof *skip);
    for (int s = 0; s < sequences_of(w); s++) {
        double *all = calloc(6 * numbers, sizeof *all);
        const wanted want = {all,  all + numbers,    all + 2 * numbers, all + 3 * numbers, all + 4 * numbers,
                             skip, all + 5 * numbers};
        for (int64_t head = 0; head < w->heads; head++) oracle_head(p, s, head, &want);
        const int64_t first = p->offsets[s], count = w->tokens[s];
        (*worst)[QUERY] = fmax((*worst)[QUERY], compare_rows(&p->query_out, want.query, first, count));
        (*worst)[KEY] = fmax((*worst)[KEY], compare_rows(&p->key_out, want.key, first, count));
        (*worst)[VALUE] = fmax((*worst)[VALUE], compare_rows(&p->value_out, want.value, first, count));
        (*worst)[DECAY] = fmax((*worst)[DECAY], compare_rows(&p->decay_out, want.decay, first, count));
        (*worst)[STATE] = fmax((*worst)[STATE], compare_rows(&p->state_out, want.state, s, 1));
        if (w->write) (*worst)[WRITE] = fmax((*worst)[WRITE], compare_rows(&p->write_out, want.write, first, count));
        free(all);
    }
    if (w->skip) (*worst)[SKIP] = compare_rows(&p->skip_out, skip, 0, 1);
    free(skip);
}

/* ---- runs ---- */

/* Within 1e-2; the gradients of decays, which are what is left of large sums, within 2e-2. */
static void check_plan(problem *p, const ln_cuda_device *device, int major, const char *kernel) {
    const char *name = p->of->name;
    ln_cuda_linear_gradient_plan plan;
    const ln_cuda_code code = ln_cuda_linear_gradient_plan_make(&p->linear, device, major, &plan);
    EXPECT(code == LN_CUDA_OK, "%s: plan gave %d: %s", name, code, plan.why);
    if (code) return;
    p->plan = &plan;
    p->workspace = device_open(plan.workspace);
    EXPECT(ln_cuda_linear_gradient_prepare(&plan, p->workspace, NULL) == LN_CUDA_OK, "%s: prepare", name);
    tensor *list[GIVEN + MADE];
    tensors_list(p, &list);
    for (int i = 0; i < made_of(p->of); i++) tensor_poison(list[i]);
    run_now(backward, p, name, kernel);
    double worst[MADE] = {0};
    for (int i = 0; i < made_of(p->of); i++) {
        tensor_fetch(list[i]);
        tensor_expect_written(list[i], name, kernel);
    }
    compare(p, &worst);
    printf("  %-40s %-9s", name, kernel);
    for (int i = 0; i < MADE; i++) printf(" %.1e", worst[i]);
    printf("\n");
    for (int i = 0; i < MADE; i++)
        EXPECT(worst[i] < (i == DECAY ? 2e-2 : 1e-2), "%s, %s: relative error %.2e of gradient %d", name, kernel,
               worst[i], i);
    fflush(stdout);
    cudaGraphExec_t graph = run_capture(backward, p, name, kernel);
    for (int i = 0; i < made_of(p->of); i++) tensor_poison(list[i]);
    run_graph(graph, name, kernel);
    for (int i = 0; i < made_of(p->of); i++) tensor_expect_same(list[i], name, kernel, "a gradient");
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

void linear_gradients_check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        double tokens = 0;
        for (int s = 0; s < sequences_of(w); s++) tokens += w->tokens[s];
        if (!work_wanted(options, w->name, tokens * w->heads * w->key_size * w->value_size)) continue;
        problem p;
        tensor *list[GIVEN + MADE];
        problem_open(&p, w);
        if (device->major == 9 && kernel_wanted(options, "hopper")) check_plan(&p, device, 0, "hopper");
        if (kernel_wanted(options, "portable")) check_plan(&p, device, 8, "portable");
        tensors_list(&p, &list);
        for (int t = 0; t < GIVEN + MADE; t++) tensor_close(list[t]);
    }
}

void linear_gradients_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20};
    const int64_t offsets[2] = {0, 1000};
    ln_cuda_linear linear = {.heads = 4, .key_heads = 2, .key_size = 128, .value_size = 128, .sequences = 1};
    linear.offsets = offsets;
    linear.scale = 1;
    ln_cuda_linear_gradient_plan plan;
    EXPECT(ln_cuda_linear_gradient_plan_make(&linear, &hopper, 0, &plan) == LN_CUDA_OK &&
               plan.query_plan.kernel->major == 9 && plan.value_plan.kernel->major == 9 && plan.tasks == 16,
           "gradient: %s", plan.why);
    linear.reverse = true;
    EXPECT(ln_cuda_linear_gradient_plan_make(&linear, &hopper, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "gradient of reversed time: %s", plan.why);
    linear.reverse = false;
    linear.scale = 0;
    EXPECT(ln_cuda_linear_gradient_plan_make(&linear, &hopper, 0, &plan) == LN_CUDA_UNSUPPORTED, "scale of 0: %s",
           plan.why);
    linear.scale = 1;
    linear.key_size = 40;
    EXPECT(ln_cuda_linear_gradient_plan_make(&linear, &hopper, 0, &plan) == LN_CUDA_UNSUPPORTED, "size 40: %s",
           plan.why);
}

/* ---- speed ---- */

void linear_gradients_bench(const ln_cuda_device *device, const check_options *options) {
    static const work BENCH[] = {
        {"gradients 1 x 16384, 32 heads", 32, 32, 128, 128, {16384}, .strength = 0.1},
        {"gradients of keys 1 x 8192, 16 heads", 16, 16, 128, 128, {8192}, .keys = true, .strength = 0.1},
    };
    for (int i = 0; i < 2; i++) {
        if (!strstr(BENCH[i].name, options->works)) continue;
        problem p;
        tensor *list[GIVEN + MADE];
        ln_cuda_linear_gradient_plan plan;
        timing t;
        problem_open(&p, &BENCH[i]);
        if (ln_cuda_linear_gradient_plan_make(&p.linear, device, 0, &plan) != LN_CUDA_OK) continue;
        p.plan = &plan;
        p.workspace = device_open(plan.workspace);
        ln_cuda_linear_gradient_prepare(&plan, p.workspace, NULL);
        void *contexts[] = {&p};
        time_in_turns(backward, contexts, 1, options->rounds, &t);
        printf("%-40s %8.3f ms (least %.3f); %s\n", BENCH[i].name, t.median, t.least, plan.why);
        device_close(p.workspace);
        tensors_list(&p, &list);
        for (int n = 0; n < GIVEN + MADE; n++) tensor_close(list[n]);
    }
}
