/* Counted expectations of the programs that check GPUs. */
#ifndef LN_TESTS_CUDA_EXPECT_H
#define LN_TESTS_CUDA_EXPECT_H

#include <stdio.h>

extern int check_count, check_failures;

#define EXPECT(condition, ...)              \
    do {                                    \
        check_count++;                      \
        if (!(condition)) {                 \
            check_failures++;               \
            printf("FAILED: " __VA_ARGS__); \
            printf("\n");                   \
        }                                   \
    } while (0)

#endif
