/* Owns: cutting a template into text and tags, and tags into tokens.
 *
 * White space: "-" at a tag's edge takes all that is next to it. Otherwise a line break right after a block or comment
 * goes (trim_blocks), and so do blanks between a line's start and a block or comment (lstrip_blocks), unless "+" stands
 * at that edge. Line breaks become "\n" and one at the very end goes. */
#include <string.h>

#include "model/chat_template_inside.h"
#include "model/utf8.h"

typedef struct scanner {
    ln_jinja_state *state;
    const char *text;
    size_t bytes, at;
    int line;
    bool line_starts; /* what came last ended with a line break */
    ln_jinja_token *tokens;
    int64_t count, capacity;
} scanner;

static void add(scanner *s, ln_jinja_token_kind kind, const char *data, size_t bytes) {
    if (s->count == s->capacity) {
        ln_jinja_token *grown =
            ln_jinja_allocate(s->state, (uint64_t)(s->capacity = 2 * s->capacity + 64), sizeof *grown);
        if (s->count) memcpy(grown, s->tokens, (size_t)s->count * sizeof *grown);
        s->tokens = grown;
    }
    s->tokens[s->count++] = (ln_jinja_token){.kind = kind, .line = s->line, .text = {data, bytes}};
}

static void advance(scanner *s, size_t to) {
    for (; s->at < to; s->at++) s->line += s->text[s->at] == '\n';
    s->state->line = s->line;
}

static bool looks_at(const scanner *s, const char *text) {
    const size_t length = strlen(text);
    return s->bytes - s->at >= length && memcmp(s->text + s->at, text, length) == 0;
}

static size_t space_at(const char *text, size_t bytes) {
    if (!bytes) return 0;
    const size_t length = ln_utf8_length(text, bytes);
    return length && ln_is_space(ln_utf8_code(text, length)) ? length : 0;
}

static size_t without_spaces_at_end(const char *text, size_t bytes) {
    for (;;) {
        size_t length = 1;
        while (length < 4 && length < bytes && ((unsigned char)text[bytes - length] & 0xC0) == 0x80) length++;
        if (!bytes || space_at(text + bytes - length, length) != length) return bytes;
        bytes -= length;
    }
}

/* Data before a tag that starts at `tag`. */
static void add_data(scanner *s, size_t tag, bool block) {
    const char *data = s->text + s->at;
    size_t bytes = tag - s->at;
    const char sign = tag + 2 < s->bytes ? s->text[tag + 2] : 0;
    if (sign == '-') {
        bytes = without_spaces_at_end(data, bytes);
    } else if (block && sign != '+') {
        const char *line_break = bytes ? memrchr(data, '\n', bytes) : NULL;
        const size_t start = line_break ? (size_t)(line_break - data) + 1 : 0;
        size_t end = start;
        for (size_t length; end < bytes && (length = space_at(data + end, bytes - end)); end += length) {
        }
        if (end == bytes && (start || s->line_starts)) bytes = start;
    }
    if (bytes) add(s, LN_JINJA_TOKEN_DATA, data, bytes);
    advance(s, tag);
}

/* After a tag's end: the white space that goes with it. */
static void skip_after(scanner *s, char sign, bool block) {
    const size_t start = s->at;
    size_t to = s->at;
    if (sign == '-')
        for (size_t length; (length = space_at(s->text + to, s->bytes - to)); to += length) {
        }
    else if (block && sign != '+' && to < s->bytes && s->text[to] == '\n')
        to++;
    advance(s, to);
    s->line_starts = to > start && s->text[to - 1] == '\n';
}

/* ---- inside of tags ---- */

static bool is_name_start(char c) {
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static void scan_escape(scanner *s, ln_jinja_out *out) {
    static const char from[] = "ntr\\'\"bfav0", to[] = "\n\t\r\\'\"\b\f\a\v\0";
    const char c = s->text[s->at++];
    const char *found = c ? strchr(from, c) : NULL;
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (found) {
        ln_jinja_append(s->state, out, &to[found - from], 1);
        return;
    }
    if (!digits) {
        if (c != '\n') ln_jinja_append(s->state, out, (const char[]){'\\', c}, 2);
        return;
    }
    uint32_t code = 0;
    for (int i = 0; i < digits; i++) {
        const char digit = s->at < s->bytes ? s->text[s->at++] : 0;
        const char *place = digit ? strchr("0123456789abcdefABCDEF", digit) : NULL;
        if (!place || code > 0x10FFFF)
            ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "an escape in a string is damaged");
        const int value = (int)(place - strchr("0123456789abcdefABCDEF", '0'));
        code = code << 4 | (uint32_t)(value > 15 ? value - 6 : value);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "an escape in a string is no character");
    char text[4];
    ln_jinja_append(s->state, out, text, ln_utf8_write(code, text));
}

static void scan_string(scanner *s) {
    const char quote = s->text[s->at];
    ln_jinja_out out = {0};
    size_t at = s->at + 1;
    const int line = s->line;
    advance(s, at);
    while (s->at < s->bytes && s->text[s->at] != quote) {
        const char c = s->text[s->at];
        if (c == '\\' && s->at + 1 < s->bytes) {
            s->at++;
            scan_escape(s, &out);
        } else {
            ln_jinja_append(s->state, &out, &c, 1);
            advance(s, s->at + 1);
        }
    }
    if (s->at == s->bytes) {
        s->state->line = line;
        ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "a string has no end");
    }
    s->at++;
    add(s, LN_JINJA_TOKEN_STRING, out.data ? out.data : "", out.bytes);
}

static void scan_number(scanner *s) {
    const size_t start = s->at;
    bool real = false;
    while (s->at < s->bytes && (is_digit(s->text[s->at]) || s->text[s->at] == '_')) s->at++;
    if (s->at + 1 < s->bytes && s->text[s->at] == '.' && is_digit(s->text[s->at + 1])) {
        real = true;
        for (s->at++; s->at < s->bytes && is_digit(s->text[s->at]);) s->at++;
    }
    if (s->at < s->bytes && (s->text[s->at] == 'e' || s->text[s->at] == 'E')) {
        size_t at = s->at + 1;
        if (at < s->bytes && (s->text[at] == '+' || s->text[at] == '-')) at++;
        if (at < s->bytes && is_digit(s->text[at])) {
            real = true;
            while (at < s->bytes && is_digit(s->text[at])) at++;
            s->at = at;
        }
    }
    add(s, real ? LN_JINJA_TOKEN_REAL : LN_JINJA_TOKEN_INTEGER, s->text + start, s->at - start);
}

static void scan_sign(scanner *s, int *open) {
    static const char *const signs[] = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "<",
                                        ">",  "(",  ")",  "[",  "]",  "{",  "}", "|", ",", ":", ".", "="};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        if (!looks_at(s, signs[i])) continue;
        const size_t length = strlen(signs[i]);
        if (strchr("([{", *signs[i])) ++*open;
        if (strchr(")]}", *signs[i]) && --*open < 0)
            ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "'%s' closes nothing", signs[i]);
        add(s, LN_JINJA_TOKEN_SIGN, s->text + s->at, length);
        s->at += length;
        return;
    }
    ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "'%c' is not understood in a tag", s->text[s->at]);
}

/* The tokens of a tag up to its end ("%}" or "}}"), and the white space after it. */
static void scan_tag(scanner *s, const char *end, bool block) {
    int open = 0;
    for (;;) {
        while (s->at < s->bytes && strchr(" \t\n\r\v\f", s->text[s->at]) && s->text[s->at]) advance(s, s->at + 1);
        if (s->at == s->bytes) ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "a tag has no '%s'", end);
        const char c = s->text[s->at];
        const bool sign = (c == '-' || c == '+') && s->bytes - s->at > 2 && memcmp(s->text + s->at + 1, end, 2) == 0;
        if (!open && (sign || looks_at(s, end))) {
            add(s, block ? LN_JINJA_TOKEN_BLOCK_END : LN_JINJA_TOKEN_OUTPUT_END, s->text + s->at, 0);
            s->at += sign ? 3 : 2;
            skip_after(s, sign ? c : 0, block);
            return;
        }
        if (c == '"' || c == '\'')
            scan_string(s);
        else if (is_digit(c))
            scan_number(s);
        else if (is_name_start(c)) {
            const size_t start = s->at;
            while (s->at < s->bytes && (is_name_start(s->text[s->at]) || is_digit(s->text[s->at]))) s->at++;
            add(s, LN_JINJA_TOKEN_NAME, s->text + start, s->at - start);
        } else {
            scan_sign(s, &open);
        }
    }
}

/* ---- the whole ---- */

static void scan_comment(scanner *s) {
    const char *end = memmem(s->text + s->at, s->bytes - s->at, "#}", 2);
    if (!end) ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "a comment has no end");
    const size_t at = (size_t)(end - s->text);
    const char sign = at > s->at ? end[-1] : 0;
    advance(s, at + 2);
    skip_after(s, sign, true);
}

/* {% raw %}: past its tag, with the data up to {% endraw %} added; false where it is another block. */
static bool scan_raw(scanner *s) {
    size_t at = s->at;
    while (at < s->bytes && (s->text[at] == ' ' || s->text[at] == '\n')) at++;
    if (s->bytes - at < 4 || memcmp(s->text + at, "raw", 3) != 0 || is_name_start(s->text[at + 3])) return false;
    const int64_t count = s->count;
    scan_tag(s, "%}", true);
    s->count = count;
    for (size_t tag = s->at;; tag += 2) {
        const char *found = memmem(s->text + tag, s->bytes - tag, "{%", 2);
        if (!found) ln_jinja_fail(s->state, LINNET_ERROR_UNSUPPORTED, "raw has no endraw");
        tag = (size_t)(found - s->text);
        size_t name = tag + 2;
        while (name < s->bytes && strchr("-+ \n", s->text[name]) && s->text[name]) name++;
        if (s->bytes - name < 6 || memcmp(s->text + name, "endraw", 6) != 0) continue;
        add_data(s, tag, true);
        advance(s, name);
        const int64_t kept = s->count;
        scan_tag(s, "%}", true);
        s->count = kept;
        return true;
    }
}

static size_t next_tag(const scanner *s) {
    for (size_t at = s->at; at + 1 < s->bytes; at++)
        if (s->text[at] == '{' && strchr("{%#", s->text[at + 1]) && s->text[at + 1]) return at;
    return s->bytes;
}

static void scan_all(scanner *s) {
    while (s->at < s->bytes) {
        const size_t tag = next_tag(s);
        if (tag == s->bytes) {
            add(s, LN_JINJA_TOKEN_DATA, s->text + s->at, s->bytes - s->at);
            break;
        }
        const char kind = s->text[tag + 1];
        add_data(s, tag, kind != '{');
        s->at += 2;
        if (s->at < s->bytes && (s->text[s->at] == '-' || (s->text[s->at] == '+'))) s->at++;
        if (kind == '#') {
            scan_comment(s);
        } else if (kind == '{') {
            add(s, LN_JINJA_TOKEN_OUTPUT_BEGIN, s->text + tag, 2);
            scan_tag(s, "}}", false);
        } else if (!scan_raw(s)) {
            add(s, LN_JINJA_TOKEN_BLOCK_BEGIN, s->text + tag, 2);
            scan_tag(s, "%}", true);
        }
    }
    add(s, LN_JINJA_TOKEN_END, "", 0);
}

ln_jinja_token *ln_jinja_scan(ln_jinja_state *state, const char *text, size_t bytes) {
    char *copy = ln_jinja_allocate(state, bytes + 1, 1);
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\r' && i + 1 < bytes && text[i + 1] == '\n') continue;
        copy[count++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (count && copy[count - 1] == '\n') count--;
    scanner s = {.state = state, .text = copy, .bytes = count, .line = 1, .line_starts = true};
    scan_all(&s);
    return s.tokens;
}
