/* Owns: a key-value memory in a session file.
 *
 *     "pages", version, precision, page tokens, layers, key-value heads, key size, value size, position   (i64 each)
 *     for each layer: window, first page, pages                                                            (i64 each)
 *     for each layer, page, head: the page
 *
 * Of the last page, tokens not yet written are stored as zeros. */
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/page.h"
#include "memory/pages_inside.h"

enum { PAGES_TAG = 0x7365676170 /* "pages" */, PAGES_VERSION = 1, PAGE_BYTES_MOST = 8 * LN_PAGE_TOKENS * LN_HEAD_MOST };

static const unsigned char *page_at(const ln_memory *memory, const ln_memory_layer *layer, int64_t page, int64_t head) {
    return memory->slots[layer->first + page % layer->slots] + (uint64_t)(head * layer->run) * memory->layout.bytes;
}

/* ---- writing ---- */

static void put_partial_page(ln_state_writer *writer, const ln_page_layout *layout, const unsigned char *page,
                             int64_t valid) {
    unsigned char copy[PAGE_BYTES_MOST];
    memcpy(copy, page, layout->bytes);
    ln_page_clear(layout, copy, valid);
    ln_state_put(writer, copy, layout->bytes);
}

void ln_memory_write(const ln_memory *memory, ln_state_writer *writer) {
    const ln_page_layout *layout = &memory->layout;
    const int64_t head[] = {PAGES_TAG,        PAGES_VERSION,        layout->key_type,
                            LN_PAGE_TOKENS,   memory->shape.layers, memory->shape.key_value_heads,
                            layout->key_size, layout->value_size,   memory->position};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) ln_state_put_i64(writer, head[i]);
    const int64_t end = ln_ceil_div(memory->position, LN_PAGE_TOKENS), valid = memory->position % LN_PAGE_TOKENS;
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        const int64_t first = memory->layers[l].kept / LN_PAGE_TOKENS;
        ln_state_put_i64(writer, memory->layers[l].window);
        ln_state_put_i64(writer, first);
        ln_state_put_i64(writer, end - first);
    }
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        const ln_memory_layer *layer = &memory->layers[l];
        for (int64_t page = layer->kept / LN_PAGE_TOKENS; page < end; page++) {
            for (int64_t h = 0; h < memory->shape.key_value_heads; h++) {
                const unsigned char *data = page_at(memory, layer, page, h);
                if (valid && page == end - 1)
                    put_partial_page(writer, layout, data, valid);
                else
                    ln_state_put(writer, data, layout->bytes);
            }
        }
    }
}

/* ---- reading ---- */

static linnet_status refuse(const ln_memory *memory, const ln_state_reader *reader, const char *what, int64_t found,
                            int64_t expected) {
    return ln_fail(memory->context, LINNET_ERROR_FORMAT,
                   "session file %s does not fit this session: its %s is %" PRId64 ", here it is %" PRId64,
                   reader->path, what, found, expected);
}

static linnet_status cut_off(const ln_memory *memory, const ln_state_reader *reader) {
    return ln_fail(memory->context, LINNET_ERROR_FORMAT, "session file %s holds less than its header says",
                   reader->path);
}

static linnet_status read_head(const ln_memory *memory, ln_state_reader *reader, int64_t *position) {
    const struct {
        const char *name;
        int64_t value;
    } expected[] = {
        {"section mark", PAGES_TAG},
        {"page version", PAGES_VERSION},
        {"precision", memory->layout.key_type},
        {"page size", LN_PAGE_TOKENS},
        {"number of layers", memory->shape.layers},
        {"number of key-value heads", memory->shape.key_value_heads},
        {"key size", memory->layout.key_size},
        {"value size", memory->layout.value_size},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int64_t found;
        if (!ln_state_take_i64(reader, &found)) return cut_off(memory, reader);
        if (found != expected[i].value) return refuse(memory, reader, expected[i].name, found, expected[i].value);
    }
    if (!ln_state_take_i64(reader, position)) return cut_off(memory, reader);
    if (*position < 0 || *position > memory->shape.capacity)
        return refuse(memory, reader, "number of tokens", *position, memory->shape.capacity);
    return LINNET_OK;
}

/* Reads the pages of all layers, and with `store` keeps them. Without, nothing changes: what can be wrong is found. */
static linnet_status read_pages(ln_memory *memory, ln_state_reader *reader, int64_t position, bool store) {
    const int64_t end = ln_ceil_div(position, LN_PAGE_TOKENS), heads = memory->shape.key_value_heads;
    ln_state_reader pages = *reader;
    if (!ln_state_take(&pages, (uint64_t)memory->shape.layers * 3 * sizeof(int64_t))) return cut_off(memory, reader);
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        ln_memory_layer *layer = &memory->layers[l];
        int64_t window, first, count;
        if (!ln_state_take_i64(reader, &window) || !ln_state_take_i64(reader, &first) ||
            !ln_state_take_i64(reader, &count))
            return cut_off(memory, reader);
        if (window != layer->window) return refuse(memory, reader, "window of a layer", window, layer->window);
        if (first < 0 || first > end || count != end - first) return refuse(memory, reader, "page count", count, end);
        const int64_t least = layer->window ? ln_max_i64(0, position - layer->window + 1) : 0;
        if (first * LN_PAGE_TOKENS > least)
            return refuse(memory, reader, "first position", first * LN_PAGE_TOKENS, least);
        for (int64_t page = first; page < end; page++) {
            const bool keep = store && page >= end - layer->slots;
            unsigned char *to = keep ? ln_memory_writable(memory, layer, page % layer->slots, false) : NULL;
            for (int64_t h = 0; h < heads; h++) {
                const void *data = ln_state_take(&pages, memory->layout.bytes);
                if (!data) return cut_off(memory, reader);
                if (to) memcpy(to + (uint64_t)(h * layer->run) * memory->layout.bytes, data, memory->layout.bytes);
            }
        }
        if (store) {
            layer->appended = 0;
            layer->kept = ln_max_i64(first, end - layer->slots) * LN_PAGE_TOKENS;
        }
    }
    *reader = pages;
    return LINNET_OK;
}

linnet_status ln_memory_read(ln_memory *memory, ln_state_reader *reader) {
    int64_t position;
    linnet_status status = read_head(memory, reader, &position);
    if (status != LINNET_OK) return status;
    ln_state_reader trial = *reader;
    status = read_pages(memory, &trial, position, false);
    if (status != LINNET_OK) return status;
    status = read_pages(memory, reader, position, true);
    if (status == LINNET_OK) memory->position = position;
    return status;
}
