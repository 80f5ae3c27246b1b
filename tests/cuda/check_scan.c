/* The selective scan on a GPU against its recurrence in float64. */
#include "kernel/cuda/scan_cuda.h"
#include "recurrent.h"

typedef struct work {
    const char *name;
    int heads, key_heads, value_size, slots;
    int lengths[BATCH_MOST];
    int layout, state;
    bool softplus, skip, gate, float32, strange, left_out; /* strange: values that are infinite or no numbers */
} work;

static const work WORKS[] = {
    {"one token", 1, 1, 64, 16, {1, -1}, .state = APART, .softplus = true, .skip = true, .gate = true, .float32 = true},
    {"a token each", 1, 1, 72, 16, {1, 1, 0, 1, 1, 1, -1}, PADDED, IN_PLACE, .softplus = true, .skip = true},
    {"a token each, 8", 2, 2, 24, 8, {1, 0, 1, 1, -1}, .state = IN_PLACE, .gate = true, .float32 = true},
    {"a token each, 64", 2, 1, 16, 64, {1, 1, -1}, .state = APART, .float32 = true},
    {"100 tokens", 1, 1, 64, 16, {100, -1}, .state = APART, .float32 = true},
    {"ragged", 1, 1, 72, 16, {33, 0, 1, 64, 15, -1}, PADDED, IN_PLACE, .softplus = true, .skip = true, .float32 = true},
    {"groups, bf16", 4, 2, 24, 16, {70, 31, -1}, HEAD_MAJOR, APART, .softplus = true, .skip = true, .gate = true},
    {"groups", 4, 2, 40, 16, {70, 0, 31, -1}, HEAD_MAJOR, IN_PLACE, .softplus = true, .skip = true, .float32 = true},
    {"no state", 1, 1, 64, 16, {50, 9, -1}, .skip = true, .float32 = true},
    {"8 slots", 1, 1, 64, 8, {45, -1}, .state = APART, .float32 = true},
    {"32 slots", 1, 1, 32, 32, {45, 7, -1}, .state = IN_PLACE, .float32 = true},
    {"64 slots", 2, 1, 16, 64, {70, -1}, .state = APART, .gate = true, .float32 = true},
    {"left out", 1, 1, 40, 16, {33, 20, 5, -1}, .state = IN_PLACE, .skip = true, .float32 = true, .left_out = true},
    {"left out, a token each", 1, 1, 40, 16, {1, 1, 1, -1}, .state = IN_PLACE, .float32 = true, .left_out = true},
    {"strange values", 1, 1, 32, 16, {20, 20, 20, -1}, .state = APART, .skip = true, .float32 = true, .strange = true},
    {"3000 tokens",
     1,
     1,
     512,
     16,
     {3000, 129, 2047, -1},
     .state = IN_PLACE,
     .softplus = true,
     .skip = true,
     .gate = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

enum { VALUE, STEP, KEY, QUERY, GATE, RATE, SKIP, INPUTS };

typedef struct problem {
    const work *of;
    batch batch;
    ln_cuda_scan scan;
    ln_cuda_scan_plan plan;
    tensor input[INPUTS], output, state_in, state_out;
    tensor gradient[INPUTS], output_gradient, state_out_gradient, state_in_gradient;
    slots slots;
    void *workspace, *gradient_workspace;
} problem;

static void problem_open(problem *p, const work *w, tensor_make *make) {
    *p = (problem){.of = w, .batch = batch_of(w->lengths)};
    const int64_t tokens = batch_tokens(&p->batch), size = w->value_size;
    const int output = w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16;
    p->scan = (ln_cuda_scan){w->heads,           w->key_heads,     size,        w->slots,
                             p->batch.sequences, p->batch.offsets, w->softplus, w->float32};
    p->slots = slots_open(p->batch.sequences);
    if (w->left_out) slots_leave_out(&p->slots);
    const int64_t pool = w->state == IN_PLACE ? p->slots.count : p->batch.sequences;
    p->input[VALUE] = make(tokens, w->heads, size, w->layout, ELEMENT_BF16, 1);
    p->input[STEP] = make(tokens, w->heads, size, w->layout, ELEMENT_FLOAT32, 1);
    p->input[KEY] = make(tokens, w->key_heads, w->slots, w->layout, ELEMENT_BF16, 1);
    p->input[QUERY] = make(tokens, w->key_heads, w->slots, w->layout, ELEMENT_BF16, 1);
    p->input[GATE] = make(tokens, w->heads, size, w->layout, ELEMENT_BF16, 1);
    p->input[RATE] = make(1, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
    p->input[SKIP] = make(1, w->heads, size, PACKED, ELEMENT_FLOAT32, 1);
    p->output = make(tokens, w->heads, size, w->layout, (element)output, 1);
    p->state_in = make(pool, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = make(pool, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
    for (int i = 0; i < INPUTS; i++) {
        const tensor *t = &p->input[i];
        p->gradient[i] = make(t->tokens, t->heads, t->size, i < RATE ? w->layout : PACKED, t->element, 1);
    }
    p->output_gradient = make(tokens, w->heads, size, w->layout, ELEMENT_BF16, 1);
    p->state_out_gradient = make(p->batch.sequences, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
    p->state_in_gradient = make(p->batch.sequences, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
    tensor *step = &p->input[STEP], *rate = &p->input[RATE];
    if (step->host) {
        for (int64_t i = 0; i < step->elements; i++) {
            float *x = (float *)step->host + i;
            const double kind = random_uniform();
            *x = w->softplus ? 3 * *x - 2 : kind < 0.05 ? 0 : kind < 0.1 ? 100 : (float)random_uniform();
        }
        for (int64_t i = 0; i < rate->elements; i++)
            ((float *)rate->host)[i] = -16 * (float)(random_uniform() * random_uniform() * random_uniform());
        if (w->strange) {
            tensor_set(&p->input[VALUE], p->batch.offsets[1] + 3, 0, 3, NAN);
            tensor_set(&p->input[VALUE], p->batch.offsets[1] + 9, 0, 17, NAN);
            tensor_send(&p->input[VALUE]);
        }
        tensor_send(step);
    } else {
        tensor signs = tensor_random(1, w->heads, size * w->slots, PACKED, ELEMENT_FLOAT32, 1);
        for (int64_t i = 0; i < signs.elements; i++) ((float *)signs.host)[i] = -(float)(1 + i % w->slots);
        tensor_send(&signs);
        tensor_close(rate);
        *rate = signs;
        return;
    }
    tensor_send(rate);
}

static void problem_close(problem *p) {
    for (int i = 0; i < INPUTS; i++) {
        tensor_close(&p->input[i]);
        tensor_close(&p->gradient[i]);
    }
    tensor *others[] = {&p->output,          &p->state_in,           &p->state_out,
                        &p->output_gradient, &p->state_out_gradient, &p->state_in_gradient};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) tensor_close(others[i]);
    device_close(p->slots.device);
}

static ln_cuda_scan_tensors tensors_of(const problem *p) {
    const work *w = p->of;
    return (ln_cuda_scan_tensors){.value = p->input[VALUE].device,
                                  .key = p->input[KEY].device,
                                  .query = p->input[QUERY].device,
                                  .step = p->input[STEP].device,
                                  .gate = w->gate ? p->input[GATE].device : (ln_cuda_tensor){0},
                                  .rate = p->input[RATE].device.data,
                                  .skip = w->skip ? p->input[SKIP].device.data : NULL,
                                  .output = p->output.device,
                                  .state_in = w->state == NO_STATE   ? NULL
                                              : w->state == IN_PLACE ? p->state_out.device.data
                                                                     : p->state_in.device.data,
                                  .state_out = w->state == NO_STATE ? NULL : p->state_out.device.data,
                                  .state_slots = w->state == IN_PLACE ? p->slots.device : NULL};
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_scan_tensors tensors = tensors_of(p);
    return ln_cuda_scan_forward(&p->scan, &p->plan, &tensors, p->workspace, stream);
}
static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_scan_tensors tensors = tensors_of(p);
    const bool state = p->of->state != NO_STATE;
    const ln_cuda_scan_gradients gradients = {.output = p->output_gradient.device,
                                              .value = p->gradient[VALUE].device,
                                              .key = p->gradient[KEY].device,
                                              .query = p->gradient[QUERY].device,
                                              .step = p->gradient[STEP].device,
                                              .rate = p->gradient[RATE].device.data,
                                              .skip = p->gradient[SKIP].device.data,
                                              .state_out = state ? p->state_out_gradient.device.data : NULL,
                                              .state_in = p->state_in_gradient.device.data};
    return ln_cuda_scan_backward(&p->scan, &p->plan, &tensors, &gradients, p->gradient_workspace, stream);
}

/* ---- float64 ---- */

static void oracle_channel(const problem *p, int sequence, int head, int c, double *output, double *state) {
    const work *w = p->of;
    const int shared = head / (w->heads / w->key_heads);
    for (int64_t t = p->batch.offsets[sequence]; t < p->batch.offsets[sequence + 1]; t++) {
        double step = tensor_at(&p->input[STEP], t, head, c), sum = 0;
        const double value = tensor_at(&p->input[VALUE], t, head, c), gate = tensor_at(&p->input[GATE], t, head, c);
        if (w->softplus) step = fmax(step, 0) + log1p(exp(-fabs(step)));
        for (int n = 0; n < w->slots; n++) {
            const double rate = tensor_at(&p->input[RATE], 0, head, (int64_t)c * w->slots + n);
            state[n] = exp(step * rate) * state[n] + step * value * tensor_at(&p->input[KEY], t, shared, n);
            sum += tensor_at(&p->input[QUERY], t, shared, n) * state[n];
        }
        if (w->skip) sum += tensor_at(&p->input[SKIP], 0, head, c) * value;
        if (w->gate) sum *= gate / (1 + exp(-gate));
        output[dense_place(&p->output, t, head) + c] = sum;
    }
}

static void oracle(const problem *p, double *output, double *state) {
    const work *w = p->of;
    tensor_doubles(&p->state_in, state);
    if (w->left_out) expect_nothing(&p->output, &p->batch, output);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++)
            for (int c = 0; c < w->value_size; c++) {
                const int64_t slot = w->state == IN_PLACE ? p->slots.host[s] : s;
                if (slot < 0) continue;
                double *own = state + dense_place(&p->state_out, slot, head) + (int64_t)c * w->slots;
                if (w->state == NO_STATE) memset(own, 0, (size_t)w->slots * sizeof *own);
                oracle_channel(p, s, head, c, output, own);
            }
}

/* Gradients of a channel of a sequence are added to those of all. */
static void oracle_channel_back(const problem *p, int sequence, int head, int c, double *const *g) {
    const work *w = p->of;
    const int shared = head / (w->heads / w->key_heads), count = w->slots;
    const int64_t slot = w->state == IN_PLACE ? p->slots.host[sequence] : sequence;
    const int64_t length = batch_length(&p->batch, sequence), own = (int64_t)c * count;
    double *states = doubles((length + 1) * count),
           *d = g[INPUTS] + dense_place(&p->state_in_gradient, sequence, head) + own;
    for (int n = 0; n < count && w->state != NO_STATE; n++) {
        states[n] = tensor_at(&p->state_in, slot, head, own + n);
        d[n] = tensor_at(&p->state_out_gradient, sequence, head, own + n);
    }
    for (int back = 0; back < 2; back++)
        for (int64_t i = 0; i < length; i++) {
            const int64_t t = back ? length - 1 - i : i, token = p->batch.offsets[sequence] + t;
            const double given = tensor_at(&p->input[STEP], token, head, c),
                         x = tensor_at(&p->input[VALUE], token, head, c);
            const double step = w->softplus ? fmax(given, 0) + log1p(exp(-fabs(given))) : given,
                         y = tensor_at(&p->output_gradient, token, head, c);
            double *before = states + t * count, dx = 0, dstep = 0;
            for (int n = 0; n < count; n++) {
                const double rate = tensor_at(&p->input[RATE], 0, head, own + n), decay = exp(step * rate),
                             key = tensor_at(&p->input[KEY], token, shared, n);
                if (!back) {
                    before[count + n] = decay * before[n] + step * x * key;
                    continue;
                }
                d[n] += tensor_at(&p->input[QUERY], token, shared, n) * y;
                g[QUERY][dense_place(&p->input[QUERY], token, shared) + n] += y * before[count + n];
                g[KEY][dense_place(&p->input[KEY], token, shared) + n] += step * x * d[n];
                g[RATE][dense_place(&p->input[RATE], 0, head) + own + n] += step * decay * before[n] * d[n];
                dx += step * key * d[n];
                dstep += (rate * decay * before[n] + x * key) * d[n];
                d[n] *= decay;
            }
            if (!back) continue;
            if (w->skip) dx += tensor_at(&p->input[SKIP], 0, head, c) * y;
            g[SKIP][dense_place(&p->input[SKIP], 0, head) + c] += x * y;
            g[VALUE][dense_place(&p->input[VALUE], token, head) + c] = dx;
            g[STEP][dense_place(&p->input[STEP], token, head) + c] = w->softplus ? dstep / (1 + exp(-given)) : dstep;
        }
    free(states);
}

/* ---- checks ---- */

static recurrent recurrent_of(problem *p, check_run *run, const char *kernel) {
    return (recurrent){p->of->name,  kernel,         run, p, &p->output, &p->state_in, &p->state_out,
                       p->of->state, p->of->left_out};
}

static void check_kernel(problem *p, const ln_cuda_device *device, const ln_cuda_scan_kernel *kernel,
                         const double *output, const double *state) {
    if (ln_cuda_scan_plan_make(&p->scan, device, kernel, &p->plan) != LN_CUDA_OK) return;
    p->workspace = device_open(p->plan.workspace);
    EXPECT(ln_cuda_scan_prepare(&p->scan, &p->plan, p->workspace, NULL) == LN_CUDA_OK, "%s: prepare", p->of->name);
    const recurrent r = recurrent_of(p, forward, kernel->name);
    recurrent_forward(&r, output, state, p->of->float32 ? 5e-6 : 4e-3, 2e-5);
    device_close(p->workspace);
}

static void check_backward(problem *p, const ln_cuda_device *device) {
    static const char *const WHAT[INPUTS + 1] = {"value", "step", "key", "query", "gate", "rate", "skip", "state"};
    recurrent_gradient g[INPUTS + 1];
    double *want[INPUTS + 1];
    EXPECT(ln_cuda_scan_plan_make(&p->scan, device, NULL, &p->plan) == LN_CUDA_OK, "%s: %s", p->of->name, p->plan.why);
    for (int i = 0; i <= INPUTS; i++) {
        tensor *made = i < INPUTS ? &p->gradient[i] : &p->state_in_gradient;
        want[i] = doubles(made->tokens * made->heads * made->size);
        /* Values and steps of more than 16 slots are sums of sums. */
        const double most = made->element == ELEMENT_BF16 ? (p->of->slots > 16 ? 8e-3 : 4e-3) : 1e-5;
        g[i] = (recurrent_gradient){WHAT[i], i == GATE ? NULL : made, want[i], most};
    }
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < p->of->heads; head++)
            for (int c = 0; c < p->of->value_size; c++) oracle_channel_back(p, s, head, c, want);
    p->gradient_workspace = device_open(p->plan.gradient_workspace);
    EXPECT(ln_cuda_scan_prepare(&p->scan, &p->plan, p->gradient_workspace, NULL) == LN_CUDA_OK, "%s: prepare",
           p->of->name);
    const recurrent r = recurrent_of(p, backward, "backward");
    recurrent_backward(&r, g, INPUTS + 1);
    for (int i = 0; i <= INPUTS; i++) free(want[i]);
    device_close(p->gradient_workspace);
}

static double products_of(const work *w) {
    const batch b = batch_of(w->lengths);
    return (double)batch_tokens(&b) * w->heads * w->value_size * w->slots * 10;
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        if (!work_wanted(options, WORKS[i].name, products_of(&WORKS[i]))) continue;
        problem p;
        problem_open(&p, &WORKS[i], tensor_random);
        double *output = doubles(p.output.tokens * p.output.heads * p.output.size),
               *state = doubles(p.state_in.elements);
        oracle(&p, output, state);
        EXPECT(ln_cuda_scan_plan_make(&p.scan, device, NULL, &p.plan) == LN_CUDA_OK, "%s: %s", WORKS[i].name,
               p.plan.why);
        for (int row = 0; ln_cuda_scan_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_scan_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_scan_kernels(row), output, state);
        if (WORKS[i].slots % 16 == 0 && !WORKS[i].gate && !WORKS[i].strange && !WORKS[i].left_out)
            check_backward(&p, device);
        problem_close(&p);
        free(output);
        free(state);
        fflush(stdout);
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, old = {0, 7, 5, 40, 65536, 4 << 20};
    const int64_t offsets[2] = {0, 1000}, single[2] = {0, 1}, wrong[2] = {1, 2};
    ln_cuda_scan scan = {1, 1, 1024, 16, 1, offsets, true, false};
    ln_cuda_scan_plan plan;
    EXPECT(ln_cuda_scan_plan_make(&scan, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->lanes == 8, "%s",
           plan.why);
    EXPECT(ln_cuda_scan_plan_make(&scan, &old, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    scan.value_size = 32768;
    EXPECT(ln_cuda_scan_plan_make(&scan, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->channels == 2, "%s",
           plan.why);
    scan.offsets = single;
    EXPECT(ln_cuda_scan_plan_make(&scan, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->lanes == 0, "%s",
           plan.why);
    ln_cuda_scan_tensors tensors = {0};
    EXPECT(ln_cuda_scan_forward(&scan, &plan, &tensors, NULL, NULL) == LN_CUDA_ARGUMENT, "without tensors");
    ln_cuda_scan_gradients gradients = {0};
    EXPECT(ln_cuda_scan_backward(&scan, &plan, &tensors, &gradients, NULL, NULL) == LN_CUDA_ARGUMENT, "nothing given");
    tensors.gate.data = &plan;
    EXPECT(ln_cuda_scan_backward(&scan, &plan, &tensors, &gradients, NULL, NULL) == LN_CUDA_UNSUPPORTED, "a gate");
    EXPECT(ln_cuda_scan_prepare(&scan, &plan, NULL, NULL) == LN_CUDA_ARGUMENT, "no workspace");
    scan.slots = 12;
    EXPECT(ln_cuda_scan_plan_make(&scan, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    EXPECT(ln_cuda_scan_forward(&scan, &plan, &tensors, NULL, NULL) == LN_CUDA_UNSUPPORTED, "without a plan");
    scan.slots = 16, scan.offsets = wrong;
    EXPECT(ln_cuda_scan_plan_make(&scan, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "%s", plan.why);
}

/* ---- speed ---- */

static const work BENCH[] = {
    {"65536 x 4096", 1, 1, 4096, 16, {65536, -1}, .state = APART, .softplus = true, .skip = true},
    {"8 x 8192 x 4096",
     1,
     1,
     4096,
     16,
     {8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, -1},
     .state = APART,
     .softplus = true,
     .skip = true},
    {"8 x 8192 x 4096, gate",
     1,
     1,
     4096,
     16,
     {8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, -1},
     .state = APART,
     .softplus = true,
     .skip = true,
     .gate = true},
    {"2048 x 8192", 1, 1, 8192, 16, {2048, -1}, .state = APART, .softplus = true, .skip = true},
};
/* A token each: the heads stand for sequences of channels that lie apart, as a batch has at most BATCH_MOST. */
static const work STEPS[] = {
    {"step 8 x 262144", 64, 64, 4096, 16, {1, 1, 1, 1, 1, 1, 1, 1, -1}, .state = APART, .softplus = true, .skip = true},
    {"step 1 x 4096", 1, 1, 4096, 16, {1, -1}, .state = APART, .softplus = true, .skip = true},
};

static void bench_work(const work *w, const ln_cuda_device *device, const check_options *options, double copy) {
    problem p;
    if (!strstr(w->name, options->works)) return;
    problem_open(&p, w, tensor_large);
    ln_cuda_scan_plan_make(&p.scan, device, NULL, &p.plan);
    const ln_cuda_scan_kernel *taken = p.plan.kernel;
    const double elements = (double)p.output.elements;
    double bytes = elements * (w->gate ? 10 : 8);
    bytes += 8.0 * (double)p.state_in.elements;
    for (int row = 0; ln_cuda_scan_kernels(row)->start; row++) {
        const ln_cuda_scan_kernel *kernel = ln_cuda_scan_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (ln_cuda_scan_plan_make(&p.scan, device, kernel, &p.plan) != LN_CUDA_OK) continue;
        p.workspace = device_open(p.plan.workspace);
        ln_cuda_scan_prepare(&p.scan, &p.plan, p.workspace, NULL);
        void *contexts[] = {&p};
        timing time;
        time_in_turns(forward, contexts, 1, options->rounds, &time);
        printf(
            "selective scan %-24s %-24s%c %8.4f ms %6.3f TB/s (%3.0f %% of a copy) %6.1f G exponentials a second per "
            "multiprocessor\n",
            w->name, kernel->name, kernel == taken ? '*' : ' ', time.median, 1e-9 * bytes / time.median,
            1e5 * bytes / time.median / copy, 1e-6 * elements * w->slots / time.median / device->multiprocessors);
        device_close(p.workspace);
    }
    if (!w->gate && elements / w->slots > 1e6 && ln_cuda_scan_plan_make(&p.scan, device, NULL, &p.plan) == LN_CUDA_OK) {
        p.gradient_workspace = device_open(p.plan.gradient_workspace);
        ln_cuda_scan_prepare(&p.scan, &p.plan, p.gradient_workspace, NULL);
        void *contexts[] = {&p};
        timing time;
        time_in_turns(backward, contexts, 1, options->rounds, &time);
        printf("selective scan %-24s backward %8.4f ms\n", w->name, time.median);
        device_close(p.gradient_workspace);
    }
    problem_close(&p);
    fflush(stdout);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    const double copy = device_bandwidth();
    for (size_t i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) bench_work(&BENCH[i], device, options, copy);
    for (size_t i = 0; i < sizeof STEPS / sizeof STEPS[0]; i++) bench_work(&STEPS[i], device, options, copy);
}

const suite cuda_suite_scan = {"scan", WORK_COUNT, check_plans, check, bench};
