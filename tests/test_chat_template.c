/* Chat templates against jinja2 with transformers' settings (tests/golden/chat_templates.json, made by
 * tools/make_chat_goldens.py), and templates that mean harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_template.h"

static linnet_context *open_context(void) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

static linnet_status render(linnet_context *context, const char *text, const ln_template_input *input, ln_buffer *out) {
    ln_template *compiled;
    linnet_status status = ln_template_open(context, text, strlen(text), &compiled);
    if (status != LINNET_OK) return status;
    status = ln_template_render(compiled, input, out);
    ln_template_close(compiled);
    return status;
}

static int64_t read_messages(const json_t *list, linnet_message *messages) {
    const json_t *entry;
    size_t index;
    json_array_foreach(list, index, entry) {
        messages[index] = (linnet_message){json_string_value(json_object_get(entry, "role")),
                                           json_string_value(json_object_get(entry, "content"))};
    }
    return (int64_t)json_array_size(list);
}

static void check_case(linnet_context *context, const char *template, const json_t *each) {
    linnet_message messages[16];
    const ln_template_input input = {.messages = messages,
                                     .count = read_messages(json_object_get(each, "messages"), messages),
                                     .add_generation_prompt =
                                         json_is_true(json_object_get(each, "add_generation_prompt")),
                                     .begin = {"<s>", 3},
                                     .end = {"</s>", 4}};
    ln_buffer out = {.context = context};
    const linnet_status status = render(context, template, &input, &out);
    const json_t *text = json_object_get(each, "text"), *error = json_object_get(each, "error");
    const char *got = out.data ? out.data : "";
    if (text && status != LINNET_OK) fail_msg("%s\n%s", template, linnet_last_error(context));
    if (text && (out.bytes != json_string_length(text) || memcmp(got, json_string_value(text), out.bytes) != 0))
        fail_msg("%s\ngave     '%.*s'\ninstead of '%s'", template, (int)out.bytes, got, json_string_value(text));
    if (error && status == LINNET_OK) fail_msg("%s\ngave '%.*s', an error was due", template, (int)out.bytes, got);
    if (error && json_string_length(error)) {
        assert_int_equal(status, LINNET_ERROR_ARGUMENT);
        assert_non_null(strstr(linnet_last_error(context), json_string_value(error)));
    }
    ln_buffer_release(&out);
}

static void test_goldens(void **state) {
    (void)state;
    linnet_context *context = open_context();
    const uint64_t before = linnet_memory_used(context);
    json_t *all = json_load_file(TESTS_FOLDER "/golden/chat_templates.json", 0, NULL);
    assert_non_null(all);
    json_t *entry, *each;
    size_t index, number;
    json_array_foreach(all, index, entry) {
        json_array_foreach(json_object_get(entry, "cases"), number, each) {
            check_case(context, json_string_value(json_object_get(entry, "template")), each);
        }
    }
    json_decref(all);
    assert_int_equal(linnet_memory_used(context), before);
    linnet_context_close(context);
}

/* Each would take for ever, or all memory, or the whole stack. */
static void test_hostile(void **state) {
    (void)state;
    static const char *const templates[] = {
        "{% for a in range(99999999999) %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 99999999999 }}",
        "{{ [1] * 99999999999 }}",
        "{{ 2 ** 99999999999 }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns | tojson }}",
        "{% set a = namespace() %}{% set b = namespace(x=a) %}{% set a.x = b %}{{ {1: a} == {1: b} }}",
        "{{ 'a\\nb' | indent(99999999999) }}",
        "{{ 'aaaaaaaaaaaaaaaa' | replace('', 'b') }}{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
        "{{ [3, 2, 1][0:3:9223372036854775807] }}{{ -(-9223372036854775807 - 1) }}",
        "{{ range(9)[::-9223372036854775807] }}{{ 9223372036854775807 }}",
        "{{ (0 - 922337203685477580 * 10 - 8) // -1 }}",
    };
    linnet_context *context = open_context();
    const uint64_t before = linnet_memory_used(context);
    const ln_template_input input = {0};
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        ln_buffer out = {.context = context};
        const linnet_status status = render(context, templates[i], &input, &out);
        if (status != LINNET_ERROR_UNSUPPORTED) fail_msg("%s: %s", templates[i], linnet_status_name(status));
        ln_buffer_release(&out);
    }
    static const char *const repeated[] = {"(",        "[",     "{{ -", "{{ not ", "{% if x %}",
                                           "{{ 1 + (", "{{ x|", "{{ [", "{{{{"};
    for (size_t i = 0; i < sizeof repeated / sizeof *repeated; i++) {
        ln_buffer text = {.context = context}, out = {.context = context};
        ln_buffer_text(&text, "{{ ");
        for (int k = 0; k < 20000; k++) ln_buffer_text(&text, repeated[i]);
        assert_int_equal(render(context, text.data, &input, &out), LINNET_ERROR_UNSUPPORTED);
        ln_buffer_release(&text);
        ln_buffer_release(&out);
    }
    assert_int_equal(linnet_memory_used(context), before);
    linnet_context_close(context);
}

/* Every allocation may be the one that fails. */
static void test_memory(void **state) {
    (void)state;
    linnet_context *context = open_context();
    const uint64_t before = linnet_memory_used(context);
    linnet_message message = {"user", "hello"};
    const ln_template_input input = {.messages = &message, .count = 1};
    static const char text[] = "{% for m in messages %}{{ m.role ~ [1, 2, 3] ~ (m.content * 3000) }}{% endfor %}";
    bool done = false;
    for (uint64_t limit = before + 500; !done; limit += limit / 20) {
        linnet_memory_limit(context, limit);
        ln_buffer out = {.context = context};
        const linnet_status status = render(context, text, &input, &out);
        done = status == LINNET_OK;
        if (!done)
            assert_int_equal(status, LINNET_ERROR_MEMORY);
        else
            assert_int_equal(out.bytes, 4 + 9 + 15000);
        ln_buffer_release(&out);
        assert_int_equal(linnet_memory_used(context), before);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
