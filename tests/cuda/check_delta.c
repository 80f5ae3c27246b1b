/* The delta rule, gated delta rule and KDA against their recurrence in float64, token after token. */
#include "check.h"

#include "kernel/cuda/delta_cuda.h"

enum { SEQUENCES = 9 };

typedef enum gates {
    MILD,  /* 0 .. -0.1 */
    NEAR,  /* 0 .. -1e-4: almost all is kept */
    STEEP, /* of all kinds: 0, -inf, -88, about -2 */
    BRISK  /* 0 .. -9: a quotient of decays of 16 tokens is at times too large */
} gates;

typedef struct work {
    const char *name;
    int heads, key_heads, key_size, value_size;
    int tokens[SEQUENCES]; /* ended by -1, or SEQUENCES */
    ln_cuda_delta_decay decay;
    gates gates;
    double strength; /* beta is up to it; 0: 1 */
    bool normalise, tiled, float32, stateless, pool;
    bool infinite; /* keys and values of odd sequences are infinite or no numbers */
    int layout;
    int segment; /* chunks; 0: chosen */
    int sampled; /* heads compared with float64; 0: all */
} work;

/* Products take operands in bf16. Decays of keys round keys and queries once more; without decay nothing is forgotten.
 */
static const double BOUND = 5e-3, BOUND_BY_KEY = 6.5e-3, BOUND_LASTING = 8e-3;

static const work WORKS[] = {
    {"delta one token", 2, 1, 128, 128, {1, -1}, LN_CUDA_DECAY_HEAD, .gates = MILD},
    {"delta one chunk", 2, 1, 128, 128, {64, -1}, LN_CUDA_DECAY_HEAD, .gates = MILD},
    {"delta 130 gated", 1, 1, 128, 128, {130, -1}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"delta 130 no decay, strength 2", 1, 1, 128, 128, {130, -1}, .strength = 2, .normalise = true, .float32 = true},
    {"delta 100 steep", 2, 1, 128, 128, {100, -1}, LN_CUDA_DECAY_HEAD, STEEP, .layout = PADDED},
    {"delta ragged", 1, 1, 128, 128, {40, 0, 1, 65, -1}, LN_CUDA_DECAY_HEAD, .pool = true},
    {"delta infinite neighbours", 1, 1, 128, 128, {30, 20, 10, 1, 5, -1}, LN_CUDA_DECAY_HEAD, .infinite = true},
    {"delta tiled heads", 4, 2, 64, 64, {150, -1}, LN_CUDA_DECAY_HEAD, NEAR, .tiled = true, .normalise = true},
    {"delta d64 five heads a key", 5, 1, 64, 64, {90, -1}, LN_CUDA_DECAY_HEAD, .layout = HEAD_MAJOR},
    {"delta d64 ragged, float32",
     2,
     1,
     64,
     128,
     {63, 0, 65, -1},
     LN_CUDA_DECAY_HEAD,
     .float32 = true,
     .layout = PADDED},
    {"delta d128/256", 1, 1, 128, 256, {70, -1}, LN_CUDA_DECAY_HEAD, .stateless = true},
    {"delta d128/256 ragged", 1, 1, 128, 256, {0, 65, 1, -1}, LN_CUDA_DECAY_HEAD, .pool = true, .float32 = true},
    {"kda d128/256 ragged", 1, 1, 128, 256, {66, 0, 2, -1}, LN_CUDA_DECAY_KEY, .pool = true, .layout = PADDED},
    {"kda d128/64", 2, 1, 128, 64, {70, -1}, LN_CUDA_DECAY_KEY, .normalise = true},
    {"delta d128/64", 2, 1, 128, 64, {70, -1}, .strength = 2, .normalise = true},
    {"delta no tokens", 2, 1, 128, 128, {0, 0, -1}, LN_CUDA_DECAY_HEAD, .gates = MILD},
    {"delta segments of one chunk", 1, 1, 128, 128, {250, -1}, LN_CUDA_DECAY_HEAD, .segment = 1, .normalise = true},
    {"delta segments, ragged",
     1,
     1,
     128,
     128,
     {129, 0, 64, 3, -1},
     LN_CUDA_DECAY_HEAD,
     NEAR,
     .segment = 1,
     .pool = true},
    {"kda segments", 1, 1, 128, 128, {200, -1}, LN_CUDA_DECAY_KEY, .segment = 2, .normalise = true, .float32 = true},
    {"kda one token", 2, 2, 128, 128, {1, -1}, LN_CUDA_DECAY_KEY, .gates = MILD},
    {"kda 130", 1, 1, 128, 128, {130, -1}, LN_CUDA_DECAY_KEY, .normalise = true},
    {"kda 100 steep", 2, 1, 128, 128, {100, -1}, LN_CUDA_DECAY_KEY, STEEP, .normalise = true, .layout = PADDED},
    {"kda 100 brisk", 2, 2, 128, 128, {100, -1}, LN_CUDA_DECAY_KEY, BRISK, .strength = 2, .normalise = true},
    {"kda ragged", 1, 1, 128, 128, {40, 0, 1, 65, -1}, LN_CUDA_DECAY_KEY, .pool = true, .float32 = true},
    {"kda infinite neighbours", 2, 1, 64, 64, {30, 20, 10, 1, 5, -1}, LN_CUDA_DECAY_KEY, .infinite = true},
    {"kda d64/128 near 1", 4, 2, 64, 128, {140, -1}, LN_CUDA_DECAY_KEY, NEAR, .normalise = true, .tiled = true},
    {"delta 1000 gated", 8, 2, 128, 128, {1000, 333, -1}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"delta 4096 near 1", 8, 2, 128, 128, {4096, -1}, LN_CUDA_DECAY_HEAD, NEAR, .normalise = true, .sampled = 2},
    {"delta 32768 near 1", 64, 16, 128, 128, {32768, -1}, LN_CUDA_DECAY_HEAD, NEAR, .normalise = true, .sampled = 1},
    {"delta 32768 no decay", 4, 2, 128, 128, {32768, -1}, .strength = 2, .normalise = true, .sampled = 1},
    {"delta 8 x 4096",
     64,
     16,
     128,
     128,
     {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4000, -1},
     LN_CUDA_DECAY_HEAD,
     .normalise = true,
     .sampled = 1},
    {"kda 1000", 4, 4, 128, 128, {1000, 333, -1}, LN_CUDA_DECAY_KEY, .normalise = true},
    {"kda 8192", 64, 64, 128, 128, {8192, -1}, LN_CUDA_DECAY_KEY, NEAR, .normalise = true, .sampled = 1},
    {"delta 32768 written little", 4, 2, 128, 128, {32768, -1}, .strength = 0.02, .normalise = true, .sampled = 1},
    {"kda 32768 near 1", 4, 4, 128, 128, {32768, -1}, LN_CUDA_DECAY_KEY, NEAR, .normalise = true, .sampled = 1},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0], KERNELS_MOST = 32 };

static const work BENCH[] = {
    {"delta 64/16 heads, 1 x 32768", 64, 16, 128, 128, {32768, -1}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"delta 64/16 heads, 8 x 4096",
     64,
     16,
     128,
     128,
     {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, -1},
     LN_CUDA_DECAY_HEAD,
     .normalise = true},
    {"delta 32/8 heads, 1 x 32768", 32, 8, 128, 128, {32768, -1}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"delta 8/2 heads, 1 x 32768", 8, 2, 128, 128, {32768, -1}, LN_CUDA_DECAY_HEAD, .normalise = true},
    {"kda 64 heads, 1 x 8192", 64, 64, 128, 128, {8192, -1}, LN_CUDA_DECAY_KEY, .normalise = true},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0] };

/* ---- a case ---- */

typedef struct problem {
    const work *of;
    int sequences;
    int64_t offsets[SEQUENCES + 1], slots[SEQUENCES], slot_count, state_floats;
    ln_cuda_delta delta;
    tensor query, key, value, output;
    tensor beta, decay;          /* float32 */
    float *state_in, *state_out; /* on the host */
    float *device_in, *device_out;
    int64_t *device_slots;
    ln_cuda_delta_tensors tensors;
    int compared;         /* heads */
    int64_t which[8];     /* they are */
    double *want, *ended; /* of float64: outputs [compared][token][value], states [compared][sequence][key][value] */
    const ln_cuda_delta_plan *plan;
    void *workspace;
} problem;

static double gate_of(gates kind) {
    const double x = random_uniform();
    switch (kind) {
    case MILD:
        return -0.1 * x;
    case NEAR:
        return -1e-4 * x;
    case BRISK:
        return -9 * x;
    default:
        return x < 0.2 ? 0 : x < 0.25 ? -INFINITY : x < 0.35 ? -88 : -4 * random_uniform();
    }
}

/* As tensor_random, but a large one repeats its first elements: a prime number of them. */
static tensor numbers(int64_t tokens, int64_t heads, int64_t size, int layout, float deviation) {
    enum { REPEATED = 4194301, LARGE = 1 << 24 };
    if (tokens * heads * size < LARGE) return tensor_random(tokens, heads, size, layout, ELEMENT_BF16, deviation);
    tensor t = tensor_open(tokens, heads, size, layout, ELEMENT_BF16);
    uint16_t *to = t.host;
    for (int64_t i = 0; i < REPEATED; i++) to[i] = bf16_of(random_normal() * deviation);
    for (int64_t i = REPEATED; i < t.elements; i += REPEATED)
        memcpy(to + i, to, (size_t)(t.elements - i < REPEATED ? t.elements - i : REPEATED) * 2);
    tensor_send(&t);
    return t;
}

static void fill_gates(problem *p) {
    const work *w = p->of;
    const int64_t tokens = p->offsets[p->sequences];
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < w->heads; h++) {
            tensor_set(&p->beta, t, 0, h, random_uniform() * (w->strength > 0 ? w->strength : 1));
            for (int64_t c = 0; c < p->decay.size / w->heads; c++)
                tensor_set(&p->decay, t, 0, h * (p->decay.size / w->heads) + c, gate_of(w->gates));
        }
    tensor_send(&p->beta);
    tensor_send(&p->decay);
}

static void spoil(problem *p) {
    const float what[3] = {INFINITY, -INFINITY, NAN};
    for (int s = 1; s < p->sequences; s += 2)
        for (int64_t t = p->offsets[s]; t < p->offsets[s + 1]; t++) {
            for (int64_t h = 0; h < p->of->heads; h++) tensor_set(&p->value, t, h, t % p->of->value_size, what[t % 3]);
            for (int64_t h = 0; h < p->of->key_heads; h++) tensor_set(&p->key, t, h, t % p->of->key_size, what[t % 3]);
        }
    tensor_send(&p->key);
    tensor_send(&p->value);
}

static void states_open(problem *p) {
    p->state_floats = (int64_t)p->of->heads * p->of->key_size * p->of->value_size;
    p->slot_count = p->sequences + (p->of->pool ? 2 : 0);
    const size_t bytes = (size_t)(p->slot_count * p->state_floats) * 4;
    p->state_in = malloc(bytes);
    p->state_out = malloc(bytes);
    for (int64_t i = 0; i < p->slot_count * p->state_floats; i++) p->state_in[i] = 0.3f * random_normal();
    for (int s = 0; s < p->sequences; s++) p->slots[s] = p->of->pool ? p->slot_count - 1 - s : s;
    p->device_in = device_open((int64_t)bytes);
    p->device_out = device_open((int64_t)bytes);
    p->device_slots = device_open((int64_t)sizeof p->slots);
    device_send(p->device_in, p->state_in, (int64_t)bytes);
    device_send(p->device_slots, p->slots, (int64_t)sizeof p->slots);
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    while (p->sequences < SEQUENCES && w->tokens[p->sequences] >= 0) {
        p->offsets[p->sequences + 1] = p->offsets[p->sequences] + w->tokens[p->sequences];
        p->sequences++;
    }
    p->delta = (ln_cuda_delta){.heads = w->heads,
                               .key_heads = w->key_heads,
                               .tiled_heads = w->tiled,
                               .key_size = w->key_size,
                               .value_size = w->value_size,
                               .sequences = p->sequences,
                               .offsets = p->offsets,
                               .scale = 1 / sqrtf((float)w->key_size),
                               .decay = w->decay,
                               .normalise_keys = w->normalise,
                               .output_float32 = w->float32,
                               .segment = w->segment};
    const int64_t tokens = p->offsets[p->sequences];
    const float length = w->normalise ? 2 : 1 / sqrtf((float)w->key_size);
    p->query = numbers(tokens, w->key_heads, w->key_size, w->layout, 1);
    p->key = numbers(tokens, w->key_heads, w->key_size, w->layout, length);
    p->value = numbers(tokens, w->heads, w->value_size, w->layout, 1);
    p->output = tensor_open(tokens, w->heads, w->value_size, w->layout, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16);
    p->beta = tensor_open(tokens, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    p->decay =
        tensor_open(tokens, 1, w->heads * (w->decay == LN_CUDA_DECAY_KEY ? w->key_size : 1), PACKED, ELEMENT_FLOAT32);
    fill_gates(p);
    if (w->infinite) spoil(p);
    states_open(p);
    p->tensors = (ln_cuda_delta_tensors){.query = p->query.device,
                                         .key = p->key.device,
                                         .value = p->value.device,
                                         .beta = p->beta.device.data,
                                         .decay = w->decay == LN_CUDA_DECAY_NONE ? NULL : p->decay.device.data,
                                         .output = p->output.device,
                                         .state_in = w->stateless ? NULL : p->device_in,
                                         .state_out = w->stateless ? NULL : p->device_out,
                                         .state_slots = w->pool ? p->device_slots : NULL};
}

static void problem_close(problem *p) {
    tensor *const all[] = {&p->query, &p->key, &p->value, &p->output, &p->beta, &p->decay};
    for (int i = 0; i < 6; i++) tensor_close(all[i]);
    free(p->want);
    free(p->ended);
    free(p->state_in);
    free(p->state_out);
    device_close(p->device_in);
    device_close(p->device_out);
    device_close(p->device_slots);
}

static ln_cuda_code forward(void *context, void *stream) {
    const problem *p = context;
    return ln_cuda_delta_forward(&p->delta, p->plan, &p->tensors, p->workspace, stream);
}

/* ---- float64 ---- */

static void read_row(const tensor *t, int64_t token, int64_t head, bool normalise, double *row) {
    double sum = 0;
    for (int64_t c = 0; c < t->size; c++) row[c] = tensor_at(t, token, head, c), sum += row[c] * row[c];
    if (normalise)
        for (int64_t c = 0; c < t->size; c++) row[c] /= sqrt(sum + 1e-6);
}

/* One token: state [key][value] and its output. */
static void oracle_token(const problem *p, int64_t token, int64_t head, double *state, double *output) {
    const work *w = p->of;
    const int64_t keys = w->key_size, values = w->value_size;
    const int64_t key_head = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    double query[256], key[256], value[256];
    read_row(&p->query, token, key_head, w->normalise, query);
    read_row(&p->key, token, key_head, w->normalise, key);
    read_row(&p->value, token, head, false, value);
    const double beta = tensor_at(&p->beta, token, 0, head);
    for (int64_t c = 0; c < keys; c++) {
        const double gate = w->decay == LN_CUDA_DECAY_NONE   ? 0
                            : w->decay == LN_CUDA_DECAY_HEAD ? tensor_at(&p->decay, token, 0, head)
                                                             : tensor_at(&p->decay, token, 0, head * keys + c);
        const double decay = exp(gate);
        for (int64_t v = 0; v < values; v++) {
            state[c * values + v] *= decay;
            value[v] -= key[c] * state[c * values + v];
        }
    }
    for (int64_t v = 0; v < values; v++) output[v] = 0;
    for (int64_t c = 0; c < keys; c++)
        for (int64_t v = 0; v < values; v++) {
            state[c * values + v] += key[c] * beta * value[v];
            output[v] += query[c] * (double)p->delta.scale * state[c * values + v];
        }
}

/* Outputs of tokens first .. end - 1 and the state after them; in state: that before. */
static void oracle(const problem *p, int64_t first, int64_t end, int64_t head, double *state, double *output) {
    for (int64_t t = first; t < end; t++) oracle_token(p, t, head, state, output + (t - first) * p->of->value_size);
}

/* ---- checks ---- */

typedef struct errors {
    double output, state;
} errors;

static void take_state(const problem *p, const float *states, int sequence, int64_t head, double *to) {
    const int64_t size = (int64_t)p->of->key_size * p->of->value_size;
    const float *from = states + p->slots[sequence] * p->state_floats + head * size;
    for (int64_t i = 0; i < size; i++) to[i] = states && !p->of->stateless ? (double)from[i] : 0;
}

/* What float64 makes of all sequences and the heads compared. */
static void solve(problem *p) {
    const work *w = p->of;
    const int64_t size = (int64_t)w->key_size * w->value_size, tokens = p->offsets[p->sequences];
    p->compared = w->sampled ? w->sampled : w->heads;
    p->want = malloc((size_t)(p->compared * tokens * w->value_size + 1) * sizeof *p->want);
    p->ended = malloc((size_t)(p->compared * p->sequences * size) * sizeof *p->ended);
    for (int i = 0; i < p->compared; i++) {
        p->which[i] = w->sampled ? (int64_t)(random_next() % (uint64_t)w->heads) : i;
        for (int s = 0; s < p->sequences; s++) {
            double *state = p->ended + (i * p->sequences + s) * size;
            take_state(p, p->state_in, s, p->which[i], state);
            if (w->infinite && s % 2) continue;
            oracle(p, p->offsets[s], p->offsets[s + 1], p->which[i], state,
                   p->want + (i * tokens + p->offsets[s]) * w->value_size);
        }
    }
}

/* The worst of the first sequences. */
static errors compare(const problem *p, int sequences) {
    const work *w = p->of;
    const int64_t size = (int64_t)w->key_size * w->value_size, tokens = p->offsets[p->sequences];
    double *state = malloc((size_t)size * sizeof *state);
    double *seen = malloc((size_t)(tokens * w->value_size + 1) * sizeof *seen);
    errors worst = {0, 0};
    for (int i = 0; i < p->compared; i++)
        for (int s = 0; s < sequences; s++) {
            if (w->infinite && s % 2) continue;
            const int64_t first = p->offsets[s], count = (p->offsets[s + 1] - first) * w->value_size;
            for (int64_t j = 0; j < count; j++)
                seen[j] = tensor_at(&p->output, first + j / w->value_size, p->which[i], j % w->value_size);
            const double of_output =
                count ? relative_error(seen, p->want + (i * tokens + first) * w->value_size, count) : 0;
            if (!(of_output <= worst.output)) worst.output = of_output;
            if (w->stateless) continue;
            take_state(p, p->state_out, s, p->which[i], state);
            const double of_state = relative_error(state, p->ended + (i * p->sequences + s) * size, size);
            if (!(of_state <= worst.state)) worst.state = of_state;
        }
    free(state);
    free(seen);
    return worst;
}

static void fetch(problem *p) {
    tensor_fetch(&p->output);
    device_fetch(p->state_out, p->device_out, p->slot_count * p->state_floats * 4);
}
static void poison(problem *p) {
    tensor_poison(&p->output);
    device_poison(p->device_out, p->slot_count * p->state_floats * 4);
}

static void expect_right(const problem *p, int sequences, const char *kernel, const char *what) {
    const work *w = p->of;
    const double bound = w->decay == LN_CUDA_DECAY_NONE  ? BOUND_LASTING
                         : w->decay == LN_CUDA_DECAY_KEY ? BOUND_BY_KEY
                                                         : BOUND;
    const errors worst = compare(p, sequences);
    EXPECT(worst.output <= bound && worst.state <= bound, "%s, %s%s: errors %.2e of outputs, %.2e of states", w->name,
           kernel, what, worst.output, worst.state);
    if (!*what) printf("%-34s %-48s outputs %.2e states %.2e\n", w->name, kernel, worst.output, worst.state);
}

/* Slots that no sequence has stay as they were. */
static void expect_pool_kept(const problem *p, const char *kernel) {
    for (int64_t slot = 0; slot < p->slot_count; slot++) {
        bool used = false;
        for (int s = 0; s < p->sequences; s++) used = used || p->slots[s] == slot;
        const unsigned char *bytes = (const unsigned char *)(p->state_out + slot * p->state_floats);
        int64_t written = 0;
        for (int64_t i = 0; i < p->state_floats * 4; i++) written += bytes[i] != 0xff;
        EXPECT(used || written == 0, "%s, %s: slot %lld was written", p->of->name, kernel, (long long)slot);
    }
}

static bool workspace_open(const problem *p, const ln_cuda_delta_plan *plan, void **workspace) {
    *workspace = device_open(plan->workspace);
    return ln_cuda_delta_prepare(&p->delta, plan, *workspace, NULL) == LN_CUDA_OK;
}

/* The first sequence in two pieces, the state passed on in place, is the whole. */
static void check_split(problem *p, const ln_cuda_device *device, const ln_cuda_delta_kernel *kernel) {
    const int64_t tokens = p->offsets[1], half = 1 + (int64_t)(random_next() % (uint64_t)(tokens - 1));
    poison(p);
    must(cudaMemcpy(p->device_out, p->device_in, (size_t)(p->slot_count * p->state_floats) * 4,
                    cudaMemcpyDeviceToDevice),
         "copy of states");
    for (int part = 0; part < 2; part++) {
        const int64_t first = part ? half : 0, offsets[2] = {0, part ? tokens - half : half};
        problem piece = *p;
        ln_cuda_delta_plan plan;
        piece.delta.offsets = offsets;
        piece.delta.sequences = 1;
        ln_cuda_delta_tensors *t = &piece.tensors;
        t->query.data = (uint16_t *)t->query.data + first * t->query.token_stride;
        t->key.data = (uint16_t *)t->key.data + first * t->key.token_stride;
        t->value.data = (uint16_t *)t->value.data + first * t->value.token_stride;
        t->output.data = (char *)t->output.data + first * t->output.token_stride * (p->of->float32 ? 4 : 2);
        t->beta += first * p->of->heads;
        if (t->decay) t->decay += first * p->decay.size;
        t->state_in = p->device_out;
        EXPECT(ln_cuda_delta_plan_make(&piece.delta, device, kernel, &plan) == LN_CUDA_OK, "%s", plan.why);
        piece.plan = &plan;
        EXPECT(workspace_open(&piece, &plan, &piece.workspace), "%s: tables", p->of->name);
        run_now(forward, &piece, p->of->name, kernel->name);
        device_close(piece.workspace);
    }
    fetch(p);
    expect_right(p, 1, kernel->name, ", in two pieces");
}

static void check_kernel(problem *p, const ln_cuda_device *device, const ln_cuda_delta_kernel *kernel) {
    const work *w = p->of;
    ln_cuda_delta_plan plan;
    if (ln_cuda_delta_plan_make(&p->delta, device, kernel, &plan) != LN_CUDA_OK) return;
    p->plan = &plan;
    EXPECT(workspace_open(p, &plan, &p->workspace), "%s, %s: tables", w->name, kernel->name);
    poison(p);
    run_now(forward, p, w->name, kernel->name);
    fetch(p);
    if (!w->infinite) tensor_expect_written(&p->output, w->name, kernel->name);
    expect_right(p, p->sequences, kernel->name, "");
    if (w->pool) expect_pool_kept(p, kernel->name);

    float *again = malloc((size_t)(p->slot_count * p->state_floats) * 4);
    poison(p);
    cudaGraphExec_t graph = run_capture(forward, p, w->name, kernel->name);
    run_graph(graph, w->name, kernel->name);
    tensor_expect_same(&p->output, w->name, kernel->name, "second run");
    device_fetch(again, p->device_out, p->slot_count * p->state_floats * 4);
    expect_same_bits(p->state_out, again, p->slot_count * p->state_floats * 4, w->name, kernel->name, "states");
    must(cudaGraphExecDestroy(graph), "end of the graph");
    free(again);
    if (p->sequences == 1 && p->offsets[1] > 1 && !w->stateless && !w->sampled) check_split(p, device, kernel);
    device_close(p->workspace);
}

/* ---- suite ---- */

static double multiply_adds(const work *w) {
    double tokens = 0;
    for (int s = 0; s < SEQUENCES && w->tokens[s] >= 0; s++) tokens += (w->tokens[s] + 63) / 64 * 64;
    return tokens * w->heads * (3.0 * w->key_size * w->value_size + 64 * (3.0 * w->key_size + 2.0 * w->value_size));
}

/* One text of 8 heads takes narrow slices, which share copies where they are even; many take wide ones. */
static void check_slices(const ln_cuda_device *device, ln_cuda_delta_decay decay) {
    static const struct {
        int value_size, sequences, columns, sharers;
    } CASES[] = {{64, 1, 64, 1}, {128, 1, 64, 2}, {192, 1, 64, 1}, {256, 1, 64, 2}, {128, 40, 128, 1}};
    int64_t offsets[41];
    for (int s = 0; s <= 40; s++) offsets[s] = 1000 * s;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        const ln_cuda_delta delta = {.heads = 8,
                                     .key_heads = 2,
                                     .key_size = 128,
                                     .value_size = CASES[i].value_size,
                                     .sequences = CASES[i].sequences,
                                     .offsets = offsets,
                                     .scale = 0.1f,
                                     .decay = decay};
        ln_cuda_delta_plan plan;
        EXPECT(ln_cuda_delta_plan_make(&delta, device, NULL, &plan) == LN_CUDA_OK &&
                   plan.kernel->columns == CASES[i].columns && plan.kernel->sharers == CASES[i].sharers,
               "values of %d, %d sequences: %s", CASES[i].value_size, CASES[i].sequences, plan.why);
        for (int row = 0; ln_cuda_delta_kernels(row)->start; row++) {
            const ln_cuda_delta_kernel *kernel = ln_cuda_delta_kernels(row);
            if (CASES[i].value_size % (kernel->columns * kernel->sharers) == 0) continue;
            EXPECT(ln_cuda_delta_plan_make(&delta, device, kernel, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
                   "%s takes values of %d", kernel->name, CASES[i].value_size);
        }
    }
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_delta delta = {.heads = 8, .key_heads = 2, .key_size = 128, .value_size = 128, .sequences = 1};
    delta.offsets = offsets, delta.scale = 0.1f, delta.decay = LN_CUDA_DECAY_HEAD;
    ln_cuda_delta_plan plan;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 9, "plan: %s",
           plan.why);
    EXPECT(ln_cuda_delta_plan_make(&delta, &ampere, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 8, "plan: %s",
           plan.why);
    delta.decay = LN_CUDA_DECAY_KEY;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_OK &&
               plan.kernel->decay == LN_CUDA_DECAY_KEY,
           "plan: %s", plan.why);
    delta.key_size = 40;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "size 40: %s",
           plan.why);
    delta.key_size = 128, delta.value_size = 96;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED, "values of 96: %s", plan.why);
    delta.value_size = 128, delta.heads = 7;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "7 heads: %s", plan.why);
    delta.heads = 8, delta.offsets = wrong;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    delta.offsets = offsets, delta.scale = NAN;
    EXPECT(ln_cuda_delta_plan_make(&delta, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "scale: %s", plan.why);
    check_slices(&hopper, LN_CUDA_DECAY_HEAD);
    check_slices(&hopper, LN_CUDA_DECAY_KEY);
    for (int row = 0; ln_cuda_delta_kernels(row)->start; row++) {
        const ln_cuda_delta_kernel *kernel = ln_cuda_delta_kernels(row);
        EXPECT(kernel->shared_bytes <= (kernel->major == 9 ? 232448 : 101376), "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
    }
}

static void check_arguments(const ln_cuda_device *device) {
    problem p;
    ln_cuda_delta_plan plan;
    problem_open(&p, &WORKS[0]);
    EXPECT(ln_cuda_delta_plan_make(&p.delta, device, NULL, &plan) == LN_CUDA_OK, "%s", plan.why);
    p.plan = &plan;
    EXPECT(forward(&p, NULL) == LN_CUDA_ARGUMENT, "no workspace is refused");
    EXPECT(workspace_open(&p, &plan, &p.workspace), "tables");
    const ln_cuda_delta_tensors right = p.tensors;
    p.tensors.beta = NULL;
    EXPECT(forward(&p, NULL) == LN_CUDA_ARGUMENT, "no beta is refused");
    p.tensors = right;
    p.tensors.decay = NULL;
    EXPECT(forward(&p, NULL) == LN_CUDA_ARGUMENT, "no decay is refused");
    p.tensors = right;
    p.tensors.key.token_stride += 1;
    EXPECT(forward(&p, NULL) == LN_CUDA_ARGUMENT, "a stride of odd bytes is refused");
    p.tensors = right;
    run_now(forward, &p, "arguments", "right");
    device_close(p.workspace);
    problem_close(&p);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    check_arguments(device);
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        if (!work_wanted(options, w->name, multiply_adds(w))) continue;
        problem p;
        problem_open(&p, w);
        solve(&p);
        for (int row = 0; ln_cuda_delta_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_delta_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_delta_kernels(row));
        problem_close(&p);
        fflush(stdout);
    }
}

static void bench_work(const work *w, const ln_cuda_device *device, const check_options *options) {
    problem p[KERNELS_MOST];
    void *contexts[KERNELS_MOST];
    ln_cuda_delta_plan plan[KERNELS_MOST], chosen;
    timing times[KERNELS_MOST];
    int kernels = 0;
    problem_open(&p[0], w);
    EXPECT(ln_cuda_delta_plan_make(&p[0].delta, device, NULL, &chosen) == LN_CUDA_OK, "%s", chosen.why);
    for (int row = 0; ln_cuda_delta_kernels(row)->start && kernels < KERNELS_MOST; row++) {
        const ln_cuda_delta_kernel *kernel = ln_cuda_delta_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (ln_cuda_delta_plan_make(&p[0].delta, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
        if (kernels) p[kernels] = p[0];
        p[kernels].plan = &plan[kernels];
        contexts[kernels] = &p[kernels];
        EXPECT(workspace_open(&p[kernels], &plan[kernels], &p[kernels].workspace), "tables");
        kernels++;
    }
    if (kernels) time_in_turns(forward, contexts, kernels, options->rounds, times);
    const double tokens = (double)p[0].offsets[p[0].sequences];
    for (int k = 0; k < kernels; k++)
        printf("%-30s %-50s %8.3f ms (best %.3f) %6.1f 4KV-TFLOP/s%s\n", w->name, plan[k].kernel->name, times[k].median,
               times[k].least, 4 * tokens * w->heads * w->key_size * w->value_size / times[k].median * 1e-9,
               plan[k].kernel == chosen.kernel ? " *" : "");
    fflush(stdout);
    for (int k = 0; k < kernels; k++) device_close(p[k].workspace);
    problem_close(&p[0]);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < BENCH_COUNT; i++)
        if (strstr(BENCH[i].name, options->works)) bench_work(&BENCH[i], device, options);
}

const suite cuda_suite_delta = {"delta", WORK_COUNT, check_plans, check, bench};
