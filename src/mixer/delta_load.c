/* Owns: the parts of a chunk of the delta core from a row's inputs, and the room they take. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/delta.h"

enum { BLOCK = LN_DELTA_BLOCK };

static int64_t padded(int64_t extent) {
    return ln_ceil_div(extent, BLOCK) * BLOCK;
}

ln_delta_shape ln_delta_shape_of(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                 const linnet_mixer_settings *settings, linnet_mixer_form form) {
    const ln_delta_row *row = mixer->core_row;
    ln_delta_shape s = {.row = row,
                        .micro = row->micro ? settings->slots : 1,
                        .key = padded(settings->key_size),
                        .value = padded(settings->value_size),
                        .slices = 1};
    s.channel = row->decay && mixer->inputs[row->decay - 1].columns == LN_AXIS_KEY;
    s.longest = ln_mixer_longest(settings);
    s.half = form != LINNET_MIXER_BACKWARD && kernels->tile.bf16.name && settings->type == LINNET_BF16 &&
             !settings->exact && s.longest * s.micro >= LN_DELTA_CHUNK_BF16;
    s.plain = s.half && !s.channel && !row->a;
    const int64_t chunk = settings->chunk ? settings->chunk : s.half ? LN_DELTA_CHUNK_BF16 : LN_DELTA_CHUNK;
    s.tokens = ln_max_i64(1, ln_min_i64(chunk / s.micro, s.longest));
    s.rows = s.tokens * s.micro;
    s.row_stride = padded(s.rows);
    s.width = s.value;
    const int64_t tasks = settings->sequences * settings->heads;
    if (form != LINNET_MIXER_BACKWARD && tasks < threads) {
        s.slices = ln_min_i64(ln_ceil_div(threads, tasks), ln_ceil_div(s.value, 2 * BLOCK));
        s.width = padded(ln_ceil_div(s.value, s.slices));
        s.slices = ln_ceil_div(s.value, s.width);
    }
    s.piece = form == LINNET_MIXER_BACKWARD ? s.value : s.half ? s.width : ln_min_i64(LN_DELTA_PIECE, s.width);
    return s;
}

static float *floats(ln_carver *carver, int64_t rows, int64_t columns) {
    return ln_carve(carver, (uint64_t)rows, (uint64_t)columns * sizeof(float));
}

void ln_delta_carve(ln_carver *carver, const ln_delta_shape *shape, ln_delta_tiles *t, ln_delta_inside *in) {
    const ln_delta_row *row = shape->row;
    const int64_t n = shape->row_stride, tokens = padded(shape->tokens), key = shape->key, value = shape->value;
    *t = (ln_delta_tiles){.query = floats(carver, tokens, key),
                          .read = floats(carver, n, key),
                          .key = floats(carver, n, key),
                          .value = floats(carver, n, value),
                          .write_key = row->a ? floats(carver, n, key) : NULL,
                          .decay = floats(carver, n, shape->channel ? key : 1),
                          .beta = floats(carver, n, 1),
                          .factor = floats(carver, n, 1),
                          .erase = row->erase ? floats(carver, n, key) : NULL,
                          .write = row->write ? floats(carver, n, value) : NULL,
                          .other = row->direction ? floats(carver, n, key) : NULL,
                          .norm = floats(carver, 3, n)};
    *in = (ln_delta_inside){.read_key = floats(carver, n, n),
                            .query_key = floats(carver, tokens, n),
                            .read_write = row->a ? floats(carver, n, n) : NULL,
                            .query_write = row->a ? floats(carver, tokens, n) : NULL,
                            .left = floats(carver, n + tokens, key),
                            .key_after = floats(carver, n, key),
                            .write_after = row->a ? floats(carver, n, key) : NULL,
                            .forget = floats(carver, 1, key),
                            .after = floats(carver, 1, n),
                            .before = floats(carver, 1, n),
                            .upto = floats(carver, 1, n),
                            .scale = floats(carver, 1, n)};
    ln_delta_carve_bf16(carver, shape, &in->half);
    if (!shape->channel) return;
    in->read_in = floats(carver, n, key);
    in->query_in = floats(carver, n, key);
    in->block = floats(carver, n / BLOCK, key);
    in->scratch = floats(carver, BLOCK, key);
}

/* ---- loading ---- */

typedef struct place {
    const ln_mixer_call *call;
    int64_t head, sequence, step, tokens;
} place;

/* Rows of `columns`, `stride` apart, zeros between. */
static void load(const place *at, int input, int64_t rows, int64_t columns, int64_t stride, float *tile) {
    ln_mixer_load(at->call, input - 1, at->head, at->sequence, at->step, at->tokens, tile);
    if (columns == stride) return;
    for (int64_t i = rows - 1; i >= 0; i--) {
        memmove(tile + i * stride, tile + i * columns, (size_t)columns * sizeof *tile);
        memset(tile + i * stride + columns, 0, (size_t)(stride - columns) * sizeof *tile);
    }
}

static float inverse_length(const float *x, int64_t stride) {
    float part[BLOCK] = {0}, sum = 0;
    for (int64_t c = 0; c < stride; c += BLOCK)
        for (int64_t l = 0; l < BLOCK; l++) part[l] += x[c + l] * x[c + l];
    for (int l = 0; l < BLOCK; l++) sum += part[l];
    return 1 / sqrtf(sum + 1e-6f);
}

static void normalise(const ln_mixer_call *call, float *x, float *norm, int64_t rows, int64_t stride) {
    if (!call->settings->normalise_keys) return;
    for (int64_t i = 0; i < rows; i++) norm[i] = inverse_length(x + i * stride, stride);
    call->kernels->delta.multiply(x, x, NULL, 0, norm, rows, stride);
}

static void load_decay(const place *at, const ln_delta_shape *shape, ln_delta_tiles *t) {
    if (!shape->row->decay) {
        for (int64_t i = 0; i < t->rows; i++) t->decay[i] = 1;
        return;
    }
    const ln_kernels *k = at->call->kernels;
    const int64_t columns = shape->channel ? at->call->settings->key_size : 1, stride = shape->channel ? shape->key : 1;
    load(at, shape->row->decay, t->tokens, columns, stride, t->decay);
    k->vector.exponential(t->decay, t->decay, 0, t->tokens * stride);
    for (int64_t i = t->rows - 1; i >= 0 && shape->micro > 1; i--)
        t->decay[i] = i % shape->micro ? 1 : t->decay[i / shape->micro];
}

/* read and value of the rows that erase along what they write. */
static void make_read(const ln_mixer_call *call, const ln_delta_shape *shape, ln_delta_tiles *t) {
    const ln_delta_kernels *k = &call->kernels->delta;
    const ln_delta_row *row = shape->row;
    const bool decayed = row->decay && !row->undecayed;
    for (int64_t i = 0; i < t->rows; i++) {
        t->factor[i] = -(row->beta ? t->beta[i] : 1);
        if (decayed && !shape->channel) t->factor[i] *= t->decay[i];
    }
    if (row->beta) k->multiply(t->value, t->value, NULL, 0, t->beta, t->rows, shape->value);
    if (t->write) k->multiply(t->value, t->value, t->write, shape->value, NULL, t->rows, shape->value);
    if (ln_delta_plain(shape, t->rows)) return;
    const float *by = decayed && shape->channel ? t->decay : NULL;
    k->multiply(t->read, t->direction, by, shape->key, t->factor, t->rows, shape->key);
    if (t->erase) k->multiply(t->read, t->read, t->erase, shape->key, NULL, t->rows, shape->key);
}

void ln_delta_load(const ln_mixer_call *call, const ln_delta_shape *shape, int64_t head, int64_t sequence, int64_t step,
                   int64_t tokens, float scale, ln_delta_tiles *t) {
    const place at = {call, head, sequence, step, tokens};
    const ln_delta_row *row = shape->row;
    const int64_t n = t->rows = tokens * shape->micro, keys = call->settings->key_size,
                  values = call->settings->value_size, key = shape->key, value = shape->value;
    float *const main_key = row->a ? t->write_key : t->key;
    t->tokens = tokens;
    load(&at, row->query, tokens, keys, key, t->query);
    load(&at, row->key, n, keys, key, main_key);
    load(&at, row->value, n, values, value, t->value);
    load_decay(&at, shape, t);
    normalise(call, t->query, t->norm, tokens, key);
    normalise(call, main_key, t->norm + shape->row_stride, n, key);
    const bool scaled = scale != 1 && !ln_delta_plain(shape, n);
    for (int64_t i = 0; i < tokens && scaled; i++) t->factor[i] = scale;
    if (scaled) call->kernels->delta.multiply(t->query, t->query, NULL, 0, t->factor, tokens, key);
    if (row->a) {
        load(&at, row->a, n, keys, key, t->read);
        load(&at, row->b, n, keys, key, t->key);
        return;
    }
    t->direction = t->key;
    if (row->direction && ln_mixer_has(call, row->direction - 1)) {
        t->direction = t->other;
        load(&at, row->direction, n, keys, key, t->other);
        normalise(call, t->other, t->norm + 2 * shape->row_stride, n, key);
    }
    if (row->beta) load(&at, row->beta, n, 1, 1, t->beta);
    if (row->erase) load(&at, row->erase, n, keys, key, t->erase);
    if (row->write) load(&at, row->write, n, values, value, t->write);
    make_read(call, shape, t);
}

void ln_delta_load_value(const ln_mixer_call *call, const ln_delta_shape *shape, int64_t head, int64_t sequence,
                         int64_t step, int64_t tokens, float *rows) {
    const place at = {call, head, sequence, step, tokens};
    load(&at, shape->row->value, tokens * shape->micro, call->settings->value_size, shape->value, rows);
}
