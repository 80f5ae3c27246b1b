/* Matrix products: y[t, r] = sum over c of W[r, c] x[t, c]. W stays in the file's format, row-major, mapped; x and y
 * are float32.
 *
 * Two ways through, by the number of tokens:
 *   dot    few tokens (decode): each weight row is read once, straight from the map, against activations in the form
 *          the format likes (LN_FORM_*). Bound by memory bandwidth.
 *   panel  many tokens (prompt): some weight rows and columns at a time are unpacked into a panel that stays in the
 *          core's cache, in the layout below, and one dense kernel a form multiplies it with all tokens. Any format is
 *          unpacked, so the dense kernels are few.
 *
 * A panel is a row of strips; a strip is 16 weight rows, its K columns padded to a multiple of 64 (with what adds
 * nothing):
 *   F32   float    [K][16]
 *   BF16  uint16   [K/2][16][2]      (also the layout of an AMX B tile)
 *   INT8  uint8    [K/4][16][4], then float scale [K/G][16], then float minimum [K/G][16] where the format has one:
 *         w = scale * q + minimum, G = ln_panel_group(type). A format without minimum holds q + an offset of its own.
 *
 * Reproducible: an output is computed by one thread, and its order of additions depends on K, the format and the way
 * (dot or panel), never on the number of threads, on the other tokens of the call or on its place in a tile. */
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

/* A part of a larger product, with the bits of the whole. */
typedef struct ln_matmul_part {
    int64_t tokens; /* of the whole, which choose the way; 0: those of the call */
    /* Columns of the weights that x holds (columns 0: all), by the panel way alone: `column` is a multiple of
     * ln_matmul_unit, and what they give is added to y where it is not 0. */
    int64_t column, columns;
} ln_matmul_part;

/* Bytes of workspace for products of at most `tokens` tokens and `columns` columns, whatever the weights and x. */
uint64_t ln_matmul_workspace(const ln_kernels *kernels, int threads, int64_t tokens, int64_t columns);
/* The same for weights of one type, by the panel way or by the dot way, and an x that is aligned to 64 bytes, its
 * stride a multiple of 16. Products of several types take the largest. */
uint64_t ln_matmul_workspace_of(const ln_kernels *kernels, int threads, linnet_type type, bool exact, bool panel,
                                int64_t tokens, int64_t columns);
/* Columns whose sums are added up before they are added to y: parts begin and end at multiples. A power of two. */
int64_t ln_matmul_unit(const ln_kernels *kernels, linnet_type type, bool exact);

/* x [tokens, x_stride]. All weights have the same number of columns. exact: activations stay float32; else they may be
 * rounded (int8 blocks of 32, bf16) where this processor multiplies those faster. workspace: 64-byte aligned. */
void ln_matmul(const ln_kernels *kernels, ln_team *team, const ln_product *products, int count, const float *x,
               int64_t x_stride, int64_t tokens, bool exact, void *workspace);
void ln_matmul_run_part(const ln_kernels *kernels, ln_team *team, const ln_product *products, int count, const float *x,
                        int64_t x_stride, int64_t tokens, bool exact, void *workspace, const ln_matmul_part *part);

#endif
