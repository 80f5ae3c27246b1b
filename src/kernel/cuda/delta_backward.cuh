/* What the kernels of the delta rule's backward share: what they are given, tiles in shared memory and in the
 * workspace, and products by warps.
 *
 * All tiles are made of panels of 64 rows of 64 bf16. A row is 128 bytes, whose 16-byte pieces lie in an order that
 * depends on the row (piece p of row r at p ^ r % 8), so that eight rows meet all banks and the tensor cores of
 * compute capability 9.0 read them as they are. The workspace holds panels in the same order: they are copied
 * without being looked at.
 *
 * A product of 64 rows is the work of four warps, 16 rows each; accumulators and left operands have the places told in
 * instructions.cuh, so that an accumulator, rounded, is the left operand of the next product. Right operands are tiles.
 * ENGINE says by which instructions: warp_products here, group_products of delta_backward_hopper.cuh. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_CUH

#include "kernel/cuda/delta_backward_table.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { CHUNK = LN_CUDA_DELTA_CHUNK, PANEL = 8192 /* bytes */ };

/* Floats of a chunk and head in the workspace: what the rows of its keys and queries are multiplied by. Of a decay a
 * channel, READ, WRITE and ASK are 1 and the tiles are multiplied already. */
enum {
    READ = 0,         /* norm e^gamma: of keys that read the state */
    WRITE = 64,       /* norm e^(end - gamma): of keys that write */
    ASK = 128,        /* scale norm e^gamma: of queries */
    STRENGTH = 192,   /* beta */
    GAMMA = 256,      /* logarithms to base 2 of the decays up to each token */
    KEY_NORM = 320,   /* 1 / length, or 1 */
    QUERY_NORM = 384, /* likewise */
    SOURCE = 448,     /* of one decay a token: GAMMA less the logarithm of KEY_NORM */
    END = 512,        /* e^end: one, or one a channel */
    RECORD = 640
};

static __device__ __forceinline__ int value_head(const delta_backward_run &run, int key_head, int member) {
    return run.tiled ? key_head + member * run.key_heads : key_head * run.group + member;
}
static __device__ __forceinline__ int key_head_of(const delta_backward_run &run, int head) {
    return run.tiled ? head % run.key_heads : head / run.group;
}
/* The number of a chunk and head among all. */
static __device__ __forceinline__ int64_t place_of(const delta_backward_run &run, int chunk, int head) {
    return (int64_t)chunk * run.heads + head;
}

/* ---- tiles ---- */

static __device__ __forceinline__ int tile_at(int row, int piece) {
    return piece / 8 * PANEL + row * 128 + (piece % 8 ^ row % 8) * 16;
}

/* A chunk of one head's rows of SIZE elements; zeros after its last token. */
template <int SIZE, int THREADS>
static __device__ __forceinline__ void copy_tokens(char *to, const ln_cuda_tensor &from, int head, int column,
                                                   const delta_backward_chunk &chunk, int thread = threadIdx.x) {
    constexpr int pieces = SIZE / 8, step = THREADS / pieces; /* a multiple of 8 rows */
    static_assert(step % 8 == 0, "rows of a thread have their pieces in the same order");
    const int row = thread % THREADS / pieces, piece = thread % pieces;
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)from.data + chunk.token * from.token_stride +
                                head * from.head_stride + column + piece * 8;
    to += tile_at(row, piece);
#pragma unroll
    for (int i = 0; i < CHUNK; i += step) {
        const bool inside = row + i < chunk.rows;
        copy_piece(to + i * 128, base + (inside ? (row + i) * from.token_stride : 0), inside);
    }
}

static __device__ __forceinline__ float2 unpack(uint32_t both) {
    return __bfloat1622float2(*(const __nv_bfloat162 *)&both);
}
/* Places of a thread are told by its index, which a kernel may give itself where the compiler should not keep all that
 * follows from it in registers. */

/* Two neighbouring columns of accumulators lie at 2 i and 2 i + 1; this is the first one's column. */
static __device__ __forceinline__ int column_of(int pair, int thread = threadIdx.x) {
    return pair / 2 * 8 + thread % 4 * 2;
}
static __device__ __forceinline__ int first_row(int thread = threadIdx.x) {
    return thread / 32 % 4 * 16;
}
/* Row of accumulators 2 i and 2 i + 1 is row_of() + 8 (i % 2). */
static __device__ __forceinline__ int row_of(int thread = threadIdx.x) {
    return first_row(thread) + thread % 32 / 4;
}

template <int N> static __device__ __forceinline__ void round_sums(uint32_t (&left)[N], const float *sums) {
#pragma unroll
    for (int i = 0; i < N; i++) left[i] = pack(sums[2 * i], sums[2 * i + 1]);
}
/* The same with columns multiplied. */
template <int N>
static __device__ __forceinline__ void round_columns(uint32_t (&left)[N], const float *sums, const float *factor) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float2 by = *(const float2 *)(factor + column_of(i));
        left[i] = pack(sums[2 * i] * by.x, sums[2 * i + 1] * by.y);
    }
}
template <int N> static __device__ __forceinline__ void clear(float (&sums)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] = 0;
}

/* Left operands: this warp's 16 rows of a tile, columns 16 STEP .. 16 STEP + 15. */
static __device__ __forceinline__ void load_step(uint32_t (&left)[4], const char *tile, int step,
                                                 int thread = threadIdx.x) {
    const int lane = thread % 32;
    load_matrices<false>(left, tile + tile_at(first_row(thread) + lane % 16, 2 * step + lane / 16));
}
/* This warp's 16 columns of a panel as rows. */
static __device__ __forceinline__ void load_turned_step(uint32_t (&left)[4], const char *panel, int step) {
    const int lane = threadIdx.x % 32;
    load_matrices<true>(left, panel + tile_at(16 * step + lane / 16 * 8 + lane % 8, first_row() / 8 + lane / 8 % 2));
}
static __device__ __forceinline__ void load_turned(uint32_t (&left)[16], const char *panel) {
#pragma unroll
    for (int k = 0; k < 4; k++) load_turned_step(*(uint32_t(*)[4])(left + 4 * k), panel, k);
}

/* Sum over the four lanes that share rows. */
static __device__ __forceinline__ float sum_of_row(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
/* Sum over the eight lanes that share columns. */
static __device__ __forceinline__ float sum_of_column(float x) {
    x += __shfl_xor_sync(~0u, x, 4);
    x += __shfl_xor_sync(~0u, x, 8);
    return x + __shfl_xor_sync(~0u, x, 16);
}

/* Rows of accumulators times the same rows of a tile: the two rows' sums. */
template <int SIZE>
static __device__ __forceinline__ float2 dot_rows(const float (&sums)[SIZE / 2], const char *tile, int thread) {
    float2 dot = {0, 0};
#pragma unroll
    for (int k = 0; k < SIZE / 16; k++) {
        uint32_t part[4];
        load_step(part, tile, k, thread);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 x = unpack(part[i]);
            const float sum = sums[8 * k + 2 * i] * x.x + sums[8 * k + 2 * i + 1] * x.y;
            if (i % 2)
                dot.y += sum;
            else
                dot.x += sum;
        }
    }
    return {sum_of_row(dot.x), sum_of_row(dot.y)};
}

/* ---- products by warps ---- */

struct warp_products {
    /* 16 of the summed index, from 16 K on: right is a tile of N rows, or one of rows 16 K .. */
    template <int N>
    static __device__ __forceinline__ void step_by_rows(float (&sums)[N / 2], const uint32_t *left, const char *right,
                                                        int k) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < N; j += 16) {
            uint32_t part[4];
            load_matrices<false>(part, right + tile_at(j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            add_product(sums + j / 2, left, part);
            add_product(sums + j / 2 + 4, left, part + 2);
        }
    }
    template <int N>
    static __device__ __forceinline__ void step_by_columns(float (&sums)[N / 2], const uint32_t *left,
                                                           const char *right, int k) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < N; j += 16) {
            uint32_t part[4];
            load_matrices<true>(part, right + tile_at(16 * k + lane % 16, j / 8 + lane / 16));
            add_product(sums + j / 2, left, part);
            add_product(sums + j / 2 + 4, left, part + 2);
        }
    }
    /* sums (64 x N) = (or +=) left (64 x 16 STEPS) * right^T, right a tile of N rows, N <= 64. */
    template <int N, int STEPS, bool ADD>
    static __device__ __forceinline__ void by_rows(float (&sums)[N / 2], const uint32_t (&left)[4 * STEPS],
                                                   const char *right) {
        if (!ADD) clear(sums);
#pragma unroll
        for (int k = 0; k < STEPS; k++) step_by_rows<N>(sums, left + 4 * k, right, k);
    }
    /* sums (64 x N) = (or +=) left (64 x 16 STEPS) * right, right a tile of 16 STEPS <= 64 rows. PENDING: an earlier
     * product still adds to the same sums. */
    template <int N, int STEPS, bool ADD, bool PENDING = false>
    static __device__ __forceinline__ void by_columns(float (&sums)[N / 2], const uint32_t (&left)[4 * STEPS],
                                                      const char *right) {
        if (!ADD) clear(sums);
#pragma unroll
        for (int k = 0; k < STEPS; k++) step_by_columns<N>(sums, left + 4 * k, right, k);
    }
    /* Copies of what lies in a row, by THREADS threads of which this is one; they belong to its next commit. */
    template <int THREADS> static __device__ __forceinline__ void open(uint64_t *, int) {}
    static __device__ __forceinline__ void expect(uint64_t *, int, int) {}
    template <int THREADS>
    static __device__ __forceinline__ void copy(char *to, const void *from, int bytes, uint64_t *, int thread) {
        for (int at = thread * 16; at < bytes; at += THREADS * 16) copy_piece(to + at, (const char *)from + at, true);
    }
    static __device__ __forceinline__ void await(uint64_t *, int) {}

    /* The same with left operands from the first 64 rows of a tile; sums are added to, or begun. */
    template <int N, int STEPS>
    static __device__ __forceinline__ void tiles_by_rows(float (&sums)[N / 2], bool add, const char *left,
                                                         const char *right) {
        if (!add) clear(sums);
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t part[4];
            load_step(part, left, k);
            step_by_rows<N>(sums, part, right, k);
        }
    }
    template <int N, bool PENDING = false>
    static __device__ __forceinline__ void tiles_by_columns(float (&sums)[N / 2], bool add, const char *left,
                                                            const char *right) {
        if (!add) clear(sums);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, left, k);
            step_by_columns<N>(sums, part, right, k);
        }
    }
    /* Likewise with the columns of a panel as left rows. */
    template <bool PENDING = false>
    static __device__ __forceinline__ void turned_by_columns(float (&sums)[32], const char *left, const char *right) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_turned_step(part, left, k);
            step_by_columns<64>(sums, part, right, k);
        }
    }
    /* The compiler may take them for numbers in which threads differ. */
    static __device__ __forceinline__ void differ(int &, int &) {}
    /* What products will add to is made before the first of them starts. */
    template <class... PARTS> static __device__ __forceinline__ void ready(PARTS &...) {}
    /* All products but the last LEFT are done: their sums may be read, their left operands changed. */
    template <int LEFT, class... PARTS> static __device__ __forceinline__ void settle(PARTS &...) {}
    template <int ROLE, int THREADS> static __device__ __forceinline__ void pass() {
        block_wait(THREADS);
    }
    template <int ROLE, int THREADS> static __device__ __forceinline__ void hand_over() {
        block_wait(THREADS);
    }
    template <bool GIVE, int LESS, int MORE> static __device__ __forceinline__ void share_registers() {}
    /* What this thread wrote to shared memory may be read by products after the next barrier. */
    static __device__ __forceinline__ void publish() {}
    /* The reverse of load_step. */
    static __device__ __forceinline__ void store_step(char *tile, int step, const uint32_t (&part)[4],
                                                      int thread = threadIdx.x) {
        const int lane = thread % 32;
#pragma unroll
        for (int i = 0; i < 4; i++)
            *(uint32_t *)(tile + tile_at(first_row(thread) + i % 2 * 8 + lane / 4, 2 * step + i / 2) + lane % 4 * 4) =
                part[i];
    }
    /* Of four matrices at rows first_row() and columns 16 step, the columns become rows. */
    static __device__ __forceinline__ void store_turned(char *panel, int step, const uint32_t (&part)[4],
                                                        int thread = threadIdx.x) {
        const int lane = thread % 32;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 16 * step + i / 2 * 8 + lane % 4 * 2, piece = first_row(thread) / 8 + i % 2,
                      word = lane / 4;
            *(uint16_t *)(panel + tile_at(token, piece) + word * 2) = (uint16_t)part[i];
            *(uint16_t *)(panel + tile_at(token + 1, piece) + word * 2) = (uint16_t)(part[i] >> 16);
        }
    }
};

} // namespace ln

#endif
