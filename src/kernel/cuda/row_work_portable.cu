/* Row work: a block a row, which its threads hold in registers; sums go through a tree whose shape the width alone
 * decides. */
#include "kernel/cuda/digits.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/row_work.cuh"
#include "kernel/cuda/weight.cuh"

namespace ln {

enum { ROW_THREADS = 1024, ROW_MOST = 8192, BEST_BLOCKS = 128, BEST_THREADS = 256 };

/* h of a row: bf16, and in digits where these are wanted. */
template <int VECTORS>
static __device__ __forceinline__ void leave_h(const ln_cuda_rows &run, const row_part<VECTORS> &row, int width) {
    const int64_t token = blockIdx.x;
    __nv_bfloat16 *h = (__nv_bfloat16 *)run.h + token * run.h_stride;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = row_part<VECTORS>::column(v), padded = (width + 63) / 64 * 64;
        if (column + 3 < width && run.h_stride % 4 == 0)
            *(uint2 *)(h + column) =
                make_uint2(pack(row.value[v][0], row.value[v][1]), pack(row.value[v][2], row.value[v][3]));
        else
            for (int k = 0; k < 4; k++)
                if (column + k < width) h[column + k] = __float2bfloat16(row.value[v][k]);
        if (!run.digits.high) continue;
        float most = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) most = fmaxf(most, digits_size(row.value[v][k]));
#pragma unroll
        for (int k = 1; k < 8; k *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, k));
        if (column >= padded) continue;
        const digit_scale scale = digits_scale(most);
        uint32_t high, low;
        digits_of(row.value[v], scale.inverse, &high, &low);
        char *to = (char *)run.digits.high + 2 * token * padded + digits_place(column);
        *(uint32_t *)to = high;
        *(uint32_t *)(to + padded) = low;
        if (column % 32 == 0) run.digits.step[token * (padded / 32) + column / 32] = scale.step;
    }
}

struct rows_run {
    ln_cuda_rows rows;
    ln_cuda_weight embedding;
};

/* ENTER: the row is that of a token, normed if the model says so; else what a part gave, on top of x. What no kernel
 * before this one writes is asked for before these are waited for. */
template <int VECTORS, bool ENTER>
static __global__ void __launch_bounds__(ROW_THREADS, 1) make_rows(const __grid_constant__ rows_run all) {
    __shared__ float room[ROW_THREADS / 32];
    const ln_cuda_rows &run = all.rows;
    const int64_t token = blockIdx.x, width = run.width;
    const int count = (int)width;
    row_part<VECTORS> row, next = {}, post = {}, x = {};
    let_next_start();
    const ln_cuda_norm &norm = ENTER ? run.embedding_norm : run.post;
    constexpr bool early = !ENTER && VECTORS == 1; /* more leaves no registers for norms */
    if (early && run.next.weight) load_row(next, run.next.weight, count);
    if (early && norm.weight) load_row(post, norm.weight, count);
    wait_for_previous();
    if constexpr (ENTER) {
        const int32_t id = run.ids[token];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const int column = row_part<VECTORS>::column(v);
            row.value[v][0] = row.value[v][1] = row.value[v][2] = row.value[v][3] = 0;
            if (column < count) weights_at(all.embedding, id, column, row.value[v]);
#pragma unroll
            for (int k = 0; k < 4; k++)
                row.value[v][k] = column + k < count ? run.embedding_scale * row.value[v][k] : 0.0f;
        }
    } else {
        load_given(row, x, run, token, count);
    }
    if (!early && norm.weight) load_row(post, norm.weight, count);
    norm_row(row, post, norm, count, run.epsilon, room);
    if constexpr (!ENTER) add_given(row, x, run);
    if (!run.from_norm) store_row(run.x + token * width, row, count);
    if (!early && run.next.weight) load_row(next, run.next.weight, count);
    norm_row(row, next, run.next, count, run.epsilon, room);
    if (run.from_norm) store_row(run.x + token * width, row, count);
    leave_h(run, row, count);
}

template <bool ENTER> static ln_cuda_code start_rows(const rows_run &run, void *stream) {
    const int64_t vectors = (run.rows.width + 63) / 64 * 16; /* whole tiles, for digits */
    const int each = vectors <= ROW_THREADS ? 1 : 2;
    const dim3 grid((unsigned)run.rows.tokens), block((unsigned)(((vectors + each - 1) / each + 31) / 32 * 32));
    return each == 1 ? launch_early(make_rows<1, ENTER>, grid, block, 0, stream, run)
                     : launch_early(make_rows<2, ENTER>, grid, block, 0, stream, run);
}

struct angles_run {
    const int32_t *position;
    const double *inverse;
    double magnitude;
    int pairs, tokens;
    float *cosine, *sine;
};

static __global__ void turn_rows(const __grid_constant__ angles_run run) {
    let_next_start();
    wait_for_previous();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)run.tokens * run.pairs) return;
    const double angle = ((double)*run.position + (double)(i / run.pairs)) * run.inverse[i % run.pairs];
    run.cosine[i] = (float)(run.magnitude * cos(angle));
    run.sine[i] = (float)(run.magnitude * sin(angle));
}

/* ---- logits ---- */

struct best {
    float logit;
    int32_t id;
};
static __device__ __forceinline__ best better(best a, best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}
/* Of the block, in thread 0. */
static __device__ __forceinline__ best block_best(best mine, best *room) {
#pragma unroll
    for (int i = 16; i; i /= 2) {
        const best other = {__shfl_xor_sync(0xffffffffu, mine.logit, i), __shfl_xor_sync(0xffffffffu, mine.id, i)};
        mine = better(mine, other);
    }
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
    __syncthreads();
    for (int i = 1; i < (int)blockDim.x / 32; i++) mine = better(mine, room[i]);
    return mine;
}

struct logits_run {
    float *logits;
    int64_t vocabulary, named, last; /* last: the row of which the best is wanted */
    float scale, cap;
    best *parts; /* [BEST_BLOCKS] */
};

static __global__ void __launch_bounds__(BEST_THREADS) settle_logits(const __grid_constant__ logits_run run) {
    __shared__ best room[BEST_THREADS / 32];
    let_next_start();
    wait_for_previous();
    float *row = run.logits + (int64_t)blockIdx.y * run.vocabulary;
    best mine = {-CUDART_INF_F, 0x7fffffff};
    for (int64_t i = (int64_t)blockIdx.x * BEST_THREADS + threadIdx.x; i < run.vocabulary;
         i += (int64_t)gridDim.x * BEST_THREADS) {
        float logit = run.scale * row[i];
        if (run.cap > 0) logit = run.cap * tanhf(logit / run.cap);
        row[i] = logit;
        const best that = {isnan(logit) || i >= run.named ? -CUDART_INF_F : logit, (int32_t)i};
        mine = better(mine, that);
    }
    mine = block_best(mine, room);
    if (threadIdx.x == 0 && blockIdx.y == run.last) run.parts[blockIdx.x] = mine;
}

static __global__ void __launch_bounds__(BEST_BLOCKS) choose_best(const best *parts, int32_t *to) {
    __shared__ best room[BEST_BLOCKS / 32];
    let_next_start();
    wait_for_previous();
    const best mine = block_best(parts[threadIdx.x], room);
    if (threadIdx.x == 0) *to = mine.id;
}

} // namespace ln

using namespace ln;

static ln_cuda_code check(const ln_cuda_rows *rows) {
    if (rows->tokens < 1 || rows->width < 1 || rows->tokens > 1 << 30 || !rows->x || !rows->h ||
        rows->h_stride < rows->width)
        return LN_CUDA_ARGUMENT;
    return rows->width > ROW_MOST ? LN_CUDA_UNSUPPORTED : LN_CUDA_OK;
}

ln_cuda_code ln_cuda_rows_enter(const ln_cuda_rows *rows, const ln_cuda_weight *embedding, void *stream) {
    const ln_cuda_code code = check(rows);
    if (code) return code;
    if (!rows->ids || embedding->columns != rows->width) return LN_CUDA_ARGUMENT;
    const rows_run run = {*rows, *embedding};
    return start_rows<true>(run, stream);
}

ln_cuda_code ln_cuda_rows_finish(const ln_cuda_rows *rows, void *stream) {
    const ln_cuda_code code = check(rows);
    if (code) return code;
    if (!rows->given) return LN_CUDA_ARGUMENT;
    const rows_run run = {*rows, {}};
    return start_rows<false>(run, stream);
}

ln_cuda_code ln_cuda_angles(const int32_t *position, const double *inverse, double magnitude, int64_t pairs,
                            int64_t tokens, float *cosine, float *sine, void *stream) {
    if (pairs == 0) return LN_CUDA_OK;
    if (pairs < 0 || pairs > 1 << 20 || tokens < 1 || tokens > 1 << 30 || !position || !inverse || !cosine || !sine)
        return LN_CUDA_ARGUMENT;
    const angles_run run = {position, inverse, magnitude, (int)pairs, (int)tokens, cosine, sine};
    return launch_early(turn_rows, dim3((unsigned)((pairs * tokens + 127) / 128)), dim3(128), 0, stream, run);
}

ln_cuda_code ln_cuda_logits(float *logits, int64_t tokens, int64_t vocabulary, int64_t named, float scale, float cap,
                            int32_t *to, void *workspace, void *stream) {
    if (!logits || tokens < 1 || tokens > 65535 || vocabulary < 1 || !workspace) return LN_CUDA_ARGUMENT;
    const logits_run run = {logits, vocabulary, named, tokens - 1, scale, cap, (best *)workspace};
    const ln_cuda_code code =
        launch_early(settle_logits, dim3(BEST_BLOCKS, (unsigned)tokens), dim3(BEST_THREADS), 0, stream, run);
    if (code || !to) return code;
    return launch_early(choose_best, dim3(1), dim3(BEST_BLOCKS), 0, stream, (const best *)workspace, to);
}
