/* The first kernel of the delta rules with decays of keys: records of all chunks and heads (delta_key_record.cuh), none
 * depending on another. */
#include "kernel/cuda/delta_key_record.cuh"
#include "kernel/cuda/delta_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

template <int KEY_SIZE>
static __global__ void __launch_bounds__(KEY_THREADS<KEY_SIZE>, 3)
    delta_key_chunks(const __grid_constant__ delta_run run) {
    make_key_record<KEY_SIZE>(run.records + (int64_t)blockIdx.x * delta_record<KEY_SIZE, true>::bytes,
                              (delta_key_shared<KEY_SIZE> *)block_memory(), run, run.pieces[blockIdx.x / run.heads],
                              blockIdx.x % run.heads);
}

template <int KEY_SIZE> static ln_cuda_code start_key_chunks(const delta_run &run, void *stream) {
    return launch(delta_key_chunks<KEY_SIZE>, dim3((unsigned)(run.piece_count * run.heads)),
                  dim3(KEY_THREADS<KEY_SIZE>), (int)sizeof(delta_key_shared<KEY_SIZE>), stream, run);
}

} // namespace ln

ln_cuda_code ln_cuda_delta_key_chunks(const ln::delta_run &run, void *stream) {
    return run.key_size == 64 ? ln::start_key_chunks<64>(run, stream) : ln::start_key_chunks<128>(run, stream);
}
