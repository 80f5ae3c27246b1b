/* Gradients of linear attention against float64: the recurrence forward with all its states kept, then backward. */
#include "oracle_linear.h"

#include "kernel/cuda/linear_backward_cuda.h"

enum { SEQUENCES = 4, MOST = 512 };

typedef struct work {
    const char *name;
    int heads, key_heads, key_size, value_size;
    int tokens[SEQUENCES];
    bool keys, values;                              /* decays of keys or values, not of tokens */
    double strength;                                /* of decays: up to so much a token; 0: none */
    bool hard;                                      /* some decays are 0, -88 and -inf */
    bool tiled, write, skip, state, float32, slots; /* slots: the last sequence's state lies first */
    ln_cuda_linear_sum normalise;
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
    {"gradients, normalised",
     2,
     1,
     128,
     128,
     {150, 1, 64},
     .strength = 0.1,
     .write = true,
     .state = true,
     .slots = true,
     .normalise = LN_CUDA_SUM_MAXIMUM},
    {"gradients, normalised, segments",
     1,
     1,
     64,
     64,
     {600},
     .strength = 0.3,
     .write = true,
     .normalise = LN_CUDA_SUM_MAXIMUM,
     .float32 = true},
    {"gradients, at least 1",
     2,
     1,
     64,
     64,
     {130, 70},
     .strength = 0.1,
     .write = true,
     .state = true,
     .normalise = LN_CUDA_SUM_ONE,
     .float32 = true},
    {"gradients, plain sums", 2, 1, 64, 64, {130, 70}, .state = true, .normalise = LN_CUDA_SUM_PLAIN},
    {"gradients, values", 2, 1, 128, 64, {150, 64}, .values = true, .strength = 0.1, .state = true, .slots = true},
    {"gradients, values, segments", 1, 1, 64, 128, {600}, .values = true, .strength = 0.1, .float32 = true},
    {"gradients, values, hard", 1, 1, 64, 64, {290}, .values = true, .strength = 1, .hard = true, .float32 = true},
    {"gradients, values of 512", 1, 1, 64, 512, {90}, .strength = 0.1, .write = true, .state = true, .skip = true},
    {"gradients, values of 512 that decay", 1, 1, 64, 512, {70}, .values = true, .strength = 0.1, .state = true},
    {"gradients, values of 512, normalised",
     1,
     1,
     64,
     512,
     {70},
     .strength = 0.1,
     .write = true,
     .normalise = LN_CUDA_SUM_MAXIMUM},
    {"gradients, keys", 2, 1, 128, 128, {150, 64}, .keys = true, .strength = 0.1, .state = true, .float32 = true},
    {"gradients, keys, segments", 1, 1, 64, 64, {600}, .keys = true, .strength = 0.1, .state = true},
    {"gradients, keys, hard", 1, 1, 128, 128, {290}, .keys = true, .strength = 1, .hard = true, .float32 = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

typedef struct problem {
    const work *of;
    int64_t offsets[SEQUENCES + 1];
    ln_cuda_linear linear;
    tensor query, key, value, decay, write, skip, state_in, maximum,
        output;                             /* given; decay [token][head][1 or key_size] */
    tensor output_gradient, state_gradient; /* given */
    tensor query_out, key_out, value_out, decay_out, write_out, skip_out, state_out, maximum_out;
    int64_t *slots; /* on the device */
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
                            .decay = w->keys     ? LN_CUDA_LINEAR_KEY
                                     : w->values ? LN_CUDA_LINEAR_VALUE
                                                 : LN_CUDA_LINEAR_TOKEN,
                            .tiled_heads = w->tiled,
                            .normalise = w->normalise,
                            .output_float32 = w->float32,
                            .weighted = w->write};
}

/* Decays of a token and head. */
static int channels_of(const work *w) {
    return w->keys ? w->key_size : w->values ? w->value_size : 1;
}
static int64_t slot_of(const work *w, int sequence) {
    return w->slots ? sequences_of(w) - 1 - sequence : sequence;
}
/* Of a state: n is one more. */
static int rows_of(const work *w) {
    return w->value_size + (w->normalise != LN_CUDA_SUM_NONE);
}

static tensor features_open(const work *w, int64_t tokens) {
    tensor t = tensor_random(tokens, w->key_heads, w->key_size, w->layout, ELEMENT_BF16, 1);
    for (int64_t i = 0; w->normalise == LN_CUDA_SUM_PLAIN && i < tokens * w->key_heads * w->key_size; i++) {
        const int64_t size = w->key_size, row = i / size;
        tensor_set(&t, row / w->key_heads, row % w->key_heads, i % size,
                   fabs(tensor_at(&t, row / w->key_heads, row % w->key_heads, i % size)));
    }
    tensor_send(&t);
    return t;
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    const int count = sequences_of(w), channels = channels_of(w);
    for (int s = 0; s < count; s++) p->offsets[s + 1] = p->offsets[s] + w->tokens[s];
    p->linear = linear_of(w, p->offsets);
    const int64_t tokens = p->offsets[count], floats = ln_cuda_linear_state_floats(&p->linear);
    const element type = w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16;
    p->query = features_open(w, tokens);
    p->key = features_open(w, tokens);
    p->value = tensor_random(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->output_gradient = tensor_random(tokens, w->heads, w->value_size, w->layout, ELEMENT_BF16, 1);
    p->decay = numbers_open(w, tokens, channels, true);
    p->write = numbers_open(w, tokens, 1, false);
    p->skip = numbers_open(w, 1, 1, false);
    p->maximum = numbers_open(w, tokens, 1, false);
    /* Weights of about 1 and more: outputs that are large and rounded to bf16 say little about their sums. */
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < w->heads; h++) tensor_set(&p->maximum, t, h, 0, -0.5 * tensor_at(&p->maximum, t, h, 0));
    tensor_send(&p->maximum);
    p->output = tensor_open(tokens, w->heads, w->value_size, w->layout, type);
    p->maximum_out = tensor_open(tokens, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->state_in = tensor_random(count, w->heads, floats, PACKED, ELEMENT_FLOAT32, 1);
    for (int64_t i = 0; w->normalise == LN_CUDA_SUM_PLAIN && i < count * w->heads * floats; i++)
        tensor_set(&p->state_in, 0, 0, i, fabs(tensor_at(&p->state_in, 0, 0, i)));
    tensor_send(&p->state_in);
    p->state_gradient = tensor_random(count, w->heads, floats, PACKED, ELEMENT_FLOAT32, 1);
    int64_t slots[SEQUENCES];
    for (int s = 0; s < count; s++) slots[s] = slot_of(w, s);
    p->slots = device_open((int64_t)sizeof slots);
    device_send(p->slots, slots, count * (int64_t)sizeof *slots);
    p->query_out = tensor_open(tokens, w->key_heads, w->key_size, w->layout, type);
    p->key_out = tensor_open(tokens, w->key_heads, w->key_size, w->layout, type);
    p->value_out = tensor_open(tokens, w->heads, w->value_size, w->layout, type);
    p->decay_out = tensor_open(tokens, w->heads, channels, PACKED, ELEMENT_FLOAT32);
    p->write_out = tensor_open(tokens, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->skip_out = tensor_open(1, w->heads, 1, PACKED, ELEMENT_FLOAT32);
    p->state_out = tensor_open(count, w->heads, floats, PACKED, ELEMENT_FLOAT32);
}

enum { GIVEN = 11, MADE = 8 };
enum { QUERY, KEY, VALUE, DECAY, STATE, WRITE, SKIP, MAXIMUM };
static void tensors_list(problem *p, tensor *(*list)[GIVEN + MADE]) {
    tensor *all[GIVEN + MADE] = {&p->query_out, &p->key_out,  &p->value_out,       &p->decay_out,     &p->state_out,
                                 &p->write_out, &p->skip_out, &p->maximum_out,     &p->query,         &p->key,
                                 &p->value,     &p->decay,    &p->write,           &p->skip,          &p->state_in,
                                 &p->maximum,   &p->output,   &p->output_gradient, &p->state_gradient};
    memcpy(*list, all, sizeof all);
}
/* Whether a work makes number i of the list. */
static bool is_made(const work *w, int i) {
    return i == WRITE ? w->write : i == SKIP ? w->skip : i == MAXIMUM ? w->normalise == LN_CUDA_SUM_MAXIMUM : true;
}
/* Maxima of states are not the gradient's to write. */
static void poison(problem *p) {
    const work *w = p->of;
    const int64_t floats = p->state_out.size;
    const float zero = 0;
    tensor *list[GIVEN + MADE];
    tensors_list(p, &list);
    for (int i = 0; i < MADE; i++) tensor_poison(list[i]);
    for (int64_t i = 1; w->normalise == LN_CUDA_SUM_MAXIMUM && i <= p->state_out.tokens * w->heads; i++)
        device_send((float *)p->state_out.device.data + i * floats - 1, &zero, 4);
}

static ln_cuda_code backward(void *context, void *stream) {
    const problem *p = context;
    const work *w = p->of;
    const ln_cuda_gate write = {w->write ? p->write.device.data : NULL, w->heads, 1};
    const ln_cuda_gate token_decay = {channels_of(w) > 1 || w->strength <= 0 ? NULL : p->decay.device.data, w->heads,
                                      1};
    const ln_cuda_linear_tensors tensors = {.query = p->query.device,
                                            .key = p->key.device,
                                            .value = p->value.device,
                                            .decay = p->decay.device,
                                            .token_decay = token_decay,
                                            .write = write,
                                            .maximum = {p->maximum.device.data, w->heads, 1},
                                            .output = p->output.device,
                                            .skip = w->skip ? p->skip.device.data : NULL,
                                            .state_in = w->state ? p->state_in.device.data : NULL,
                                            .state_slots = w->slots ? p->slots : NULL};
    ln_cuda_linear_gradients gradients = {.output = p->output_gradient.device,
                                          .state_out = w->state ? p->state_gradient.device.data : NULL,
                                          .query = p->query_out.device,
                                          .key = p->key_out.device,
                                          .value = p->value_out.device,
                                          .write = w->write ? p->write_out.device.data : NULL,
                                          .maximum = is_made(w, MAXIMUM) ? p->maximum_out.device.data : NULL,
                                          .skip = w->skip ? p->skip_out.device.data : NULL,
                                          .state_in = p->state_out.device.data};
    if (channels_of(w) > 1)
        gradients.decay = p->decay_out.device;
    else
        gradients.token_decay = p->decay_out.device.data;
    return ln_cuda_linear_backward(&p->linear, p->plan, &tensors, &gradients, p->workspace, stream);
}

/* ---- float64 ---- */

/* Gradients of one sequence, in rows like the tensors': [token][head or key head][column]. */
typedef struct wanted {
    double *query, *key, *value, *decay, *write, *skip, *state, *maximum;
} wanted;

/* Of one token: what the recurrence reads. With a normaliser there is one column more, whose values are 1. */
typedef struct token_inputs {
    double factor[MOST], value_factor[MOST + 1], query[MOST], key[MOST], value[MOST + 1], write;
} token_inputs;

static void token_read(const problem *p, int64_t token, int64_t head, token_inputs *in) {
    const work *w = p->of;
    const int64_t shared = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    in->write = w->write ? tensor_at(&p->write, token, head, 0) : 1;
    for (int i = 0; i < w->key_size; i++) {
        in->factor[i] = w->strength <= 0 ? 1 : exp(tensor_at(&p->decay, token, head, w->keys ? i : 0));
        in->query[i] = (double)p->linear.scale * tensor_at(&p->query, token, shared, i);
        in->key[i] = tensor_at(&p->key, token, shared, i);
    }
    for (int j = 0; j < w->value_size; j++) in->value[j] = tensor_at(&p->value, token, head, j);
    for (int j = 0; j <= w->value_size; j++)
        in->value_factor[j] = w->values && j < w->value_size ? exp(tensor_at(&p->decay, token, head, j)) : 1;
    for (int i = 0; w->values && i < w->key_size; i++) in->factor[i] = 1;
    in->value[w->value_size] = 1;
}

/* Place of element (i, j) of a state in its tensor. */
static int64_t state_place(const work *w, int i, int j) {
    return j < w->value_size ? (int64_t)i * w->value_size + j : (int64_t)w->key_size * w->value_size + i;
}

/* now = the state after the token; sums = scale now^T query. */
static void oracle_forward(const work *w, const token_inputs *in, const double *old, double *now, double *sums) {
    const int rows = rows_of(w);
    for (int j = 0; j < rows; j++) sums[j] = 0;
    for (int i = 0; i < w->key_size; i++)
        for (int j = 0; j < rows; j++) {
            now[i * rows + j] =
                in->factor[i] * in->value_factor[j] * old[i * rows + j] + in->write * in->key[i] * in->value[j];
            sums[j] += in->query[i] * now[i * rows + j];
        }
}

/* From where on the weight follows |dot|. */
static double least_of(const problem *p, int64_t token, int64_t head) {
    const ln_cuda_linear_sum kind = p->of->normalise;
    return kind == LN_CUDA_SUM_MAXIMUM ? exp(-tensor_at(&p->maximum, token, head, 0)) : kind == LN_CUDA_SUM_ONE ? 1 : 0;
}
static double weight_of(const problem *p, int64_t token, int64_t head, double dot) {
    if (p->of->normalise == LN_CUDA_SUM_NONE) return 1;
    if (p->of->normalise == LN_CUDA_SUM_PLAIN) return dot;
    return fmax(fabs(dot), least_of(p, token, head)) + (p->of->normalise == LN_CUDA_SUM_MAXIMUM ? 1e-6 : 0);
}

/* The gradient of the sums from that of the output; returns that of the maximum and what follows it. */
static double oracle_undo(const problem *p, int64_t token, int64_t head, const double *sums, double *gradient) {
    const work *w = p->of;
    const int V = w->value_size;
    for (int j = 0; j < V; j++) gradient[j] = tensor_at(&p->output_gradient, token, head, j);
    if (!w->normalise) return 0;
    const double dot = sums[V], weight = weight_of(p, token, head, dot);
    double along = 0;
    for (int j = 0; j < V; j++) {
        along += gradient[j] * sums[j] / weight;
        gradient[j] /= weight;
    }
    const double sign = w->normalise == LN_CUDA_SUM_PLAIN ? 1 : dot > 0 ? 1 : -1;
    gradient[V] = fabs(dot) >= least_of(p, token, head) ? -sign * along / weight : 0;
    return -1e-6 * along / weight;
}

static void oracle_head(problem *p, int s, int64_t head, const wanted *want) {
    const work *w = p->of;
    const int K = w->key_size, V = w->value_size, rows = rows_of(w), size = K * rows, channels = channels_of(w);
    const int64_t first = p->offsets[s], count = w->tokens[s];
    const int64_t shared = w->tiled ? head % w->key_heads : head / (w->heads / w->key_heads);
    double *states = malloc((size_t)((count + 1) * size) * sizeof *states), *D = malloc((size_t)size * sizeof *D);
    double *outs = malloc((size_t)((count + 1) * rows) * sizeof *outs), sums[MOST + 1];
    token_inputs in;
    for (int i = 0; i < size; i++) {
        const int64_t at = state_place(w, i / rows, i % rows);
        states[i] = w->state ? tensor_at(&p->state_in, slot_of(w, s), head, at) : 0;
        D[i] = w->state ? tensor_at(&p->state_gradient, slot_of(w, s), head, at) : 0;
    }
    for (int64_t t = 0; t < count; t++) {
        const double *now = states + (t + 1) * size;
        double *out = outs + t * rows, *query = want->query + (t * w->key_heads + shared) * K;
        token_read(p, first + t, head, &in);
        oracle_forward(w, &in, states + t * size, states + (t + 1) * size, sums);
        want->maximum[t * w->heads + head] = oracle_undo(p, first + t, head, sums, out);
        for (int i = 0; i < size; i++) query[i / rows] += (double)p->linear.scale * now[i] * out[i % rows];
    }
    for (int64_t t = count - 1; t >= 0; t--) {
        const int64_t row = t * w->heads + head;
        const double *old = states + t * size, *out = outs + t * rows,
                     skip = w->skip ? tensor_at(&p->skip, 0, head, 0) : 0;
        double *key = want->key + (t * w->key_heads + shared) * K, *value = want->value + row * V;
        token_read(p, first + t, head, &in);
        for (int i = 0; i < size; i++) {
            const int k = i / rows, j = i % rows;
            D[i] += in.query[k] * out[j];
            key[k] += in.write * D[i] * in.value[j];
            if (j < V) value[j] += in.write * D[i] * in.key[k];
            want->write[row] += in.key[k] * D[i] * in.value[j];
            D[i] *= in.factor[k] * in.value_factor[j];
            if (!w->values || j < V) want->decay[row * channels + (w->keys ? k : w->values ? j : 0)] += D[i] * old[i];
        }
        for (int j = 0; j < V; j++) {
            value[j] += skip * out[j];
            want->skip[head] += in.value[j] * out[j];
        }
    }
    for (int i = 0; i < size; i++) want->state[head * p->state_out.size + state_place(w, i / rows, i % rows)] = D[i];
    free(states);
    free(outs);
    free(D);
}

/* The forward run's output, which a normaliser's gradient reads. */
static void output_make(problem *p) {
    const work *w = p->of;
    const int rows = rows_of(w), size = w->key_size * rows;
    double *state = malloc((size_t)size * sizeof *state), sums[MOST + 1];
    token_inputs in;
    for (int s = 0; s < sequences_of(w); s++)
        for (int64_t head = 0; head < w->heads; head++) {
            for (int i = 0; i < size; i++)
                state[i] =
                    w->state ? tensor_at(&p->state_in, slot_of(w, s), head, state_place(w, i / rows, i % rows)) : 0;
            for (int64_t token = p->offsets[s]; token < p->offsets[s + 1]; token++) {
                token_read(p, token, head, &in);
                oracle_forward(w, &in, state, state, sums);
                const double weight = weight_of(p, token, head, w->normalise ? sums[w->value_size] : 1);
                for (int j = 0; j < w->value_size; j++) tensor_set(&p->output, token, head, j, sums[j] / weight);
            }
        }
    tensor_send(&p->output);
    free(state);
}

static double compare_rows(const tensor *t, const double *want, int64_t first, int64_t count) {
    const int64_t numbers = count * t->heads * t->size;
    double *got = malloc((size_t)(numbers + 1) * sizeof *got);
    for (int64_t i = 0; i < numbers; i++)
        got[i] = tensor_at(t, first + i / (t->heads * t->size), i / t->size % t->heads, i % t->size);
    double size = 0;
    for (int64_t i = 0; i < numbers; i++) size += want[i] * want[i];
    /* What decayed below the least numbers of float32 is 0. */
    const double error = size < 1e-60 ? 0 : relative_error(got, want, numbers);
    free(got);
    return error;
}

static void compare(problem *p, double (*worst)[MADE]) {
    const work *w = p->of;
    int64_t most = 0;
    for (int s = 0; s < sequences_of(w); s++) most = w->tokens[s] > most ? w->tokens[s] : most;
    const size_t rows = (size_t)most * (size_t)w->heads, numbers = rows * MOST + (size_t)((MOST + 2) * MOST * w->heads);
    double *skip = calloc((size_t)w->heads, sizeof *skip);
    for (int s = 0; s < sequences_of(w); s++) {
        double *all = calloc(7 * numbers, sizeof *all);
        const wanted want = {.query = all,
                             .key = all + numbers,
                             .value = all + 2 * numbers,
                             .decay = all + 3 * numbers,
                             .write = all + 4 * numbers,
                             .state = all + 5 * numbers,
                             .maximum = all + 6 * numbers,
                             .skip = skip};
        for (int64_t head = 0; head < w->heads; head++) oracle_head(p, s, head, &want);
        const int64_t first = p->offsets[s], count = w->tokens[s];
        (*worst)[QUERY] = fmax((*worst)[QUERY], compare_rows(&p->query_out, want.query, first, count));
        (*worst)[KEY] = fmax((*worst)[KEY], compare_rows(&p->key_out, want.key, first, count));
        (*worst)[VALUE] = fmax((*worst)[VALUE], compare_rows(&p->value_out, want.value, first, count));
        (*worst)[DECAY] = fmax((*worst)[DECAY], compare_rows(&p->decay_out, want.decay, first, count));
        (*worst)[STATE] = fmax((*worst)[STATE], compare_rows(&p->state_out, want.state, slot_of(w, s), 1));
        if (is_made(w, MAXIMUM))
            (*worst)[MAXIMUM] = fmax((*worst)[MAXIMUM], compare_rows(&p->maximum_out, want.maximum, first, count));
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
    poison(p);
    run_now(backward, p, name, kernel);
    double worst[MADE] = {0};
    for (int i = 0; i < MADE; i++) {
        if (!is_made(p->of, i)) continue;
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
    poison(p);
    run_graph(graph, name, kernel);
    for (int i = 0; i < MADE; i++)
        if (is_made(p->of, i)) tensor_expect_same(list[i], name, kernel, "a gradient");
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
        output_make(&p);
        if (device->major == 9 && kernel_wanted(options, "hopper")) check_plan(&p, device, 0, "hopper");
        if (kernel_wanted(options, "portable")) check_plan(&p, device, 8, "portable");
        tensors_list(&p, &list);
        for (int t = 0; t < GIVEN + MADE; t++) tensor_close(list[t]);
        device_close(p.slots);
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
        {"gradients of keys 1 x 32768, 16 heads", 16, 16, 128, 128, {32768}, .keys = true, .strength = 0.1},
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
        device_close(p.slots);
    }
}
