/* The lowest floor: allocation inside a limit, the thread team, growing text, files that appear whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/checked.h"
#include "base/map.h"

static linnet_context *open_context(int threads, uint64_t limit) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.memory_limit = limit;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

static void test_limit(void **state) {
    (void)state;
    linnet_context *context = open_context(1, 1 << 20);
    const uint64_t before = linnet_memory_used(context);
    void *block = ln_allocate(context, 1000, 64, "blocks");
    assert_non_null(block);
    assert_int_equal((uintptr_t)block % 64, 0);
    assert_true(linnet_memory_used(context) >= before + 64000);
    assert_null(ln_allocate(context, 1 << 20, 1, "too much"));
    assert_non_null(strstr(linnet_last_error(context), "limit"));
    assert_null(ln_allocate(context, UINT64_MAX / 2, 3, "overflow"));
    assert_null(ln_allocate(context, 1, UINT64_MAX - 70, "overflow"));
    ln_release(context, block);
    assert_int_equal(linnet_memory_used(context), before);
    linnet_context_close(context);
}

static void count_task(void *argument, int64_t task, int worker) {
    (void)worker;
    ((int *)argument)[task]++;
}

static void test_team(void **state) {
    (void)state;
    for (int threads = 1; threads <= 5; threads += 2) {
        linnet_context *context = open_context(threads, 0);
        int counts[257];
        for (int tasks = 0; tasks <= 257; tasks += 1 + tasks / 3) {
            memset(counts, 0, sizeof counts);
            for (int round = 0; round < 20; round++) ln_parallel(context->team, tasks, count_task, counts);
            for (int i = 0; i < 257; i++) assert_int_equal(counts[i], i < tasks ? 20 : 0);
        }
        linnet_context_close(context);
    }
}

static void test_bad_settings(void **state) {
    (void)state;
    linnet_context_settings settings = linnet_context_settings_default();
    linnet_context *context;
    settings.cpu = "pentium";
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_ERROR_ARGUMENT);
    assert_non_null(strstr(linnet_last_error(context), "pentium"));
    linnet_context_close(context);
    settings.cpu = "portable";
    settings.threads = -1;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_ERROR_ARGUMENT);
    linnet_context_close(context);
}

static void test_buffer(void **state) {
    (void)state;
    linnet_context *context = open_context(1, 0);
    ln_buffer buffer = {.context = context};
    for (int i = 0; i < 1000; i++) ln_buffer_format(&buffer, "%d,", i);
    ln_buffer_text(&buffer, "end");
    assert_false(buffer.failed);
    assert_int_equal(buffer.bytes, 10 * 2 + 90 * 3 + 900 * 4 + 3);
    assert_string_equal(buffer.data + buffer.bytes - 7, "999,end");
    ln_buffer_release(&buffer);
    linnet_context_close(context);
}

static void test_output(void **state) {
    (void)state;
    linnet_context *context = open_context(1, 0);
    char path[] = "/tmp/linnet-test-XXXXXX";
    assert_true(mkstemp(path) >= 0);
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    ln_output_write(&output, "new", 3);
    assert_int_equal(ln_output_close(&output, false), LINNET_OK);
    ln_map map;
    assert_int_equal(ln_map_open(context, path, &map), LINNET_OK);
    assert_int_equal(map.bytes, 0);
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    ln_output_write(&output, "new", 3);
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    assert_int_equal(ln_map_open(context, path, &map), LINNET_OK);
    assert_int_equal(map.bytes, 3);
    ln_map_close(&map);
    unlink(path);
    assert_int_equal(ln_map_open(context, path, &map), LINNET_ERROR_FILE);
    assert_non_null(strstr(linnet_last_error(context), path));
    assert_int_equal(ln_output_open(context, "/nowhere/at/all", &output), LINNET_ERROR_FILE);
    assert_int_equal(ln_output_open(context, "/dev/null", &output), LINNET_ERROR_FILE);
    assert_int_equal(ln_output_open(context, "/tmp", &output), LINNET_ERROR_FILE);
    linnet_context_close(context);
}

static void test_checked(void **state) {
    (void)state;
    uint64_t result;
    assert_false(ln_add_u64(UINT64_MAX, 1, &result));
    assert_false(ln_multiply_u64(UINT64_MAX, 2, &result));
    assert_true(ln_multiply_u64(1u << 31, 1u << 31, &result));
    assert_int_equal(ln_ceil_div(7, 3), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limit),  cmocka_unit_test(test_team),   cmocka_unit_test(test_bad_settings),
        cmocka_unit_test(test_buffer), cmocka_unit_test(test_output), cmocka_unit_test(test_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
