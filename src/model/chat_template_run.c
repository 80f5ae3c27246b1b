/* Owns: running a template: statements write text, expressions give values.
 *
 * Names live in frames: a loop and a macro have their own, `if` has none. `set` writes to the innermost frame, so what
 * a loop sets is gone after each turn; only namespaces carry values out, as in Jinja. */
#include "model/chat_template_inside.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/utf8.h"

static ln_jinja_value evaluate(ln_jinja_run *run, const ln_jinja_node *node);
static void execute(ln_jinja_run *run, const ln_jinja_node *first);

/* ---- names ---- */

static ln_jinja_value *find_variable(const ln_jinja_frame *frame, ln_text name) {
    for (int64_t i = 0; i < frame->count; i++) {
        const ln_text *other = &frame->variables[i].name;
        if (other->bytes == name.bytes && memcmp(other->data, name.data, name.bytes) == 0)
            return &frame->variables[i].value;
    }
    return NULL;
}

static void set_variable(ln_jinja_run *run, ln_jinja_frame *frame, ln_text name, ln_jinja_value value) {
    ln_jinja_charge(&run->state, 1 + (uint64_t)frame->count / 8);
    ln_jinja_value *there = find_variable(frame, name);
    if (there) {
        *there = value;
        return;
    }
    if (frame->count == frame->capacity) {
        ln_jinja_variable *grown =
            ln_jinja_allocate(&run->state, (uint64_t)(frame->capacity = 2 * frame->capacity + 8), sizeof *grown);
        if (frame->count) memcpy(grown, frame->variables, (size_t)frame->count * sizeof *grown);
        frame->variables = grown;
    }
    frame->variables[frame->count++] = (ln_jinja_variable){name, value};
}

static void set_named(ln_jinja_run *run, ln_jinja_frame *frame, const char *name, ln_jinja_value value) {
    set_variable(run, frame, (ln_text){name, strlen(name)}, value);
}

static ln_jinja_value look_up(ln_jinja_run *run, ln_text name) {
    for (const ln_jinja_frame *frame = run->frame; frame; frame = frame->outer) {
        ln_jinja_charge(&run->state, (uint64_t)frame->count / 8);
        const ln_jinja_value *found = find_variable(frame, name);
        if (found) return *found;
    }
    return ln_jinja_global(name);
}

/* ---- attributes, indexes, slices ---- */

ln_jinja_value ln_jinja_attribute(ln_jinja_state *state, ln_jinja_value object, ln_jinja_value name) {
    if (object.kind == LN_JINJA_UNDEFINED)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "undefined has no attributes");
    if (object.kind == LN_JINJA_MAP) {
        const ln_jinja_value *found = ln_jinja_map_find(state, object.map, name);
        return found ? *found : ln_jinja_undefined();
    }
    if (name.kind != LN_JINJA_INTEGER && name.kind != LN_JINJA_BOOL) return ln_jinja_undefined();
    if (object.kind != LN_JINJA_LIST && object.kind != LN_JINJA_TEXT) return ln_jinja_undefined();
    const ln_jinja_value list = ln_jinja_as_list(state, object);
    int64_t index = name.kind == LN_JINJA_BOOL ? name.truth : name.integer;
    if (index < 0 && index >= -list.list->count) index += list.list->count;
    return index >= 0 && index < list.list->count ? list.list->items[index] : ln_jinja_undefined();
}

static int64_t bound_of(ln_jinja_run *run, const ln_jinja_node *node, int64_t fallback, int64_t count, int64_t low,
                        int64_t high) {
    const ln_jinja_value value = node ? evaluate(run, node) : ln_jinja_none();
    if (value.kind == LN_JINJA_NONE) return fallback;
    if (value.kind != LN_JINJA_INTEGER)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "%s bounds no slice", ln_jinja_kind_name(value));
    int64_t index = value.integer;
    if (index < 0) index = index < -count ? low : index + count;
    return ln_max_i64(low, ln_min_i64(index, high));
}

static ln_jinja_value slice(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_state *state = &run->state;
    const ln_jinja_value object = evaluate(run, node->a);
    if (object.kind != LN_JINJA_LIST && object.kind != LN_JINJA_TEXT && object.kind != LN_JINJA_UNDEFINED)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s cannot be sliced", ln_jinja_kind_name(object));
    const ln_jinja_value list = ln_jinja_as_list(state, object);
    const int64_t count = list.list->count;
    const ln_jinja_value given = node->d ? evaluate(run, node->d) : ln_jinja_none();
    const int64_t step = given.kind == LN_JINJA_INTEGER ? given.integer : 1;
    if (step == 0 || step == INT64_MIN) ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "a slice has no step");
    const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
    const int64_t start = bound_of(run, node->b, step > 0 ? 0 : count - 1, count, low, high);
    const int64_t stop = bound_of(run, node->c, step > 0 ? count : -1, count, low, high);
    ln_jinja_value result = ln_jinja_new_list(state);
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        ln_jinja_list_add(state, result.list, list.list->items[i]);
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (object.kind != LN_JINJA_TEXT) return result;
    ln_jinja_out out = {0};
    for (int64_t i = 0; i < result.list->count; i++)
        ln_jinja_append(state, &out, result.list->items[i].text.data, result.list->items[i].text.bytes);
    return ln_jinja_from_out(&out);
}

/* ---- arithmetic ---- */

static _Noreturn void no_operation(ln_jinja_run *run, ln_jinja_value left, ln_jinja_value right) {
    ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "this cannot be computed with %s and %s",
                  ln_jinja_kind_name(left), ln_jinja_kind_name(right));
}

static ln_jinja_value join(ln_jinja_run *run, ln_jinja_value left, ln_jinja_value right) {
    ln_jinja_out out = {0};
    ln_jinja_write(&run->state, &out, left);
    ln_jinja_write(&run->state, &out, right);
    return ln_jinja_from_out(&out);
}

static ln_jinja_value add_lists(ln_jinja_run *run, const ln_jinja_list *left, const ln_jinja_list *right) {
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    ln_jinja_charge(&run->state, (uint64_t)(left->count + right->count));
    for (int64_t i = 0; i < left->count; i++) ln_jinja_list_add(&run->state, list.list, left->items[i]);
    for (int64_t i = 0; i < right->count; i++) ln_jinja_list_add(&run->state, list.list, right->items[i]);
    return list;
}

static ln_jinja_value repeat(ln_jinja_run *run, ln_jinja_value what, int64_t times) {
    if (what.kind == LN_JINJA_TEXT) {
        ln_jinja_out out = {0};
        for (int64_t i = 0; i < times; i++) {
            ln_jinja_charge(&run->state, 1);
            ln_jinja_append(&run->state, &out, what.text.data, what.text.bytes);
        }
        return ln_jinja_from_out(&out);
    }
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (int64_t i = 0; i < times; i++) {
        ln_jinja_charge(&run->state, 1);
        list = add_lists(run, list.list, what.list);
    }
    return list;
}

static ln_jinja_value compute_whole(ln_jinja_run *run, ln_jinja_operator operation, int64_t a, int64_t b) {
    int64_t result = 0;
    bool fits = true;
    if ((operation == LN_JINJA_FLOOR_DIVIDE || operation == LN_JINJA_REMAINDER) && b == 0)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a division by zero");
    if (operation == LN_JINJA_ADD)
        fits = !__builtin_add_overflow(a, b, &result);
    else if (operation == LN_JINJA_SUBTRACT)
        fits = !__builtin_sub_overflow(a, b, &result);
    else if (operation == LN_JINJA_MULTIPLY)
        fits = !__builtin_mul_overflow(a, b, &result);
    else if (b == -1)
        fits = operation == LN_JINJA_REMAINDER || !__builtin_sub_overflow((int64_t)0, a, &result);
    else if (operation == LN_JINJA_FLOOR_DIVIDE)
        result = a / b - (a % b != 0 && (a < 0) != (b < 0));
    else if (operation == LN_JINJA_REMAINDER)
        result = a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
    if (!fits) ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a number is too large");
    return ln_jinja_integer(result);
}

static ln_jinja_value compute_real(ln_jinja_run *run, ln_jinja_operator operation, double a, double b) {
    if ((operation == LN_JINJA_DIVIDE || operation == LN_JINJA_FLOOR_DIVIDE || operation == LN_JINJA_REMAINDER) &&
        b == 0)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a division by zero");
    switch (operation) {
    case LN_JINJA_ADD:
        return ln_jinja_real(a + b);
    case LN_JINJA_SUBTRACT:
        return ln_jinja_real(a - b);
    case LN_JINJA_MULTIPLY:
        return ln_jinja_real(a * b);
    case LN_JINJA_DIVIDE:
        return ln_jinja_real(a / b);
    case LN_JINJA_FLOOR_DIVIDE:
        return ln_jinja_real(floor(a / b));
    case LN_JINJA_REMAINDER:
        return ln_jinja_real(a - b * floor(a / b));
    default:
        return ln_jinja_real(pow(a, b));
    }
}

static int64_t whole_number(ln_jinja_value value) {
    return value.kind == LN_JINJA_BOOL ? value.truth : value.integer;
}

static ln_jinja_value power(ln_jinja_run *run, ln_jinja_value left, ln_jinja_value right) {
    if (left.kind == LN_JINJA_REAL || right.kind == LN_JINJA_REAL || whole_number(right) < 0)
        return compute_real(run, LN_JINJA_POWER, ln_jinja_number(left), ln_jinja_number(right));
    ln_jinja_value result = ln_jinja_integer(1);
    for (int64_t i = 0; i < whole_number(right); i++) {
        ln_jinja_charge(&run->state, 1);
        result = compute_whole(run, LN_JINJA_MULTIPLY, result.integer, whole_number(left));
    }
    return result;
}

static ln_jinja_value compute(ln_jinja_run *run, ln_jinja_operator operation, ln_jinja_value left,
                              ln_jinja_value right) {
    if (operation == LN_JINJA_JOIN) return join(run, left, right);
    if (ln_jinja_is_number(left) && ln_jinja_is_number(right)) {
        if (operation == LN_JINJA_POWER) return power(run, left, right);
        if (operation == LN_JINJA_DIVIDE || left.kind == LN_JINJA_REAL || right.kind == LN_JINJA_REAL)
            return compute_real(run, operation, ln_jinja_number(left), ln_jinja_number(right));
        return compute_whole(run, operation, whole_number(left), whole_number(right));
    }
    if (operation == LN_JINJA_ADD && left.kind == LN_JINJA_TEXT && right.kind == LN_JINJA_TEXT)
        return join(run, left, right);
    if (operation == LN_JINJA_ADD && left.kind == LN_JINJA_LIST && right.kind == LN_JINJA_LIST)
        return add_lists(run, left.list, right.list);
    const bool left_many = left.kind == LN_JINJA_TEXT || left.kind == LN_JINJA_LIST;
    const bool right_many = right.kind == LN_JINJA_TEXT || right.kind == LN_JINJA_LIST;
    if (operation == LN_JINJA_MULTIPLY && left_many && right.kind == LN_JINJA_INTEGER)
        return repeat(run, left, right.integer);
    if (operation == LN_JINJA_MULTIPLY && right_many && left.kind == LN_JINJA_INTEGER)
        return repeat(run, right, left.integer);
    no_operation(run, left, right);
}

static ln_jinja_value binary(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_state *state = &run->state;
    const ln_jinja_value left = evaluate(run, node->a);
    if (node->operation == LN_JINJA_OR) return ln_jinja_is_true(left) ? left : evaluate(run, node->b);
    if (node->operation == LN_JINJA_AND) return ln_jinja_is_true(left) ? evaluate(run, node->b) : left;
    const ln_jinja_value right = evaluate(run, node->b);
    switch (node->operation) {
    case LN_JINJA_EQUAL:
        return ln_jinja_bool(ln_jinja_equal(state, left, right));
    case LN_JINJA_NOT_EQUAL:
        return ln_jinja_bool(!ln_jinja_equal(state, left, right));
    case LN_JINJA_LESS:
        return ln_jinja_bool(ln_jinja_compare(state, left, right) < 0);
    case LN_JINJA_LESS_EQUAL:
        return ln_jinja_bool(ln_jinja_compare(state, left, right) <= 0);
    case LN_JINJA_GREATER:
        return ln_jinja_bool(ln_jinja_compare(state, left, right) > 0);
    case LN_JINJA_GREATER_EQUAL:
        return ln_jinja_bool(ln_jinja_compare(state, left, right) >= 0);
    case LN_JINJA_IN:
        return ln_jinja_bool(ln_jinja_contains(state, right, left));
    case LN_JINJA_NOT_IN:
        return ln_jinja_bool(!ln_jinja_contains(state, right, left));
    default:
        return compute(run, node->operation, left, right);
    }
}

/* ---- calls ---- */

ln_jinja_value ln_jinja_argument(const ln_jinja_arguments *arguments, int position, const char *name,
                                 ln_jinja_value fallback) {
    int at = 0;
    for (int i = 0; i < arguments->count; i++) {
        if (arguments->names[i].data ? ln_jinja_same(arguments->names[i], name) : at++ == position)
            return arguments->values[i];
    }
    return fallback;
}

static void collect_arguments(ln_jinja_run *run, const ln_jinja_node *first, ln_jinja_arguments *arguments) {
    arguments->count = 0;
    for (const ln_jinja_node *node = first; node; node = node->next) {
        if (arguments->count == LN_JINJA_MOST_ARGUMENTS)
            ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a call has more than %d arguments",
                          LN_JINJA_MOST_ARGUMENTS);
        arguments->names[arguments->count] = node->text;
        arguments->values[arguments->count++] = evaluate(run, node->a);
    }
}

/* What `body` writes, as a value. */
static ln_jinja_value capture(ln_jinja_run *run, const ln_jinja_node *body) {
    ln_jinja_out out = {0}, *outer = run->out;
    run->out = &out;
    execute(run, body);
    run->out = outer;
    return ln_jinja_from_out(&out);
}

static ln_jinja_value call_macro(ln_jinja_run *run, const ln_jinja_node *macro, const ln_jinja_arguments *arguments) {
    ln_jinja_frame frame = {.outer = &run->root}, *outer = run->frame;
    int position = 0;
    for (const ln_jinja_node *parameter = macro->a; parameter; parameter = parameter->next, position++) {
        char name[64];
        if (parameter->text.bytes >= sizeof name)
            ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a parameter's name is too long");
        memcpy(name, parameter->text.data, parameter->text.bytes);
        name[parameter->text.bytes] = 0;
        ln_jinja_value value = ln_jinja_argument(arguments, position, name, ln_jinja_undefined());
        if (value.kind == LN_JINJA_UNDEFINED && parameter->a) {
            run->frame = &frame;
            value = evaluate(run, parameter->a);
            run->frame = outer;
        }
        set_variable(run, &frame, parameter->text, value);
    }
    run->frame = &frame;
    const ln_jinja_value text = capture(run, macro->c);
    run->frame = outer;
    run->flow = LN_JINJA_RUNNING;
    return text;
}

static ln_jinja_value call(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_state *state = &run->state;
    ln_jinja_arguments arguments;
    ln_jinja_value callee, result;
    if (node->a->kind == LN_JINJA_ATTRIBUTE) {
        const ln_jinja_value self = evaluate(run, node->a->a);
        collect_arguments(run, node->b, &arguments);
        state->line = node->line;
        if (ln_jinja_call_method(run, self, node->a->text, &arguments, &result)) return result;
        callee = ln_jinja_attribute(state, self, ln_jinja_text(node->a->text.data, node->a->text.bytes));
    } else {
        callee = evaluate(run, node->a);
        collect_arguments(run, node->b, &arguments);
        state->line = node->line;
    }
    if (callee.kind == LN_JINJA_FUNCTION) return callee.function(run, ln_jinja_undefined(), &arguments);
    if (callee.kind == LN_JINJA_MACRO) return call_macro(run, callee.macro, &arguments);
    const bool named = node->a->kind == LN_JINJA_NAME || node->a->kind == LN_JINJA_ATTRIBUTE;
    const int shown = named && node->a->text.bytes < 60 ? (int)node->a->text.bytes : 0;
    ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "'%.*s' cannot be called", shown, shown ? node->a->text.data : "");
}

/* ---- expressions ---- */

static ln_jinja_value evaluate_items(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (const ln_jinja_node *item = node->a; item; item = item->next)
        ln_jinja_list_add(&run->state, list.list, evaluate(run, item));
    return list;
}

static ln_jinja_value evaluate_pairs(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_value map = ln_jinja_new_map(&run->state);
    for (const ln_jinja_node *pair = node->a; pair; pair = pair->next) {
        const ln_jinja_value key = evaluate(run, pair->a);
        ln_jinja_map_set(&run->state, map.map, key, evaluate(run, pair->b));
    }
    return map;
}

static ln_jinja_value negate(ln_jinja_run *run, ln_jinja_value value) {
    if (value.kind == LN_JINJA_REAL) return ln_jinja_real(-value.real);
    if (!ln_jinja_is_number(value)) no_operation(run, value, value);
    return compute_whole(run, LN_JINJA_SUBTRACT, 0, whole_number(value));
}

static ln_jinja_value evaluate_kind(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_arguments arguments;
    ln_jinja_value value;
    switch (node->kind) {
    case LN_JINJA_LITERAL:
        return node->literal;
    case LN_JINJA_NAME:
        return look_up(run, node->text);
    case LN_JINJA_ITEMS:
        return evaluate_items(run, node);
    case LN_JINJA_PAIRS:
        return evaluate_pairs(run, node);
    case LN_JINJA_ATTRIBUTE:
        return ln_jinja_attribute(&run->state, evaluate(run, node->a),
                                  ln_jinja_text(node->text.data, node->text.bytes));
    case LN_JINJA_INDEX:
        value = evaluate(run, node->a);
        return ln_jinja_attribute(&run->state, value, evaluate(run, node->b));
    case LN_JINJA_SLICE:
        return slice(run, node);
    case LN_JINJA_CALL:
        return call(run, node);
    case LN_JINJA_FILTER:
    case LN_JINJA_TEST:
        value = evaluate(run, node->a);
        collect_arguments(run, node->b, &arguments);
        run->state.line = node->line;
        if (node->kind == LN_JINJA_FILTER) return ln_jinja_apply_filter(run, node->text, value, &arguments);
        return ln_jinja_bool(ln_jinja_apply_test(run, node->text, value, &arguments) != node->negated);
    case LN_JINJA_NOT:
        return ln_jinja_bool(!ln_jinja_is_true(evaluate(run, node->a)));
    case LN_JINJA_NEGATE:
        return negate(run, evaluate(run, node->a));
    case LN_JINJA_BINARY:
        return binary(run, node);
    case LN_JINJA_CHOICE:
        if (ln_jinja_is_true(evaluate(run, node->b))) return evaluate(run, node->a);
        return node->c ? evaluate(run, node->c) : ln_jinja_undefined();
    default:
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a statement stands where a value should");
    }
}

static ln_jinja_value evaluate(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_enter(&run->state);
    run->state.line = node->line;
    const ln_jinja_value value = evaluate_kind(run, node);
    ln_jinja_leave(&run->state);
    return value;
}

/* ---- statements ---- */

static void assign_one(ln_jinja_run *run, const ln_jinja_node *target, ln_jinja_value value) {
    if (target->kind == LN_JINJA_NAME) {
        set_variable(run, run->frame, target->text, value);
        return;
    }
    const ln_jinja_value object = look_up(run, target->a->text);
    if (object.kind != LN_JINJA_MAP || !object.map->is_namespace)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "only attributes of a namespace can be set");
    ln_jinja_map_set(&run->state, object.map, ln_jinja_text(target->text.data, target->text.bytes), value);
}

static void assign(ln_jinja_run *run, const ln_jinja_node *targets, ln_jinja_value value) {
    if (!targets->next) {
        assign_one(run, targets, value);
        return;
    }
    const ln_jinja_value parts = ln_jinja_as_list(&run->state, value);
    int64_t i = 0;
    for (const ln_jinja_node *target = targets; target; target = target->next, i++)
        if (i < parts.list->count) assign_one(run, target, parts.list->items[i]);
    if (i != parts.list->count)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "%lld values for %lld names", (long long)parts.list->count,
                      (long long)i);
}

static void set(ln_jinja_run *run, const ln_jinja_node *node) {
    if (!node->c) {
        assign(run, node->a, evaluate(run, node->b));
        return;
    }
    ln_jinja_frame frame = {.outer = run->frame}, *outer = run->frame;
    run->frame = &frame;
    const ln_jinja_value text = capture(run, node->c->c);
    frame.count = 0;
    set_named(run, &frame, "", text);
    const ln_jinja_value filtered = evaluate(run, node->b);
    run->frame = outer;
    assign(run, node->a, filtered);
}

static ln_jinja_value loop_of(ln_jinja_run *run, const ln_jinja_list *items, int64_t index) {
    ln_jinja_state *state = &run->state;
    ln_jinja_value loop = ln_jinja_new_map(state);
    const struct {
        const char *name;
        ln_jinja_value value;
    } members[] = {{"index", ln_jinja_integer(index + 1)},
                   {"index0", ln_jinja_integer(index)},
                   {"first", ln_jinja_bool(index == 0)},
                   {"last", ln_jinja_bool(index == items->count - 1)},
                   {"length", ln_jinja_integer(items->count)},
                   {"revindex", ln_jinja_integer(items->count - index)},
                   {"revindex0", ln_jinja_integer(items->count - index - 1)},
                   {"previtem", index > 0 ? items->items[index - 1] : ln_jinja_undefined()},
                   {"nextitem", index + 1 < items->count ? items->items[index + 1] : ln_jinja_undefined()}};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        ln_jinja_map_set(state, loop.map, ln_jinja_c_text(members[i].name), members[i].value);
    return loop;
}

/* The items for which the loop's own condition holds. */
static ln_jinja_value select_items(ln_jinja_run *run, const ln_jinja_node *node, ln_jinja_value items) {
    ln_jinja_value chosen = ln_jinja_new_list(&run->state);
    for (int64_t i = 0; i < items.list->count; i++) {
        assign(run, node->a, items.list->items[i]);
        if (ln_jinja_is_true(evaluate(run, node->e))) ln_jinja_list_add(&run->state, chosen.list, items.list->items[i]);
    }
    return chosen;
}

static void loop(ln_jinja_run *run, const ln_jinja_node *node) {
    ln_jinja_value items = ln_jinja_as_list(&run->state, evaluate(run, node->b));
    ln_jinja_frame frame = {.outer = run->frame}, *outer = run->frame;
    run->frame = &frame;
    if (node->e) items = select_items(run, node, items);
    for (int64_t i = 0; i < items.list->count && run->flow != LN_JINJA_BREAKING; i++) {
        frame.count = 0;
        run->flow = LN_JINJA_RUNNING;
        set_named(run, &frame, "loop", loop_of(run, items.list, i));
        assign(run, node->a, items.list->items[i]);
        execute(run, node->c);
    }
    run->flow = LN_JINJA_RUNNING;
    run->frame = outer;
    if (!items.list->count) execute(run, node->d);
}

static void execute_one(ln_jinja_run *run, const ln_jinja_node *node) {
    switch (node->kind) {
    case LN_JINJA_RAW:
        ln_jinja_append(&run->state, run->out, node->text.data, node->text.bytes);
        break;
    case LN_JINJA_OUTPUT:
        ln_jinja_write(&run->state, run->out, evaluate(run, node->a));
        break;
    case LN_JINJA_IF:
        execute(run, ln_jinja_is_true(evaluate(run, node->a)) ? node->b : node->c);
        break;
    case LN_JINJA_FOR:
        loop(run, node);
        break;
    case LN_JINJA_SET:
        set(run, node);
        break;
    case LN_JINJA_MAKE:
        set_variable(run, run->frame, node->text, (ln_jinja_value){.kind = LN_JINJA_MACRO, .macro = node});
        break;
    case LN_JINJA_BODY:
        execute(run, node->c);
        break;
    case LN_JINJA_BREAK:
        run->flow = LN_JINJA_BREAKING;
        break;
    case LN_JINJA_CONTINUE:
        run->flow = LN_JINJA_CONTINUING;
        break;
    default:
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a value stands where a statement should");
    }
}

static void execute(ln_jinja_run *run, const ln_jinja_node *first) {
    ln_jinja_enter(&run->state);
    for (const ln_jinja_node *node = first; node && run->flow == LN_JINJA_RUNNING; node = node->next) {
        ln_jinja_charge(&run->state, 1);
        run->state.line = node->line;
        execute_one(run, node);
    }
    ln_jinja_leave(&run->state);
}

/* ---- the whole ---- */

struct ln_template {
    ln_jinja_state state; /* its arena holds the tree */
    const ln_jinja_node *body;
};

enum { MOST_TEMPLATE_BYTES = 1 << 20 };

linnet_status ln_template_open(linnet_context *context, const char *text, size_t bytes, ln_template **compiled) {
    *compiled = NULL;
    if (bytes > MOST_TEMPLATE_BYTES)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "a chat template of %zu bytes; at most %d are read", bytes,
                       MOST_TEMPLATE_BYTES);
    ln_template *made = ln_allocate_zero(context, 1, sizeof *made, "chat template");
    if (!made) return LINNET_ERROR_MEMORY;
    jmp_buf failed;
    made->state =
        (ln_jinja_state){.context = context, .limit = 65536 + 1024 * (uint64_t)bytes, .failed = &failed, .line = 1};
    made->state.steps = 65536 + 256 * (uint64_t)bytes;
    if (setjmp(failed)) {
        const linnet_status status = made->state.status;
        ln_template_close(made);
        return status;
    }
    made->body = ln_jinja_parse(&made->state, ln_jinja_scan(&made->state, text, bytes));
    *compiled = made;
    return LINNET_OK;
}

void ln_template_close(ln_template *compiled) {
    if (!compiled) return;
    ln_jinja_release(&compiled->state);
    ln_release(compiled->state.context, compiled);
}

static void set_token(ln_jinja_run *run, const char *name, ln_text text) {
    if (text.data) set_named(run, &run->root, name, ln_jinja_text(text.data, text.bytes));
}

static void set_input(ln_jinja_run *run, const ln_template_input *input) {
    ln_jinja_state *state = &run->state;
    ln_jinja_value messages = ln_jinja_new_list(state);
    for (int64_t i = 0; i < input->count; i++) {
        ln_jinja_value message = ln_jinja_new_map(state);
        ln_jinja_map_set(state, message.map, ln_jinja_c_text("role"), ln_jinja_c_text(input->messages[i].role));
        ln_jinja_map_set(state, message.map, ln_jinja_c_text("content"), ln_jinja_c_text(input->messages[i].content));
        ln_jinja_list_add(state, messages.list, message);
    }
    set_named(run, &run->root, "messages", messages);
    set_named(run, &run->root, "tools", ln_jinja_none());
    set_named(run, &run->root, "documents", ln_jinja_none());
    set_named(run, &run->root, "add_generation_prompt", ln_jinja_bool(input->add_generation_prompt));
    set_token(run, "bos_token", input->begin);
    set_token(run, "eos_token", input->end);
    set_token(run, "pad_token", input->padding);
    set_token(run, "unk_token", input->unknown);
}

linnet_status ln_template_render(const ln_template *compiled, const ln_template_input *input, ln_buffer *out) {
    enum { MOST_STEPS = 20000000, LEAST_BYTES = 32 << 20 };
    linnet_context *context = compiled->state.context;
    uint64_t told = 0;
    for (int64_t i = 0; i < input->count; i++)
        told += 64 + strlen(input->messages[i].role) + strlen(input->messages[i].content);
    ln_jinja_run *run = ln_allocate_zero(context, 1, sizeof *run, "chat template");
    if (!run) return LINNET_ERROR_MEMORY;
    jmp_buf failed;
    ln_jinja_out text = {0};
    run->state = (ln_jinja_state){.context = context, .limit = LEAST_BYTES + 64 * told, .failed = &failed};
    run->state.steps = MOST_STEPS + 64 * told;
    run->frame = &run->root;
    ln_jinja_out *volatile made = &text;
    run->out = &text;
    if (!setjmp(failed)) {
        set_input(run, input);
        execute(run, compiled->body);
        ln_buffer_append(out, made->data, made->bytes);
    }
    const linnet_status status = run->state.status;
    ln_jinja_release(&run->state);
    ln_release(context, run);
    return status == LINNET_OK && out->failed ? LINNET_ERROR_MEMORY : status;
}
