/* Orders of a lane's key channels: channels that hold next to nothing can be left out without an error to speak of;
 * outliers that share blocks leave the others their precision; with all channels the bits are those of `full`; forks
 * and session files go on bit for bit, and orders that cannot be are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "ragged.h"

enum { WIDE = 64, TOKENS = 600 };

/* One layer of two heads of which each has its own planted channels. */
typedef struct bench {
    world w;
    ln_policy policy;
    ln_ragged_shape shape;
    ln_ragged *ragged;
    void *workspace;
} bench;

static bool planted(int64_t head, int64_t channel) {
    return (channel * 5 + head * 3) % 8 < 4;
}
/* A block's worth, spread over all blocks. */
static bool outlies(int64_t head, int64_t channel) {
    return channel % 2 == head;
}

typedef float (*scale_of)(int64_t head, int64_t channel);
static float scale_low(int64_t head, int64_t channel) {
    return planted(head, channel) ? 1e-4f : 0.5f;
}
static float scale_out(int64_t head, int64_t channel) {
    return outlies(head, channel) ? 20 : 1;
}

static void open_bench(bench *b, const char *text) {
    memset(b, 0, sizeof *b);
    open_world(&b->w, 2);
    b->policy = test_policy(b->w.context, text);
    b->shape = (ln_ragged_shape){.layers = 1,
                                 .heads = 2 * KV,
                                 .key_value_heads = KV,
                                 .key_size = WIDE,
                                 .value_size = VALUE,
                                 .scale = 0.2f,
                                 .policy = &b->policy,
                                 .capacity = TOKENS,
                                 .piece = PIECE};
    assert_int_equal(ln_ragged_least(b->w.context, &b->shape, &b->shape.bytes), LINNET_OK);
    b->shape.bytes += 300000;
    const ln_attention a = {.heads = 2 * KV, .key_value_heads = KV, .key_size = WIDE, .value_size = VALUE};
    const uint64_t bytes =
        ln_ragged_workspace(&b->w.kernels, 2, &b->shape) + ln_attention_workspace(&b->w.kernels, 2, &a, KV, PIECE);
    b->workspace = aligned_alloc(64, ln_round_up(bytes, 64));
    assert_int_equal(ln_ragged_open(b->w.context, &b->shape, &b->ragged), LINNET_OK);
}

static void close_bench(bench *b) {
    ln_ragged_close(b->ragged);
    free(b->workspace);
    close_world(&b->w);
}

/* Feeds the text's tokens from `at` on; output [tokens][heads][VALUE]. */
static void feed_text(bench *b, ln_ragged *ragged, int64_t at, int64_t tokens, int64_t piece, scale_of scale,
                      bool exact, float *output) {
    static float keys[PIECE * KV * WIDE], values[PIECE * KV * VALUE], query[PIECE * 2 * KV * WIDE];
    for (int64_t done = 0; done < tokens;) {
        const int64_t n = ln_min_i64(piece, tokens - done);
        for (int64_t t = 0; t < n; t++) {
            const uint32_t seed = (uint32_t)(77 + at + done + t);
            for (int64_t h = 0; h < 2 * KV; h++)
                for (int64_t i = 0; i < WIDE; i++) {
                    query[(t * 2 * KV + h) * WIDE + i] = test_number(seed + 1, 0, h, i) / scale(h / 2, i) * 0.5f;
                    if (scale == scale_low) query[(t * 2 * KV + h) * WIDE + i] = test_number(seed + 1, 0, h, i);
                    if (h < KV) keys[(t * KV + h) * WIDE + i] = test_number(seed, 1, h, i) * scale(h, i);
                }
            for (int64_t i = 0; i < KV * VALUE; i++) values[t * KV * VALUE + i] = test_number(seed, 2, 0, i);
        }
        const ln_attention attention = {.exact = exact,
                                        .bf16 = !exact,
                                        .heads = 2 * KV,
                                        .key_value_heads = KV,
                                        .key_size = WIDE,
                                        .value_size = VALUE,
                                        .scale = 0.2f,
                                        .mask = {.causal = true}};
        const ln_ragged_call call = {.kernels = &b->w.kernels,
                                     .team = b->w.context->team,
                                     .attention = &attention,
                                     .tokens = n,
                                     .query = query,
                                     .query_stride = 2 * KV * WIDE,
                                     .query_head_stride = WIDE,
                                     .output = output + done * 2 * KV * VALUE,
                                     .output_stride = 2 * KV * VALUE,
                                     .output_head_stride = VALUE,
                                     .workspace = b->workspace};
        ln_ragged_append(ragged, b->w.context->team, 0, n, keys, KV * WIDE, values, KV * VALUE);
        assert_int_equal(ln_ragged_attend(ragged, 0, &call), LINNET_OK);
        ln_ragged_commit(ragged, n);
        done += n;
    }
}

static float *run(const char *text, scale_of scale, bool exact, int64_t piece) {
    bench b;
    open_bench(&b, text);
    float *output = malloc(TOKENS * 2 * KV * VALUE * sizeof *output);
    feed_text(&b, b.ragged, 0, TOKENS, piece, scale, exact, output);
    close_bench(&b);
    return output;
}

static double distance(const float *a, const float *b) {
    double squares = 0;
    for (int64_t i = 0; i < TOKENS * 2 * KV * VALUE; i++) squares += pow((double)a[i] - (double)b[i], 2);
    return sqrt(squares / (TOKENS * 2 * KV * VALUE));
}

static void test_low_energy(void **state) {
    (void)state;
    static const char *const texts[] = {"think:channels=0.5", "think:channels=0.5,scorer=none",
                                        "think:channels=0.5,keys=q8_0"};
    for (int exact = 0; exact < 2; exact++) {
        for (int64_t piece = exact ? PIECE : 1; piece <= PIECE; piece += PIECE - 1) {
            float *full = run("full", scale_low, exact, piece);
            for (int i = 0; i < 3; i++) {
                float *half = run(texts[i], scale_low, exact, piece);
                const double error = distance(half, full);
                printf("%s, piece %d: %g\n", texts[i], (int)piece, error);
                assert_true(error < (exact ? 3e-4 : 2e-3));
                free(half);
            }
            free(full);
        }
    }
}

static void test_full_bits(void **state) {
    (void)state;
    float *full = run("full", scale_low, true, PIECE), *think = run("think:channels=1", scale_low, true, PIECE);
    assert_memory_equal(full, think, TOKENS * 2 * KV * VALUE * sizeof *full);
    free(full);
    free(think);
}

/* Root mean square error of far keys. */
static double key_error(const char *text) {
    bench b;
    open_bench(&b, text);
    static float output[TOKENS * 2 * KV * VALUE];
    feed_text(&b, b.ragged, 0, TOKENS, PIECE, scale_out, true, output);
    double squares = 0;
    int64_t count = 0;
    for (int64_t h = 0; h < KV; h++) {
        const ln_lane *lane = ln_lane_of(b.ragged, 0, h);
        const int32_t *order = ln_lane_order(b.ragged, h);
        for (int64_t t = 0; t < lane->tokens[LN_FAR]; t++) {
            float key[WIDE];
            const ln_page page = b.ragged->page[lane->begin + t / LN_PAGE_TOKENS];
            ln_page_decode_token(&ln_pool_layouts(b.ragged->pool)[LN_FAR], ln_pool_data(b.ragged->pool, page),
                                 t % LN_PAGE_TOKENS, key, NULL);
            for (int64_t i = 0; i < WIDE; i++) {
                const int64_t c = order ? order[i] : i;
                if (outlies(h, c)) continue;
                squares += pow((double)key[i] - (double)test_number((uint32_t)(77 + 32 + t), 1, h, c), 2);
                count++;
            }
        }
    }
    close_bench(&b);
    assert_true(count > 30000);
    return sqrt(squares / (double)count);
}

static void test_outliers(void **state) {
    (void)state;
    const double with = key_error("bfp"), without = key_error("bfp:order=none");
    printf("error of keys beside outliers: %g, ordered %g\n", without, with);
    assert_true(with < 0.2 * without);
}

static void save(bench *b, const char *path) {
    ln_state_writer writer;
    assert_int_equal(ln_state_create(b->w.context, path, &writer), LINNET_OK);
    ln_ragged_write(b->ragged, &writer);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
}

static linnet_status load(bench *b, const char *path, ln_ragged *ragged, int64_t position) {
    for (int store = 0; store < 2; store++) {
        ln_state_reader reader;
        assert_int_equal(ln_state_open(b->w.context, path, &reader), LINNET_OK);
        const linnet_status status = ln_ragged_read(ragged, &reader, position, store);
        ln_state_close(&reader);
        if (status != LINNET_OK) return status;
    }
    return LINNET_OK;
}

/* A fork made before there is an order, one after, and one that read the file. */
static void test_goes_on(void **state) {
    (void)state;
    char path[] = "/tmp/linnet-order-XXXXXX";
    close(mkstemp(path));
    static const char *const texts[] = {"think", "bfp", "think:scorer=none,near=q8_0,order=magnitude"};
    static float a[TOKENS * 2 * KV * VALUE], c[TOKENS * 2 * KV * VALUE];
    for (int i = 0; i < 3; i++) {
        for (int64_t at = 40; at <= 350; at += 310) {
            bench b;
            open_bench(&b, texts[i]);
            feed_text(&b, b.ragged, 0, at, PIECE, scale_out, true, a);
            ln_ragged *fork, *read;
            assert_int_equal(ln_ragged_fork(b.ragged, &fork), LINNET_OK);
            assert_int_equal(ln_ragged_fork(b.ragged, &read), LINNET_OK);
            feed_text(&b, read, at, 100, PIECE, scale_low, true, c);
            save(&b, path);
            feed_text(&b, b.ragged, at, 200, PIECE, scale_out, true, a);
            feed_text(&b, fork, at, 200, PIECE, scale_out, true, c);
            assert_memory_equal(a, c, 200 * 2 * KV * VALUE * sizeof *a);
            if (load(&b, path, read, at) != LINNET_OK) fail_msg("%s", linnet_last_error(b.w.context));
            feed_text(&b, read, at, 200, PIECE, scale_out, true, c);
            assert_memory_equal(a, c, 200 * 2 * KV * VALUE * sizeof *a);
            ln_ragged_rewind(fork, 0);
            assert_null(ln_lane_order(fork, 0));
            if (at > 100) { /* an order that has a channel twice */
                ln_ragged_rewind(b.ragged, 0);
                feed_text(&b, b.ragged, 0, at, PIECE, scale_out, true, a);
                b.ragged->order[5] = b.ragged->order[6];
                save(&b, path);
                assert_int_equal(load(&b, path, read, at), LINNET_ERROR_FORMAT);
                assert_non_null(strstr(linnet_last_error(b.w.context), "order of channels"));
            }
            ln_ragged_close(fork);
            ln_ragged_close(read);
            close_bench(&b);
        }
    }
    unlink(path);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"think:rotate=1",  "bfp:selector=quest",       "bfp:tier=file",
                                        "think:merge=ems", "expected:order=magnitude", "think:channels=1.5"};
    static const char *const words[] = {"rotate=1", "selector", "tier=file", "merge", "turns queries", "0.01 to 1"};
    world w;
    open_world(&w, 1);
    for (int i = 0; i < 6; i++) {
        ln_policy policy;
        assert_int_equal(ln_policy_parse(w.context, texts[i], &policy), LINNET_ERROR_ARGUMENT);
        if (!strstr(linnet_last_error(w.context), words[i])) fail_msg("%s: %s", texts[i], linnet_last_error(w.context));
    }
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_low_energy), cmocka_unit_test(test_full_bits),
                                       cmocka_unit_test(test_outliers), cmocka_unit_test(test_goes_on),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
