/* Whether the tables of a plan for the gradients of attention are right, without a GPU: tiles that see each other meet
 * once, lists let see what they say and no more, and all tasks end whatever the blocks do. */
#ifndef LN_TESTS_CUDA_ORACLE_ATTENTION_TABLES_H
#define LN_TESTS_CUDA_ORACLE_ATTENTION_TABLES_H

#include "kernel/cuda/attention_backward_cuda.h"
#include "oracle_attention.h"

void backward_tables_check(const attention_work *w, const ln_cuda_backward_kernel *kernel,
                           const ln_cuda_device *device);

#endif
