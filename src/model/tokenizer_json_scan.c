/* Owns: reading the large parts of a tokenizer.json in place.
 *
 * A vocabulary of 256 k tokens with its merges is some 30 MB of JSON, and ten times that as a tree. Here a string costs
 * nothing: it is a pointer into the file, or, where it has escapes, into one arena. */
#include <string.h>

#include "model/tokenizer_json.h"
#include "model/utf8.h"

static void skip_space(ln_json_reader *reader) {
    while (reader->at < reader->end &&
           (*reader->at == ' ' || *reader->at == '\n' || *reader->at == '\r' || *reader->at == '\t'))
        reader->at++;
}

bool ln_json_take(ln_json_reader *reader, char punctuation) {
    skip_space(reader);
    if (reader->at == reader->end || *reader->at != punctuation) return false;
    reader->at++;
    return true;
}

bool ln_json_take_integer(ln_json_reader *reader, int64_t *value) {
    skip_space(reader);
    const char *start = reader->at;
    *value = 0;
    for (; reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9'; reader->at++) {
        if (reader->at - start > 17) return false;
        *value = *value * 10 + (*reader->at - '0');
    }
    return reader->at > start;
}

/* ---- strings ---- */

static bool take_hex(ln_json_reader *reader, uint32_t *code) {
    if (reader->end - reader->at < 4) return false;
    *code = 0;
    for (int i = 0; i < 4; i++) {
        const char c = *reader->at++;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (uint32_t)((c | 0x20) - 'a' + 10);
        else
            return false;
        *code = *code << 4 | digit;
    }
    return true;
}

/* After the backslash; writes to the arena. */
static bool take_escape(ln_json_reader *reader) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (reader->at == reader->end) return false;
    const char c = *reader->at++;
    if (c != 'u') {
        const char *found = c ? strchr(from, c) : NULL;
        if (!found) return false;
        *reader->arena++ = to[found - from];
        return true;
    }
    uint32_t code, low;
    if (!take_hex(reader, &code)) return false;
    if (code >= 0xDC00 && code < 0xE000) return false;
    if (code >= 0xD800 && code < 0xDC00) {
        if (reader->end - reader->at < 2 || reader->at[0] != '\\' || reader->at[1] != 'u') return false;
        reader->at += 2;
        if (!take_hex(reader, &low) || low < 0xDC00 || low >= 0xE000) return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    reader->arena += ln_utf8_write(code, reader->arena);
    return true;
}

bool ln_json_take_text(ln_json_reader *reader, ln_text *text) {
    if (!ln_json_take(reader, '"')) return false;
    const char *start = reader->at;
    while (reader->at < reader->end && *reader->at != '"' && *reader->at != '\\') reader->at++;
    if (reader->at < reader->end && *reader->at == '"') {
        *text = (ln_text){start, (size_t)(reader->at - start)};
        reader->at++;
        return true;
    }
    char *out = reader->arena;
    memcpy(out, start, (size_t)(reader->at - start));
    reader->arena += reader->at - start;
    while (reader->at < reader->end && *reader->at != '"') {
        if (*reader->at != '\\') {
            *reader->arena++ = *reader->at++;
            continue;
        }
        reader->at++;
        if (!take_escape(reader)) return false;
    }
    if (reader->at == reader->end) return false;
    reader->at++;
    *text = (ln_text){out, (size_t)(reader->arena - out)};
    return true;
}

/* ---- cutting ---- */

/* Past the string that starts at `at`; NULL where it has no end. */
static const char *skip_string(const char *at, const char *end) {
    for (at++; at < end && *at != '"'; at++)
        if (*at == '\\' && ++at == end) return NULL;
    return at < end ? at + 1 : NULL;
}

/* Past the value that starts at `at`; NULL where it has no end. Brackets are only counted: who reads the value checks.
 */
static const char *skip_value(const char *at, const char *end) {
    int64_t depth = 0;
    while (at < end) {
        const char c = *at;
        if (c == '"') {
            at = skip_string(at, end);
            if (!at) return NULL;
            if (!depth) return at;
            continue;
        }
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') {
            if (!depth) return at;
            if (!--depth) return at + 1;
        }
        if (c == ',' && !depth) return at;
        at++;
    }
    return depth ? NULL : at;
}

static bool is_string(const char *start, const char *end, const char *name) {
    const size_t length = strlen(name);
    return (size_t)(end - start) == length + 2 && memcmp(start + 1, name, length) == 0;
}

/* Calls itself for the value of "model"; within it takes the two large values. */
static bool cut_object(ln_json_reader *reader, bool model, ln_text *vocab, ln_text *merges) {
    if (!ln_json_take(reader, '{')) return false;
    if (ln_json_take(reader, '}')) return true;
    do {
        skip_space(reader);
        const char *name = reader->at;
        if (name == reader->end || *name != '"') return false;
        const char *name_end = skip_string(name, reader->end);
        if (!name_end) return false;
        reader->at = name_end;
        if (!ln_json_take(reader, ':')) return false;
        skip_space(reader);
        if (!model && is_string(name, name_end, "model") && reader->at < reader->end && *reader->at == '{') {
            if (!cut_object(reader, true, vocab, merges)) return false;
            continue;
        }
        const char *value = reader->at, *value_end = skip_value(value, reader->end);
        if (!value_end || value_end == value) return false;
        reader->at = value_end;
        const ln_text found = {value, (size_t)(value_end - value)};
        if (model && is_string(name, name_end, "vocab") && *value == '{') *vocab = found;
        if (model && is_string(name, name_end, "merges")) *merges = found;
    } while (ln_json_take(reader, ','));
    return ln_json_take(reader, '}');
}

linnet_status ln_json_cut(linnet_context *context, ln_text json, ln_text *vocab, ln_text *merges, ln_buffer *rest) {
    *vocab = *merges = (ln_text){0};
    ln_json_reader reader = {.at = json.data, .end = json.data + json.bytes};
    if (!cut_object(&reader, false, vocab, merges))
        return ln_fail(context, LINNET_ERROR_FORMAT, "tokenizer.json is no JSON object (byte %lld)",
                       (long long)(reader.at - json.data));
    ln_text first = *vocab, second = *merges;
    if (second.data && (!first.data || second.data < first.data)) first = *merges, second = *vocab;
    const char *at = json.data;
    for (int i = 0; i < 2; i++) {
        const ln_text cut = i ? second : first;
        if (!cut.data) continue;
        ln_buffer_append(rest, at, (size_t)(cut.data - at));
        ln_buffer_text(rest, "0");
        at = cut.data + cut.bytes;
    }
    ln_buffer_append(rest, at, (size_t)(json.data + json.bytes - at));
    return rest->failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}
