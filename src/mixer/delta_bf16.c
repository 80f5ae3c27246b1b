/* Owns: the chunk of the delta core by products of bf16 (kernel/tile.h): those with the state, with the solved rows,
 * and of keys with each other where a token has one decay. Decays, the triangular solve and all sums are float32. */
#include <string.h>

#include "mixer/delta.h"
#include "number/format.h"

enum { BLOCK = LN_DELTA_BLOCK, DEPTH = 32 };

static int64_t deep(int64_t k) {
    return ln_tile_whole(k, DEPTH);
}

static uint16_t *halves(ln_carver *carver, int64_t rows, int64_t columns) {
    return ln_carve(carver, (uint64_t)rows, (uint64_t)columns * sizeof(uint16_t));
}

void ln_delta_carve_bf16(ln_carver *carver, const ln_delta_shape *shape, ln_delta_half *h) {
    *h = (ln_delta_half){0};
    if (!shape->half) return;
    const int64_t n = shape->row_stride, m = ln_tile_whole(shape->tokens, BLOCK), key = deep(shape->key);
    const bool second = shape->row->a != 0;
    h->left = halves(carver, n + m, key);
    h->keys = ln_carve(carver, (uint64_t)(key / 2), (uint64_t)n * sizeof(uint32_t));
    h->query_key = halves(carver, m, deep(n));
    h->key_after = halves(carver, shape->key, deep(n));
    h->state = ln_carve(carver, (uint64_t)(key / 2), (uint64_t)shape->piece * sizeof(uint32_t));
    h->y = ln_carve(carver, (uint64_t)(deep(n) / 2), (uint64_t)shape->piece * sizeof(uint32_t));
    if (!second) return;
    h->read_write = halves(carver, n, deep(n));
    h->query_write = halves(carver, m, deep(n));
    h->write_after = halves(carver, shape->key, deep(n));
    h->value = ln_carve(carver, (uint64_t)(deep(n) / 2), (uint64_t)shape->piece * sizeof(uint32_t));
}

void ln_delta_pairs_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                         ln_delta_inside *in) {
    const ln_tile_bf16 *p = &call->kernels->tile.bf16;
    const ln_delta_half *h = &in->half;
    const int64_t keys = call->settings->key_size, key = deep(shape->key), stride = shape->row_stride, n = t->rows;
    uint16_t *query = h->left + stride * key;
    p->rows(h->left, key, t->direction, shape->key, n, keys);
    p->rows(query, key, t->query, shape->key, t->tokens, keys);
    p->pairs_turned(h->keys, stride, t->key, shape->key, keys, n);
    p->product(in->read_key, stride, h->left, key, h->keys, stride, n, n, keys, false, LN_TILE_BELOW);
    call->kernels->delta.multiply(in->read_key, in->read_key, NULL, 0, t->factor, n, stride);
    p->product(in->query_key, stride, query, key, h->keys, stride, t->tokens, n, keys, false,
               shape->micro == 1 ? LN_TILE_BELOW : LN_TILE_WHOLE);
    for (int64_t i = 0; i < t->tokens; i++) in->scale[i] = call->settings->scale;
    call->kernels->delta.multiply(in->query_key, in->query_key, NULL, 0, in->scale, t->tokens, stride);
}

void ln_delta_prepare_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                           ln_delta_inside *in) {
    const ln_tile_bf16 *p = &call->kernels->tile.bf16;
    const ln_delta_half *h = &in->half;
    const int64_t keys = call->settings->key_size, key = deep(shape->key), stride = shape->row_stride, n = t->rows,
                  width = deep(stride);
    p->rows(h->query_key, width, in->query_key, stride, t->tokens, n);
    if (shape->plain) {
        for (int64_t i = 0; i < n; i++) in->before[i] *= t->factor[i];
        for (int64_t i = 0; i < t->tokens; i++) in->upto[i] *= call->settings->scale;
        p->rows_turned(h->key_after, width, t->key, shape->key, in->after, keys, n);
        return;
    }
    p->rows(h->left, key, in->left, shape->key, n, keys);
    p->rows(h->left + stride * key, key, in->left + n * shape->key, shape->key, t->tokens, keys);
    p->rows_turned(h->key_after, width, in->key_after, shape->key, NULL, keys, n);
    if (!t->write_key) return;
    p->rows(h->read_write, width, in->read_write, stride, n, n);
    p->rows(h->query_write, width, in->query_write, stride, t->tokens, n);
    p->rows_turned(h->write_after, width, in->write_after, shape->key, NULL, keys, n);
}

/* What rounding to bf16 lost: where nothing decays, the state would never forget it. */
static void leave_rounding(float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] -= ln_bf16_float(ln_float_bf16(y[i]));
}

const float *ln_delta_pass_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *t,
                                const ln_delta_inside *in, int64_t column, float *state, float *y) {
    const ln_tile_bf16 *p = &call->kernels->tile.bf16;
    const ln_delta_half *h = &in->half;
    const int64_t keys = call->settings->key_size, key = deep(shape->key), stride = shape->row_stride, n = t->rows,
                  width = deep(stride), piece = shape->piece,
                  some = shape->value - column < piece ? shape->value - column : piece;
    const float *value = t->value + column;
    const ln_delta_kernels *k = &call->kernels->delta;
    float *output = y + stride * piece;
    p->pairs(h->state, piece, state, piece, keys, some);
    p->product(y, piece, h->left, key, h->state, piece, stride + t->tokens, some, keys, false, LN_TILE_WHOLE);
    if (shape->plain) {
        k->multiply(y, y, NULL, 0, in->before, n, piece);
        k->multiply(output, output, NULL, 0, in->upto, t->tokens, piece);
    }
    if (t->write_key) {
        p->pairs(h->value, piece, value, shape->value, n, some);
        p->product(y, piece, h->read_write, width, h->value, piece, n, some, n, true, LN_TILE_LOWER);
        p->product(output, piece, h->query_write, width, h->value, piece, t->tokens, some, n, true, LN_TILE_LOWER);
    } else {
        for (int64_t i = 0; i < n; i++) call->kernels->vector.add(y + i * piece, value + i * shape->value, some);
    }
    ln_delta_substitute(call->kernels, y, piece, in->read_key, stride, n, some);
    p->pairs(h->y, piece, y, piece, n, some);
    p->product(output, piece, h->query_key, width, h->y, piece, t->tokens, some, n, true,
               shape->micro == 1 ? LN_TILE_LOWER : LN_TILE_WHOLE);
    k->multiply(state, state, NULL, 0, in->forget, keys, piece);
    p->product(state, piece, h->key_after, width, h->y, piece, keys, some, n, true, LN_TILE_WHOLE);
    if (t->write_key)
        p->product(state, piece, h->write_after, width, h->value, piece, keys, some, n, true, LN_TILE_WHOLE);
    if (!shape->row->decay) {
        leave_rounding(y, n * piece);
        p->pairs(h->y, piece, y, piece, n, some);
        p->product(state, piece, h->key_after, width, h->y, piece, keys, some, n, true, LN_TILE_WHOLE);
    }
    return output;
}
