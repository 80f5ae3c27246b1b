/* Scoring of answers, intervals, and the words that documents are made of: the files themselves are included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "../cli/eval_score.c"
#include "../cli/eval_words.c"

static double score(eval_rule rule, const char *const *labels, const char *asked, const char *expected, size_t bytes,
                    const char *answer) {
    eval_question question = {0};
    question.text.data = (char *)(uintptr_t)asked;
    question.answers.data = (char *)(uintptr_t)expected;
    question.answers.bytes = bytes;
    return eval_score(rule, labels, &question, answer);
}

#define SCORE(rule, expected, answer) score(rule, NULL, "", expected, sizeof(expected), answer)

static void test_exact(void **state) {
    (void)state;
    assert_true(SCORE(EVAL_EXACT, "48213", " 48213\n") == 1);
    assert_true(SCORE(EVAL_EXACT, "48213", "48213.") == 0);
    assert_true(SCORE(EVAL_EXACT, "48213", "4821") == 0);
    assert_true(SCORE(EVAL_EXACT, "48213", "") == 0);
}

static void test_integer(void **state) {
    (void)state;
    assert_true(SCORE(EVAL_INTEGER, "1234", "It is 1,234, not 5.") == 1);
    assert_true(SCORE(EVAL_INTEGER, "1234", "1234") == 1);
    assert_true(SCORE(EVAL_INTEGER, "1234", "12345") == 0);
    assert_true(SCORE(EVAL_INTEGER, "1234", "the 1st is 1234") == 0);
    assert_true(SCORE(EVAL_INTEGER, "0", "no number") == 0);
    assert_true(SCORE(EVAL_INTEGER, "1", "11111111111111111111111111111111111111111111111111") == 0);
}

static void test_match_all(void **state) {
    (void)state;
    assert_true(SCORE(EVAL_MATCH_ALL, "alpha\0beta", "BETA and Alpha") == 1);
    assert_true(SCORE(EVAL_MATCH_ALL, "alpha\0beta", "only beta") == 0.5);
    assert_true(SCORE(EVAL_MATCH_ALL, "alpha\0beta", "") == 0);
}

static void test_label(void **state) {
    (void)state;
    static const char *const rooms[] = {"bathroom", "kitchen", "office", NULL};
    static const char *const things[] = {"apple", "milk", "nothing", NULL};
    static const char *const words[] = {"yes", "no", NULL};
    static const char before[] = "Where was the apple before the kitchen?";
    assert_true(score(EVAL_LABEL, rooms, "Where is Mary?", "office", 7, "In the Office. Not the kitchen.") == 1);
    assert_true(score(EVAL_LABEL, rooms, "Where is Mary?", "office", 7, "office or kitchen") == 0);
    assert_true(score(EVAL_LABEL, rooms, "Where is Mary?", "office", 7, "kitchen. office") == 0);
    assert_true(score(EVAL_LABEL, rooms, "Where is Mary?", "office", 7, "officer") == 0);
    assert_true(score(EVAL_LABEL, rooms, before, "office", 7, "before the kitchen it was in the office") == 1);
    assert_true(score(EVAL_LABEL, things, "What is Mary carrying?", "apple,milk", 11, "milk and apple") == 1);
    assert_true(score(EVAL_LABEL, things, "What is Mary carrying?", "apple,milk", 11, "milk") == 0);
    assert_true(score(EVAL_LABEL, words, "Is Mary in the office?", "no", 3, "no, not there") == 1);
    assert_true(score(EVAL_LABEL, words, "Is Mary in the office?", "no", 3, "nothing known") == 0);
}

static void test_interval(void **state) {
    (void)state;
    double low, high;
    eval_interval(0, 0, &low, &high);
    assert_true(low == 0 && high == 1);
    eval_interval(50, 100, &low, &high);
    assert_float_equal(low, 0.4038, 1e-3);
    assert_float_equal(high, 0.5962, 1e-3);
    eval_interval(100, 100, &low, &high);
    assert_float_equal(low, 0.9630, 1e-3);
    assert_float_equal(high, 1, 1e-9);
    eval_interval(0, 10, &low, &high);
    assert_float_equal(low, 0, 1e-9);
    assert_float_equal(high, 0.2775, 1e-3);
}

static int compare(const void *a, const void *b) {
    return strcmp(a, b);
}

static void test_words_differ(void **state) {
    (void)state;
    enum { COUNT = 400000 };
    char(*words)[16] = malloc(COUNT * sizeof *words);
    assert_non_null(words);
    for (int64_t i = 0; i < COUNT; i++) eval_word(i, words[i]);
    qsort(words, COUNT, sizeof *words, compare);
    for (int i = 1; i < COUNT; i++) assert_string_not_equal(words[i - 1], words[i]);
    free(words);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact),     cmocka_unit_test(test_integer),
                                       cmocka_unit_test(test_match_all), cmocka_unit_test(test_label),
                                       cmocka_unit_test(test_interval),  cmocka_unit_test(test_words_differ)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
