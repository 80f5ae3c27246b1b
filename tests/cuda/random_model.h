#ifndef LN_TESTS_CUDA_RANDOM_MODEL_H
#define LN_TESTS_CUDA_RANDOM_MODEL_H

#include "linnet/linnet.h"

/* shape: "tiny", "1b" or "8b"; type: Q4_0, Q8_0 or BF16. false: there is no such, or the file could not be opened. */
bool write_random_model(const char *path, const char *shape, linnet_type type);

#endif
