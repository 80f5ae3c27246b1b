/* Matrix products: y[t, r] = sum over c of W[r, c] x[t, c]. W stays in the file's format, row-major, mapped; x and y
 * are float32.
 *
 * Two ways through, by the number of tokens:
 *   dot    few tokens (decode): each weight row is read once, straight from the map, against activations in the form
 * the format likes (LN_FORM_*). Bound by memory bandwidth. panel  many tokens (prompt): 16 weight rows at a time are
 * unpacked into a panel in the thread's scratch, in the layout below, and one dense kernel per form multiplies it with
 * all tokens. Any format is unpacked, so the dense kernels are few.
 *
 * Panel layouts (16 rows, K columns padded with zeros to a multiple of 64):
 *   F32   float    [K][16]
 *   BF16  uint16   [K/2][16][2]      (also the layout of an AMX B tile)
 *   INT8  int8     [K/4][16][4], then float scale [K/16][16], then float minimum [K/16][16] where the format has one:
 *         w = scale * q + minimum.   (q + 128 where the kernel wants unsigned: the pack function of the kernel table
 * decides)
 *
 * Reproducible: an output is computed by one thread, and its order of additions depends on K, the format and the way
 * (dot or panel), never on the number of threads or on its place in a tile. */
#ifndef LN_KERNEL_MATMUL_H
#define LN_KERNEL_MATMUL_H

#include "base/threads.h"
#include "number/format.h"

typedef struct ln_kernels ln_kernels;

/* W: rows x columns. data of rows * row_bytes bytes; row_bytes = ln_format_bytes(type, columns). */
typedef struct ln_matrix {
    linnet_type type;
    int64_t rows, columns;
    const void *data;
} ln_matrix;

/* One product. Several that share x (q, k, v; gate, up) are given together: x is prepared once and the threads meet
 * once. */
typedef struct ln_product {
    const ln_matrix *weight;
    float *y;         /* [tokens, y_stride] */
    int64_t y_stride; /* in floats, >= rows */
} ln_product;

/* Bytes of workspace for products of at most `tokens` tokens and `columns` columns. */
uint64_t ln_matmul_workspace(const ln_kernels *kernels, int threads, int64_t tokens, int64_t columns);

/* x [tokens, x_stride]. All weights have the same number of columns. exact: activations stay float32; else they may be
 * rounded (int8 blocks of 32, bf16) where this processor multiplies those faster. workspace: 64-byte aligned. */
void ln_matmul(const ln_kernels *kernels, ln_team *team, const ln_product *products, int count, const float *x,
               int64_t x_stride, int64_t tokens, bool exact, void *workspace);

#endif
