/* Owns: added tokens: cutting them out of text, the leftmost first and of those the longest.
 *
 * The tokens are sorted, so those that begin with the bytes seen so far are neighbours, and each further byte narrows
 * the range by two binary searches: a trie without nodes. */
#include <string.h>

#include "model/tokenizer.h"
#include "model/utf8.h"

static int compare_added(const void *rows, int64_t left, int64_t right) {
    const ln_added *a = (const ln_added *)rows + left, *b = (const ln_added *)rows + right;
    const size_t common = a->bytes < b->bytes ? a->bytes : b->bytes;
    const int order = memcmp(a->text, b->text, common);
    if (order) return order;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

linnet_status ln_added_open(linnet_context *context, const ln_added *tokens, int64_t count, bool normalised,
                            ln_added_set *set) {
    int64_t *order = ln_allocate(context, (uint64_t)count, sizeof *order, "added tokens");
    set->tokens = ln_allocate(context, (uint64_t)count, sizeof *tokens, "added tokens");
    if (order && set->tokens) {
        ln_sort_rows(order, count, compare_added, tokens);
        for (int64_t i = 0; i < count; i++)
            if (tokens[order[i]].normalised == normalised && tokens[order[i]].bytes)
                set->tokens[set->count++] = tokens[order[i]];
    }
    const bool made = order && set->tokens;
    ln_release(context, order);
    int64_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        set->first[byte] = (uint32_t)at;
        while (at < set->count && (unsigned char)set->tokens[at].text[0] == byte) at++;
    }
    set->first[256] = (uint32_t)at;
    return made ? LINNET_OK : LINNET_ERROR_MEMORY;
}

/* First token of [low, high) whose byte at `depth` is at least `byte`; tokens of just `depth` bytes stand first. */
static uint32_t bound(const ln_added_set *set, uint32_t low, uint32_t high, size_t depth, int byte) {
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const ln_added *token = &set->tokens[middle];
        const int value = token->bytes > depth ? (unsigned char)token->text[depth] : -1;
        if (value < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that text begins with. */
static const ln_added *longest(const ln_added_set *set, const char *text, size_t bytes, bool special) {
    const ln_added *best = NULL;
    uint32_t low = set->first[(unsigned char)text[0]], high = set->first[(unsigned char)text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        for (uint32_t i = low; i < high && set->tokens[i].bytes == depth; i++)
            if (special || !set->tokens[i].special) best = &set->tokens[i];
        if (depth == bytes) break;
        const int byte = (unsigned char)text[depth];
        low = bound(set, low, high, depth, byte);
        high = bound(set, low, high, depth, byte + 1);
    }
    return best;
}

/* ---- white space and words around a match ---- */

static size_t last_character(const char *text, size_t bytes) {
    size_t length = 1;
    while (length < 4 && length < bytes && ((unsigned char)text[bytes - length] & 0xC0) == 0x80) length++;
    return bytes && ln_utf8_length(text + bytes - length, length) == length ? length : 0;
}

static bool is_space_at(const char *text, size_t length) {
    return length && ln_is_space(ln_utf8_code(text, length));
}

static bool is_word_at(const linnet_tokenizer *tokenizer, const char *text, size_t length) {
    size_t start, end;
    return length && tokenizer->word && ln_regex_find(tokenizer->word, text, length, 0, &start, &end) == LINNET_OK &&
           start == 0;
}

static bool stands_alone(const linnet_tokenizer *tokenizer, const char *text, size_t bytes, size_t start, size_t end) {
    const size_t before = last_character(text, start);
    const size_t after = end < bytes ? ln_utf8_length(text + end, bytes - end) : 0;
    return !is_word_at(tokenizer, text + start - before, before) && !is_word_at(tokenizer, text + end, after);
}

void ln_encode_added(ln_encoder *encoder, const ln_added_set *set, int step, const char *text, size_t bytes,
                     bool at_start) {
    const bool special = encoder->flags & LINNET_TOKENIZE_SPECIAL;
    size_t done = 0;
    for (size_t at = 0; at < bytes && encoder->status == LINNET_OK;) {
        const unsigned char byte = (unsigned char)text[at];
        const ln_added *found =
            set->first[byte] == set->first[byte + 1] ? NULL : longest(set, text + at, bytes - at, special);
        if (!found) {
            at++;
            continue;
        }
        size_t start = at, end = at + found->bytes;
        at = end;
        if (found->single_word && !stands_alone(encoder->tokenizer, text, bytes, start, end)) continue;
        for (size_t length; found->left_strip && start > done; start -= length) {
            length = last_character(text + done, start - done);
            if (!is_space_at(text + start - length, length)) break;
        }
        for (size_t length; found->right_strip && end < bytes; end += length) {
            length = ln_utf8_length(text + end, bytes - end);
            if (!is_space_at(text + end, length)) break;
        }
        ln_encode_stretch(encoder, step, text + done, start - done, at_start && done == 0);
        ln_encoder_emit(encoder, found->id);
        done = at = end;
    }
    ln_encode_stretch(encoder, step, text + done, bytes - done, at_start && done == 0);
}
