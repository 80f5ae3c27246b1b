/* Owns: the vocabulary: pieces by id, ids by piece, merges by pair.
 *
 * Pieces lie in one block behind one table of offsets; the two hashes are open-addressed, at most two thirds full, and
 * hold nothing but numbers. Building allocates a handful of blocks whatever the size. Invariant: every slot's id is in
 * [0, size), and of equal pieces one that merging may make, then the
 * first, stands in the hash. */
#include <string.h>

#include "base/checked.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

/* ---- GPT-2's alphabet: a printable character for each byte; the others, in order, are U+0100 and up ---- */

static bool is_printable_byte(unsigned byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static uint32_t code_of_byte(unsigned byte) {
    if (is_printable_byte(byte)) return byte;
    if (byte <= 32) return 256 + byte;
    return byte <= 160 ? 256 + 33 + byte - 127 : 256 + 67;
}

void ln_byte_character(unsigned char byte, char text[3]) {
    text[ln_utf8_write(code_of_byte(byte), text)] = 0;
}

/* The byte of a character, -1 where it is none of the alphabet. */
static int byte_of_code(uint32_t code) {
    if (code < 256) return is_printable_byte(code) ? (int)code : -1;
    if (code <= 288) return (int)code - 256;
    if (code <= 322) return (int)code - 289 + 127;
    return code == 323 ? 173 : -1;
}

/* Writes the bytes that text stands for; SIZE_MAX where text is not of the alphabet. out may be text. */
static size_t decode_alphabet(const char *text, size_t bytes, char *out) {
    size_t count = 0;
    for (size_t at = 0; at < bytes;) {
        const size_t length = ln_utf8_length(text + at, bytes - at);
        if (!length || length > 2) return SIZE_MAX;
        const int byte = byte_of_code(ln_utf8_code(text + at, length));
        if (byte < 0) return SIZE_MAX;
        out[count++] = (char)byte;
        at += length;
    }
    return count;
}

/* ---- pieces ---- */

enum { LONGEST_WRITTEN = 4096 }; /* bytes; longer pieces take part in no merges */

static uint32_t hash_bytes(const char *bytes, size_t count) {
    uint64_t hash = 0x9E3779B97F4A7C15u ^ count;
    for (; count >= 8; count -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    uint64_t word = 0;
    memcpy(&word, bytes, count);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
    hash *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(hash >> 32);
}

static int32_t find_hashed(const ln_vocabulary *vocabulary, uint32_t hash, const char *bytes, size_t count) {
    for (uint32_t at = hash & vocabulary->slot_mask;; at = (at + 1) & vocabulary->slot_mask) {
        const ln_piece_slot *slot = &vocabulary->slots[at];
        if (slot->id < 0) return LN_NO_TOKEN;
        if (slot->hash != hash) continue;
        size_t length;
        const char *piece = ln_table_bytes(&vocabulary->pieces, slot->id, &length);
        if (length == count && memcmp(piece, bytes, count) == 0) return slot->id;
    }
}

int32_t ln_vocabulary_find(const ln_vocabulary *vocabulary, const char *bytes, size_t count) {
    if (!count || count > vocabulary->longest) return LN_NO_TOKEN;
    return find_hashed(vocabulary, hash_bytes(bytes, count), bytes, count);
}

/* The text as pieces have it: decoded to the buffer, or itself where it is not of the alphabet or too long for it. */
static ln_text raw_form(const ln_vocabulary *vocabulary, ln_text text, char *buffer, size_t capacity) {
    if (!vocabulary->byte_level || text.bytes > capacity) return text;
    const size_t count = decode_alphabet(text.data, text.bytes, buffer);
    return count == SIZE_MAX ? text : (ln_text){buffer, count};
}

int32_t ln_vocabulary_find_written(const ln_vocabulary *vocabulary, ln_text text) {
    char buffer[LONGEST_WRITTEN];
    const ln_text raw = raw_form(vocabulary, text, buffer, sizeof buffer);
    return ln_vocabulary_find(vocabulary, raw.data, raw.bytes);
}

/* The least power of two of slots that `count` entries fill at most two thirds. */
static uint64_t slots_for(uint64_t count) {
    uint64_t slots = 16;
    while (slots / 3 * 2 < count) slots *= 2;
    return slots;
}

static bool is_text(uint8_t kind) {
    return kind == LN_TOKEN_NORMAL || kind == LN_TOKEN_BYTE;
}

static void hash_piece(ln_vocabulary *vocabulary, int32_t id) {
    size_t count;
    const char *bytes = ln_table_bytes(&vocabulary->pieces, id, &count);
    if (!count) return;
    if (count > vocabulary->longest) vocabulary->longest = count;
    const uint32_t hash = hash_bytes(bytes, count);
    if (find_hashed(vocabulary, hash, bytes, count) >= 0) return;
    uint32_t at = hash & vocabulary->slot_mask;
    while (vocabulary->slots[at].id >= 0) at = (at + 1) & vocabulary->slot_mask;
    vocabulary->slots[at] = (ln_piece_slot){.hash = hash, .id = id};
}

static linnet_status build_hash(ln_vocabulary *vocabulary) {
    const uint64_t slots = slots_for((uint64_t)vocabulary->size);
    vocabulary->slots = ln_allocate(vocabulary->context, slots, sizeof *vocabulary->slots, "vocabulary");
    if (!vocabulary->slots) return LINNET_ERROR_MEMORY;
    memset(vocabulary->slots, 0xFF, slots * sizeof *vocabulary->slots);
    vocabulary->slot_mask = (uint32_t)(slots - 1);
    for (int others = 0; others < 2; others++)
        for (int64_t id = 0; id < vocabulary->size; id++)
            if (is_text(vocabulary->kinds[id]) != (others == 1)) hash_piece(vocabulary, (int32_t)id);
    return LINNET_OK;
}

linnet_status ln_vocabulary_build(ln_vocabulary *vocabulary, const ln_text *texts, int64_t count, bool byte_level) {
    vocabulary->size = count;
    vocabulary->byte_level = byte_level;
    uint64_t total = 0;
    for (int64_t id = 0; id < count; id++)
        if (!ln_add_u64(total, texts[id].bytes, &total)) total = UINT64_MAX;
    if (total > INT32_MAX)
        return ln_fail(vocabulary->context, LINNET_ERROR_FORMAT, "the texts of the tokens have more than 2 GiB");
    vocabulary->pieces.offsets = ln_allocate(vocabulary->context, (uint64_t)count + 1, sizeof(uint32_t), "vocabulary");
    vocabulary->pieces.bytes = ln_allocate(vocabulary->context, total, 1, "vocabulary");
    vocabulary->whole = ln_allocate_zero(vocabulary->context, (uint64_t)count, 1, "vocabulary");
    if (!vocabulary->pieces.offsets || !vocabulary->pieces.bytes || !vocabulary->whole) return LINNET_ERROR_MEMORY;
    uint32_t at = 0;
    for (int64_t id = 0; id < count; id++) {
        vocabulary->pieces.offsets[id] = at;
        const ln_text text = texts[id];
        if (!text.bytes) continue;
        char *out = vocabulary->pieces.bytes + at;
        const bool in_alphabet = byte_level && is_text(vocabulary->kinds[id]);
        size_t bytes = in_alphabet ? decode_alphabet(text.data, text.bytes, out) : SIZE_MAX;
        if (bytes == SIZE_MAX) {
            bytes = text.bytes;
            memcpy(out, text.data, bytes);
            if (in_alphabet) vocabulary->kinds[id] = LN_TOKEN_UNUSED; /* no text can become it */
        }
        at += (uint32_t)bytes;
    }
    vocabulary->pieces.offsets[count] = at;
    return build_hash(vocabulary);
}

void ln_vocabulary_close(ln_vocabulary *vocabulary) {
    void *blocks[] = {vocabulary->pieces.offsets, vocabulary->pieces.bytes, vocabulary->written.offsets,
                      vocabulary->written.bytes,  vocabulary->kinds,        vocabulary->whole,
                      vocabulary->scores,         vocabulary->slots,        vocabulary->merges};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) ln_release(vocabulary->context, blocks[i]);
}

/* ---- merges ---- */

static uint32_t hash_pair(int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
    return (uint32_t)((hash * 0xBF58476D1CE4E5B9u) >> 32);
}

linnet_status ln_vocabulary_reserve_merges(ln_vocabulary *vocabulary, uint64_t count) {
    if (count > INT32_MAX) return ln_fail(vocabulary->context, LINNET_ERROR_FORMAT, "more than 2^31 merges");
    const uint64_t slots = slots_for(count);
    vocabulary->merges = ln_allocate(vocabulary->context, slots, sizeof *vocabulary->merges, "merges of the tokenizer");
    if (!vocabulary->merges) return LINNET_ERROR_MEMORY;
    memset(vocabulary->merges, 0xFF, slots * sizeof *vocabulary->merges);
    vocabulary->merge_mask = (uint32_t)(slots - 1);
    return LINNET_OK;
}

static ln_merge *merge_slot(const ln_vocabulary *vocabulary, int32_t left, int32_t right) {
    for (uint32_t at = hash_pair(left, right) & vocabulary->merge_mask;; at = (at + 1) & vocabulary->merge_mask) {
        ln_merge *merge = &vocabulary->merges[at];
        if (merge->left < 0 || (merge->left == left && merge->right == right)) return merge;
    }
}

const ln_merge *ln_vocabulary_merge(const ln_vocabulary *vocabulary, int32_t left, int32_t right) {
    const ln_merge *merge = merge_slot(vocabulary, left, right);
    return merge->left < 0 ? NULL : merge;
}

/* Finds many texts at once: the three places in memory that each look-up needs are asked for ahead, all of them in
 * turn, so that the waits overlap. */
static void find_many(const ln_vocabulary *vocabulary, const ln_text *texts, int count, int32_t *ids) {
    enum { SHORT = 64 };
    char buffers[2 * LN_MERGE_BATCH][SHORT];
    ln_text raw[2 * LN_MERGE_BATCH];
    uint32_t hashes[2 * LN_MERGE_BATCH];
    for (int i = 0; i < count; i++) {
        raw[i] = raw_form(vocabulary, texts[i], buffers[i], SHORT);
        hashes[i] = hash_bytes(raw[i].data, raw[i].bytes);
        __builtin_prefetch(&vocabulary->slots[hashes[i] & vocabulary->slot_mask]);
    }
    for (int i = 0; i < count; i++) {
        ids[i] = vocabulary->slots[hashes[i] & vocabulary->slot_mask].id;
        __builtin_prefetch(&vocabulary->pieces.offsets[ids[i] < 0 ? 0 : ids[i]]);
    }
    for (int i = 0; i < count; i++)
        __builtin_prefetch(vocabulary->pieces.bytes + vocabulary->pieces.offsets[ids[i] < 0 ? 0 : ids[i]]);
    for (int i = 0; i < count; i++) {
        const bool too_long = vocabulary->byte_level && texts[i].bytes > SHORT;
        ids[i] = too_long ? ln_vocabulary_find_written(vocabulary, texts[i])
                          : find_hashed(vocabulary, hashes[i], raw[i].data, raw[i].bytes);
    }
}

static bool is_joined(const ln_vocabulary *vocabulary, int32_t id, ln_text left, ln_text right) {
    if (id >= vocabulary->size) return false;
    size_t bytes;
    const char *piece = ln_table_bytes(&vocabulary->pieces, id, &bytes);
    return bytes == left.bytes + right.bytes && memcmp(piece, left.data, left.bytes) == 0 &&
           memcmp(piece + left.bytes, right.data, right.bytes) == 0;
}

/* The token of the two pieces together. `guess`: of the merge before; in most files the same token or the next. */
static int32_t find_joined(const ln_vocabulary *vocabulary, int32_t left, int32_t right, int32_t guess) {
    ln_text a, b;
    a.data = ln_table_bytes(&vocabulary->pieces, left, &a.bytes);
    b.data = ln_table_bytes(&vocabulary->pieces, right, &b.bytes);
    for (int32_t id = guess; id <= guess + 1; id++)
        if (is_joined(vocabulary, id, a, b) && vocabulary->kinds[id] == LN_TOKEN_NORMAL) return id;
    char joined[LONGEST_WRITTEN];
    if (a.bytes + b.bytes > sizeof joined) return LN_NO_TOKEN;
    memcpy(joined, a.data, a.bytes);
    memcpy(joined + a.bytes, b.data, b.bytes);
    return ln_vocabulary_find(vocabulary, joined, a.bytes + b.bytes);
}

int ln_vocabulary_add_merges(ln_vocabulary *vocabulary, const ln_text *pairs, int count, uint32_t rank, int *first) {
    int32_t ids[2 * LN_MERGE_BATCH], merged[LN_MERGE_BATCH];
    int strays = 0;
    find_many(vocabulary, pairs, 2 * count, ids);
    for (int i = 0; i < count; i++) {
        const bool both = ids[2 * i] >= 0 && ids[2 * i + 1] >= 0;
        merged[i] = both ? find_joined(vocabulary, ids[2 * i], ids[2 * i + 1], vocabulary->guess) : LN_NO_TOKEN;
        if (merged[i] < 0) {
            if (!strays++) *first = i;
            continue;
        }
        vocabulary->guess = merged[i];
        __builtin_prefetch(&vocabulary->merges[hash_pair(ids[2 * i], ids[2 * i + 1]) & vocabulary->merge_mask]);
    }
    for (int i = 0; i < count; i++) {
        if (merged[i] < 0) continue;
        const ln_merge merge = {ids[2 * i], ids[2 * i + 1], rank + (uint32_t)i, merged[i]};
        *merge_slot(vocabulary, merge.left, merge.right) = merge;
    }
    return strays;
}

/* ---- bytes and marks ---- */

int ln_vocabulary_find_bytes(ln_vocabulary *vocabulary) {
    static const char digits[] = "0123456789ABCDEF";
    int found = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        const char lone = (char)byte;
        const char written[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        vocabulary->bytes[byte] = vocabulary->byte_level ? ln_vocabulary_find(vocabulary, &lone, 1)
                                                         : ln_vocabulary_find(vocabulary, written, 6);
        found += vocabulary->bytes[byte] >= 0;
    }
    return found;
}

bool ln_vocabulary_cuts_at_marks(const ln_vocabulary *vocabulary) {
    const size_t mark = sizeof LN_SPACE_MARK - 1;
    if (ln_vocabulary_find(vocabulary, LN_SPACE_MARK, mark) < 0) return false;
    for (int64_t id = 0; id < vocabulary->size; id++) {
        const uint8_t kind = vocabulary->kinds[id];
        if (kind == LN_TOKEN_CONTROL || kind == LN_TOKEN_UNKNOWN || kind == LN_TOKEN_BYTE) continue;
        size_t bytes;
        const char *piece = ln_table_bytes(&vocabulary->pieces, id, &bytes);
        bool other = false;
        for (size_t at = 0; at < bytes;) {
            const bool is_mark = bytes - at >= mark && memcmp(piece + at, LN_SPACE_MARK, mark) == 0;
            if (is_mark && other) return false;
            other |= !is_mark;
            at += is_mark ? mark : 1;
        }
    }
    return true;
}
