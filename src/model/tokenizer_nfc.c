/* Owns: Unicode's normalisation form C (Unicode Standard Annex 15): decompose, order combining marks by class, compose.
 *
 * Text is taken in segments: a character and all that may combine with it or move before it. Nothing below U+0300 does,
 * so plain text is only copied. Hangul syllables (U+AC00 and up) are arithmetic:
 *   syllable = 0xAC00 + (leading * 21 + vowel) * 28 + trailing */
#include "model/tokenizer_nfc.h"

#include "model/tokenizer.h"
#include "model/utf8.h"

enum {
    HANGUL = 0xAC00,
    LEADING = 0x1100,
    VOWEL = 0x1161,
    TRAILING = 0x11A7, /* one before the first */
    LEADINGS = 19,
    VOWELS = 21,
    TRAILINGS = 28,
    SYLLABLES = LEADINGS * VOWELS * TRAILINGS
};

static const ln_decomposition *decomposition(uint32_t code) {
    int low = 0, high = ln_decomposition_count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (ln_decompositions[middle].code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < ln_decomposition_count && ln_decompositions[low].code == code ? &ln_decompositions[low] : NULL;
}

static uint32_t combining_class(uint32_t code) {
    if (code < 0x300) return 0;
    int low = 0, high = ln_combining_range_count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (ln_combining_ranges[middle].last < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < ln_combining_range_count && ln_combining_ranges[low].first <= code ? ln_combining_ranges[low].class
                                                                                    : 0;
}

/* What two characters compose to; 0: nothing. */
static uint32_t composition(uint32_t first, uint32_t second) {
    if (first - LEADING < LEADINGS && second - VOWEL < VOWELS)
        return HANGUL + ((first - LEADING) * VOWELS + (second - VOWEL)) * TRAILINGS;
    if (first - HANGUL < SYLLABLES && (first - HANGUL) % TRAILINGS == 0 && second > TRAILING &&
        second < TRAILING + TRAILINGS)
        return first + (second - TRAILING);
    int low = 0, high = ln_composition_count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        const ln_decomposition *row = &ln_decompositions[ln_compositions[middle]];
        if (row->first < first || (row->first == first && row->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == ln_composition_count) return 0;
    const ln_decomposition *row = &ln_decompositions[ln_compositions[low]];
    return row->first == first && row->second == second ? row->code : 0;
}

static bool composes_with_previous(uint32_t code) {
    if (code - VOWEL < VOWELS || (code > TRAILING && code < TRAILING + TRAILINGS)) return true;
    for (int i = 0; i < ln_joining_starter_count; i++)
        if (ln_joining_starters[i] == code) return true;
    return false;
}

/* Whether a character may change, or move before, what stands before it. */
static bool joins(uint32_t code) {
    if (code < 0x300 || (code >= 0x3400 && code < 0xA66F) || (code >= HANGUL && code < HANGUL + SYLLABLES))
        return false;
    if (combining_class(code)) return true;
    const ln_decomposition *row = decomposition(code);
    return row ? joins(row->first) : composes_with_previous(code);
}

/* ---- a segment of code points, in a buffer ---- */

static void append_code(ln_buffer *codes, uint32_t code) {
    ln_buffer_append(codes, &code, sizeof code);
}

static void append_decomposed(ln_buffer *codes, uint32_t code) {
    if (code - HANGUL < SYLLABLES) {
        const uint32_t index = code - HANGUL, trailing = index % TRAILINGS;
        append_code(codes, LEADING + index / (VOWELS * TRAILINGS));
        append_code(codes, VOWEL + index / TRAILINGS % VOWELS);
        if (trailing) append_code(codes, TRAILING + trailing);
        return;
    }
    const ln_decomposition *row = code < 0xC0 ? NULL : decomposition(code);
    if (!row) {
        append_code(codes, code);
        return;
    }
    append_decomposed(codes, row->first);
    if (row->second) append_decomposed(codes, row->second);
}

/* Stable, by class: a counting sort, so that no text takes long. */
static void order_marks(uint32_t *codes, size_t count, ln_buffer *scratch) {
    size_t starts[257] = {0};
    scratch->bytes = 0;
    ln_buffer_append(scratch, codes, count * sizeof *codes);
    if (scratch->failed) return;
    const uint32_t *from = (const uint32_t *)(const void *)scratch->data;
    for (size_t i = 0; i < count; i++) starts[combining_class(from[i]) + 1]++;
    for (size_t i = 1; i <= 256; i++) starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; i++) codes[starts[combining_class(from[i])]++] = from[i];
}

static size_t compose(uint32_t *codes, size_t count) {
    size_t kept = 0, starter = SIZE_MAX;
    uint32_t last_class = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t class = combining_class(codes[i]);
        const bool adjacent = starter != SIZE_MAX && kept == starter + 1;
        const bool blocked = starter == SIZE_MAX || (!adjacent && (last_class == 0 || last_class >= class));
        const uint32_t composed = blocked ? 0 : composition(codes[starter], codes[i]);
        if (composed) {
            codes[starter] = composed;
            continue;
        }
        if (!class) starter = kept;
        last_class = class;
        codes[kept++] = codes[i];
    }
    return kept;
}

static void finish_segment(ln_buffer *buffer, ln_buffer *codes, ln_buffer *scratch) {
    if (codes->failed) {
        buffer->failed = true;
        return;
    }
    uint32_t *code = (uint32_t *)(void *)codes->data;
    const size_t count = codes->bytes / sizeof *code;
    for (size_t i = 0, end; i < count; i = end) {
        end = i + 1;
        if (!combining_class(code[i])) continue;
        while (end < count && combining_class(code[end])) end++;
        if (end > i + 1) order_marks(code + i, end - i, scratch);
    }
    const size_t kept = compose(code, count);
    for (size_t i = 0; i < kept; i++) {
        char text[4];
        ln_buffer_append(buffer, text, ln_utf8_write(code[i], text));
    }
}

void ln_nfc(ln_buffer *buffer, const char *text, size_t bytes) {
    ln_buffer codes = {.context = buffer->context}, scratch = {.context = buffer->context};
    size_t plain = 0; /* from here on nothing was appended yet */
    for (size_t at = 0; at < bytes;) {
        const size_t start = at;
        size_t length = ln_utf8_length(text + at, bytes - at), next;
        at += length;
        const uint32_t first = ln_utf8_code(text + start, length);
        for (; at < bytes && (unsigned char)text[at] >= 0xCC; at += next) {
            next = ln_utf8_length(text + at, bytes - at);
            if (!joins(ln_utf8_code(text + at, next))) break;
        }
        if (at == start + length && (first < 0x300 || (first >= 0x3400 && first < 0xA66F) || !decomposition(first)))
            continue;
        ln_buffer_append(buffer, text + plain, start - plain);
        codes.bytes = 0;
        for (size_t i = start; i < at; i += length) {
            length = ln_utf8_length(text + i, at - i);
            append_decomposed(&codes, ln_utf8_code(text + i, length));
        }
        finish_segment(buffer, &codes, &scratch);
        plain = at;
    }
    ln_buffer_append(buffer, text + plain, bytes - plain);
    ln_buffer_release(&codes);
    if (scratch.failed) buffer->failed = true;
    ln_buffer_release(&scratch);
}
