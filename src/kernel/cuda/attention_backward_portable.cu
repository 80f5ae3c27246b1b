#include "kernel/cuda/attention_backward_rows.cuh"
#include "kernel/cuda/attention_backward_table.h"
using namespace ln;
const ln_cuda_backward_kernel ln_cuda_backward_portable_kernels[1] = {};
const int ln_cuda_backward_portable_count = 0;
