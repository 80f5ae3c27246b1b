/* The polynomials of kernel/exponential.h against float64 on every float of their intervals: the error stated in the
 * header, and what float32 arithmetic adds to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "number/format.h"

enum { LANES = 8, DEGREES = 8 };
typedef float lanes __attribute__((vector_size(32), may_alias));
typedef int32_t lanes_int __attribute__((vector_size(32), may_alias));
typedef double wide __attribute__((vector_size(64), may_alias));
typedef int64_t wide_int __attribute__((vector_size(64), may_alias));

#define HELPER static inline __attribute__((always_inline))
HELPER lanes splat(float x) {
    return x - (lanes){0};
}
HELPER lanes multiply_add(lanes a, lanes b, lanes c) {
    return a * b + c;
}
#include "kernel/exponential.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SPARSE 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SPARSE 1
#endif
#endif

/* Float32 arithmetic: one rounding of the result in [0.7, 2), and those before it, which f < 1 makes smaller. */
static const double rounding = 0x1p-23;
static const double near_bound[DEGREES] = {
    [2] = LN_POWER_NEAR_2_ERROR, [3] = LN_POWER_NEAR_3_ERROR, [4] = LN_POWER_NEAR_4_ERROR,
    [5] = LN_POWER_NEAR_5_ERROR, [6] = LN_POWER_NEAR_6_ERROR, [7] = LN_POWER_NEAR_7_ERROR};
static const double floor_bound[DEGREES] = {
    [2] = LN_POWER_FLOOR_2_ERROR, [3] = LN_POWER_FLOOR_3_ERROR, [4] = LN_POWER_FLOOR_4_ERROR,
    [5] = LN_POWER_FLOOR_5_ERROR, [6] = LN_POWER_FLOOR_6_ERROR, [7] = LN_POWER_FLOOR_7_ERROR};

/* 2^-f by the series of e^(-f ln 2): relative error below 1e-15 for |f| <= 1. */
HELPER wide inverse_power(lanes f) {
    const wide t = __builtin_convertvector(f, wide) * -0.69314718055994530942;
    wide p = t - t + 1;
    for (int k = 18; k > 0; k--) p = p * (t * (1.0 / k)) + 1;
    return p;
}

HELPER void keep_worst(wide *worst, lanes p, wide inverse) {
    wide error = __builtin_convertvector(p, wide) * inverse - 1;
    error = (wide)((wide_int)error & INT64_MAX);
    const wide_int above = error > *worst;
    *worst = (wide)((above & (wide_int)error) | (~above & (wide_int)*worst));
}

typedef struct worst_errors {
    wide near[DEGREES], floor[DEGREES];
} worst_errors;

static void check_lanes(worst_errors *worst, lanes f, bool near, bool floor) {
    const wide inverse = inverse_power(f);
    if (near) {
        keep_worst(&worst->near[2], LN_POWER_NEAR_2(f), inverse);
        keep_worst(&worst->near[3], LN_POWER_NEAR_3(f), inverse);
        keep_worst(&worst->near[4], LN_POWER_NEAR_4(f), inverse);
        keep_worst(&worst->near[5], LN_POWER_NEAR_5(f), inverse);
        keep_worst(&worst->near[6], LN_POWER_NEAR_6(f), inverse);
        keep_worst(&worst->near[7], LN_POWER_NEAR_7(f), inverse);
    }
    if (floor) {
        keep_worst(&worst->floor[2], LN_POWER_FLOOR_2(f), inverse);
        keep_worst(&worst->floor[3], LN_POWER_FLOOR_3(f), inverse);
        keep_worst(&worst->floor[4], LN_POWER_FLOOR_4(f), inverse);
        keep_worst(&worst->floor[5], LN_POWER_FLOOR_5(f), inverse);
        keep_worst(&worst->floor[6], LN_POWER_FLOOR_6(f), inverse);
        keep_worst(&worst->floor[7], LN_POWER_FLOOR_7(f), inverse);
    }
}

/* Bit patterns from .. to - 1, those of one sign; step LANES takes all. */
static void check_range(worst_errors *worst, uint32_t from, uint32_t to, uint32_t step, bool near, bool floor) {
    const lanes_int first = {0, 1, 2, 3, 4, 5, 6, 7};
    for (uint64_t bits = from; bits < to; bits += step) check_lanes(worst, (lanes)(first + (int32_t)bits), near, floor);
}

static double largest(wide v) {
    double most = 0;
    for (int i = 0; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

static void report(const char *name, const wide *worst, const double *bound) {
    for (int d = 2; d < DEGREES; d++) {
        const double error = largest(worst[d]);
        print_message("2^f, %s, degree %d: %.3g of at most %.3g\n", name, d, error, bound[d] + rounding);
        assert_true(error > 0 && error <= bound[d] + rounding);
    }
}

static void test_all_floats(void **state) {
    (void)state;
#if defined(SPARSE)
    const uint32_t step = 499 * LANES;
#else
    const uint32_t step = LANES;
#endif
    /* Below 2^-24 every p is 1: a walk is enough there. */
    const uint32_t tiny = ln_float_bits(0x1p-24f), half = ln_float_bits(0.5f), one = ln_float_bits(1), minus = 1u << 31;
    worst_errors worst = {0};
    check_range(&worst, 0, tiny, 4099 * LANES, true, true);
    check_range(&worst, minus, minus + tiny, 4099 * LANES, true, false);
    check_range(&worst, tiny, half, step, true, true);
    check_range(&worst, half, one, step, false, true);
    check_range(&worst, minus + tiny, minus + half, step, true, false);
    check_lanes(&worst, splat(0.5f), true, false);
    check_lanes(&worst, splat(-0.5f), true, false);
    report("-1/2 to 1/2", worst.near, near_bound);
    report("0 to 1", worst.floor, floor_bound);
}

static void test_zero(void **state) {
    (void)state;
    const lanes zero = splat(0);
    assert_true(LN_POWER_NEAR_2(zero)[0] == 1 && LN_POWER_NEAR_5(zero)[0] == 1 && LN_POWER_FLOOR_5(zero)[0] == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_floats),
        cmocka_unit_test(test_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
