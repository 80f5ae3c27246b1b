/* The delta rule's backward where each key channel has its own decay (KDA): the pairs of a chunk, and what is left of
 * each chunk after the walks. Sums of logarithms of decays, gamma[token][channel], lie in shared memory.
 *
 * A pair of tokens is a sum over channels of products with e^(gamma[i] - gamma[j]). Of tokens in different blocks of 16
 * it is a product of matrices with both sides measured from a row between them, so that no exponent is above 0. Within
 * a block it is measured from the first or last row, unless a channel fades by more than 2^-RANGE in it: then every
 * channel of every pair has its own exponential. The gradients go the same ways:
 *
 *     dQ[i] = scale e^gamma dO S^T + sum_j M[i][j] K[j] e^(gamma[i] - gamma[j]),  M = scale dP, j <= i
 *     dK[i] as a reader = beta (-e^gamma R S^T + sum_j Z[i][j] K[j] e^(gamma[i] - gamma[j])),  Z = -X, j < i
 *     dK[j] as a writer = e^(end - gamma) V' D^T + sum_i (M[i][j] Q[i] + Z[i][j] beta[i] K[i]) e^(gamma[i] - gamma[j])
 *
 * The gradient of gamma is Q dQ + K (dK as a reader - dK as a writer), at the end of the chunk besides all that the end
 * is in. That of beta is the reader's before it is multiplied by beta, times K, and R V. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_CHANNEL_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_CHANNEL_CUH

#include "kernel/cuda/delta_backward_inside.cuh"
#include "kernel/cuda/delta_backward_pairs.cuh"
#include "kernel/cuda/delta_backward_solve.cuh"

namespace ln {

/* Rows of gamma in shared memory, four floats longer than they need be: other rows are in other banks. */
template <int KEY> struct channel_rows {
    enum { ROW = KEY + 4, BYTES = CHUNK * ROW * 4 };
};

template <int KEY>
static __device__ __forceinline__ void sum_channels(const delta_backward_run &run, const delta_backward_chunk &chunk,
                                                    int head, float *gamma) {
    const int channel = threadIdx.x;
    if (channel >= KEY) return;
    float sum = 0;
#pragma unroll 8
    for (int row = 0; row < CHUNK; row++) {
        if (row < chunk.rows)
            sum += gate_of(run.decay[((int64_t)(chunk.token + row) * run.heads + head) * KEY + channel]);
        gamma[row * channel_rows<KEY>::ROW + channel] = sum;
    }
}

enum { RANGE = 100 };

/* Whether no channel fades by more than RANGE in this warp's 16 rows. */
template <int KEY> static __device__ __forceinline__ bool fades_little(const float *gamma) {
    const float *first = gamma + first_row() * channel_rows<KEY>::ROW, *last = first + 15 * channel_rows<KEY>::ROW;
    bool far = false;
    for (int c = threadIdx.x % 32; c < KEY; c += 32) far |= !(first[c] - last[c] < RANGE);
    return !__any_sync(~0u, far);
}

/* Tokens 16 k .. 16 k + 15 and channels 16 block .. of a tile as a right operand, each row times factor[row] and
 * 2^(sign (gamma[row] - gamma[base])). */
template <int KEY>
static __device__ __forceinline__ void load_faded(uint32_t (&right)[4], const char *tile, const float *gamma, int k,
                                                  int block, int base, float sign, const float *factor) {
    const int lane = threadIdx.x % 32, token = 16 * k + lane % 4 * 2, channel = 16 * block + lane / 4;
    load_matrices<true>(right, tile + tile_at(16 * k + lane % 16, 2 * block + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 x = unpack(right[i]);
        const int row = token + i % 2 * 8;
        const float *at = gamma + channel + i / 2 * 8;
        const float from = at[base * channel_rows<KEY>::ROW];
        right[i] = pack(x.x * factor[row] * exponential(sign * (at[row * channel_rows<KEY>::ROW] - from)),
                        x.y * factor[row + 1] * exponential(sign * (at[(row + 1) * channel_rows<KEY>::ROW] - from)));
    }
}

/* ---- pairs ---- */

template <int KEY> struct channel_pairs_shape {
    enum { PANELS = KEY / 64, KEYS = 0, QUERIES = PANELS * PANEL, GAMMA_AT = 2 * QUERIES };
    enum { SOLVE = GAMMA_AT + channel_rows<KEY>::BYTES, OUT = 0, RECORDS = SOLVE + SOLVE_BYTES };
    enum { WEIGHTS = RECORDS + RECORD * 4, BYTES = WEIGHTS + PANEL };
};

/* K~, K^, Q~ go to the workspace. */
template <int KEY>
static __device__ __forceinline__ void fade_tiles(const delta_backward_run &run, const char *shared, const float *gamma,
                                                  const float *record, char *to) {
    typedef channel_pairs_shape<KEY> shape;
    for (int i = threadIdx.x; i < CHUNK * KEY / 8; i += 128) {
        const int row = i / (KEY / 8), piece = i % (KEY / 8), at = tile_at(row, piece);
        const uint4 key = *(const uint4 *)(shared + shape::KEYS + at),
                    query = *(const uint4 *)(shared + shape::QUERIES + at);
        const uint32_t k[4] = {key.x, key.y, key.z, key.w}, q[4] = {query.x, query.y, query.z, query.w};
        const float *g = gamma + row * channel_rows<KEY>::ROW + piece * 8,
                    *end = gamma + 63 * channel_rows<KEY>::ROW + piece * 8;
        const float key_norm = record[KEY_NORM + row], query_norm = run.scale * record[QUERY_NORM + row];
        uint32_t out[3][4];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float2 x = unpack(k[w]), y = unpack(q[w]);
            const float past[2] = {exponential(g[2 * w]), exponential(g[2 * w + 1])};
            out[0][w] = pack(x.x * key_norm * past[0], x.y * key_norm * past[1]);
            out[1][w] = pack(x.x * key_norm * exponential(end[2 * w] - g[2 * w]),
                             x.y * key_norm * exponential(end[2 * w + 1] - g[2 * w + 1]));
            out[2][w] = pack(y.x * query_norm * past[0], y.y * query_norm * past[1]);
        }
#pragma unroll
        for (int t = 0; t < 3; t++)
            *(uint4 *)(to + t * shape::PANELS * PANEL + at) = {out[t][0], out[t][1], out[t][2], out[t][3]};
    }
}

/* Pairs in the same 16 tokens: lane l has row l % 16 and columns 8 (l / 16) .. of them. Lanes begin at different
 * channels, so that they meet different banks. */
template <int KEY>
static __device__ __forceinline__ void pairs_near(const delta_backward_run &run, const char *shared, const float *gamma,
                                                  const float *record, float *a, char *weights) {
    typedef channel_pairs_shape<KEY> shape;
    const int lane = threadIdx.x % 32, row = first_row() + lane % 16, first = first_row() + lane / 16 * 8;
    float keys[8] = {}, queries[8] = {};
    for (int c = 0; c < KEY; c++) {
        const int channel = (c + lane) % KEY, within = channel % 8 * 2;
        const float mine = gamma[row * channel_rows<KEY>::ROW + channel];
        const float key = __bfloat162float(
                        *(const __nv_bfloat16 *)(shared + shape::KEYS + tile_at(row, channel / 8) + within)),
                    query = __bfloat162float(
                        *(const __nv_bfloat16 *)(shared + shape::QUERIES + tile_at(row, channel / 8) + within));
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float other = __bfloat162float(
                *(const __nv_bfloat16 *)(shared + shape::KEYS + tile_at(first + j, channel / 8) + within));
            const float faded =
                other * exponential(fminf(mine - gamma[(first + j) * channel_rows<KEY>::ROW + channel], 0.0f));
            keys[j] += key * faded;
            queries[j] += query * faded;
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int column = first + j;
        const float norm = record[KEY_NORM + column];
        a[row * SOLVE_ROW + column] =
            column < row ? record[STRENGTH + row] * record[KEY_NORM + row] * norm * keys[j] : 0;
        *(__nv_bfloat16 *)(weights + tile_at(row, column / 8) + column % 8 * 2) =
            __float2bfloat16(column <= row ? run.scale * record[QUERY_NORM + row] * norm * queries[j] : 0);
    }
}

/* Pairs in different 16 tokens, or all: this warp's rows with all columns before them, zeros after. */
template <int KEY>
static __device__ __forceinline__ void pairs_far(const delta_backward_run &run, const char *shared, const float *gamma,
                                                 const float *record, bool all, float *a, char *weights) {
    typedef channel_pairs_shape<KEY> shape;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = first_row();
    for (int block = 0; block < 4; block++) {
        if (block == warp && !all) continue;
        float keys[8] = {}, queries[8] = {};
        for (int step = 0; step < KEY / 16 && block <= warp; step++) {
            uint32_t key[4], query[4], other[4];
            load_step(key, shared + shape::KEYS, step);
            load_step(query, shared + shape::QUERIES, step);
            load_matrices<false>(other, shared + shape::KEYS +
                                            tile_at(16 * block + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                /* Left: rows + 8 for odd i, channels + 8 from 2 on; right: the other way round. */
                const int channel = 16 * step + lane % 4 * 2;
                const float *from = gamma + base * channel_rows<KEY>::ROW + channel;
                const float *mine = gamma + (row_of() + i % 2 * 8) * channel_rows<KEY>::ROW + channel + i / 2 * 8;
                const float past[2] = {exponential(mine[0] - from[i / 2 * 8]),
                                       exponential(mine[1] - from[i / 2 * 8 + 1])};
                const float2 k = unpack(key[i]), q = unpack(query[i]), o = unpack(other[i]);
                key[i] = pack(k.x * past[0], k.y * past[1]);
                query[i] = pack(q.x * past[0], q.y * past[1]);
                const float *its =
                    gamma + (16 * block + lane / 4 + i / 2 * 8) * channel_rows<KEY>::ROW + channel + i % 2 * 8;
                other[i] =
                    pack(o.x * exponential(from[i % 2 * 8] - its[0]), o.y * exponential(from[i % 2 * 8 + 1] - its[1]));
            }
            add_product(keys, key, other);
            add_product(keys + 4, key, other + 2);
            add_product(queries, query, other);
            add_product(queries + 4, query, other + 2);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = row_of() + i / 2 % 2 * 8, column = 16 * block + i / 4 * 8 + lane % 4 * 2 + i % 2;
            const float norm = record[KEY_NORM + column];
            a[row * SOLVE_ROW + column] =
                column < row ? record[STRENGTH + row] * record[KEY_NORM + row] * norm * keys[i] : 0;
            *(__nv_bfloat16 *)(weights + tile_at(row, column / 8) + column % 8 * 2) =
                __float2bfloat16(column <= row ? run.scale * record[QUERY_NORM + row] * norm * queries[i] : 0);
        }
    }
}

template <int KEY>
static __global__ void __launch_bounds__(128) delta_channel_pairs(const __grid_constant__ delta_backward_run run) {
    typedef channel_pairs_shape<KEY> shape;
    char *shared = block_memory();
    float *record = (float *)(shared + shape::RECORDS), *gamma = (float *)(shared + shape::GAMMA_AT),
          *a = (float *)(shared + shape::SOLVE);
    char *weights = shared + shape::WEIGHTS, *inverse = shared + shape::OUT;
    const int head = blockIdx.x % run.heads, index = blockIdx.x / run.heads, row = threadIdx.x / 2;
    const delta_backward_chunk chunk = run.chunks[index];
    const int64_t place = place_of(run, index, head);
    copy_tokens<KEY, 128>(shared + shape::KEYS, run.key, key_head_of(run, head), 0, chunk);
    copy_tokens<KEY, 128>(shared + shape::QUERIES, run.query, key_head_of(run, head), 0, chunk);
    copies_commit();
    sum_channels<KEY>(run, chunk, head, gamma);
    copies_wait<0>();
    __syncthreads();
    const float key_norm = norm_of<KEY>(shared + shape::KEYS, run.normalise),
                query_norm = norm_of<KEY>(shared + shape::QUERIES, run.normalise);
    if (threadIdx.x % 2 == 0) {
        record[READ + row] = record[WRITE + row] = record[ASK + row] = 1;
        record[STRENGTH + row] =
            row < chunk.rows ? strength_of(run.beta[(int64_t)(chunk.token + row) * run.heads + head]) : WEAK;
        record[GAMMA + row] = record[SOURCE + row] = 0;
        record[KEY_NORM + row] = key_norm;
        record[QUERY_NORM + row] = query_norm;
    }
    record[END + threadIdx.x] =
        threadIdx.x < KEY ? exponential(gamma[63 * channel_rows<KEY>::ROW + threadIdx.x]) : 0.0f;
    __syncthreads();
    fade_tiles<KEY>(run, shared, gamma, record, run.keys + place * 3 * shape::PANELS * PANEL);
    const bool all = fades_little<KEY>(gamma);
    if (!all) pairs_near<KEY>(run, shared, gamma, record, a, weights);
    pairs_far<KEY>(run, shared, gamma, record, all, a, weights);
    solve(a, inverse); /* keys may go after its first barrier */
    __syncthreads();
    uint4 *to = (uint4 *)(run.pairs + place * 2 * PANEL), *to_record = (uint4 *)(run.records + place * RECORD);
    for (int i = threadIdx.x; i < PANEL / 16; i += 128) {
        to[i] = ((const uint4 *)inverse)[i];
        to[PANEL / 16 + i] = ((const uint4 *)weights)[i];
    }
    for (int i = threadIdx.x; i < RECORD / 4; i += 128) to_record[i] = ((const uint4 *)record)[i];
}

/* ---- what is left of a chunk ---- */

template <class ENGINE, int KEY, int ROLE> struct inside_channel : inside<ENGINE, KEY, 1, true, ROLE> {
    typedef inside<ENGINE, KEY, 1, true, ROLE> base;
    using base::half, base::record, base::role, base::rows, base::thread;
    using base::now, base::own, base::pair, base::run, base::shared, base::sums, base::after;
    enum { ROW = channel_rows<KEY>::ROW, GAMMA_AT = base::STAGED + 2 * PANEL, PARTS = 4 };
    enum { SUMS_AT = base::BYTES, BYTES = SUMS_AT + PARTS * KEY * 4 };

    __device__ __forceinline__ float *gamma() const { return (float *)(shared + GAMMA_AT); }

    /* Sums over values of S D, each channel for itself: two channels and a part of the values a thread. */
    __device__ __forceinline__ void sum_channel_states(const char *stage, bool first) {
        const int channel = thread % (KEY / 2) * 2, part = thread / (KEY / 2);
        if (part >= PARTS) return;
        float2 *to = (float2 *)(shared + SUMS_AT) + (part * KEY + channel) / 2, sum = {0, 0};
        for (int row = part * (64 / PARTS); row < (part + 1) * (64 / PARTS); row++) {
            const int at = tile_at(row, channel / 8) + channel % 8 * 2;
            const float2 x = unpack(*(const uint32_t *)(stage + base::STATE + at)),
                         y = unpack(*(const uint32_t *)(stage + base::GRADIENT + at));
            sum.x += x.x * y.x;
            sum.y += x.y * y.y;
        }
        *to = first ? sum : make_float2(to->x + sum.x, to->y + sum.y);
    }

    /* Tokens of this warp's rows as readers: adds what they read of the tokens before them; `turned` holds the pairs'
     * gradients with readers as columns. */
    __device__ __forceinline__ void add_read(const char *turned) {
        const float *g = gamma(), *norm = record + KEY_NORM;
        const bool all = fades_little<KEY>(g);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            this->forget(); /* registers are short */
            const int lane = thread % 32, warp = first_row(thread) / 16, row = row_of(thread);
            const int block = 4 * half + b;
            float part[8] = {}, *to = sums + 8 * b;
#pragma unroll 1
            for (int k = 0; k < warp + all; k++) {
                uint32_t left[4], right[4];
                load_matrices<true>(
                    left, turned + tile_at(16 * k + lane / 16 * 8 + lane % 8, first_row(thread) / 8 + lane / 8 % 2));
                load_faded<KEY>(right, rows + base::KEYS, g, k, block, first_row(thread), -1, norm);
                add_product(part, left, right);
                add_product(part + 4, left, right + 2);
            }
            float mine[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int channel = 16 * block + i / 4 * 8 + lane % 4 * 2 + i % 2;
                mine[i] = g[(row + i / 2 % 2 * 8) * ROW + channel];
                to[i] += part[i] * exponential(mine[i] - g[first_row(thread) * ROW + channel]);
            }
#pragma unroll 1
            for (int j = first_row(thread); j < first_row(thread) + 16 && !all; j++) {
                const float weight[2] = {element(turned, j, row) * norm[j], element(turned, j, row + 8) * norm[j]};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int channel = 16 * block + i / 4 * 8 + lane % 4 * 2 + i % 2;
                    to[i] += weight[i / 2 % 2] * element(rows + base::KEYS, j, channel) *
                             exponential(fminf(mine[i] - g[j * ROW + channel], 0.0f));
                }
            }
        }
    }

    /* Tokens of this warp's rows as writers: adds to `after` what the tokens from them on read of them. */
    __device__ __forceinline__ void add_written(const char *queries, const char *keys) {
        const int lane = thread % 32, warp = first_row(thread) / 16, row = row_of(thread),
                  last = first_row(thread) + 15;
        const float *g = gamma(), *query_norm = record + QUERY_NORM, *key_norm = record + KEY_NORM;
        const bool all = fades_little<KEY>(g);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int block = 4 * half + b;
            float part[8] = {}, *to = after + 8 * b;
#pragma unroll 1
            for (int k = warp + !all; k < 4; k++) {
                uint32_t left[4], right[4];
                load_step(left, queries, k, thread);
                load_faded<KEY>(right, rows + base::QUERIES, g, k, block, last, 1, query_norm);
                add_product(part, left, right);
                add_product(part + 4, left, right + 2);
                load_step(left, keys, k, thread);
                load_faded<KEY>(right, rows + base::KEYS, g, k, block, last, 1, key_norm);
                add_product(part, left, right);
                add_product(part + 4, left, right + 2);
            }
            float mine[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int channel = 16 * block + i / 4 * 8 + lane % 4 * 2 + i % 2;
                mine[i] = g[(row + i / 2 % 2 * 8) * ROW + channel];
                to[i] += part[i] * exponential(g[last * ROW + channel] - mine[i]);
            }
#pragma unroll 1
            for (int r = first_row(thread); r <= last && !all; r++) {
                const float query[2] = {element(queries, row, r) * query_norm[r],
                                        element(queries, row + 8, r) * query_norm[r]},
                            key[2] = {element(keys, row, r) * key_norm[r], element(keys, row + 8, r) * key_norm[r]};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int channel = 16 * block + i / 4 * 8 + lane % 4 * 2 + i % 2;
                    to[i] += (query[i / 2 % 2] * element(rows + base::QUERIES, r, channel) +
                              key[i / 2 % 2] * element(rows + base::KEYS, r, channel)) *
                             exponential(fminf(g[r * ROW + channel] - mine[i], 0.0f));
                }
            }
        }
    }
    static __device__ __forceinline__ float element(const char *tile, int row, int column) {
        return __bfloat162float(*(const __nv_bfloat16 *)(tile + tile_at(row, column / 8) + column % 8 * 2));
    }

    /* x times 2^(gamma) or 2^(end - gamma) and `by`, channel by channel. */
    __device__ __forceinline__ void fade(float (&x)[32], bool to_end, float by) {
        const float *g = gamma();
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int row = row_of(thread) + i / 2 % 2 * 8, channel = 64 * half + column_of(i / 2, thread) + i % 2;
            const float mine = g[row * ROW + channel];
            x[i] *= by * exponential(to_end ? g[63 * ROW + channel] - mine : mine);
        }
    }

    __device__ __forceinline__ void turn_pairs() {
        const float sign = role == 0 ? run.scale : -1;
        const int first = half * base::COLUMNS;
#pragma unroll
        for (int k = 0; k < base::COLUMNS / 16; k++) {
            uint32_t part[4];
            this->put_strength(k);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = 4 * k + i, last = row_of(thread) + i % 2 * 8 - role,
                          column = first + column_of(at, thread);
                part[i] =
                    pack(column <= last ? sign * pair[2 * at] : 0, column + 1 <= last ? sign * pair[2 * at + 1] : 0);
            }
            ENGINE::store_turned(shared + (role == 0 ? base::QUERY_PAIRS : base::KEY_PAIRS), first / 16 + k, part,
                                 thread);
        }
    }

    /* Of the writers' part that goes through the state after the chunk: sums over tokens. */
    __device__ __forceinline__ void sum_writes() {
        float *to = own->written + first_row(thread) / 16 * KEY + 64 * half;
        const float norm[2] = {record[KEY_NORM + row_of(thread)], record[KEY_NORM + row_of(thread) + 8]};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, rows + base::KEYS + half * PANEL, k, thread);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const float2 low = unpack(part[i]), high = unpack(part[i + 1]);
                const float *x = after + 8 * k + 2 * i;
                const float one = sum_of_column(norm[0] * x[0] * low.x + norm[1] * x[2] * high.x),
                            two = sum_of_column(norm[0] * x[1] * low.y + norm[1] * x[3] * high.y);
                if (thread % 32 < 4) *(float2 *)(to + column_of(4 * k + i, thread)) = make_float2(one, two);
            }
        }
    }

    /* x times the group's own rows, to or onto the gradient of gamma, which takes the room of gamma. */
    __device__ __forceinline__ void put_decays(const float (&x)[32], const char *tile, const float *norm, bool add) {
        float *to = gamma() + 64 * half;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, tile + half * PANEL, k, thread);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = row_of(thread) + i % 2 * 8;
                const float2 y = unpack(part[i]);
                float2 *at = (float2 *)(to + row * ROW + column_of(4 * k + i, thread));
                float2 sum = {x[8 * k + 2 * i] * y.x * norm[row], x[8 * k + 2 * i + 1] * y.y * norm[row]};
                if (add) sum = make_float2(sum.x + at->x, sum.y + at->y);
                *at = sum;
            }
        }
    }

    __device__ __forceinline__ void store_numbers(int head) {
        const float *sums_of = (const float *)(shared + SUMS_AT), *writes = own->written;
        if (thread >= 128 && thread < 128 + now.chunk.rows && run.beta_gradient)
            run.beta_gradient[(int64_t)(now.chunk.token + thread - 128) * run.heads + head] =
                own->of[0].beta[thread - 128];
        if (thread >= KEY || !run.decay_gradient) return;
        float sum = 0;
        for (int part = 0; part < PARTS; part++) sum += sums_of[part * KEY + thread];
        sum *= record[END + thread];
        for (int warp = 0; warp < 4; warp++) sum += writes[warp * KEY + thread];
#pragma unroll 4
        for (int row = 63; row >= 0; row--) {
            sum += gamma()[row * ROW + thread];
            const int64_t at = ((int64_t)(now.chunk.token + row) * run.heads + head) * KEY + thread;
            if (row < now.chunk.rows) run.decay_gradient[at] = run.decay[at] < -104 ? 0 : sum;
        }
    }

    __device__ __forceinline__ void finish(int head) {
        block_wait(base::THREADS); /* the slice may go */
        sum_channels<KEY>(run, now.chunk, head, gamma());
        turn_pairs();
        block_wait(base::THREADS);
        this->forget();
        fade(sums, false, role == 0 ? run.scale : -1);
        add_read(shared + (role == 0 ? base::QUERY_PAIRS : base::KEY_PAIRS));
        if constexpr (ROLE == 1) {
            this->forget();
            fade(after, true, 1);
            sum_writes();
            add_written(shared + base::QUERY_PAIRS, shared + base::KEY_PAIRS);
        }
        block_wait(base::THREADS); /* gamma may go */
        this->forget();
        if constexpr (ROLE == 1) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const float write = after[i];
                after[i] = sums[i] - write;
                sums[i] += write;
            }
            put_decays(after, rows + base::KEYS, record + KEY_NORM, false);
        }
        block_wait(base::THREADS);
        if (role == 0) put_decays(sums, rows + base::QUERIES, record + QUERY_NORM, true);
        block_wait(base::THREADS);
        store_numbers(head);
    }
};

template <class ENGINE, int KEY>
static __global__ void __launch_bounds__(2 * KEY * 2, 1)
    delta_channel_inside(const __grid_constant__ delta_backward_run run) {
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group % 2 == 0)
        start_steps<inside_channel<ENGINE, KEY, 0>>(run, group / 2);
    else
        start_steps<inside_channel<ENGINE, KEY, 1>>(run, group / 2);
}

} // namespace ln

#endif
