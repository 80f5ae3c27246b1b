/* Owns: the tree of a template, by recursive descent.
 *
 * Binary operators are rows of a table by level, loosest first: or, and, (not), comparisons, + -, ~, * / // %, **.
 * Filters and tests bind to what stands right before them. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/chat_template_inside.h"

typedef struct parser {
    ln_jinja_state *state;
    const ln_jinja_token *token;
} parser;

static ln_jinja_node *parse_expression(parser *p);
static ln_jinja_node *parse_body(parser *p, const char *const *ends);

/* ---- tokens ---- */

static bool is_name(const parser *p, const char *name) {
    return p->token->kind == LN_JINJA_TOKEN_NAME && ln_jinja_same(p->token->text, name);
}

static bool is_sign(const parser *p, const char *sign) {
    return p->token->kind == LN_JINJA_TOKEN_SIGN && ln_jinja_same(p->token->text, sign);
}

static void next(parser *p) {
    if (p->token->kind != LN_JINJA_TOKEN_END) p->token++;
    p->state->line = p->token->line;
    ln_jinja_charge(p->state, 1);
}

static bool take_name(parser *p, const char *name) {
    if (!is_name(p, name)) return false;
    next(p);
    return true;
}

static bool take_sign(parser *p, const char *sign) {
    if (!is_sign(p, sign)) return false;
    next(p);
    return true;
}

static _Noreturn void expected(const parser *p, const char *what) {
    const int shown = p->token->text.bytes < 60 ? (int)p->token->text.bytes : 60;
    ln_jinja_fail(p->state, LINNET_ERROR_UNSUPPORTED, "%s expected before '%.*s'", what, shown, p->token->text.data);
}

static void need_sign(parser *p, const char *sign) {
    if (!take_sign(p, sign)) expected(p, sign);
}

static void need_block_end(parser *p) {
    if (p->token->kind != LN_JINJA_TOKEN_BLOCK_END) expected(p, "the end of the tag");
    next(p);
}

static ln_text need_name(parser *p) {
    if (p->token->kind != LN_JINJA_TOKEN_NAME) expected(p, "a name");
    const ln_text name = p->token->text;
    next(p);
    return name;
}

static ln_jinja_node *make(parser *p, ln_jinja_node_kind kind) {
    ln_jinja_node *node = ln_jinja_allocate(p->state, 1, sizeof *node);
    node->kind = kind;
    node->line = p->token->line;
    return node;
}

static ln_jinja_node *make_literal(parser *p, ln_jinja_value value) {
    ln_jinja_node *node = make(p, LN_JINJA_LITERAL);
    node->literal = value;
    return node;
}

/* ---- primaries ---- */

static ln_jinja_node *parse_number(parser *p) {
    char text[64];
    size_t count = 0;
    for (size_t i = 0; i < p->token->text.bytes && count + 1 < sizeof text; i++)
        if (p->token->text.data[i] != '_') text[count++] = p->token->text.data[i];
    text[count] = 0;
    ln_jinja_value value;
    if (p->token->kind == LN_JINJA_TOKEN_REAL) {
        value = ln_jinja_real(strtod(text, NULL));
    } else {
        if (count > 18) expected(p, "a smaller number");
        value = ln_jinja_integer(strtoll(text, NULL, 10));
    }
    ln_jinja_node *node = make_literal(p, value);
    next(p);
    return node;
}

static ln_jinja_node *parse_string(parser *p) {
    ln_jinja_out out = {0};
    while (p->token->kind == LN_JINJA_TOKEN_STRING) {
        ln_jinja_append(p->state, &out, p->token->text.data, p->token->text.bytes);
        next(p);
    }
    return make_literal(p, ln_jinja_from_out(&out));
}

/* Expressions up to a closing sign, linked; *comma: whether there was one. */
static ln_jinja_node *parse_list(parser *p, const char *close, bool *comma) {
    ln_jinja_node *first = NULL, **last = &first;
    *comma = false;
    while (!take_sign(p, close)) {
        *last = parse_expression(p);
        last = &(*last)->next;
        if (take_sign(p, ","))
            *comma = true;
        else if (!is_sign(p, close))
            expected(p, close);
    }
    return first;
}

static ln_jinja_node *parse_pairs(parser *p) {
    ln_jinja_node *node = make(p, LN_JINJA_PAIRS), **last = &node->a;
    while (!take_sign(p, "}")) {
        ln_jinja_node *pair = make(p, LN_JINJA_BODY);
        pair->a = parse_expression(p);
        need_sign(p, ":");
        pair->b = parse_expression(p);
        *last = pair;
        last = &pair->next;
        if (!take_sign(p, ",") && !is_sign(p, "}")) expected(p, "'}'");
    }
    return node;
}

static ln_jinja_node *parse_name(parser *p) {
    static const struct {
        const char *name;
        ln_jinja_value value;
    } words[] = {{"true", {.kind = LN_JINJA_BOOL, .truth = true}},
                 {"True", {.kind = LN_JINJA_BOOL, .truth = true}},
                 {"false", {.kind = LN_JINJA_BOOL, .truth = false}},
                 {"False", {.kind = LN_JINJA_BOOL, .truth = false}},
                 {"none", {.kind = LN_JINJA_NONE}},
                 {"None", {.kind = LN_JINJA_NONE}}};
    ln_jinja_node *node = make(p, LN_JINJA_NAME);
    node->text = need_name(p);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (ln_jinja_same(node->text, words[i].name)) return make_literal(p, words[i].value);
    return node;
}

static ln_jinja_node *parse_primary(parser *p) {
    bool comma;
    switch (p->token->kind) {
    case LN_JINJA_TOKEN_NAME:
        return parse_name(p);
    case LN_JINJA_TOKEN_STRING:
        return parse_string(p);
    case LN_JINJA_TOKEN_INTEGER:
    case LN_JINJA_TOKEN_REAL:
        return parse_number(p);
    default:
        break;
    }
    if (take_sign(p, "(")) {
        ln_jinja_node *items = make(p, LN_JINJA_ITEMS);
        items->a = parse_list(p, ")", &comma);
        return items->a && !items->a->next && !comma ? items->a : items;
    }
    if (take_sign(p, "[")) {
        ln_jinja_node *items = make(p, LN_JINJA_ITEMS);
        items->a = parse_list(p, "]", &comma);
        return items;
    }
    if (take_sign(p, "{")) return parse_pairs(p);
    expected(p, "an expression");
}

/* ---- what follows a primary ---- */

/* Arguments after "(". */
static ln_jinja_node *parse_arguments(parser *p) {
    ln_jinja_node *first = NULL, **last = &first;
    while (!take_sign(p, ")")) {
        ln_jinja_node *argument = make(p, LN_JINJA_BODY);
        if (p->token->kind == LN_JINJA_TOKEN_NAME && p->token[1].kind == LN_JINJA_TOKEN_SIGN &&
            ln_jinja_same(p->token[1].text, "=")) {
            argument->text = need_name(p);
            next(p);
        }
        argument->a = parse_expression(p);
        *last = argument;
        last = &argument->next;
        if (!take_sign(p, ",") && !is_sign(p, ")")) expected(p, "')'");
    }
    return first;
}

/* After "[": an index or a slice. */
static ln_jinja_node *parse_subscript(parser *p, ln_jinja_node *object) {
    ln_jinja_node *node = make(p, LN_JINJA_INDEX);
    node->a = object;
    if (!is_sign(p, ":")) node->b = parse_expression(p);
    if (take_sign(p, ":")) {
        node->kind = LN_JINJA_SLICE;
        if (!is_sign(p, ":") && !is_sign(p, "]")) node->c = parse_expression(p);
        if (take_sign(p, ":") && !is_sign(p, "]")) node->d = parse_expression(p);
    }
    need_sign(p, "]");
    return node;
}

static ln_jinja_node *parse_attribute(parser *p, ln_jinja_node *object) {
    if (p->token->kind == LN_JINJA_TOKEN_INTEGER) {
        ln_jinja_node *node = make(p, LN_JINJA_INDEX);
        node->a = object;
        node->b = parse_number(p);
        return node;
    }
    ln_jinja_node *node = make(p, LN_JINJA_ATTRIBUTE);
    node->a = object;
    node->text = need_name(p);
    return node;
}

static ln_jinja_node *parse_postfix(parser *p, ln_jinja_node *node) {
    for (;;) {
        if (take_sign(p, ".")) {
            node = parse_attribute(p, node);
        } else if (take_sign(p, "[")) {
            node = parse_subscript(p, node);
        } else if (take_sign(p, "(")) {
            ln_jinja_node *call = make(p, LN_JINJA_CALL);
            call->a = node;
            call->b = parse_arguments(p);
            node = call;
        } else {
            return node;
        }
    }
}

/* A test's argument may stand without brackets: `x is divisibleby 3`. */
static bool starts_argument(const parser *p) {
    if (p->token->kind == LN_JINJA_TOKEN_NAME)
        return !is_name(p, "else") && !is_name(p, "or") && !is_name(p, "and") && !is_name(p, "is") &&
               !is_name(p, "if") && !is_name(p, "not") && !is_name(p, "in");
    return p->token->kind == LN_JINJA_TOKEN_STRING || p->token->kind == LN_JINJA_TOKEN_INTEGER ||
           p->token->kind == LN_JINJA_TOKEN_REAL || is_sign(p, "[") || is_sign(p, "{");
}

static ln_jinja_node *parse_test(parser *p, ln_jinja_node *operand) {
    ln_jinja_node *node = make(p, LN_JINJA_TEST);
    node->a = operand;
    node->negated = take_name(p, "not");
    /* `in` is a word of its own, and a test. */
    node->text = p->token->text;
    if (p->token->kind != LN_JINJA_TOKEN_NAME) expected(p, "a test");
    next(p);
    if (take_sign(p, "(")) {
        node->b = parse_arguments(p);
    } else if (starts_argument(p)) {
        node->b = make(p, LN_JINJA_BODY);
        node->b->a = parse_postfix(p, parse_primary(p));
    }
    return node;
}

static ln_jinja_node *parse_filters(parser *p, ln_jinja_node *node) {
    for (;;) {
        if (take_sign(p, "|")) {
            ln_jinja_node *filter = make(p, LN_JINJA_FILTER);
            filter->a = node;
            filter->text = need_name(p);
            if (take_sign(p, "(")) filter->b = parse_arguments(p);
            node = filter;
        } else if (take_name(p, "is")) {
            node = parse_test(p, node);
        } else if (take_sign(p, "(")) {
            ln_jinja_node *call = make(p, LN_JINJA_CALL);
            call->a = node;
            call->b = parse_arguments(p);
            node = call;
        } else {
            return node;
        }
    }
}

static ln_jinja_node *parse_unary(parser *p, bool filters) {
    ln_jinja_node *node;
    ln_jinja_enter(p->state);
    if (take_sign(p, "-")) {
        node = make(p, LN_JINJA_NEGATE);
        node->a = parse_unary(p, false);
    } else if (take_sign(p, "+")) {
        node = parse_unary(p, false);
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (filters) node = parse_filters(p, node);
    ln_jinja_leave(p->state);
    return node;
}

/* ---- operators ---- */

enum { LEVEL_NOT = 2, LEVEL_UNARY = 7 };

static const struct {
    int level;
    const char *sign;
    ln_jinja_operator operation;
} operators[] = {
    {0, "or", LN_JINJA_OR},        {1, "and", LN_JINJA_AND},          {3, "==", LN_JINJA_EQUAL},
    {3, "!=", LN_JINJA_NOT_EQUAL}, {3, "<", LN_JINJA_LESS},           {3, "<=", LN_JINJA_LESS_EQUAL},
    {3, ">", LN_JINJA_GREATER},    {3, ">=", LN_JINJA_GREATER_EQUAL}, {3, "in", LN_JINJA_IN},
    {4, "+", LN_JINJA_ADD},        {4, "-", LN_JINJA_SUBTRACT},       {5, "~", LN_JINJA_JOIN},
    {6, "*", LN_JINJA_MULTIPLY},   {6, "/", LN_JINJA_DIVIDE},         {6, "//", LN_JINJA_FLOOR_DIVIDE},
    {6, "%", LN_JINJA_REMAINDER},
};

static bool take_operator(parser *p, int level, ln_jinja_operator *operation) {
    if (p->token->kind != LN_JINJA_TOKEN_NAME && p->token->kind != LN_JINJA_TOKEN_SIGN) return false;
    if (level == 3 && is_name(p, "not") && p->token[1].kind == LN_JINJA_TOKEN_NAME &&
        ln_jinja_same(p->token[1].text, "in")) {
        next(p);
        next(p);
        *operation = LN_JINJA_NOT_IN;
        return true;
    }
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (operators[i].level != level || !ln_jinja_same(p->token->text, operators[i].sign)) continue;
        next(p);
        *operation = operators[i].operation;
        return true;
    }
    return false;
}

static ln_jinja_node *make_binary(parser *p, ln_jinja_operator operation, ln_jinja_node *left, ln_jinja_node *right) {
    ln_jinja_node *node = make(p, LN_JINJA_BINARY);
    node->operation = operation;
    node->a = left;
    node->b = right;
    return node;
}

static ln_jinja_node *parse_power(parser *p) {
    ln_jinja_node *node = parse_unary(p, true);
    while (take_sign(p, "**")) node = make_binary(p, LN_JINJA_POWER, node, parse_unary(p, true));
    return node;
}

static ln_jinja_node *parse_binary(parser *p, int level) {
    if (level == LEVEL_UNARY) return parse_power(p);
    if (level == LEVEL_NOT && take_name(p, "not")) {
        ln_jinja_enter(p->state);
        ln_jinja_node *node = make(p, LN_JINJA_NOT);
        node->a = parse_binary(p, LEVEL_NOT);
        ln_jinja_leave(p->state);
        return node;
    }
    ln_jinja_node *left = parse_binary(p, level + 1), *chain = NULL;
    ln_jinja_operator operation;
    while (take_operator(p, level, &operation)) {
        ln_jinja_node *right = parse_binary(p, level + 1);
        ln_jinja_node *pair = make_binary(p, operation, left, right);
        if (level != 3) {
            left = pair;
            continue;
        }
        /* a < b < c: both must hold. */
        chain = chain ? make_binary(p, LN_JINJA_AND, chain, pair) : pair;
        left = right;
    }
    return chain ? chain : left;
}

static ln_jinja_node *parse_expression(parser *p) {
    ln_jinja_enter(p->state);
    ln_jinja_node *node = parse_binary(p, 0);
    while (take_name(p, "if")) {
        ln_jinja_node *choice = make(p, LN_JINJA_CHOICE);
        choice->a = node;
        choice->b = parse_binary(p, 0);
        if (take_name(p, "else")) choice->c = parse_expression(p);
        node = choice;
    }
    ln_jinja_leave(p->state);
    return node;
}

/* ---- statements ---- */

/* x, or x, y with or without brackets; ns.x where `attributes` are allowed */
static ln_jinja_node *parse_targets(parser *p, bool attributes) {
    ln_jinja_node *first = NULL, **last = &first;
    const bool bracket = take_sign(p, "(");
    do {
        ln_jinja_node *target = make(p, LN_JINJA_NAME);
        target->text = need_name(p);
        if (attributes && take_sign(p, ".")) {
            ln_jinja_node *attribute = make(p, LN_JINJA_ATTRIBUTE);
            attribute->a = target;
            attribute->text = need_name(p);
            target = attribute;
        }
        *last = target;
        last = &target->next;
    } while (take_sign(p, ","));
    if (bracket) need_sign(p, ")");
    return first;
}

static ln_jinja_node *parse_for(parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL};
    ln_jinja_node *node = make(p, LN_JINJA_FOR);
    node->a = parse_targets(p, false);
    if (!take_name(p, "in")) expected(p, "'in'");
    node->b = parse_binary(p, 0);
    if (take_name(p, "if")) node->e = parse_expression(p);
    if (is_name(p, "recursive")) expected(p, "a loop that is not recursive");
    need_block_end(p);
    node->c = parse_body(p, ends);
    if (take_name(p, "else")) {
        need_block_end(p);
        node->d = parse_body(p, ends + 1);
    }
    next(p);
    return node;
}

static ln_jinja_node *parse_if(parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    ln_jinja_node *first = NULL, **last = &first;
    for (;;) {
        ln_jinja_node *node = *last = make(p, LN_JINJA_IF);
        node->a = parse_expression(p);
        need_block_end(p);
        node->b = parse_body(p, ends);
        last = &node->c;
        if (!take_name(p, "elif")) break;
    }
    if (take_name(p, "else")) {
        need_block_end(p);
        *last = parse_body(p, ends + 2);
    }
    next(p);
    return first;
}

/* The value after "=": a, b is a list. */
static ln_jinja_node *parse_values(parser *p) {
    ln_jinja_node *first = parse_expression(p);
    if (!is_sign(p, ",")) return first;
    ln_jinja_node *items = make(p, LN_JINJA_ITEMS), *last = first;
    items->a = first;
    while (take_sign(p, ",") && p->token->kind != LN_JINJA_TOKEN_BLOCK_END) last = last->next = parse_expression(p);
    return items;
}

static ln_jinja_node *parse_set(parser *p) {
    static const char *const ends[] = {"endset", NULL};
    ln_jinja_node *node = make(p, LN_JINJA_SET);
    node->a = parse_targets(p, true);
    if (take_sign(p, "=")) {
        node->b = parse_values(p);
        return node;
    }
    /* Filters of a block: applied to its text, which stands for them as an undefined name. */
    ln_jinja_node *text = make(p, LN_JINJA_NAME);
    text->text = (ln_text){"", 0};
    node->b = parse_filters(p, text);
    need_block_end(p);
    node->c = make(p, LN_JINJA_BODY);
    node->c->c = parse_body(p, ends);
    next(p);
    return node;
}

static ln_jinja_node *parse_macro(parser *p) {
    static const char *const ends[] = {"endmacro", NULL};
    ln_jinja_node *node = make(p, LN_JINJA_MAKE);
    node->text = need_name(p);
    need_sign(p, "(");
    for (ln_jinja_node **last = &node->a; !take_sign(p, ")"); last = &(*last)->next) {
        ln_jinja_node *parameter = *last = make(p, LN_JINJA_NAME);
        parameter->text = need_name(p);
        if (take_sign(p, "=")) parameter->a = parse_expression(p);
        if (!take_sign(p, ",") && !is_sign(p, ")")) expected(p, "')'");
    }
    need_block_end(p);
    node->c = parse_body(p, ends);
    next(p);
    return node;
}

static ln_jinja_node *parse_generation(parser *p) {
    static const char *const ends[] = {"endgeneration", NULL};
    ln_jinja_node *node = make(p, LN_JINJA_BODY);
    need_block_end(p);
    node->c = parse_body(p, ends);
    next(p);
    return node;
}

static ln_jinja_node *parse_break(parser *p) {
    return make(p, LN_JINJA_BREAK);
}

static ln_jinja_node *parse_continue(parser *p) {
    return make(p, LN_JINJA_CONTINUE);
}

static ln_jinja_node *parse_statement(parser *p) {
    static const struct {
        const char *name;
        ln_jinja_node *(*parse)(parser *p);
    } statements[] = {{"if", parse_if},
                      {"for", parse_for},
                      {"set", parse_set},
                      {"macro", parse_macro},
                      {"break", parse_break},
                      {"continue", parse_continue},
                      {"generation", parse_generation}};
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (!take_name(p, statements[i].name)) continue;
        ln_jinja_enter(p->state);
        ln_jinja_node *node = statements[i].parse(p);
        ln_jinja_leave(p->state);
        need_block_end(p);
        return node;
    }
    const int shown = p->token->text.bytes < 60 ? (int)p->token->text.bytes : 60;
    ln_jinja_fail(p->state, LINNET_ERROR_UNSUPPORTED, "the statement '%.*s' is not understood", shown,
                  p->token->text.data);
}

/* Up to a block that begins with one of `ends`, whose name is the next token then; NULL: up to the end of the text. */
static ln_jinja_node *parse_body(parser *p, const char *const *ends) {
    ln_jinja_node *first = NULL, **last = &first;
    for (;;) {
        ln_jinja_node *node;
        if (p->token->kind == LN_JINJA_TOKEN_END) {
            if (ends) expected(p, ends[0]);
            return first;
        }
        if (p->token->kind == LN_JINJA_TOKEN_DATA) {
            node = make(p, LN_JINJA_RAW);
            node->text = p->token->text;
            next(p);
        } else if (p->token->kind == LN_JINJA_TOKEN_OUTPUT_BEGIN) {
            next(p);
            node = make(p, LN_JINJA_OUTPUT);
            node->a = parse_values(p);
            if (p->token->kind != LN_JINJA_TOKEN_OUTPUT_END) expected(p, "'}}'");
            next(p);
        } else {
            next(p);
            for (const char *const *end = ends; end && *end; end++)
                if (is_name(p, *end)) return first;
            node = parse_statement(p);
        }
        *last = node;
        last = &node->next;
    }
}

ln_jinja_node *ln_jinja_parse(ln_jinja_state *state, const ln_jinja_token *tokens) {
    parser p = {.state = state, .token = tokens};
    return parse_body(&p, NULL);
}
