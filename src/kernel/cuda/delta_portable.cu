/* The walk of the delta rules for compute capability 8.0 and newer (mma.sync, cp.async).
 *
 * A block has 64 columns of values of one head and sequence, each warp 16 of them, whose part of the state it keeps in
 * registers from the first chunk to the last. Nothing passes between the warps but the tiles that they read. */
#include "kernel/cuda/delta_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { PORTABLE_THREADS = 128, PORTABLE_COLUMNS = 64 };

/* What a chunk's step reads, in shared memory: its record, then values, keys and queries. */
template <int KEY_SIZE, bool BY_KEY> struct delta_stage {
    typedef delta_record<KEY_SIZE, BY_KEY> record;
    static constexpr int value = record::bytes, key = value + CHUNK * 128, query = key + record::tile,
                         bytes = BY_KEY ? key : query + record::tile;
    static constexpr int read = BY_KEY ? (int)record::read : key, write = BY_KEY ? (int)record::write : key,
                         queries = BY_KEY ? (int)record::query : query;
};

/* Rows after the last are zeros. */
static __device__ __forceinline__ void copy_tokens(char *tile, const ln_cuda_tensor &from, int head, int column,
                                                   int columns, int token, int rows) {
    const __nv_bfloat16 *data =
        (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride + column;
    for (int i = threadIdx.x; i < CHUNK * columns / 8; i += PORTABLE_THREADS) {
        const int row = i / (columns / 8), piece = i % (columns / 8);
        const bool inside = row < rows;
        copy_piece(tile + piece_at(row, piece), data + (inside ? row * from.token_stride : 0) + piece * 8, inside);
    }
}

template <int KEY_SIZE, bool BY_KEY>
static __device__ __forceinline__ void copy_stage(char *to, const delta_run &run, const char *record, int head,
                                                  int column, int token, int rows) {
    typedef delta_stage<KEY_SIZE, BY_KEY> stage;
    for (int i = threadIdx.x * 16; i < stage::record::bytes; i += PORTABLE_THREADS * 16)
        copy_piece(to + i, record + i, true);
    copy_tokens(to + stage::value, run.value, head, column, PORTABLE_COLUMNS, token, rows);
    if (!BY_KEY) {
        const int key_head = key_head_of(run, head);
        copy_tokens(to + stage::key, run.key, key_head, 0, KEY_SIZE, token, rows);
        copy_tokens(to + stage::query, run.query, key_head, 0, KEY_SIZE, token, rows);
    }
    copies_commit();
    copies_wait<0>();
}

template <int KEY_SIZE, bool BY_KEY>
static __device__ __forceinline__ void walk_chunk(float (&state)[KEY_SIZE / 2], float (&output)[CHUNK / 2],
                                                  const char *shared, int column) {
    typedef delta_stage<KEY_SIZE, BY_KEY> stage;
    const float *factors = (const float *)(shared + stage::record::factors);
    uint32_t left[KEY_SIZE / 4], value[CHUNK / 4], difference[CHUNK / 4], plain[CHUNK / 4];
    float sum[CHUNK / 2] = {}, by[CHUNK / 4] = {};
    pack_all(left, state);
    add_rows<CHUNK, KEY_SIZE>(sum, left, shared + stage::read);
    add_rows<CHUNK, KEY_SIZE>(output, left, shared + stage::queries);
    if (!BY_KEY) {
        load_factors(by, factors + FACTOR_QUERY);
        multiply(output, by);
        load_factors(by, factors + FACTOR_READ);
    }
    load_values(value, shared + stage::value, column);
    differ<!BY_KEY>(difference, value, sum, by);
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) sum[i] = 0;
    add_rows<CHUNK, CHUNK>(sum, difference, shared + stage::record::transform);
    pack_all(plain, sum);
    add_rows<CHUNK, CHUNK>(output, plain, shared + stage::record::scores);
    if (!BY_KEY) {
        load_factors(by, factors + FACTOR_WRITE);
        pack_times(difference, sum, by);
    }
    decay_state<KEY_SIZE, BY_KEY>(state, factors, false);
    add_columns<KEY_SIZE>(state, BY_KEY ? plain : difference, shared + stage::write);
}

static __device__ __forceinline__ void store_output(const delta_run &run, char *scratch,
                                                    const float (&output)[CHUNK / 2], int token, int rows, int head,
                                                    int column) {
    const int lane = threadIdx.x % 32;
    if (run.float32) {
        store_float32(output, run, token, rows, head, column);
        return;
    }
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
        *(__nv_bfloat16 *)(scratch + scratch_at(row, i / 2 % 2) + lane / 4 * 2) = __float2bfloat16(output[i]);
    }
    __syncwarp();
    store_scratch(run, scratch, token, rows, head, column);
    __syncwarp();
}

template <int KEY_SIZE, bool BY_KEY>
static __global__ void __launch_bounds__(PORTABLE_THREADS) delta_portable(const __grid_constant__ delta_run run) {
    typedef delta_stage<KEY_SIZE, BY_KEY> stage;
    char *shared = block_memory();
    const int slice = blockIdx.x % run.slices, head = blockIdx.x / run.slices % run.heads;
    const delta_text text = run.texts[blockIdx.x / run.slices / run.heads];
    const int first = slice * PORTABLE_COLUMNS, within = threadIdx.x / 32 * 16;
    float state[KEY_SIZE / 2];
    load_state<KEY_SIZE>(state, run, text, head, first + within);
    for (int chunk = 0; chunk * CHUNK < text.tokens; chunk++) {
        const int token = text.token + chunk * CHUNK, rows = min((int)CHUNK, text.tokens - chunk * CHUNK);
        const char *record =
            run.records + ((int64_t)(text.first_piece + chunk) * run.heads + head) * stage::record::bytes;
        copy_stage<KEY_SIZE, BY_KEY>(shared, run, record, head, first, token, rows);
        __syncthreads();
        float output[CHUNK / 2] = {};
        walk_chunk<KEY_SIZE, BY_KEY>(state, output, shared, within);
        __syncthreads();
        store_output(run, shared + within * 128, output, token, rows, head, first + within);
        __syncthreads();
    }
    store_state<KEY_SIZE>(state, run, text, head, first + within);
}

template <int KEY_SIZE, bool BY_KEY>
static ln_cuda_code portable_start(void *const *arguments, int64_t blocks, void *stream) {
    const delta_run &run = *(const delta_run *)arguments[0];
    return launch(delta_portable<KEY_SIZE, BY_KEY>, dim3((unsigned)blocks), dim3(PORTABLE_THREADS),
                  delta_stage<KEY_SIZE, BY_KEY>::bytes, stream, run);
}

template <int KEY_SIZE, bool BY_KEY> static ln_cuda_delta_kernel portable_kernel(const char *name) {
    return {name,
            KEY_SIZE,
            PORTABLE_COLUMNS,
            1,
            BY_KEY ? LN_CUDA_DECAY_KEY : LN_CUDA_DECAY_HEAD,
            PORTABLE_THREADS,
            delta_stage<KEY_SIZE, BY_KEY>::bytes,
            8,
            false,
            portable_start<KEY_SIZE, BY_KEY>,
            NULL};
}

} // namespace ln

const ln_cuda_delta_kernel ln_cuda_delta_portable_kernels[] = {
    ln::portable_kernel<128, false>("delta portable, d128"),
    ln::portable_kernel<64, false>("delta portable, d64"),
    ln::portable_kernel<128, true>("delta portable, decays of keys, d128"),
    ln::portable_kernel<64, true>("delta portable, decays of keys, d64"),
};
const int ln_cuda_delta_portable_count = 4;
