/* Tokens from page to page: a block a token, rows of plain pages word by word; of codes, which lie in tiles
 * (decode_layout.h), four at a time, and the scales. */
#include "kernel/cuda/lanes_cuda.h"

#include "kernel/cuda/decode_layout.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { MOVE_THREADS = 64 };

struct move_run {
    ln_cuda_lane_pages pages;
    const ln_cuda_lane_move *moves;
};

static __device__ __forceinline__ char *tile_of(const ln_cuda_lane_pages &pages, const ln_cuda_page_part &part,
                                                int page, int place, int size) {
    return (char *)part.data + page * part.page_stride +
           place / LN_CUDA_TILE * (int64_t)ln_cuda_tile_size(pages.format, size);
}

static __device__ __forceinline__ void move_codes(const ln_cuda_lane_pages &pages, const ln_cuda_page_part &part,
                                                  const ln_cuda_lane_move &move, int size, bool values) {
    const ln_cuda_page_format format = pages.format;
    const char *from = tile_of(pages, part, move.from_page, move.from_place, size);
    char *to = tile_of(pages, part, move.to_page, move.to_place, size);
    const int from_token = move.from_place % LN_CUDA_TILE, to_token = move.to_place % LN_CUDA_TILE;
    const int bytes = ln_cuda_page_bits(format) / 2; /* of four codes */
    for (int i = threadIdx.x; i < size / 4; i += MOVE_THREADS) {
        int bit;
        const int source = ln_cuda_code_place(format, values, size, from_token, 4 * i, &bit);
        const int target = ln_cuda_code_place(format, values, size, to_token, 4 * i, &bit);
        for (int b = 0; b < bytes; b++) to[target + b] = from[source + b];
    }
    for (int block = threadIdx.x; block < size / 32; block += MOVE_THREADS)
        *(uint16_t *)(to + ln_cuda_scale_place(format, size, to_token, block)) =
            *(const uint16_t *)(from + ln_cuda_scale_place(format, size, from_token, block));
}

static __device__ __forceinline__ void move_row(const ln_cuda_page_part &part, const ln_cuda_lane_move &move,
                                                int size) {
    const uint32_t *from = (const uint32_t *)((const char *)part.data + move.from_page * part.page_stride +
                                              move.from_place * part.token_stride);
    uint32_t *to =
        (uint32_t *)((char *)part.data + move.to_page * part.page_stride + move.to_place * part.token_stride);
    for (int i = threadIdx.x; i < size / 2; i += MOVE_THREADS) to[i] = from[i];
}

static __global__ void __launch_bounds__(MOVE_THREADS) move_tokens(const __grid_constant__ move_run run) {
    let_next_start();
    wait_for_previous();
    const ln_cuda_lane_move move = run.moves[blockIdx.x];
    const bool values = blockIdx.y;
    const ln_cuda_page_part &part = values ? run.pages.value : run.pages.key;
    const int size = (int)(values ? run.pages.value_size : run.pages.key_size);
    if (run.pages.format <= LN_CUDA_PAGE_F16)
        move_row(part, move, size);
    else
        move_codes(run.pages, part, move, size, values);
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_lanes_move(const ln_cuda_lane_pages *pages, const ln_cuda_lane_move *moves, int64_t count,
                                void *stream) {
    const int64_t unit = pages->format <= LN_CUDA_PAGE_F16 ? 2 : 32;
    if (!pages->key.data || !pages->value.data || pages->format >= LN_CUDA_PAGE_FORMATS || pages->key_size < unit ||
        pages->value_size < unit || pages->key_size % unit || pages->value_size % unit || count < 0 ||
        count > INT32_MAX || (count > 0 && !moves))
        return LN_CUDA_ARGUMENT;
    if (count == 0) return LN_CUDA_OK;
    return launch_early(move_tokens, dim3((unsigned)count, 2), dim3(MOVE_THREADS), 0, stream, move_run{*pages, moves});
}
