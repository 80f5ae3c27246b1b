/* Number formats: equal to the golden blocks of another implementation bit for bit, and half precision over all its
 * values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "number/format.h"

static void test_golden(void **state) {
    (void)state;
    FILE *file = fopen(TESTS_FOLDER "/golden/format.bin", "rb");
    assert_non_null(file);
    char name[9] = "";
    int records = 0, encoded = 0;
    while (fread(name, 8, 1, file) == 1) {
        uint32_t head[2];
        assert_int_equal(fread(head, sizeof head, 1, file), 1);
        const linnet_type type = linnet_type_of_name(name);
        const ln_format *format = ln_format_of(type);
        assert_non_null(format);
        const uint32_t n = head[0];
        const size_t bytes = ln_format_bytes(type, n);
        assert_true(n <= 512 && bytes > 0);
        float source[512], values[512], decoded[513];
        unsigned char blocks[2048], made[2049];
        if (head[1]) assert_int_equal(fread(source, sizeof(float), n, file), n);
        assert_int_equal(fread(blocks, 1, bytes, file), bytes);
        assert_int_equal(fread(values, sizeof(float), n, file), n);
        decoded[n] = 12345;
        format->decode(blocks, decoded, n);
        assert_memory_equal(decoded, values, n * sizeof(float));
        assert_true(decoded[n] == 12345);
        if (head[1] && format->encode) {
            made[bytes] = 77;
            format->encode(source, made, n);
            assert_memory_equal(made, blocks, bytes);
            assert_int_equal(made[bytes], 77);
            encoded++;
        }
        records++;
    }
    fclose(file);
    assert_int_equal(records, 12);
    assert_int_equal(encoded, 4);
}

static double half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double value = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return half >> 15 ? -value : value;
}

static void test_half(void **state) {
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        const float value = ln_f16_float((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(value) && isnan(ln_f16_float(ln_float_f16(value))));
            continue;
        }
        if ((h & 0x7fff) == 0x7c00)
            assert_true(isinf(value));
        else
            assert_true((double)value == half_value((uint16_t)h));
        assert_int_equal(ln_float_f16(value), h);
        if ((h & 0x7fff) >= 0x7bff) continue;
        /* Between two neighbours: the midpoint goes to the even one, its neighbours to the nearer one. */
        const float middle = (float)((half_value((uint16_t)h) + half_value((uint16_t)(h + 1))) / 2);
        const float outside = nextafterf(middle, h >> 15 ? -INFINITY : INFINITY), inside = nextafterf(middle, 0);
        assert_int_equal(ln_float_f16(middle), h + (h & 1));
        assert_int_equal(ln_float_f16(outside), h + 1);
        assert_int_equal(ln_float_f16(inside), h);
    }
    assert_int_equal(ln_float_f16(65519.9f), 0x7bff);
    assert_int_equal(ln_float_f16(65520.0f), 0x7c00);
    assert_int_equal(ln_float_f16(-1e30f), 0xfc00);
    assert_int_equal(ln_float_f16(0x1p-25f), 0);
    assert_int_equal(ln_float_bf16(-INFINITY), 0xff80);
    assert_true(isnan(ln_bf16_float(ln_float_bf16(ln_bits_float(0x7f800001u)))));
}

static void test_names(void **state) {
    (void)state;
    int rows = 0;
    for (int i = -3; i < 100; i++) {
        const char *name = linnet_type_name((linnet_type)i);
        int block, bytes;
        assert_int_equal(linnet_type_layout((linnet_type)i, &block, &bytes), name != NULL);
        if (!name) {
            assert_int_equal(ln_format_bytes((linnet_type)i, 256), 0);
            continue;
        }
        assert_int_equal(linnet_type_of_name(name), i);
        if (i >= LINNET_Q2 && i <= LINNET_Q5) { /* of pages alone: no format of files */
            assert_null(ln_format_of((linnet_type)i));
            assert_int_equal(ln_format_bytes((linnet_type)i, 256), 0);
            continue;
        }
        rows++;
        assert_int_equal(ln_format_bytes((linnet_type)i, 768), 768 / block * bytes);
        if (block > 1) assert_int_equal(ln_format_bytes((linnet_type)i, 257), 0);
        assert_int_equal(ln_format_bytes((linnet_type)i, -256), 0);
    }
    assert_int_equal(rows, 13);
    assert_int_equal(linnet_type_of_name("Q4_K"), LINNET_Q4_K);
    assert_int_equal(linnet_type_of_name("q4"), LINNET_Q4);
    assert_int_equal(linnet_type_of_name(NULL), LINNET_TYPE_AUTO);
    assert_int_equal(ln_format_bytes(LINNET_F32, INT64_MAX / 2), (uint64_t)(INT64_MAX / 2) * 4);
    assert_true(linnet_type_layout(LINNET_Q8_0, NULL, NULL));
}

/* What no block can hold shows as NaN, and the smallest numbers as zero. */
static void test_extremes(void **state) {
    (void)state;
    const linnet_type types[] = {LINNET_Q8_0, LINNET_Q4_0};
    const float odd[] = {NAN, INFINITY, -INFINITY, 1e-44f, -1e-39f, 3e38f};
    for (size_t t = 0; t < 2; t++) {
        const ln_format *format = ln_format_of(types[t]);
        for (size_t k = 0; k < sizeof odd / sizeof *odd; k++) {
            float values[32], back[32];
            unsigned char block[34];
            for (int i = 0; i < 32; i++) values[i] = odd[k] < 1 ? 0 : (float)i;
            values[5] = odd[k];
            format->encode(values, block, 32);
            format->decode(block, back, 32);
            if (fabsf(odd[k]) < 1)
                assert_true(back[5] == 0);
            else
                assert_true(!isfinite(back[5]));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_half),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
