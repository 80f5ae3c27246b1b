/* Products of few tokens for compute capability 8.0 and newer: each weight is read once, and the memory decides.
 *
 * As many blocks as multiprocessors stay: each has tiles of 16 rows that lie together, its warps have a range of
 * columns each, and a warp's weights come to a ring in shared memory that is its own, far ahead and across the ends of
 * rows. Weights are the same whatever ran before, so the ring is filled before x is waited for, while the kernel before
 * this one ends.
 *
 * The weights are the left operand, tokens the columns of the right one. Which columns a product adds up is free as
 * long as both operands agree, so a lane takes 8 columns that lie together from both sides. The warps' sums are added
 * in their order. Fewer tokens than the operand has are repeated, and what they give is dropped.
 *
 * bf16: products of 16 x 8 x 16, 8 tokens at once.
 *
 * Codes: products of bytes of 16 x 8 x 32, which are exact. x is rounded to 16 bits a block of 32 columns,
 * x = step (256 high + low), and a token has two columns, one a digit: 4 tokens at once, or four blocks of one token.
 * Codes of Q4_0 are multiplied as 16 (code - 8), which a mask makes of them. An integer comes as the last bits of a
 * float32 near 1.5 2^23, where the sums began. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/product_activation.cuh"
#include "kernel/cuda/product_one.cuh"
#include "kernel/cuda/product_table.h"

namespace ln {

/* ---- sums ---- */

/* GROUPS of tokens, or 0: one token. */
template <int KIND, int GROUPS> static constexpr int few_sums = GROUPS ? GROUPS *group<KIND>::sums : group<KIND>::sums;

/* Those of all warps: [tile of rows][matrix][warp][token][row]. */
template <int KIND, int GROUPS>
static __device__ __forceinline__ void keep_sums(const few_run &run, float *to,
                                                 const float (&sum)[few_sums<KIND, GROUPS>]) {
    const int lane = threadIdx.x % 32;
    if constexpr (GROUPS == 0 && few_codes<KIND>) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float all = sum[i];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            if (lane % 4 == 0) to[lane / 4 + 8 * i] = all;
        }
    } else {
#pragma unroll
        for (int n = 0; n < (GROUPS ? GROUPS : 1); n++)
#pragma unroll
            for (int i = 0; i < group<KIND>::sums; i++) {
                const int token = n * group<KIND>::tokens + group<KIND>::token_of(i, lane);
                if (token < run.tokens) to[token * 16 + group<KIND>::row_of(i, lane)] = sum[n * group<KIND>::sums + i];
            }
    }
}
template <int KIND> static __device__ __forceinline__ float total_of(const float *sums, int outputs) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < tile<KIND>::shape::warps; warp++) total += sums[warp * outputs];
    if constexpr (few_codes<KIND>) total *= tile<KIND>::unit;
    return total;
}

/* Results of `count` tiles of rows from row_tile on; all threads. */
template <int KIND, int MATRICES>
static __device__ __forceinline__ void give_rows(const few_run &run, const float *sums, int row_tile, int count) {
    const int outputs = run.tokens * 16, stride = tile<KIND>::shape::warps * outputs;
    for (int i = threadIdx.x; i < count * outputs; i += blockDim.x) {
        const int slot = i / outputs, within = i % outputs, token = within / 16;
        const few_place place = few_locate(run, row_tile + slot);
        const int64_t row = (int64_t)place.row_tile * 16 + within % 16;
        const float *from = sums + slot * MATRICES * stride + within;
        if (row >= run.weight[place.matrix].rows) continue;
        const float total = total_of<KIND>(from, outputs);
        if constexpr (MATRICES == 2) {
            const float up = total_of<KIND>(from + stride, outputs);
            run.given[token * run.given_stride + row] =
                __float2bfloat16(activate(run.activation, run.gate_scale * total) * up);
        } else {
            run.y[place.matrix][token * run.stride[place.matrix] + row] = total;
        }
    }
}

/* The warp's columns of a tile of rows. */
template <int KIND, int GROUPS, int MATRICES>
static __device__ __forceinline__ void add_row(const few_run &run, const few_x &x, const few_single &single,
                                               few_stream<KIND, MATRICES> &next, char *ring, int *stage,
                                               float (&sum)[MATRICES][few_sums<KIND, GROUPS>]) {
    using shape = typename tile<KIND>::shape;
    const int lane = threadIdx.x % 32;
    for (int at = next.first; at < next.end; at += shape::chunk) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            tile<KIND> part[shape::chunk];
            char *from = ring + *stage;
            if (run.stages == FEW_DEEP)
                copies_wait<FEW_DEEP - 1>();
            else
                copies_wait<FEW_SHALLOW - 1>();
            __syncwarp(); /* other lanes' copies of scales too */
#pragma unroll
            for (int i = 0; i < shape::chunk; i++) read_tile<KIND>(part[i], from, i);
            uint32_t scale[shape::chunk / 2 + 1];
            if constexpr (GROUPS == 0 && few_codes<KIND>)
#pragma unroll
                for (int i = 0; i < shape::chunk / 2; i++) scale[i] = read_scale<KIND>(from, 2 * i);
            __syncwarp();
            next.fetch(run, m, from);
            if ((*stage += few_stage<KIND>) == run.stages * few_stage<KIND>) *stage = 0;
            if constexpr (GROUPS == 0 && few_codes<KIND>) {
#pragma unroll
                for (int i = 0; i < shape::chunk; i += 2) {
                    if (i > 0 && at + i >= next.end) break;
                    add_pair<KIND>(single, part[i], part[i + 1], scale[i / 2], at + i, sum[m]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < shape::chunk; i++) {
                    if (i > 0 && at + i >= next.end) break;
#pragma unroll
                    for (int n = 0; n < (GROUPS ? GROUPS : 1); n++) {
                        group<KIND> columns;
                        columns.load(run, x, n * group<KIND>::tokens, at + i, lane);
                        columns.add(part[i], sum[m] + n * group<KIND>::sums);
                    }
                }
            }
        }
        next.advance(run);
    }
}

template <int KIND, int GROUPS, int MATRICES>
static __global__ void __launch_bounds__(few_threads<KIND>, 1) product_few(const __grid_constant__ few_run run) {
    using shape = typename tile<KIND>::shape;
    static_assert(FEW_DEEP % MATRICES == 0 && FEW_SHALLOW % MATRICES == 0, "a stage is always of the same matrix");
    const int warp = threadIdx.x / 32;
    char *ring = block_memory() + warp * run.stages * few_stage<KIND>;
    char *x_room = block_memory() + shape::warps * run.stages * few_stage<KIND>;
    const int first = (int)((int64_t)blockIdx.x * run.rows / gridDim.x),
              last = (int)((int64_t)(blockIdx.x + 1) * run.rows / gridDim.x);
    few_stream<KIND, MATRICES> next = {};
    let_next_start();
    next.row = first, next.last = last;
    const int chunks = (run.tiles + shape::chunk - 1) / shape::chunk;
    next.first = warp * chunks / shape::warps * shape::chunk;
    next.end = min((warp + 1) * chunks / shape::warps * shape::chunk, run.tiles);
    if (next.first == next.end) next.row = last;
    next.open(run);
#pragma unroll 1
    for (int s = 0; s < run.stages; s += MATRICES) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++) next.fetch(run, m, ring + (s + m) * few_stage<KIND>);
        if (next.row < last) next.advance(run);
    }
    const int outputs = run.tokens * 16;
    float *sums = (float *)(x_room + run.x_bytes);
    few_x x;
    if constexpr (GROUPS == 0) {
        x = one_take<KIND>(run, x_room, sums);
    } else {
        wait_for_previous();
        x = few_take_x<KIND>(run, x_room);
    }
    few_single single = {};
    if (GROUPS == 0 && few_codes<KIND>) single = single_of(run, x_room);
    int stage = 0, slot = 0;
    for (int row = first; row < last; row++) {
        float sum[MATRICES][few_sums<KIND, GROUPS>] = {};
        add_row<KIND, GROUPS, MATRICES>(run, x, single, next, ring, &stage, sum);
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            keep_sums<KIND, GROUPS>(run, sums + ((slot * MATRICES + m) * shape::warps + warp) * outputs, sum[m]);
        if (++slot < run.slots && row + 1 < last) continue;
        __syncthreads();
        give_rows<KIND, MATRICES>(run, sums, row + 1 - slot, slot);
        if (row + 1 < last) __syncthreads(); /* the sums' room is used again */
        slot = 0;
    }
    copies_wait<0>();
}

/* ---- starting ---- */

struct few_room {
    int bytes, blocks; /* of shared memory; of the grid */
};

template <int KIND, int GROUPS>
static ln_cuda_code start_groups(const few_run &run, const few_room &room, void *stream) {
    const dim3 grid((unsigned)room.blocks), block(few_threads<KIND>);
    if (run.gated) return launch_early(product_few<KIND, GROUPS, 2>, grid, block, room.bytes, stream, run);
    return launch_early(product_few<KIND, GROUPS, 1>, grid, block, room.bytes, stream, run);
}

/* More than half of what a multiprocessor of compute capability 9.0 has, so that each has one block: a kernel that
 * starts while another ends may else find two places on some and none on others. */
enum { FEW_ALONE = 116 << 10, FEW_SUMS = 8 << 10, FEW_LEAST = 4 << 10 };

/* Where x and sums go, with a ring as deep as there is room for. false: x is read from memory. */
template <int KIND> static bool few_lay_out(few_run *run, const ln_cuda_device *device, few_room *room) {
    const int64_t limit = device->block_shared_bytes, tiles = run->tiles;
    const int64_t rows = few_codes<KIND> ? 2 * run->tokens : run->tokens, row = tiles * (few_codes<KIND> ? 64 : 128);
    const int64_t step = row % 128 ? row : row + 64;                                           /* meets all banks */
    const int64_t plain = rows * step + (few_codes<KIND> ? (run->tokens * tiles + 1) * 8 : 0); /* and a tile of zeros */
    const int64_t x = (plain + 15) / 16 * 16 + (run->finish.given ? tiles * 512 : 0);
    const int64_t slot = (1 + run->gated) * (int64_t)tile<KIND>::shape::warps * run->tokens * 64;
    const int64_t least = slot > FEW_LEAST ? slot : (int64_t)FEW_LEAST,
                  stage = tile<KIND>::shape::warps * few_stage<KIND>;
    const bool deep = FEW_DEEP * stage + x + least <= limit;
    run->x_step = (int)step;
    run->x_here = deep || FEW_SHALLOW * stage + x + least <= limit;
    run->x_bytes = run->x_here ? (int)x : 0;
    run->stages = deep || (!run->x_here && FEW_DEEP * stage + least <= limit) ? FEW_DEEP : FEW_SHALLOW;
    room->blocks = run->rows < device->multiprocessors ? run->rows : device->multiprocessors;
    const int64_t used = run->stages * stage + run->x_bytes, left = limit - used;
    const int64_t most = (run->rows + room->blocks - 1) / room->blocks,
                  fit = (left < FEW_SUMS ? left : (int64_t)FEW_SUMS) / slot;
    run->slots = (int)(fit < 1 ? 1 : fit < most ? fit : most);
    room->bytes = (int)(used + run->slots * slot);
    if (room->bytes < FEW_ALONE && FEW_ALONE <= limit) room->bytes = FEW_ALONE;
    return run->x_here;
}

/* x in digits, where it does not fit into a block's memory. */
static __global__ void split_columns(const __grid_constant__ few_run run) {
    let_next_start();
    wait_for_previous();
    split_rows(run, (char *)run.digits.high, run.tiles * 64, run.digits.step,
               (int)(blockIdx.x * blockDim.x + threadIdx.x), (int)(gridDim.x * blockDim.x));
}

template <int KIND>
static ln_cuda_code start_few(few_run run, const ln_cuda_device *device, void *workspace, void *stream) {
    const int groups = (run.tokens + group<KIND>::tokens - 1) / group<KIND>::tokens;
    few_room room;
    const bool here = few_lay_out<KIND>(&run, device, &room);
    if (run.finish.given && !here) return LN_CUDA_UNSUPPORTED;
    if (run.tokens == 1 && here) return start_groups<KIND, 0>(run, room, stream);
    if (few_codes<KIND> && !here && !run.digits.high) {
        run.digits.high = workspace;
        run.digits.step = (float *)((char *)workspace + (int64_t)run.tokens * run.tiles * 128);
        const unsigned blocks = ((unsigned)run.tiles * 8 * run.tokens + 255) / 256;
        const ln_cuda_code code = launch_early(split_columns, dim3(blocks), dim3(256), 0, stream, run);
        if (code) return code;
    }
    return groups <= 1   ? start_groups<KIND, 1>(run, room, stream)
           : groups <= 2 ? start_groups<KIND, 2>(run, room, stream)
                         : start_groups < KIND,
           few_codes<KIND> ? 4 : 2 > (run, room, stream);
}

} // namespace ln

using namespace ln;

bool ln_cuda_product_finishes(const ln_cuda_product *product, const ln_cuda_device *device, const ln_cuda_rows *rows) {
    const float one = 1;
    few_run run = {};
    few_room room;
    run.tokens = 1, run.rows = 1 << 20, run.tiles = (int)((rows->width + 63) / 64), run.gated = product->gated;
    run.finish.given = &one;
    if (product->tokens != 1 || rows->tokens != 1 || rows->width % 64 || rows->width > 1 << 16 ||
        product->weight[0].columns != rows->width || !rows->next.weight || rows->next.bias || rows->bias ||
        rows->post.weight || rows->from_norm)
        return false;
    return product->weight[0].kind == LN_CUDA_WEIGHT_BF16   ? few_lay_out<LN_CUDA_WEIGHT_BF16>(&run, device, &room)
           : product->weight[0].kind == LN_CUDA_WEIGHT_Q8_0 ? few_lay_out<LN_CUDA_WEIGHT_Q8_0>(&run, device, &room)
                                                            : few_lay_out<LN_CUDA_WEIGHT_Q4_0>(&run, device, &room);
}

ln_cuda_code ln_cuda_product_few(const ln_cuda_product *product, const ln_cuda_device *device, void *workspace,
                                 void *stream) {
    few_run run = {};
    for (int m = 0; m < product->count; m++) {
        run.weight[m] = product->weight[m];
        run.y[m] = product->y[m];
        run.stride[m] = product->stride[m];
        run.row_tiles[m] = (int)((product->weight[m].rows + 15) / 16);
        if (m == 0 || !product->gated) run.rows += run.row_tiles[m];
    }
    if (product->gated) {
        run.between[0] = (const char *)run.weight[1].codes - (const char *)run.weight[0].codes;
        run.between[1] = (const char *)run.weight[1].scales - (const char *)run.weight[0].scales;
    }
    run.x = (const __nv_bfloat16 *)product->x;
    run.given = (__nv_bfloat16 *)product->given;
    run.x_stride = product->x_stride;
    run.given_stride = product->given_stride;
    run.tokens = (int)product->tokens;
    run.tiles = (int)((product->weight[0].columns + 63) / 64);
    run.gated = product->gated;
    run.activation = product->activation;
    run.gate_scale = product->gate_scale;
    run.digits = product->digits;
    if (product->rows) {
        const ln_cuda_rows *rows = product->rows;
        run.finish = {rows->x,       rows->given, rows->next.weight,      rows->finished, (__nv_bfloat16 *)rows->h,
                      rows->epsilon, rows->keep,  rows->add * rows->scale};
    }
    switch (product->weight[0].kind) {
    case LN_CUDA_WEIGHT_BF16:
        return start_few<LN_CUDA_WEIGHT_BF16>(run, device, workspace, stream);
    case LN_CUDA_WEIGHT_Q8_0:
        return start_few<LN_CUDA_WEIGHT_Q8_0>(run, device, workspace, stream);
    case LN_CUDA_WEIGHT_Q4_0:
        return start_few<LN_CUDA_WEIGHT_Q4_0>(run, device, workspace, stream);
    }
    return LN_CUDA_UNSUPPORTED;
}
