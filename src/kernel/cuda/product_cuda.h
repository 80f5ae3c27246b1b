/* Products with the weights of a model on an NVIDIA GPU,
 *
 *     y[token][row] = sum over columns of weight[row][column] * x[token][column],
 *
 * weights bf16, Q8_0 or Q4_0, x bf16, sums float32, y float32. Or of two matrices of one shape at once, a gated unit:
 *
 *     y[token][row] = bf16(activation(gate_scale * (gate x)) * (up x)).
 *
 * Weights lie in tiles of 16 rows and 64 columns, filled up with zeros. bf16: rows one after the other. Q8_0 and Q4_0:
 * a tile's codes as the lanes of a warp hold them in a product of 16 x 8 x 16, so that each lane loads 16 bytes and the
 * warp 512 in a row; lane 4 g + c has rows g and g + 8, columns 8 c to 8 c + 7 of each 32. The scales of a tile are
 * [8 g][row g, row g + 8 of the first 32 columns; of the second] in f16.
 *
 * Two ways: few tokens (at most LN_CUDA_PRODUCT_FEW) read each weight once, straight from memory, codes as exact
 * integers in bf16; many tokens multiply tiles of bf16, to which quantised weights are rounded first, a slice of rows
 * at a time. */
#ifndef LN_KERNEL_CUDA_PRODUCT_H
#define LN_KERNEL_CUDA_PRODUCT_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ln_cuda_weight_kind { LN_CUDA_WEIGHT_BF16, LN_CUDA_WEIGHT_Q8_0, LN_CUDA_WEIGHT_Q4_0 } ln_cuda_weight_kind;
/* What rows of a file may be: blocks as GGUF has them. */
typedef enum ln_cuda_raw_kind {
    LN_CUDA_RAW_F32,
    LN_CUDA_RAW_F16,
    LN_CUDA_RAW_BF16,
    LN_CUDA_RAW_Q8_0,
    LN_CUDA_RAW_Q4_0
} ln_cuda_raw_kind;

enum {
    LN_CUDA_TILE_ROWS = 16,
    LN_CUDA_TILE_COLUMNS = 64,
    LN_CUDA_PRODUCT_FEW = 16,
    LN_CUDA_PRODUCT_MOST = 3,      /* matrices that share x */
    LN_CUDA_SLICE_BYTES = 64 << 20 /* of quantised weights rounded to bf16 at once */
};

typedef struct ln_cuda_weight {
    ln_cuda_weight_kind kind;
    int64_t rows, columns;
    void *codes, *scales; /* on the device, aligned to 256; scales NULL: bf16 */
} ln_cuda_weight;

/* Columns filled up to whole tiles. */
int64_t ln_cuda_padded(int64_t columns);
/* Bytes of a weight, a multiple of 256; scales: where they begin. */
int64_t ln_cuda_weight_bytes(ln_cuda_weight_kind kind, int64_t rows, int64_t columns, int64_t *scales);
/* Puts rows first_row .. first_row + rows - 1 from `raw` on the device, aligned to 16, into the weight; first_row is a
 * multiple of 16, and so is rows, but for the last. */
ln_cuda_code ln_cuda_weight_place(const ln_cuda_weight *weight, ln_cuda_raw_kind kind, const void *raw,
                                  int64_t first_row, int64_t rows, void *stream);

typedef enum ln_cuda_activation { LN_CUDA_SILU, LN_CUDA_GELU_TANH } ln_cuda_activation;

/* x in 16 bits a block of 32 columns, as few tokens are multiplied with codes: x = step (256 high + low). */
typedef struct ln_cuda_digits {
    void *high; /* [tokens][high, low][padded columns], of each 64 columns those of lane c first: 8 c .., 32 + 8 c .. */
    float *step; /* [tokens][padded columns / 32] */
} ln_cuda_digits;

struct ln_cuda_rows;

typedef struct ln_cuda_product {
    int count;                                   /* matrices that share x, of the same kind and columns */
    ln_cuda_weight weight[LN_CUDA_PRODUCT_MOST]; /* gated: gate, up */
    float *y[LN_CUDA_PRODUCT_MOST];              /* [tokens, stride]; gated: y[0] and y[1] are room for many tokens */
    int64_t stride[LN_CUDA_PRODUCT_MOST];
    const void *x; /* bf16 [tokens, x_stride], zeros (or what the weights' zeros make such) up to whole tiles */
    int64_t x_stride, tokens;
    ln_cuda_digits digits; /* of x, where somebody made them already; high NULL: made in the workspace */
    /* NULL, or of one token: x is h of these rows, which are finished first (row_work_cuda.h), by each block for
     * itself. rows->finished is written in the place of rows->x, h where it is not NULL, digits are not. See
     * ln_cuda_product_finishes. */
    const struct ln_cuda_rows *rows;
    bool gated;
    ln_cuda_activation activation;
    float gate_scale;
    void *given; /* gated: bf16 [tokens, given_stride] */
    int64_t given_stride;
} ln_cuda_product;

/* Whether a product can finish these rows: one of whole tiles, with a plain norm after it and none before. */
bool ln_cuda_product_finishes(const ln_cuda_product *product, const ln_cuda_device *device,
                              const struct ln_cuda_rows *rows);

typedef struct ln_cuda_product_plan {
    ln_cuda_device device;
    bool few, library; /* library: large products go to cuBLASLt, which was found at run time */
    int64_t workspace; /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_product_plan;

/* For products of this shape (addresses are not read); library: NULL, or what ln_cuda_library_open gave. */
ln_cuda_code ln_cuda_product_plan_make(const ln_cuda_product *product, const ln_cuda_device *device,
                                       const void *library, ln_cuda_product_plan *plan);
ln_cuda_code ln_cuda_product_run(const ln_cuda_product *product, const ln_cuda_product_plan *plan, void *library,
                                 void *workspace, void *stream);

/* cuBLASLt, loaded when asked for; NULL: it is not there, and `why` says what was looked for. */
void *ln_cuda_library_open(char why[LN_CUDA_WHY]);
void ln_cuda_library_close(void *library);

#ifdef __cplusplus
}
#endif
#endif
