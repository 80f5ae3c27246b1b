/* What of a chunk of 16 tokens of diagonal plus low rank does not need the state; one warp a chunk of a head. With
 * P[i] the decays of tokens 0 .. i together, and all sums over key channels:
 *
 *     AB[i][j] = sum a[i] (P[i-1] / P[j]) b[j], AK likewise with key   (j < i),
 *     QB[i][j] = sum query[i] (P[i] / P[j]) b[j], QK likewise          (j <= i),
 *     T = (1 - AB)^-1,   W = T (a P[i-1]),          U = T AK value,
 *     R = query P[i] + QB W,                        L = (QK + QB T AK) value,
 *
 * so that with the state S before the chunk Y = U + W S, outputs are L + R S, and the state after it is
 * P[15] S + (key P[15] / P[j])^T value + (b P[15] / P[j])^T Y.
 *
 * Quotients of decays: a token's are taken relative to the chunk's middle, both sides of which are then products of
 * tensor cores. Where decays are so strong that this leaves the range of numbers, sums are made pair by pair from
 * products of decays instead, which are at most 1: any decay is right, down to none at all.
 *
 * A record is what the second kernel (dplr_portable.cu) reads, as its registers have it: lane l of the warp owns one
 * piece of 16 bytes of each part. */
#ifndef LN_KERNEL_CUDA_DPLR_INSIDE_CUH
#define LN_KERNEL_CUDA_DPLR_INSIDE_CUH

#include "kernel/cuda/dplr_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using dplr_run = ln_cuda_dplr_run;

static constexpr float LOG2_E = 1.442695041f;
/* Binary orders that the decays of half a chunk may take for products by tensor cores. */
static constexpr float DPLR_RANGE = 100;

template <int KEY, int VALUE> struct dplr_record {
    uint4 w[KEY / 16][32], r[KEY / 16][32];     /* right operands [channel][token]: tokens 0-7, then 8-15 */
    uint4 key[KEY / 16][32], b[KEY / 16][32];   /* right operands [token][channel]: channels 0-7, then 8-15 */
    float decay[KEY];                           /* of the chunk */
    uint4 value[VALUE / 16][32];                /* left operand [column of values][token] */
    uint4 u[VALUE / 16][32], l[VALUE / 16][32]; /* sums [column of values][token] */
};

template <int KEY, int VALUE> struct dplr_tiles {
    __nv_bfloat16 a[16][KEY + 8], query[16][KEY + 8], key[16][KEY + 8], b[16][KEY + 8], value[16][VALUE + 8];
    float erase[16][20];   /* AB */
    float inverse[16][20]; /* T */
    __nv_bfloat16 ak[16][24];
    float left[KEY], right[KEY]; /* what a and query, key and b still want to be multiplied by */
};

/* One chunk of one head. */
struct dplr_place {
    int64_t token;
    int count, head, key_head; /* count: tokens */
};

static __device__ __forceinline__ uint32_t pair_at(const ln_cuda_tensor &of, const dplr_place &at, int head, int row,
                                                   int channel) {
    if (row >= at.count) return 0;
    return *(const uint32_t *)((const __nv_bfloat16 *)of.data + (at.token + row) * of.token_stride +
                               head * of.head_stride + channel);
}
static __device__ __forceinline__ float2 decays_at(const ln_cuda_tensor &of, const dplr_place &at, int row,
                                                   int channel) {
    if (row >= at.count) return make_float2(0, 0);
    return *(const float2 *)((const float *)of.data + (at.token + row) * of.token_stride + at.head * of.head_stride +
                             channel);
}
static __device__ __forceinline__ uint32_t scaled(uint32_t pair, float2 by) {
    return pack(bf16_low(pair) * by.x, bf16_high(pair) * by.y);
}
static __device__ __forceinline__ float2 operator*(float2 x, float2 y) {
    return make_float2(x.x * y.x, x.y * y.y);
}
static __device__ __forceinline__ float2 power(float2 x) {
    return make_float2(exponential(x.x), exponential(x.y));
}

/* Tiles relative to the middle of the chunk. False: the range does not suffice; then the tiles are not right. */
template <int KEY, int VALUE>
static __device__ __forceinline__ bool tiles_from_middle(dplr_tiles<KEY, VALUE> &tiles, const dplr_run &run,
                                                         const dplr_place &at, float *decay) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    bool fits = true;
#pragma unroll 1
    for (int part = 0; part < KEY / 64; part++) {
        const int channel = part * 64 + (int)threadIdx.x % 32 * 2;
        float2 sum[17]; /* binary logarithms of the decays before a token */
        sum[0] = make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 more = decays_at(t.decay, at, i, channel);
            sum[i + 1] = make_float2(sum[i].x + LOG2_E * more.x, sum[i].y + LOG2_E * more.y);
        }
        const float2 middle = sum[8], all = sum[16];
        fits = fits && middle.x >= -DPLR_RANGE && middle.y >= -DPLR_RANGE && all.x - middle.x >= -DPLR_RANGE &&
               all.y - middle.y >= -DPLR_RANGE;
        *(float2 *)&tiles.left[channel] = power(middle);
        *(float2 *)&tiles.right[channel] = power(make_float2(all.x - middle.x, all.y - middle.y));
        *(float2 *)&decay[channel] = power(all);
        float2 before = power(make_float2(-middle.x, -middle.y));
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 now = make_float2(sum[i + 1].x - middle.x, sum[i + 1].y - middle.y), upto = power(now),
                         from = power(make_float2(-now.x, -now.y));
            *(uint32_t *)&tiles.a[i][channel] = scaled(pair_at(t.a, at, at.key_head, i, channel), before);
            *(uint32_t *)&tiles.query[i][channel] = scaled(pair_at(t.query, at, at.key_head, i, channel), upto);
            *(uint32_t *)&tiles.key[i][channel] = scaled(pair_at(t.key, at, at.key_head, i, channel), from);
            *(uint32_t *)&tiles.b[i][channel] = scaled(pair_at(t.b, at, at.key_head, i, channel), from);
            before = upto;
        }
    }
    return __all_sync(0xffffffffu, fits);
}

/* Tiles relative to the chunk's beginning and end, by products of decays. */
template <int KEY, int VALUE>
static __device__ __noinline__ void tiles_from_ends(dplr_tiles<KEY, VALUE> &tiles, const dplr_run &run,
                                                    const dplr_place &at, float *decay) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    for (int channel = threadIdx.x % 32 * 2; channel < KEY; channel += 64) {
        float2 upto = make_float2(1, 1), after = make_float2(1, 1);
        for (int i = 0; i < 16; i++) {
            const float2 more = decays_at(t.decay, at, i, channel);
            *(uint32_t *)&tiles.a[i][channel] = scaled(pair_at(t.a, at, at.key_head, i, channel), upto);
            upto = upto * power(make_float2(LOG2_E * more.x, LOG2_E * more.y));
            *(uint32_t *)&tiles.query[i][channel] = scaled(pair_at(t.query, at, at.key_head, i, channel), upto);
        }
        for (int i = 15; i >= 0; i--) {
            const float2 more = decays_at(t.decay, at, i, channel);
            *(uint32_t *)&tiles.key[i][channel] = scaled(pair_at(t.key, at, at.key_head, i, channel), after);
            *(uint32_t *)&tiles.b[i][channel] = scaled(pair_at(t.b, at, at.key_head, i, channel), after);
            after = after * power(make_float2(LOG2_E * more.x, LOG2_E * more.y));
        }
        *(float2 *)&tiles.left[channel] = *(float2 *)&tiles.right[channel] = make_float2(1, 1);
        *(float2 *)&decay[channel] = upto;
    }
}

/* Sums of pairs of tokens: rows of a and query, columns of b (0-15) and key (16-31), as accumulators. */
struct dplr_pairs {
    float a[4][4], query[4][4];
};

template <int KEY, int VALUE>
static __device__ __forceinline__ void pairs_by_products(dplr_pairs &pairs, const dplr_tiles<KEY, VALUE> &tiles) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEY; k += 16) {
        uint32_t a[4], query[4], right[2][4];
        load_matrices<false>(a, &tiles.a[lane % 16][k + lane / 16 * 8]);
        load_matrices<false>(query, &tiles.query[lane % 16][k + lane / 16 * 8]);
        load_matrices<false>(right[0], &tiles.b[lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        load_matrices<false>(right[1], &tiles.key[lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            add_product(pairs.a[j], a, &right[j / 2][j % 2 * 2]);
            add_product(pairs.query[j], query, &right[j / 2][j % 2 * 2]);
        }
    }
    /* Tokens do not see later ones: those sums may be anything, infinite too. */
    const int row = lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int to = row + e / 2 * 8, from = j % 2 * 8 + column + e % 2;
            if (from >= to) pairs.a[j][e] = 0;
            if (from > to) pairs.query[j][e] = 0;
        }
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int across = 16; across; across /= 2) x += __shfl_xor_sync(0xffffffffu, x, across);
    return x;
}

/* An accumulator's element [to][from], where this lane holds it. */
static __device__ __forceinline__ void put_pair(float (&sums)[4][4], int first, int to, int from, float x) {
    const int lane = threadIdx.x % 32;
    if (lane / 4 != to % 8 || lane % 4 != from % 8 / 2) return;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (j == first + from / 8 && e == to / 8 * 2 + from % 2) sums[j][e] = x;
}

/* The same by products of decays, which no decay is too strong for. */
template <int KEY>
static __device__ __noinline__ void pairs_one_by_one(dplr_pairs &pairs, const dplr_run &run, const dplr_place &at) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    const int lane = threadIdx.x % 32;
    for (int side = 0; side < 2; side++)
        for (int from = 0; from < 16; from++) {
            float2 right[KEY / 64];
            for (int p = 0; p < KEY / 64; p++) {
                const uint32_t pair = pair_at(side ? t.key : t.b, at, at.key_head, from, p * 64 + lane * 2);
                right[p] = make_float2(bf16_low(pair), bf16_high(pair));
            }
            for (int to = from; to < 16; to++) {
                float a = 0, query = 0;
                for (int p = 0; p < KEY / 64; p++) {
                    const int channel = p * 64 + lane * 2;
                    uint32_t pair = pair_at(t.a, at, at.key_head, to, channel);
                    if (to > from) {
                        a += bf16_low(pair) * right[p].x + bf16_high(pair) * right[p].y;
                        const float2 more = decays_at(t.decay, at, to, channel);
                        right[p] = right[p] * power(make_float2(LOG2_E * more.x, LOG2_E * more.y));
                    }
                    pair = pair_at(t.query, at, at.key_head, to, channel);
                    query += bf16_low(pair) * right[p].x + bf16_high(pair) * right[p].y;
                }
                put_pair(pairs.a, side * 2, to, from, warp_sum(a));
                put_pair(pairs.query, side * 2, to, from, warp_sum(query));
            }
        }
}

/* T = (1 - AB)^-1, a column a lane. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void invert(dplr_tiles<KEY, VALUE> &tiles, const dplr_pairs &pairs) {
    const int lane = threadIdx.x % 32, column = lane % 16;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const int to = lane / 4 + e / 2 * 8, from = j * 8 + lane % 4 * 2;
            *(float2 *)&tiles.erase[to][from] = make_float2(pairs.a[j][e], pairs.a[j][e + 1]);
            *(uint32_t *)&tiles.ak[to][from] = pack(pairs.a[j + 2][e], pairs.a[j + 2][e + 1]);
        }
    __syncwarp();
    float t[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        t[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < i; j += 4) {
            const float4 row = *(const float4 *)&tiles.erase[i][j];
            t[i] += row.x * t[j];
            if (j + 1 < i) t[i] += row.y * t[j + 1];
            if (j + 2 < i) t[i] += row.z * t[j + 2];
            if (j + 3 < i) t[i] += row.w * t[j + 3];
        }
        if (lane < 16) tiles.inverse[i][column] = t[i];
    }
    __syncwarp();
}

/* Accumulators [16][16] as a left operand, and as the right operand that is their transpose: the same words in another
 * order. */
static __device__ __forceinline__ void as_left(uint32_t (&left)[4], const float *low, const float *high) {
    left[0] = pack(low[0], low[1]), left[1] = pack(low[2], low[3]);
    left[2] = pack(high[0], high[1]), left[3] = pack(high[2], high[3]);
}

/* Columns 8 tile + 2 (lane % 4) + 0, 1 of accumulators times those of `by`. */
static __device__ __forceinline__ void scale_columns(float (&sums)[4], const float *by, int tile) {
    const float2 factor = *(const float2 *)&by[tile * 8 + threadIdx.x % 4 * 2];
    sums[0] *= factor.x, sums[1] *= factor.y, sums[2] *= factor.x, sums[3] *= factor.y;
}

/* W and R of 16 channels from `k` on. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void make_reads(dplr_record<KEY, VALUE> &record, const dplr_tiles<KEY, VALUE> &tiles,
                                                  const uint32_t (&inverse)[4], const uint32_t (&correct)[4], int k) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    float w[2][4] = {}, r[2][4];
    uint32_t a[4];
    load_matrices<true>(a, &tiles.a[lane % 16][k + lane / 16 * 8]);
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const uint32_t pair = *(const uint32_t *)&tiles.query[row + e / 2 * 8][k + j * 8 + column];
            r[j][e] = bf16_low(pair), r[j][e + 1] = bf16_high(pair);
        }
        add_product(w[j], inverse, a + 2 * j);
        add_product(r[j], correct, a + 2 * j);
        scale_columns(w[j], tiles.left, k / 8 + j);
        scale_columns(r[j], tiles.left, k / 8 + j);
    }
    record.w[k / 16][lane] =
        make_uint4(pack(w[0][0], w[0][1]), pack(w[1][0], w[1][1]), pack(w[0][2], w[0][3]), pack(w[1][2], w[1][3]));
    record.r[k / 16][lane] =
        make_uint4(pack(r[0][0], r[0][1]), pack(r[1][0], r[1][1]), pack(r[0][2], r[0][3]), pack(r[1][2], r[1][3]));
}

/* A tile of keys [token][channel] as right operands of 16 channels from k on, times `right`. */
template <int ROW>
static __device__ __forceinline__ uint4 make_write(const __nv_bfloat16 (&tile)[16][ROW], const float *right, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t part[4];
    load_matrices<true>(part, &tile[lane % 16][k + lane / 16 * 8]);
    const float low = right[k + lane / 4], high = right[k + 8 + lane / 4];
    return make_uint4(scaled(part[0], make_float2(low, low)), scaled(part[1], make_float2(low, low)),
                      scaled(part[2], make_float2(high, high)), scaled(part[3], make_float2(high, high)));
}

template <int KEY, int VALUE>
static __device__ __forceinline__ void chunk_inside(dplr_record<KEY, VALUE> &record, dplr_tiles<KEY, VALUE> &tiles,
                                                    const dplr_run &run, const dplr_place &at) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < VALUE / 16; i++) {
        const int piece = i * 32 + lane, row = piece / (VALUE / 8), column = piece % (VALUE / 8) * 8;
        const ln_cuda_tensor &of = run.tensors.value;
        copy_piece(&tiles.value[row][column],
                   (const __nv_bfloat16 *)of.data + (at.token + (row < at.count ? row : 0)) * of.token_stride +
                       at.head * of.head_stride + column,
                   row < at.count);
    }
    copies_commit();
    dplr_pairs pairs = {};
    const bool fits = tiles_from_middle(tiles, run, at, record.decay);
    __syncwarp();
    if (fits) {
        pairs_by_products(pairs, tiles);
    } else {
        tiles_from_ends(tiles, run, at, record.decay);
        pairs_one_by_one<KEY>(pairs, run, at);
    }
    invert(tiles, pairs);

    /* T as both operands, AK as the right one; m = T AK, n = QB T, l = QK + n AK. */
    uint32_t left[4], right[2][2], ak[4], qb[4], part[4];
    float m[2][4] = {}, n[2][4] = {};
    const int row = lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float2 pair = *(const float2 *)&tiles.inverse[row + e % 2 * 8][column + e / 2 * 8];
        left[e] = pack(pair.x, pair.y);
        right[e / 2][e % 2] = pack(tiles.inverse[column + e % 2 * 8][row + e / 2 * 8],
                                   tiles.inverse[column + 1 + e % 2 * 8][row + e / 2 * 8]);
    }
    load_matrices<true>(ak, &tiles.ak[lane % 16][lane / 16 * 8]);
    as_left(qb, pairs.query[0], pairs.query[1]);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        add_product(m[j], left, ak + 2 * j);
        add_product(n[j], qb, right[j]);
    }
    uint32_t correct[4], from_u[4], from_l[4];
    as_left(correct, n[0], n[1]);
#pragma unroll
    for (int j = 0; j < 2; j++) add_product(pairs.query[2 + j], correct, ak + 2 * j);
    as_left(from_u, m[0], m[1]);
    as_left(from_l, pairs.query[2], pairs.query[3]);

#pragma unroll
    for (int k = 0; k < KEY; k += 16) {
        make_reads(record, tiles, left, correct, k);
        record.key[k / 16][lane] = make_write(tiles.key, tiles.right, k);
        record.b[k / 16][lane] = make_write(tiles.b, tiles.right, k);
    }
    copies_wait<0>();
    __syncwarp();
#pragma unroll
    for (int v = 0; v < VALUE; v += 16) {
        float u[2][4] = {}, l[2][4] = {};
        load_matrices<true>(part, &tiles.value[lane / 16 * 8 + lane % 8][v + lane / 8 % 2 * 8]);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t to_u[2] = {from_u[j], from_u[j + 2]}, to_l[2] = {from_l[j], from_l[j + 2]};
            add_product(u[j], part, to_u);
            add_product(l[j], part, to_l);
        }
        uint32_t words[4];
        record.value[v / 16][lane] = make_uint4(part[0], part[1], part[2], part[3]);
        as_left(words, u[0], u[1]);
        record.u[v / 16][lane] = make_uint4(words[0], words[1], words[2], words[3]);
        as_left(words, l[0], l[1]);
        record.l[v / 16][lane] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

} // namespace ln

#endif
