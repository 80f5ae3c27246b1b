/* The public operators on a device (linnet/cuda.h) against the same operators on the processor: the same settings, the
 * same tensors, every row and form that a device has, attention with each of its options, and what is refused.
 *
 * Both sides read the same bf16 numbers; the processor multiplies them exactly. The device rounds what its chunks hand
 * on to bf16 (2^-9): outputs and states may differ by TOLERANCE of their size, gradients by twice that. */
#include "operators.h"

int check_count, check_failures;
linnet_context *context;
linnet_cuda *cuda;
static uint64_t seed = 88172645463325252u;

void must(linnet_status status, const char *what) {
    if (status == LINNET_OK) return;
    printf("FAILED: %s: %s\n", what, linnet_last_error(context));
    exit(1);
}

/* ---- numbers ---- */

double uniform(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)(seed >> 11) * 0x1p-53;
}
double normal(void) {
    return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7320508;
}
static double draw(linnet_mixer_range range) {
    switch (range) {
    case LINNET_RANGE_DECAY:
        return -0.3 * uniform();
    case LINNET_RANGE_UNIT:
        return uniform();
    case LINNET_RANGE_TWICE:
        return uniform();
    case LINNET_RANGE_POSITIVE:
        return 0.1 + 0.5 * uniform();
    case LINNET_RANGE_NEGATIVE:
        return -0.2 - uniform();
    case LINNET_RANGE_SMALL:
        return 0.1 * normal();
    default:
        return normal();
    }
}
uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float of_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
double distance(const float *got, const float *want, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        const double d = (double)got[i] - (double)want[i];
        error += d * d;
        size += (double)want[i] * (double)want[i];
    }
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

/* ---- memory on both sides ---- */

void *sent(const void *from, int64_t bytes) {
    void *to;
    must(linnet_cuda_allocate(cuda, (uint64_t)bytes, &to), "allocate");
    must(linnet_cuda_send(cuda, to, from, (uint64_t)bytes), "send");
    return to;
}
void *poisoned(int64_t bytes) {
    void *block = malloc((size_t)bytes + 1);
    memset(block, 0xff, (size_t)bytes);
    void *to = sent(block, bytes);
    free(block);
    return to;
}
float *fetched(void *from, int64_t count) {
    float *to = malloc((size_t)count * sizeof *to + 1);
    must(linnet_cuda_fetch(cuda, to, from, (uint64_t)count * sizeof *to), "fetch");
    return to;
}
float *fetched_bf16(void *from, int64_t count) {
    uint16_t *bits = malloc((size_t)count * sizeof *bits + 1);
    float *to = malloc((size_t)count * sizeof *to + 1);
    must(linnet_cuda_fetch(cuda, bits, from, (uint64_t)count * sizeof *bits), "fetch");
    for (int64_t i = 0; i < count; i++) to[i] = of_bf16(bits[i]);
    free(bits);
    return to;
}
float *random_floats(int64_t count, double scale) {
    float *x = malloc((size_t)count * sizeof *x + 1);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(normal() * scale);
    return x;
}
uint16_t *rounded(float *x, int64_t count) {
    uint16_t *y = malloc((size_t)count * sizeof *y + 1);
    for (int64_t i = 0; i < count; i++) x[i] = of_bf16(y[i] = bf16_of(x[i]));
    return y;
}

pair pair_open(int64_t count, bool bf16) {
    pair p = {malloc((size_t)count * sizeof(float) + 1), poisoned(count * (bf16 ? 2 : 4)), count, bf16};
    memset(p.here, 0xff, (size_t)count * sizeof(float));
    return p;
}
/* Float32, of which some numbers stay as they are given. */
static pair pair_like(const float *given, int64_t count) {
    pair p = {malloc((size_t)count * sizeof(float) + 1), sent(given, count * 4), count, false};
    memcpy(p.here, given, (size_t)count * sizeof(float));
    return p;
}
void pair_expect(pair *p, double tolerance, const char *work, const char *what) {
    if (!p->count) return;
    float *got = p->bf16 ? fetched_bf16(p->there, p->count) : fetched(p->there, p->count);
    const double error = distance(got, p->here, p->count);
    EXPECT(error <= tolerance, "%s: %s differs by %.2e of its size", work, what, error);
    free(got);
}
void pair_close(pair *p) {
    linnet_cuda_release(cuda, p->there);
    free(p->here);
}

/* ---- mixers ---- */

typedef struct mixer_work {
    const char *row;
    linnet_mixer_form form;
    int64_t key_heads, key_size, value_size, slots;
    double option;
    bool bf16;                                        /* the output, or gradients */
    bool reverse, tiled, divided, unit, exact, empty; /* empty: no tokens at all */
    bool gates;                                       /* of bf16 */
    bool pool;                                        /* states lie in slots of one, and forward are written over */
} mixer_work;

static const mixer_work MIXERS[] = {
    {"linear_attention", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false},
    {"retention", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, false},
    {"lightning_attention", LINNET_MIXER_FORWARD, 4, 128, 64, 0, 0, false},
    {"simple_gla", LINNET_MIXER_FORWARD, 2, 128, 128, 0, 0, true},
    {"gla", LINNET_MIXER_FORWARD, 4, 64, 128, 0, 0, false},
    {"ssd", LINNET_MIXER_FORWARD, 1, 128, 64, 0, 0, false},
    {"mlstm", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, false},
    {"delta_rule", LINNET_MIXER_FORWARD, 2, 128, 128, 0, 0, false},
    {"gated_delta_rule", LINNET_MIXER_FORWARD, 2, 128, 128, 0, 0, false},
    {"kda", LINNET_MIXER_FORWARD, 4, 128, 128, 0, 0, false},
    {"dplr", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, false},
    {"rwkv7", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, false},
    {"selective_scan", LINNET_MIXER_FORWARD, 1, 1, 64, 16, 1, false},
    {"short_convolution", LINNET_MIXER_FORWARD, 4, 1, 64, 4, 1, false},
    {"linear_attention", LINNET_MIXER_STEP, 2, 64, 64, 0, 0, false},
    {"retention", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"lightning_attention", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"simple_gla", LINNET_MIXER_STEP, 2, 128, 64, 0, 0, false},
    {"gla", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"ssd", LINNET_MIXER_STEP, 1, 128, 64, 0, 0, false},
    {"mlstm", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"mlstm_sigmoid", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"delta_rule", LINNET_MIXER_STEP, 2, 64, 64, 0, 0, false},
    {"gated_delta_rule", LINNET_MIXER_STEP, 2, 128, 128, 0, 0, false},
    {"kda", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"dplr", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"rwkv7", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false},
    {"selective_scan", LINNET_MIXER_STEP, 1, 1, 64, 16, 0, false},
    {"short_convolution", LINNET_MIXER_STEP, 4, 1, 64, 4, 0, false},
    {"linear_attention", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"simple_gla", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"gla", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"delta_rule", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false},
    {"gated_delta_rule", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false},
    {"kda", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"short_convolution", LINNET_MIXER_BACKWARD, 4, 1, 64, 4, 1, true},
    {"dplr", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 1, 1, 64, 16, 0, true},
    {"retention", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false},
    {"lightning_attention", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"ssd", LINNET_MIXER_BACKWARD, 1, 128, 64, 0, 0, false, .pool = true},
    {"mlstm", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .pool = true},
    {"mlstm_sigmoid", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false},
    {"mlstm_sigmoid", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, true, .divided = true, .pool = true},
    {"mlstm_sigmoid", LINNET_MIXER_STEP, 4, 64, 64, 0, 0, false, .divided = true, .pool = true},
    {"mlstm_sigmoid", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, false},
    {"mlstm_sigmoid", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, true, .divided = true},
    {"linear_attention", LINNET_MIXER_FORWARD, 2, 64, 128, 0, 0, false, .divided = true, .pool = true},
    {"linear_attention", LINNET_MIXER_STEP, 2, 64, 64, 0, 0, false, .divided = true},
    {"linear_attention", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .divided = true},
    {"gla_value", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .tiled = true},
    {"gla_value", LINNET_MIXER_STEP, 2, 64, 64, 0, 0, false, .pool = true},
    {"gla_value", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false},
    {"rwkv7", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .tiled = true, .pool = true},
    {"dplr", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .tiled = true, .unit = true, .pool = true},
    {"dplr", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .unit = true},
    {"gla", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .gates = true},
    {"gla", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, true, .gates = true},
    {"gla", LINNET_MIXER_STEP, 2, 64, 64, 0, 0, false, .gates = true},
    {"kda", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .gates = true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 1, 1, 64, 16, 0, true, .gates = true},
    {"simple_gla", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .empty = true},
    {"gla", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .empty = true},
    {"mlstm", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .empty = true},
    {"mlstm", LINNET_MIXER_BACKWARD, 2, 20, 64, 0, 0, false, .empty = true},
    {"gated_delta_rule", LINNET_MIXER_FORWARD, 2, 64, 64, 0, 0, false, .empty = true},
    {"gated_delta_rule", LINNET_MIXER_BACKWARD, 2, 64, 64, 0, 0, false, .empty = true},
    {"dplr", LINNET_MIXER_FORWARD, 4, 64, 64, 0, 0, false, .empty = true, .reverse = true},
    {"dplr", LINNET_MIXER_BACKWARD, 4, 64, 64, 0, 0, true, .empty = true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 1, 1, 64, 16, 0, true, .empty = true},
    {"short_convolution", LINNET_MIXER_FORWARD, 4, 1, 64, 20, 0, true, .empty = true},
    {"short_convolution", LINNET_MIXER_BACKWARD, 4, 1, 64, 20, 0, true, .empty = true},
    /* Sizes that there are no kernels for. */
    {"simple_gla", LINNET_MIXER_FORWARD, 2, 24, 40, 0, 0, false, .pool = true},
    {"simple_gla", LINNET_MIXER_BACKWARD, 2, 24, 40, 0, 0, true},
    {"retention", LINNET_MIXER_BACKWARD, 4, 200, 300, 0, 0, true},
    {"gla", LINNET_MIXER_FORWARD, 2, 100, 30, 0, 0, true, .reverse = true},
    {"gla", LINNET_MIXER_BACKWARD, 4, 33, 17, 0, 0, false, .pool = true},
    {"mlstm", LINNET_MIXER_FORWARD, 4, 20, 12, 0, 0, false, .reverse = true, .pool = true},
    {"mlstm", LINNET_MIXER_BACKWARD, 4, 20, 12, 0, 0, false, .reverse = true},
    {"gated_delta_rule", LINNET_MIXER_FORWARD, 2, 48, 40, 0, 0, false, .unit = true, .pool = true},
    {"gated_delta_rule", LINNET_MIXER_BACKWARD, 2, 48, 40, 0, 0, false, .reverse = true, .unit = true},
    {"kda", LINNET_MIXER_FORWARD, 4, 48, 48, 0, 0, false, .reverse = true},
    {"dplr", LINNET_MIXER_FORWARD, 4, 32, 48, 0, 0, true, .reverse = true},
    {"rwkv7", LINNET_MIXER_BACKWARD, 4, 32, 32, 0, 0, false, .reverse = true},
    {"delta_rule", LINNET_MIXER_STEP, 2, 40, 33, 0, 0, false, .reverse = true, .pool = true},
    {"selective_scan", LINNET_MIXER_FORWARD, 2, 1, 20, 12, 0, false, .reverse = true, .exact = true, .pool = true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 2, 1, 20, 12, 0, false, .reverse = true, .pool = true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 2, 1, 24, 64, 0, false},
    {"selective_scan", LINNET_MIXER_FORWARD, 2, 1, 64, 16, 0, false, .tiled = true},
    {"selective_scan", LINNET_MIXER_STEP, 2, 1, 64, 16, 0, false, .tiled = true},
    {"selective_scan", LINNET_MIXER_BACKWARD, 2, 1, 64, 16, 0, true, .tiled = true},
    {"short_convolution", LINNET_MIXER_FORWARD, 4, 1, 20, 3, 1, false, .reverse = true, .exact = true, .pool = true},
    {"short_convolution", LINNET_MIXER_BACKWARD, 4, 1, 20, 5, 0, false, .reverse = true, .pool = true},
    {"short_convolution", LINNET_MIXER_FORWARD, 4, 1, 64, 40, 0, true, .pool = true},
    {"short_convolution", LINNET_MIXER_BACKWARD, 4, 1, 64, 20, 1, true},
    {"short_convolution", LINNET_MIXER_BACKWARD, 4, 1, 20, 64, 0, false, .pool = true},
    {"short_convolution", LINNET_MIXER_STEP, 4, 1, 64, 64, 0, false, .pool = true},

};
enum { MIXER_COUNT = sizeof MIXERS / sizeof MIXERS[0] };
static const char *const FORMS[] = {"forward", "step", "backward"};

enum { POOL = 5 }; /* states of a pool, of which three are used */

typedef struct mixer_case {
    int64_t *slots;                          /* on the device */
    linnet_mixer_settings device, processor; /* of types bf16 and f32 */
    linnet_mixer_tensors there, here;
    pair gradients[LINNET_MIXER_INPUTS], output, state, state_gradient;
    const char *names[LINNET_MIXER_INPUTS];
    int inputs;
    char name[96];
} mixer_case;

static void add_input(mixer_case *c, const linnet_mixer_input *input, const mixer_work *w) {
    const int k = c->inputs++;
    const linnet_mixer_form form = w->form;
    /* Sums of weights that do not cancel. */
    const bool plain = w->divided && strcmp(w->row, "linear_attention") == 0;
    const int64_t count = (input->parameter ? 1 : c->device.tokens) * input->heads * input->columns;
    const bool direction = strcmp(input->name, "key") == 0 || strcmp(input->name, "query") == 0;
    float *x = malloc((size_t)count * sizeof *x + 1);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)(draw(input->range) / (direction ? sqrt((double)input->columns) : 1));
    for (int64_t i = 0; i < count && direction && plain; i++) x[i] = fabsf(x[i]);
    c->names[k] = input->name;
    if (input->type == LINNET_BF16) {
        uint16_t *bits = rounded(x, count);
        c->there.input[k].data = sent(bits, count * 2);
        free(bits);
    } else
        c->there.input[k].data = sent(x, count * 4);
    c->here.input[k].data = x;
    if (form != LINNET_MIXER_BACKWARD) return;
    const bool gate = strcmp(input->name, "decay") == 0 || strcmp(input->name, "step") == 0;
    c->gradients[k] = pair_open(count, c->device.output == LINNET_BF16 && input->type == LINNET_BF16 && !gate);
    c->here.input_gradient[k].data = c->gradients[k].here;
    c->there.input_gradient[k].data = c->gradients[k].there;
}

static void case_open(mixer_case *c, const mixer_work *w, const int64_t *offsets) {
    memset(c, 0, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s %s %lld/%lld/%lld%s%s%s%s%s", w->row, FORMS[w->form], (long long)w->key_size,
             (long long)w->value_size, (long long)w->slots, w->reverse ? " reverse" : "", w->tiled ? " tiled" : "",
             w->divided ? " divided" : "", w->unit ? " unit" : "",
             w->pool    ? " pool"
             : w->empty ? " empty"
                        : "");
    linnet_mixer_settings s = linnet_mixer_settings_default(w->row);
    s.type = LINNET_BF16;
    s.heads = 4;
    s.key_heads = w->key_heads;
    s.key_size = w->key_size;
    s.value_size = w->value_size;
    if (w->slots) s.slots = w->slots;
    s.option[0] = w->option;
    s.output = w->bf16 ? LINNET_BF16 : LINNET_F32;
    s.normalise = s.normalise || w->divided;
    s.normalise_keys = w->unit;
    s.reverse = w->reverse;
    s.tiled_heads = w->tiled;
    s.exact = w->exact;
    s.gates = w->gates ? LINNET_BF16 : LINNET_F32;
    s.sequences = 3;
    s.tokens = w->form == LINNET_MIXER_STEP ? 3 : offsets[3];
    if (w->form != LINNET_MIXER_STEP) s.offsets = offsets;
    c->device = c->processor = s;
    c->processor.type = LINNET_F32;
    c->processor.output = c->processor.gates = LINNET_F32;
    c->here.size = c->there.size = sizeof c->here;
    linnet_mixer_input input;
    for (int k = 0; linnet_mixer_input_of(&s, k, &input); k++) add_input(c, &input, w);
    const int64_t outputs = s.tokens * s.heads * linnet_mixer_output_columns(&s),
                  states = (w->pool ? POOL : s.sequences) * linnet_mixer_state_floats(&s);
    float *state = random_floats(states, 0.3);
    for (int64_t i = 0; i < states && w->divided; i++) state[i] = fabsf(state[i]);
    static const int64_t slots[] = {3, 0, 4};
    if (w->pool) {
        c->here.state_slots = slots;
        c->there.state_slots = c->slots = sent(slots, (int64_t)sizeof slots);
    }
    c->here.state_in = state;
    c->there.state_in = sent(state, states * 4);
    if (w->form == LINNET_MIXER_BACKWARD) {
        float *given = random_floats(outputs, 1), *behind = random_floats(states, 0.3);
        uint16_t *bits = rounded(given, outputs);
        c->here.output_gradient.data = given;
        c->there.output_gradient.data = sent(bits, outputs * 2);
        c->here.state_out_gradient = behind;
        c->there.state_out_gradient = sent(behind, states * 4);
        c->state_gradient = pair_like(state, states);
        c->here.state_in_gradient = c->state_gradient.here;
        c->there.state_in_gradient = c->state_gradient.there;
        free(bits);
    } else {
        c->output = pair_open(outputs, s.output == LINNET_BF16);
        c->state = pair_like(state, states);
        c->here.output.data = c->output.here;
        c->there.output.data = c->output.there;
        c->here.state_out = c->state.here;
        c->there.state_out = c->state.there;
        if (!w->pool) return;
        c->here.state_in = c->state.here; /* in place */
        linnet_cuda_release(cuda, (void *)(uintptr_t)c->there.state_in);
        c->there.state_in = c->state.there;
        free(state);
    }
}

static void case_close(mixer_case *c) {
    for (int k = 0; k < c->inputs; k++) {
        linnet_cuda_release(cuda, c->there.input[k].data);
        free(c->here.input[k].data);
        if (c->gradients[k].here) pair_close(&c->gradients[k]);
    }
    if (c->there.state_in != c->there.state_out) {
        linnet_cuda_release(cuda, (void *)(uintptr_t)c->there.state_in);
        free((void *)(uintptr_t)c->here.state_in);
    }
    linnet_cuda_release(cuda, c->slots);
    linnet_cuda_release(cuda, (void *)(uintptr_t)c->there.state_out_gradient);
    linnet_cuda_release(cuda, c->there.output_gradient.data);
    free((void *)(uintptr_t)c->here.state_out_gradient);
    free(c->here.output_gradient.data);
    pair *const pairs[] = {&c->output, &c->state, &c->state_gradient};
    for (int i = 0; i < 3; i++)
        if (pairs[i]->here) pair_close(pairs[i]);
}

static void check_mixer(const mixer_work *w) {
    static const int64_t some[] = {0, 70, 70, 147}, none[] = {0, 0, 0, 0}, *offsets = some;
    offsets = w->empty ? none : some;
    typedef linnet_status run(linnet_context *, const linnet_mixer_settings *, const linnet_mixer_tensors *, void *);
    run *const runs[] = {linnet_mixer_forward, linnet_mixer_step, linnet_mixer_backward};
    mixer_case c;
    case_open(&c, w, offsets);
    void *workspace = aligned_alloc(64, (size_t)linnet_mixer_workspace(context, &c.processor, w->form));
    must(runs[w->form](context, &c.processor, &c.here, workspace), c.name);
    free(workspace);

    linnet_cuda_mixer *mixer;
    char row[32]; /* is gone when the mixer runs */
    snprintf(row, sizeof row, "%s", w->row);
    c.device.name = row;
    const linnet_status opened = linnet_cuda_mixer_open(cuda, &c.device, w->form, &mixer);
    memset(row, '?', sizeof row - 1);
    EXPECT(opened == LINNET_OK, "%s: %s", c.name, linnet_last_error(context));
    if (opened == LINNET_OK) {
        char text[400];
        EXPECT(linnet_cuda_mixer_text(mixer, text, sizeof text) > 1, "%s: says nothing of its kernel", c.name);
        void *room = poisoned((int64_t)linnet_cuda_mixer_workspace(mixer));
        must(linnet_cuda_mixer_prepare(mixer, room, NULL), c.name);
        must(linnet_cuda_mixer_run(mixer, &c.there, room, NULL), c.name);
        must(linnet_cuda_wait(cuda, NULL), c.name);
        const double tolerance = w->form == LINNET_MIXER_BACKWARD ? 2 * TOLERANCE : TOLERANCE;
        pair_expect(&c.output, tolerance, c.name, "output");
        pair_expect(&c.state, tolerance, c.name, "state");
        pair_expect(&c.state_gradient, tolerance, c.name, "gradient of the state");
        for (int k = 0; k < c.inputs; k++) {
            /* Of a parameter: a sum over all tokens, whose parts cancel. */
            const bool sum = strcmp(c.names[k], "rate") == 0 || strcmp(c.names[k], "slope") == 0;
            pair_expect(&c.gradients[k], sum ? 2 * tolerance : tolerance, c.name, c.names[k]);
        }
        linnet_cuda_release(cuda, room);
        linnet_cuda_mixer_close(mixer);
    }
    case_close(&c);
}

/* Of states with sums of weights behind them, and of decays of keys. */
static void check_window(const char *row, bool divided) {
    linnet_mixer_settings s = linnet_mixer_settings_default(row);
    s.heads = 3, s.key_size = 24, s.value_size = 40, s.tokens = s.sequences = 2, s.normalise = divided;
    const int64_t states = s.sequences * linnet_mixer_state_floats(&s), decays = s.sequences * s.heads * s.key_size;
    float *now = random_floats(states, 1), *before = random_floats(states, 1);
    double *decay = malloc((size_t)decays * sizeof *decay);
    for (int64_t i = 0; i < decays; i++) decay[i] = -uniform();
    pair window = pair_open(states, false);
    void *there[] = {sent(now, states * 4), sent(before, states * 4), sent(decay, decays * 8)};
    must(linnet_mixer_window(context, &s, now, before, decay, window.here), row);
    must(linnet_cuda_mixer_window(cuda, &s, there[0], there[1], there[2], window.there, NULL), row);
    must(linnet_cuda_wait(cuda, NULL), row);
    pair_expect(&window, 1e-6, row, "window");
    EXPECT(linnet_cuda_mixer_window(cuda, &s, NULL, there[1], there[2], window.there, NULL) == LINNET_ERROR_ARGUMENT,
           "%s: a window without a state", row);
    pair_close(&window);
    for (int i = 0; i < 3; i++) linnet_cuda_release(cuda, there[i]);
    free(now);
    free(before);
    free(decay);
}

/* ---- attention ---- */

typedef struct attention_work {
    const char *name;
    int64_t heads, key_value_heads, key_size, value_size, rank, window;
    float soft_cap;
    bool causal, sinks, lists;
} attention_work;

static const attention_work ATTENTIONS[] = {
    {"causal, groups", 4, 2, 64, 64, 0, 0, 0, true, false, false},
    {"window, sinks", 2, 2, 128, 128, 0, 50, 0, true, true, false},
    {"cap", 2, 1, 96, 96, 0, 0, 20, false, false, false},
    {"rank 7", 2, 2, 64, 64, 7, 0, 0, true, false, false},
    {"rank 5, groups", 4, 2, 128, 128, 5, 0, 0, false, false, false},
    {"lists", 2, 2, 64, 64, 0, 0, 0, false, false, true},
    {"lists, rank 3, sinks", 2, 1, 96, 96, 3, 0, 0, true, true, true},
    {"192/128", 2, 2, 192, 128, 0, 0, 0, true, false, false},
};
enum { ATTENTION_COUNT = sizeof ATTENTIONS / sizeof ATTENTIONS[0] };

/* Gradients of the run that was just made; `here` has inputs in float32. */
static void check_gradients(const attention_work *w, const linnet_attention_settings *settings,
                            linnet_attention_tensors here, linnet_attention_tensors there, float *const inputs[3],
                            const int64_t counts[3], linnet_cuda_attention *attention, void *room) {
    linnet_attention_settings s = *settings;
    s.type = LINNET_F32;
    const int64_t outputs = s.query_offsets[s.sequences] * w->heads * w->value_size;
    float *given = random_floats(outputs, 1);
    uint16_t *bits = rounded(given, outputs);
    const int64_t tokens = s.query_offsets[s.sequences],
                  extras[] = {w->heads, tokens * w->heads * w->rank, tokens * w->key_value_heads * w->rank};
    pair gradients[3], extra[3]; /* extra: of sinks and factors */
    for (int i = 0; i < 3; i++) {
        gradients[i] = pair_open(counts[i], false);
        extra[i] = pair_open(extras[i], false);
    }
    here.query.data = inputs[0], here.key.data = inputs[1], here.value.data = inputs[2];
    here.output_gradient.data = given, there.output_gradient.data = sent(bits, outputs * 2);
    here.query_gradient.data = gradients[0].here, there.query_gradient.data = gradients[0].there;
    here.key_gradient.data = gradients[1].here, there.key_gradient.data = gradients[1].there;
    here.value_gradient.data = gradients[2].here, there.value_gradient.data = gradients[2].there;
    here.sinks_gradient = w->sinks ? extra[0].here : NULL, there.sinks_gradient = extra[0].there;
    here.query_factors_gradient = extra[1].here, there.query_factors_gradient = extra[1].there;
    here.key_factors_gradient = extra[2].here, there.key_factors_gradient = extra[2].there;
    linnet_attention_plan *plan;
    must(linnet_attention_plan_open(context, &s, &plan), w->name);
    void *workspace = aligned_alloc(64, (size_t)linnet_attention_workspace(plan) + 64);
    must(linnet_attention_forward(plan, &here, workspace), w->name);
    must(linnet_attention_backward(plan, &here, workspace), w->name);
    must(linnet_cuda_attention_backward(attention, &there, room, NULL), w->name);
    must(linnet_cuda_wait(cuda, NULL), w->name);
    static const char *const names[] = {"gradient of queries", "gradient of keys", "gradient of values"},
                             *const more[] = {"gradient of sinks", "gradient of queries' factors",
                                              "gradient of keys' factors"};
    for (int i = 0; i < 3; i++) {
        pair_expect(&gradients[i], 2 * TOLERANCE, w->name, names[i]);
        if (i || w->sinks) pair_expect(&extra[i], 2 * TOLERANCE, w->name, more[i]);
        pair_close(&gradients[i]);
        pair_close(&extra[i]);
    }
    linnet_cuda_release(cuda, there.output_gradient.data);
    linnet_attention_plan_close(plan);
    free(workspace);
    free(given);
    free(bits);
}

static void check_attention(const attention_work *w) {
    static const int64_t ragged[] = {0, 90, 90, 150}, whole[] = {0, 150}, list_offsets[] = {0, 1, 2};
    static const int32_t listed[] = {0, 1};
    linnet_attention_settings s = linnet_attention_settings_default();
    s.type = LINNET_BF16;
    s.heads = w->heads, s.key_value_heads = w->key_value_heads, s.key_size = w->key_size, s.value_size = w->value_size;
    s.sequences = w->lists ? 1 : 3;
    s.query_offsets = w->lists ? whole : ragged;
    s.causal = w->causal, s.window = w->window, s.soft_cap = w->soft_cap, s.sinks = w->sinks, s.rank = w->rank;
    s.backward = true;
    if (w->lists)
        s.blocks = (linnet_block_mask){.query_tile = 128, .key_tile = 64, .offsets = list_offsets, .tiles = listed};
    enum { TOKENS = 150 };
    const int64_t counts[] = {TOKENS * w->heads * w->key_size, TOKENS * w->key_value_heads * w->key_size,
                              TOKENS * w->key_value_heads * w->value_size};
    float *inputs[3], *extra[3];
    linnet_attention_tensors here = {.size = sizeof here}, there = {.size = sizeof there};
    linnet_tensor *const to[] = {&here.query, &here.key, &here.value}, *const from[] = {&there.query, &there.key,
                                                                                        &there.value};
    uint16_t *bits[3];
    for (int i = 0; i < 3; i++) {
        inputs[i] = random_floats(counts[i], 1);
        bits[i] = rounded(inputs[i], counts[i]);
        to[i]->data = bits[i];
        from[i]->data = sent(bits[i], counts[i] * 2);
    }
    const int64_t extras[] = {w->heads, TOKENS * w->heads * w->rank, TOKENS * w->key_value_heads * w->rank};
    for (int i = 0; i < 3; i++) extra[i] = random_floats(extras[i], 1);
    here.sinks = extra[0], here.query_factors = extra[1], here.key_factors = extra[2];
    there.sinks = sent(extra[0], extras[0] * 4), there.query_factors = sent(extra[1], extras[1] * 4);
    there.key_factors = sent(extra[2], extras[2] * 4);
    pair output = pair_open(TOKENS * w->heads * w->value_size, false), sums = pair_open(TOKENS * w->heads, false);
    here.output.data = output.here, there.output.data = output.there;
    here.log_sum_exp = sums.here, there.log_sum_exp = sums.there;

    linnet_attention_plan *plan;
    must(linnet_attention_plan_open(context, &s, &plan), w->name);
    void *workspace = aligned_alloc(64, (size_t)linnet_attention_workspace(plan) + 64);
    must(linnet_attention_forward(plan, &here, workspace), w->name);
    linnet_attention_plan_close(plan);
    free(workspace);
    linnet_cuda_attention *attention;
    must(linnet_cuda_attention_open(cuda, &s, &attention), w->name);
    void *room = poisoned((int64_t)linnet_cuda_attention_workspace(attention));
    must(linnet_cuda_attention_prepare(attention, room, NULL), w->name);
    must(linnet_cuda_attention_forward(attention, &there, room, NULL), w->name);
    must(linnet_cuda_wait(cuda, NULL), w->name);
    pair_expect(&output, TOLERANCE, w->name, "output");
    pair_expect(&sums, 1e-3, w->name, "log_sum_exp");
    check_gradients(w, &s, here, there, inputs, counts, attention, room);
    linnet_cuda_attention_close(attention);
    linnet_cuda_release(cuda, room);
    pair_close(&output);
    pair_close(&sums);
    for (int i = 0; i < 3; i++) {
        linnet_cuda_release(cuda, from[i]->data);
        free(inputs[i]);
        free(bits[i]);
        free(extra[i]);
    }
    linnet_cuda_release(cuda, (void *)(uintptr_t)there.sinks);
    linnet_cuda_release(cuda, (void *)(uintptr_t)there.query_factors);
    linnet_cuda_release(cuda, (void *)(uintptr_t)there.key_factors);
}

static void check_refused_attention(void) {
    static const int64_t offsets[] = {0, 10};
    linnet_attention_settings s = linnet_attention_settings_default();
    s.heads = 2, s.key_size = 64, s.query_offsets = offsets;
    linnet_cuda_attention *attention;
    EXPECT(linnet_cuda_attention_open(cuda, &s, &attention) == LINNET_ERROR_ARGUMENT &&
               strstr(linnet_last_error(context), "bf16"),
           "f32: %s", linnet_last_error(context));
    s.type = LINNET_BF16, s.prefix = 3;
    EXPECT(linnet_cuda_attention_open(cuda, &s, &attention) == LINNET_ERROR_UNSUPPORTED &&
               strstr(linnet_last_error(context), "prefix"),
           "prefix: %s", linnet_last_error(context));
    s.prefix = 0, s.key_size = 40;
    EXPECT(linnet_cuda_attention_open(cuda, &s, &attention) == LINNET_ERROR_UNSUPPORTED &&
               strstr(linnet_last_error(context), "40"),
           "size 40: %s", linnet_last_error(context));
    s.key_size = 64, s.rank = 70, s.backward = true;
    EXPECT(linnet_cuda_attention_open(cuda, &s, &attention) == LINNET_ERROR_UNSUPPORTED && !attention,
           "a rank of 70: %s", linnet_last_error(context));
    s.rank = 4;
    must(linnet_cuda_attention_open(cuda, &s, &attention), "gradients with a rank");
    void *room = poisoned((int64_t)linnet_cuda_attention_workspace(attention));
    linnet_attention_tensors t = {.size = sizeof t, .log_sum_exp = room}; /* nothing of it is read */
    t.output.data = t.output_gradient.data = t.query_gradient.data = t.key_gradient.data = t.value_gradient.data = room;
    t.query.data = t.key.data = t.value.data = room;
    EXPECT(linnet_cuda_attention_backward(attention, &t, room, NULL) == LINNET_ERROR_ARGUMENT &&
               strstr(linnet_last_error(context), "factors"),
           "gradients without factors: %s", linnet_last_error(context));
    linnet_status (*const runs[])(const linnet_cuda_attention *, const linnet_attention_tensors *, void *,
                                  void *) = {linnet_cuda_attention_forward, linnet_cuda_attention_backward};
    t.query_factors = t.key_factors = room;
    for (int i = 0; i < 4; i++) {
        void *wrong = i % 2 ? (char *)room + 16 : NULL;
        EXPECT(runs[i / 2](attention, &t, wrong, NULL) == LINNET_ERROR_ARGUMENT &&
                   strstr(linnet_last_error(context), "not aligned to 256"),
               "attention in another workspace: %s", linnet_last_error(context));
        EXPECT(linnet_cuda_attention_prepare(attention, wrong, NULL) == LINNET_ERROR_ARGUMENT &&
                   strstr(linnet_last_error(context), "not aligned to 256"),
               "preparing another workspace: %s", linnet_last_error(context));
    }
    linnet_cuda_release(cuda, room);
    linnet_cuda_attention_close(attention);
    linnet_cuda *none;
    EXPECT(linnet_cuda_open(context, 99, &none) == LINNET_ERROR_UNSUPPORTED && !none, "device 99: %s",
           linnet_last_error(context));
}

/* With a word: the mixers alone whose row begins with it. */
int main(int count, char **words) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1; /* the emulator's threads leave little of a small stack */
    must(linnet_context_open(&settings, &context), "context");
    if (linnet_cuda_open(context, 0, &cuda) != LINNET_OK) {
        printf("%d GPU cases skipped for want of a GPU: %s\n", MIXER_COUNT + ATTENTION_COUNT + decode_works,
               linnet_last_error(context));
        linnet_context_close(context);
        return 0;
    }
    linnet_cuda_info info = {.size = sizeof info};
    must(linnet_cuda_describe(cuda, &info), "describe");
    printf("%s, compute capability %d.%d\n", info.name, info.major, info.minor);
    linnet_peaks peaks = {.size = sizeof peaks};
    must(linnet_cuda_measure_peaks(cuda, &peaks), "peaks");
    printf("copy %.2f TB/s, products %.0f TFLOP/s, %.0f MHz, %.0f W\n", 1e-12 * peaks.read_bytes,
           1e-12 * peaks.bf16_operations, info.clock, info.power);
    const char *row = count > 1 ? words[1] : "";
    for (int i = 0; i < ATTENTION_COUNT && !*row; i++) check_attention(&ATTENTIONS[i]);
    if (!*row) check_refused_attention();
    if (!*row) check_decode();
    for (int i = 0; i < MIXER_COUNT; i++)
        if (strncmp(MIXERS[i].row, row, strlen(row)) == 0) check_mixer(&MIXERS[i]);
    check_window("gla", false);
    check_window("linear_attention", true);
    check_refused_mixers();
    linnet_cuda_close(cuda);
    linnet_context_close(context);
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures ? 1 : 0;
}
