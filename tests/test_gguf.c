/* GGUF: what is written is read back, and what lies is refused with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/gguf_write.h"

static char path[64];
static linnet_context *context;

static int set_up(void **state) {
    (void)state;
    strcpy(path, "/tmp/linnet-gguf-XXXXXX");
    const int file = mkstemp(path);
    if (file < 0) return -1;
    close(file);
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    return linnet_context_open(&settings, &context) == LINNET_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    unlink(path);
    linnet_context_close(context);
    return 0;
}

static void write_bytes(const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    if (bytes) assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* ---- what is written is read back ---- */

static void write_all_kinds(ln_key_writer *keys) {
    static const int16_t shorts[] = {-3, 300};
    static const ln_text texts[] = {{"", 0}, {"two", 3}, {"\0z", 2}};
    static const double doubles[] = {0.1, -1e300};
    ln_write_text(keys, "general.architecture", "toy", 3);
    ln_write_integer(keys, "toy.u8", LN_U8, 255);
    ln_write_integer(keys, "toy.i8", LN_I8, -128);
    ln_write_integer(keys, "toy.u16", LN_U16, 65535);
    ln_write_integer(keys, "toy.i32", LN_I32, -70000);
    ln_write_integer(keys, "toy.u32", LN_U32, 4000000000);
    ln_write_integer(keys, "toy.i64", LN_I64, INT64_MIN);
    ln_write_integer(keys, "toy.u64", LN_U64, -1);
    ln_write_integer(keys, "toy.bool", LN_BOOL, 1);
    ln_write_float(keys, "toy.float", 0.1);
    ln_write_float(keys, "toy.float", 7); /* the first stands */
    ln_write_array(keys, "toy.shorts", LN_I16, shorts, 2);
    ln_write_array(keys, "toy.texts", LN_TEXT, texts, 3);
    ln_write_array(keys, "toy.doubles", LN_DOUBLE, doubles, 2);
    ln_write_array(keys, "toy.none", LN_TEXT, NULL, 0);
}

static void write_toy(void) {
    ln_gguf_writer writer = ln_gguf_writer_open(context);
    write_all_kinds(&writer.keys);
    const float values[6] = {1, 2, 3, 4, 5, 6};
    ln_gguf_add_tensor(&writer, "a.weight", LINNET_F32, 2, (const int64_t[]){3, 2}, sizeof values);
    ln_gguf_add_tensor(&writer, "b.weight", LINNET_Q8_0, 1, (const int64_t[]){64}, 68);
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    assert_int_equal(ln_gguf_write_head(&writer, &output), LINNET_OK);
    ln_output_write(&output, values, sizeof values);
    ln_gguf_pad(&output);
    ln_output_write(&output, (const char[68]){1, 2, 3}, 68);
    ln_gguf_pad(&output);
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    ln_gguf_writer_close(&writer);
}

static void test_round_trip(void **state) {
    (void)state;
    write_toy();
    const uint64_t before = linnet_memory_used(context);
    linnet_file *file;
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_OK);
    assert_string_equal(linnet_file_kind(file), "GGUF v3");
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "u8"), 0, 0), 255);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "i8"), 0, 0), -128);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "u16"), 0, 0), 65535);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "i32"), 0, 0), -70000);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "u32"), 0, 0), 4000000000);
    assert_true(ln_key_integer(ln_file_key_of(file, "i64"), 0, 0) == INT64_MIN);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "u64"), 0, 42), 42);
    assert_true(ln_key_number(ln_file_key_of(file, "u64"), 0, 0) == 0x1p64);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "bool"), 0, 0), 1);
    assert_true(ln_key_number(ln_file_key_of(file, "float"), 0, 0) == 0.1f);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "float"), 0, 9), 9);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "shorts"), 1, 0), 300);
    assert_int_equal(ln_key_integer(ln_file_key_of(file, "shorts"), 2, -9), -9);
    assert_true(ln_key_number(ln_file_key_of(file, "shorts"), 0, 0) == -3);
    assert_true(ln_key_number(ln_file_key_of(file, "doubles"), 1, 0) == -1e300);
    assert_int_equal(ln_key_text(ln_file_key_of(file, "texts"), 2).bytes, 2);
    assert_memory_equal(ln_key_text(ln_file_key_of(file, "texts"), 1).data, "two", 3);
    assert_null(ln_key_text(ln_file_key_of(file, "texts"), 3).data);
    assert_null(ln_key_text(ln_file_key_of(file, "u8"), 0).data);
    assert_int_equal(ln_file_key_of(file, "none")->count, 0);
    assert_null(ln_file_key_of(file, "missing"));
    assert_int_equal(ln_key_integer(NULL, 0, 5), 5);
    const linnet_tensor_info *a = ln_file_find(file, "a.weight"), *b = ln_file_find(file, "b.weight");
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->size[0] * 100 + a->size[1] * 10 + a->size[2], 321);
    assert_true(((const float *)a->data)[5] == 6);
    assert_int_equal(b->bytes, 68);
    assert_memory_equal(b->data, ((const char[]){1, 2, 3, 0}), 4);
    linnet_file_close(file);
    assert_int_equal(linnet_memory_used(context), before);
}

static void test_for_people(void **state) {
    (void)state;
    ln_gguf_writer writer = ln_gguf_writer_open(context);
    int32_t numbers[100];
    for (int i = 0; i < 100; i++) numbers[i] = i;
    ln_write_array(&writer.keys, "numbers", LN_I32, numbers, 100);
    ln_write_text(&writer.keys, "text", "a\nb\033[2J", 7);
    ln_write_integer(&writer.keys, "large", LN_U64, -1);
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    assert_int_equal(ln_gguf_write_head(&writer, &output), LINNET_OK);
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    ln_gguf_writer_close(&writer);
    linnet_file *file;
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_OK);
    char text[100];
    assert_string_equal(linnet_file_key(file, 0, text, sizeof text), "numbers");
    assert_string_equal(text, "[0, 1, 2, 3, 4, 5, 6, 7, ... 100 in all]");
    linnet_file_key(file, 1, text, sizeof text);
    assert_string_equal(text, "a\\nb\\x1b[2J");
    linnet_file_key(file, 2, text, sizeof text);
    assert_string_equal(text, "18446744073709551615");
    linnet_file_key(file, 1, text, 3);
    assert_string_equal(text, "a\\");
    assert_non_null(linnet_file_key(file, 0, NULL, 0));
    assert_null(linnet_file_key(file, 3, text, sizeof text));
    assert_null(linnet_file_key(file, -1, text, sizeof text));
    linnet_file_close(file);
}

/* ---- bad files ---- */

/* One file in words: GGUF (magic), u8: u16: u32: u64: numbers, text:WORD (length and bytes), zeros:COUNT, pad (to 32),
 * raw:WORD. */
static void put_words(ln_buffer *buffer, const char *words) {
    static const char zeros[4096];
    char word[256];
    for (int used; sscanf(words, " %255s%n", word, &used) == 1; words += used) {
        const char *value = strchr(word, ':');
        const uint64_t number = value ? strtoull(value + 1, NULL, 0) : 0;
        const uint64_t bytes = value ? strlen(value + 1) : 0;
        if (strcmp(word, "GGUF") == 0)
            ln_buffer_append(buffer, "GGUF", 4);
        else if (strcmp(word, "pad") == 0)
            ln_buffer_append(buffer, zeros, (32 - buffer->bytes % 32) % 32);
        else if (word[0] == 'u')
            ln_buffer_append(buffer, &number, (size_t)atoi(word + 1) / 8);
        else if (strncmp(word, "text:", 5) == 0) {
            ln_buffer_append(buffer, &bytes, 8);
            ln_buffer_append(buffer, value + 1, (size_t)bytes);
        } else if (strncmp(word, "raw:", 4) == 0)
            ln_buffer_append(buffer, value + 1, (size_t)bytes);
        else if (strncmp(word, "zeros:", 6) == 0)
            ln_buffer_append(buffer, zeros, (size_t)number);
        else
            fail_msg("no word of a file: %s", word);
    }
}

#define HEAD "GGUF u32:3 "
#define ONE_KEY HEAD "u64:0 u64:1 "
#define ONE_TENSOR HEAD "u64:1 u64:0 "

static const struct bad_row {
    const char *words;
    linnet_status status;
    const char *says;
} bad[] = {
    {"raw:GG", LINNET_ERROR_FORMAT, "neither as GGUF"},
    {"", LINNET_ERROR_FORMAT, "neither as GGUF"},
    {"raw:GGML zeros:100", LINNET_ERROR_FORMAT, "neither as GGUF"},
    {"GGUF", LINNET_ERROR_FORMAT, "4 bytes"},
    {"GGUF u32:3 u64:0", LINNET_ERROR_FORMAT, "too few"},
    {"GGUF u32:1 u32:0 u32:0 zeros:8", LINNET_ERROR_UNSUPPORTED, "version 1"},
    {"GGUF u32:4 u64:0 u64:0", LINNET_ERROR_UNSUPPORTED, "version 4"},
    {"GGUF u32:0x03000000 u64:0 u64:0", LINNET_ERROR_UNSUPPORTED, "big-endian"},
    /* keys */
    {HEAD "u64:0 u64:0xffffffffffffffff", LINNET_ERROR_FORMAT, "18446744073709551615 keys"},
    {HEAD "u64:0 u64:2 text:abc u32:4 u32:1", LINNET_ERROR_FORMAT, "2 keys"},
    {ONE_KEY "u64:0xffffffffffffffff zeros:20", LINNET_ERROR_FORMAT, "name of key 0"},
    {ONE_KEY "u64:0 u32:4 u32:1 zeros:20", LINNET_ERROR_FORMAT, "0 bytes (1 to"},
    {ONE_KEY "u64:3 u16:0x6161 u8:0 u32:4 u32:1", LINNET_ERROR_FORMAT, "holds control characters"},
    {ONE_KEY "text:abc u32:13 u32:1", LINNET_ERROR_FORMAT, "'abc' has the value kind 13"},
    {ONE_KEY "text:abc u32:0xffffffff u32:1", LINNET_ERROR_FORMAT, "value kind 4294967295"},
    {ONE_KEY "text:abc u32:9 u32:9 u64:1 zeros:20", LINNET_ERROR_UNSUPPORTED, "'abc' is an array of arrays"},
    {ONE_KEY "text:abc u32:9 u32:4 u64:3 u32:1 u32:1", LINNET_ERROR_FORMAT, "the key 'abc' needs more bytes"},
    {ONE_KEY "text:abc u32:9 u32:4 u64:0x4000000000000001 u32:1", LINNET_ERROR_FORMAT, "the key 'abc' needs"},
    {ONE_KEY "text:abc u32:9 u32:8 u64:0x2000000000000001 u32:1", LINNET_ERROR_FORMAT, "the key 'abc' needs"},
    {ONE_KEY "text:abc u32:9 u32:8 u64:2 text:x u64:9 zeros:8", LINNET_ERROR_FORMAT, "the key 'abc' needs"},
    {ONE_KEY "text:abc u32:8 u64:0xffffffffffffffff zeros:8", LINNET_ERROR_FORMAT, "the key 'abc' needs"},
    {ONE_KEY "text:abc u32:10 u32:1", LINNET_ERROR_FORMAT, "the key 'abc' needs"},
    {HEAD "u64:0 u64:3 text:ab u32:4 u32:1 text:cd u32:4 u32:2 text:ab u32:4 u32:1", LINNET_ERROR_FORMAT,
     "key 'ab' twice"},
    /* tensors: name, dimensions, sizes, type, offset */
    {HEAD "u64:0x0fffffffffffffff u64:0", LINNET_ERROR_FORMAT, "1152921504606846975 tensors"},
    {ONE_TENSOR "text:w u32:0 u64:4 u32:0 u64:0 zeros:32", LINNET_ERROR_FORMAT, "'w' has 0 dimensions"},
    {ONE_TENSOR "text:w u32:5 u64:4 u32:0 u64:0 zeros:32", LINNET_ERROR_FORMAT, "'w' has 5 dimensions"},
    {ONE_TENSOR "text:w u32:1 u64:0 u32:0 u64:0 pad zeros:32", LINNET_ERROR_FORMAT, "of the tensor 'w' is 0"},
    {ONE_TENSOR "text:w u32:2 u64:0x100000000 u64:0x100000000 u32:0 u64:0 pad", LINNET_ERROR_FORMAT,
     "dimension 1 of the tensor 'w'"},
    {ONE_TENSOR "text:w u32:1 u64:0xfffffffffffffff0 u32:0 u64:0 pad", LINNET_ERROR_FORMAT, "dimension 0"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:16 u64:0 pad zeros:32", LINNET_ERROR_UNSUPPORTED,
     "'w' is stored as type 16 (iq2_xxs)"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:0xffffffff u64:0 pad zeros:32", LINNET_ERROR_UNSUPPORTED, "(unknown)"},
    {ONE_TENSOR "text:w u32:1 u64:33 u32:8 u64:0 pad zeros:64", LINNET_ERROR_FORMAT, "rows of 33 values"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:0 u64:8 pad zeros:64", LINNET_ERROR_FORMAT, "no multiple of the alignment"},
    {ONE_TENSOR "text:w u32:1 u64:9 u32:0 u64:0 pad zeros:32", LINNET_ERROR_FORMAT, "needs 36 bytes at offset 0"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:0 u64:64 pad zeros:32", LINNET_ERROR_FORMAT, "at offset 64 of 32 bytes"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:0 u64:0xffffffffffffffe0 pad zeros:32", LINNET_ERROR_FORMAT, "at offset 1844"},
    {ONE_TENSOR "text:w u32:1 u64:4 u32:0 u64:0", LINNET_ERROR_FORMAT, "ends before its weights"},
    {HEAD "u64:2 u64:0 text:v u32:1 u64:8 u32:0 u64:0 text:w u32:1 u64:8 u32:0 u64:0 pad zeros:64", LINNET_ERROR_FORMAT,
     "'w' at offset 0 overlaps"},
    {HEAD "u64:2 u64:0 text:w u32:1 u64:8 u32:0 u64:0 text:w u32:1 u64:8 u32:0 u64:32 pad zeros:64",
     LINNET_ERROR_FORMAT, "tensor 'w' twice"},
    {ONE_KEY "text:general.alignment u32:4 u32:24", LINNET_ERROR_FORMAT, "'general.alignment' is 24"},
    {ONE_KEY "text:general.alignment u32:4 u32:0", LINNET_ERROR_FORMAT, "'general.alignment' is 0"},
    {ONE_KEY "text:general.alignment u32:8 text:32", LINNET_ERROR_FORMAT, "'general.alignment' is -1"},
};

static void test_bad_files(void **state) {
    (void)state;
    const uint64_t before = linnet_memory_used(context);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ln_buffer buffer = {.context = context};
        put_words(&buffer, bad[i].words);
        write_bytes(buffer.data, buffer.bytes);
        ln_buffer_release(&buffer);
        linnet_file *file;
        const linnet_status status = linnet_file_open(context, path, &file);
        const char *error = linnet_last_error(context);
        if (status != bad[i].status || !strstr(error, bad[i].says) || !strstr(error, path))
            fail_msg("row %zu: %s, '%s' instead of '%s'", i, linnet_status_name(status), error, bad[i].says);
        assert_null(file);
        assert_int_equal(linnet_memory_used(context), before);
    }
}

/* Cut anywhere, a file is refused; with any one byte changed, it is refused or described, never more. */
static void test_cut_and_changed(void **state) {
    (void)state;
    write_toy();
    ln_map map;
    assert_int_equal(ln_map_open(context, path, &map), LINNET_OK);
    const size_t bytes = (size_t)map.bytes;
    unsigned char *data = malloc(bytes);
    assert_non_null(data);
    memcpy(data, map.data, bytes);
    ln_map_close(&map);
    linnet_file *file;
    for (size_t cut = 0; cut < bytes - 28; cut++) {
        write_bytes(data, cut);
        assert_int_not_equal(linnet_file_open(context, path, &file), LINNET_OK);
    }
    for (size_t at = 0; at < bytes; at++) {
        data[at] ^= 0x81;
        write_bytes(data, bytes);
        if (linnet_file_open(context, path, &file) == LINNET_OK) {
            char text[64];
            for (int64_t i = 0; linnet_file_key(file, i, text, sizeof text);) i++;
        }
        linnet_file_close(file);
        data[at] ^= 0x81;
    }
    free(data);
}

static void test_limit(void **state) {
    (void)state;
    write_toy();
    linnet_file *file;
    assert_int_equal(linnet_memory_limit(context, linnet_memory_used(context) + 1000), LINNET_OK);
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_ERROR_MEMORY);
    assert_null(file);
    assert_int_equal(linnet_memory_limit(context, 0), LINNET_OK);
    assert_int_equal(linnet_file_open(context, "/nowhere/model.gguf", &file), LINNET_ERROR_FILE);
    assert_non_null(strstr(linnet_last_error(context), "/nowhere/model.gguf"));
}

/* Many keys, and a vocabulary: nothing is quadratic. */
static void test_many(void **state) {
    (void)state;
    enum { KEYS = 2000, TOKENS = 200000 };
    ln_gguf_writer writer = ln_gguf_writer_open(context);
    char name[32];
    for (int i = 0; i < KEYS; i++) {
        snprintf(name, sizeof name, "key.%d", i * 7919 % KEYS);
        ln_write_integer(&writer.keys, name, LN_I32, i * 7919 % KEYS);
    }
    ln_text *tokens = malloc(TOKENS * sizeof *tokens);
    assert_non_null(tokens);
    for (int i = 0; i < TOKENS; i++) tokens[i] = (ln_text){"abcdefgh", (size_t)i % 9};
    ln_write_array(&writer.keys, "tokens", LN_TEXT, tokens, TOKENS);
    free(tokens);
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    assert_int_equal(ln_gguf_write_head(&writer, &output), LINNET_OK);
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    ln_gguf_writer_close(&writer);
    linnet_file *file;
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_OK);
    for (int i = 0; i < KEYS; i++) {
        snprintf(name, sizeof name, "key.%d", i);
        assert_int_equal(ln_key_integer(ln_file_key(file, name), 0, -1), i);
    }
    assert_int_equal(ln_key_text(ln_file_key(file, "tokens"), TOKENS - 1).bytes, (TOKENS - 1) % 9);
    linnet_file_close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_for_people, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cut_and_changed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_many, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
