/* Tokens from page to page: a block a token, rows of plain pages word by word; of codes, which lie in tiles
 * (decode_layout.h), four at a time, and the scales.
 *
 * Sums of weights in two passes over the keys, a thread a key, ROWS queries at a time in shared memory: log-sum-exps of
 * rows first (each thread has its own maximum and sum, joined in the threads' order), then the weights. A key's sum
 * goes over the rows in their order, so that the bits are the same in every run. */
#include "kernel/cuda/lanes_cuda.h"

#include "kernel/cuda/decode_pages.cuh"
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
        *(uint16_t *)(to + ln_cuda_scale_place(format, values, size, to_token, block)) =
            *(const uint16_t *)(from + ln_cuda_scale_place(format, values, size, from_token, block));
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

/* ---- queries ---- */

static __global__ void keep_query(uint4 *kept, int rows, int words, const uint4 *query, const int32_t *position) {
    let_next_start();
    wait_for_previous();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < words) kept[(int64_t)(*position % rows) * words + i] = query[i];
}

/* ---- sums of weights ---- */

enum { SUM_THREADS = 128, SUM_WARPS = SUM_THREADS / 32, ROWS = 8, SUM_SIZE = 576 };

/* Values 8 i .. 8 i + 7 of a token. */
template <int FORMAT>
static __device__ __forceinline__ void load_token(float (&x)[8], const ln_cuda_lane_pages &pages, int page, int place,
                                                  int at, bool values) {
    const ln_cuda_page_part &part = values ? pages.value : pages.key;
    const int size = (int)(values ? pages.value_size : pages.key_size);
    if constexpr (page_codes<FORMAT>::plain) {
        const char *row = (const char *)part.data + page * part.page_stride + place * part.token_stride;
        load_eight(x, row, at, FORMAT == LN_CUDA_PAGE_F16 ? LN_CUDA_ELEMENT_F16 : LN_CUDA_ELEMENT_BF16);
    } else {
        constexpr int bits = page_codes<FORMAT>::bits;
        const ln_cuda_page_format format = (ln_cuda_page_format)FORMAT;
        const char *tile = tile_of(pages, part, page, place, size);
        const int token = place % LN_CUDA_TILE;
        const uint32_t scale = *(const uint16_t *)(tile + ln_cuda_scale_place(format, values, size, token, at / 32));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int bit;
            const int from = ln_cuda_code_place(format, values, size, token, at + i, &bit);
            x[i] = decoded<FORMAT>((uint32_t)(uint8_t)tile[from] >> bit & ((1u << bits) - 1), scale);
        }
    }
}

/* Rows row .. row + ROWS - 1 of a lane as float32; zeros behind the last. */
static __device__ __forceinline__ void load_rows(const ln_cuda_lane_sums &run, float (&query)[ROWS][SUM_SIZE], int lane,
                                                 int row, int rows) {
    const int size = (int)run.pages.key_size, group = (int)run.group;
    for (int i = threadIdx.x; i < ROWS * size; i += SUM_THREADS) {
        const int r = row + i / size, head = lane * group + r % group;
        const int64_t from = (run.first + r / group) % run.rows * run.row_stride + (int64_t)head * size + i % size;
        query[i / size][i % size] = r < rows ? __bfloat162float(((const __nv_bfloat16 *)run.query)[from]) : 0.0f;
    }
}

template <int FORMAT>
static __device__ __forceinline__ void score_key(const ln_cuda_lane_sums &run, const float (&query)[ROWS][SUM_SIZE],
                                                 const int32_t *table, int key, float (&score)[ROWS]) {
    const int size = (int)run.pages.key_size, tokens = (int)run.pages.page_tokens;
    const int page = table[key / tokens], place = key % tokens;
#pragma unroll
    for (int r = 0; r < ROWS; r++) score[r] = 0;
    for (int at = 0; at < size; at += 8) {
        float x[8];
        load_token<FORMAT>(x, run.pages, page, place, at, false);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < 8; i++) score[r] += query[r][at + i] * x[i];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        score[r] *= run.scale;
        if (run.soft_cap > 0) score[r] = run.soft_cap * tanhf(score[r] / run.soft_cap);
    }
}

static __device__ __forceinline__ void join(float &most, float &sum, float other_most, float other_sum) {
    const float now = fmaxf(most, other_most);
    const float keep = most > -CUDART_INF_F ? expf(most - now) : 0.0f;
    const float add = other_most > -CUDART_INF_F ? expf(other_most - now) : 0.0f;
    sum = keep * sum + add * other_sum;
    most = now;
}

template <int FORMAT>
static __global__ void __launch_bounds__(SUM_THREADS) row_sums(const __grid_constant__ ln_cuda_lane_sums run) {
    __shared__ float query[ROWS][SUM_SIZE], mosts[SUM_WARPS][ROWS], totals[SUM_WARPS][ROWS];
    let_next_start();
    wait_for_previous();
    const int lane = blockIdx.y, group = (int)run.group, rows = (int)run.tokens * group, row = (int)blockIdx.x * ROWS;
    const int first = run.lengths[lane] - (int)run.tokens + 1; /* keys that token 0 sees */
    const int32_t *table = run.page_table + lane * run.table_stride;
    load_rows(run, query, lane, row, rows);
    __syncthreads();
    float most[ROWS], sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) most[r] = -CUDART_INF_F, sum[r] = 0;
    const int last = min(row + ROWS, rows) - 1, seen = first + last / group;
    for (int key = threadIdx.x; key < seen; key += SUM_THREADS) {
        float score[ROWS];
        score_key<FORMAT>(run, query, table, key, score);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (key < first + (row + r) / group) join(most[r], sum[r], score[r], 1.0f);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        for (int step = 16; step; step /= 2) {
            const float other_most = __shfl_xor_sync(~0u, most[r], step), other = __shfl_xor_sync(~0u, sum[r], step);
            join(most[r], sum[r], other_most, other);
        }
        if (threadIdx.x % 32 == 0) mosts[threadIdx.x / 32][r] = most[r], totals[threadIdx.x / 32][r] = sum[r];
    }
    __syncthreads();
    if (threadIdx.x >= ROWS || row + (int)threadIdx.x >= rows) return;
    float largest = mosts[0][threadIdx.x], total = totals[0][threadIdx.x];
    for (int w = 1; w < SUM_WARPS; w++) join(largest, total, mosts[w][threadIdx.x], totals[w][threadIdx.x]);
    run.log_sum_exp[(int64_t)lane * rows + row + threadIdx.x] = largest + logf(total);
}

template <int FORMAT>
static __global__ void __launch_bounds__(SUM_THREADS) key_sums(const __grid_constant__ ln_cuda_lane_sums run) {
    __shared__ float query[ROWS][SUM_SIZE], lse[ROWS];
    let_next_start();
    wait_for_previous();
    const int lane = blockIdx.y, group = (int)run.group, rows = (int)run.tokens * group;
    const int key = (int)blockIdx.x * SUM_THREADS + threadIdx.x, length = run.lengths[lane];
    const int first = length - (int)run.tokens + 1;
    const int from = run.each ? (int)blockIdx.z * group : 0, to = run.each ? from + group : rows;
    const int32_t *table = run.page_table + lane * run.table_stride;
    float given = 0;
    for (int row = from; row < to; row += ROWS) {
        __syncthreads();
        load_rows(run, query, lane, row, to);
        if (threadIdx.x < ROWS)
            lse[threadIdx.x] =
                row + (int)threadIdx.x < to ? run.log_sum_exp[(int64_t)lane * rows + row + threadIdx.x] : 0.0f;
        __syncthreads();
        if (key >= length) continue;
        float score[ROWS];
        score_key<FORMAT>(run, query, table, key, score);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (row + r >= to || key >= first + (row + r) / group) continue;
            const float weight = expf(score[r] - lse[r]), part = weight > 0 ? fminf(weight, 1.0f) : 0.0f;
            given = run.most ? fmaxf(given, part) : given + part;
        }
    }
    if (key < run.stride) run.sums[((int64_t)blockIdx.z * run.lanes + lane) * run.stride + key] = given;
}

/* ---- pages for the host ---- */

/* A block for the keys or the values of a page. */
template <int FORMAT>
static __global__ void __launch_bounds__(SUM_THREADS) fetch_pages(const __grid_constant__ ln_cuda_lane_fetch run) {
    let_next_start();
    wait_for_previous();
    const bool values = blockIdx.y;
    if (values ? !run.values : !run.keys) return;
    const int tokens = (int)run.pages.page_tokens, size = (int)(values ? run.pages.value_size : run.pages.key_size);
    const int page = run.page_table[run.first + blockIdx.x];
    char *to = (char *)run.to + blockIdx.x * run.page_bytes + (values ? run.values_at : 0);
    for (int i = threadIdx.x; i < tokens * size / 8; i += SUM_THREADS) {
        const int token = i % tokens, at = i / tokens * 8;
        const int panel = at / 32, columns = min(32, size - 32 * panel);
        float x[8];
        load_token<FORMAT>(x, run.pages, page, token, at, values);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int place = values ? panel * 32 * tokens + token * columns + at % 32 + k : (at + k) * tokens + token;
            if constexpr (FORMAT == LN_CUDA_PAGE_F16)
                ((__half *)to)[place] = __float2half(x[k]);
            else if constexpr (FORMAT == LN_CUDA_PAGE_BF16)
                ((__nv_bfloat16 *)to)[place] = __float2bfloat16(x[k]);
            else
                ((float *)to)[place] = x[k];
        }
    }
}

/* Four threads for each block of 32 values of a token, as append_rows has them; of plain pages for any 32. */
template <int FORMAT>
static __global__ void __launch_bounds__(SUM_THREADS) store_pages(const __grid_constant__ ln_cuda_lane_fetch run) {
    __shared__ uint8_t codes[SUM_THREADS / 4][32];
    let_next_start();
    wait_for_previous();
    const bool values = blockIdx.y;
    const ln_cuda_page_part &part = values ? run.pages.value : run.pages.key;
    const int tokens = (int)run.pages.page_tokens, size = (int)(values ? run.pages.value_size : run.pages.key_size);
    const int page = run.page_table[run.first + blockIdx.x], blocks = (size + 31) / 32, l = threadIdx.x % 4;
    const char *from = (const char *)run.to + blockIdx.x * run.page_bytes + (values ? run.values_at : 0);
    if (values ? !run.values : !run.keys) return;
    for (int first = 0; first < tokens * blocks; first += SUM_THREADS / 4) {
        const int unit = first + (int)threadIdx.x / 4, token = unit / blocks, block = unit % blocks;
        const bool inside = unit < tokens * blocks;
        const int columns = min(32, size - 32 * block);
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int column = 4 * i + l;
            const int place =
                values ? block * 32 * tokens + token * columns + column : (32 * block + column) * tokens + token;
            x[i] = 0;
            if (!inside || column >= columns) continue;
            if constexpr (FORMAT == LN_CUDA_PAGE_F16)
                x[i] = __half2float(((const __half *)from)[place]);
            else if constexpr (FORMAT == LN_CUDA_PAGE_BF16)
                x[i] = __bfloat162float(((const __nv_bfloat16 *)from)[place]);
            else
                x[i] = ((const float *)from)[place];
        }
        if constexpr (page_codes<FORMAT>::plain) {
            char *row = (char *)part.data + page * part.page_stride + token * part.token_stride;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int column = 32 * block + 4 * i + l;
                if (!inside || column >= size) continue;
                if constexpr (FORMAT == LN_CUDA_PAGE_F16)
                    ((__half *)row)[column] = __float2half(x[i]);
                else
                    ((__nv_bfloat16 *)row)[column] = __float2bfloat16(x[i]);
            }
        } else {
            uint32_t code[8];
            const uint32_t scale = encode_block<FORMAT>(x, code);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; i++) codes[threadIdx.x / 4][4 * i + l] = (uint8_t)code[i];
            __syncwarp();
            if (!inside) continue;
            const page_side side = {part, {}, size, 0, values};
            char *tile = tile_of(run.pages, part, page, token, size);
            store_codes<FORMAT>(tile, side, token % LN_CUDA_TILE, block, l, codes[threadIdx.x / 4]);
            if (l == 0)
                *(uint16_t *)(tile + ln_cuda_scale_place((ln_cuda_page_format)FORMAT, values, size,
                                                         token % LN_CUDA_TILE, block)) = (uint16_t)scale;
        }
    }
}

} // namespace ln

using namespace ln;

static bool pages_right(const ln_cuda_lane_pages *pages, int64_t plain_unit) {
    const int64_t unit = pages->format <= LN_CUDA_PAGE_F16 ? plain_unit : 32;
    return pages->key.data && pages->value.data && pages->format < LN_CUDA_PAGE_FORMATS && pages->page_tokens > 0 &&
           pages->key_size >= unit && pages->value_size >= unit && pages->key_size % unit == 0 &&
           pages->value_size % unit == 0;
}

ln_cuda_code ln_cuda_lanes_move(const ln_cuda_lane_pages *pages, const ln_cuda_lane_move *moves, int64_t count,
                                void *stream) {
    if (!pages_right(pages, 2) || count < 0 || count > INT32_MAX || (count > 0 && !moves)) return LN_CUDA_ARGUMENT;
    if (count == 0) return LN_CUDA_OK;
    return launch_early(move_tokens, dim3((unsigned)count, 2), dim3(MOVE_THREADS), 0, stream, move_run{*pages, moves});
}

ln_cuda_code ln_cuda_lanes_keep(void *kept, int64_t rows, int64_t elements, const void *query, const int32_t *position,
                                void *stream) {
    if (!kept || !query || !position || rows < 1 || elements < 8 || elements % 8 || elements > INT32_MAX)
        return LN_CUDA_ARGUMENT;
    const int words = (int)elements / 8;
    return launch_early(keep_query, dim3((unsigned)(words + 127) / 128), dim3(128), 0, stream, (uint4 *)kept, (int)rows,
                        words, (const uint4 *)query, position);
}

/* Kernels of the formats that memory under a policy has. */
#define LN_FORMATS(NAME) \
    { NAME<LN_CUDA_PAGE_BF16>, NAME<LN_CUDA_PAGE_F16>, NAME<LN_CUDA_PAGE_Q8_0>, NAME<LN_CUDA_PAGE_Q4_0> }

ln_cuda_code ln_cuda_lanes_sums(const ln_cuda_lane_sums *of, void *stream) {
    static void (*const rows[])(ln_cuda_lane_sums) = LN_FORMATS(row_sums),
                        (*const keys[])(ln_cuda_lane_sums) = LN_FORMATS(key_sums);
    if (!pages_right(&of->pages, 8) || !of->page_table || !of->lengths || of->lanes < 1 || of->lanes > 65535 ||
        of->group < 1 || of->tokens < 1 || of->tokens > 65535 || !of->query || of->rows < of->tokens ||
        !of->log_sum_exp || (of->sums && of->stride < 1))
        return LN_CUDA_ARGUMENT;
    if (of->pages.format > LN_CUDA_PAGE_Q4_0 || of->pages.key_size > SUM_SIZE) return LN_CUDA_UNSUPPORTED;
    const unsigned tiles = (unsigned)((of->tokens * of->group + ROWS - 1) / ROWS),
                   blocks = (unsigned)((of->stride + SUM_THREADS - 1) / SUM_THREADS), lanes = (unsigned)of->lanes;
    const ln_cuda_code code =
        launch_early(rows[of->pages.format], dim3(tiles, lanes), dim3(SUM_THREADS), 0, stream, *of);
    if (code || !of->sums) return code;
    return launch_early(keys[of->pages.format], dim3(blocks, lanes, of->each ? (unsigned)of->tokens : 1),
                        dim3(SUM_THREADS), 0, stream, *of);
}

static ln_cuda_code start_pages(const ln_cuda_lane_fetch *of, void (*kernel)(ln_cuda_lane_fetch), void *stream) {
    if (!pages_right(&of->pages, 8) || !of->page_table || of->first < 0 || of->count < 0 || of->count > INT32_MAX ||
        !of->to)
        return LN_CUDA_ARGUMENT;
    if (!kernel) return LN_CUDA_UNSUPPORTED;
    if (of->count == 0) return LN_CUDA_OK;
    return launch_early(kernel, dim3((unsigned)of->count, 2), dim3(SUM_THREADS), 0, stream, *of);
}

ln_cuda_code ln_cuda_lanes_fetch(const ln_cuda_lane_fetch *of, void *stream) {
    static void (*const kernels[])(ln_cuda_lane_fetch) = LN_FORMATS(fetch_pages);
    return start_pages(of, of->pages.format <= LN_CUDA_PAGE_Q4_0 ? kernels[of->pages.format] : NULL, stream);
}

ln_cuda_code ln_cuda_lanes_store(const ln_cuda_lane_fetch *of, void *stream) {
    static void (*const kernels[])(ln_cuda_lane_fetch) = LN_FORMATS(store_pages);
    return start_pages(of, of->pages.format <= LN_CUDA_PAGE_Q4_0 ? kernels[of->pages.format] : NULL, stream);
}
