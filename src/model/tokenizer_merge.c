/* Owns: merging: the symbols of a piece (bytes or characters) become tokens, two neighbours at a time.
 *
 *   while some neighbours can merge: merge those of least (rank, position)
 *
 * The rank is that of the pair in the list of merges, or, where tokens have scores (SentencePiece), falls as the score
 * of the merged token rises. Candidates lie in a heap and symbols in a linked list, so a piece of n symbols takes
 * O(n log n). Invariant: a symbol's `merged` is what it and its next neighbour make now; a candidate whose `merged`
 * differs from it is out of date and skipped. */
#include <string.h>

#include "base/checked.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

void ln_encoder_emit(ln_encoder *encoder, int32_t id) {
    if (id < 0) return;
    if (encoder->count < encoder->capacity) encoder->ids[encoder->count] = id;
    encoder->count++;
    encoder->last = id;
}

/* ---- the heap ---- */

static void push(ln_encoder *encoder, ln_candidate candidate) {
    ln_candidate *heap = encoder->heap;
    int64_t at = encoder->heap_count++;
    for (; at > 0 && heap[(at - 1) / 2].order > candidate.order; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
}

static ln_candidate pop(ln_encoder *encoder) {
    ln_candidate *heap = encoder->heap;
    const ln_candidate least = heap[0], last = heap[--encoder->heap_count];
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < encoder->heap_count; at = child) {
        if (child + 1 < encoder->heap_count && heap[child + 1].order < heap[child].order) child++;
        if (heap[child].order >= last.order) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return least;
}

/* ---- which neighbours merge ---- */

static bool can_merge_into(const ln_vocabulary *vocabulary, int32_t id) {
    return id >= 0 && vocabulary->kinds[id] != LN_TOKEN_CONTROL && vocabulary->kinds[id] != LN_TOKEN_UNKNOWN &&
           vocabulary->kinds[id] != LN_TOKEN_BYTE;
}

/* Float order as unsigned order, reversed: the higher the score the lower the rank. */
static uint32_t rank_of_score(float score) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

static void consider(ln_encoder *encoder, const char *piece, int32_t left) {
    ln_symbol *symbols = encoder->symbols;
    const ln_vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
    if (left < 0) return;
    symbols[left].merged = LN_NO_TOKEN;
    const int32_t right = symbols[left].next;
    if (right < 0) return;
    uint32_t rank;
    if (vocabulary->scores) {
        const int32_t id =
            ln_vocabulary_find(vocabulary, piece + symbols[left].start, symbols[left].bytes + symbols[right].bytes);
        if (!can_merge_into(vocabulary, id)) return;
        symbols[left].merged = id;
        rank = rank_of_score(vocabulary->scores[id]);
    } else {
        if (symbols[left].id < 0 || symbols[right].id < 0) return;
        const ln_merge *merge = ln_vocabulary_merge(vocabulary, symbols[left].id, symbols[right].id);
        if (!merge) return;
        symbols[left].merged = merge->merged;
        rank = merge->rank;
    }
    push(encoder, (ln_candidate){.order = (uint64_t)rank << 32 | (uint32_t)left, .merged = symbols[left].merged});
}

static void merge_all(ln_encoder *encoder, const char *piece, int32_t count) {
    ln_symbol *symbols = encoder->symbols;
    encoder->heap_count = 0;
    for (int32_t i = 0; i < count; i++) consider(encoder, piece, i);
    while (encoder->heap_count) {
        const ln_candidate best = pop(encoder);
        const int32_t left = (int32_t)(best.order & UINT32_MAX);
        if (!symbols[left].bytes || symbols[left].merged != best.merged) continue;
        const int32_t right = symbols[left].next, next = symbols[right].next;
        symbols[left].id = best.merged;
        symbols[left].bytes += symbols[right].bytes;
        symbols[left].next = next;
        symbols[right].bytes = 0;
        if (next >= 0) symbols[next].previous = left;
        consider(encoder, piece, symbols[left].previous);
        consider(encoder, piece, left);
    }
}

/* ---- symbols ---- */

static bool reserve(ln_encoder *encoder, size_t symbols) {
    if ((int64_t)symbols <= encoder->symbol_capacity) return true;
    linnet_context *context = encoder->tokenizer->context;
    const uint64_t capacity = symbols + symbols / 2 + 64;
    ln_release(context, encoder->symbols);
    ln_release(context, encoder->heap);
    encoder->symbol_capacity = 0;
    encoder->symbols = ln_allocate(context, capacity, sizeof *encoder->symbols, "symbols of the tokenizer");
    encoder->heap = ln_allocate(context, 3 * capacity, sizeof *encoder->heap, "merges of the tokenizer");
    if (!encoder->symbols || !encoder->heap) {
        encoder->status = LINNET_ERROR_MEMORY;
        return false;
    }
    encoder->symbol_capacity = (int64_t)capacity;
    return true;
}

static void add_symbol(ln_symbol *symbols, int32_t *count, size_t start, size_t bytes, int32_t id) {
    const int32_t at = (*count)++;
    if (at > 0) symbols[at - 1].next = at;
    symbols[at] = (ln_symbol){
        .start = (uint32_t)start, .bytes = (uint32_t)bytes, .previous = at - 1, .next = -1, .id = id, .merged = -1};
}

/* A character without a token: its bytes' tokens where all are there, else the unknown token, else nothing. */
static void add_unknown(const ln_vocabulary *vocabulary, ln_symbol *symbols, int32_t *count, const char *piece,
                        size_t start, size_t bytes) {
    bool all = true;
    for (size_t i = 0; i < bytes; i++) all &= vocabulary->bytes[(unsigned char)piece[start + i]] >= 0;
    if (all) {
        for (size_t i = 0; i < bytes; i++)
            add_symbol(symbols, count, start + i, 1, vocabulary->bytes[(unsigned char)piece[start + i]]);
        return;
    }
    if (vocabulary->unknown < 0) return;
    ln_symbol *last = *count ? &symbols[*count - 1] : NULL;
    if (vocabulary->fuse_unknown && last && last->id == vocabulary->unknown && last->start + last->bytes == start)
        last->bytes += (uint32_t)bytes;
    else
        add_symbol(symbols, count, start, bytes, vocabulary->unknown);
}

static int32_t make_symbols(ln_encoder *encoder, const char *piece, size_t bytes) {
    const ln_vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
    int32_t count = 0;
    for (size_t at = 0, length; at < bytes; at += length) {
        length = vocabulary->byte_level ? 1 : ln_utf8_length(piece + at, bytes - at);
        int32_t id = LN_NO_TOKEN;
        if (vocabulary->byte_level)
            id = vocabulary->bytes[(unsigned char)piece[at]];
        else if (length)
            id = ln_vocabulary_find(vocabulary, piece + at, length);
        if (!length) length = 1;
        if (id >= 0 && (vocabulary->byte_level || can_merge_into(vocabulary, id)))
            add_symbol(encoder->symbols, &count, at, length, id);
        else if (vocabulary->scores) /* SentencePiece merges characters that are no tokens, too */
            add_symbol(encoder->symbols, &count, at, length, LN_NO_TOKEN);
        else
            add_unknown(vocabulary, encoder->symbols, &count, piece, at, length);
    }
    return count;
}

/* What SentencePiece leaves without a token, as bytes or unknown. */
static void emit_unmerged(ln_encoder *encoder, const char *piece, const ln_symbol *symbol) {
    const ln_vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
    ln_symbol rest[4];
    int32_t count = 0;
    add_unknown(vocabulary, rest, &count, piece, symbol->start, symbol->bytes);
    for (int32_t i = 0; i < count; i++) {
        const bool unknown = rest[i].id == vocabulary->unknown;
        if (!(unknown && vocabulary->fuse_unknown && encoder->last == vocabulary->unknown))
            ln_encoder_emit(encoder, rest[i].id);
    }
}

/* A byte that begins no piece is the unknown token, or dropped. */
static void encode_greedily(ln_encoder *encoder, const char *piece, size_t bytes) {
    const ln_vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
    while (bytes > 0) {
        size_t count = bytes < vocabulary->longest ? bytes : vocabulary->longest;
        int32_t id = LN_NO_TOKEN;
        for (; count > 0; count--) {
            id = ln_vocabulary_find(vocabulary, piece, count);
            if (can_merge_into(vocabulary, id)) break;
        }
        if (count == 0) id = vocabulary->unknown;
        if (id >= 0) ln_encoder_emit(encoder, id);
        if (count == 0) count = 1;
        piece += count;
        bytes -= count;
    }
}

void ln_encode_piece(ln_encoder *encoder, const char *piece, size_t bytes) {
    const ln_vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
    if (!bytes || encoder->status != LINNET_OK) return;
    if (vocabulary->greedy) {
        encode_greedily(encoder, piece, bytes);
        return;
    }
    const int32_t id = ln_vocabulary_find(vocabulary, piece, bytes);
    const bool known = can_merge_into(vocabulary, id);
    if (known && (vocabulary->ignore_merges || vocabulary->whole[id] == 1)) {
        ln_encoder_emit(encoder, id);
        return;
    }
    if (!reserve(encoder, bytes)) return;
    const int32_t count = make_symbols(encoder, piece, bytes);
    merge_all(encoder, piece, count);
    if (!count) return;
    const ln_symbol *symbols = encoder->symbols;
    if (known) vocabulary->whole[id] = symbols[0].next < 0 && symbols[0].id == id ? 1 : 2;
    for (int32_t i = 0; i >= 0; i = symbols[i].next) {
        if (symbols[i].id >= 0)
            ln_encoder_emit(encoder, symbols[i].id);
        else
            emit_unmerged(encoder, piece, &symbols[i]);
    }
}
