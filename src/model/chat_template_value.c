/* Owns: the arena of a template, its failures, and values with Python's meaning: truth, equality, order, how they are
 * written. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/chat_template_inside.h"
#include "model/utf8.h"

/* ---- arena and failure ---- */

struct ln_jinja_chunk {
    ln_jinja_chunk *older;
    size_t bytes, used;
};

enum { CHUNK_BYTES = 16384, CHUNK_HEAD = 64, DEEPEST = 200 };

void ln_jinja_fail(ln_jinja_state *state, linnet_status status, const char *format, ...) {
    if (format) {
        char reason[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(reason, sizeof reason, format, arguments);
        va_end(arguments);
        ln_fail(state->context, status, "the chat template, line %d: %s", state->line, reason);
    }
    state->status = status;
    longjmp(*state->failed, 1);
}

void *ln_jinja_allocate(ln_jinja_state *state, uint64_t count, uint64_t size) {
    uint64_t bytes;
    if (!ln_multiply_u64(count, size, &bytes) || bytes > state->limit)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "it takes too much memory");
    bytes = ln_round_up(bytes, 16);
    if (!state->chunks || state->chunks->bytes - state->chunks->used < bytes) {
        const uint64_t chunk = CHUNK_HEAD + (bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES);
        if (state->used + chunk > state->limit)
            ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "it takes too much memory");
        ln_jinja_chunk *made = ln_allocate_zero(state->context, chunk, 1, "chat template");
        if (!made) ln_jinja_fail(state, LINNET_ERROR_MEMORY, NULL);
        *made = (ln_jinja_chunk){.older = state->chunks, .bytes = chunk, .used = CHUNK_HEAD};
        state->chunks = made;
        state->used += chunk;
    }
    void *block = (char *)state->chunks + state->chunks->used;
    state->chunks->used += bytes;
    return block;
}

void ln_jinja_release(ln_jinja_state *state) {
    while (state->chunks) {
        ln_jinja_chunk *older = state->chunks->older;
        ln_release(state->context, state->chunks);
        state->chunks = older;
    }
}

void ln_jinja_charge(ln_jinja_state *state, uint64_t steps) {
    if (state->steps < steps) ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "it takes too many steps");
    state->steps -= steps;
}

void ln_jinja_enter(ln_jinja_state *state) {
    ln_jinja_charge(state, 1);
    if (++state->depth > DEEPEST)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "it is nested more than %d deep", DEEPEST);
}

void ln_jinja_leave(ln_jinja_state *state) {
    state->depth--;
}

void ln_jinja_append(ln_jinja_state *state, ln_jinja_out *out, const char *data, size_t bytes) {
    ln_jinja_charge(state, bytes / 16);
    if (out->capacity - out->bytes < bytes) {
        const size_t capacity = 2 * out->capacity + bytes + 32;
        char *grown = ln_jinja_allocate(state, capacity, 1);
        if (out->bytes) memcpy(grown, out->data, out->bytes);
        out->data = grown;
        out->capacity = capacity;
    }
    if (bytes) memcpy(out->data + out->bytes, data, bytes);
    out->bytes += bytes;
}

void ln_jinja_append_text(ln_jinja_state *state, ln_jinja_out *out, const char *text) {
    ln_jinja_append(state, out, text, strlen(text));
}

/* ---- making ---- */

ln_jinja_value ln_jinja_undefined(void) {
    return (ln_jinja_value){.kind = LN_JINJA_UNDEFINED};
}
ln_jinja_value ln_jinja_none(void) {
    return (ln_jinja_value){.kind = LN_JINJA_NONE};
}
ln_jinja_value ln_jinja_bool(bool truth) {
    return (ln_jinja_value){.kind = LN_JINJA_BOOL, .truth = truth};
}
ln_jinja_value ln_jinja_integer(int64_t integer) {
    return (ln_jinja_value){.kind = LN_JINJA_INTEGER, .integer = integer};
}
ln_jinja_value ln_jinja_real(double real) {
    return (ln_jinja_value){.kind = LN_JINJA_REAL, .real = real};
}
ln_jinja_value ln_jinja_text(const char *data, size_t bytes) {
    return (ln_jinja_value){.kind = LN_JINJA_TEXT, .text = {data, bytes}};
}
ln_jinja_value ln_jinja_c_text(const char *text) {
    return ln_jinja_text(text, strlen(text));
}
ln_jinja_value ln_jinja_from_out(const ln_jinja_out *out) {
    return ln_jinja_text(out->data ? out->data : "", out->bytes);
}

ln_jinja_value ln_jinja_new_list(ln_jinja_state *state) {
    return (ln_jinja_value){.kind = LN_JINJA_LIST, .list = ln_jinja_allocate(state, 1, sizeof(ln_jinja_list))};
}

ln_jinja_value ln_jinja_new_map(ln_jinja_state *state) {
    return (ln_jinja_value){.kind = LN_JINJA_MAP, .map = ln_jinja_allocate(state, 1, sizeof(ln_jinja_map))};
}

void ln_jinja_list_add(ln_jinja_state *state, ln_jinja_list *list, ln_jinja_value item) {
    if (list->count == list->capacity) {
        ln_jinja_value *grown =
            ln_jinja_allocate(state, (uint64_t)(list->capacity = 2 * list->capacity + 8), sizeof *grown);
        if (list->count) memcpy(grown, list->items, (size_t)list->count * sizeof *grown);
        list->items = grown;
    }
    list->items[list->count++] = item;
}

ln_jinja_value *ln_jinja_map_find(ln_jinja_state *state, const ln_jinja_map *map, ln_jinja_value key) {
    ln_jinja_charge(state, (uint64_t)map->count / 8);
    for (int64_t i = 0; i < map->count; i++)
        if (ln_jinja_equal(state, map->entries[i].key, key)) return &map->entries[i].value;
    return NULL;
}

void ln_jinja_map_set(ln_jinja_state *state, ln_jinja_map *map, ln_jinja_value key, ln_jinja_value value) {
    if (key.kind == LN_JINJA_LIST || key.kind == LN_JINJA_MAP)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "a list cannot be a key");
    ln_jinja_value *there = ln_jinja_map_find(state, map, key);
    if (there) {
        *there = value;
        return;
    }
    if (map->count == map->capacity) {
        ln_jinja_entry *grown =
            ln_jinja_allocate(state, (uint64_t)(map->capacity = 2 * map->capacity + 8), sizeof *grown);
        if (map->count) memcpy(grown, map->entries, (size_t)map->count * sizeof *grown);
        map->entries = grown;
    }
    map->entries[map->count++] = (ln_jinja_entry){key, value};
}

/* ---- asking ---- */

const char *ln_jinja_kind_name(ln_jinja_value value) {
    static const char *const names[] = {
        [LN_JINJA_UNDEFINED] = "undefined", [LN_JINJA_NONE] = "none",   [LN_JINJA_BOOL] = "a boolean",
        [LN_JINJA_INTEGER] = "an integer",  [LN_JINJA_REAL] = "a real", [LN_JINJA_TEXT] = "a string",
        [LN_JINJA_LIST] = "a list",         [LN_JINJA_MAP] = "a map",   [LN_JINJA_MACRO] = "a macro",
        [LN_JINJA_FUNCTION] = "a function"};
    return names[value.kind];
}

bool ln_jinja_is_true(ln_jinja_value value) {
    switch (value.kind) {
    case LN_JINJA_UNDEFINED:
    case LN_JINJA_NONE:
        return false;
    case LN_JINJA_BOOL:
        return value.truth;
    case LN_JINJA_INTEGER:
        return value.integer != 0;
    case LN_JINJA_REAL:
        return value.real != 0;
    case LN_JINJA_TEXT:
        return value.text.bytes > 0;
    case LN_JINJA_LIST:
        return value.list->count > 0;
    case LN_JINJA_MAP:
        return value.map->count > 0 || value.map->is_namespace;
    default:
        return true;
    }
}

bool ln_jinja_is_text(ln_jinja_value value, const char *text) {
    return value.kind == LN_JINJA_TEXT && ln_jinja_same(value.text, text);
}

/* Python's booleans are numbers. */
bool ln_jinja_is_number(ln_jinja_value value) {
    return value.kind == LN_JINJA_BOOL || value.kind == LN_JINJA_INTEGER || value.kind == LN_JINJA_REAL;
}

double ln_jinja_number(ln_jinja_value value) {
    return value.kind == LN_JINJA_REAL      ? value.real
           : value.kind == LN_JINJA_INTEGER ? (double)value.integer
                                            : value.truth;
}

static int64_t whole(ln_jinja_value value) {
    return value.kind == LN_JINJA_BOOL ? value.truth : value.integer;
}

static int compare_texts(ln_text a, ln_text b) {
    const size_t common = a.bytes < b.bytes ? a.bytes : b.bytes;
    const int order = common ? memcmp(a.data, b.data, common) : 0;
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static bool equal_lists(ln_jinja_state *state, const ln_jinja_list *left, const ln_jinja_list *right) {
    if (left->count != right->count) return false;
    for (int64_t i = 0; i < left->count; i++)
        if (!ln_jinja_equal(state, left->items[i], right->items[i])) return false;
    return true;
}

static bool equal_maps(ln_jinja_state *state, const ln_jinja_map *left, const ln_jinja_map *right) {
    if (left->count != right->count) return false;
    for (int64_t i = 0; i < left->count; i++) {
        const ln_jinja_value *other = ln_jinja_map_find(state, right, left->entries[i].key);
        if (!other || !ln_jinja_equal(state, left->entries[i].value, *other)) return false;
    }
    return true;
}

bool ln_jinja_equal(ln_jinja_state *state, ln_jinja_value left, ln_jinja_value right) {
    ln_jinja_enter(state);
    bool equal = false;
    if (ln_jinja_is_number(left) && ln_jinja_is_number(right))
        equal = left.kind == LN_JINJA_REAL || right.kind == LN_JINJA_REAL
                    ? ln_jinja_number(left) == ln_jinja_number(right)
                    : whole(left) == whole(right);
    else if (left.kind != right.kind)
        equal = false;
    else if (left.kind == LN_JINJA_TEXT)
        equal = compare_texts(left.text, right.text) == 0;
    else if (left.kind == LN_JINJA_LIST)
        equal = equal_lists(state, left.list, right.list);
    else if (left.kind == LN_JINJA_MAP)
        equal = left.map == right.map || equal_maps(state, left.map, right.map);
    else if (left.kind == LN_JINJA_MACRO)
        equal = left.macro == right.macro;
    else if (left.kind == LN_JINJA_FUNCTION)
        equal = left.function == right.function;
    else
        equal = true; /* undefined, none */
    ln_jinja_leave(state);
    return equal;
}

int ln_jinja_compare(ln_jinja_state *state, ln_jinja_value left, ln_jinja_value right) {
    if (left.kind == LN_JINJA_TEXT && right.kind == LN_JINJA_TEXT) return compare_texts(left.text, right.text);
    if (ln_jinja_is_number(left) && ln_jinja_is_number(right)) {
        if (left.kind != LN_JINJA_REAL && right.kind != LN_JINJA_REAL)
            return (whole(left) > whole(right)) - (whole(left) < whole(right));
        return (ln_jinja_number(left) > ln_jinja_number(right)) - (ln_jinja_number(left) < ln_jinja_number(right));
    }
    ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s and %s have no order", ln_jinja_kind_name(left),
                  ln_jinja_kind_name(right));
}

bool ln_jinja_contains(ln_jinja_state *state, ln_jinja_value container, ln_jinja_value item) {
    if (container.kind == LN_JINJA_TEXT) {
        if (item.kind != LN_JINJA_TEXT)
            ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "a string holds no %s", ln_jinja_kind_name(item));
        ln_jinja_charge(state, container.text.bytes / 16);
        return !item.text.bytes ||
               memmem(container.text.data, container.text.bytes, item.text.data, item.text.bytes) != NULL;
    }
    if (container.kind == LN_JINJA_MAP) return ln_jinja_map_find(state, container.map, item) != NULL;
    const ln_jinja_value list = ln_jinja_as_list(state, container);
    for (int64_t i = 0; i < list.list->count; i++)
        if (ln_jinja_equal(state, list.list->items[i], item)) return true;
    return false;
}

/* Bytes of the character at the start; a byte that begins none counts as one. */
static size_t character(const char *text, size_t bytes) {
    const size_t length = ln_utf8_length(text, bytes);
    return length ? length : 1;
}

int64_t ln_jinja_length(ln_jinja_state *state, ln_jinja_value value) {
    if (value.kind == LN_JINJA_UNDEFINED) return 0;
    if (value.kind == LN_JINJA_LIST) return value.list->count;
    if (value.kind == LN_JINJA_MAP) return value.map->count;
    if (value.kind != LN_JINJA_TEXT)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s has no length", ln_jinja_kind_name(value));
    ln_jinja_charge(state, value.text.bytes / 16);
    int64_t count = 0;
    for (size_t at = 0; at < value.text.bytes; count++) at += character(value.text.data + at, value.text.bytes - at);
    return count;
}

ln_jinja_value ln_jinja_as_list(ln_jinja_state *state, ln_jinja_value value) {
    if (value.kind == LN_JINJA_LIST) return value;
    ln_jinja_value list = ln_jinja_new_list(state);
    if (value.kind == LN_JINJA_MAP) {
        for (int64_t i = 0; i < value.map->count; i++) ln_jinja_list_add(state, list.list, value.map->entries[i].key);
    } else if (value.kind == LN_JINJA_TEXT) {
        ln_jinja_charge(state, value.text.bytes);
        for (size_t at = 0, length; at < value.text.bytes; at += length) {
            length = character(value.text.data + at, value.text.bytes - at);
            ln_jinja_list_add(state, list.list, ln_jinja_text(value.text.data + at, length));
        }
    } else if (value.kind != LN_JINJA_UNDEFINED) {
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s cannot be gone through", ln_jinja_kind_name(value));
    }
    return list;
}

/* ---- writing ---- */

/* The shortest digits that give the number back, as Python's repr. */
static void write_real(ln_jinja_state *state, ln_jinja_out *out, double real) {
    char text[40];
    if (isnan(real) || isinf(real)) {
        ln_jinja_append_text(state, out, isnan(real) ? "nan" : real > 0 ? "inf" : "-inf");
        return;
    }
    int digits = 1;
    double again;
    do snprintf(text, sizeof text, "%.*e", digits - 1, real);
    while (digits++ < 17 && (sscanf(text, "%lf", &again) != 1 || again != real));
    const char *exponent_text = strchr(text, 'e');
    int exponent = 0;
    sscanf(exponent_text + 1, "%d", &exponent);
    const int kept = digits - 2; /* digits after the first */
    if (exponent >= -4 && exponent < 16)
        snprintf(text, sizeof text, "%.*f", kept > exponent ? kept - exponent : 1, real);
    else if (exponent < 0 || exponent > 9)
        snprintf(text, sizeof text, "%.*e", kept, real);
    ln_jinja_append_text(state, out, text);
}

static void write_simple(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value, const char *none,
                         const char *yes, const char *no) {
    char text[32];
    switch (value.kind) {
    case LN_JINJA_NONE:
        ln_jinja_append_text(state, out, none);
        break;
    case LN_JINJA_BOOL:
        ln_jinja_append_text(state, out, value.truth ? yes : no);
        break;
    case LN_JINJA_INTEGER:
        snprintf(text, sizeof text, "%" PRId64, value.integer);
        ln_jinja_append_text(state, out, text);
        break;
    case LN_JINJA_REAL:
        write_real(state, out, value.real);
        break;
    case LN_JINJA_TEXT:
        ln_jinja_append(state, out, value.text.data, value.text.bytes);
        break;
    default:
        break;
    }
}

static void write_escaped(ln_jinja_state *state, ln_jinja_out *out, ln_text text, char quote, bool json) {
    static const char from[] = "\n\r\t\\", to[] = "nrt\\", json_from[] = "\b\f", json_to[] = "bf";
    ln_jinja_append(state, out, &quote, 1);
    for (size_t i = 0; i < text.bytes; i++) {
        const char c = text.data[i];
        const char *found = c ? strchr(from, c) : NULL;
        const char *more = json && c ? strchr(json_from, c) : NULL;
        char escape[8];
        if (found)
            ln_jinja_append(state, out, (const char[]){'\\', to[found - from]}, 2);
        else if (more)
            ln_jinja_append(state, out, (const char[]){'\\', json_to[more - json_from]}, 2);
        else if (c == quote)
            ln_jinja_append(state, out, (const char[]){'\\', c}, 2);
        else if ((unsigned char)c < 0x20 || (c == 0x7F && !json)) {
            snprintf(escape, sizeof escape, json ? "\\u%04x" : "\\x%02x", (unsigned char)c);
            ln_jinja_append_text(state, out, escape);
        } else
            ln_jinja_append(state, out, &c, 1);
    }
    ln_jinja_append(state, out, &quote, 1);
}

void ln_jinja_write_quoted(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value) {
    if (value.kind != LN_JINJA_TEXT) {
        ln_jinja_write(state, out, value);
        return;
    }
    const bool single = value.text.bytes && memchr(value.text.data, '\'', value.text.bytes);
    const bool both = single && memchr(value.text.data, '"', value.text.bytes);
    write_escaped(state, out, value.text, single && !both ? '"' : '\'', false);
}

void ln_jinja_write(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value) {
    ln_jinja_enter(state);
    if (value.kind == LN_JINJA_LIST) {
        ln_jinja_append_text(state, out, "[");
        for (int64_t i = 0; i < value.list->count; i++) {
            if (i) ln_jinja_append_text(state, out, ", ");
            ln_jinja_write_quoted(state, out, value.list->items[i]);
        }
        ln_jinja_append_text(state, out, "]");
    } else if (value.kind == LN_JINJA_MAP) {
        ln_jinja_append_text(state, out, "{");
        for (int64_t i = 0; i < value.map->count; i++) {
            if (i) ln_jinja_append_text(state, out, ", ");
            ln_jinja_write_quoted(state, out, value.map->entries[i].key);
            ln_jinja_append_text(state, out, ": ");
            ln_jinja_write_quoted(state, out, value.map->entries[i].value);
        }
        ln_jinja_append_text(state, out, "}");
    } else if (value.kind == LN_JINJA_MACRO || value.kind == LN_JINJA_FUNCTION) {
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s cannot be written", ln_jinja_kind_name(value));
    } else {
        write_simple(state, out, value, "None", "True", "False");
    }
    ln_jinja_leave(state);
}

static void new_line(ln_jinja_state *state, ln_jinja_out *out, int indent, int level) {
    if (indent < 0) return;
    ln_jinja_append_text(state, out, "\n");
    for (int i = 0; i < indent * level; i++) ln_jinja_append_text(state, out, " ");
}

void ln_jinja_write_json(ln_jinja_state *state, ln_jinja_out *out, ln_jinja_value value, int indent, int level) {
    const bool list = value.kind == LN_JINJA_LIST;
    if (value.kind == LN_JINJA_TEXT) {
        write_escaped(state, out, value.text, '"', true);
        return;
    }
    if (value.kind == LN_JINJA_UNDEFINED || value.kind == LN_JINJA_MACRO || value.kind == LN_JINJA_FUNCTION)
        ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "%s has no form in JSON", ln_jinja_kind_name(value));
    if (!list && value.kind != LN_JINJA_MAP) {
        write_simple(state, out, value, "null", "true", "false");
        return;
    }
    ln_jinja_enter(state);
    const int64_t count = list ? value.list->count : value.map->count;
    ln_jinja_append_text(state, out, list ? "[" : "{");
    for (int64_t i = 0; i < count; i++) {
        if (i) ln_jinja_append_text(state, out, indent < 0 ? ", " : ",");
        new_line(state, out, indent, level + 1);
        if (!list) {
            ln_jinja_write_json(state, out, ln_jinja_as_text(state, value.map->entries[i].key), indent, level + 1);
            ln_jinja_append_text(state, out, ": ");
        }
        ln_jinja_write_json(state, out, list ? value.list->items[i] : value.map->entries[i].value, indent, level + 1);
    }
    if (count) new_line(state, out, indent, level);
    ln_jinja_append_text(state, out, list ? "]" : "}");
    ln_jinja_leave(state);
}

ln_jinja_value ln_jinja_as_text(ln_jinja_state *state, ln_jinja_value value) {
    if (value.kind == LN_JINJA_TEXT) return value;
    ln_jinja_out out = {0};
    ln_jinja_write(state, &out, value);
    return ln_jinja_from_out(&out);
}
