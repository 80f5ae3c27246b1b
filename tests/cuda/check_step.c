/* One token of each sequence on a GPU against the recurrences in float64. */
#include "kernel/cuda/step_cuda.h"
#include "recurrent.h"

/* Of states in place the second sequence's slot is negative. */
typedef struct work {
    const char *name;
    ln_cuda_step_rule rule;
    int sequences, heads, key_heads, key_size, value_size;
    int layout, state;
    int gap; /* floats between the states of heads */
    bool normalise, tiled, float32, undecayed, strange;
    bool divided; /* by the sum of weights */
} work;

#define RULE(rule) LN_CUDA_STEP_##rule
static const work WORKS[] = {
    {"linear attention", RULE(SIMPLE_GLA), 2, 2, 2, 64, 64, .state = APART, .float32 = true, .undecayed = true},
    {"simple_gla", RULE(SIMPLE_GLA), 3, 4, 2, 128, 128, PADDED, IN_PLACE, .float32 = true},
    {"simple_gla 100 x 76", RULE(SIMPLE_GLA), 2, 2, 1, 100, 76, .state = APART, .float32 = true},
    {"simple_gla 40 x 33", RULE(SIMPLE_GLA), 2, 2, 1, 40, 33, PADDED, IN_PLACE, .float32 = true},
    {"gla", RULE(GLA), 3, 2, 2, 128, 128, .state = IN_PLACE, .float32 = true},
    {"gla 256", RULE(GLA), 2, 2, 2, 256, 64, .state = APART, .float32 = true, .gap = 4},
    {"gla, no state", RULE(GLA), 2, 2, 2, 64, 64, .float32 = true},
    {"ssd 128 x 64", RULE(SSD), 3, 8, 1, 128, 64, .state = IN_PLACE, .float32 = true},
    {"ssd, bf16", RULE(SSD), 2, 4, 2, 64, 64, .state = APART},
    {"mlstm", RULE(MLSTM), 3, 2, 2, 128, 128, .state = IN_PLACE, .float32 = true},
    {"mlstm, aligned", RULE(MLSTM), 3, 3, 3, 128, 128, .state = IN_PLACE, .gap = 3, .float32 = true},
    {"mlstm 256 x 512", RULE(MLSTM), 2, 2, 1, 256, 512, .state = APART, .float32 = true},
    {"mlstm_sigmoid", RULE(MLSTM_SIGMOID), 3, 2, 2, 64, 128, .state = IN_PLACE, .float32 = true},
    {"mlstm_sigmoid, divided", RULE(MLSTM_SIGMOID), 3, 2, 2, 64, 64, .state = IN_PLACE, .float32 = true,
     .divided = true},
    {"linear attention, divided", RULE(SIMPLE_GLA), 2, 2, 1, 128, 128, .state = IN_PLACE, .float32 = true,
     .undecayed = true, .divided = true},
    {"gla_value", RULE(GLA_VALUE), 3, 4, 2, 128, 128, .state = IN_PLACE, .float32 = true},
    {"gla_value 200 x 36", RULE(GLA_VALUE), 2, 2, 2, 200, 36, .state = APART, .float32 = true},
    {"gla_value 48 x 33", RULE(GLA_VALUE), 2, 2, 2, 48, 33, .state = APART, .float32 = true},
    {"delta_rule", RULE(DELTA_RULE), 3, 4, 2, 128, 128, .state = IN_PLACE, .normalise = true, .float32 = true},
    {"gated_delta_rule", RULE(GATED_DELTA_RULE), 3, 4, 2, 128, 128, PADDED, IN_PLACE, .normalise = true,
     .float32 = true},
    {"gated_delta_rule, tiled, bf16", RULE(GATED_DELTA_RULE), 3, 4, 2, 128, 128, .state = IN_PLACE, .tiled = true},
    {"gated_delta_rule 96 x 50", RULE(GATED_DELTA_RULE), 2, 2, 2, 96, 50, HEAD_MAJOR, APART, .normalise = true,
     .float32 = true},
    {"kda", RULE(KDA), 3, 2, 2, 128, 128, .state = IN_PLACE, .normalise = true, .float32 = true},
    {"kda 256", RULE(KDA), 2, 2, 2, 256, 256, .state = APART, .normalise = true, .float32 = true},
    {"kda, strange", RULE(KDA), 3, 2, 2, 64, 64, .state = APART, .float32 = true, .strange = true},
    {"dplr", RULE(DPLR), 3, 2, 2, 64, 64, .state = IN_PLACE, .float32 = true},
    {"dplr 128", RULE(DPLR), 3, 2, 2, 128, 128, .state = IN_PLACE, .normalise = true, .float32 = true},
    {"dplr 80 x 30", RULE(DPLR), 2, 2, 1, 80, 30, .state = APART, .float32 = true},
    {"dplr, bf16", RULE(DPLR), 2, 2, 2, 64, 64, .state = APART},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

enum { QUERY, KEY, VALUE, A, B, DECAY, STRENGTH, RATE, SKIP, INPUTS };

typedef struct problem {
    const work *of;
    ln_cuda_step step;
    ln_cuda_step_plan plan;
    tensor input[INPUTS], output, state_in, state_out;
    slots slots;
} problem;

static int64_t head_floats(const work *w) {
    const int64_t side = w->rule == LN_CUDA_STEP_MLSTM ? w->key_size + 1 : w->divided ? w->key_size : 0;
    return (int64_t)w->key_size * w->value_size + side + w->gap;
}

static void gates_make(problem *p) {
    tensor *decay = &p->input[DECAY], *strength = &p->input[STRENGTH];
    const int rule = ln_cuda_step_rules[p->of->rule].strength;
    for (int64_t i = 0; i < decay->elements; i++) {
        const double kind = random_uniform();
        ((float *)decay->host)[i] = kind < 0.1    ? 0
                                    : kind < 0.15 ? -88
                                    : kind < 0.2  ? -INFINITY
                                                  : -(float)random_uniform();
    }
    for (int64_t i = 0; i < strength->elements; i++) {
        const float x = (float)random_uniform();
        ((float *)strength->host)[i] = rule == LN_CUDA_STEP_BETA ? 2 * x : rule == LN_CUDA_STEP_SIZE ? x : 6 * x - 3;
    }
    for (int64_t i = 0; i < p->input[RATE].elements; i++) ((float *)p->input[RATE].host)[i] = -(float)random_uniform();
    tensor_send(decay);
    tensor_send(strength);
    tensor_send(&p->input[RATE]);
}

static void problem_open(problem *p, const work *w, tensor_make *make) {
    *p = (problem){.of = w};
    const int64_t n = w->sequences, pool = w->state == IN_PLACE ? 2 * n : n;
    const int decay = ln_cuda_step_rules[w->rule].decay, channels = decay == LN_CUDA_STEP_KEY_DECAY     ? w->key_size
                                                                    : decay == LN_CUDA_STEP_VALUE_DECAY ? w->value_size
                                                                                                        : 1;
    p->step = (ln_cuda_step){.rule = w->rule,
                             .sequences = n,
                             .heads = w->heads,
                             .key_heads = w->key_heads,
                             .tiled_heads = w->tiled,
                             .key_size = w->key_size,
                             .value_size = w->value_size,
                             .scale = (float)(1 / sqrt((double)w->key_size)),
                             .normalise = w->divided,
                             .normalise_keys = w->normalise,
                             .output_float32 = w->float32,
                             .head_stride = w->gap ? head_floats(w) : 0};
    /* Rows of 16 bytes. */
    const int64_t key = (w->key_size + 7) / 8 * 8, value = (w->value_size + 7) / 8 * 8;
    p->input[QUERY] = make(n, w->key_heads, key, w->layout, ELEMENT_BF16, 1);
    p->input[KEY] = make(n, w->key_heads, key, w->layout, ELEMENT_BF16, 1);
    p->input[VALUE] = make(n, w->heads, value, w->layout, ELEMENT_BF16, 1);
    p->input[A] = make(n, w->key_heads, key, w->layout, ELEMENT_BF16, 0.1f);
    p->input[B] = make(n, w->key_heads, key, w->layout, ELEMENT_BF16, 0.1f);
    p->input[DECAY] = make(n, w->heads, channels, PACKED, ELEMENT_FLOAT32, 1);
    p->input[STRENGTH] = make(n, w->heads, 1, PACKED, ELEMENT_FLOAT32, 1);
    p->input[RATE] = make(1, w->heads, 1, PACKED, ELEMENT_FLOAT32, 1);
    p->input[SKIP] = make(1, w->heads, 1, PACKED, ELEMENT_FLOAT32, 1);
    p->output = make(n, w->heads, value, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->state_in = make(pool, w->heads, head_floats(w), PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = make(pool, w->heads, head_floats(w), PACKED, ELEMENT_FLOAT32, 1);
    if (!p->state_in.host) return;
    gates_make(p);
    /* Sums of weights of about 1 do not cancel. */
    for (int64_t i = 0; w->divided && w->undecayed && i < n * w->key_heads * w->key_size; i++)
        for (int k = QUERY; k <= KEY; k++) {
            const int64_t size = w->key_size, row = i / size, token = row / w->key_heads, head = row % w->key_heads;
            tensor_set(&p->input[k], token, head, i % size, fabs(tensor_at(&p->input[k], token, head, i % size)));
        }
    for (int64_t i = 0; w->divided && w->undecayed && i < p->state_in.elements; i++)
        tensor_set(&p->state_in, 0, 0, i, fabs(tensor_at(&p->state_in, 0, 0, i)));
    tensor *const changed[] = {&p->input[QUERY], &p->input[KEY], &p->state_in};
    for (int i = 0; i < 3; i++) tensor_send(changed[i]);
    p->slots = slots_open(w->sequences);
    if (w->state == IN_PLACE && w->sequences > 1) {
        p->slots.host[1] = -1;
        device_send(p->slots.device, p->slots.host, (int64_t)sizeof p->slots.host);
    }
    if (w->strange) {
        tensor_set(&p->input[VALUE], 0, 1, 3, NAN);
        tensor_set(&p->state_in, 1, 0, 5, NAN);
        tensor_send(&p->input[VALUE]);
        tensor_send(&p->state_in);
    }
}

static void problem_close(problem *p) {
    for (int i = 0; i < INPUTS; i++) tensor_close(&p->input[i]);
    tensor_close(&p->output);
    tensor_close(&p->state_in);
    tensor_close(&p->state_out);
    if (p->slots.device) device_close(p->slots.device);
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const work *w = p->of;
    const ln_cuda_step_tensors tensors = {.query = p->input[QUERY].device,
                                          .key = p->input[KEY].device,
                                          .value = p->input[VALUE].device,
                                          .a = p->input[A].device,
                                          .b = p->input[B].device,
                                          .decay = w->undecayed ? (ln_cuda_tensor){0} : p->input[DECAY].device,
                                          .strength = p->input[STRENGTH].device,
                                          .rate = p->input[RATE].device.data,
                                          .skip = p->input[SKIP].device.data,
                                          .output = p->output.device,
                                          .state_in = w->state == NO_STATE   ? NULL
                                                      : w->state == IN_PLACE ? p->state_out.device.data
                                                                             : p->state_in.device.data,
                                          .state_out = w->state == NO_STATE ? NULL : p->state_out.device.data,
                                          .state_slots = w->state == IN_PLACE ? p->slots.device : NULL};
    return ln_cuda_step_forward(&p->step, &p->plan, &tensors, stream);
}

/* ---- float64 ---- */

static void unit(double *x, int count) {
    double square = 1e-6;
    for (int i = 0; i < count; i++) square += x[i] * x[i];
    for (int i = 0; i < count; i++) x[i] /= sqrt(square);
}

/* What the gates of a head come to: decays of rows, and what multiplies the key. */
static double gates_of(const problem *p, int token, int head, double *maximum, double *decay) {
    const work *w = p->of;
    const ln_cuda_step_parts *parts = &ln_cuda_step_rules[w->rule];
    const double strength = tensor_at(&p->input[STRENGTH], token, head, 0);
    for (int k = 0; k < w->key_size; k++) {
        decay[k] = parts->decay == LN_CUDA_STEP_NO_DECAY || parts->decay == LN_CUDA_STEP_VALUE_DECAY || w->undecayed
                       ? 0
                       : tensor_at(&p->input[DECAY], token, head, parts->decay == LN_CUDA_STEP_KEY_DECAY ? k : 0);
        if (w->rule == LN_CUDA_STEP_SSD) decay[k] = strength * tensor_at(&p->input[RATE], 0, head, 0);
    }
    if (w->rule == LN_CUDA_STEP_MLSTM) {
        const double before = *maximum;
        *maximum = fmax(decay[0] + before, strength);
        for (int k = 0; k < w->key_size; k++) decay[k] += before - *maximum;
        return exp(strength - *maximum);
    }
    return w->rule == LN_CUDA_STEP_MLSTM_SIGMOID ? 1 / (1 + exp(-strength))
           : w->rule == LN_CUDA_STEP_SSD         ? strength
                                                 : 1;
}

/* S, of a head, moves on by a token. */
static void oracle_head(const problem *p, int token, int head, double *s, double *output) {
    const work *w = p->of;
    const int keys = w->key_size, values = w->value_size, kind = ln_cuda_step_rules[w->rule].kind;
    const int shared = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    double *q = doubles(5 * keys + 2 * values), *k = q + keys, *a = k + keys, *b = a + keys, *decay = b + keys,
           *v = decay + keys, *y = v + values, *normaliser = s + (int64_t)keys * values;
    for (int i = 0; i < keys; i++) {
        q[i] = tensor_at(&p->input[QUERY], token, shared, i);
        k[i] = tensor_at(&p->input[KEY], token, shared, i);
        a[i] = tensor_at(&p->input[A], token, shared, i);
        b[i] = tensor_at(&p->input[B], token, shared, i);
    }
    for (int i = 0; i < values; i++) v[i] = tensor_at(&p->input[VALUE], token, head, i);
    if (w->normalise) unit(q, keys), unit(k, keys);
    const double write = gates_of(p, token, head, normaliser + keys, decay);
    for (int j = 0; j < values; j++)
        for (int i = 0; i < keys; i++) y[j] += a[i] * s[i * values + j];
    for (int i = 0; i < keys; i++)
        for (int j = 0; j < values; j++) {
            const bool by_value = ln_cuda_step_rules[w->rule].decay == LN_CUDA_STEP_VALUE_DECAY;
            s[i * values + j] *= exp(by_value ? tensor_at(&p->input[DECAY], token, head, j) : decay[i]);
        }
    if (kind == LN_CUDA_STEP_DELTA)
        for (int j = 0; j < values; j++) {
            y[j] = v[j];
            for (int i = 0; i < keys; i++) y[j] -= k[i] * s[i * values + j];
            y[j] *= tensor_at(&p->input[STRENGTH], token, head, 0);
        }
    double dot = 0;
    for (int i = 0; i < keys; i++) {
        for (int j = 0; j < values; j++) {
            double *at = &s[i * values + j];
            if (kind == LN_CUDA_STEP_DELTA)
                *at += k[i] * y[j];
            else
                *at += write * k[i] * v[j] + (kind == LN_CUDA_STEP_LOW_RANK ? b[i] * y[j] : 0);
        }
        if (w->rule != LN_CUDA_STEP_MLSTM && !w->divided) continue;
        normaliser[i] = exp(decay[i]) * normaliser[i] + write * k[i];
        dot += (double)p->step.scale * q[i] * normaliser[i];
    }
    for (int j = 0; j < values; j++) {
        output[j] = 0;
        for (int i = 0; i < keys; i++) output[j] += (double)p->step.scale * q[i] * s[i * values + j];
        if (w->rule == LN_CUDA_STEP_MLSTM) output[j] /= fmax(fabs(dot), exp(-normaliser[keys])) + 1e-6;
        if (w->divided) output[j] /= w->undecayed ? dot + 1e-10 : fmax(fabs(dot), 1);
        if (w->rule == LN_CUDA_STEP_SSD) output[j] += tensor_at(&p->input[SKIP], 0, head, 0) * v[j];
    }
    free(q);
}

/* ---- checks ---- */

static void states_begin(problem *p) {
    tensor_poison(&p->output);
    tensor_poison(&p->state_out);
    if (p->of->state == IN_PLACE)
        device_send(p->state_out.device.data, p->state_in.host, p->state_in.elements * element_bytes(ELEMENT_FLOAT32));
}

static void compare(problem *p, const char *kernel) {
    const work *w = p->of;
    const int64_t floats = head_floats(w), kept = floats - w->gap;
    double *s = doubles(floats), *got = doubles(floats), *output = doubles(w->value_size), worst = 0, states = 0;
    for (int n = 0; n < w->sequences; n++) {
        const int64_t slot = w->state == IN_PLACE ? p->slots.host[n] : n;
        if (slot < 0) continue;
        for (int head = 0; head < w->heads; head++) {
            for (int64_t i = 0; i < kept; i++) s[i] = w->state == NO_STATE ? 0 : tensor_at(&p->state_in, slot, head, i);
            oracle_head(p, n, head, s, output);
            for (int j = 0; j < w->value_size; j++) got[j] = tensor_at(&p->output, n, head, j);
            worst = fmax(worst, relative_error(got, output, w->value_size));
            if (w->state == NO_STATE) continue;
            for (int64_t i = 0; i < kept; i++) got[i] = tensor_at(&p->state_out, slot, head, i);
            states = fmax(states, relative_error(got, s, kept));
        }
    }
    EXPECT(worst < (w->float32 ? 1e-5 : 4e-3), "%s, %s: relative error of an output %.2e", w->name, kernel, worst);
    EXPECT(states < 2e-6, "%s, %s: relative error of a state %.2e", w->name, kernel, states);
    printf("  %-30s %-26s %.2e, state %.2e\n", w->name, kernel, worst, states);
    free(s);
    free(got);
    free(output);
}

/* Where nothing is to be written, nothing was: slots that no sequence has, sequences without a slot, gaps. */
static void compare_others(const problem *p, const char *kernel) {
    const work *w = p->of;
    int64_t spoiled = 0;
    if (w->state != IN_PLACE) return;
    for (int64_t slot = 0; slot < p->state_out.tokens; slot++) {
        bool used = false;
        for (int n = 0; n < w->sequences; n++) used |= p->slots.host[n] == slot;
        for (int head = 0; head < w->heads; head++)
            for (int64_t i = used ? head_floats(w) - w->gap : 0; i < head_floats(w); i++)
                spoiled += tensor_at(&p->state_out, slot, head, i) != tensor_at(&p->state_in, slot, head, i);
    }
    for (int n = 0; n < w->sequences; n++)
        for (int head = 0; head < w->heads && p->slots.host[n] < 0; head++)
            for (int j = 0; j < w->value_size; j++) spoiled += !isnan(tensor_at(&p->output, n, head, j));
    EXPECT(spoiled == 0, "%s, %s: %lld numbers that are not the step's were written", w->name, kernel,
           (long long)spoiled);
}

static void check_kernel(problem *p, const ln_cuda_device *device, const ln_cuda_step_kernel *kernel) {
    const char *name = p->of->name;
    if (ln_cuda_step_plan_make(&p->step, device, kernel, &p->plan) != LN_CUDA_OK) return;
    states_begin(p);
    run_now(forward, p, name, kernel->name);
    tensor_fetch(&p->output);
    tensor_fetch(&p->state_out);
    compare(p, kernel->name);
    compare_others(p, kernel->name);
    cudaGraphExec_t graph = run_capture(forward, p, name, kernel->name);
    states_begin(p);
    run_graph(graph, name, kernel->name);
    tensor_expect_same(&p->output, name, kernel->name, "output");
    tensor_expect_same(&p->state_out, name, kernel->name, "state");
    cudaGraphExecDestroy(graph);
}

static double products_of(const work *w) {
    return 3.0 * w->sequences * w->heads * w->key_size * w->value_size;
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        if (!work_wanted(options, WORKS[i].name, products_of(&WORKS[i]))) continue;
        problem p;
        problem_open(&p, &WORKS[i], tensor_random);
        EXPECT(ln_cuda_step_plan_make(&p.step, device, NULL, &p.plan) == LN_CUDA_OK, "%s: %s", WORKS[i].name,
               p.plan.why);
        for (int row = 0; ln_cuda_step_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_step_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_step_kernels(row));
        problem_close(&p);
        fflush(stdout);
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, old = {0, 7, 5, 40, 65536, 4 << 20};
    ln_cuda_step step = {.rule = LN_CUDA_STEP_KDA,
                         .sequences = 64,
                         .heads = 32,
                         .key_heads = 16,
                         .key_size = 128,
                         .value_size = 128,
                         .scale = 0.1f,
                         .normalise_keys = true};
    ln_cuda_step_plan plan;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->aligned, "%s", plan.why);
    EXPECT(ln_cuda_step_plan_make(&step, &old, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    step.value_size = 127;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_OK && !plan.kernel->aligned, "%s", plan.why);
    step.key_size = 257;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    ln_cuda_step_tensors tensors = {0};
    EXPECT(ln_cuda_step_forward(&step, &plan, &tensors, NULL) == LN_CUDA_UNSUPPORTED, "without a plan");
    step.key_size = 128, step.head_stride = 100;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "strides: %s", plan.why);
    step.head_stride = 0, step.key_heads = 5;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "heads: %s", plan.why);
    step.key_heads = 16, step.rule = LN_CUDA_STEP_GLA;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "normalised: %s", plan.why);
    step.normalise_keys = false;
    EXPECT(ln_cuda_step_plan_make(&step, &hopper, NULL, &plan) == LN_CUDA_OK, "%s", plan.why);
    EXPECT(ln_cuda_step_forward(&step, &plan, &tensors, NULL) == LN_CUDA_ARGUMENT, "without tensors");
}

/* ---- speed ---- */

static const work BENCH[] = {
    {"simple_gla 256 x 32", RULE(SIMPLE_GLA), 256, 32, 32, 128, 128, .state = APART},
    {"gla 256 x 32", RULE(GLA), 256, 32, 32, 128, 128, .state = APART},
    {"gated_delta_rule 256 x 32", RULE(GATED_DELTA_RULE), 256, 32, 16, 128, 128, .state = APART, .normalise = true},
    {"gated_delta_rule 64 x 32", RULE(GATED_DELTA_RULE), 64, 32, 16, 128, 128, .state = APART, .normalise = true},
    {"gated_delta_rule 8 x 32", RULE(GATED_DELTA_RULE), 8, 32, 16, 128, 128, .state = APART, .normalise = true},
    {"gated_delta_rule 1 x 32", RULE(GATED_DELTA_RULE), 1, 32, 16, 128, 128, .state = APART, .normalise = true},
    {"kda 256 x 32", RULE(KDA), 256, 32, 32, 128, 128, .state = APART, .normalise = true},
    {"dplr 256 x 64, 64 x 64", RULE(DPLR), 256, 64, 64, 64, 64, .state = APART},
    {"ssd 256 x 80, 128 x 64", RULE(SSD), 256, 80, 1, 128, 64, .state = APART},
    {"mlstm 256 x 8, 256 x 512", RULE(MLSTM), 256, 8, 8, 256, 512, .state = APART},
    {"mlstm 256 x 8, 256 x 512, aligned", RULE(MLSTM), 256, 8, 8, 256, 512, .state = APART, .gap = 3},
};

static ln_cuda_code forward_in_place(void *context, void *stream) {
    problem *p = context;
    problem same = *p;
    same.state_in = same.state_out;
    return forward(&same, stream);
}

/* Twenty in a row, where one is too short to be timed. */
enum { OFTEN = 20 };
static ln_cuda_code forward_often(void *context, void *stream) {
    ln_cuda_code code = LN_CUDA_OK;
    for (int i = 0; i < OFTEN && !code; i++) code = forward_in_place(context, stream);
    return code;
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    const double copy = device_bandwidth();
    for (size_t i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) {
        const work *w = &BENCH[i];
        if (!strstr(w->name, options->works)) continue;
        problem p;
        problem_open(&p, w, tensor_large);
        ln_cuda_step_plan_make(&p.step, device, NULL, &p.plan);
        const ln_cuda_step_kernel *taken = p.plan.kernel;
        const double bytes = 8.0 * (double)p.state_in.elements;
        for (int row = 0; ln_cuda_step_kernels(row)->start; row++) {
            const ln_cuda_step_kernel *kernel = ln_cuda_step_kernels(row);
            if (!kernel_wanted(options, kernel->name) || kernel->aligned != taken->aligned) continue;
            if (ln_cuda_step_plan_make(&p.step, device, kernel, &p.plan) != LN_CUDA_OK) continue;
            void *contexts[] = {&p};
            timing apart, in_place;
            time_in_turns(forward, contexts, 1, options->rounds, &apart);
            const bool small = bytes < 1e8;
            time_in_turns(small ? forward_often : forward_in_place, contexts, 1, options->rounds, &in_place);
            if (small) in_place.median /= OFTEN;
            printf("step %-34s %-26s%c %8.4f ms %6.3f TB/s (%3.0f %% of a copy), in place %8.4f ms (%3.0f %%)\n",
                   w->name, kernel->name, kernel == taken ? '*' : ' ', apart.median, 1e-9 * bytes / apart.median,
                   1e5 * bytes / apart.median / copy, in_place.median, 1e5 * bytes / in_place.median / copy);
        }
        problem_close(&p);
        fflush(stdout);
    }
}

const suite cuda_suite_step = {"step", WORK_COUNT, check_plans, check, bench};
