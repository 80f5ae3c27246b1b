/* Owns: the forward of the delta core.
 *
 * A chunk of n tokens at once. With G[i] the product of the decays up to token i of the chunk, G'[i] that before it:
 *
 *     A[i, j] = sum_c read[i, c] key[j, c] (G'[i] / G[j])[c]   j < i       B[i, j] = query, G[i], j <= i
 *     (1 - A) Y = X + (read G') S,     O = (query G) S + B Y,     S <- G[n] S + (key G[n] / G)^T Y
 *
 * and a second product adds A_w W to X, B_w W to O and (write_key G[n] / G)^T W to S, W its values. No quotient is
 * formed: the decays between two tokens are a product of theirs (kernel/delta.h). Where a decay is one number, it
 * multiplies A and B; where it is one a channel, tokens are taken 16 at a time: within these, element by element;
 * between them and those before, read and query carry the decays since the 16 began, keys those up to there.
 *
 * 1 - A is solved 16 rows at a time: what the rows above contribute is a tile product, the 16 are substituted forward.
 *
 * Invariant: columns of V never meet, so a task may take any of them; nothing else depends on how work is divided. */
#include "mixer/delta.h"

#include <string.h>

#include "base/checked.h"
#include "base/threads.h"

enum { BLOCK = LN_DELTA_BLOCK };

/* ---- inside a chunk ---- */

static void pairs_by_token(const ln_kernels *k, const ln_delta_shape *shape, const ln_delta_tiles *t, const float *key,
                           float *read_a, float *query_a, int64_t keys) {
    const int64_t stride = shape->row_stride, n = t->rows;
    for (int64_t i = 0; i < n; i += 2 * BLOCK) {
        const int64_t end = ln_min_i64(n, i + 2 * BLOCK);
        k->tile.product_tb(read_a + i * stride, stride, t->read + i * shape->key, shape->key, key, shape->key, end - i,
                           end, keys, false);
    }
    for (int64_t i = 0; i < t->tokens; i += 2 * BLOCK) {
        const int64_t end = ln_min_i64(t->tokens, i + 2 * BLOCK);
        k->tile.product_tb(query_a + i * stride, stride, t->query + i * shape->key, shape->key, key, shape->key,
                           end - i, end * shape->micro, keys, false);
    }
}

static void solve_by_token(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                           ln_delta_inside *in) {
    const ln_kernels *k = call->kernels;
    const int64_t keys = call->settings->key_size;
    const int64_t stride = shape->row_stride;
    if (shape->plain)
        ln_delta_pairs_bf16(call, shape, t, in);
    else
        pairs_by_token(k, shape, t, t->key, in->read_key, in->query_key, keys);
    k->delta.mask(in->read_key, in->query_key, stride, t->decay, t->rows, shape->micro, stride, in->after, in->before,
                  in->upto);
    if (t->write_key) {
        pairs_by_token(k, shape, t, t->write_key, in->read_write, in->query_write, keys);
        k->delta.mask(in->read_write, in->query_write, stride, t->decay, t->rows, shape->micro, stride, in->after,
                      in->before, in->upto);
    }
    for (int64_t i = 0; i < keys; i++) in->forget[i] = in->upto[t->rows - 1];
    for (int64_t m = 0; m < t->tokens; m++) in->upto[m] = in->upto[m * shape->micro + shape->micro - 1];
    if (shape->plain) return;
    k->delta.multiply(in->left, t->read, NULL, 0, in->before, t->rows, shape->key);
    k->delta.multiply(in->left + t->rows * shape->key, t->query, NULL, 0, in->upto, t->tokens, shape->key);
    k->delta.multiply(in->key_after, t->key, NULL, 0, in->after, t->rows, shape->key);
    if (t->write_key) k->delta.multiply(in->write_after, t->write_key, NULL, 0, in->after, t->rows, shape->key);
}

/* Rows first .. first + n - 1, at most 16, with keys as they stand at `first` and keys of their own. */
static void pairs_of_block(const ln_kernels *k, const ln_delta_shape *shape, const ln_delta_tiles *t, int64_t first,
                           int64_t n, const float *key, const float *key_after, float *read_a, float *query_a,
                           int64_t keys, const ln_delta_inside *in) {
    const int64_t at = first * shape->key, stride = shape->row_stride;
    float *r = read_a + first * stride, *q = query_a + first * stride;
    if (first > 0) {
        k->tile.product_tb(r, stride, in->read_in + at, shape->key, key_after, shape->key, n, first, keys, false);
        k->tile.product_tb(q, stride, in->query_in + at, shape->key, key_after, shape->key, n, first, keys, false);
    }
    for (int64_t i = 0; i < n && first + BLOCK < stride; i++) {
        memset(r + i * stride + first + BLOCK, 0, (size_t)(stride - first - BLOCK) * sizeof *r);
        memset(q + i * stride + first + BLOCK, 0, (size_t)(stride - first - BLOCK) * sizeof *q);
    }
    k->delta.pairs(r + first, q + first, stride, t->read + at, t->query + at, key + at, t->decay + at, n, shape->key,
                   in->scratch);
}

static void solve_by_channel(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                             ln_delta_inside *in) {
    const ln_kernels *k = call->kernels;
    const int64_t columns = shape->key, keys = call->settings->key_size;
    const size_t bytes = (size_t)(t->rows * columns) * sizeof(float);
    memcpy(in->key_after, t->key, bytes);
    if (t->write_key) memcpy(in->write_after, t->write_key, bytes);
    for (int64_t c = 0; c < columns; c++) in->forget[c] = 1;
    for (int64_t first = 0; first < t->rows; first += BLOCK) {
        const int64_t n = ln_min_i64(BLOCK, t->rows - first), at = first * columns;
        float *block = in->block + first / BLOCK * columns;
        const ln_delta_gates gates = {.tokens = n,
                                      .columns = columns,
                                      .decay = t->decay + at,
                                      .read = t->read + at,
                                      .query = t->query + at,
                                      .key = in->key_after + at,
                                      .write_key = t->write_key ? in->write_after + at : NULL,
                                      .read_in = in->read_in + at,
                                      .query_in = in->query_in + at,
                                      .read_all = in->left + at,
                                      .query_all = in->left + t->rows * columns + at,
                                      .prefix = in->forget,
                                      .block = block};
        k->delta.gates(&gates);
        pairs_of_block(k, shape, t, first, n, t->key, in->key_after, in->read_key, in->query_key, keys, in);
        k->delta.multiply(in->key_after, in->key_after, block, 0, NULL, first, columns);
        if (!t->write_key) continue;
        pairs_of_block(k, shape, t, first, n, t->write_key, in->write_after, in->read_write, in->query_write, keys, in);
        k->delta.multiply(in->write_after, in->write_after, block, 0, NULL, first, columns);
    }
}

void ln_delta_solve_inside(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                           ln_delta_inside *inside) {
    (shape->channel ? solve_by_channel : solve_by_token)(call, shape, tiles, inside);
    if (shape->half) ln_delta_prepare_bf16(call, shape, tiles, inside);
}

/* ---- the state passes through ---- */

/* c += a b, where row i of a has reach * (i + 1) columns. */
static void add_triangle(const ln_kernels *k, float *c, int64_t c_stride, const float *a, int64_t a_stride,
                         const float *b, int64_t b_stride, int64_t rows, int64_t columns, int64_t reach) {
    for (int64_t i = 0; i < rows; i += BLOCK) {
        const int64_t end = ln_min_i64(rows, i + BLOCK);
        k->tile.product(c + i * c_stride, c_stride, a + i * a_stride, a_stride, b, b_stride, end - i, columns,
                        end * reach, true);
    }
}

void ln_delta_substitute(const ln_kernels *k, float *y, int64_t stride, const float *a, int64_t a_stride, int64_t rows,
                         int64_t columns) {
    for (int64_t i = 0; i < rows; i += BLOCK) {
        const int64_t n = ln_min_i64(BLOCK, rows - i);
        if (i > 0) k->tile.product(y + i * stride, stride, a + i * a_stride, a_stride, y, stride, n, columns, i, true);
        k->delta.solve(y + i * stride, stride, a + i * a_stride + i, a_stride, n, columns);
    }
}

void ln_delta_read(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                   const ln_delta_inside *in, int64_t column, const float *state, float *y) {
    const ln_kernels *k = call->kernels;
    const int64_t n = t->rows, width = shape->piece, some = ln_min_i64(width, shape->value - column);
    const float *value = t->value + column;
    if (t->write_key) {
        memset(y, 0, (size_t)(n * width) * sizeof *y);
        add_triangle(k, y, width, in->read_write, shape->row_stride, value, shape->value, n, some, 1);
    } else {
        for (int64_t i = 0; i < n; i++) memcpy(y + i * width, value + i * shape->value, (size_t)some * sizeof *y);
    }
    k->tile.product(y, width, in->left, shape->key, state, width, n, some, call->settings->key_size, true);
    ln_delta_substitute(k, y, width, in->read_key, shape->row_stride, n, some);
}

void ln_delta_write(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                    const ln_delta_inside *in, int64_t column, const float *y, float *state) {
    const ln_kernels *k = call->kernels;
    const int64_t keys = call->settings->key_size, n = t->rows, width = shape->piece,
                  some = ln_min_i64(width, shape->value - column);
    k->delta.multiply(state, state, NULL, 0, in->forget, keys, width);
    k->tile.product_ta(state, width, in->key_after, shape->key, y, width, keys, some, n, true);
    if (t->write_key)
        k->tile.product_ta(state, width, in->write_after, shape->key, t->value + column, shape->value, keys, some, n,
                           true);
}

/* output [tokens, piece] of the state before the chunk. */
static void answer(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                   const ln_delta_inside *in, int64_t column, const float *state, const float *y, float *output) {
    const ln_kernels *k = call->kernels;
    const int64_t piece = shape->piece, some = ln_min_i64(piece, shape->value - column);
    k->tile.product(output, piece, in->left + t->rows * shape->key, shape->key, state, piece, t->tokens, some,
                    call->settings->key_size, false);
    add_triangle(k, output, piece, in->query_key, shape->row_stride, y, piece, t->tokens, some, shape->micro);
    if (t->write_key)
        add_triangle(k, output, piece, in->query_write, shape->row_stride, t->value + column, shape->value, t->tokens,
                     some, 1);
}

/* ---- a sequence ---- */

typedef struct room {
    ln_delta_tiles tiles;
    ln_delta_inside inside;
    float *state;      /* [pieces, key_size, piece] */
    float *y, *output; /* [row_stride + tokens, piece], [tokens, width] */
} room;

static room carve(ln_carver *carver, const ln_delta_shape *shape) {
    room r;
    ln_delta_carve(carver, shape, &r.tiles, &r.inside);
    r.state = ln_carve(carver, (uint64_t)(shape->key * ln_ceil_div(shape->width, shape->piece) * shape->piece),
                       sizeof(float));
    r.y = ln_carve(carver, (uint64_t)((2 * shape->row_stride + BLOCK) * shape->piece), sizeof(float));
    r.output = ln_carve(carver, (uint64_t)(shape->tokens * shape->width), sizeof(float));
    return r;
}

typedef struct walk {
    const ln_mixer_call *call;
    const ln_delta_shape *shape;
    room room;
    int64_t sequence, head, column, columns; /* columns: without padding */
} walk;

static void copy_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, (size_t)columns * sizeof *to);
}

/* From output [tokens, stride], to columns `column` of the task and on. */
static void write_output(walk *w, int64_t step, int64_t column, const float *output, int64_t stride) {
    const int64_t columns = ln_min_i64(stride, w->columns - column);
    for (int64_t m = 0; m < w->room.tiles.tokens; m++)
        memcpy(ln_mixer_output(w->call, w->head, w->sequence, step + m) + w->column + column, output + m * stride,
               (size_t)columns * sizeof(float));
}

/* The tiles' tokens one by one, in columns `column` of the task and on. */
static void walk_tokens(walk *w, int64_t column, int64_t columns, const float *before, int64_t before_stride,
                        float *after, int64_t after_stride, int64_t output_stride) {
    const ln_delta_tiles *t = &w->room.tiles;
    const ln_delta_shape *shape = w->shape;
    const int64_t key = shape->key;
    const float *decay = shape->channel ? t->decay : w->room.inside.left;
    for (int64_t i = 0; i < t->rows; i++) {
        const float *value = t->value + i * shape->value + w->column + column;
        const ln_delta_step step = {.rows = w->call->settings->key_size,
                                    .columns = ln_ceil_div(columns, BLOCK) * BLOCK,
                                    .before = i ? after : before,
                                    .before_stride = i ? after_stride : before_stride,
                                    .after = after,
                                    .after_stride = after_stride,
                                    .decay = decay + i * key,
                                    .read = t->read + i * key,
                                    .key = t->key + i * key,
                                    .add = t->write_key ? NULL : value,
                                    .write_key = t->write_key ? t->write_key + i * key : NULL,
                                    .write_value = value,
                                    .query = t->query + i / shape->micro * key,
                                    .output = w->room.output + i / shape->micro * output_stride};
        w->call->kernels->delta.step(&step);
    }
}

static void load(walk *w, int64_t step, int64_t tokens) {
    ln_delta_load(w->call, w->shape, w->head, w->sequence, step, tokens, w->call->settings->scale, &w->room.tiles);
}

/* walk_tokens wants a decay a key. */
static void spread_decay(walk *w) {
    const ln_delta_tiles *t = &w->room.tiles;
    const int64_t key = w->shape->key;
    for (int64_t i = 0; i < t->rows && !w->shape->channel; i++)
        for (int64_t c = 0; c < key; c++) w->room.inside.left[i * key + c] = t->decay[i];
}

/* A sequence of few tokens: the state is read and written where it lies. */
static void walk_few(walk *w, int64_t count, const float *in, float *out) {
    const int64_t values = w->call->settings->value_size, width = w->shape->width;
    const size_t bytes = (size_t)(w->call->settings->key_size * width) * sizeof(float);
    if (!in) memset(w->room.state, 0, bytes);
    load(w, 0, count);
    spread_decay(w);
    float *after = out ? out : w->room.tiles.rows > 1 ? w->room.state : NULL;
    walk_tokens(w, 0, w->columns, in ? in : w->room.state, in ? values : width, after, out ? values : width, width);
    write_output(w, 0, 0, w->room.output, width);
}

static void walk_chunks(walk *w, int64_t count, const float *in, float *out) {
    const ln_delta_shape *shape = w->shape;
    const int64_t keys = w->call->settings->key_size, values = w->call->settings->value_size, piece = shape->piece;
    room *r = &w->room;
    for (int64_t c = 0; c < w->columns; c += piece) {
        float *state = r->state + c * shape->key;
        memset(state, 0, (size_t)(shape->key * piece) * sizeof *state);
        if (in) copy_rows(state, piece, in + c, values, keys, ln_min_i64(piece, w->columns - c));
    }
    void (*const hold)(bool) = shape->half ? w->call->kernels->tile.bf16.hold : NULL;
    if (hold) hold(true);
    for (int64_t step = 0; step < count; step += shape->tokens) {
        load(w, step, ln_min_i64(shape->tokens, count - step));
        const int64_t next = step + shape->tokens;
        if (next < count)
            ln_mixer_prefetch(w->call, w->head, w->sequence, next, ln_min_i64(shape->tokens, count - next));
        const bool few = r->tiles.rows < LN_DELTA_FEW;
        if (few)
            spread_decay(w);
        else
            ln_delta_solve_inside(w->call, shape, &r->tiles, &r->inside);
        for (int64_t c = 0; c < w->columns; c += piece) {
            float *state = r->state + c * shape->key;
            const float *output = r->output;
            if (few) {
                walk_tokens(w, c, ln_min_i64(piece, w->columns - c), state, piece, state, piece, piece);
            } else if (shape->half) {
                output = ln_delta_pass_bf16(w->call, shape, &r->tiles, &r->inside, w->column + c, state, r->y);
            } else {
                ln_delta_read(w->call, shape, &r->tiles, &r->inside, w->column + c, state, r->y);
                answer(w->call, shape, &r->tiles, &r->inside, w->column + c, state, r->y, r->output);
                ln_delta_write(w->call, shape, &r->tiles, &r->inside, w->column + c, r->y, state);
            }
            write_output(w, step, c, output, piece);
        }
    }
    if (hold) hold(false);
    for (int64_t c = 0; out && c < w->columns; c += piece)
        copy_rows(out + c, values, r->state + c * shape->key, piece, keys, ln_min_i64(piece, w->columns - c));
}

typedef struct job {
    const ln_mixer_call *call;
    ln_delta_shape shape;
    uint64_t bytes; /* of a worker */
} job;

static void run_task(void *argument, int64_t task, int worker) {
    const job *j = argument;
    const linnet_mixer_settings *s = j->call->settings;
    const int64_t slice = task % j->shape.slices, head = task / j->shape.slices % s->heads,
                  sequence = task / j->shape.slices / s->heads;
    int64_t first, count;
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    ln_carver carver = {.base = (unsigned char *)j->call->workspace + (uint64_t)worker * j->bytes};
    walk w = {.call = j->call,
              .shape = &j->shape,
              .room = carve(&carver, &j->shape),
              .sequence = sequence,
              .head = head,
              .column = slice * j->shape.width};
    w.columns = ln_min_i64(j->shape.width, s->value_size - w.column);
    const float *in = ln_mixer_state_in(j->call, sequence, head);
    float *out = ln_mixer_state_out(j->call, sequence, head);
    if (in) in += w.column;
    if (out) out += w.column;
    const bool in_place = s->value_size % BLOCK == 0, few = count * j->shape.micro < LN_DELTA_FEW;
    (few && in_place ? walk_few : walk_chunks)(&w, count, in, out);
}

void ln_delta_forward(const ln_mixer_call *call) {
    job j = {.call = call,
             .shape = ln_delta_shape_of(call->mixer, call->kernels, ln_team_size(call->team), call->settings,
                                        LINNET_MIXER_FORWARD)};
    ln_carver carver = {0};
    carve(&carver, &j.shape);
    j.bytes = carver.used;
    ln_parallel(call->team, call->settings->sequences * call->settings->heads * j.shape.slices, run_task, &j);
}

uint64_t ln_delta_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form) {
    if (form == LINNET_MIXER_BACKWARD) return ln_delta_backward_workspace(mixer, kernels, threads, settings);
    const ln_delta_shape shape = ln_delta_shape_of(mixer, kernels, threads, settings, form);
    ln_carver carver = {0};
    carve(&carver, &shape);
    return carver.used * (uint64_t)threads;
}

/* Of triangles half is counted. */
double ln_delta_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const ln_delta_row *row = ln_mixer_find(s->name)->core_row;
    const double keys = (double)s->key_size, values = (double)s->value_size, micro = row->micro ? (double)s->slots : 1,
                 writes = row->a ? 2 : 1;
    if (form == LINNET_MIXER_STEP) return keys * values * micro * (5 + 2 * writes);
    const double chunk = s->chunk ? (double)s->chunk : LN_DELTA_CHUNK;
    const double forward =
        2 * keys * values * (micro * (1 + writes) + 1) + chunk * (micro + 1) * writes * (keys + values);
    return form == LINNET_MIXER_BACKWARD ? 3 * forward : forward;
}
