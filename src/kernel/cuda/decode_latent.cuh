/* Latent attention (MLA, DeepSeek-V2) decoded with absorbed projections, for compute capability 9.0: one key of 576
 * elements a token, whose first 512 are the value, and many query heads that share it.
 *
 * A block has 64 rows and walks its share of tiles of 64 keys, which a warp of its first warp group asks for
 * (decode_latent_copy.cuh), one while another is used. The other two warp groups each do half of the keys of a tile in
 * the first product and half of the columns of the value in the second, so that nothing is done twice and the output
 * fits in registers:
 *
 *     wait for the output of the tile before, leave its stage ; wait for the tile ; score[:, own keys] = query * key^T
 * ; weight[:, own keys] = softmax(score) ; give weights to the other group, take its ; start output[:, own columns] +=
 * weight * value.
 *
 * Weights are passed in the columns of the tile that are no value and that no product reads any more; a row's base is
 * the same in both groups, and moves in both when either has seen an exponent above 8. Invariant: of a tile's last
 * panel a group overwrites its own keys alone, after the product of its four warps; a stage is refilled when all eight
 * warps have left it, after their products with it. */
#ifndef LN_KERNEL_CUDA_DECODE_LATENT_CUH
#define LN_KERNEL_CUDA_DECODE_LATENT_CUH

#include "kernel/cuda/decode_codes.cuh"
#include "kernel/cuda/decode_latent_copy.cuh"
#include "kernel/cuda/decode_merge.cuh"
#include "kernel/cuda/decode_work.cuh"
#include "kernel/cuda/hopper.cuh"

namespace ln {

namespace latent {

enum {
    KEY = LATENT_KEY,
    VALUE = LATENT_VALUE,
    ROWS = 64,
    KEYS = 64,
    HALF = KEYS / 2,
    STAGES = 2,
    UNIT_SHIFT = 6,
    BOTH = 256
};
enum { PANEL = 64 * 128, TILE_BYTES = KEY / 64 * PANEL, CONTROL_AT = (1 + STAGES) * TILE_BYTES, THREADS = 384 };
enum { MEETING = 1, OWN = 2 }; /* named barriers: of both groups; of each */

struct control {
    uint64_t full[STAGES], empty[STAGES];
    int grown[STAGES][8];              /* of each warp: an exponent above 8, or a row that has no base */
    float most[2][ROWS], sum[2][ROWS]; /* of the groups */
};
enum { SHARED_BYTES = CONTROL_AT + (int)sizeof(control) };

/* ---- a warp group ---- */

/* F16: keys are, else bf16. */
template <bool F16> struct group {
    const decode_run &run;
    control *shared;
    char *query, *tiles;
    int own, thread; /* 0 or 1; of the group */
    int stage, phase;
    float base[2], sum[2]; /* of rows `row` and row + 8; sums of this thread's weights */
    float output[VALUE / 4];
    float score[HALF / 2];
    uint32_t weight[HALF / 4], other[HALF / 4]; /* other: the other group's */

    __device__ __forceinline__ int row() const { return thread / 32 * 16 + thread % 32 / 4; }

    __device__ __forceinline__ void load_queries(const decode_segment &at) {
        const int row0 = (int)blockIdx.x % run.tiles * ROWS;
#pragma unroll 6
        for (int i = own * 128 + thread; i < ROWS * KEY / 8; i += BOTH) {
            const int row = i / (KEY / 8), piece = i % (KEY / 8);
            float x[8] = {};
            if (row0 + row < run.rows) {
                const decode_place place = place_of(run, at.sequence, at.head, row0 + row);
                load_eight(x, run.of.query.data,
                           place.token * run.of.query.token_stride + place.head * run.of.query.head_stride + piece * 8,
                           run.query_element);
            }
            *(uint4 *)(query + piece / 8 * PANEL + row * 128 + (piece % 8 ^ row % 8) * 16) = {
                pack_as<F16>(x[0], x[1]), pack_as<F16>(x[2], x[3]), pack_as<F16>(x[4], x[5]), pack_as<F16>(x[6], x[7])};
        }
        stores_to_async();
        named_wait(MEETING, BOTH);
    }

    __device__ __forceinline__ void open() {
#pragma unroll
        for (int i = 0; i < VALUE / 4; i++) output[i] = 0;
        base[0] = base[1] = -CUDART_INF_F;
        sum[0] = sum[1] = 0;
    }

    /* Rows of the tile that no row of queries sees hold anything: their weights are 0, but 0 times infinity is not.
     * They are those before `low` and from `high` on. */
    __device__ __forceinline__ void clear_unseen(char *tile, int low, int high) {
#pragma unroll 1
        for (int at = (own * 128 + thread) * 16; at < PANEL; at += BOTH * 16)
            if (at / 128 < low || at / 128 >= high)
#pragma unroll
                for (int i = 0; i < VALUE / 64; i++) *(uint4 *)(tile + i * PANEL + at) = {0, 0, 0, 0};
        stores_to_async();
        named_wait(MEETING, BOTH);
    }

    __device__ __forceinline__ void start_score(const char *tile) {
        const uint64_t left = tile_descriptor<KEY, ROWS>(query),
                       right = tile_descriptor<KEY, KEYS>(tile) + (uint64_t)(own * (HALF * 128 / 16));
        hold(score);
        products_open();
#pragma unroll
        for (int k = 0; k < KEY / 16; k++) {
            const uint64_t step = (uint64_t)(k / 4 * (PANEL / 16) + k % 4 * 2);
            if (k == 0)
                product<HALF, F16>::template shared<false>(score, left, right);
            else
                product<HALF, F16>::template shared<true>(score, left + step, right + step);
        }
        products_commit();
        hold(score);
    }

    __device__ __forceinline__ void start_output(const char *tile) {
        const uint64_t value = tile_descriptor<VALUE / 2, KEYS>(tile + own * (VALUE / 128) * PANEL);
        hold(output);
        hold(weight);
        hold(other);
        products_open();
#pragma unroll
        for (int k = 0; k < HALF / 16; k++)
            product<VALUE / 2, F16>::template registers<true, true>(
                output, weight + 4 * k, value + (uint64_t)((own * HALF + k * 16) * 128 / 16));
#pragma unroll
        for (int k = 0; k < HALF / 16; k++)
            product<VALUE / 2, F16>::template registers<true, true>(
                output, other + 4 * k, value + (uint64_t)(((1 - own) * HALF + k * 16) * 128 / 16));
        products_commit();
        hold(output);
    }

    /* Exponents become weights, which the other group may read from the tile's last panel. Returns their sums. */
    __device__ __forceinline__ void weigh(char *tile, float (&part)[2]) {
        part[0] = part[1] = 0;
#pragma unroll
        for (int i = 0; i < HALF / 4; i++) {
            const float low = exponential(score[2 * i]), high = exponential(score[2 * i + 1]);
            part[i % 2] += low + high;
            weight[i] = pack_as<F16>(low, high);
        }
        uint4 *to = (uint4 *)(tile + VALUE / 64 * PANEL + own * (HALF * 128)) + thread;
        to[0] = {weight[0], weight[1], weight[2], weight[3]};
        to[128] = {weight[4], weight[5], weight[6], weight[7]};
    }

    /* Both groups move the bases of rows that have none, or whose exponents grew above 8 in either. */
    __device__ __forceinline__ void move() {
        float by[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            by[r] = -CUDART_INF_F;
#pragma unroll
            for (int j = 0; j < HALF / 8; j++)
                by[r] = fmaxf(by[r], fmaxf(score[4 * j + 2 * r], score[4 * j + 2 * r + 1]));
            by[r] = fmaxf(by[r], __shfl_xor_sync(~0u, by[r], 1));
            by[r] = fmaxf(by[r], __shfl_xor_sync(~0u, by[r], 2));
            if (thread % 4 == 0) shared->most[own][row() + 8 * r] = by[r];
        }
        named_wait(MEETING, BOTH);
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool first = base[r] == -CUDART_INF_F;
            float up = fmaxf(by[r], shared->most[1 - own][row() + 8 * r]);
            if (up == -CUDART_INF_F || (!first && up <= 8.0f))
                up = 0;
            else
                base[r] = first ? up : base[r] + up;
            factor[r] = first ? 0 : exponential(-up);
            sum[r] *= factor[r];
#pragma unroll
            for (int j = 0; j < HALF / 8; j++) score[4 * j + 2 * r] -= up, score[4 * j + 2 * r + 1] -= up;
        }
#pragma unroll
        for (int i = 0; i < VALUE / 4; i++) output[i] *= factor[i / 2 % 2];
    }

    /* `key`: the tile's first. Scores become exponents; true: a base must move. */
    __device__ __forceinline__ bool scale(const decode_segment &at, int key) {
        if (run.cap_scale > 0)
#pragma unroll
            for (int i = 0; i < HALF / 2; i++) score[i] = decode_tangent(score[i] * run.cap_scale);
        const decode_sight all = seen_by_all(run, at.length);
        if (key < all.low || key + KEYS > all.high) {
            const int column = key + own * HALF + 2 * (thread % 4);
#pragma unroll
            for (int i = 0; i < HALF / 2; i++) {
                const decode_sight seen =
                    seen_by_row(run, at.length, (int)blockIdx.x % run.tiles * ROWS + row() + 8 * (i / 2 % 2));
                const int own_key = column + i / 4 * 8 + i % 2;
                if (own_key < seen.low || own_key >= seen.high) score[i] = -CUDART_INF_F;
            }
        }
        bool grown = fminf(base[0], base[1]) == -CUDART_INF_F;
#pragma unroll
        for (int i = 0; i < HALF / 2; i++) {
            const float from = base[i / 2 % 2];
            score[i] = fmaf(score[i], run.scale, from == -CUDART_INF_F ? 0 : -from);
            grown = grown || score[i] > 8.0f;
        }
        return grown;
    }

    __device__ __forceinline__ void leave(int of) {
        stores_to_async();
        __syncwarp();
        if (thread % 32 == 0) barrier_arrive(&shared->empty[of]);
    }

    /* What products of the tile before had is free again. */
    __device__ __forceinline__ void release() {
        hold(output);
        hold(weight);
        hold(other);
    }

    __device__ __forceinline__ void take_unit(const decode_segment &at, int unit, bool first) {
        const int key = (at.first + unit) << UNIT_SHIFT;
        char *tile = tiles + stage * TILE_BYTES;
        if (!first) { /* before the next tile is waited for: its copy would else be all that is under way */
            products_wait<0>();
            release();
            leave(stage ^ 1);
        }
        barrier_wait(&shared->full[stage], phase);
        const decode_sight some = seen_by_some(run, at.length);
        if (key < some.low || key + KEYS > some.high) clear_unseen(tile, some.low - key, some.high - key);
        start_score(tile);
        products_wait<0>();
        hold(score);
        const bool grown = __any_sync(~0u, scale(at, key));
        named_wait(OWN + own, 128); /* all four warps have read the panel that takes the weights */
        float part[2];
        weigh(tile, part);
        if (thread % 32 == 0) shared->grown[stage][own * 4 + thread / 32] = grown;
        named_wait(MEETING, BOTH);
        const int4 grown0 = *(const int4 *)shared->grown[stage], grown1 = *(const int4 *)(shared->grown[stage] + 4);
        if ((grown0.x | grown0.y | grown0.z | grown0.w | grown1.x | grown1.y | grown1.z | grown1.w) != 0) {
            move();
            weigh(tile, part);
            named_wait(MEETING, BOTH);
        }
        sum[0] += part[0], sum[1] += part[1];
        const uint4 *from = (const uint4 *)(tile + VALUE / 64 * PANEL + (1 - own) * (HALF * 128)) + thread;
        const uint4 low = from[0], high = from[128];
        other[0] = low.x, other[1] = low.y, other[2] = low.z, other[3] = low.w;
        other[4] = high.x, other[5] = high.y, other[6] = high.z, other[7] = high.w;
        start_output(tile);
        phase ^= stage;
        stage ^= 1;
    }

    /* The rows' outputs and sums: final where the segment is this block's alone, else for the kernel that joins. */
    __device__ __forceinline__ void close(const decode_segment &at, int share) {
        const int share_index = (int)blockIdx.x / run.tiles, tile = (int)blockIdx.x % run.tiles;
        const decode_shares shares = shares_of(at, share);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            if (thread % 4 == 0) shared->sum[own][row() + 8 * r] = sum[r];
        }
        named_wait(MEETING, BOTH);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int inside = row() + 8 * r, of = tile * ROWS + inside;
            if (of >= run.rows) continue;
            const float all = shared->sum[0][inside] + shared->sum[1][inside];
            if (shares.count == 1)
                store_final(at, of, r, all);
            else
                store_part(partial_of<VALUE, ROWS>(run, share_index, tile, shares.first == share_index), inside, r,
                           all);
        }
    }
    __device__ __forceinline__ void store_part(float *to, int inside, int r, float all) {
        float *from = to + inside * VALUE + own * (VALUE / 2) + 2 * (thread % 4);
#pragma unroll
        for (int j = 0; j < VALUE / 16; j++)
            __stcg((float2 *)(from + 8 * j), make_float2(output[4 * j + 2 * r], output[4 * j + 2 * r + 1]));
        if (own == 0 && thread % 4 == 0) {
            __stcg(to + ROWS * VALUE + inside, base[r]);
            __stcg(to + ROWS * (VALUE + 1) + inside, all);
        }
    }
    __device__ __forceinline__ void store_final(const decode_segment &at, int of, int r, float all) {
        const decode_place place = place_of(run, at.sequence, at.head, of);
        float lse;
        const float inverse = close_row(run, place.head, base[r], all, &lse);
        const int64_t to = place.token * run.of.output.token_stride + place.head * run.of.output.head_stride +
                           own * (VALUE / 2) + 2 * (thread % 4);
#pragma unroll
        for (int j = 0; j < VALUE / 16; j++) {
            const float low = output[4 * j + 2 * r] * inverse, high = output[4 * j + 2 * r + 1] * inverse;
            if (run.output_float32)
                *(float2 *)((float *)run.of.output.data + to + 8 * j) = make_float2(low, high);
            else
                *(uint32_t *)((__nv_bfloat16 *)run.of.output.data + to + 8 * j) = pack(low, high);
        }
        if (run.of.log_sum_exp && own == 0 && thread % 4 == 0)
            run.of.log_sum_exp[place.token * run.heads + place.head] = lse;
    }
};

template <bool F16>
static __global__ void __launch_bounds__(THREADS, 1)
    decode_latent(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode_run run) {
    char *memory = block_memory(), *tiles = memory + TILE_BYTES;
    control *shared = (control *)(memory + CONTROL_AT);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_open(&shared->full[i], 1);
            barrier_open(&shared->empty[i], 8);
        }
        barriers_opened();
    }
    __syncthreads();
    int share;
    decode_segment at = segment_first(run, &share);
    if (threadIdx.x < 128) {
        registers_less<40>();
        if (threadIdx.x < 32) copy_latent<KEYS, STAGES>(&map, run, at, tiles, shared->full, shared->empty);
    } else {
        registers_more<232>();
        const int thread = (int)threadIdx.x - 128;
        group<F16> one = {run, shared, memory, tiles, thread / 128, thread % 128, 0, 0, {}, {}, {}, {}, {}, {}};
        while (at.begin < at.end) {
            one.load_queries(at);
            one.open();
#pragma unroll 1
            for (int unit = at.begin; unit < at.end; unit++) one.take_unit(at, unit, unit == at.begin);
            products_wait<0>();
            one.release();
            one.leave(one.stage ^ 1);
            one.close(at, share);
            if (at.left == 0) break;
            segment_next(run, at);
        }
        decode_nothing(run, VALUE, thread, BOTH);
    }
}

template <bool F16> static ln_cuda_code start(void *const *arguments, int blocks, void *stream) {
    const decode_run *run = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch(decode_latent<F16>, dim3((unsigned)blocks), dim3(THREADS), (int)SHARED_BYTES,
                                     stream, *(const CUtensorMap *)arguments[1], *run);
    return code ? code : join_start<VALUE, ROWS>(*run, stream);
}

} // namespace latent

} // namespace ln

#endif
