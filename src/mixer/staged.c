/* Owns: pieces of rows that are made of other rows (staged.h): which time steps a piece has, the running state, what is
 * saved for the way back. */
#include "mixer/staged.h"

#include <string.h>

#include "base/checked.h"
#include "base/threads.h"

enum { PIECE_MOST = 512, PIECE_LEAST = 64, PIECE_TOKENS = 2048, SPAN = 64 };

/* Time steps of each sequence in a piece. */
static int64_t piece_steps(const ln_staged *staged, const linnet_mixer_settings *s) {
    int64_t steps = PIECE_TOKENS / s->sequences;
    if (steps > PIECE_MOST) steps = PIECE_MOST;
    if (steps < PIECE_LEAST) steps = PIECE_LEAST;
    if (s->chunk) steps = 2 * s->chunk;
    const int64_t most = ln_mixer_longest(s);
    return staged->whole || steps > most ? most : steps;
}

static int64_t block_floats(const ln_stage *stage, int b) {
    return stage->block[b].repeat * stage->block[b].floats * stage->s->heads * stage->s->sequences;
}

typedef struct layout {
    ln_stage stage;
    int64_t pieces;
    float *saved; /* [pieces][state floats] */
    uint64_t bytes;
} layout;

static const ln_mixer *base_of(const ln_stage *stage, int i, linnet_mixer_settings *base) {
    const linnet_mixer_settings *s = stage->s;
    *base = (linnet_mixer_settings){.size = sizeof *base,
                                    .type = LINNET_F32,
                                    .heads = s->heads,
                                    .key_heads = s->key_heads,
                                    .key_size = s->key_size,
                                    .value_size = s->value_size,
                                    .slots = 1,
                                    .tiled_heads = s->tiled_heads,
                                    .chunk = s->chunk,
                                    .sequences = s->sequences,
                                    .exact = true,
                                    .scale = 1};
    const ln_staged *staged = stage->call->mixer->core_row;
    return staged->base ? ln_mixer_find(staged->base(s, i, base)) : NULL;
}

static uint64_t base_bytes(const ln_stage *stage, int64_t steps, const ln_kernels *kernels, int threads) {
    uint64_t most = 0;
    linnet_mixer_settings base;
    const ln_mixer *mixer;
    for (int i = 0; i < LN_BASES && (mixer = base_of(stage, i, &base)) != NULL; i++) {
        base.tokens = steps * base.sequences;
        base.name = mixer->name;
        for (int form = 0; form < 2; form++) {
            const linnet_mixer_form of = form ? LINNET_MIXER_BACKWARD : LINNET_MIXER_FORWARD;
            const uint64_t bytes = ln_mixer_workspace(mixer, kernels, threads, &base, of);
            if (bytes > most) most = bytes;
        }
    }
    return most;
}

static layout lay_out(const ln_mixer_call *call, linnet_mixer_form form, int threads) {
    const linnet_mixer_settings *s = call->settings;
    const ln_staged *staged = call->mixer->core_row;
    layout l = {.stage = {.call = call, .s = s, .form = form}};
    ln_stage *stage = &l.stage;
    if (staged->blocks) staged->blocks(s, stage->block);
    l.stage.steps = piece_steps(staged, s);
    l.pieces = l.stage.steps ? ln_ceil_div(ln_mixer_longest(s), l.stage.steps) : 0;
    int64_t rooms[LN_ROOMS] = {0}, floats = 0;
    staged->rooms(s, form, ln_min_i64(l.stage.steps * s->sequences, s->tokens), rooms);
    ln_carver carver = {.base = call->workspace};
    stage->offsets = ln_carve(&carver, (uint64_t)s->sequences + 1, sizeof(int64_t));
    stage->first = ln_carve(&carver, (uint64_t)s->sequences, sizeof(int64_t));
    for (int b = 0; b < LN_BLOCKS; b++) {
        const int64_t block = block_floats(stage, b);
        floats += block;
        stage->state[b] = ln_carve(&carver, (uint64_t)block, sizeof(float));
        if (form != LINNET_MIXER_BACKWARD) continue;
        stage->state_gradient[b] = ln_carve(&carver, (uint64_t)block, sizeof(float));
        stage->turned[b] = ln_carve(&carver, (uint64_t)block, sizeof(float));
    }
    if (form == LINNET_MIXER_BACKWARD) l.saved = ln_carve(&carver, (uint64_t)(l.pieces * floats), sizeof(float));
    for (int r = 0; r < LN_ROOMS; r++) stage->room[r] = ln_carve(&carver, (uint64_t)rooms[r], sizeof(float));
    stage->base_workspace = ln_carve(&carver, base_bytes(stage, l.stage.steps, call->kernels, threads), 1);
    l.bytes = carver.overflow ? UINT64_MAX : carver.used;
    return l;
}

/* More than any room or block has: where this fits, none of their products overflows. */
static bool fits(const linnet_mixer_settings *s) {
    const double tokens = (double)s->tokens + 64 * (double)s->sequences, heads = (double)s->heads;
    return tokens * heads * (double)(s->slots + 8) * (double)(s->key_size + 8) * (double)(s->value_size + 8) < 0x1p60;
}

uint64_t ln_staged_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                             const linnet_mixer_settings *settings, linnet_mixer_form form) {
    const ln_mixer_call call = {.mixer = mixer, .kernels = kernels, .settings = settings};
    if (!fits(settings)) return UINT64_MAX;
    return lay_out(&call, form, threads).bytes;
}

int64_t ln_staged_head_floats(const linnet_mixer_settings *settings) {
    const ln_staged *staged = ln_mixer_find(settings->name)->core_row;
    ln_block blocks[LN_BLOCKS] = {{0, 0}};
    int64_t floats = 0;
    if (staged->whole) return 0;
    if (staged->blocks) staged->blocks(settings, blocks);
    for (int b = 0; b < LN_BLOCKS; b++) floats += blocks[b].repeat * blocks[b].floats;
    return floats;
}

/* ---- pieces and states ---- */

void ln_stage_seek(ln_stage *stage, int64_t piece, int64_t most) {
    stage->piece = piece;
    stage->offsets[0] = 0;
    for (int64_t q = 0; q < stage->s->sequences; q++) {
        int64_t first, count;
        ln_mixer_span(stage->s, q, &first, &count);
        count = ln_min_i64(count, most);
        const int64_t begin = ln_min_i64(count, piece * stage->steps), end = ln_min_i64(count, begin + stage->steps);
        stage->first[q] = begin;
        stage->offsets[q + 1] = stage->offsets[q] + end - begin;
    }
    stage->tokens = stage->offsets[stage->s->sequences];
}

typedef const float *(*state_reader)(const ln_mixer_call *call, int64_t sequence, int64_t head);

typedef float *(*state_writer)(const ln_mixer_call *call, int64_t sequence, int64_t head);

/* Between the caller's states and blocks; a reader without states means zeros. */
static void take_states(const ln_stage *stage, state_reader of, float *const *blocks) {
    for (int64_t q = 0; q < stage->s->sequences; q++)
        for (int64_t h = 0; h < stage->s->heads; h++) {
            const float *from = of(stage->call, q, h);
            for (int b = 0; b < LN_BLOCKS; b++)
                for (int64_t r = 0; r < stage->block[b].repeat; r++) {
                    const int64_t n = stage->block[b].floats;
                    float *to = blocks[b] + ((q * stage->block[b].repeat + r) * stage->s->heads + h) * n;
                    if (from) {
                        memcpy(to, from, (size_t)n * sizeof *to);
                        from += n;
                    } else {
                        memset(to, 0, (size_t)n * sizeof *to);
                    }
                }
        }
}

static void put_states(const ln_stage *stage, state_writer of, float *const *blocks) {
    for (int64_t q = 0; q < stage->s->sequences; q++)
        for (int64_t h = 0; h < stage->s->heads; h++) {
            float *to = of(stage->call, q, h);
            for (int b = 0; to && b < LN_BLOCKS; b++)
                for (int64_t r = 0; r < stage->block[b].repeat; r++, to += stage->block[b].floats) {
                    const int64_t n = stage->block[b].floats;
                    memcpy(to, blocks[b] + ((q * stage->block[b].repeat + r) * stage->s->heads + h) * n,
                           (size_t)n * sizeof *to);
                }
        }
}

/* Blocks to or from what is saved of a piece. */
static void save_states(const ln_stage *stage, float *saved, bool back) {
    for (int b = 0; b < LN_BLOCKS; b++) {
        const int64_t floats = block_floats(stage, b);
        if (floats == 0) continue;
        memcpy(back ? stage->state[b] : saved, back ? saved : stage->state[b], (size_t)floats * sizeof *saved);
        saved += floats;
    }
}

void ln_staged_forward(const ln_mixer_call *call) {
    const ln_staged *staged = call->mixer->core_row;
    layout l = lay_out(call, LINNET_MIXER_FORWARD, ln_team_size(call->team));
    take_states(&l.stage, ln_mixer_state_in, l.stage.state);
    for (int64_t p = 0; p < l.pieces; p++) {
        ln_stage_seek(&l.stage, p, INT64_MAX);
        staged->forward(&l.stage);
    }
    put_states(&l.stage, ln_mixer_state_out, l.stage.state);
}

void ln_staged_backward(const ln_mixer_call *call) {
    const ln_staged *staged = call->mixer->core_row;
    layout l = lay_out(call, LINNET_MIXER_BACKWARD, ln_team_size(call->team));
    int64_t floats = 0;
    for (int b = 0; b < LN_BLOCKS; b++) floats += block_floats(&l.stage, b);
    take_states(&l.stage, ln_mixer_state_in, l.stage.state);
    take_states(&l.stage, ln_mixer_state_out_gradient, l.stage.state_gradient);
    l.stage.states_only = true;
    for (int64_t p = 0; p < l.pieces; p++) {
        ln_stage_seek(&l.stage, p, INT64_MAX);
        save_states(&l.stage, l.saved + p * floats, false);
        if (p + 1 < l.pieces) staged->forward(&l.stage);
    }
    for (int64_t p = l.pieces - 1; p >= 0; p--) {
        ln_stage_seek(&l.stage, p, INT64_MAX);
        save_states(&l.stage, l.saved + p * floats, true);
        staged->backward(&l.stage);
    }
    put_states(&l.stage, ln_mixer_state_in_gradient, l.stage.state_gradient);
}

/* ---- for the rows ---- */

void ln_stage_forward(ln_stage *stage, const ln_stage_run *run) {
    linnet_mixer_settings base;
    linnet_mixer_tensors tensors = run->tensors;
    const ln_mixer *mixer = base_of(stage, run->base, &base);
    base.name = mixer->name;
    base.offsets = run->offsets ? run->offsets : stage->offsets;
    base.tokens = base.offsets[base.sequences];
    if (run->block >= 0) tensors.state_in = tensors.state_out = stage->state[run->block];
    ln_mixer_run(mixer, stage->call->kernels, stage->call->team, &base, &tensors, stage->base_workspace,
                 LINNET_MIXER_FORWARD);
}

void ln_stage_backward(ln_stage *stage, const ln_stage_run *run) {
    linnet_mixer_settings base;
    linnet_mixer_tensors tensors = run->tensors;
    const ln_mixer *mixer = base_of(stage, run->base, &base);
    base.name = mixer->name;
    base.offsets = run->offsets ? run->offsets : stage->offsets;
    base.tokens = base.offsets[base.sequences];
    if (run->block >= 0) {
        tensors.state_in = stage->state[run->block];
        tensors.state_out_gradient = stage->state_gradient[run->block];
        tensors.state_in_gradient = stage->turned[run->block];
    }
    ln_mixer_run(mixer, stage->call->kernels, stage->call->team, &base, &tensors, stage->base_workspace,
                 LINNET_MIXER_BACKWARD);
    if (run->block < 0) return;
    const int64_t n = stage->block[run->block].floats * stage->s->heads;
    for (int64_t q = 0; q < base.sequences; q++) {
        const int64_t at = (tensors.state_slots ? tensors.state_slots[q] : q) * n;
        memcpy(stage->state_gradient[run->block] + at, stage->turned[run->block] + at, (size_t)n * sizeof(float));
    }
}

typedef struct rows_run {
    ln_stage *stage;
    void (*rows)(const ln_stage_span *span);
    int64_t heads, span; /* 0: all of a sequence */
} rows_run;

/* A task is a span of a head: tasks go over spans of `span` rows of each sequence. */
static void rows_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const rows_run *run = argument;
    ln_stage *stage = run->stage;
    const int64_t head = task % run->heads, q = task / run->heads, all = stage->offsets[q + 1] - stage->offsets[q];
    for (int64_t at = 0; at < all; at += ln_min_i64(run->span, all - at)) {
        const ln_stage_span span = {.stage = stage,
                                    .sequence = q,
                                    .head = head,
                                    .step = stage->first[q] + at,
                                    .at = stage->offsets[q] + at,
                                    .count = ln_min_i64(run->span, all - at)};
        run->rows(&span);
    }
}

static void heads_task(void *argument, int64_t task, int worker) {
    const rows_run *run = argument;
    for (int64_t q = 0; q < run->stage->s->sequences; q++) rows_task(argument, q * run->heads + task, worker);
}

void ln_stage_heads(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span)) {
    rows_run run = {stage, rows, heads, INT64_MAX};
    ln_parallel(stage->call->team, heads, heads_task, &run);
}
void ln_stage_rows(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span)) {
    rows_run run = {stage, rows, heads, SPAN};
    ln_parallel(stage->call->team, stage->s->sequences * heads, rows_task, &run);
}
void ln_stage_lanes(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span)) {
    rows_run run = {stage, rows, heads, INT64_MAX};
    ln_parallel(stage->call->team, stage->s->sequences * heads, rows_task, &run);
}

/* ---- between the caller's tensors and rooms ---- */

typedef struct copy_run copy_run;
typedef void (*copier)(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows);
struct copy_run {
    ln_stage *stage;
    int input, room;
    int64_t heads, columns;
    copier copy;
};

static void copy_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const copy_run *run = argument;
    const ln_stage *stage = run->stage;
    const int64_t head = task % run->heads, q = task / run->heads, at = stage->offsets[q];
    if (stage->offsets[q + 1] == at) return;
    run->copy(run, head, q, stage->first[q], stage->offsets[q + 1] - at,
              stage->room[run->room] + (head * stage->tokens + at) * run->columns);
}

static void pack_head(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    ln_mixer_load(run->stage->call, run->input, head, sequence, step, count, rows);
}

static void copy(ln_stage *stage, int input, int room, copier how) {
    copy_run run = {stage, input, room, stage->s->heads, ln_axis_of(stage->call->mixer->output, stage->s), how};
    if (input >= 0) {
        if (how != pack_head) run.heads = ln_mixer_heads(&stage->call->mixer->inputs[input], stage->s);
        run.columns = ln_mixer_columns(&stage->call->mixer->inputs[input], stage->s);
    }
    ln_parallel(stage->call->team, stage->s->sequences * run.heads, copy_task, &run);
}

static int64_t head_of(const copy_run *run, int64_t head) {
    const ln_mixer_input *input = &run->stage->call->mixer->inputs[run->input];
    return input->heads == LN_HEADS_KEY ? ln_stage_value_head(run->stage->s, head) : head;
}

static void pack(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    ln_mixer_load(run->stage->call, run->input, head_of(run, head), sequence, step, count, rows);
}
static void add(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    const ln_mixer_call *call = run->stage->call;
    for (int64_t i = 0; i < count; i++)
        call->kernels->vector.add(ln_mixer_gradient(call, run->input, head_of(run, head), sequence, step + i),
                                  rows + i * run->columns, run->columns);
}
static void put(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    for (int64_t i = 0; i < count; i++)
        memcpy(ln_mixer_output(run->stage->call, head, sequence, step + i), rows + i * run->columns,
               (size_t)run->columns * sizeof *rows);
}
static void take(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    for (int64_t i = 0; i < count; i++)
        memcpy(rows + i * run->columns, ln_mixer_output_gradient(run->stage->call, head, sequence, step + i),
               (size_t)run->columns * sizeof *rows);
}

/* Of the heads of values that share this head of keys. */
static void add_shared(const copy_run *run, int64_t head, int64_t sequence, int64_t step, int64_t count, float *rows) {
    const linnet_mixer_settings *s = run->stage->s;
    for (int64_t h = 0; h < s->heads; h++)
        if (ln_mixer_key_head(s, h) == head)
            add(run, head, sequence, step, count, rows + (h - head) * run->stage->tokens * run->columns);
}

void ln_stage_pack(ln_stage *stage, int input, int room) {
    copy(stage, input, room, pack);
}
void ln_stage_pack_values(ln_stage *stage, int input, int room) {
    copy(stage, input, room, pack_head);
}
void ln_stage_add_values(ln_stage *stage, int input, int room) {
    if (stage->call->tensors->input_gradient[input].data) copy(stage, input, room, add_shared);
}
void ln_stage_add(ln_stage *stage, int input, int room) {
    if (stage->call->tensors->input_gradient[input].data) copy(stage, input, room, add);
}
void ln_stage_put(ln_stage *stage, int room) {
    if (!stage->states_only) copy(stage, -1, room, put);
}
void ln_stage_take(ln_stage *stage, int room) {
    copy(stage, -1, room, take);
}
