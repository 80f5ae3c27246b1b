/* The short convolution on a GPU against sums in float64, and its gradients. */
#include "kernel/cuda/short_convolution_cuda.h"
#include "recurrent.h"

typedef struct work {
    const char *name;
    int heads, value_size, taps;
    int lengths[BATCH_MOST];
    int layout, state;
    bool silu, bias, float32, strange, left_out; /* strange: values that are infinite or no numbers */
} work;

static const work WORKS[] = {
    {"one token", 1, 64, 4, {1, -1}, .state = APART, .silu = true, .bias = true, .float32 = true},
    {"a token each", 2, 24, 4, {1, 1, 0, 1, 1, 1, 1, -1}, .state = IN_PLACE, .silu = true, .bias = true},
    {"two taps", 1, 40, 2, {77, -1}, .state = APART, .float32 = true},
    {"three taps, heads", 3, 16, 3, {130, 1, 65, -1}, PADDED, IN_PLACE, .bias = true, .float32 = true},
    {"four taps", 1, 136, 4, {200, 0, 2, 3, 64, -1}, .state = IN_PLACE, .silu = true, .bias = true, .float32 = true},
    {"four taps, bf16", 2, 64, 4, {300, 129, -1}, HEAD_MAJOR, APART, .silu = true, .bias = true},
    {"five taps", 1, 64, 5, {70, 4, -1}, .state = APART, .silu = true, .float32 = true},
    {"six taps", 1, 64, 6, {70, 3, -1}, .state = IN_PLACE, .bias = true, .float32 = true},
    {"seven taps", 1, 64, 7, {70, 2, -1}, .state = APART, .silu = true, .float32 = true},
    {"eight taps", 1, 64, 8, {67, 1, 0, 5, -1}, PADDED, IN_PLACE, .silu = true, .float32 = true},
    {"nine taps", 1, 64, 9, {130, 1, 0, 5, -1}, PADDED, IN_PLACE, .silu = true, .bias = true, .float32 = true},
    {"33 taps", 2, 24, 33, {300, 20, 64, -1}, HEAD_MAJOR, APART, .bias = true},
    {"64 taps", 1, 16, 64, {200, 63, 1, -1}, .state = IN_PLACE, .silu = true, .float32 = true},
    {"64 taps, a token each", 1, 16, 64, {1, 1, 1, -1}, .state = IN_PLACE, .float32 = true},
    {"40 taps, left out", 1, 16, 40, {70, 20, 5, -1}, .state = IN_PLACE, .float32 = true, .left_out = true},
    {"no state", 1, 64, 4, {90, 7, -1}, .silu = true, .float32 = true},
    {"empty", 1, 16, 4, {0, 0, -1}, .state = APART, .silu = true},
    {"left out", 1, 40, 4, {33, 20, 5, -1}, .state = IN_PLACE, .silu = true, .float32 = true, .left_out = true},
    {"strange values", 2, 16, 4, {80, 80, 80, -1}, .state = APART, .bias = true, .float32 = true, .strange = true},
    {"2000 tokens", 4, 256, 4, {2000, 77, 513, -1}, .state = IN_PLACE, .silu = true, .bias = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

typedef struct problem {
    const work *of;
    batch batch;
    ln_cuda_short_convolution convolution;
    ln_cuda_short_convolution_plan plan;
    tensor value, weight, bias, output, state_in, state_out;
    tensor output_gradient, value_gradient, weight_gradient, bias_gradient, state_out_gradient, state_in_gradient;
    slots slots;
    void *workspace, *gradient_workspace;
} problem;

static void problem_open(problem *p, const work *w, tensor_make *make) {
    *p = (problem){.of = w, .batch = batch_of(w->lengths)};
    const int64_t tokens = batch_tokens(&p->batch), tail = (int64_t)(w->taps - 1) * w->value_size;
    p->convolution = (ln_cuda_short_convolution){w->heads,         w->value_size, w->taps,   p->batch.sequences,
                                                 p->batch.offsets, w->silu,       w->float32};
    p->slots = slots_open(p->batch.sequences);
    if (w->left_out) slots_leave_out(&p->slots);
    const int64_t pool = w->state == IN_PLACE ? p->slots.count : p->batch.sequences;
    p->value = make(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->output = make(tokens, w->heads, w->value_size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->weight = make(1, w->heads, (int64_t)w->value_size * w->taps, PACKED, ELEMENT_FLOAT32, 1);
    p->bias = make(1, w->heads, w->value_size, PACKED, ELEMENT_FLOAT32, 1);
    p->state_in = make(pool, w->heads, tail, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = make(pool, w->heads, tail, PACKED, ELEMENT_FLOAT32, 1);
    p->output_gradient = make(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->value_gradient = make(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->weight_gradient = make(1, w->heads, (int64_t)w->value_size * w->taps, PACKED, ELEMENT_FLOAT32, 1);
    p->bias_gradient = make(1, w->heads, w->value_size, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out_gradient = make(p->batch.sequences, w->heads, tail, PACKED, ELEMENT_FLOAT32, 1);
    p->state_in_gradient = make(p->batch.sequences, w->heads, tail, PACKED, ELEMENT_FLOAT32, 1);
    if (w->strange) {
        tensor_set(&p->value, p->batch.offsets[1] + 5, 0, 3, NAN);
        tensor_set(&p->value, p->batch.offsets[1] + 9, 1, 7, INFINITY);
        tensor_send(&p->value);
    }
}

static void problem_close(problem *p) {
    tensor *all[] = {&p->value,
                     &p->weight,
                     &p->bias,
                     &p->output,
                     &p->state_in,
                     &p->state_out,
                     &p->output_gradient,
                     &p->value_gradient,
                     &p->weight_gradient,
                     &p->bias_gradient,
                     &p->state_out_gradient,
                     &p->state_in_gradient};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_close(all[i]);
    device_close(p->slots.device);
    device_close(p->workspace);
    device_close(p->gradient_workspace);
}

static ln_cuda_short_convolution_tensors tensors_of(const problem *p) {
    const work *w = p->of;
    return (ln_cuda_short_convolution_tensors){.value = p->value.device,
                                               .weight = p->weight.device.data,
                                               .bias = w->bias ? p->bias.device.data : NULL,
                                               .output = p->output.device,
                                               .state_in = w->state == NO_STATE   ? NULL
                                                           : w->state == IN_PLACE ? p->state_out.device.data
                                                                                  : p->state_in.device.data,
                                               .state_out = w->state == NO_STATE ? NULL : p->state_out.device.data,
                                               .state_slots = w->state == IN_PLACE ? p->slots.device : NULL};
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_short_convolution_tensors tensors = tensors_of(p);
    return ln_cuda_short_convolution_forward(&p->convolution, &p->plan, &tensors, p->workspace, stream);
}
static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_short_convolution_tensors tensors = tensors_of(p);
    const bool state = p->of->state != NO_STATE;
    const ln_cuda_short_convolution_gradients gradients = {.output = p->output_gradient.device,
                                                           .value = p->value_gradient.device,
                                                           .weight = p->weight_gradient.device.data,
                                                           .bias = p->bias_gradient.device.data,
                                                           .state_out =
                                                               state ? p->state_out_gradient.device.data : NULL,
                                                           .state_in = p->state_in_gradient.device.data};
    return ln_cuda_short_convolution_backward(&p->convolution, &p->plan, &tensors, &gradients, p->gradient_workspace,
                                              stream);
}

/* ---- float64 ---- */

/* A channel of a sequence: x is the state, then the values, [taps - 1 + length]. */
static void channel_of(const problem *p, int sequence, int head, int c, double *x) {
    const work *w = p->of;
    const int64_t slot = w->state == IN_PLACE ? p->slots.host[sequence] : sequence;
    for (int i = 0; i < w->taps - 1; i++)
        x[i] = w->state == NO_STATE ? 0 : tensor_at(&p->state_in, slot, head, (int64_t)i * w->value_size + c);
    for (int64_t t = 0; t < batch_length(&p->batch, sequence); t++)
        x[w->taps - 1 + t] = tensor_at(&p->value, p->batch.offsets[sequence] + t, head, c);
}

static double sum_at(const problem *p, int head, int c, const double *x) {
    const work *w = p->of;
    double sum = w->bias ? tensor_at(&p->bias, 0, head, c) : 0;
    for (int i = 0; i < w->taps; i++) sum += tensor_at(&p->weight, 0, head, (int64_t)c * w->taps + i) * x[i];
    return sum;
}

static void oracle_forward(const problem *p, double *output, double *state) {
    const work *w = p->of;
    double *x = doubles(batch_tokens(&p->batch) + w->taps);
    tensor_doubles(&p->state_in, state);
    if (w->left_out) expect_nothing(&p->output, &p->batch, output);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++)
            for (int c = 0; c < w->value_size; c++) {
                const int64_t length = batch_length(&p->batch, s);
                const int64_t slot = w->state == IN_PLACE ? p->slots.host[s] : s;
                if (slot < 0) continue;
                channel_of(p, s, head, c, x);
                for (int64_t t = 0; t < length; t++) {
                    const double sum = sum_at(p, head, c, x + t);
                    output[dense_place(&p->output, p->batch.offsets[s] + t, head) + c] =
                        w->silu ? sum / (1 + exp(-sum)) : sum;
                }
                for (int i = 0; i < w->taps - 1; i++)
                    state[dense_place(&p->state_out, slot, head) + (int64_t)i * w->value_size + c] = x[length + i];
            }
    free(x);
}

typedef struct oracle_gradients {
    double *value, *weight, *bias, *state;
} oracle_gradients;

static void oracle_backward(const problem *p, const oracle_gradients *g) {
    const work *w = p->of;
    const int64_t most = batch_tokens(&p->batch) + w->taps;
    double *x = doubles(most), *dx = doubles(most);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++)
            for (int c = 0; c < w->value_size; c++) {
                const int64_t length = batch_length(&p->batch, s);
                channel_of(p, s, head, c, x);
                memset(dx, 0, (size_t)most * sizeof *dx);
                for (int i = 0; i < w->taps - 1 && w->state != NO_STATE; i++)
                    dx[length + i] = tensor_at(&p->state_out_gradient, s, head, (int64_t)i * w->value_size + c);
                for (int64_t t = 0; t < length; t++) {
                    const double sum = sum_at(p, head, c, x + t), part = 1 / (1 + exp(-sum));
                    double d = tensor_at(&p->output_gradient, p->batch.offsets[s] + t, head, c);
                    if (w->silu) d *= part + sum * part * (1 - part);
                    g->bias[(int64_t)head * w->value_size + c] += d;
                    for (int i = 0; i < w->taps; i++) {
                        const int64_t place = (int64_t)c * w->taps + i;
                        g->weight[dense_place(&p->weight, 0, head) + place] += d * x[t + i];
                        dx[t + i] += d * tensor_at(&p->weight, 0, head, place);
                    }
                }
                for (int64_t t = 0; t < length; t++)
                    g->value[dense_place(&p->value, p->batch.offsets[s] + t, head) + c] = dx[w->taps - 1 + t];
                for (int i = 0; i < w->taps - 1; i++)
                    g->state[dense_place(&p->state_in_gradient, s, head) + (int64_t)i * w->value_size + c] = dx[i];
            }
    free(x);
    free(dx);
}

/* ---- checks ---- */

static recurrent recurrent_of(problem *p, check_run *run, const char *kernel) {
    return (recurrent){p->of->name,  kernel,         run, p, &p->output, &p->state_in, &p->state_out,
                       p->of->state, p->of->left_out};
}

/* States are the last values themselves. */
static void check_forward(problem *p) {
    double *output = doubles(p->output.tokens * p->output.heads * p->output.size),
           *state = doubles(p->state_in.elements);
    oracle_forward(p, output, state);
    const recurrent r = recurrent_of(p, forward, "forward");
    recurrent_forward(&r, output, state, p->of->float32 ? 3e-6 : 4e-3, 0);
    free(output);
    free(state);
}

static void check_backward(problem *p) {
    recurrent_gradient g[4] = {{"value", &p->value_gradient, NULL, 4e-3},
                               {"weight", &p->weight_gradient, NULL, 1e-5},
                               {"bias", &p->bias_gradient, NULL, 1e-5},
                               {"state", &p->state_in_gradient, NULL, 1e-5}};
    for (int i = 0; i < 4; i++) g[i].want = doubles(g[i].made->tokens * g[i].made->heads * g[i].made->size);
    oracle_backward(p, &(oracle_gradients){g[0].want, g[1].want, g[2].want, g[3].want});
    const recurrent r = recurrent_of(p, backward, "backward");
    recurrent_backward(&r, g, 4);
    for (int i = 0; i < 4; i++) free(g[i].want);
}

static bool problem_prepare(problem *p, const ln_cuda_device *device) {
    const char *name = p->of->name;
    ln_cuda_code code = ln_cuda_short_convolution_plan_make(&p->convolution, device, &p->plan);
    EXPECT(code == LN_CUDA_OK, "%s: plan gave %d: %s", name, code, p->plan.why);
    if (code) return false;
    p->workspace = device_open(p->plan.workspace);
    p->gradient_workspace = device_open(p->plan.gradient_workspace);
    code = ln_cuda_short_convolution_prepare(&p->convolution, &p->plan, false, p->workspace, NULL);
    if (!code) code = ln_cuda_short_convolution_prepare(&p->convolution, &p->plan, true, p->gradient_workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", name, code);
    return code == LN_CUDA_OK;
}

static double products_of(const work *w) {
    const batch b = batch_of(w->lengths);
    return (double)batch_tokens(&b) * w->heads * w->value_size * w->taps;
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        if (!work_wanted(options, WORKS[i].name, 20 * products_of(&WORKS[i]))) continue;
        problem p;
        problem_open(&p, &WORKS[i], tensor_random);
        if (problem_prepare(&p, device)) {
            check_forward(&p);
            if (!WORKS[i].left_out) check_backward(&p);
        }
        problem_close(&p);
        fflush(stdout);
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, old = {0, 7, 5, 40, 65536, 4 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_short_convolution c = {1, 4096, 4, 1, offsets, true, false};
    ln_cuda_short_convolution_plan plan;
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &hopper, &plan) == LN_CUDA_OK && plan.why[0], "plan: %s", plan.why);
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &old, &plan) == LN_CUDA_UNSUPPORTED, "old device: %s", plan.why);
    c.taps = 65;
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &hopper, &plan) == LN_CUDA_ARGUMENT, "65 taps: %s", plan.why);
    c.taps = 4, c.value_size = 20;
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &hopper, &plan) == LN_CUDA_ARGUMENT, "20 values: %s", plan.why);
    c.value_size = 16, c.offsets = wrong;
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &hopper, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    ln_cuda_short_convolution_tensors tensors = {0};
    EXPECT(ln_cuda_short_convolution_forward(&c, &plan, &tensors, NULL, NULL) == LN_CUDA_UNSUPPORTED, "without a plan");
    c.offsets = offsets;
    EXPECT(ln_cuda_short_convolution_plan_make(&c, &hopper, &plan) == LN_CUDA_OK, "plan: %s", plan.why);
    EXPECT(ln_cuda_short_convolution_forward(&c, &plan, &tensors, NULL, NULL) == LN_CUDA_ARGUMENT, "without tensors");
}

/* ---- speed ---- */

static const work BENCH[] = {
    {"65536 x 4096, 4 taps", 1, 4096, 4, {65536, -1}, .state = APART, .silu = true},
    {"8 x 8192 x 4096, 4 taps",
     1,
     4096,
     4,
     {8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, -1},
     .state = APART,
     .silu = true,
     .bias = true},
    {"65536 x 4096, 4 taps, no silu", 1, 4096, 4, {65536, -1}, .state = APART},
    {"65536 x 4096, 16 taps", 1, 4096, 16, {65536, -1}, .state = APART, .silu = true},
    {"65536 x 4096, 8 taps", 1, 4096, 8, {65536, -1}, .state = APART, .silu = true},
    {"2048 x 8192, 4 taps", 1, 8192, 4, {2048, -1}, .state = APART, .silu = true},
};

static void bench(const ln_cuda_device *device, const check_options *options) {
    const double copy = device_bandwidth();
    for (size_t i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) {
        if (!strstr(BENCH[i].name, options->works)) continue;
        problem p;
        problem_open(&p, &BENCH[i], tensor_large);
        if (problem_prepare(&p, device)) {
            void *contexts[] = {&p};
            timing ahead, back;
            const double elements = (double)p.value.elements;
            time_in_turns(forward, contexts, 1, options->rounds, &ahead);
            time_in_turns(backward, contexts, 1, options->rounds, &back);
            printf("short convolution %-30s forward %7.3f ms %6.3f TB/s (%3.0f %% of a copy)  backward %7.3f ms %6.3f "
                   "TB/s (%3.0f %%)\n",
                   BENCH[i].name, ahead.median, 4e-9 * elements / ahead.median, 4e5 * elements / ahead.median / copy,
                   back.median, 6e-9 * elements / back.median, 6e5 * elements / back.median / copy);
        }
        problem_close(&p);
        fflush(stdout);
    }
}

const suite cuda_suite_short_convolution = {"short_convolution", WORK_COUNT, check_plans, check, bench};
