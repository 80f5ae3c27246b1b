/* Owns: chunks with a decay of each channel. A chunk goes by blocks of 16 tokens:
 *
 *     w[i, j] = prefix[i] (whole blocks between them) suffix[j]        of tokens in different blocks
 *     w[i, j] = factors[j + 1] .. factors[i]                           inside a block (kernel/tile.h)
 *
 * Writers start decayed to their block's end and move on a block at a time as readers' blocks are reached; gradients of
 * writers go the same way back. */
#include "mixer/outer_inside.h"

#include "base/checked.h"

enum { BLOCK = LN_TILE_BLOCK };

void ln_outer_channel_gates(ln_outer_work *w) {
    ln_outer_gates *g = &w->gates;
    for (int64_t r = 0; r < w->tile.count; r += BLOCK)
        w->kernels->block_decays(g->factors + r * g->stride, g->prefix + r * g->stride, g->suffix + r * g->stride,
                                 g->blocks + r / BLOCK * g->stride, w->tile.decay + r * g->stride, g->stride,
                                 ln_min_i64(BLOCK, w->tile.count - r), g->channels, w->tile.row->before);
    for (int64_t c = 0; c < g->channels; c++) {
        float product = 1;
        for (int64_t r = 0; r < w->tile.count; r += BLOCK) product *= g->blocks[r / BLOCK * g->stride + c];
        g->ends[c] = product;
    }
}

void ln_outer_channel_in(ln_outer_work *w, float *in, const float *x) {
    const ln_outer_gates *g = &w->gates;
    w->kernels->multiply(in, g->stride, x, g->stride, g->prefix, g->stride, w->tile.count, g->channels);
}

void ln_outer_channel_since(ln_outer_work *w, float *in, float scale) {
    const ln_outer_gates *g = &w->gates;
    for (int64_t c = 0; c < g->channels; c++) w->running[c] = scale;
    for (int64_t r = 0; r < w->tile.count; r += BLOCK) {
        w->kernels->scale_columns(in + r * g->stride, g->stride, in + r * g->stride, g->stride, w->running,
                                  ln_min_i64(BLOCK, w->tile.count - r), g->channels);
        w->kernels->multiply(w->running, 0, w->running, 0, g->blocks + r / BLOCK * g->stride, 0, 1, g->channels);
    }
}

static void begin_out(const ln_outer_work *w, float *out, const float *y) {
    const ln_outer_gates *g = &w->gates;
    w->kernels->multiply(out, g->stride, y, g->stride, g->suffix, g->stride, w->tile.count, g->channels);
}

/* Rows before r, decayed to there, or gradients of such, over the block at r. */
static void pass_block(const ln_outer_work *w, float *rows, int64_t r) {
    const ln_outer_gates *g = &w->gates;
    w->kernels->scale_columns(rows, g->stride, rows, g->stride, g->blocks + r / BLOCK * g->stride, r, g->channels);
}

void ln_outer_channel_out(ln_outer_work *w, float *out, const float *y) {
    begin_out(w, out, y);
    for (int64_t r = BLOCK; r < w->tile.count; r += BLOCK) pass_block(w, out, r);
}

void ln_outer_channel_scores(ln_outer_work *w, float *a, const float *x, const float *in, const float *y, float *out) {
    const ln_outer_gates *g = &w->gates;
    begin_out(w, out, y);
    for (int64_t r = 0; r < w->tile.count; r += BLOCK) {
        const int64_t m = ln_min_i64(BLOCK, w->tile.count - r), at = r * g->stride;
        float *row = a + r * w->chunk;
        if (r) w->kernels->product_tb(row, w->chunk, in + at, g->stride, out, g->stride, m, r, g->channels, false);
        w->kernels->block_scores(row + r, w->chunk, x + at, y + at, g->factors + at, g->stride, m, g->channels,
                                 w->tile.row->before);
        if (r) pass_block(w, out, r);
    }
}

void ln_outer_channel_read(ln_outer_work *w, float *z, const float *a, const float *y, float *out) {
    const ln_outer_gates *g = &w->gates;
    const ln_tile_kernels *k = w->kernels;
    begin_out(w, out, y);
    for (int64_t r = 0; r < w->tile.count; r += BLOCK) {
        const int64_t m = ln_min_i64(BLOCK, w->tile.count - r), at = r * g->stride;
        const float *row = a + r * w->chunk;
        if (r) {
            k->product(w->room, g->stride, row, w->chunk, out, g->stride, m, g->channels, r, false);
            k->multiply(w->room, g->stride, w->room, g->stride, g->prefix + at, g->stride, m, g->channels);
            for (int64_t i = 0; i < m; i++)
                w->vector->add(z + at + i * g->stride, w->room + i * g->stride, g->channels);
        }
        k->block_read(z + at, g->stride, row + r, w->chunk, y + at, g->factors + at, g->stride, m, g->channels,
                      w->tile.row->before);
        if (r) pass_block(w, out, r);
    }
}

void ln_outer_channel_write(ln_outer_work *w, float *z, const float *a, const float *x, const float *in) {
    const ln_outer_gates *g = &w->gates;
    for (int64_t r = (w->tile.count - 1) / BLOCK * BLOCK; r >= 0; r -= BLOCK) {
        const int64_t m = ln_min_i64(BLOCK, w->tile.count - r), at = r * g->stride;
        const float *row = a + r * w->chunk;
        w->kernels->multiply(z + at, g->stride, z + at, g->stride, g->suffix + at, g->stride, m, g->channels);
        w->kernels->block_write(z + at, g->stride, row + r, w->chunk, x + at, g->factors + at, g->stride, m,
                                g->channels, w->tile.row->before);
        if (r == 0) break;
        pass_block(w, z, r);
        w->kernels->product_ta(z, g->stride, row, w->chunk, in + at, g->stride, r, g->channels, m, true);
    }
}
