/* Gradients of the inputs of a chunk of diagonal plus low rank (names as in dplr_inside.cuh), one block a chunk of a
 * head, given the state S before the chunk, the gradient D of the state after it, Y, Z and the outputs' gradient
 * `slope`. All of it but the pairs of tokens is products; with
 *
 *     M(x, y)[i][j] = x[i] . y[j],   j <= i of slope, j < i of Z:
 *
 *     query[i]' = P[i] S slope[i] + sum_j (M(slope, value) key[j] + M(slope, Y) b[j]) P[i] / P[j]
 *     a[i]'     = P[i-1] S Z[i]   + sum_j (M(Z, value) key[j] + M(Z, Y) b[j]) P[i-1] / P[j]
 *     key[j]'   = P[15] / P[j] D value[j] + sum_i (M(slope, value) query[i] P[i] + M(Z, value) a[i] P[i-1]) / P[j]
 *     b[j]'     = P[15] / P[j] D Y[j]     + sum_i (M(slope, Y) query[i] P[i] + M(Z, Y) a[i] P[i-1]) / P[j]
 *     value[j]' = QK^T slope + AK^T Z + (key P[15] / P[j]) D
 *     decay[t]' = sum_{i >= t} (query query' - key key' - b b')[i] + sum_{i > t} (a a')[i] + what P[15] owes
 *
 * A warp makes 16 channels of keys and 16 columns of values. Decays that are too strong for quotients from the chunk's
 * middle go pair by pair, as forward. */
#ifndef LN_KERNEL_CUDA_DPLR_GRADIENT_CUH
#define LN_KERNEL_CUDA_DPLR_GRADIENT_CUH

#include "kernel/cuda/dplr_inside.cuh"

namespace ln {

/* What is kept of a chunk: the state before it (backward: its gradient after it), and Y (Z). */
template <int KEY, int VALUE> struct dplr_saved { __nv_bfloat16 state[KEY][VALUE], y[16][VALUE]; };

enum { OF_A, OF_QUERY, OF_KEY, OF_B, DPLR_TILES };
/* Pairs of tokens: M of slope and Z with value and Y; sums of pairs of query and a with keys. */
enum { SLOPE_VALUE, SLOPE_Y, Z_VALUE, Z_Y, QUERY_KEY_PAIRS, A_KEY_PAIRS, DPLR_PAIRS };

template <int KEY, int VALUE> struct dplr_gradient_memory {
    __nv_bfloat16 tile[DPLR_TILES][16][KEY + 8];
    /* When all have been read, what decays are owed of each warp's tokens and channels takes their place. */
    __nv_bfloat16 value[16][VALUE + 8], slope[16][VALUE + 8], y[16][VALUE + 8], z[16][VALUE + 8];
    __nv_bfloat16 after[KEY][VALUE + 8]; /* D */
    __nv_bfloat16 pair[DPLR_PAIRS][16][24];
    /* Factors: of a query's token, of a key's; first: of the first a. left, right: of products with S and D. */
    float upto[16][KEY], from[16][KEY], first[KEY], left[KEY], right[KEY], decay[KEY];
    float owed[KEY];
    int strong;
};

/* Rows of 16 bytes and more to a tile; zeros from `count` on. */
template <int ROWS, int ROW>
static __device__ __forceinline__ void copy_tile(__nv_bfloat16 (&to)[ROWS][ROW], const __nv_bfloat16 *from,
                                                 int64_t stride, int count) {
    constexpr int pieces = (ROW - 8) / 8;
    for (int i = threadIdx.x; i < ROWS * pieces; i += blockDim.x) {
        const int row = i / pieces, column = i % pieces * 8;
        copy_piece(&to[row][column], from + (row < count ? row * stride : 0) + column, row < count);
    }
}

/* A thread: two channels of one of the four tiles, relative to the middle. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void gradient_tiles(dplr_gradient_memory<KEY, VALUE> &memory, const dplr_run &run,
                                                      const dplr_place &at) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    const int which = threadIdx.x / 32 % 4, channel = threadIdx.x / 128 * 64 + (int)threadIdx.x % 32 * 2;
    const ln_cuda_tensor &of = which == OF_A ? t.a : which == OF_QUERY ? t.query : which == OF_KEY ? t.key : t.b;
    const float scale = which == OF_QUERY ? run.scale : 1;
    float2 sum[17];
    sum[0] = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float2 more = decays_at(t.decay, at, i, channel);
        sum[i + 1] = make_float2(sum[i].x + LOG2_E * more.x, sum[i].y + LOG2_E * more.y);
    }
    const float2 middle = sum[8], all = sum[16];
    if (!(middle.x >= -DPLR_RANGE && middle.y >= -DPLR_RANGE && all.x - middle.x >= -DPLR_RANGE &&
          all.y - middle.y >= -DPLR_RANGE))
        memory.strong = 1;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float2 to = sum[which == OF_A ? i : i + 1];
        float2 factor = make_float2(to.x - middle.x, to.y - middle.y);
        factor = power(which <= OF_QUERY ? factor : make_float2(-factor.x, -factor.y));
        if (which == OF_QUERY) *(float2 *)&memory.upto[i][channel] = factor;
        if (which == OF_KEY) *(float2 *)&memory.from[i][channel] = factor;
        if (which == OF_A && i == 0) *(float2 *)&memory.first[channel] = factor;
        *(uint32_t *)&memory.tile[which][i][channel] =
            scaled(pair_at(of, at, at.head, i, channel), make_float2(scale * factor.x, scale * factor.y));
    }
    if (which != OF_B) return;
    *(float2 *)&memory.left[channel] = power(middle);
    *(float2 *)&memory.right[channel] = power(make_float2(all.x - middle.x, all.y - middle.y));
    *(float2 *)&memory.decay[channel] = power(all);
}

/* The same relative to the ends, by products of decays. */
template <int KEY, int VALUE>
static __device__ __noinline__ void gradient_tiles_from_ends(dplr_gradient_memory<KEY, VALUE> &memory,
                                                             const dplr_run &run, const dplr_place &at) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    const int which = threadIdx.x / 32 % 4, channel = threadIdx.x / 128 * 64 + (int)threadIdx.x % 32 * 2;
    const ln_cuda_tensor &of = which == OF_A ? t.a : which == OF_QUERY ? t.query : which == OF_KEY ? t.key : t.b;
    const float scale = which == OF_QUERY ? run.scale : 1;
    float2 factor = make_float2(1, 1);
    for (int step = 0; step < 16; step++) {
        const int i = which <= OF_QUERY ? step : 15 - step;
        const float2 more = decays_at(t.decay, at, i, channel);
        const float2 next = factor * power(make_float2(LOG2_E * more.x, LOG2_E * more.y));
        if (which == OF_QUERY) factor = next;
        if (which == OF_QUERY) *(float2 *)&memory.upto[i][channel] = factor;
        if (which == OF_KEY) *(float2 *)&memory.from[i][channel] = factor;
        if (which == OF_A && i == 0) *(float2 *)&memory.first[channel] = factor;
        *(uint32_t *)&memory.tile[which][i][channel] =
            scaled(pair_at(of, at, at.head, i, channel), make_float2(scale * factor.x, scale * factor.y));
        factor = next;
    }
    if (which == OF_B) *(float2 *)&memory.left[channel] = *(float2 *)&memory.right[channel] = make_float2(1, 1);
    if (which == OF_A) *(float2 *)&memory.decay[channel] = factor;
}

/* Operands from rows [row][column]: 16 rows as the left one; their transpose as the left one; 16 rows of which each is
 * a column of the right one; 16 rows as rows of the right one. The right ones are two, of eight columns each. */
template <int ROW>
static __device__ __forceinline__ void left_of(uint32_t (&to)[4], const __nv_bfloat16 (*tile)[ROW], int column) {
    load_matrices<false>(to, &tile[threadIdx.x % 16][column + threadIdx.x % 32 / 16 * 8]);
}
template <int ROW>
static __device__ __forceinline__ void left_turned(uint32_t (&to)[4], const __nv_bfloat16 (*tile)[ROW], int column) {
    load_matrices<true>(to, &tile[threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8][column + threadIdx.x % 16 / 8 * 8]);
}
template <int ROW>
static __device__ __forceinline__ void right_turned(uint32_t (&to)[4], const __nv_bfloat16 (*tile)[ROW], int column) {
    load_matrices<false>(to, &tile[threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8][column + threadIdx.x % 16 / 8 * 8]);
}
template <int ROW>
static __device__ __forceinline__ void right_of(uint32_t (&to)[4], const __nv_bfloat16 (*tile)[ROW], int column) {
    load_matrices<true>(to, &tile[threadIdx.x % 16][column + threadIdx.x % 32 / 16 * 8]);
}
static __device__ __forceinline__ void add_both(float (&sums)[2][4], const uint32_t (&left)[4],
                                                const uint32_t (&right)[4]) {
    add_product(sums[0], left, right);
    add_product(sums[1], left, right + 2);
}

/* left right^T over `SIZE` columns, masked, to a tile of pairs. */
template <int SIZE, int ROW>
static __device__ __forceinline__ void make_pairs(__nv_bfloat16 (&to)[16][24], const __nv_bfloat16 (*left)[ROW],
                                                  const __nv_bfloat16 (*right)[ROW], bool strict) {
    const int lane = threadIdx.x % 32;
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < SIZE; k += 16) {
        uint32_t l[4], r[4];
        left_of(l, left, k);
        right_turned(r, right, k);
        add_both(sums, l, r);
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
            to[row][column] = __float2bfloat16(column < row || (column == row && !strict) ? sums[j][e] : 0.0f);
        }
}

/* Sums of pairs as forward has them, to tiles. */
template <int KEY, int VALUE>
static __device__ __noinline__ void make_strong_pairs(dplr_gradient_memory<KEY, VALUE> &memory, const dplr_run &run,
                                                      const dplr_place &at) {
    const int lane = threadIdx.x % 32;
    dplr_pairs pairs = {};
    pairs_one_by_one<KEY>(pairs, run, at);
    for (int j = 0; j < 2; j++)
        for (int e = 0; e < 4; e++) {
            const int row = lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
            memory.pair[QUERY_KEY_PAIRS][row][column] = __float2bfloat16(pairs.query[j + 2][e]);
            memory.pair[A_KEY_PAIRS][row][column] = __float2bfloat16(pairs.a[j + 2][e]);
        }
}

/* Of 16 channels: gradients as far as they come from S and D, then from pairs of tokens. */
struct dplr_parts {
    float query[2][4], a[2][4], key[2][4], b[2][4];
};

/* Also the sums over columns of S D. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void from_states(dplr_parts &to, float (&dot)[2],
                                                   const dplr_gradient_memory<KEY, VALUE> &memory,
                                                   const dplr_saved<KEY, VALUE> &before, int channel) {
    const int lane = threadIdx.x % 32;
    dot[0] = dot[1] = 0;
#pragma unroll
    for (int v = 0; v < VALUE; v += 16) {
        uint32_t s[4], d[4], slope[4], z[4], value[4], y[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            s[n] = *(const uint32_t *)&before.state[channel + n / 2 * 8 + lane / 4][v + lane % 4 * 2 + n % 2 * 8];
        right_turned(d, memory.after + channel, v);
        left_of(slope, memory.slope, v);
        left_of(z, memory.z, v);
        left_of(value, memory.value, v);
        left_of(y, memory.y, v);
#pragma unroll
        for (int n = 0; n < 4; n++) dot[n / 2] += bf16_low(s[n]) * bf16_low(d[n]) + bf16_high(s[n]) * bf16_high(d[n]);
        add_both(to.query, slope, s);
        add_both(to.a, z, s);
        add_both(to.key, value, d);
        add_both(to.b, y, d);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
        dot[n] += __shfl_xor_sync(0xffffffffu, dot[n], 1);
        dot[n] += __shfl_xor_sync(0xffffffffu, dot[n], 2);
    }
}

template <int KEY, int VALUE>
static __device__ __forceinline__ void from_pairs(dplr_parts &to, const dplr_gradient_memory<KEY, VALUE> &memory,
                                                  int channel) {
    uint32_t m[4][4], turned[4][4], key[4], b[4], query[4], a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        left_of(m[i], memory.pair[i], 0);
        left_turned(turned[i], memory.pair[i], 0);
    }
    right_of(key, memory.tile[OF_KEY], channel);
    right_of(b, memory.tile[OF_B], channel);
    right_of(query, memory.tile[OF_QUERY], channel);
    right_of(a, memory.tile[OF_A], channel);
    add_both(to.query, m[SLOPE_VALUE], key);
    add_both(to.query, m[SLOPE_Y], b);
    add_both(to.a, m[Z_VALUE], key);
    add_both(to.a, m[Z_Y], b);
    add_both(to.key, turned[SLOPE_VALUE], query);
    add_both(to.key, turned[Z_VALUE], a);
    add_both(to.b, turned[SLOPE_Y], query);
    add_both(to.b, turned[Z_Y], a);
}

/* One element of them, by products of decays: token `i`, channel. */
template <int KEY, int VALUE>
static __device__ __noinline__ void from_strong_pairs(float4 *to, const dplr_gradient_memory<KEY, VALUE> &memory,
                                                      const dplr_run &run, const dplr_place &at, int i, int channel) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    const __nv_bfloat16(*m)[16][24] = memory.pair;
    const auto at_row = [&](const ln_cuda_tensor &of, int row) {
        return row < at.count ? __bfloat162float(((const __nv_bfloat16 *)of.data)[(at.token + row) * of.token_stride +
                                                                                  at.head * of.head_stride + channel])
                              : 0.0f;
    };
    const auto decay_of = [&](int row) {
        return row < at.count
                   ? exponential(LOG2_E * ((const float *)t.decay.data)[(at.token + row) * t.decay.token_stride +
                                                                        at.head * t.decay.head_stride + channel])
                   : 1.0f;
    };
    float4 sum = make_float4(0, 0, 0, 0); /* of query, a, key, b */
    float decay = 1, before = 1;          /* from token j to i, and to i - 1 */
    for (int j = i; j >= 0; j--) {
        const float key = at_row(t.key, j), b = at_row(t.b, j);
        sum.x += decay * (__bfloat162float(m[SLOPE_VALUE][i][j]) * key + __bfloat162float(m[SLOPE_Y][i][j]) * b);
        if (j < i) {
            sum.y += before * (__bfloat162float(m[Z_VALUE][i][j]) * key + __bfloat162float(m[Z_Y][i][j]) * b);
            before *= decay_of(j);
        }
        decay *= decay_of(j);
    }
    decay = before = 1;
    for (int later = i; later < 16; later++) {
        if (later > i) decay *= decay_of(later);
        const float query = run.scale * decay * at_row(t.query, later), a = before * at_row(t.a, later);
        sum.z += __bfloat162float(m[SLOPE_VALUE][later][i]) * query + __bfloat162float(m[Z_VALUE][later][i]) * a;
        sum.w += __bfloat162float(m[SLOPE_Y][later][i]) * query + __bfloat162float(m[Z_Y][later][i]) * a;
        if (later > i) before *= decay_of(later);
    }
    *to = sum;
}

static __device__ __forceinline__ void store_pair(const ln_cuda_tensor &to, const dplr_place &at, int row, int channel,
                                                  float low, float high) {
    if (!to.data || row >= at.count) return;
    *(uint32_t *)((__nv_bfloat16 *)to.data + (at.token + row) * to.token_stride + at.head * to.head_stride + channel) =
        pack(low, high);
}

/* Two neighbouring channels of a token: gradients are put together and stored; what their decays owe goes to x and z
 * (query query' - key key' - b b', a a'); returns key key' + b b' as far as it comes from D. */
struct dplr_element {
    float query[2], a[2], key[2], b[2]; /* from S and D */
    float more_query[2], more_a[2], more_key[2], more_b[2];
};
template <int KEY, int VALUE>
static __device__ __forceinline__ float2 finish_element(const dplr_element &part,
                                                        const dplr_gradient_memory<KEY, VALUE> &memory,
                                                        const dplr_run &run, const dplr_place &at, int row, int channel,
                                                        float *x, float *z) {
    const ln_cuda_dplr_tensors &t = run.tensors;
    const uint32_t raw_query = pair_at(t.query, at, at.head, row, channel),
                   raw_a = pair_at(t.a, at, at.head, row, channel), raw_key = pair_at(t.key, at, at.head, row, channel),
                   raw_b = pair_at(t.b, at, at.head, row, channel);
    float query[2], a[2], key[2], b[2], owed[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const int place = channel + c;
        const float upto = memory.upto[row][place], before = row ? memory.upto[row - 1][place] : memory.first[place],
                    from = memory.from[row][place], left = memory.left[place], right = memory.right[place];
        const float from_key = from * right * part.key[c], from_b = from * right * part.b[c];
        query[c] = upto * left * part.query[c] + (memory.strong ? 1.0f : upto) * part.more_query[c];
        a[c] = before * left * part.a[c] + (memory.strong ? 1.0f : before) * part.more_a[c];
        key[c] = from_key + (memory.strong ? 1.0f : from) * part.more_key[c];
        b[c] = from_b + (memory.strong ? 1.0f : from) * part.more_b[c];
        const float q = c ? bf16_high(raw_query) : bf16_low(raw_query), r = c ? bf16_high(raw_a) : bf16_low(raw_a),
                    k = c ? bf16_high(raw_key) : bf16_low(raw_key), w = c ? bf16_high(raw_b) : bf16_low(raw_b);
        query[c] *= run.scale;
        x[c] = q * query[c] - k * key[c] - w * b[c];
        z[c] = r * a[c];
        owed[c] = k * from_key + w * from_b;
    }
    store_pair(run.gradients.query, at, row, channel, query[0], query[1]);
    store_pair(run.gradients.a, at, row, channel, a[0], a[1]);
    store_pair(run.gradients.key, at, row, channel, key[0], key[1]);
    store_pair(run.gradients.b, at, row, channel, b[0], b[1]);
    return make_float2(owed[0], owed[1]);
}

/* 16 channels from `channel` on, by one warp: from S and D, from pairs, sums over columns of S D. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void finish_channels(dplr_gradient_memory<KEY, VALUE> &memory, const dplr_run &run,
                                                       const dplr_place &at, const dplr_parts &part, dplr_parts &more,
                                                       const float (&dot)[2], int channel) {
    const int lane = threadIdx.x % 32;
    float(*room)[16][17] = (float(*)[16][17])memory.value + channel / 16 * 2;
    static_assert(sizeof(float[KEY / 16 * 2][16][17]) <= 4 * sizeof memory.value, "takes the place of four tiles");
    float(&x)[16][17] = room[0], (&z)[16][17] = room[1];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float2 owed = make_float2(0, 0);
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const int row = lane / 4 + e / 2 * 8, column = n * 8 + lane % 4 * 2;
            if (memory.strong)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float4 sum;
                    from_strong_pairs(&sum, memory, run, at, row, channel + column + c);
                    more.query[n][e + c] = sum.x, more.a[n][e + c] = sum.y;
                    more.key[n][e + c] = sum.z, more.b[n][e + c] = sum.w;
                }
            const dplr_element element = {{part.query[n][e], part.query[n][e + 1]}, {part.a[n][e], part.a[n][e + 1]},
                                          {part.key[n][e], part.key[n][e + 1]},     {part.b[n][e], part.b[n][e + 1]},
                                          {more.query[n][e], more.query[n][e + 1]}, {more.a[n][e], more.a[n][e + 1]},
                                          {more.key[n][e], more.key[n][e + 1]},     {more.b[n][e], more.b[n][e + 1]}};
            const float2 some =
                finish_element(element, memory, run, at, row, channel + column, &x[row][column], &z[row][column]);
            owed.x += some.x, owed.y += some.y;
        }
#pragma unroll
        for (int across = 4; across < 32; across *= 2) {
            owed.x += __shfl_xor_sync(0xffffffffu, owed.x, across);
            owed.y += __shfl_xor_sync(0xffffffffu, owed.y, across);
        }
        if (lane < 4) *(float2 *)&memory.owed[channel + n * 8 + lane * 2] = owed;
    }
    __syncwarp();
    if (lane % 4 == 0)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int place = channel + n * 8 + lane / 4;
            memory.owed[place] += memory.decay[place] * dot[n];
        }
    __syncwarp();
    const ln_cuda_tensor &to = run.gradients.decay;
    if (lane >= 16 || !to.data) return;
    float sum = memory.owed[channel + lane];
    for (int row = 15; row >= 0; row--) {
        sum += x[row][lane];
        if (row < at.count)
            ((float *)to.data)[(at.token + row) * to.token_stride + at.head * to.head_stride + channel + lane] = sum;
        sum += z[row][lane];
    }
}

/* 16 columns of values from `column` on, by one warp. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void value_gradients(const dplr_gradient_memory<KEY, VALUE> &memory,
                                                       const dplr_run &run, const dplr_place &at, int column) {
    const int lane = threadIdx.x % 32;
    uint32_t left[4], right[4];
    float sums[2][4] = {};
    left_turned(left, memory.pair[QUERY_KEY_PAIRS], 0);
    right_of(right, memory.slope, column);
    add_both(sums, left, right);
    left_turned(left, memory.pair[A_KEY_PAIRS], 0);
    right_of(right, memory.z, column);
    add_both(sums, left, right);
#pragma unroll
    for (int k = 0; k < KEY; k += 16) {
        left_of(left, memory.tile[OF_KEY], k);
#pragma unroll
        for (int i = 0; i < 4; i++)
            left[i] = scaled(left[i], *(const float2 *)&memory.right[k + i / 2 * 8 + lane % 4 * 2]);
        right_of(right, memory.after + k, column);
        add_both(sums, left, right);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
            store_pair(run.gradients.value, at, lane / 4 + e / 2 * 8, column + n * 8 + lane % 4 * 2, sums[n][e],
                       sums[n][e + 1]);
}

template <int KEY, int VALUE>
static __device__ __forceinline__ void chunk_gradients(dplr_gradient_memory<KEY, VALUE> &memory, const dplr_run &run,
                                                       const dplr_place &at, const dplr_saved<KEY, VALUE> &before,
                                                       const dplr_saved<KEY, VALUE> &after) {
    static_assert(KEY == VALUE, "a warp takes as many channels as columns");
    const ln_cuda_tensor &value = run.tensors.value, &slope = run.gradients.output;
    const int warp = threadIdx.x / 32;
    copy_tile(memory.value,
              (const __nv_bfloat16 *)value.data + at.token * value.token_stride + at.head * value.head_stride,
              value.token_stride, at.count);
    copy_tile(memory.slope,
              (const __nv_bfloat16 *)slope.data + at.token * slope.token_stride + at.head * slope.head_stride,
              slope.token_stride, at.count);
    copy_tile(memory.y, before.y[0], VALUE, 16);
    copy_tile(memory.z, after.y[0], VALUE, 16);
    copy_tile(memory.after, after.state[0], VALUE, KEY);
    copies_commit();
    if (threadIdx.x == 0) memory.strong = 0;
    __syncthreads();
    gradient_tiles(memory, run, at);
    copies_wait<0>();
    __syncthreads();
    if (memory.strong) {
        gradient_tiles_from_ends(memory, run, at);
        if (warp == 0) make_strong_pairs(memory, run, at);
    } else if (warp < 2) {
        make_pairs<KEY>(memory.pair[QUERY_KEY_PAIRS + warp], memory.tile[warp ? OF_A : OF_QUERY], memory.tile[OF_KEY],
                        warp == 1);
    }
    if (warp < 4)
        make_pairs<VALUE>(memory.pair[SLOPE_VALUE + warp], warp < 2 ? memory.slope : memory.z,
                          warp % 2 ? memory.y : memory.value, warp >= 2);
    __syncthreads();
    value_gradients(memory, run, at, warp * 16);
    dplr_parts part = {}, more = {};
    float dot[2];
    from_states(part, dot, memory, before, warp * 16);
    if (!memory.strong) from_pairs(more, memory, warp * 16);
    __syncthreads();
    finish_channels(memory, run, at, part, more, dot, warp * 16);
}

} // namespace ln

#endif
