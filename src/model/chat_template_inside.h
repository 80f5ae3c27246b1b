/* The parts of chat templates: values, the tree, and how they fail.
 *
 * A template, and a rendering of it, own one arena, from which all else is taken and which is given back at once. So a
 * failure anywhere simply jumps out (ln_jinja_fail): there is nothing to release on the way. */
#ifndef LN_MODEL_CHAT_TEMPLATE_INSIDE_H
#define LN_MODEL_CHAT_TEMPLATE_INSIDE_H

#include <setjmp.h>

#include "model/chat_template.h"

/* ---- arena and failure ---- */

typedef struct ln_jinja_chunk ln_jinja_chunk;

typedef struct ln_jinja_state {
    linnet_context *context;
    ln_jinja_chunk *chunks;
    uint64_t used, limit; /* bytes */
    uint64_t steps;       /* left */
    int depth, line;
    linnet_status status;
    jmp_buf *failed;
} ln_jinja_state;

_Noreturn void ln_jinja_fail(ln_jinja_state *state, linnet_status status, const char *format, ...) LINNET_PRINTF(3, 4);
void *ln_jinja_allocate(ln_jinja_state *state, uint64_t count, uint64_t size); /* cleared */
void ln_jinja_release(ln_jinja_state *state);
/* Counts work; fails when there was too much of it. */
void ln_jinja_charge(ln_jinja_state *state, uint64_t steps);
void ln_jinja_enter(ln_jinja_state *state);
void ln_jinja_leave(ln_jinja_state *state);

/* Text that grows, in the arena. */
typedef struct ln_jinja_out {
    char *data;
    size_t bytes, capacity;
} ln_jinja_out;

void ln_jinja_append(ln_jinja_state *state, ln_jinja_out *out, const char *data, size_t bytes);
void ln_jinja_append_text(ln_jinja_state *state, ln_jinja_out *out, const char *text);

/* ---- values ---- */

typedef enum ln_jinja_kind {
    LN_JINJA_UNDEFINED,
    LN_JINJA_NONE,
    LN_JINJA_BOOL,
    LN_JINJA_INTEGER,
    LN_JINJA_REAL,
    LN_JINJA_TEXT,
    LN_JINJA_LIST,
    LN_JINJA_MAP,
    LN_JINJA_MACRO,
    LN_JINJA_FUNCTION
} ln_jinja_kind;

typedef struct ln_jinja_value ln_jinja_value;
typedef struct ln_jinja_list ln_jinja_list;
typedef struct ln_jinja_map ln_jinja_map;
typedef struct ln_jinja_node ln_jinja_node;
typedef struct ln_jinja_arguments ln_jinja_arguments;
typedef struct ln_jinja_run ln_jinja_run;
typedef ln_jinja_value (*ln_jinja_function)(ln_jinja_run *run, ln_jinja_value self,
                                            const ln_jinja_arguments *arguments);

struct ln_jinja_value {
    ln_jinja_kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        ln_text text;
        ln_jinja_list *list;
        ln_jinja_map *map;
        const ln_jinja_node *macro;
        ln_jinja_function function;
    };
};

struct ln_jinja_list {
    ln_jinja_value *items;
    int64_t count, capacity;
};

typedef struct ln_jinja_entry {
    ln_jinja_value key, value;
} ln_jinja_entry;

struct ln_jinja_map {
    ln_jinja_entry *entries;
    int64_t count, capacity;
    bool is_namespace; /* may be assigned to */
};

ln_jinja_value ln_jinja_undefined(void);
ln_jinja_value ln_jinja_none(void);
ln_jinja_value ln_jinja_bool(bool truth);
ln_jinja_value ln_jinja_integer(int64_t integer);
ln_jinja_value ln_jinja_real(double real);
ln_jinja_value ln_jinja_text(const char *data, size_t bytes);
ln_jinja_value ln_jinja_c_text(const char *text);
ln_jinja_value ln_jinja_from_out(const ln_jinja_out *out);
ln_jinja_value ln_jinja_new_list(ln_jinja_state *state);
ln_jinja_value ln_jinja_new_map(ln_jinja_state *state);
void ln_jinja_list_add(ln_jinja_state *state, ln_jinja_list *list, ln_jinja_value item);
void ln_jinja_map_set(ln_jinja_state *state, ln_jinja_map *map, ln_jinja_value key, ln_jinja_value value);
/* NULL where the key is not there. */
ln_jinja_value *ln_jinja_map_find(ln_jinja_state *state, const ln_jinja_map *map, ln_jinja_value key);

const char *ln_jinja_kind_name(ln_jinja_value value);
bool ln_jinja_is_true(ln_jinja_value value);
bool ln_jinja_is_text(ln_jinja_value value, const char *text);
bool ln_jinja_is_number(ln_jinja_value value);
double ln_jinja_number(ln_jinja_value value);
bool ln_jinja_equal(ln_jinja_state *state, ln_jinja_value left, ln_jinja_value right);
/* Negative, 0, positive; fails where the two have no order. */
int ln_jinja_compare(ln_jinja_state *state, ln_jinja_value left, ln_jinja_value right);
bool ln_jinja_contains(ln_jinja_state *state, ln_jinja_value container, ln_jinja_value item);
int64_t ln_jinja_length(ln_jinja_state *state, ln_jinja_value value); /* of text in characters */
/* What `for` goes through: items, keys or characters. */
ln_jinja_value ln_jinja_as_list(ln_jinja_state *state, ln_jinja_value value);
/* As Python's str() writes it, and as repr(). */
void ln_jinja_write(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value);
void ln_jinja_write_quoted(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value);
/* indent < 0: on one line. */
void ln_jinja_write_json(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value, int indent, int level);
ln_jinja_value ln_jinja_as_text(ln_jinja_state *state, ln_jinja_value value);

/* ---- the tree ---- */

typedef enum ln_jinja_node_kind {
    /* expressions */
    LN_JINJA_LITERAL,   /* literal */
    LN_JINJA_NAME,      /* text */
    LN_JINJA_ITEMS,     /* a: items */
    LN_JINJA_PAIRS,     /* a: keys, each with its value in a */
    LN_JINJA_ATTRIBUTE, /* a.text */
    LN_JINJA_INDEX,     /* a[b] */
    LN_JINJA_SLICE,     /* a[b:c:d] */
    LN_JINJA_CALL,      /* a(b): arguments, with names in text */
    LN_JINJA_FILTER,    /* a | text(b) */
    LN_JINJA_TEST,      /* a is text(b) */
    LN_JINJA_NOT,       /* a */
    LN_JINJA_NEGATE,    /* a */
    LN_JINJA_BINARY,    /* a op b */
    LN_JINJA_CHOICE,    /* a if b else c */
    /* statements */
    LN_JINJA_RAW,    /* text */
    LN_JINJA_OUTPUT, /* a */
    LN_JINJA_IF,     /* a: condition, b: body, c: what else */
    LN_JINJA_FOR,    /* a: targets, b: list, c: body, d: else, e: condition */
    LN_JINJA_SET,    /* a: targets, b: value, or c: body */
    LN_JINJA_MAKE,   /* macro text(a: parameters, each with its default in a), c: body */
    LN_JINJA_BODY,   /* c: body */
    LN_JINJA_BREAK,
    LN_JINJA_CONTINUE
} ln_jinja_node_kind;

typedef enum ln_jinja_operator {
    LN_JINJA_OR,
    LN_JINJA_AND,
    LN_JINJA_EQUAL,
    LN_JINJA_NOT_EQUAL,
    LN_JINJA_LESS,
    LN_JINJA_LESS_EQUAL,
    LN_JINJA_GREATER,
    LN_JINJA_GREATER_EQUAL,
    LN_JINJA_IN,
    LN_JINJA_NOT_IN,
    LN_JINJA_ADD,
    LN_JINJA_SUBTRACT,
    LN_JINJA_JOIN,
    LN_JINJA_MULTIPLY,
    LN_JINJA_DIVIDE,
    LN_JINJA_FLOOR_DIVIDE,
    LN_JINJA_REMAINDER,
    LN_JINJA_POWER
} ln_jinja_operator;

struct ln_jinja_node {
    ln_jinja_node_kind kind;
    ln_jinja_operator operation;
    int line;
    bool negated; /* is not */
    ln_text text;
    ln_jinja_value literal;
    ln_jinja_node *a, *b, *c, *d, *e;
    ln_jinja_node *next; /* in a list of nodes */
};

typedef enum ln_jinja_token_kind {
    LN_JINJA_TOKEN_DATA, /* text outside of tags */
    LN_JINJA_TOKEN_OUTPUT_BEGIN,
    LN_JINJA_TOKEN_OUTPUT_END,
    LN_JINJA_TOKEN_BLOCK_BEGIN,
    LN_JINJA_TOKEN_BLOCK_END,
    LN_JINJA_TOKEN_NAME,
    LN_JINJA_TOKEN_STRING, /* unescaped */
    LN_JINJA_TOKEN_INTEGER,
    LN_JINJA_TOKEN_REAL,
    LN_JINJA_TOKEN_SIGN, /* operators and brackets */
    LN_JINJA_TOKEN_END
} ln_jinja_token_kind;

typedef struct ln_jinja_token {
    ln_jinja_token_kind kind;
    int line;
    ln_text text;
} ln_jinja_token;

/* The tokens of a template, the last of kind LN_JINJA_TOKEN_END. */
ln_jinja_token *ln_jinja_scan(ln_jinja_state *state, const char *text, size_t bytes);
ln_jinja_node *ln_jinja_parse(ln_jinja_state *state, const ln_jinja_token *tokens);

/* ---- running ---- */

typedef struct ln_jinja_variable {
    ln_text name;
    ln_jinja_value value;
} ln_jinja_variable;

typedef struct ln_jinja_frame {
    ln_jinja_variable *variables;
    int64_t count, capacity;
    const struct ln_jinja_frame *outer;
} ln_jinja_frame;

struct ln_jinja_run {
    ln_jinja_state state;
    ln_jinja_frame root, *frame;
    ln_jinja_out *out;
    enum { LN_JINJA_RUNNING, LN_JINJA_BREAKING, LN_JINJA_CONTINUING } flow;
};

enum { LN_JINJA_MOST_ARGUMENTS = 16 };

struct ln_jinja_arguments {
    int count;
    ln_text names[LN_JINJA_MOST_ARGUMENTS]; /* data NULL: by position */
    ln_jinja_value values[LN_JINJA_MOST_ARGUMENTS];
};

/* The argument at a position or of a name; `fallback` where neither is given. */
ln_jinja_value ln_jinja_argument(const ln_jinja_arguments *arguments, int position, const char *name,
                                 ln_jinja_value fallback);

typedef struct ln_jinja_row {
    const char *name; /* NULL: the end of the table */
    ln_jinja_function function;
} ln_jinja_row;

const ln_jinja_row *ln_jinja_find_row(const ln_jinja_row *rows, ln_text name);
_Noreturn void ln_jinja_unknown(ln_jinja_run *run, const char *what, ln_text name);
/* Values of a wanted kind; fail on others. Undefined is the empty text. */
ln_text ln_jinja_need_text(ln_jinja_run *run, ln_jinja_value value);
int64_t ln_jinja_need_integer(ln_jinja_run *run, ln_jinja_value value);

ln_jinja_value ln_jinja_attribute(ln_jinja_state *state, ln_jinja_value object, ln_jinja_value name);
ln_jinja_value ln_jinja_apply_filter(ln_jinja_run *run, ln_text name, ln_jinja_value value,
                                     const ln_jinja_arguments *arguments);
bool ln_jinja_apply_test(ln_jinja_run *run, ln_text name, ln_jinja_value value, const ln_jinja_arguments *arguments);
/* false where values of that kind have no such method. */
bool ln_jinja_call_method(ln_jinja_run *run, ln_jinja_value self, ln_text name, const ln_jinja_arguments *arguments,
                          ln_jinja_value *result);
/* A function that every template has; undefined where there is none of that name. */
ln_jinja_value ln_jinja_global(ln_text name);
static inline bool ln_jinja_same(ln_text a, const char *name) {
    size_t i = 0;
    while (i < a.bytes && name[i] && a.data[i] == name[i]) i++;
    return i == a.bytes && !name[i];
}

#endif
