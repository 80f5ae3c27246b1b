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

/* Queries, for what is to be found out of them later: row position % rows of `kept` [rows][elements] becomes the one
 * query [elements] of a step; bf16, elements a multiple of 8; position on the device. */
ln_cuda_code ln_cuda_lanes_keep(void *kept, int64_t rows, int64_t elements, const void *query, const int32_t *position,
                                void *stream);

/* What some queries of a layer gave to each key:
 *
 *     weight(row, key) = exp(score(row, key) - log-sum-exp(row)),   score as in decode_cuda.h,
 *
 * summed over the rows of a lane's group and over the queries, or the most of it. The queries are those of the last
 * `tokens` keys of each lane, and see keys up to their own. */
typedef struct ln_cuda_lane_sums {
    ln_cuda_lane_pages pages;
    const int32_t *page_table; /* [lanes][table_stride] */
    int64_t table_stride;
    const int32_t *lengths; /* [lanes] */
    int64_t lanes, group, tokens;
    const void *query;  /* bf16: of lane l, token t and head g of the group in row (first + t) % rows, from element */
    int64_t row_stride; /* (l * group + g) * key_size on */
    int64_t first, rows;
    float scale, soft_cap; /* soft_cap 0: none */
    bool each, most;       /* each: a token's sums apart; most: maxima */
    float *log_sum_exp;    /* [lanes][tokens * group]: workspace */
    float *sums; /* [each ? tokens : 1][lanes][stride]; zeros where a lane has no key. NULL: log-sum-exps alone */
    int64_t stride;
} ln_cuda_lane_sums;
ln_cuda_code ln_cuda_lanes_sums(const ln_cuda_lane_sums *of, void *stream);

/* Pages first .. first + count - 1 of a lane, or of a head of a sequence, as the CPU has them (kernel/attend.h): those
 * of plain formats in their own type, those of codes in float32. */
typedef struct ln_cuda_lane_fetch {
    ln_cuda_lane_pages pages;
    const int32_t *page_table; /* of the lane */
    int64_t first, count;
    bool keys, values;             /* which are wanted */
    int64_t page_bytes, values_at; /* of a page of the CPU */
    void *to;
} ln_cuda_lane_fetch;
ln_cuda_code ln_cuda_lanes_fetch(const ln_cuda_lane_fetch *of, void *stream);
/* And back: `to` is where they come from. Codes are rounded as decode's append rounds them, bit for bit the same where
 * they were fetched. */
ln_cuda_code ln_cuda_lanes_store(const ln_cuda_lane_fetch *of, void *stream);

#ifdef __cplusplus
}
#endif
#endif
