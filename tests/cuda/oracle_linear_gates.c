/* The gates of mLSTM and back through them: against the recurrence of the maximum in float64 and its central
 * differences. */
#include "oracle_linear.h"

#include "kernel/cuda/linear_backward_cuda.h"

/* [token][head] */
static tensor gates_open(int64_t tokens, int64_t heads, double (*make)(void)) {
    tensor t = tensor_open(tokens, 1, heads, PACKED, ELEMENT_FLOAT32);
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t h = 0; h < heads; h++) tensor_set(&t, i, 0, h, make());
    tensor_send(&t);
    return t;
}
static double decay_of(void) {
    return -log1p(exp(-(double)random_normal())) / 16;
}
static double input_of(void) {
    return 5 * (double)random_normal();
}
static ln_cuda_gate gate_of(const tensor *t) {
    return (ln_cuda_gate){t->device.data, t->size, 1};
}

typedef struct gates_problem {
    ln_cuda_linear linear;
    int64_t *offsets; /* on the device */
    tensor input, decay, decay_out, write_out, maximum_out, state_in, state_out;
    tensor given[3], along, ends, state_given, input_back, decay_back, state_back; /* gradients */
} gates_problem;

static ln_cuda_code gates_run(void *context, void *stream) {
    const gates_problem *g = context;
    return ln_cuda_mlstm_gates(&g->linear, g->offsets, gate_of(&g->input), gate_of(&g->decay), g->decay_out.device.data,
                               g->write_out.device.data, g->maximum_out.device.data, g->state_in.device.data,
                               g->state_out.device.data, NULL, stream);
}

static ln_cuda_code gates_back_run(void *context, void *stream) {
    const gates_problem *g = context;
    return ln_cuda_mlstm_gates_backward(&g->linear, g->offsets, gate_of(&g->input), gate_of(&g->decay),
                                        g->write_out.device.data, g->maximum_out.device.data, g->state_in.device.data,
                                        g->given[0].device.data, g->given[1].device.data, g->along.device.data,
                                        g->ends.device.data, g->state_given.device.data, g->input_back.device.data,
                                        g->decay_back.device.data, g->state_back.device.data, NULL, stream);
}

/* The sum of what the gates give of one head of a sequence, times the gradients given; `more` is added to the input
 * (1) or decay (2) of token `at`, or to the maximum before all (0). */
static double gates_sum(const gates_problem *g, int s, int head, int64_t at, int kind, double more) {
    const int64_t last = g->state_in.size - 1;
    double m = tensor_at(&g->state_in, s, head, last) + (kind == 0 ? more : 0), sum = 0;
    for (int64_t t = g->linear.offsets[s]; t < g->linear.offsets[s + 1]; t++) {
        const double input = tensor_at(&g->input, t, 0, head) + (kind == 1 && t == at ? more : 0),
                     old = tensor_at(&g->decay, t, 0, head) + (kind == 2 && t == at ? more : 0) + m;
        m = fmax(old, input);
        sum += tensor_at(&g->given[0], t, 0, head) * (old - m) + tensor_at(&g->given[1], t, 0, head) * exp(input - m) +
               tensor_at(&g->given[2], t, 0, head) * m;
    }
    return sum + tensor_at(&g->state_given, s, head, last) * m;
}

/* The gradients of the maxima with what follows from each until the next: of decays and writes too. */
static void along_make(gates_problem *g) {
    const int64_t tokens = g->linear.offsets[g->linear.sequences];
    const int heads = (int)g->linear.heads;
    g->along = tensor_open(tokens, 1, heads, PACKED, ELEMENT_FLOAT32);
    g->ends = tensor_random(g->linear.sequences, 1, heads, PACKED, ELEMENT_FLOAT32, 1);
    for (int s = 0; s < g->linear.sequences; s++)
        for (int64_t t = g->linear.offsets[s]; t < g->linear.offsets[s + 1]; t++)
            for (int h = 0; h < heads; h++) {
                const bool last = t + 1 == g->linear.offsets[s + 1];
                tensor_set(&g->along, t, 0, h,
                           tensor_at(&g->given[2], t, 0, h) - tensor_at(&g->given[0], t, 0, h) -
                               tensor_at(&g->write_out, t, 0, h) * tensor_at(&g->given[1], t, 0, h) +
                               (last ? tensor_at(&g->ends, s, 0, h) : tensor_at(&g->given[0], t + 1, 0, h)));
            }
    tensor_send(&g->along);
}

/* Against central differences at some tokens. */
static void check_gates_back(gates_problem *g) {
    const int64_t tokens = g->linear.offsets[g->linear.sequences];
    const int heads = (int)g->linear.heads, sequences = (int)g->linear.sequences;
    for (int i = 0; i < 3; i++) g->given[i] = tensor_random(tokens, 1, heads, PACKED, ELEMENT_FLOAT32, 1);
    along_make(g);
    g->state_given = tensor_random(sequences, heads, g->state_in.size, PACKED, ELEMENT_FLOAT32, 1);
    g->input_back = tensor_open(tokens, 1, heads, PACKED, ELEMENT_FLOAT32);
    g->decay_back = tensor_open(tokens, 1, heads, PACKED, ELEMENT_FLOAT32);
    g->state_back = tensor_open(sequences, heads, g->state_in.size, PACKED, ELEMENT_FLOAT32);
    run_now(gates_back_run, g, "gates of mlstm", "gates backward");
    tensor_fetch(&g->input_back);
    tensor_fetch(&g->decay_back);
    tensor_fetch(&g->state_back);
    tensor_expect_written(&g->input_back, "gates of mlstm", "gates backward");
    tensor_expect_written(&g->decay_back, "gates of mlstm", "gates backward");
    double worst = 0;
    for (int s = 0; s < sequences; s++)
        for (int i = 0; i < 60; i++) {
            const int64_t count = g->linear.offsets[s + 1] - g->linear.offsets[s];
            const int head = i % heads, kind = count ? i % 4 % 3 : 0;
            const int64_t at = g->linear.offsets[s] + (count ? (int64_t)(random_next() >> 1) % count : 0);
            const double by = 1e-7,
                         want = (gates_sum(g, s, head, at, kind, by) - gates_sum(g, s, head, at, kind, -by)) / (2 * by),
                         got = kind == 0   ? tensor_at(&g->state_back, s, head, g->state_in.size - 1)
                               : kind == 1 ? tensor_at(&g->input_back, at, 0, head)
                                           : tensor_at(&g->decay_back, at, 0, head);
            worst = fmax(worst, fabs(got - want) / (1 + fabs(want)));
        }
    EXPECT(worst < 1e-3, "gates of mlstm backward: off by %.2e", worst);
    tensor *all[] = {&g->given[0],    &g->given[1],   &g->given[2],   &g->along,     &g->ends,
                     &g->state_given, &g->input_back, &g->decay_back, &g->state_back};
    for (int i = 0; i < 9; i++) tensor_close(all[i]);
}

void linear_gates_check(void) {
    const int64_t offsets[] = {0, 1500, 1500, 1501, 3000};
    enum { HEADS = 3, COUNT = 4 };
    gates_problem g = {
        .linear = {.heads = HEADS, .key_heads = 1, .key_size = 64, .value_size = 64, .sequences = COUNT}};
    g.linear.offsets = offsets;
    g.linear.normalise = LN_CUDA_SUM_MAXIMUM;
    const int64_t floats = ln_cuda_linear_state_floats(&g.linear), tokens = offsets[COUNT];
    g.input = gates_open(tokens, HEADS, input_of);
    g.decay = gates_open(tokens, HEADS, decay_of);
    g.state_in = tensor_random(COUNT, HEADS, floats, PACKED, ELEMENT_FLOAT32, 3);
    g.decay_out = tensor_open(tokens, 1, HEADS, PACKED, ELEMENT_FLOAT32);
    g.write_out = tensor_open(tokens, 1, HEADS, PACKED, ELEMENT_FLOAT32);
    g.maximum_out = tensor_open(tokens, 1, HEADS, PACKED, ELEMENT_FLOAT32);
    g.state_out = tensor_open(COUNT, HEADS, floats, PACKED, ELEMENT_FLOAT32);
    g.offsets = device_open((int64_t)sizeof offsets);
    device_send(g.offsets, offsets, (int64_t)sizeof offsets);
    run_now(gates_run, &g, "gates of mlstm", "gates");
    tensor *outputs[] = {&g.decay_out, &g.write_out, &g.maximum_out, &g.state_out};
    for (int i = 0; i < 4; i++) tensor_fetch(outputs[i]);
    double worst = 0;
    for (int s = 0; s < COUNT; s++)
        for (int h = 0; h < HEADS; h++) {
            double m = tensor_at(&g.state_in, s, h, floats - 1);
            for (int64_t t = offsets[s]; t < offsets[s + 1]; t++) {
                const double input = tensor_at(&g.input, t, 0, h), old = tensor_at(&g.decay, t, 0, h) + m;
                m = fmax(old, input);
                worst = fmax(worst, fabs(tensor_at(&g.maximum_out, t, 0, h) - m));
                worst = fmax(worst, fabs(exp(tensor_at(&g.decay_out, t, 0, h)) - exp(old - m)));
                worst = fmax(worst, fabs(tensor_at(&g.write_out, t, 0, h) - exp(input - m)));
            }
            worst = fmax(worst, fabs(tensor_at(&g.state_out, s, h, floats - 1) - m));
        }
    EXPECT(worst < 1e-4, "gates of mlstm: off by %.2e", worst);
    check_gates_back(&g);
    tensor *all[] = {&g.input, &g.decay, &g.state_in};
    for (int i = 0; i < 4; i++) tensor_close(outputs[i]);
    for (int i = 0; i < 3; i++) tensor_close(all[i]);
    device_close(g.offsets);
}
