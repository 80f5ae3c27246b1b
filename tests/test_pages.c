/* Key-value memory against a plain model of it: random appends, commits, rewinds, forks, closes, saves and loads; exact
 * accounting; rings; failing allocators; damaged and foreign session files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/random.h"
#include "counter.h"
#include "memory/pages.h"

enum { LAYERS = 3, HEADS = 2, KEY = 24, VALUE = 40, CAPACITY = 400, PIECE = 50, MEMORIES = 4 };
static const int64_t windows[LAYERS] = {0, 40, 64};

static ln_memory_shape shape_of(linnet_type precision) {
    return (ln_memory_shape){.layers = LAYERS,
                             .key_value_heads = HEADS,
                             .key_size = KEY,
                             .value_size = VALUE,
                             .window = windows,
                             .precision = precision,
                             .capacity = CAPACITY,
                             .piece = PIECE};
}

/* ---- the model: what was put where ---- */

typedef struct model {
    ln_memory *memory;
    int64_t position;
    uint32_t seed[CAPACITY]; /* of the token at each position */
} model;

/* A value by token, layer, head, index: small integers and their halves, which every precision holds exactly (of Q8_0,
 * any block whose largest is 127 steps; of Q4_0, one whose largest is -8). */
static float value_of(linnet_type precision, uint32_t seed, int64_t layer, int64_t head, int64_t i) {
    uint64_t x = seed + 1000003u * (uint64_t)(layer * HEADS + head) + 7919u * (uint64_t)(i % 32);
    const int64_t v = (int64_t)(ln_random_mix(&x) % 255) - 127;
    if (precision == LINNET_Q4_0) return i % 32 == 0 ? -8 : (float)(v & 15) - 8;
    return i % 32 == 0 ? 127 : (float)v;
}

static void append(model *m, ln_team *team, int64_t layer, int64_t tokens) {
    enum { KEY_STRIDE = HEADS * KEY + 3, VALUE_STRIDE = HEADS * VALUE + 5 };
    static float keys[PIECE * KEY_STRIDE], values[PIECE * VALUE_STRIDE];
    const linnet_type precision = ln_memory_view(m->memory, layer).layout.key_type;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < HEADS; h++) {
            const uint32_t seed = m->seed[m->position + t];
            for (int64_t i = 0; i < KEY; i++)
                keys[t * KEY_STRIDE + h * KEY + i] = value_of(precision, seed, layer, h, i);
            for (int64_t i = 0; i < VALUE; i++)
                values[t * VALUE_STRIDE + h * VALUE + i] = value_of(precision, seed + 1, layer, h, i);
        }
    }
    ln_memory_append(m->memory, team, layer, tokens, keys, KEY_STRIDE, values, VALUE_STRIDE);
}

/* Row `row` and column of rows of `columns`. */
static float decode_one(const ln_page_layout *layout, const unsigned char *codes, int64_t row, int64_t columns,
                        int64_t column, const unsigned char *scale) {
    const int64_t i = row * columns + column;
    uint16_t half;
    float value;
    switch (layout->key_type) {
    case LINNET_F32:
        memcpy(&value, codes + 4 * i, 4);
        return value;
    case LINNET_Q4_0:
        memcpy(&half, scale, 2);
        return ln_f16_float(half) * (float)((codes[(row / 8 * 4 + row % 4) * columns + column] >> (row & 4) & 15) - 8);
    case LINNET_Q8_0:
        memcpy(&half, scale, 2);
        return ln_f16_float(half) * (float)(int8_t)codes[i];
    default:
        memcpy(&half, codes + 2 * i, 2);
        return layout->key_type == LINNET_F16 ? ln_f16_float(half) : ln_bf16_float(half);
    }
}

static void check_token(const model *m, int64_t layer, const ln_page_view *view, int64_t position) {
    const int64_t t = position % LN_PAGE_TOKENS;
    for (int64_t h = 0; h < HEADS; h++) {
        const unsigned char *page = ln_page_of(view, h, position / LN_PAGE_TOKENS);
        assert_int_equal((uintptr_t)page % 64, 0);
        const ln_attend_part keys = ln_page_keys(&view->layout, page, 0);
        for (int64_t i = 0; i < KEY; i++) {
            const float found = decode_one(&view->layout, keys.codes, i, LN_PAGE_TOKENS, t,
                                           keys.scales + 2 * (i / 32 * LN_PAGE_TOKENS + t));
            assert_true(found == value_of(view->layout.key_type, m->seed[position], layer, h, i));
        }
        for (int64_t i = 0; i < VALUE; i++) {
            const ln_attend_part values = ln_page_values(&view->layout, page, i / LN_PANEL, t);
            const float found =
                decode_one(&view->layout, values.codes, values.first,
                           ln_min_i64(LN_PANEL, VALUE - i / LN_PANEL * LN_PANEL), i % LN_PANEL, values.scales);
            assert_true(found == value_of(view->layout.key_type, m->seed[position] + 1, layer, h, i));
        }
    }
}

static void check_layer(const model *m, int64_t layer, int64_t end) {
    const ln_page_view view = ln_memory_view(m->memory, layer);
    assert_int_equal(view.end, end);
    const int64_t window = windows[layer];
    /* Whatever is kept is right, and all that the next token's window needs is kept. */
    assert_true(view.first <= (window ? ln_max_i64(0, m->position - window + 1) : 0));
    for (int64_t p = view.first; p < end; p++) check_token(m, layer, &view, p);
}

static void check_model(const model *m) {
    assert_int_equal(ln_memory_position(m->memory), m->position);
    for (int64_t layer = 0; layer < LAYERS; layer++) check_layer(m, layer, m->position);
}

static void feed(model *m, ln_team *team, ln_random *random, int64_t tokens) {
    for (int64_t t = 0; t < tokens; t++) m->seed[m->position + t] = (uint32_t)ln_random_u64(random);
    for (int64_t layer = 0; layer < LAYERS; layer++) {
        append(m, team, layer, tokens);
        const ln_page_view view = ln_memory_view(m->memory, layer);
        assert_int_equal(view.end, m->position + tokens);
        for (int64_t p = m->position; p < m->position + tokens; p++) check_token(m, layer, &view, p);
    }
    ln_memory_commit(m->memory, tokens);
    m->position += tokens;
}

/* ---- random sequences ---- */

static void save(linnet_context *context, const ln_memory *memory, const char *path) {
    ln_state_writer writer;
    assert_int_equal(ln_state_create(context, path, &writer), LINNET_OK);
    ln_state_put_i64(&writer, 42);
    ln_memory_write(memory, &writer);
    ln_state_put(&writer, "end", 3);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
}

static linnet_status load(linnet_context *context, ln_memory *memory, const char *path) {
    ln_state_reader reader;
    linnet_status status = ln_state_open(context, path, &reader);
    if (status != LINNET_OK) return status;
    int64_t mark = 0;
    const bool marked = ln_state_take_i64(&reader, &mark) && mark == 42;
    status = marked ? ln_memory_read(memory, &reader, -1) : LINNET_ERROR_FORMAT;
    if (status == LINNET_OK) assert_int_equal(ln_state_left(&reader), 3);
    ln_state_close(&reader);
    return status;
}

static char *temporary_path(char *path) {
    strcpy(path, "/tmp/linnet-test-XXXXXX");
    const int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    return path;
}

static void rewind_at_random(model *m, linnet_context *context, ln_random *random) {
    const int64_t to = (int64_t)ln_random_below(random, (uint64_t)m->position + 1);
    const int64_t limit = ln_memory_rewind_limit(m->memory);
    assert_true(limit <= m->position);
    const linnet_status status = ln_memory_rewind(m->memory, to);
    if (to > 0 && to < limit) {
        assert_int_equal(status, LINNET_ERROR_UNSUPPORTED);
        assert_non_null(strstr(linnet_last_error(context), "rewind"));
    } else {
        assert_int_equal(status, LINNET_OK);
        m->position = to;
    }
}

static void test_random(void **state) {
    (void)state;
    static const linnet_type precisions[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0};
    char path[32];
    temporary_path(path);
    for (int run = 0; run < 12; run++) {
        counter count = {0};
        linnet_context *context = counted_context(&count, 2);
        const uint64_t before = linnet_memory_used(context);
        const ln_memory_shape shape = shape_of(precisions[run % 5]);
        const uint64_t bytes = ln_memory_bytes(&shape);
        ln_random random;
        ln_random_seed(&random, (uint64_t)run);
        static model models[MEMORIES], saved;
        memset(models, 0, sizeof models);
        saved.position = -1;
        int64_t open = 1;
        assert_int_equal(ln_memory_open(context, &shape, &models[0].memory), LINNET_OK);
        for (int step = 0; step < 250; step++) {
            model *m = &models[ln_random_below(&random, (uint64_t)open)];
            const uint64_t action = ln_random_below(&random, 16);
            if (action < 9) {
                const int64_t room = ln_min_i64(PIECE, CAPACITY - m->position);
                if (room > 0) feed(m, context->team, &random, (int64_t)ln_random_below(&random, (uint64_t)room) + 1);
            } else if (action < 11) {
                rewind_at_random(m, context, &random);
            } else if (action < 13 && open < MEMORIES) {
                models[open] = *m;
                assert_int_equal(ln_memory_fork(m->memory, &models[open].memory), LINNET_OK);
                open++;
            } else if (action < 14 && open > 1) {
                ln_memory_close(m->memory);
                *m = models[--open];
            } else if (action < 15) {
                save(context, m->memory, path);
                saved = *m;
            } else if (saved.position >= 0) {
                assert_int_equal(load(context, m->memory, path), LINNET_OK);
                ln_memory *const memory = m->memory;
                *m = saved;
                m->memory = memory;
            }
            assert_int_equal(linnet_memory_used(context) - before, (uint64_t)open * bytes);
            for (int64_t i = 0; i < open; i++) check_model(&models[i]);
        }
        while (open > 0) ln_memory_close(models[--open].memory);
        assert_int_equal(linnet_memory_used(context), before);
        linnet_context_close(context);
        assert_int_equal(count.live, 0);
        assert_int_equal(count.bytes, 0);
    }
    unlink(path);
}

/* ---- rings ---- */

/* A sliding layer's memory does not grow with the context, and always holds its window. */
static void test_ring(void **state) {
    (void)state;
    linnet_context *context = counted_context(NULL, 2);
    ln_memory_shape shape = shape_of(LINNET_F16);
    const int64_t sliding[LAYERS] = {40, 40, 40};
    shape.window = sliding;
    const uint64_t bytes = ln_memory_bytes(&shape);
    shape.capacity = 1 << 30;
    assert_int_equal(ln_memory_bytes(&shape), bytes);
    shape.capacity = CAPACITY;
    ln_memory *memory;
    assert_int_equal(ln_memory_open(context, &shape, &memory), LINNET_OK);
    assert_int_equal(ln_memory_view(memory, 0).slot_count, (40 + PIECE + 31) / 32 + 1);
    assert_int_equal(ln_memory_rewind_limit(memory), 0);
    static float zeros[PIECE * HEADS * VALUE];
    for (int64_t t = 0; t + PIECE <= CAPACITY; t += PIECE) {
        for (int64_t layer = 0; layer < LAYERS; layer++)
            ln_memory_append(memory, context->team, layer, PIECE, zeros, HEADS * KEY, zeros, HEADS * VALUE);
        ln_memory_commit(memory, PIECE);
    }
    const int64_t limit = ln_memory_rewind_limit(memory);
    assert_true(limit > 0 && limit <= CAPACITY - PIECE);
    assert_int_equal(ln_memory_rewind(memory, limit - 1), LINNET_ERROR_UNSUPPORTED);
    assert_int_equal(ln_memory_rewind(memory, limit), LINNET_OK);
    assert_int_equal(ln_memory_rewind(memory, CAPACITY), LINNET_ERROR_ARGUMENT);
    assert_int_equal(ln_memory_rewind(memory, -1), LINNET_ERROR_ARGUMENT);
    assert_int_equal(ln_memory_rewind(memory, 0), LINNET_OK);
    assert_int_equal(ln_memory_rewind_limit(memory), 0);
    ln_memory_close(memory);
    linnet_context_close(context);
}

static void test_bad_shapes(void **state) {
    (void)state;
    linnet_context *context = counted_context(NULL, 2);
    const uint64_t before = linnet_memory_used(context);
    const int64_t negative[LAYERS] = {0, -1, 0};
    ln_memory_shape shapes[9];
    for (int i = 0; i < 9; i++) shapes[i] = shape_of(LINNET_F32);
    shapes[0].precision = LINNET_Q4_1;
    shapes[1].key_size = 20;
    shapes[2].value_size = 584;
    shapes[3].layers = 0;
    shapes[4].key_value_heads = -1;
    shapes[5].capacity = 0;
    shapes[6].piece = 0;
    shapes[7].window = negative;
    shapes[8].capacity = INT64_MAX;
    ln_memory *memory;
    for (int i = 0; i < 9; i++) {
        assert_int_equal(ln_memory_bytes(&shapes[i]), UINT64_MAX);
        assert_int_equal(ln_memory_open(context, &shapes[i], &memory), LINNET_ERROR_ARGUMENT);
        assert_null(memory);
    }
    ln_memory_shape huge = shape_of(LINNET_F32);
    huge.window = NULL;
    huge.capacity = (int64_t)1 << 40;
    huge.key_value_heads = 1 << 20;
    assert_int_not_equal(ln_memory_open(context, &huge, &memory), LINNET_OK);
    assert_int_equal(linnet_memory_used(context), before);
    linnet_context_close(context);
}

/* ---- failing allocations ---- */

static void test_refused_allocations(void **state) {
    (void)state;
    char path[32];
    temporary_path(path);
    for (int64_t n = 1; n < 20; n++) {
        counter count = {0};
        linnet_context *context = counted_context(&count, 2);
        const uint64_t before = linnet_memory_used(context);
        count.fail_at = count.calls + n;
        const ln_memory_shape shape = shape_of(LINNET_Q8_0);
        ln_memory *memory, *fork = NULL;
        linnet_status status = ln_memory_open(context, &shape, &memory);
        if (status == LINNET_OK) status = ln_memory_fork(memory, &fork);
        if (status == LINNET_OK) {
            ln_state_writer writer;
            status = ln_state_create(context, path, &writer);
            if (status == LINNET_OK) {
                ln_memory_write(memory, &writer);
                status = ln_state_finish(&writer, true);
            }
        }
        if (status != LINNET_OK) {
            assert_int_equal(status, LINNET_ERROR_MEMORY);
            assert_true(*linnet_last_error(context) != 0);
        } else {
            assert_true(n > 4);
        }
        ln_memory_close(fork);
        ln_memory_close(memory);
        assert_int_equal(linnet_memory_used(context), before);
        linnet_context_close(context);
        assert_int_equal(count.live, 0);
    }
    unlink(path);
}

/* ---- files ---- */

static unsigned char *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*bytes + 8);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

static void write_all(const char *path, const unsigned char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

typedef struct saved_model {
    linnet_context *context;
    model model;
    char path[32];
    unsigned char *data;
    size_t bytes;
} saved_model;

static saved_model make_saved(linnet_type precision, int64_t tokens) {
    static saved_model s;
    s.context = counted_context(NULL, 2);
    const ln_memory_shape shape = shape_of(precision);
    assert_int_equal(ln_memory_open(s.context, &shape, &s.model.memory), LINNET_OK);
    s.model.position = 0;
    ln_random random;
    ln_random_seed(&random, 5);
    for (int64_t t = 0; t < tokens; t += PIECE) feed(&s.model, s.context->team, &random, ln_min_i64(PIECE, tokens - t));
    temporary_path(s.path);
    save(s.context, s.model.memory, s.path);
    s.data = read_all(s.path, &s.bytes);
    return s;
}

static void free_saved(saved_model *s) {
    free(s->data);
    unlink(s->path);
    ln_memory_close(s->model.memory);
    linnet_context_close(s->context);
}

/* Damage anywhere is refused with a sentence, and what was held stays. */
static void test_damaged_files(void **state) {
    (void)state;
    saved_model s = make_saved(LINNET_Q8_0, 130);
    const size_t head = 16 + 8 + 9 * 8 + LAYERS * 24;
    for (size_t i = 0; i < s.bytes; i += i < head || i + 40 > s.bytes ? 1 : 997) {
        s.data[i] ^= (unsigned char)(1 << i % 8);
        write_all(s.path, s.data, s.bytes);
        s.data[i] ^= (unsigned char)(1 << i % 8);
        const linnet_status status = load(s.context, s.model.memory, s.path);
        assert_true(status == LINNET_ERROR_FORMAT || status == LINNET_ERROR_UNSUPPORTED);
        assert_non_null(strstr(linnet_last_error(s.context), s.path));
    }
    for (size_t bytes = 0; bytes < s.bytes; bytes += bytes < head || bytes + 40 > s.bytes ? 1 : 1999) {
        write_all(s.path, s.data, bytes);
        assert_int_equal(load(s.context, s.model.memory, s.path), LINNET_ERROR_FORMAT);
    }
    memcpy(s.data + s.bytes, "12345678", 8);
    write_all(s.path, s.data, s.bytes + 8);
    assert_int_equal(load(s.context, s.model.memory, s.path), LINNET_ERROR_FORMAT);
    check_model(&s.model);
    write_all(s.path, s.data, s.bytes);
    assert_int_equal(load(s.context, s.model.memory, s.path), LINNET_OK);
    check_model(&s.model);
    free_saved(&s);
}

/* Files that are sound but say what cannot be: any number of the head replaced, with a right checksum. */
static void test_lying_files(void **state) {
    (void)state;
    saved_model s = make_saved(LINNET_F16, 130);
    static const int64_t lies[] = {0, 1, -1, 7, 40, 129, 131, 1 << 20, INT64_MAX, INT64_MIN, INT64_MAX / 32};
    const size_t numbers = 9 + 3 * LAYERS;
    for (size_t n = 0; n < numbers; n++) {
        for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
            const size_t at = 16 + 8 + 8 * n;
            int64_t truth;
            memcpy(&truth, s.data + at, 8);
            /* As many tokens as the same pages can hold: the session knows better. */
            const bool possible = n == 8 && lies[i] > 128 && lies[i] <= 160;
            if (truth == lies[i] || possible) continue;
            ln_state_writer writer;
            assert_int_equal(ln_state_create(s.context, s.path, &writer), LINNET_OK);
            ln_state_put(&writer, s.data + 16, at - 16);
            ln_state_put_i64(&writer, lies[i]);
            ln_state_put(&writer, s.data + at + 8, s.bytes - 16 - at - 8);
            assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
            assert_int_equal(load(s.context, s.model.memory, s.path), LINNET_ERROR_FORMAT);
            assert_non_null(strstr(linnet_last_error(s.context), s.path));
            check_model(&s.model);
        }
    }
    free_saved(&s);
}

/* Another shape or precision is named; another piece or a larger context is fine. */
static void test_other_shapes(void **state) {
    (void)state;
    saved_model s = make_saved(LINNET_BF16, 330);
    ln_memory_shape shapes[6];
    for (int i = 0; i < 6; i++) shapes[i] = shape_of(LINNET_BF16);
    const int64_t other[LAYERS] = {0, 41, 64};
    shapes[0].precision = LINNET_F16;
    shapes[1].capacity = 300;
    shapes[2].window = other;
    shapes[3].layers = 2;
    shapes[4].piece = 3;
    shapes[5].piece = 200;
    shapes[5].capacity = 5000;
    for (int i = 0; i < 6; i++) {
        model m = s.model;
        assert_int_equal(ln_memory_open(s.context, &shapes[i], &m.memory), LINNET_OK);
        assert_int_equal(load(s.context, m.memory, s.path), i < 4 ? LINNET_ERROR_FORMAT : LINNET_OK);
        if (i < 4)
            assert_int_equal(ln_memory_position(m.memory), 0);
        else
            check_model(&m);
        if (i == 5) {
            ln_random random;
            ln_random_seed(&random, 9);
            assert_true(ln_memory_rewind_limit(m.memory) <= 330 - 64);
            feed(&m, s.context->team, &random, 40);
            check_model(&m);
        }
        ln_memory_close(m.memory);
    }
    free_saved(&s);
}

/* Bytes of tokens that were never written do not get into a file. */
static void test_file_is_reproducible(void **state) {
    (void)state;
    unsigned char *first = NULL;
    size_t first_bytes = 0;
    for (int fill = 0; fill < 2; fill++) {
        linnet_context *context = counted_context(NULL, 2);
        const ln_memory_shape shape = shape_of(LINNET_Q8_0);
        model m = {0};
        assert_int_equal(ln_memory_open(context, &shape, &m.memory), LINNET_OK);
        for (int64_t layer = 0; layer < LAYERS; layer++) {
            const ln_page_view view = ln_memory_view(m.memory, layer);
            for (int64_t i = 0; i < view.slot_count; i++)
                for (int64_t h = 0; h < HEADS; h++)
                    memset((void *)(uintptr_t)(view.slots[i] + (uint64_t)h * view.head_stride), fill ? 0xa5 : 0x5a,
                           view.layout.bytes);
        }
        ln_random random;
        ln_random_seed(&random, 1);
        feed(&m, context->team, &random, 45);
        char path[32];
        save(context, m.memory, temporary_path(path));
        size_t bytes;
        unsigned char *data = read_all(path, &bytes);
        if (fill) {
            assert_int_equal(bytes, first_bytes);
            assert_memory_equal(data, first, bytes);
            free(data);
        } else {
            first = data;
            first_bytes = bytes;
        }
        unlink(path);
        ln_memory_close(m.memory);
        linnet_context_close(context);
    }
    free(first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_bad_shapes),    cmocka_unit_test(test_refused_allocations),
        cmocka_unit_test(test_damaged_files), cmocka_unit_test(test_lying_files),
        cmocka_unit_test(test_other_shapes),  cmocka_unit_test(test_file_is_reproducible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
