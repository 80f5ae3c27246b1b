/* What is left of each chunk; a block takes a chunk and a key head, and the value heads that share it one after the
 * other. With R' = beta R, rows divided by their lengths where that is asked for, e[i][j] = e^(gamma[i] - gamma[j]):
 *
 *     dQ = scale e^gamma dO S^T + M K,      M = scale e (dO V'^T), j <= i
 *     dK as a reader = -e^gamma R' S^T + Z K,   Z = -e (R' V'^T), j < i
 *     dK as a writer = e^(end - gamma) V' D^T + Z^T K + M^T Q,   dbeta[i] = R'[i] V'[i] / beta[i]^2
 *
 * the last because V' / beta = V - K~ S - (A / beta) V' is what beta multiplies, and R its gradient. Groups of four
 * warps have the queries or the keys, and 64 channels of their gradients each; of pairs of tokens they share the
 * columns, which meet in shared memory.
 *
 * When tokens have one decay, the gradient of gamma[i] is Q dQ + K (dK as a reader - dK as a writer), and at the end of
 * the chunk besides K^ V' D^T of all tokens and e^end S D. What a pair of tokens adds to one token's it takes from the
 * other's: both are made of the same M or Z, rounded, and of the same keys and queries, so that it cancels as it
 * should. To that end lengths go with M and Z, and keys and queries as they came are multiplied with: sums are of x dx.
 *
 * Sums over value heads stay in the accumulators. Before a head's products its factors of rows are divided out, after
 * them multiplied in; factors below TINY are that, as what comes with them is below the rounding of the sums. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_INSIDE_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_INSIDE_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

static constexpr float TINY = 0x1p-24f, NEVER = -150; /* 2^NEVER is 0 in float32 */

/* ROLE 0: queries, 1: keys. */
template <class ENGINE, int KEY, int STAGES, bool CHANNEL, int ROLE> struct inside {
    static constexpr int role = ROLE;
    enum { PANELS = KEY / 64, GROUPS = 2 * PANELS, THREADS = 128 * GROUPS, COLUMNS = 64 / PANELS /* of pairs */ };
    enum {
        OUTPUT = 0,
        VALUES = PANEL,
        RESIDUALS = 2 * PANEL,
        STATE = 3 * PANEL,
        GRADIENT = STATE + PANELS * PANEL,
        STAGE = GRADIENT + PANELS * PANEL
    };
    enum { FACTORS = (CHANNEL ? RECORD : END + 4) - STRENGTH /* floats of a record that are read, from STRENGTH on */ };
    /* Keys and queries of this task, with two stages those of the next; the stages; the pairs' gradients, which with
     * one stage lie where the last slice was. */
    enum {
        KEYS = 0,
        QUERIES = PANELS * PANEL,
        ROWS = 2 * QUERIES,
        STAGED = (STAGES == 2 ? 2 : 1) * ROWS,
        QUERY_PAIRS = STAGES == 1 ? STAGED : STAGED + STAGES * STAGE,
        KEY_PAIRS = QUERY_PAIRS + PANEL,
        NUMBERS = STAGED + STAGES * STAGE + (STAGES == 1 ? 0 : 2 * PANEL)
    };
    struct head_numbers {
        float decay[GROUPS][64], after[PANELS][64], beta[64], state[4 * PANELS];
        float kept[64]; /* 0 where a token's decay is 0 in float32, so that its derivative is, else 1 */
    };
    struct numbers {
        uint64_t full[(STAGES + 1) / 2 * 2];
        head_numbers of[CHANNEL ? 1 : 2]; /* those of the last head are read while the next one's are made */
        float along[GROUPS][64], written[CHANNEL ? 4 * KEY : 4], factors[STAGES][FACTORS];
    };
    enum { BYTES = NUMBERS + (int)sizeof(numbers) };

    const delta_backward_run &run;
    char *shared;
    numbers *own;
    char *rows;    /* keys and queries of this task */
    float *record; /* of this value head, of which STRENGTH is the first that is there */
    int thread;    /* threadIdx.x, of which the compiler does not know it: addresses are made again in each step */
    int half;      /* of this group of warps: which columns of pairs and panel of channels */
    float pair[COLUMNS / 2]; /* dO V'^T or R' V'^T */
    float sums[32];          /* dO S^T, then the gradient of query; or R' S^T, then that of key as a reader */
    float after[ROLE == 1 ? 32
                : CHANNEL ? 1
                          : 8]; /* V' D^T, then the gradient of key; for queries S^T D near its diagonal */
    float before[2];            /* the row's own key or query times its gradient by the value heads so far */
    int turn;                   /* of numbers::of */
    struct {
        delta_backward_chunk chunk;
        int head;
    } last; /* whose numbers are to be stored; head -1: none */

    /* A step is a slice of a value head of a task. A block's steps follow one another through its tasks, one in
     * gridDim.x: the next task begins when the last is done. */
    struct cursor {
        int index, key_head, member, slice, rows_at;
        delta_backward_chunk chunk;
    };
    cursor now;
    /* key_head may be too large: by so many tasks. */
    __device__ __forceinline__ void enter(cursor &at) const {
        const int task = at.key_head, skipped = task / run.key_heads;
        at.index += skipped;
        at.key_head = task - skipped * run.key_heads;
        if (at.index < run.chunk_count) at.chunk = run.chunks[at.index];
        ENGINE::differ(at.chunk.token, at.chunk.rows);
    }
    __device__ __forceinline__ void advance(cursor &at) const {
        if (++at.slice < run.slices) return;
        at.slice = 0;
        if (++at.member < run.group) return;
        at.member = 0;
        at.key_head += gridDim.x;
        at.rows_at = STAGES == 2 ? ROWS - at.rows_at : 0;
        enter(at);
    }
    /* With stages ahead the queries' warps, which have less to do, copy for all. */
    enum { LOADERS = STAGES == 1 ? THREADS : THREADS / 2 };
    static constexpr bool loads = STAGES == 1 || ROLE == 0;
    /* The first, which asks for what lies in a row, is in a warp without pairs below the diagonal. */
    __device__ __forceinline__ int loader() const {
        return STAGES == 1 ? thread : (half * 128 + thread % 128 + 96) % LOADERS;
    }
    __device__ __forceinline__ void load_rows_of(const cursor &at) {
        copy_tokens<KEY, LOADERS>(shared + at.rows_at + KEYS, run.key, at.key_head, 0, at.chunk, loader());
        copy_tokens<KEY, LOADERS>(shared + at.rows_at + QUERIES, run.query, at.key_head, 0, at.chunk, loader());
    }
    __device__ __forceinline__ void load(const cursor &at, int stage) {
        char *to = shared + STAGED + stage * STAGE;
        const int head = value_head(run, at.key_head, at.member), from = loader();
        const int64_t record_at = place_of(run, at.index, head), place = record_at * run.slices + at.slice;
        uint64_t *full = &own->full[stage];
        ENGINE::expect(full, (1 + 2 * PANELS) * PANEL + FACTORS * 4, from);
        ENGINE::template copy<LOADERS>(to + VALUES, run.values + place * PANEL, PANEL, full, from);
        ENGINE::template copy<LOADERS>(to + STATE, run.states + place * PANELS * PANEL, PANELS * PANEL, full, from);
        ENGINE::template copy<LOADERS>(to + GRADIENT, run.state_gradients + place * PANELS * PANEL, PANELS * PANEL,
                                       full, from);
        ENGINE::template copy<LOADERS>((char *)own->factors[stage], run.records + record_at * RECORD + STRENGTH,
                                       FACTORS * 4, full, from);
        copy_tokens<64, LOADERS>(to + OUTPUT, run.output_gradient, head, at.slice * 64, at.chunk, from);
        copy_tokens<64, LOADERS>(to + RESIDUALS, run.residual, head, at.slice * 64, at.chunk, from);
        if (STAGES < 3 && at.slice == 0 && at.member == 0) load_rows_of(at);
    }

    static __device__ __forceinline__ void scale_rows(float (&x)[32], float low, float high) {
#pragma unroll
        for (int i = 0; i < 32; i++) x[i] *= i / 2 % 2 ? high : low;
    }
    /* What this row's product with a state is multiplied by: of queries and of keys that write. */
    __device__ __forceinline__ float factor(int row) const {
        const float gamma = record[GAMMA + row];
        return role == 0 ? run.scale * record[QUERY_NORM + row] * fmaxf(exponential(gamma), TINY)
                         : record[KEY_NORM + row] * fmaxf(exponential(record[GAMMA + 63] - gamma), TINY);
    }
    /* Sums over value heads before this one are divided by this one's factors; CHANNEL keeps them in memory. */
    __device__ __forceinline__ void open_sums(float (&kept)[32]) {
        const float low = factor(row_of(thread)), high = factor(row_of(thread) + 8);
        scale_rows(kept, low != 0 ? reciprocal(low) : 0, high != 0 ? reciprocal(high) : 0);
    }
    __device__ __forceinline__ void start_products(const char *stage, bool first, bool begin) {
        const bool more = !first, all = more || (!begin && !CHANNEL);
        if (first) {
            if (begin) before[0] = before[1] = 0;
            if (role == 0 && !CHANNEL) clear(after);
            if (all) open_sums(gradient());
        }
        ENGINE::ready(pair, sums, after);
        const char *left = stage + (role == 0 ? OUTPUT : RESIDUALS);
        ENGINE::template tiles_by_rows<COLUMNS, 4>(pair, more, left, stage + VALUES + half * COLUMNS * 128);
        ENGINE::template tiles_by_columns<64>(sums, role == 0 ? all : more, left, stage + STATE + half * PANEL);
        if constexpr (role == 1)
            ENGINE::template tiles_by_columns<64>(after, all, stage + VALUES, stage + GRADIENT + half * PANEL);
        else if (!CHANNEL)
            multiply_states(stage + STATE + half * PANEL, stage + GRADIENT + half * PANEL);
    }

    /* S^T D of 64 channels: of this warp's 16 values the columns of eight that meet the diagonal. */
    __device__ __forceinline__ void multiply_states(const char *state, const char *gradient) {
        const int lane = thread % 32;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t left[4], right[4];
            load_step(left, state, k, thread);
            load_matrices<false>(
                right, gradient + tile_at(first_row(thread) + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            add_product(after, left, right);
            add_product(after + 4, left, right + 2);
        }
    }
    /* Of a 16 x 16 block in accumulators (8 of a lane), the diagonal's elements of rows l / 4 and l / 4 + 8 lie where
     * this is so. */
    __device__ __forceinline__ bool on_diagonal() const {
        return thread % 32 / 8 == thread % 4;
    }
    __device__ __forceinline__ float2 diagonal_of(const float *block) const {
        const bool odd = thread / 4 % 2;
        return make_float2(odd ? block[1] : block[0], odd ? block[7] : block[6]);
    }
    /* e^end S D. */
    __device__ __forceinline__ void sum_states() {
        const float2 both = diagonal_of(after);
        float sum = on_diagonal() ? both.x + both.y : 0;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (thread % 32 == 0) own->of[turn].state[half * 4 + first_row(thread) / 16] = sum * record[END];
    }
    /* Whether columns 16 K .. of the group's are those of this warp's rows: then the gradient of beta is there. */
    __device__ __forceinline__ bool put_strength(int k) {
        if (half * COLUMNS + 16 * k != first_row(thread)) return false;
        if (role == 1 && on_diagonal()) {
            const float2 both = diagonal_of(pair + 8 * k);
            const int row = row_of(thread);
            const float low = record[STRENGTH + row], high = record[STRENGTH + row + 8];
            own->of[turn].beta[row] = both.x / (low * low);
            own->of[turn].beta[row + 8] = both.y / (high * high);
        }
        return true;
    }

    /* M or Z, to its tile. */
    __device__ __forceinline__ void weigh() {
        const int row = row_of(thread), first = half * COLUMNS, column = column_of(0, thread),
                  last_column = thread % 32 / 4 - role;
        const uint32_t below = (column <= last_column ? 0xffffu : 0) | (column + 1 <= last_column ? 0xffff0000u : 0);
        float by[2], gamma[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            by[r] = role == 0 ? run.scale * record[QUERY_NORM + row + 8 * r] : -record[KEY_NORM + row + 8 * r];
            gamma[r] = record[GAMMA + row + 8 * r];
        }
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) {
            uint32_t part[4] = {};
            if (first + 16 * k <= first_row(thread)) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2 source = *(const float2 *)(record + SOURCE + first + column_of(4 * k + i, thread));
                    const float *x = pair + 8 * k + 2 * i;
                    part[i] = pack(by[i % 2] * x[0] * exponential(gamma[i % 2] - source.x),
                                   by[i % 2] * x[1] * exponential(gamma[i % 2] - source.y));
                }
                if (put_strength(k)) {
                    part[0] &= below;
                    part[2] = 0;
                    part[3] &= below;
                }
            }
            ENGINE::store_step(shared + (role == 0 ? QUERY_PAIRS : KEY_PAIRS), first / 16 + k, part, thread);
        }
    }
    /* Products with states times their factors. */
    __device__ __forceinline__ void close_sums() {
        const int row = row_of(thread);
        if constexpr (role == 0) {
            scale_rows(sums, factor(row), factor(row + 8));
            if (thread < CHUNK)
                own->of[turn].kept[thread] =
                    record[GAMMA + thread] - (thread > 0 ? record[GAMMA + thread - 1] : 0) > NEVER ? 1 : 0;
        } else {
            scale_rows(after, factor(row), factor(row + 8));
            const float2 dot = dot_rows<64>(after, rows + KEYS + half * PANEL, thread);
            if (thread % 4 == 0) {
                own->of[turn].after[half][row] = dot.x - before[0];
                own->of[turn].after[half][row + 8] = dot.y - before[1];
            }
            scale_rows(sums, -record[KEY_NORM + row] * exponential(record[GAMMA + row]),
                       -record[KEY_NORM + row + 8] * exponential(record[GAMMA + row + 8]));
        }
    }
    /* dot_rows of sums and of after. */
    __device__ __forceinline__ void dot_both(float2 &one, float2 &two, const char *tile) const {
        float dot[2][2] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, tile, k, thread);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = unpack(part[i]);
                const int at = 8 * k + 2 * i;
                dot[0][i % 2] += sums[at] * x.x + sums[at + 1] * x.y;
                dot[1][i % 2] += after[at] * x.x + after[at + 1] * x.y;
            }
        }
        one = make_float2(sum_of_row(dot[0][0]), sum_of_row(dot[0][1]));
        two = make_float2(sum_of_row(dot[1][0]), sum_of_row(dot[1][1]));
    }
    /* The gradient of gamma; those of keys as readers and writers become one. */
    __device__ __forceinline__ void put_decays() {
        float2 all, decay;
        if constexpr (role == 0) {
            all = dot_rows<64>(sums, rows + QUERIES + half * PANEL, thread);
            decay = make_float2(all.x - before[0], all.y - before[1]);
        } else {
            float2 read, write;
            dot_both(read, write, rows + KEYS + half * PANEL);
            all = make_float2(read.x + write.x, read.y + write.y);
            decay = make_float2(read.x - (write.x - before[0]), read.y - (write.y - before[1]));
#pragma unroll
            for (int i = 0; i < 32; i++) after[i] += sums[i];
        }
        before[0] = all.x, before[1] = all.y;
        if (thread % 4) return;
        float *to = own->of[turn].decay[2 * half + role];
        to[row_of(thread)] = decay.x;
        to[row_of(thread) + 8] = decay.y;
    }

    /* After the slices of a value head. */
    __device__ __forceinline__ void finish(int head) {
        const int panel = half * PANEL;
        if (STAGES == 3) { /* keys and queries were asked for in the step before, or in this one */
            if (loads) {
                if (run.slices > 1)
                    copies_wait<3>();
                else
                    copies_wait<1>();
                ENGINE::publish();
            }
            ENGINE::template hand_over<role, THREADS>();
        }
        if (STAGES == 1) block_wait(THREADS); /* the slice may go */
        if (role == 0) sum_states();
        close_sums();
        weigh();
        ENGINE::publish();
        if (STAGES == 1)
            block_wait(THREADS);
        else
            ENGINE::template pass<role, THREADS>();
        ENGINE::template tiles_by_columns<64>(sums, true, shared + (role == 0 ? QUERY_PAIRS : KEY_PAIRS),
                                              rows + KEYS + panel);
        if constexpr (role == 1) {
            ENGINE::turned_by_columns(after, shared + KEY_PAIRS, rows + KEYS + panel);
            ENGINE::template turned_by_columns<true>(after, shared + QUERY_PAIRS, rows + QUERIES + panel);
        }
        ENGINE::template settle<0>(sums, after);
        put_decays();
        last.chunk = now.chunk, last.head = head;
        turn ^= 1;
    }

    /* Gradients of decays and beta of the last head; one warp, which has no pairs below the diagonal, two tokens a
     * lane. */
    __device__ __forceinline__ void store_numbers() {
        if (role != 0 || thread / 32 != (PANELS - 1) * 8 || last.head < 0) return;
        const int lane = thread % 32;
        const head_numbers &from = own->of[turn ^ 1];
        const float2 beta = ((const float2 *)from.beta)[lane], kept = ((const float2 *)from.kept)[lane];
        float2 decay = {0, 0};
        float write = 0, states = 0;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const float2 x = ((const float2 *)from.decay[group])[lane];
            decay.x += x.x, decay.y += x.y;
        }
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) {
            const float2 x = ((const float2 *)from.after[panel])[lane];
            const float4 y = ((const float4 *)from.state)[panel];
            write += x.x + x.y;
            states += (y.x + y.y) + (y.z + y.w);
        }
        float sum = decay.x + decay.y;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const float later = __shfl_down_sync(~0u, sum, step);
            write += __shfl_xor_sync(~0u, write, step);
            if (lane + step < 32) sum += later;
        }
        sum += write + states;
        const int token = last.chunk.token + 2 * lane;
        const int64_t at = (int64_t)token * run.heads + last.head;
        const float out[2] = {kept.x * sum, kept.y * (sum - decay.x)}, out_beta[2] = {beta.x, beta.y};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (2 * lane + i >= last.chunk.rows) continue;
            if (run.beta_gradient) run.beta_gradient[at + i * run.heads] = out_beta[i];
            if (run.decay_gradient && run.decay) run.decay_gradient[at + i * run.heads] = out[i];
        }
    }

    /* Of 128 a thread: keys have more sums than queries. */
    static __device__ __forceinline__ void share_registers() {
        if (KEY == 128) ENGINE::template share_registers<role == 0, CHANNEL ? 104 : 120, CHANNEL ? 152 : 136>();
    }
    /* The compiler forgets what it made of them. */
    __device__ __forceinline__ void forget() {
        thread = __shfl_sync(~0u, thread, thread % 32) & (THREADS - 1);
        half = thread / 256;
    }
    /* SELF: this, or what is made of it. */
    template <class SELF> __device__ __forceinline__ void go(SELF &self) {
        now = {0, (int)blockIdx.x};
        enter(now);
        cursor ahead = now;
        last.head = -1;
        turn = 0;
        ENGINE::template open<THREADS>(own->full, STAGES);
        for (int i = 0; i < STAGES - 1 && loads; i++) {
            if (STAGES == 3) copies_commit(); /* two a step */
            if (ahead.index < run.chunk_count) load(ahead, i);
            copies_commit();
            advance(ahead);
        }
        for (int stage = 0, phase = 0; now.index < run.chunk_count; advance(now)) {
            forget();
            if (STAGES == 1) {
                ENGINE::publish();
                block_wait(THREADS);
                load(now, 0);
                copies_commit();
            }
            if (loads) {
                copies_wait<STAGES == 3 ? 2 : 0>();
                ENGINE::publish();
            }
            ENGINE::await(&own->full[stage], phase);
            block_wait(THREADS);
            const char *tiles = shared + STAGED + stage * STAGE;
            const bool first = now.slice == 0;
            rows = shared + now.rows_at;
            record = (float *)((char *)own->factors[stage] - STRENGTH * 4);
            start_products(tiles, first, now.member == 0);
            if (STAGES > 1 && loads) {
                if (STAGES == 3) {
                    if (first && now.member == 0) load_rows_of(now);
                    copies_commit();
                }
                if (ahead.index < run.chunk_count) load(ahead, stage == 0 ? STAGES - 1 : stage - 1);
                copies_commit();
                advance(ahead);
            }
            if constexpr (CHANNEL)
                self.sum_channel_states(tiles, first);
            else if (first)
                store_numbers();
            ENGINE::template settle<0>(pair, sums, after);
            if (now.slice == run.slices - 1) {
                self.finish(value_head(run, now.key_head, now.member));
                if (CHANNEL ? total(now.member) : now.member == run.group - 1) put_gradient();
            }
            phase ^= stage == STAGES - 1;
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
        if (CHANNEL) return;
        block_wait(THREADS);
        store_numbers();
    }

    __device__ __forceinline__ float (&gradient())[32] {
        if constexpr (role == 1 && !CHANNEL)
            return after;
        else
            return sums;
    }
    /* CHANNEL: sums over value heads, each thread its own elements, in the order of the heads. */
    __device__ __forceinline__ bool total(int member) {
        float4 *kept = (float4 *)run.totals + (int64_t)blockIdx.x * 8 * THREADS + thread;
        if (member > 0)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float4 x = kept[i * THREADS];
                sums[4 * i] = x.x + sums[4 * i], sums[4 * i + 1] = x.y + sums[4 * i + 1];
                sums[4 * i + 2] = x.z + sums[4 * i + 2], sums[4 * i + 3] = x.w + sums[4 * i + 3];
            }
        if (member == run.group - 1) return true;
#pragma unroll
        for (int i = 0; i < 8; i++)
            kept[i * THREADS] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
        return false;
    }
    __device__ __forceinline__ void put_gradient() {
        const ln_cuda_tensor &to = role == 0 ? run.query_gradient : run.key_gradient;
        if (run.normalise)
            unnormalise(gradient());
        else
            block_wait(THREADS); /* keys and queries may go */
        if (!to.data) return;
        if (run.gradients_bf16)
            store_narrow(to);
        else
            store_wide(to);
    }
    /* The gradient takes the place of the keys or queries, whose rows and channels only this warp still read. */
    __device__ __forceinline__ void store_narrow(const ln_cuda_tensor &to) {
        char *tile = rows + (role == 0 ? QUERIES : KEYS) + half * PANEL;
        const float(&x)[32] = gradient();
        const int lane = thread % 32, piece = lane % 8;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
#pragma unroll
            for (int i = 0; i < 4; i++) part[i] = pack(x[8 * k + 2 * i], x[8 * k + 2 * i + 1]);
            ENGINE::store_step(tile, k, part, thread);
        }
        __syncwarp();
        int row = first_row(thread) + lane / 8;
        __nv_bfloat16 *at = (__nv_bfloat16 *)to.data + (now.chunk.token + row) * to.token_stride +
                            now.key_head * to.head_stride + half * 64 + piece * 8;
        const int64_t step = 4 * to.token_stride;
#pragma unroll
        for (int i = 0; i < 4; i++, row += 4, at += step)
            if (row < now.chunk.rows) *(uint4 *)at = *(const uint4 *)(tile + tile_at(row, piece));
    }
    __device__ __forceinline__ void store_wide(const ln_cuda_tensor &to) {
        const float(&x)[32] = gradient();
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = row_of(thread) + 8 * r;
            if (row >= now.chunk.rows) continue;
            float *at = (float *)to.data + (now.chunk.token + row) * to.token_stride + now.key_head * to.head_stride +
                        half * 64;
#pragma unroll
            for (int i = r; i < 16; i += 2)
                *(float2 *)(at + column_of(i, thread)) = make_float2(x[2 * i], x[2 * i + 1]);
        }
    }

    /* From the gradient of x / length to that of x; where tokens have one decay the length was multiplied in. */
    __device__ __forceinline__ void unnormalise(float (&x)[32]) {
        const char *tile = rows + (role == 0 ? QUERIES : KEYS) + half * PANEL;
        const float *norm = record + (role == 0 ? QUERY_NORM : KEY_NORM);
        const float2 dot = CHANNEL ? dot_rows<64>(x, tile, thread) : make_float2(before[0], before[1]);
        const int row = row_of(thread);
        if (thread % 4 == 0) {
            own->along[2 * half + role][row] = dot.x;
            own->along[2 * half + role][row + 8] = dot.y;
        }
        block_wait(THREADS);
        float along[2], by[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float n = norm[row + 8 * r];
            along[r] = 0;
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) along[r] += own->along[2 * panel + role][row + 8 * r];
            along[r] *= CHANNEL ? n * n * n : n * n;
            by[r] = CHANNEL ? n : 1;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, tile, k, thread);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 y = unpack(part[i]);
                float *to = x + 8 * k + 2 * i;
                to[0] = by[i % 2] * to[0] - along[i % 2] * y.x;
                to[1] = by[i % 2] * to[1] - along[i % 2] * y.y;
            }
        }
    }
};

template <class STEPS> static __device__ __forceinline__ void start_steps(const delta_backward_run &run, int half) {
    STEPS::share_registers();
    STEPS steps = {run, block_memory()};
    steps.own = (typename STEPS::numbers *)(steps.shared + STEPS::NUMBERS);
    steps.thread = threadIdx.x;
    steps.half = half;
    steps.go(steps);
}

/* Blocks stay and take chunk after chunk: sums over value heads need little room, and copies never pause. */
template <class ENGINE, int KEY, int STAGES>
static __global__ void __launch_bounds__(2 * KEY * 2, 1) delta_inside(const __grid_constant__ delta_backward_run run) {
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group % 2 == 0)
        start_steps<inside<ENGINE, KEY, STAGES, false, 0>>(run, group / 2);
    else
        start_steps<inside<ENGINE, KEY, STAGES, false, 1>>(run, group / 2);
}

} // namespace ln

#endif
