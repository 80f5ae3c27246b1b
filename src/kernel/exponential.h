/* Written by tools/make_exponential.py: the polynomials p(f) for 2^f of all kernels.
 *
 *     2^x = 2^n p(x - n),   n = round(x): LN_POWER_NEAR_d,   n = floor(x): LN_POWER_FLOOR_d,   d the degree
 *
 * p has the smallest largest relative error of its degree under p(0) = 1, which keeps 2^0 exact; the _ERROR is that of
 * the polynomial with these coefficients, to which float32 arithmetic adds less than 2^-23 (tests/test_exponential.c:
 * all floats of the interval). Take degree 3 where bf16 follows (half an ulp: 2^-9; degree 2 just misses it), 5 for
 * float32; 6 and 7 gain nothing that float32 could hold.
 *
 * The file that includes this has multiply_add (a, b, c) = a b + c and splat (x). */
#ifndef LN_KERNEL_EXPONENTIAL_H
#define LN_KERNEL_EXPONENTIAL_H

/* clang-format off */

/* -1/2 <= f <= 1/2 */
#define LN_POWER_NEAR_2_ERROR 20e-4
#define LN_POWER_NEAR_2(f) \
    multiply_add(multiply_add(splat(0x1.eb3de40000000p-3f), f, \
        splat(0x1.67e8020000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_NEAR_3_ERROR 11e-5
#define LN_POWER_NEAR_3(f) \
    multiply_add(multiply_add(multiply_add(splat(0x1.c2a1d60000000p-5f), f, \
        splat(0x1.f00c500000000p-3f)), f, \
        splat(0x1.62f5fc0000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_NEAR_4_ERROR 29e-7
#define LN_POWER_NEAR_4(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.3a05160000000p-7f), f, \
        splat(0x1.c9fc680000000p-5f)), f, \
        splat(0x1.ec036e0000000p-3f)), f, \
        splat(0x1.62e12c0000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_NEAR_5_ERROR 94e-9
#define LN_POWER_NEAR_5(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.5bda400000000p-10f), f, \
        splat(0x1.3ce8ac0000000p-7f)), f, \
        splat(0x1.c6b6d80000000p-5f)), f, \
        splat(0x1.ebf9c20000000p-3f)), f, \
        splat(0x1.62e42a0000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_NEAR_6_ERROR 30e-10
#define LN_POWER_NEAR_6(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.416b5e0000000p-13f), f, \
        splat(0x1.5f082e0000000p-10f)), f, \
        splat(0x1.3b2de00000000p-7f)), f, \
        splat(0x1.c6af7c0000000p-5f)), f, \
        splat(0x1.ebfbdc0000000p-3f)), f, \
        splat(0x1.62e4300000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_NEAR_7_ERROR 17e-11
#define LN_POWER_NEAR_7(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.e081d60000000p-17f), f, \
        splat(0x1.440dcc0000000p-13f)), f, \
        splat(0x1.5da59e0000000p-10f)), f, \
        splat(0x1.3b2a5c0000000p-7f)), f, \
        splat(0x1.c6b06e0000000p-5f)), f, \
        splat(0x1.ebfbe00000000p-3f)), f, \
        splat(0x1.62e4300000000p-1f)), f, \
        splat(1.0f))

/* 0 <= f < 1 */
#define LN_POWER_FLOOR_2_ERROR 21e-4
#define LN_POWER_FLOOR_2(f) \
    multiply_add(multiply_add(splat(0x1.51d9f40000000p-2f), f, \
        splat(0x1.54f8c60000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_FLOOR_3_ERROR 86e-6
#define LN_POWER_FLOOR_3(f) \
    multiply_add(multiply_add(multiply_add(splat(0x1.3baa960000000p-4f), f, \
        splat(0x1.d237960000000p-3f)), f, \
        splat(0x1.63e6580000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_FLOOR_4_ERROR 29e-7
#define LN_POWER_FLOOR_4(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.b7f7c40000000p-7f), f, \
        splat(0x1.abf8340000000p-5f)), f, \
        splat(0x1.ee24560000000p-3f)), f, \
        splat(0x1.62d6c60000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_FLOOR_5_ERROR 83e-9
#define LN_POWER_FLOOR_5(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.e969000000000p-10f), f, \
        splat(0x1.277c1e0000000p-7f)), f, \
        splat(0x1.c91c100000000p-5f)), f, \
        splat(0x1.ebdb6a0000000p-3f)), f, \
        splat(0x1.62e4ba0000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_FLOOR_6_ERROR 22e-10
#define LN_POWER_FLOOR_6(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.c445800000000p-13f), f, \
        splat(0x1.4737380000000p-10f)), f, \
        splat(0x1.3cfd820000000p-7f)), f, \
        splat(0x1.c68af60000000p-5f)), f, \
        splat(0x1.ebfd3a0000000p-3f)), f, \
        splat(0x1.62e42c0000000p-1f)), f, \
        splat(1.0f))
#define LN_POWER_FLOOR_7_ERROR 58e-12
#define LN_POWER_FLOOR_7(f) \
    multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(multiply_add(splat(0x1.669a020000000p-16f), f, \
        splat(0x1.2e09020000000p-13f)), f, \
        splat(0x1.5fa9480000000p-10f)), f, \
        splat(0x1.3b0d560000000p-7f)), f, \
        splat(0x1.c6b22c0000000p-5f)), f, \
        splat(0x1.ebfbd60000000p-3f)), f, \
        splat(0x1.62e4300000000p-1f)), f, \
        splat(1.0f))
/* clang-format on */

#endif
