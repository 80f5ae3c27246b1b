/* Row work: a block a row; sums go through a tree whose shape the number of threads alone decides. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/row_work_cuda.h"
#include "kernel/cuda/weight.cuh"

namespace ln {

enum { ROW_THREADS = 512, BEST_BLOCKS = 128, BEST_THREADS = 256 };

/* The sum over the block, the same in each thread; `room` has a float a warp. */
static __device__ __forceinline__ float block_sum(float value, float *room) {
#pragma unroll
    for (int i = 16; i; i /= 2) value += __shfl_xor_sync(0xffffffffu, value, i);
    __syncthreads(); /* the room may still be read */
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) sum += room[i];
    return sum;
}

/* The row in shared memory, normed. */
static __device__ __forceinline__ void norm_row(float *row, const ln_cuda_norm &norm, int64_t width, float epsilon,
                                                float *room) {
    if (!norm.weight) return;
    float mean = 0;
    if (norm.bias) {
        for (int64_t i = threadIdx.x; i < width; i += blockDim.x) mean += row[i];
        mean = block_sum(mean, room) / (float)width;
    }
    float squares = 0;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    squares = block_sum(squares, room);
    const float factor = 1.0f / sqrtf(squares / (float)width + epsilon);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
        row[i] = (row[i] - mean) * factor * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
}

/* x and h from a row of x in shared memory; a thread touches the same columns all through. */
static __device__ __forceinline__ void leave_row(const ln_cuda_rows &run, float *row, float *room) {
    const int64_t token = blockIdx.x, width = run.width;
    float *x = run.x + token * width;
    if (!run.from_norm)
        for (int64_t i = threadIdx.x; i < width; i += blockDim.x) x[i] = row[i];
    norm_row(row, run.next, width, run.epsilon, room);
    if (run.from_norm)
        for (int64_t i = threadIdx.x; i < width; i += blockDim.x) x[i] = row[i];
    __nv_bfloat16 *h = (__nv_bfloat16 *)run.h + token * run.h_stride;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) h[i] = __float2bfloat16(row[i]);
}

struct enter_run {
    ln_cuda_rows rows;
    ln_cuda_weight embedding;
};

static __global__ void __launch_bounds__(ROW_THREADS) enter_rows(const __grid_constant__ enter_run run) {
    __shared__ float room[ROW_THREADS / 32];
    float *row = (float *)block_memory();
    let_next_start();
    wait_for_previous();
    const int32_t id = run.rows.ids[blockIdx.x];
    for (int64_t i = threadIdx.x; i < run.rows.width; i += blockDim.x)
        row[i] = run.rows.embedding_scale * weight_at(run.embedding, id, i);
    norm_row(row, run.rows.embedding_norm, run.rows.width, run.rows.epsilon, room);
    leave_row(run.rows, row, room);
}

static __global__ void __launch_bounds__(ROW_THREADS) finish_rows(const __grid_constant__ ln_cuda_rows run) {
    __shared__ float room[ROW_THREADS / 32];
    float *row = (float *)block_memory();
    let_next_start();
    wait_for_previous();
    const int64_t token = blockIdx.x, width = run.width;
    const float *x = run.x + token * width, *given = run.given + token * width;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
        row[i] = run.scale * (given[i] + (run.bias ? run.bias[i] : 0.0f));
    norm_row(row, run.post, width, run.epsilon, room);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) row[i] = run.keep * x[i] + run.add * row[i];
    leave_row(run, row, room);
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

/* A row lies in shared memory. */
static ln_cuda_code check(const ln_cuda_rows *rows) {
    if (rows->tokens < 1 || rows->width < 1 || rows->tokens > 1 << 30 || !rows->x || !rows->h ||
        rows->h_stride < rows->width)
        return LN_CUDA_ARGUMENT;
    return rows->width > 40960 ? LN_CUDA_UNSUPPORTED : LN_CUDA_OK;
}

ln_cuda_code ln_cuda_rows_enter(const ln_cuda_rows *rows, const ln_cuda_weight *embedding, void *stream) {
    const ln_cuda_code code = check(rows);
    if (code) return code;
    if (!rows->ids || embedding->columns != rows->width) return LN_CUDA_ARGUMENT;
    const enter_run run = {*rows, *embedding};
    return launch_early(enter_rows, dim3((unsigned)rows->tokens), dim3(ROW_THREADS), (int)(rows->width * 4), stream,
                        run);
}

ln_cuda_code ln_cuda_rows_finish(const ln_cuda_rows *rows, void *stream) {
    const ln_cuda_code code = check(rows);
    if (code) return code;
    if (!rows->given) return LN_CUDA_ARGUMENT;
    return launch_early(finish_rows, dim3((unsigned)rows->tokens), dim3(ROW_THREADS), (int)(rows->width * 4), stream,
                        *rows);
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
