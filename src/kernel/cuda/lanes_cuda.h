/* Memory under a policy on an NVIDIA GPU (memory/ragged.h decides, these move and measure).
 *
 * A lane, one key-value head of a layer, has pages of its own, so that lanes are what decode_cuda.h calls sequences of
 * one key-value head, each with a row of the page table and a length. */
#ifndef LN_KERNEL_CUDA_LANES_H
#define LN_KERNEL_CUDA_LANES_H

#include "kernel/cuda/decode_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All pages of one head each: strides of heads are not read. */
typedef struct ln_cuda_lane_pages {
    ln_cuda_page_format format;
    int64_t page_tokens, key_size, value_size; /* of codes: multiples of 32; else even */
    ln_cuda_page_part key, value;
} ln_cuda_lane_pages;

/* A token's key and value from one place to another, bit for bit. */
typedef struct ln_cuda_lane_move {
    int32_t to_page, to_place, from_page, from_place;
} ln_cuda_lane_move;

/* Moves [count], on the device: at once, so none may read what another writes. */
ln_cuda_code ln_cuda_lanes_move(const ln_cuda_lane_pages *pages, const ln_cuda_lane_move *moves, int64_t count,
                                void *stream);

#ifdef __cplusplus
}
#endif
#endif
