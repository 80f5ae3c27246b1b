/* The gradients of linear attention and the gates of mLSTM, checked as part of its suite. */
#ifndef LN_TESTS_CUDA_ORACLE_LINEAR_H
#define LN_TESTS_CUDA_ORACLE_LINEAR_H

#include "check.h"

enum { LINEAR_GRADIENT_CASES = 20 };
void linear_gates_check(void);
void linear_gradients_check(const ln_cuda_device *device, const check_options *options);
void linear_gradients_plans(void);
void linear_gradients_bench(const ln_cuda_device *device, const check_options *options);

#endif
