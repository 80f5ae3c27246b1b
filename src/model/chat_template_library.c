/* Owns: filters and methods, one row each in three tables.
 *
 * Letters outside ASCII keep their case. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/chat_template_inside.h"
#include "model/utf8.h"

const ln_jinja_row *ln_jinja_find_row(const ln_jinja_row *rows, ln_text name) {
    for (; rows->name; rows++)
        if (ln_jinja_same(name, rows->name)) return rows;
    return NULL;
}

_Noreturn void ln_jinja_unknown(ln_jinja_run *run, const char *what, ln_text name) {
    ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "the %s '%.*s' is not understood", what,
                  name.bytes < 60 ? (int)name.bytes : 60, name.data);
}

ln_text ln_jinja_need_text(ln_jinja_run *run, ln_jinja_value value) {
    if (value.kind == LN_JINJA_UNDEFINED) return (ln_text){"", 0};
    if (value.kind != LN_JINJA_TEXT)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "a string is needed, not %s", ln_jinja_kind_name(value));
    ln_jinja_charge(&run->state, value.text.bytes / 16);
    return value.text;
}

int64_t ln_jinja_need_integer(ln_jinja_run *run, ln_jinja_value value) {
    if (value.kind == LN_JINJA_BOOL) return value.truth;
    if (value.kind != LN_JINJA_INTEGER)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "an integer is needed, not %s", ln_jinja_kind_name(value));
    return value.integer;
}

/* ---- text ---- */

/* Length of the character at the start that is to be stripped; 0: none. */
static size_t strippable(const char *text, size_t bytes, const ln_text *set) {
    const size_t length = bytes ? ln_utf8_length(text, bytes) : 0;
    if (!length) return 0;
    if (!set)
        return ln_is_space(ln_utf8_code(text, length)) || ((unsigned char)*text >= 28 && (unsigned char)*text < 32)
                   ? length
                   : 0;
    return memmem(set->data, set->bytes, text, length) ? length : 0;
}

static ln_jinja_value strip(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments, bool left,
                            bool right) {
    ln_text text = ln_jinja_need_text(run, ln_jinja_as_text(&run->state, self));
    const ln_jinja_value given = ln_jinja_argument(arguments, 0, "chars", ln_jinja_none());
    const ln_text chars = given.kind == LN_JINJA_NONE ? (ln_text){0} : ln_jinja_need_text(run, given);
    const ln_text *set = given.kind == LN_JINJA_NONE ? NULL : &chars;
    for (size_t length; left && (length = strippable(text.data, text.bytes, set));) {
        text.data += length;
        text.bytes -= length;
    }
    while (right && text.bytes) {
        size_t length = 1;
        while (length < 4 && length < text.bytes && ((unsigned char)text.data[text.bytes - length] & 0xC0) == 0x80)
            length++;
        if (strippable(text.data + text.bytes - length, length, set) != length) break;
        text.bytes -= length;
    }
    return ln_jinja_text(text.data, text.bytes);
}

static ln_jinja_value trim(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return strip(run, self, arguments, true, true);
}
static ln_jinja_value strip_left(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return strip(run, self, arguments, true, false);
}
static ln_jinja_value strip_right(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return strip(run, self, arguments, false, true);
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}
static char upper_of(char c) {
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}
static char lower_of(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

typedef enum letter_case { UPPER, LOWER, CAPITALIZE, TITLE, TITLE_WORDS } letter_case;

static ln_jinja_value change_case(ln_jinja_run *run, ln_jinja_value self, letter_case wanted) {
    const ln_text text = ln_jinja_need_text(run, ln_jinja_as_text(&run->state, self));
    char *out = ln_jinja_allocate(&run->state, text.bytes, 1);
    bool starts = true;
    for (size_t i = 0; i < text.bytes; i++) {
        const char c = text.data[i];
        out[i] = wanted == UPPER || (wanted != LOWER && starts) ? upper_of(c) : lower_of(c);
        if (wanted == TITLE_WORDS)
            starts = c && strchr("- \t\n\r\f\v({[<", c);
        else
            starts = wanted == TITLE && !is_letter(c);
    }
    return ln_jinja_text(out, text.bytes);
}

static ln_jinja_value upper(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return change_case(run, self, UPPER);
}
static ln_jinja_value lower(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return change_case(run, self, LOWER);
}
static ln_jinja_value capitalize(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return change_case(run, self, CAPITALIZE);
}
static ln_jinja_value title(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return change_case(run, self, TITLE);
}
static ln_jinja_value title_words(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return change_case(run, self, TITLE_WORDS);
}

static const char *find_text(ln_text text, size_t from, ln_text what) {
    return from <= text.bytes ? memmem(text.data + from, text.bytes - from, what.data, what.bytes) : NULL;
}

static ln_jinja_value replace(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_state *state = &run->state;
    const ln_text text = ln_jinja_need_text(run, ln_jinja_as_text(state, self));
    const ln_text from =
        ln_jinja_need_text(run, ln_jinja_as_text(state, ln_jinja_argument(arguments, 0, "old", ln_jinja_undefined())));
    const ln_text to =
        ln_jinja_need_text(run, ln_jinja_as_text(state, ln_jinja_argument(arguments, 1, "new", ln_jinja_undefined())));
    const ln_jinja_value most = ln_jinja_argument(arguments, 2, "count", ln_jinja_none());
    int64_t left = most.kind == LN_JINJA_NONE ? -1 : ln_jinja_need_integer(run, most);
    ln_jinja_out out = {0};
    size_t at = 0;
    while (left != 0 && from.bytes) {
        const char *found = find_text(text, at, from);
        if (!found) break;
        ln_jinja_charge(state, 1);
        ln_jinja_append(state, &out, text.data + at, (size_t)(found - text.data) - at);
        ln_jinja_append(state, &out, to.data, to.bytes);
        at = (size_t)(found - text.data) + from.bytes;
        left--;
    }
    ln_jinja_append(state, &out, text.data + at, text.bytes - at);
    return ln_jinja_from_out(&out);
}

static ln_jinja_value split_at_spaces(ln_jinja_run *run, ln_text text, int64_t most) {
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (size_t at = 0;;) {
        for (size_t length; (length = strippable(text.data + at, text.bytes - at, NULL)); at += length) {
        }
        if (at == text.bytes) return list;
        size_t end = at;
        if (list.list->count == most) end = text.bytes;
        while (end < text.bytes && !strippable(text.data + end, text.bytes - end, NULL)) end++;
        const ln_jinja_value part = ln_jinja_text(text.data + at, end - at);
        const ln_jinja_arguments none = {0};
        ln_jinja_list_add(&run->state, list.list, end == text.bytes ? strip_right(run, part, &none) : part);
        at = end;
    }
}

static ln_jinja_value split(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_text text = ln_jinja_need_text(run, self);
    const ln_jinja_value given = ln_jinja_argument(arguments, 0, "sep", ln_jinja_none());
    const int64_t most = ln_jinja_need_integer(run, ln_jinja_argument(arguments, 1, "maxsplit", ln_jinja_integer(-1)));
    if (given.kind == LN_JINJA_NONE) return split_at_spaces(run, text, most);
    const ln_text separator = ln_jinja_need_text(run, given);
    if (!separator.bytes) ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "an empty separator");
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    size_t at = 0;
    for (const char *found; list.list->count != most && (found = find_text(text, at, separator));) {
        ln_jinja_list_add(&run->state, list.list, ln_jinja_text(text.data + at, (size_t)(found - text.data) - at));
        at = (size_t)(found - text.data) + separator.bytes;
    }
    ln_jinja_list_add(&run->state, list.list, ln_jinja_text(text.data + at, text.bytes - at));
    return list;
}

static ln_jinja_value split_lines(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_text text = ln_jinja_need_text(run, self);
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (size_t at = 0; at < text.bytes;) {
        size_t end = at;
        while (end < text.bytes && text.data[end] != '\n' && text.data[end] != '\r') end++;
        ln_jinja_list_add(&run->state, list.list, ln_jinja_text(text.data + at, end - at));
        at = end + (end + 1 < text.bytes && text.data[end] == '\r' && text.data[end + 1] == '\n') + 1;
    }
    return list;
}

/* Whether text begins (or ends) with the argument, or one of a list of them. */
static ln_jinja_value has_edge(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments,
                               bool at_start) {
    const ln_text text = ln_jinja_need_text(run, self);
    const ln_jinja_value given = ln_jinja_argument(arguments, 0, "prefix", ln_jinja_undefined());
    ln_jinja_value list = given;
    if (given.kind != LN_JINJA_LIST) {
        list = ln_jinja_new_list(&run->state);
        ln_jinja_list_add(&run->state, list.list, given);
    }
    for (int64_t i = 0; i < list.list->count; i++) {
        const ln_text edge = ln_jinja_need_text(run, list.list->items[i]);
        if (edge.bytes > text.bytes) continue;
        const char *place = at_start ? text.data : text.data + (text.bytes - edge.bytes);
        if (!edge.bytes || memcmp(place, edge.data, edge.bytes) == 0) return ln_jinja_bool(true);
    }
    return ln_jinja_bool(false);
}

static ln_jinja_value starts_with(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return has_edge(run, self, arguments, true);
}
static ln_jinja_value ends_with(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return has_edge(run, self, arguments, false);
}

static ln_jinja_value find(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_text text = ln_jinja_need_text(run, self);
    const char *found =
        find_text(text, 0, ln_jinja_need_text(run, ln_jinja_argument(arguments, 0, "sub", ln_jinja_undefined())));
    if (!found) return ln_jinja_integer(-1);
    return ln_jinja_integer(ln_jinja_length(&run->state, ln_jinja_text(text.data, (size_t)(found - text.data))));
}

static ln_jinja_value count_text(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_text text = ln_jinja_need_text(run, self),
                  what = ln_jinja_need_text(run, ln_jinja_argument(arguments, 0, "sub", ln_jinja_undefined()));
    if (!what.bytes) return ln_jinja_integer(ln_jinja_length(&run->state, self) + 1);
    int64_t count = 0;
    size_t at = 0;
    for (const char *found; (found = find_text(text, at, what)); count++) at = (size_t)(found - text.data) + what.bytes;
    return ln_jinja_integer(count);
}

/* "{}", "{0}", "{name}", "{{", "}}"; no conversions. */
static ln_jinja_value format(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_state *state = &run->state;
    const ln_text text = ln_jinja_need_text(run, self);
    ln_jinja_out out = {0};
    int position = 0;
    for (size_t at = 0; at < text.bytes; at++) {
        const char c = text.data[at];
        const bool twice = at + 1 < text.bytes && text.data[at + 1] == c;
        if ((c != '{' && c != '}') || twice) {
            ln_jinja_append(state, &out, &c, 1);
            at += twice && (c == '{' || c == '}');
            continue;
        }
        char name[32] = {0};
        size_t length = 0;
        while (c == '{' && ++at < text.bytes && text.data[at] != '}' && length + 1 < sizeof name)
            name[length++] = text.data[at];
        if (c == '}' || at == text.bytes || text.data[at] != '}' || strpbrk(name, ":!.["))
            ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "this format is not understood");
        const bool number = length && strspn(name, "0123456789") == length;
        const int place = number ? atoi(name) : length ? -1 : position++;
        const ln_jinja_value value = ln_jinja_argument(arguments, place, name, ln_jinja_undefined());
        if (value.kind == LN_JINJA_UNDEFINED) ln_jinja_fail(state, LINNET_ERROR_UNSUPPORTED, "format lacks a value");
        ln_jinja_write(state, &out, value);
    }
    return ln_jinja_from_out(&out);
}

static ln_jinja_value is_digits(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_text text = ln_jinja_need_text(run, self);
    for (size_t i = 0; i < text.bytes; i++)
        if (text.data[i] < '0' || text.data[i] > '9') return ln_jinja_bool(false);
    return ln_jinja_bool(text.bytes > 0);
}

static ln_jinja_value indent(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_state *state = &run->state;
    const ln_text text = ln_jinja_need_text(run, ln_jinja_as_text(state, self));
    const ln_jinja_value width = ln_jinja_argument(arguments, 0, "width", ln_jinja_integer(4));
    const bool first = ln_jinja_is_true(ln_jinja_argument(arguments, 1, "first", ln_jinja_bool(false)));
    const bool blank = ln_jinja_is_true(ln_jinja_argument(arguments, 2, "blank", ln_jinja_bool(false)));
    ln_jinja_out out = {0};
    for (size_t at = 0, line = 0; at <= text.bytes; line++) {
        const char *end = at < text.bytes ? memchr(text.data + at, '\n', text.bytes - at) : NULL;
        const size_t length = end ? (size_t)(end - text.data) - at : text.bytes - at;
        if (line ? length || blank : first) {
            const int64_t blanks = width.kind == LN_JINJA_TEXT ? 0 : ln_jinja_need_integer(run, width);
            for (int64_t i = 0; i < blanks; i++) ln_jinja_append_text(state, &out, " ");
            ln_jinja_charge(state, (uint64_t)ln_max_i64(blanks, 0));
            if (width.kind == LN_JINJA_TEXT) ln_jinja_append(state, &out, width.text.data, width.text.bytes);
        }
        ln_jinja_append(state, &out, text.data + at, length + (end != NULL));
        if (!end) break;
        at += length + 1;
    }
    return ln_jinja_from_out(&out);
}

static ln_jinja_value escape(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    static const char special[] = "&<>\"'";
    const ln_text text = ln_jinja_need_text(run, ln_jinja_as_text(&run->state, self));
    ln_jinja_out out = {0};
    for (size_t i = 0; i < text.bytes; i++) {
        const char *found = text.data[i] ? strchr(special, text.data[i]) : NULL;
        if (found)
            ln_jinja_append_text(&run->state, &out, names[found - special]);
        else
            ln_jinja_append(&run->state, &out, &text.data[i], 1);
    }
    return ln_jinja_from_out(&out);
}

/* ---- lists and maps ---- */

static ln_jinja_value items(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    if (self.kind == LN_JINJA_UNDEFINED) return list;
    if (self.kind != LN_JINJA_MAP)
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "%s has no items", ln_jinja_kind_name(self));
    for (int64_t i = 0; i < self.map->count; i++) {
        ln_jinja_value pair = ln_jinja_new_list(&run->state);
        ln_jinja_list_add(&run->state, pair.list, self.map->entries[i].key);
        ln_jinja_list_add(&run->state, pair.list, self.map->entries[i].value);
        ln_jinja_list_add(&run->state, list.list, pair);
    }
    return list;
}

static ln_jinja_value keys(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return ln_jinja_as_list(&run->state, self);
}

static ln_jinja_value values(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    ln_jinja_value list = ln_jinja_new_list(&run->state);
    for (int64_t i = 0; i < self.map->count; i++) ln_jinja_list_add(&run->state, list.list, self.map->entries[i].value);
    return list;
}

static ln_jinja_value get(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_jinja_value *found =
        ln_jinja_map_find(&run->state, self.map, ln_jinja_argument(arguments, 0, "key", ln_jinja_undefined()));
    return found ? *found : ln_jinja_argument(arguments, 1, "default", ln_jinja_none());
}

/* The item, or the part of it that an attribute ("a.b", 0) names. */
static ln_jinja_value part_of(ln_jinja_run *run, ln_jinja_value item, ln_jinja_value attribute) {
    if (attribute.kind == LN_JINJA_NONE) return item;
    if (attribute.kind != LN_JINJA_TEXT) return ln_jinja_attribute(&run->state, item, attribute);
    ln_text rest = attribute.text;
    for (;;) {
        const char *dot = rest.bytes ? memchr(rest.data, '.', rest.bytes) : NULL;
        const size_t length = dot ? (size_t)(dot - rest.data) : rest.bytes;
        item = ln_jinja_attribute(&run->state, item, ln_jinja_text(rest.data, length));
        if (!dot) return item;
        rest = (ln_text){dot + 1, rest.bytes - length - 1};
    }
}

static ln_jinja_value join(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_state *state = &run->state;
    const ln_jinja_value list = ln_jinja_as_list(state, self),
                         attribute = ln_jinja_argument(arguments, 1, "attribute", ln_jinja_none());
    const ln_jinja_value between = ln_jinja_as_text(state, ln_jinja_argument(arguments, 0, "d", ln_jinja_c_text("")));
    ln_jinja_out out = {0};
    for (int64_t i = 0; i < list.list->count; i++) {
        if (i) ln_jinja_append(state, &out, between.text.data, between.text.bytes);
        ln_jinja_write(state, &out, part_of(run, list.list->items[i], attribute));
    }
    return ln_jinja_from_out(&out);
}

/* "x".join(list) */
static ln_jinja_value join_method(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_arguments turned = {.count = 1, .values = {self}};
    return join(run, ln_jinja_argument(arguments, 0, "iterable", ln_jinja_undefined()), &turned);
}

static ln_jinja_value first(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_jinja_value list = ln_jinja_as_list(&run->state, self);
    return list.list->count ? list.list->items[0] : ln_jinja_undefined();
}

static ln_jinja_value last(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_jinja_value list = ln_jinja_as_list(&run->state, self);
    return list.list->count ? list.list->items[list.list->count - 1] : ln_jinja_undefined();
}

static ln_jinja_value list_of(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return ln_jinja_as_list(&run->state, self);
}

static ln_jinja_value reverse(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_jinja_value list = ln_jinja_as_list(&run->state, self);
    ln_jinja_value turned = ln_jinja_new_list(&run->state);
    for (int64_t i = list.list->count; i > 0; i--) ln_jinja_list_add(&run->state, turned.list, list.list->items[i - 1]);
    if (self.kind != LN_JINJA_TEXT) return turned;
    const ln_jinja_arguments none = {0};
    return join(run, turned, &none);
}

/* Filters over items take all that is false for an empty list. */
static ln_jinja_value list_or_nothing(ln_jinja_run *run, ln_jinja_value value) {
    return ln_jinja_is_true(value) ? ln_jinja_as_list(&run->state, value) : ln_jinja_new_list(&run->state);
}

static ln_jinja_value map(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    ln_jinja_value list = list_or_nothing(run, self), made = ln_jinja_new_list(&run->state);
    const ln_jinja_value attribute = ln_jinja_argument(arguments, 99, "attribute", ln_jinja_none());
    const ln_jinja_value other = ln_jinja_argument(arguments, 99, "default", ln_jinja_undefined());
    ln_jinja_arguments rest = {0};
    for (int i = 1; i < arguments->count; i++) {
        rest.names[rest.count] = arguments->names[i];
        rest.values[rest.count++] = arguments->values[i];
    }
    for (int64_t i = 0; i < list.list->count; i++) {
        ln_jinja_value item = list.list->items[i];
        if (attribute.kind != LN_JINJA_NONE) {
            item = part_of(run, item, attribute);
            if (item.kind == LN_JINJA_UNDEFINED) item = other;
        } else {
            item = ln_jinja_apply_filter(
                run, ln_jinja_need_text(run, ln_jinja_argument(arguments, 0, "", ln_jinja_undefined())), item, &rest);
        }
        ln_jinja_list_add(&run->state, made.list, item);
    }
    return made;
}

/* The items of which (or of an attribute of which) a test holds, or does not. */
static ln_jinja_value choose(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments,
                             bool attribute, bool wanted) {
    const ln_jinja_value list = list_or_nothing(run, self);
    ln_jinja_value chosen = ln_jinja_new_list(&run->state);
    const int skipped = attribute ? 1 : 0;
    const ln_jinja_value name = attribute ? ln_jinja_argument(arguments, 0, "", ln_jinja_undefined()) : ln_jinja_none();
    const ln_jinja_value test = ln_jinja_argument(arguments, skipped, "", ln_jinja_none());
    ln_jinja_arguments rest = {0};
    for (int i = skipped + 1; i < arguments->count; i++) rest.values[rest.count++] = arguments->values[i];
    for (int64_t i = 0; i < list.list->count; i++) {
        const ln_jinja_value item = list.list->items[i], part = part_of(run, item, name);
        const bool holds = test.kind == LN_JINJA_NONE
                               ? ln_jinja_is_true(part)
                               : ln_jinja_apply_test(run, ln_jinja_need_text(run, test), part, &rest);
        if (holds == wanted) ln_jinja_list_add(&run->state, chosen.list, item);
    }
    return chosen;
}

static ln_jinja_value select_items(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return choose(run, self, arguments, false, true);
}
static ln_jinja_value reject(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return choose(run, self, arguments, false, false);
}
static ln_jinja_value select_attribute(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return choose(run, self, arguments, true, true);
}
static ln_jinja_value reject_attribute(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    return choose(run, self, arguments, true, false);
}

/* Stable; lists in templates are short, and steps are counted. */
static void sort_items(ln_jinja_run *run, ln_jinja_list *list, ln_jinja_value attribute) {
    for (int64_t i = 1; i < list->count; i++) {
        const ln_jinja_value item = list->items[i], key = part_of(run, item, attribute);
        int64_t at = i;
        for (; at > 0 && ln_jinja_compare(&run->state, part_of(run, list->items[at - 1], attribute), key) > 0; at--) {
            ln_jinja_charge(&run->state, 1);
            list->items[at] = list->items[at - 1];
        }
        list->items[at] = item;
    }
}

static ln_jinja_value sorted(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_jinja_arguments none = {0};
    ln_jinja_value copy = reverse(run, reverse(run, ln_jinja_as_list(&run->state, self), &none), &none);
    sort_items(run, copy.list, ln_jinja_argument(arguments, 2, "attribute", ln_jinja_none()));
    return ln_jinja_is_true(ln_jinja_argument(arguments, 0, "reverse", ln_jinja_bool(false)))
               ? reverse(run, copy, &none)
               : copy;
}

static ln_jinja_value sorted_items(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_jinja_value list = items(run, self, arguments);
    sort_items(run, list.list, ln_jinja_integer(0));
    return list;
}

static ln_jinja_value unique(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    const ln_jinja_value list = ln_jinja_as_list(&run->state, self);
    ln_jinja_value kept = ln_jinja_new_list(&run->state);
    for (int64_t i = 0; i < list.list->count; i++)
        if (!ln_jinja_contains(&run->state, kept, list.list->items[i]))
            ln_jinja_list_add(&run->state, kept.list, list.list->items[i]);
    return kept;
}

/* ---- numbers and the rest ---- */

static ln_jinja_value length(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return ln_jinja_integer(ln_jinja_length(&run->state, self));
}

static ln_jinja_value to_text(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return ln_jinja_as_text(&run->state, self);
}

static ln_jinja_value same(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)run, (void)arguments;
    return self;
}

static ln_jinja_value to_number(ln_jinja_run *run, ln_jinja_value self, bool whole) {
    double real = 0;
    if (ln_jinja_is_number(self)) {
        if (whole && self.kind != LN_JINJA_REAL) return ln_jinja_integer(ln_jinja_need_integer(run, self));
        real = ln_jinja_number(self);
    } else if (self.kind == LN_JINJA_TEXT && self.text.bytes < 64) {
        char text[64], *end;
        memcpy(text, self.text.data, self.text.bytes);
        text[self.text.bytes] = 0;
        errno = 0;
        const long long integer = strtoll(text, &end, 10);
        if (whole && end != text && !*end && !errno) return ln_jinja_integer(integer);
        real = strtod(text, &end);
        if (end == text || *end) real = 0;
    }
    if (!whole) return ln_jinja_real(real);
    return ln_jinja_integer(fabs(real) < 9e18 ? (int64_t)real : 0);
}

static ln_jinja_value to_integer(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return to_number(run, self, true);
}
static ln_jinja_value to_real(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    return to_number(run, self, false);
}

static ln_jinja_value absolute(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)arguments;
    if (self.kind == LN_JINJA_REAL) return ln_jinja_real(fabs(self.real));
    const int64_t integer = ln_jinja_need_integer(run, self);
    return ln_jinja_integer(integer < 0 && integer > INT64_MIN ? -integer : integer);
}

static ln_jinja_value round_number(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const double scale =
        pow(10, (double)ln_jinja_need_integer(run, ln_jinja_argument(arguments, 0, "precision", ln_jinja_integer(0))));
    if (!ln_jinja_is_number(self))
        ln_jinja_fail(&run->state, LINNET_ERROR_UNSUPPORTED, "%s cannot be rounded", ln_jinja_kind_name(self));
    return ln_jinja_real(nearbyint(ln_jinja_number(self) * scale) / scale);
}

static ln_jinja_value otherwise(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    (void)run;
    const bool falsy_too = ln_jinja_is_true(ln_jinja_argument(arguments, 1, "boolean", ln_jinja_bool(false)));
    if (self.kind == LN_JINJA_UNDEFINED || (falsy_too && !ln_jinja_is_true(self)))
        return ln_jinja_argument(arguments, 0, "default_value", ln_jinja_c_text(""));
    return self;
}

static ln_jinja_value to_json(ln_jinja_run *run, ln_jinja_value self, const ln_jinja_arguments *arguments) {
    const ln_jinja_value width = ln_jinja_argument(arguments, 99, "indent", ln_jinja_none());
    ln_jinja_out out = {0};
    const int64_t blanks = width.kind == LN_JINJA_NONE ? -1 : ln_jinja_need_integer(run, width);
    ln_jinja_write_json(&run->state, &out, self, (int)ln_min_i64(blanks, 64), 0);
    return ln_jinja_from_out(&out);
}

static const ln_jinja_row filters[] = {{"trim", trim},
                                       {"length", length},
                                       {"count", length},
                                       {"upper", upper},
                                       {"lower", lower},
                                       {"title", title_words},
                                       {"capitalize", capitalize},
                                       {"replace", replace},
                                       {"indent", indent},
                                       {"escape", escape},
                                       {"e", escape},
                                       {"safe", same},
                                       {"string", to_text},
                                       {"int", to_integer},
                                       {"float", to_real},
                                       {"abs", absolute},
                                       {"round", round_number},
                                       {"default", otherwise},
                                       {"d", otherwise},
                                       {"tojson", to_json},
                                       {"items", items},
                                       {"dictsort", sorted_items},
                                       {"list", list_of},
                                       {"first", first},
                                       {"last", last},
                                       {"join", join},
                                       {"reverse", reverse},
                                       {"sort", sorted},
                                       {"unique", unique},
                                       {"map", map},
                                       {"select", select_items},
                                       {"reject", reject},
                                       {"selectattr", select_attribute},
                                       {"rejectattr", reject_attribute},
                                       {0}};

ln_jinja_value ln_jinja_apply_filter(ln_jinja_run *run, ln_text name, ln_jinja_value value,
                                     const ln_jinja_arguments *arguments) {
    const ln_jinja_row *found = ln_jinja_find_row(filters, name);
    if (!found) ln_jinja_unknown(run, "filter", name);
    ln_jinja_charge(&run->state, 1);
    return found->function(run, value, arguments);
}

/* ---- methods ---- */

static const ln_jinja_row text_methods[] = {{"strip", trim},
                                            {"lstrip", strip_left},
                                            {"rstrip", strip_right},
                                            {"split", split},
                                            {"splitlines", split_lines},
                                            {"startswith", starts_with},
                                            {"endswith", ends_with},
                                            {"upper", upper},
                                            {"lower", lower},
                                            {"title", title},
                                            {"capitalize", capitalize},
                                            {"replace", replace},
                                            {"find", find},
                                            {"format", format},
                                            {"count", count_text},
                                            {"isdigit", is_digits},
                                            {"join", join_method},
                                            {0}};
static const ln_jinja_row map_methods[] = {{"items", items}, {"keys", keys}, {"values", values}, {"get", get}, {0}};

bool ln_jinja_call_method(ln_jinja_run *run, ln_jinja_value self, ln_text name, const ln_jinja_arguments *arguments,
                          ln_jinja_value *result) {
    const ln_jinja_row *rows = self.kind == LN_JINJA_TEXT  ? text_methods
                               : self.kind == LN_JINJA_MAP ? map_methods
                                                           : NULL;
    const ln_jinja_row *found = rows ? ln_jinja_find_row(rows, name) : NULL;
    if (!found) return false;
    ln_jinja_charge(&run->state, 1);
    *result = found->function(run, self, arguments);
    return true;
}
