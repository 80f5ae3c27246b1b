/* One thread a number. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/window_cuda.h"

namespace ln {

enum { WINDOW_THREADS = 256 };

static __global__ void __launch_bounds__(WINDOW_THREADS) window_take(const __grid_constant__ ln_cuda_window w) {
    const int64_t at = (int64_t)blockIdx.x * WINDOW_THREADS + threadIdx.x;
    if (at >= w.heads * w.floats) return;
    const int64_t head = at / w.floats, i = at % w.floats, sums = w.features * w.columns,
                  feature = i < sums ? i / w.columns : (i - sums) % w.features;
    const double by = w.decay ? exp(w.decay[head * w.decays + (w.decays > 1 ? feature : 0)]) : 1;
    w.window[at] = (float)((double)w.now[at] - by * (double)w.before[at]);
}

} // namespace ln

ln_cuda_code ln_cuda_window_take(const ln_cuda_window *window, void *stream) {
    const int64_t numbers = window->heads * window->floats, blocks = (numbers + 255) / 256;
    if (blocks > INT32_MAX) return LN_CUDA_ARGUMENT;
    return ln::launch(ln::window_take, dim3((unsigned)blocks), dim3(ln::WINDOW_THREADS), 0, stream, *window);
}
