/* Diagonal plus low rank on a GPU against its recurrence in float64. */
#include "kernel/cuda/dplr_cuda.h"
#include "recurrent.h"

/* Decays: as RWKV-7 has them, e^-0.6065 and more; close to 1; any, none at all among them. */
enum { MILD, SLOW, ANY };

typedef struct work {
    const char *name;
    int heads, key_heads, size;
    int lengths[BATCH_MOST];
    int layout, state, decays, segment; /* segment: chunks at once; 0: chosen */
    bool float32, strange, left_out;    /* strange: a first value that is no number */
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
    {"left out", 1, 1, 64, {33, 20, 5, -1}, .state = IN_PLACE, .float32 = true, .left_out = true},
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
    tensor gradient[INPUTS], output_gradient, state_out_gradient, state_in_gradient;
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
    if (w->left_out) slots_leave_out(&p->slots);
    const int64_t pool = w->state == IN_PLACE ? p->slots.count : p->batch.sequences;
    for (int i = QUERY; i <= B; i++)
        p->input[i] =
            make(tokens, i == VALUE ? w->heads : w->key_heads, size, w->layout, ELEMENT_BF16, i == KEY ? 0.3f : 1);
    p->input[DECAY] = make(tokens, w->heads, size, w->layout, ELEMENT_FLOAT32, 1);
    p->output = make(tokens, w->heads, size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->state_in = make(pool, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 1);
    p->state_out = make(pool, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 1);
    for (int i = QUERY; i < INPUTS; i++)
        p->gradient[i] = make(tokens, w->heads, size, w->layout, i == DECAY ? ELEMENT_FLOAT32 : ELEMENT_BF16, 1);
    p->output_gradient = make(tokens, w->heads, size, w->layout, ELEMENT_BF16, 1);
    p->state_out_gradient = make(p->batch.sequences, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 0.3f);
    p->state_in_gradient = make(p->batch.sequences, w->heads, size * size, PACKED, ELEMENT_FLOAT32, 1);
    if (!p->state_in.host) return;
    directions_make(p);
    decays_make(p);
    if (w->strange) {
        tensor_set(&p->input[VALUE], p->batch.offsets[1], 0, 5, NAN);
        tensor_send(&p->input[VALUE]);
    }
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
    device_close(p->workspace);
}

static ln_cuda_dplr_tensors tensors_of(const problem *p) {
    const work *w = p->of;
    return (ln_cuda_dplr_tensors){.query = p->input[QUERY].device,
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
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_dplr_tensors tensors = tensors_of(p);
    return ln_cuda_dplr_forward(&p->dplr, &p->plan, &tensors, p->workspace, stream);
}
static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_dplr_tensors tensors = tensors_of(p);
    const bool state = p->of->state != NO_STATE;
    const ln_cuda_dplr_gradients gradients = {.output = p->output_gradient.device,
                                              .query = p->gradient[QUERY].device,
                                              .key = p->gradient[KEY].device,
                                              .value = p->gradient[VALUE].device,
                                              .a = p->gradient[A].device,
                                              .b = p->gradient[B].device,
                                              .decay = p->gradient[DECAY].device,
                                              .state_out = state ? p->state_out_gradient.device.data : NULL,
                                              .state_in = p->state_in_gradient.device.data};
    return ln_cuda_dplr_backward(&p->dplr, &p->plan, &tensors, &gradients, p->workspace, stream);
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

/* One head of one sequence, from its last token on: states before each token are kept. `d` is the gradient of the
 * state, and what it becomes. */
typedef struct oracle_gradients {
    double *of[INPUTS];
} oracle_gradients;

static void oracle_token_back(const problem *p, int64_t t, int head, const double *before, const double *after,
                              double *d, const oracle_gradients *g) {
    const int size = p->of->size;
    double *y = doubles(2 * size), *dy = y + size;
    const int64_t place = dense_place(&p->input[QUERY], t, head);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            y[j] += tensor_at(&p->input[A], t, head, i) * before[i * size + j];
            d[i * size + j] += (double)p->dplr.scale * tensor_at(&p->input[QUERY], t, head, i) *
                               tensor_at(&p->output_gradient, t, head, j);
            dy[j] += tensor_at(&p->input[B], t, head, i) * d[i * size + j];
        }
    for (int i = 0; i < size; i++) {
        const double decay = exp(tensor_at(&p->input[DECAY], t, head, i)), a = tensor_at(&p->input[A], t, head, i);
        for (int j = 0; j < size; j++) {
            double *at = &d[i * size + j];
            const double s = before[i * size + j];
            g->of[QUERY][place + i] +=
                (double)p->dplr.scale * after[i * size + j] * tensor_at(&p->output_gradient, t, head, j);
            g->of[KEY][place + i] += *at * tensor_at(&p->input[VALUE], t, head, j);
            g->of[VALUE][place + j] += *at * tensor_at(&p->input[KEY], t, head, i);
            g->of[B][place + i] += *at * y[j];
            g->of[A][place + i] += s * dy[j];
            g->of[DECAY][place + i] += decay * s * *at;
            *at = decay * *at + a * dy[j];
        }
    }
    free(y);
}

static void oracle_back(const problem *p, const oracle_gradients *g, double *state) {
    const work *w = p->of;
    const int64_t size = (int64_t)w->size * w->size;
    double *output = doubles(w->size);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++) {
            const int64_t slot = w->state == IN_PLACE ? p->slots.host[s] : s, length = batch_length(&p->batch, s);
            double *states = doubles((length + 1) * size), *d = state + dense_place(&p->state_in_gradient, s, head);
            for (int64_t i = 0; i < size && w->state != NO_STATE; i++) {
                states[i] = tensor_at(&p->state_in, slot, head, i);
                d[i] = tensor_at(&p->state_out_gradient, s, head, i);
            }
            for (int64_t t = 0; t < length; t++) {
                memcpy(states + (t + 1) * size, states + t * size, (size_t)size * sizeof *states);
                oracle_token(p, p->batch.offsets[s] + t, head, states + (t + 1) * size, output);
            }
            for (int64_t t = length - 1; t >= 0; t--)
                oracle_token_back(p, p->batch.offsets[s] + t, head, states + t * size, states + (t + 1) * size, d, g);
            free(states);
        }
    free(output);
}

static void oracle(const problem *p, double *output, double *state) {
    const work *w = p->of;
    tensor_doubles(&p->state_in, state);
    if (w->left_out) expect_nothing(&p->output, &p->batch, output);
    for (int s = 0; s < p->batch.sequences; s++)
        for (int head = 0; head < w->heads; head++) {
            const int64_t slot = w->state == IN_PLACE ? p->slots.host[s] : s;
            if (slot < 0) continue;
            double *own = state + dense_place(&p->state_out, slot, head);
            if (w->state == NO_STATE) memset(own, 0, (size_t)(w->size * w->size) * sizeof *own);
            for (int64_t t = p->batch.offsets[s]; t < p->batch.offsets[s + 1]; t++)
                oracle_token(p, t, head, own, output + dense_place(&p->output, t, head));
        }
}

/* ---- checks ---- */

static bool problem_prepare(problem *p, const ln_cuda_device *device, const ln_cuda_dplr_kernel *kernel,
                            int64_t records) {
    ln_cuda_code code = ln_cuda_dplr_plan_make(&p->dplr, device, kernel, 0, &p->plan);
    if (code == LN_CUDA_UNSUPPORTED && kernel) return false;
    if (p->of->segment && !code)
        records =
            p->of->segment * p->dplr.sequences * p->dplr.heads * 2 * (p->plan.kernel->record + p->plan.kernel->saved);
    if (!code && records) code = ln_cuda_dplr_plan_make(&p->dplr, device, kernel, records, &p->plan);
    EXPECT(code == LN_CUDA_OK, "%s: plan gave %d: %s", p->of->name, code, p->plan.why);
    if (code) return false;
    p->workspace =
        device_open(p->plan.workspace > p->plan.gradient_workspace ? p->plan.workspace : p->plan.gradient_workspace);
    code = ln_cuda_dplr_prepare(&p->dplr, &p->plan, p->workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static recurrent recurrent_of(problem *p, check_run *run, const char *kernel) {
    return (recurrent){p->of->name,  kernel,         run, p, &p->output, &p->state_in, &p->state_out,
                       p->of->state, p->of->left_out};
}

static void check_work(problem *p) {
    double *output = doubles(p->output.tokens * p->output.heads * p->output.size),
           *state = doubles(p->state_in.elements);
    oracle(p, output, state);
    const recurrent r = recurrent_of(p, forward, p->plan.kernel->name);
    recurrent_forward(&r, output, state, 6e-3, 5e-3);
    free(output);
    free(state);
}

static void check_backward(problem *p) {
    static const char *const WHAT[INPUTS + 1] = {"query", "key", "value", "a", "b", "decay", "state"};
    recurrent_gradient made[INPUTS + 1];
    oracle_gradients g;
    for (int i = 0; i <= INPUTS; i++) {
        tensor *of = i < INPUTS ? &p->gradient[i] : &p->state_in_gradient;
        made[i] = (recurrent_gradient){WHAT[i], of, doubles(of->tokens * of->heads * of->size), 1e-2};
        if (i < INPUTS) g.of[i] = made[i].want;
    }
    made[DECAY].most = 2e-2;
    oracle_back(p, &g, made[INPUTS].want);
    const recurrent r = recurrent_of(p, backward, "backward");
    recurrent_backward(&r, made, INPUTS + 1);
    for (int i = 0; i <= INPUTS; i++) free(made[i].want);
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
        for (int row = 0; ln_cuda_dplr_kernels(row)->states; row++) {
            const ln_cuda_dplr_kernel *kernel = ln_cuda_dplr_kernels(row);
            if (!kernel_wanted(options, kernel->name) || !problem_prepare(&p, device, kernel, 0)) continue;
            const bool back = WORKS[i].heads == WORKS[i].key_heads && !WORKS[i].strange && !WORKS[i].left_out &&
                              products_of(&WORKS[i]) < 1e9;
            check_work(&p);
            if (back) check_backward(&p);
            device_close(p.workspace);
        }
        p.workspace = NULL;
        problem_close(&p);
        fflush(stdout);
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, old = {0, 7, 5, 40, 65536, 4 << 20};
    const int64_t offsets[2] = {0, 32768}, wrong[2] = {1, 2};
    ln_cuda_dplr dplr = {64, 64, 64, 64, 1, offsets, 1, false};
    ln_cuda_dplr_plan plan;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, NULL, 0, &plan) == LN_CUDA_OK && plan.segment > 1 &&
               plan.workspace < INT64_C(600) << 20,
           "%s", plan.why);
    ln_cuda_dplr_tensors tensors = {0};
    EXPECT(ln_cuda_dplr_forward(&dplr, &plan, &tensors, NULL, NULL) == LN_CUDA_ARGUMENT, "without tensors");
    ln_cuda_dplr_gradients gradients = {0};
    EXPECT(ln_cuda_dplr_backward(&dplr, &plan, &tensors, &gradients, NULL, NULL) == LN_CUDA_ARGUMENT, "nothing given");
    EXPECT(ln_cuda_dplr_prepare(&dplr, &plan, NULL, NULL) == LN_CUDA_ARGUMENT, "no workspace");
    dplr.key_heads = 32;
    EXPECT(ln_cuda_dplr_backward(&dplr, &plan, &tensors, &gradients, NULL, NULL) == LN_CUDA_UNSUPPORTED, "groups");
    dplr.key_heads = 64;
    const ln_cuda_device narrow = {0, 8, 6, 84, 32768, 6 << 20};
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &narrow, NULL, 0, &plan) == LN_CUDA_UNSUPPORTED && strstr(plan.why, "shared"),
           "%s", plan.why);
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, NULL, 0, &plan) == LN_CUDA_OK, "%s", plan.why);
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &old, NULL, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s", plan.why);
    dplr.key_size = 96;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, NULL, 0, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "%s",
           plan.why);
    EXPECT(ln_cuda_dplr_forward(&dplr, &plan, &tensors, NULL, NULL) == LN_CUDA_UNSUPPORTED, "without a plan");
    dplr.key_size = 64, dplr.offsets = wrong;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, NULL, 0, &plan) == LN_CUDA_ARGUMENT, "%s", plan.why);
    dplr.offsets = offsets, dplr.key_heads = 7;
    EXPECT(ln_cuda_dplr_plan_make(&dplr, &hopper, NULL, 0, &plan) == LN_CUDA_ARGUMENT, "%s", plan.why);
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
    static const int64_t ROOM[] = {0, 64 << 20, 512 << 20, INT64_C(8) << 30};
    for (size_t i = 0; i < sizeof BENCH / sizeof BENCH[0]; i++) {
        const work *w = &BENCH[i];
        if (!strstr(w->name, options->works)) continue;
        problem p;
        problem_open(&p, w, tensor_large);
        decays_large(&p);
        const double bytes = (double)p.output.elements * 2 * (p.of->key_heads * 4 / p.of->heads + 2 + 2);
        for (size_t room = 0; room < 8; room++) {
            const ln_cuda_dplr_kernel *kernel = ln_cuda_dplr_kernels((int)room / 4 + (w->size == 128 ? 2 : 0));
            if (!problem_prepare(&p, device, kernel, ROOM[room % 4])) continue;
            void *contexts[] = {&p};
            timing time;
            time_in_turns(forward, contexts, 1, options->rounds, &time);
            printf("dplr %-26s %-22s %5lld chunks at once %8.3f ms, %6.3f TB/s of inputs and outputs\n", w->name,
                   p.plan.kernel->name, (long long)p.plan.segment, time.median, 1e-9 * bytes / time.median);
            if (ROOM[room % 4] == 64 << 20) {
                device_close(p.workspace);
                continue;
            }
            time_in_turns(backward, contexts, 1, options->rounds, &time);
            printf("dplr %-26s %-22s %5lld chunks at once %8.3f ms backward\n", w->name, p.plan.kernel->name,
                   (long long)p.plan.gradient_segment, time.median);
            device_close(p.workspace);
        }
        p.workspace = NULL;
        problem_close(&p);
        fflush(stdout);
    }
}

const suite cuda_suite_dplr = {"dplr", WORK_COUNT, check_plans, check, bench};
