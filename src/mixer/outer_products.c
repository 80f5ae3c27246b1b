/* Owns: the products of a chunk. In float32, or, where inputs are bf16 and the processor multiplies such faster, with
 * operands rounded to bf16 and sums in float32: the state itself stays float32, what is read of it is rounded. */
#include "mixer/outer_inside.h"

void ln_outer_pair(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_tile_kernels *k = w->kernels;
    ln_outer_half *h = &w->half;
    if (!h->used) {
        k->lower_tb(w->scores, w->chunk, t->query, t->key_stride, t->key, t->key_stride, t->count, t->features);
        return;
    }
    k->bf16.rows(h->query, h->depth, t->query, t->key_stride, t->count, t->features);
    k->bf16.pairs_turned(h->key_pairs, w->chunk, t->key, t->key_stride, t->features, t->count);
    k->bf16.product(w->scores, w->chunk, h->query, h->depth, h->key_pairs, w->chunk, t->count, t->count, t->features,
                    false, LN_TILE_BELOW);
}

void ln_outer_read_state(ln_outer_work *w, const float *query) {
    const ln_outer_tile *t = &w->tile;
    const ln_tile_kernels *k = w->kernels;
    const int64_t stride = t->value_stride;
    ln_outer_half *h = &w->half;
    if (h->used && query != t->query) k->bf16.rows(h->query, h->depth, query, t->key_stride, t->count, t->features);
    const ln_outer_parts parts = ln_outer_parts_of(t);
    for (int p = 0; p < parts.parts; p++) {
        const int64_t at = parts.at[p], n = parts.count[p];
        if (!h->used) {
            k->product(t->sums + at, stride, query, t->key_stride, w->state + at, stride, t->count, n, t->features,
                       false);
            continue;
        }
        k->bf16.pairs(h->state + at, stride, w->state + at, stride, t->features, n);
        k->bf16.product(t->sums + at, stride, h->query, h->depth, h->state + at, stride, t->count, n, t->features,
                        false, LN_TILE_WHOLE);
    }
}

void ln_outer_put_values(ln_outer_work *w, const float *value) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_parts parts = ln_outer_parts_of(t);
    w->value_in = value;
    for (int p = 0; w->half.used && p < parts.parts; p++)
        w->kernels->bf16.pairs(w->half.value + parts.at[p], t->value_stride, value + parts.at[p], t->value_stride,
                               t->count, parts.count[p]);
}

void ln_outer_read_values(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_tile_kernels *k = w->kernels;
    const int64_t stride = t->value_stride;
    ln_outer_half *h = &w->half;
    if (h->used) k->bf16.rows(h->scores, h->tokens, w->scores, w->chunk, t->count, t->count);
    const ln_outer_parts parts = ln_outer_parts_of(t);
    for (int p = 0; p < parts.parts; p++) {
        const int64_t at = parts.at[p], n = parts.count[p];
        if (h->used)
            k->bf16.product(t->sums + at, stride, h->scores, h->tokens, h->value + at, stride, t->count, n, t->count,
                            true, LN_TILE_LOWER);
        else
            k->lower(t->sums + at, stride, w->scores, w->chunk, w->value_in + at, stride, t->count, n, true);
    }
}

void ln_outer_write_state(ln_outer_work *w, const float *key, const float *factors) {
    const ln_outer_tile *t = &w->tile;
    const ln_tile_kernels *k = w->kernels;
    const int64_t stride = t->value_stride;
    ln_outer_half *h = &w->half;
    if (h->used) {
        k->bf16.rows_turned(h->key_turned, h->tokens, key, t->key_stride, factors, t->features, t->count);
    } else if (factors) {
        k->scale_rows(w->key_out, t->key_stride, key, t->key_stride, factors, t->count, t->features);
        key = w->key_out;
    }
    const ln_outer_parts parts = ln_outer_parts_of(t);
    for (int p = 0; p < parts.parts; p++) {
        const int64_t at = parts.at[p], n = parts.count[p];
        if (h->used)
            k->bf16.product(w->state + at, stride, h->key_turned, h->tokens, h->value + at, stride, t->features, n,
                            t->count, true, LN_TILE_WHOLE);
        else
            k->product_ta(w->state + at, stride, key, t->key_stride, w->value_in + at, stride, t->features, n, t->count,
                          true);
    }
}
