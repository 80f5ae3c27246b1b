/* Owns: tests ("is defined") and functions ("range"), one row each in two tables. */
#include <string.h>
#include <time.h>

#include "model/chat_template_inside.h"

/* ---- tests ---- */

typedef enum test {
    TEST_DEFINED,
    TEST_UNDEFINED,
    TEST_NONE,
    TEST_STRING,
    TEST_NUMBER,
    TEST_INTEGER,
    TEST_FLOAT,
    TEST_BOOLEAN,
    TEST_TRUE,
    TEST_FALSE,
    TEST_MAPPING,
    TEST_SEQUENCE,
    TEST_ITERABLE,
    TEST_CALLABLE,
    TEST_ODD,
    TEST_EVEN,
    TEST_DIVISIBLE,
    TEST_EQUAL,
    TEST_UNEQUAL,
    TEST_LESS,
    TEST_LESS_EQUAL,
    TEST_GREATER,
    TEST_GREATER_EQUAL,
    TEST_IN
} test;

static const struct {
    const char *name;
    test test;
} tests[] = {{"defined", TEST_DEFINED},
             {"undefined", TEST_UNDEFINED},
             {"none", TEST_NONE},
             {"string", TEST_STRING},
             {"number", TEST_NUMBER},
             {"integer", TEST_INTEGER},
             {"float", TEST_FLOAT},
             {"boolean", TEST_BOOLEAN},
             {"true", TEST_TRUE},
             {"false", TEST_FALSE},
             {"mapping", TEST_MAPPING},
             {"sequence", TEST_SEQUENCE},
             {"iterable", TEST_ITERABLE},
             {"callable", TEST_CALLABLE},
             {"odd", TEST_ODD},
             {"even", TEST_EVEN},
             {"divisibleby", TEST_DIVISIBLE},
             {"equalto", TEST_EQUAL},
             {"eq", TEST_EQUAL},
             {"==", TEST_EQUAL},
             {"sameas", TEST_EQUAL},
             {"ne", TEST_UNEQUAL},
             {"!=", TEST_UNEQUAL},
             {"lt", TEST_LESS},
             {"lessthan", TEST_LESS},
             {"le", TEST_LESS_EQUAL},
             {"gt", TEST_GREATER},
             {"greaterthan", TEST_GREATER},
             {"ge", TEST_GREATER_EQUAL},
             {"in", TEST_IN}};

static bool many(ln_jinja_value value) {
    return value.kind == LN_JINJA_TEXT || value.kind == LN_JINJA_LIST || value.kind == LN_JINJA_MAP;
}

static int64_t remainder_of(ln_jinja_run *run, ln_jinja_value value, int64_t divisor) {
    if (divisor == 0) ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a division by zero");
    return divisor == -1 ? 0 : ln_jinja_need_integer(run, value) % divisor;
}

static bool holds(ln_jinja_run *run, test which, ln_jinja_value value, ln_jinja_value other) {
    ln_jinja_state *state = &run->state;
    switch (which) {
    case TEST_DEFINED:
        return value.kind != LN_JINJA_UNDEFINED;
    case TEST_UNDEFINED:
        return value.kind == LN_JINJA_UNDEFINED;
    case TEST_NONE:
        return value.kind == LN_JINJA_NONE;
    case TEST_STRING:
        return value.kind == LN_JINJA_TEXT;
    case TEST_NUMBER:
        return ln_jinja_is_number(value);
    case TEST_INTEGER:
        return value.kind == LN_JINJA_INTEGER;
    case TEST_FLOAT:
        return value.kind == LN_JINJA_REAL;
    case TEST_BOOLEAN:
        return value.kind == LN_JINJA_BOOL;
    case TEST_TRUE:
        return value.kind == LN_JINJA_BOOL && value.truth;
    case TEST_FALSE:
        return value.kind == LN_JINJA_BOOL && !value.truth;
    case TEST_MAPPING:
        return value.kind == LN_JINJA_MAP && !value.map->is_namespace;
    case TEST_SEQUENCE:
    case TEST_ITERABLE:
        return many(value) || value.kind == LN_JINJA_UNDEFINED;
    case TEST_CALLABLE:
        return value.kind == LN_JINJA_MACRO || value.kind == LN_JINJA_FUNCTION;
    case TEST_ODD:
        return remainder_of(run, value, 2) != 0;
    case TEST_EVEN:
        return remainder_of(run, value, 2) == 0;
    case TEST_DIVISIBLE:
        return remainder_of(run, value, ln_jinja_need_integer(run, other)) == 0;
    case TEST_EQUAL:
        return ln_jinja_equal(state, value, other);
    case TEST_UNEQUAL:
        return !ln_jinja_equal(state, value, other);
    case TEST_LESS:
        return ln_jinja_compare(state, value, other) < 0;
    case TEST_LESS_EQUAL:
        return ln_jinja_compare(state, value, other) <= 0;
    case TEST_GREATER:
        return ln_jinja_compare(state, value, other) > 0;
    case TEST_GREATER_EQUAL:
        return ln_jinja_compare(state, value, other) >= 0;
    case TEST_IN:
        return ln_jinja_contains(state, other, value);
    }
    return false;
}

bool ln_jinja_apply_test(ln_jinja_run *run, ln_text name, ln_jinja_value value, const ln_jinja_arguments *arguments) {
    ln_jinja_charge(&run->state, 1);
    const ln_jinja_value other = ln_jinja_argument(arguments, 0, "", ln_jinja_undefined());
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (ln_jinja_same(name, tests[i].name)) return holds(run, tests[i].test, value, other);
    ln_jinja_unknown(run, "test", name);
}

/* ---- functions ---- */

static ln_jinja_value range(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)self;
    const bool one = arguments->count < 2;
    const int64_t start =
        one ? 0 : ln_jinja_need_integer(run, ln_jinja_argument(arguments, 0, "", ln_jinja_integer(0)));
    const int64_t stop = ln_jinja_need_integer(run, ln_jinja_argument(arguments, one ? 0 : 1, "", ln_jinja_integer(0)));
    const int64_t step = ln_jinja_need_integer(run, ln_jinja_argument(arguments, 2, "", ln_jinja_integer(1)));
    if (step == 0) ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a range without a step");
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        ln_jinja_charge(&run->state, 1);
        ln_jinja_list_add(&run->state, list.list, ln_jinja_integer(i));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return list;
}

static ln_jinja_value make_map(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)self;
    ln_jinja_value made = ln_jinja_new_map(&run->state);
    for (int i = 0; i < arguments->count; i++) {
        const ln_jinja_value value = arguments->values[i];
        if (arguments->names[i].data) {
            ln_jinja_map_set(&run->state, made.map, ln_jinja_text(arguments->names[i].data, arguments->names[i].bytes),
                             value);
        } else if (value.kind == LN_JINJA_MAP) {
            for (int64_t k = 0; k < value.map->count; k++)
                ln_jinja_map_set(&run->state, made.map, value.map->entries[k].key, value.map->entries[k].value);
        }
    }
    return made;
}

static ln_jinja_value make_namespace(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_value made = make_map(run, self, arguments);
    made.map->is_namespace = true;
    return made;
}

static ln_jinja_value raise_exception(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)self;
    const ln_jinja_value text =
        ln_jinja_as_text(&run->state, ln_jinja_argument(arguments, 0, "message", ln_jinja_c_text("refused")));
    const int shown = text.text.bytes < 300 ? (int)text.text.bytes : 300;
    ln_jinja_fail(&run->state, LINNET_ERROR_ARGUMENT, "it refuses these messages: %.*s", shown, text.text.data);
}

static ln_jinja_value now(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)self;
    const ln_text format =
        ln_jinja_need_text(run, ln_jinja_argument(arguments, 0, "format", ln_jinja_c_text("%Y-%m-%d")));
    char pattern[128], text[256];
    if (format.bytes >= sizeof pattern)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a format of time is too long");
    memcpy(pattern, format.data, format.bytes);
    pattern[format.bytes] = 0;
    const time_t seconds = time(NULL);
    struct tm parts;
    localtime_r(&seconds, &parts);
    const size_t bytes = strftime(text, sizeof text, pattern, &parts);
    char *copy = ln_jinja_allocate(&run->state, bytes + 1, 1);
    memcpy(copy, text, bytes);
    return ln_jinja_text(copy, bytes);
}

ln_jinja_value ln_jinja_global(ln_text name) {
    static const ln_jinja_row functions[] = {{"range", range},      {"namespace", make_namespace},
                                             {"dict", make_map},    {"raise_exception", raise_exception},
                                             {"strftime_now", now}, {0}};
    const ln_jinja_row *found = ln_jinja_find_row(functions, name);
    return found ? (ln_jinja_value){.kind = LN_JINJA_FUNCTION, .function = found->function} : ln_jinja_undefined();
}
