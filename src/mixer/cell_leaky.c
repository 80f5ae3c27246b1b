/* Owns: the leaky memory neuron (Spieler et al. 2023): synapses that leak, summed by branch, and slow memories that a
 * small network writes. Of a head, with k and K the factors e^synapse_decay and e^decay,
 *
 *     s[t] = k s[t-1] + synapse value[t],  b[t] = s[t] summed over a branch
 *     r[t] = max(0, hidden_bias + b[t] B + (K m[t-1]) R),  d[t] = tanh(bias + r[t] W)
 *     m[t] = K m[t-1] + lambda (1 - K) d[t],  output m[t].
 *
 * A piece is up to BLOCK tokens: b B is one product, and so are the gradients of B, R and W; what goes from token to
 * token is done token by token. Backward is a task a head, since all tokens share its parameters. */
#include "mixer/cell_leaky.h"

#include <math.h>
#include <string.h>

#include "mixer/replay.h"

enum { BLOCK = 32 };
enum { SYNAPSE = 1, SYNAPSE_DECAY, BRANCH, RECURRENT, HIDDEN_BIAS, WRITE, BIAS, DECAY, INPUTS }; /* VALUE is 0 */

typedef struct job {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    const ln_tile_kernels *tile;
    int64_t branches, synapses, memories, hidden, floats, head, sequence, tokens;
    const float *parameter[INPUTS]; /* where they lie, but the factors of decays and zeros for what was left out */
    float *made[INPUTS], *gradient[INPUTS];
    float *state, *state_gradient;
    /* [token][..]; the leaks [token + 1]: of the state before each token */
    float *value, *leaked, *sums, *active, *kept, *written;
    float *write_transposed, *recurrent_transposed;
    float *sums_gradient, *active_gradient, *written_gradient, *row;
    ln_replay replay;
} job;

static job describe(const ln_mixer *mixer, const linnet_mixer_settings *s) {
    return (job){.s = s,
                 .branches = s->key_size,
                 .synapses = s->key_size * s->slots,
                 .memories = s->value_size,
                 .hidden = 2 * s->value_size,
                 .floats = ln_mixer_head_floats(mixer, s)};
}

static void carve(ln_carver *c, float **to, int64_t rows, int64_t columns) {
    *to = ln_carve(c, (uint64_t)rows * (uint64_t)columns, sizeof(float));
}

static void lay_out(ln_carver *c, const ln_mixer *mixer, job *j, linnet_mixer_form form) {
    for (int k = SYNAPSE; k < INPUTS; k++) {
        const int64_t columns = ln_mixer_columns(&mixer->inputs[k], j->s);
        if (k == SYNAPSE_DECAY || k == DECAY || k == HIDDEN_BIAS || k == BIAS) carve(c, &j->made[k], 1, columns);
        if (form == LINNET_MIXER_BACKWARD) carve(c, &j->gradient[k], 1, columns);
    }
    carve(c, &j->state, 1, j->floats);
    carve(c, &j->value, BLOCK, j->synapses);
    carve(c, &j->leaked, BLOCK + 1, j->synapses);
    carve(c, &j->sums, BLOCK, j->branches);
    carve(c, &j->active, BLOCK, j->hidden);
    carve(c, &j->kept, BLOCK, j->memories);
    carve(c, &j->written, BLOCK, j->memories);
    if (form != LINNET_MIXER_BACKWARD) return;
    carve(c, &j->state_gradient, 1, j->floats);
    carve(c, &j->write_transposed, j->memories, j->hidden);
    carve(c, &j->recurrent_transposed, j->hidden, j->memories);
    carve(c, &j->sums_gradient, BLOCK, j->branches);
    carve(c, &j->active_gradient, BLOCK, j->hidden);
    carve(c, &j->written_gradient, BLOCK, j->memories);
    carve(c, &j->row, 1, j->memories);
    j->replay = ln_replay_carve(c, j->floats, ln_ceil_div(ln_mixer_longest(j->s), BLOCK));
}

uint64_t ln_leaky_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form) {
    (void)kernels;
    job j = describe(mixer, settings);
    ln_carver carver = {0};
    lay_out(&carver, mixer, &j, form);
    return ln_carved(&carver, threads);
}

static job open_job(const ln_mixer_call *call, linnet_mixer_form form, int worker, int64_t head) {
    job j = describe(call->mixer, call->settings);
    j.call = call;
    j.tile = &call->kernels->tile;
    j.head = head;
    ln_carver size = {0};
    lay_out(&size, call->mixer, &j, form);
    ln_carver carver = {.base = (unsigned char *)call->workspace + size.used * (uint64_t)worker};
    lay_out(&carver, call->mixer, &j, form);
    for (int k = SYNAPSE; k < INPUTS; k++) {
        const linnet_tensor *t = &call->tensors->input[k];
        const int64_t columns = ln_mixer_columns(&call->mixer->inputs[k], j.s);
        j.parameter[k] = j.made[k];
        if (k == SYNAPSE_DECAY || k == DECAY)
            call->kernels->vector.exponential(j.made[k], (const float *)t->data + head * t->head_stride, 0, columns);
        else if (ln_mixer_has(call, k))
            j.parameter[k] = (const float *)t->data + head * t->head_stride;
        else
            memset(j.made[k], 0, (size_t)columns * sizeof(float));
    }
    return j;
}

/* The piece's branches: leaked[t + 1] = s[t], and their part of what the network takes. */
static void run_synapses(job *j, const float *state, int64_t first, int64_t count) {
    const float *leak = j->parameter[SYNAPSE_DECAY], *synapse = j->parameter[SYNAPSE];
    ln_mixer_load(j->call, 0, j->head, j->sequence, first, count, j->value);
    memcpy(j->leaked, state, (size_t)j->synapses * sizeof *state);
    for (int64_t t = 0; t < count; t++) {
        const float *value = j->value + t * j->synapses, *before = j->leaked + t * j->synapses;
        float *after = j->leaked + (t + 1) * j->synapses;
        for (int64_t i = 0; i < j->synapses; i++) after[i] = leak[i] * before[i] + synapse[i] * value[i];
        for (int64_t b = 0; b < j->branches; b++) {
            float sum = 0;
            for (int64_t i = 0; i < j->s->slots; i++) sum += after[b * j->s->slots + i];
            j->sums[t * j->branches + b] = sum;
        }
        memcpy(j->active + t * j->hidden, j->parameter[HIDDEN_BIAS], (size_t)j->hidden * sizeof(float));
    }
    j->tile->product(j->active, j->hidden, j->sums, j->branches, j->parameter[BRANCH], j->hidden, count, j->hidden,
                     j->branches, true);
}

/* The tokens of a piece: the state moves on. */
static void run_piece(job *j, float *state, int64_t first, bool wanted) {
    const int64_t count = ln_min_i64(BLOCK, j->tokens - first), n = j->memories;
    const float *keep = j->parameter[DECAY], gain = (float)j->s->option[0];
    float *memory = state + j->synapses;
    run_synapses(j, state, first, count);
    memcpy(state, j->leaked + count * j->synapses, (size_t)j->synapses * sizeof *state);
    for (int64_t t = 0; t < count; t++) {
        float *kept = j->kept + t * n, *active = j->active + t * j->hidden, *written = j->written + t * n;
        for (int64_t i = 0; i < n; i++) kept[i] = keep[i] * memory[i];
        j->tile->product(active, j->hidden, kept, n, j->parameter[RECURRENT], j->hidden, 1, j->hidden, n, true);
        for (int64_t i = 0; i < j->hidden; i++) active[i] = active[i] < 0 ? 0 : active[i];
        memcpy(written, j->parameter[BIAS], (size_t)n * sizeof *written);
        j->tile->product(written, n, active, j->hidden, j->parameter[WRITE], n, 1, n, j->hidden, true);
        j->call->kernels->vector.soft_cap(written, 1, n); /* tanh */
        for (int64_t i = 0; i < n; i++) memory[i] = kept[i] + gain * (1 - keep[i]) * written[i];
        if (wanted)
            memcpy(ln_mixer_output(j->call, j->head, j->sequence, first + t), memory, (size_t)n * sizeof *memory);
    }
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_FORWARD, worker, task % call->settings->heads);
    int64_t first;
    j.sequence = task / call->settings->heads;
    ln_mixer_span(call->settings, j.sequence, &first, &j.tokens);
    if (j.tokens == 0) return;
    ln_mixer_read_state(call, j.sequence, j.head, j.state);
    for (int64_t step = 0; step < j.tokens; step += BLOCK) run_piece(&j, j.state, step, true);
    float *out = ln_mixer_state_out(call, j.sequence, j.head);
    if (out) memcpy(out, j.state, (size_t)j.floats * sizeof *out);
}

void ln_leaky_forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

/* One token, from the gradient of m[t] to that of m[t-1]. `before`: m[t-1]. */
static void token_back(job *j, int64_t t, const float *before) {
    const int64_t n = j->memories;
    const float *keep = j->parameter[DECAY], gain = (float)j->s->option[0], *active = j->active + t * j->hidden,
                *written = j->written + t * n;
    float *d = j->state_gradient + j->synapses, *of_active = j->active_gradient + t * j->hidden,
          *of_written = j->written_gradient + t * n, *of_kept = j->row;
    for (int64_t i = 0; i < n; i++) {
        of_kept[i] = d[i];
        of_written[i] = gain * (1 - keep[i]) * d[i] * (1 - written[i] * written[i]);
        j->gradient[DECAY][i] -= keep[i] * gain * written[i] * d[i];
        j->gradient[BIAS][i] += of_written[i];
    }
    j->tile->product(of_active, j->hidden, of_written, n, j->write_transposed, j->hidden, 1, j->hidden, n, false);
    for (int64_t i = 0; i < j->hidden; i++) {
        of_active[i] = active[i] > 0 ? of_active[i] : 0;
        j->gradient[HIDDEN_BIAS][i] += of_active[i];
    }
    j->tile->product(of_kept, n, of_active, j->hidden, j->recurrent_transposed, n, 1, n, j->hidden, true);
    for (int64_t i = 0; i < n; i++) {
        j->gradient[DECAY][i] += keep[i] * before[i] * of_kept[i];
        d[i] = keep[i] * of_kept[i];
    }
}

static void synapses_back(job *j, int64_t first, int64_t count) {
    const float *leak = j->parameter[SYNAPSE_DECAY], *synapse = j->parameter[SYNAPSE];
    float *d = j->state_gradient;
    j->tile->product_tb(j->sums_gradient, j->branches, j->active_gradient, j->hidden, j->parameter[BRANCH], j->hidden,
                        count, j->branches, j->hidden, false);
    for (int64_t t = count - 1; t >= 0; t--) {
        const float *value = j->value + t * j->synapses, *before = j->leaked + t * j->synapses;
        float *to = ln_mixer_gradient(j->call, 0, j->head, j->sequence, first + t);
        for (int64_t i = 0; i < j->synapses; i++) {
            d[i] += j->sums_gradient[t * j->branches + i / j->s->slots];
            if (to) to[i] += synapse[i] * d[i];
            j->gradient[SYNAPSE][i] += value[i] * d[i];
            j->gradient[SYNAPSE_DECAY][i] += leak[i] * before[i] * d[i];
            d[i] *= leak[i];
        }
    }
}

static void piece_forward(void *argument, float *state, int64_t piece) {
    run_piece(argument, state, piece * BLOCK, false);
}

static void piece_backward(void *argument, float *state, int64_t piece) {
    job *j = argument;
    const int64_t first = piece * BLOCK, count = ln_min_i64(BLOCK, j->tokens - first), n = j->memories;
    const float *keep = j->parameter[DECAY], gain = (float)j->s->option[0];
    memcpy(j->state, state, (size_t)j->floats * sizeof *state);
    run_piece(j, j->state, first, false);
    for (int64_t t = count - 1; t >= 0; t--) {
        const float *dy = ln_mixer_output_gradient(j->call, j->head, j->sequence, first + t);
        float *before = j->state + j->synapses, *d = j->state_gradient + j->synapses;
        for (int64_t i = 0; i < n; i++) {
            d[i] += dy[i];
            before[i] = t == 0 ? state[j->synapses + i]
                               : j->kept[(t - 1) * n + i] + gain * (1 - keep[i]) * j->written[(t - 1) * n + i];
        }
        token_back(j, t, before);
    }
    j->tile->product_ta(j->gradient[WRITE], n, j->active, j->hidden, j->written_gradient, n, j->hidden, n, count, true);
    j->tile->product_ta(j->gradient[RECURRENT], j->hidden, j->kept, n, j->active_gradient, j->hidden, n, j->hidden,
                        count, true);
    j->tile->product_ta(j->gradient[BRANCH], j->hidden, j->sums, j->branches, j->active_gradient, j->hidden,
                        j->branches, j->hidden, count, true);
    synapses_back(j, first, count);
}

static void sequence_back(job *j) {
    ln_mixer_read_gradient(j->call, j->sequence, j->head, j->state_gradient);
    ln_mixer_read_state(j->call, j->sequence, j->head, j->replay.kept);
    const ln_replay_steps steps = {j, piece_forward, piece_backward};
    ln_replay_run(&j->replay, ln_ceil_div(j->tokens, BLOCK), &steps);
    float *to = ln_mixer_state_in_gradient(j->call, j->sequence, j->head);
    if (to) memcpy(to, j->state_gradient, (size_t)j->floats * sizeof *to);
}

static void backward_task(void *argument, int64_t head, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_BACKWARD, worker, head);
    for (int k = SYNAPSE; k < INPUTS; k++)
        memset(j.gradient[k], 0, (size_t)ln_mixer_columns(&call->mixer->inputs[k], j.s) * sizeof(float));
    for (int64_t h = 0; h < j.hidden; h++)
        for (int64_t i = 0; i < j.memories; i++) {
            j.write_transposed[i * j.hidden + h] = j.parameter[WRITE][h * j.memories + i];
            j.recurrent_transposed[h * j.memories + i] = j.parameter[RECURRENT][i * j.hidden + h];
        }
    for (j.sequence = 0; j.sequence < j.s->sequences; j.sequence++) {
        int64_t first;
        ln_mixer_span(j.s, j.sequence, &first, &j.tokens);
        if (j.tokens > 0) sequence_back(&j);
    }
    for (int k = SYNAPSE; k < INPUTS; k++) {
        float *to = ln_mixer_gradient(call, k, head, 0, 0);
        if (to) memcpy(to, j.gradient[k], (size_t)ln_mixer_columns(&call->mixer->inputs[k], j.s) * sizeof *to);
    }
}

void ln_leaky_backward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->heads, backward_task, (void *)(uintptr_t)call);
}
