/* UTF-8: lengths and code points of well-formed characters (no surrogates, no overlong forms, at most U+10FFFF). */
#ifndef LN_MODEL_UTF8_H
#define LN_MODEL_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that a character beginning with `lead` has; 0 where none begins so. */
static inline size_t ln_utf8_expected(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) return 3;
    return lead < 0xF5 ? 4 : 0;
}

/* Whether `second` may follow `lead`: where overlong forms, surrogates and what lies past U+10FFFF are refused. */
static inline bool ln_utf8_second(unsigned char lead, unsigned char second) {
    if ((second & 0xC0) != 0x80) return false;
    if (lead == 0xE0) return second >= 0xA0;
    if (lead == 0xED) return second < 0xA0;
    if (lead == 0xF0) return second >= 0x90;
    return lead != 0xF4 || second < 0x90;
}

/* Length of the well-formed character at the start of text[bytes], bytes > 0; 0 where there is none. */
static inline size_t ln_utf8_length(const char *text, size_t bytes) {
    const unsigned char *data = (const unsigned char *)text;
    const size_t length = ln_utf8_expected(data[0]);
    if (length < 2) return length;
    if (length > bytes || !ln_utf8_second(data[0], data[1])) return 0;
    for (size_t i = 2; i < length; i++)
        if ((data[i] & 0xC0) != 0x80) return 0;
    return length;
}

/* Code point of a well-formed character of `length` bytes. */
static inline uint32_t ln_utf8_code(const char *text, size_t length) {
    const unsigned char *data = (const unsigned char *)text;
    if (length == 1) return data[0];
    uint32_t code = data[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) code = code << 6 | (data[i] & 0x3Fu);
    return code;
}

/* Writes a code point, at most 4 bytes; returns how many. */
static inline size_t ln_utf8_write(uint32_t code, char *text) {
    unsigned char *data = (unsigned char *)text;
    if (code < 0x80) {
        data[0] = (unsigned char)code;
        return 1;
    }
    const size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, code >>= 6) data[i] = (unsigned char)(0x80 | (code & 0x3F));
    data[0] = (unsigned char)(0xF00u >> length | code);
    return length;
}

/* Bytes from the start of text that are well-formed characters one after the other. */
static inline size_t ln_utf8_valid(const char *text, size_t bytes) {
    size_t at = 0;
    while (at < bytes) {
        const size_t length = ln_utf8_length(text + at, bytes - at);
        if (!length) break;
        at += length;
    }
    return at;
}

/* Bytes at the end of text that begin a character whose rest is still to come: 0 to 3. */
static inline size_t ln_utf8_unfinished(const char *text, size_t bytes) {
    const unsigned char *data = (const unsigned char *)text;
    for (size_t count = 1; count <= 3 && count <= bytes; count++) {
        const unsigned char lead = data[bytes - count];
        if ((lead & 0xC0) == 0x80) continue;
        const bool possible = count == 1 || ln_utf8_second(lead, data[bytes - count + 1]);
        return possible && ln_utf8_expected(lead) > count ? count : 0;
    }
    return 0;
}

/* Unicode's White_Space. */
static inline bool ln_is_space(uint32_t code) {
    if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13);
    return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

#endif
