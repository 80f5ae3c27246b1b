
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_combinations), cmocka_unit_test(test_lengths),         cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_cost),         cmocka_unit_test(test_text),            cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory),       cmocka_unit_test(test_missing_tensors),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, close_contexts);
    printf("largest error: %.2f of the tolerance\n", worst_error);
    return failed;
}
