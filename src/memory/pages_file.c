/* Owns: a key-value memory in a session file.
 *
 *     "pages", version 1 without a policy, 2 with one; 2 more where there are recurrent states              (i64 each)
 *     under a policy: bytes of its text                                                                     (i64), the
 * text precision, page tokens, layers, key-value heads, key size, value size, position   (i64 each) for each layer:
 * window, first page, pages                                                            (i64 each) for each layer, page,
 * head: the page under a policy: the lanes (ragged_file.c), whose layers have no pages here; the
 * recurrent states (states.c)
 *
 * Of the last page, tokens not yet written are stored as zeros. */
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/page.h"
#include "memory/pages_inside.h"

enum {
    PAGES_TAG = 0x7365676170 /* "pages" */,
    PAGES_VERSION = 1,
    LANES_VERSION = 2,
    STATES = 2 /* more */,
    POLICY_MOST = 1024
};

static const unsigned char *page_at(const ln_memory *memory, const ln_memory_layer *layer, int64_t page, int64_t head) {
    return memory->slots[layer->first + page % layer->slots] + (uint64_t)(head * layer->run) * memory->layout.bytes;
}

/* Pages of a layer's slots; it may have none. */
static int64_t end_of(const ln_memory_layer *layer, int64_t position) {
    return layer->slots ? ln_ceil_div(position, LN_PAGE_TOKENS) : 0;
}

static void put_policy(const ln_memory *memory, ln_state_writer *writer) {
    char text[POLICY_MOST];
    ln_policy_text(&memory->policy, text, sizeof text);
    const int64_t bytes = (int64_t)strlen(text);
    ln_state_put_i64(writer, bytes);
    ln_state_put(writer, text, (uint64_t)bytes);
}

/* ---- writing ---- */

static int64_t version_of(const ln_memory *memory) {
    return (memory->lanes ? LANES_VERSION : PAGES_VERSION) + (memory->states ? STATES : 0);
}

linnet_status ln_memory_check_write(const ln_memory *memory) {
    if (!memory->lanes || ln_ragged_writes(memory->lanes)) return LINNET_OK;
    return ln_fail(memory->context, LINNET_ERROR_UNSUPPORTED,
                   "sessions under policy %s, which chooses pages or keeps them in a file, cannot be saved",
                   memory->policy.row->name);
}

linnet_status ln_memory_write(const ln_memory *memory, ln_state_writer *writer) {
    const ln_page_layout *layout = &memory->layout;
    ln_state_put_i64(writer, PAGES_TAG);
    ln_state_put_i64(writer, version_of(memory));
    if (memory->lanes) put_policy(memory, writer);
    const int64_t head[] = {layout->key_type, LN_PAGE_TOKENS,     memory->shape.layers, memory->shape.key_value_heads,
                            layout->key_size, layout->value_size, memory->position};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) ln_state_put_i64(writer, head[i]);
    const int64_t valid = memory->position % LN_PAGE_TOKENS;
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        const ln_memory_layer *layer = &memory->layers[l];
        const int64_t end = end_of(layer, memory->position), first = layer->kept / LN_PAGE_TOKENS;
        ln_state_put_i64(writer, layer->window);
        ln_state_put_i64(writer, first);
        ln_state_put_i64(writer, end - first);
    }
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        const ln_memory_layer *layer = &memory->layers[l];
        const int64_t end = end_of(layer, memory->position);
        for (int64_t page = layer->kept / LN_PAGE_TOKENS; page < end; page++)
            for (int64_t h = 0; h < memory->shape.key_value_heads; h++)
                ln_state_put_page(writer, layout, page_at(memory, layer, page, h),
                                  valid && page == end - 1 ? valid : LN_PAGE_TOKENS);
    }
    const linnet_status status = memory->lanes ? ln_ragged_write(memory->lanes, writer) : LINNET_OK;
    if (memory->states) ln_states_write(memory->states, writer);
    return status;
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

/* Which policy the file was saved under, against that of this memory. */
static linnet_status read_policy(const ln_memory *memory, ln_state_reader *reader, int64_t version) {
    char saved[POLICY_MOST] = "", here[POLICY_MOST];
    int64_t bytes = 0;
    if (version == LANES_VERSION && (!ln_state_take_i64(reader, &bytes) || bytes < 0 || bytes >= POLICY_MOST ||
                                     !ln_state_take(reader, saved, (uint64_t)bytes)))
        return cut_off(memory, reader);
    for (int64_t i = 0; i < bytes; i++)
        if (saved[i] < ' ' || saved[i] > '~') saved[i] = '?';
    if (memory->lanes) ln_policy_text(&memory->policy, here, sizeof here);
    if (!memory->lanes && version == PAGES_VERSION) return LINNET_OK;
    if (!memory->lanes)
        return ln_fail(memory->context, LINNET_ERROR_FORMAT,
                       "session file %s was saved under the policy %s; this session has none: open it with that one",
                       reader->path, saved);
    if (version == PAGES_VERSION)
        return ln_fail(memory->context, LINNET_ERROR_FORMAT,
                       "session file %s was saved without a policy; this session has %s: open it without one",
                       reader->path, here);
    if (strcmp(saved, here) != 0)
        return ln_fail(memory->context, LINNET_ERROR_FORMAT,
                       "session file %s was saved under the policy %s, this session has %s: open it with the first",
                       reader->path, saved, here);
    return LINNET_OK;
}

static linnet_status read_head(const ln_memory *memory, ln_state_reader *reader, int64_t *position) {
    int64_t tag, version;
    if (!ln_state_take_i64(reader, &tag) || !ln_state_take_i64(reader, &version)) return cut_off(memory, reader);
    if (tag != PAGES_TAG) return refuse(memory, reader, "section mark", tag, PAGES_TAG);
    const int64_t states = memory->states ? STATES : 0;
    version -= states;
    if (version != PAGES_VERSION && version != LANES_VERSION)
        return refuse(memory, reader, "page version", version + states, version_of(memory));
    linnet_status status = read_policy(memory, reader, version);
    if (status == LINNET_OK) status = ln_memory_check_write(memory);
    if (status != LINNET_OK) return status;
    const struct {
        const char *name;
        int64_t value;
    } expected[] = {
        {"precision", memory->layout.key_type},     {"page size", LN_PAGE_TOKENS},
        {"number of layers", memory->shape.layers}, {"number of key-value heads", memory->shape.key_value_heads},
        {"key size", memory->layout.key_size},      {"value size", memory->layout.value_size},
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
    const int64_t heads = memory->shape.key_value_heads;
    ln_state_reader pages = *reader;
    if (!ln_state_take(&pages, NULL, (uint64_t)memory->shape.layers * 3 * sizeof(int64_t)))
        return cut_off(memory, reader);
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        ln_memory_layer *layer = &memory->layers[l];
        const int64_t end = end_of(layer, position);
        int64_t window, first, count;
        if (!ln_state_take_i64(reader, &window) || !ln_state_take_i64(reader, &first) ||
            !ln_state_take_i64(reader, &count))
            return cut_off(memory, reader);
        if (window != layer->window) return refuse(memory, reader, "window of a layer", window, layer->window);
        if (first < 0 || first > end || count != end - first) return refuse(memory, reader, "page count", count, end);
        const int64_t least = layer->window ? ln_max_i64(0, position - layer->window + 1) : 0;
        if (layer->slots && first * LN_PAGE_TOKENS > least)
            return refuse(memory, reader, "first position", first * LN_PAGE_TOKENS, least);
        for (int64_t page = first; page < end; page++) {
            const bool keep = store && page >= end - layer->slots;
            unsigned char *to = keep ? ln_memory_writable(memory, layer, page % layer->slots, false) : NULL;
            for (int64_t h = 0; h < heads; h++)
                if (!ln_state_take(&pages, to ? to + (uint64_t)(h * layer->run) * memory->layout.bytes : NULL,
                                   memory->layout.bytes))
                    return cut_off(memory, reader);
        }
        if (store) {
            layer->appended = 0;
            layer->kept = ln_max_i64(first, end - layer->slots) * LN_PAGE_TOKENS;
        }
    }
    *reader = pages;
    return LINNET_OK;
}

linnet_status ln_memory_read(ln_memory *memory, ln_state_reader *reader, int64_t expected) {
    int64_t position;
    linnet_status status = read_head(memory, reader, &position);
    if (status != LINNET_OK) return status;
    if (expected >= 0 && position != expected) return refuse(memory, reader, "number of tokens", position, expected);
    for (int store = 0; store < 2; store++) {
        ln_state_reader part = *reader;
        status = read_pages(memory, &part, position, store);
        if (status == LINNET_OK && memory->lanes) status = ln_ragged_read(memory->lanes, &part, position, store);
        if (status == LINNET_OK && memory->states && !ln_states_read(memory->states, &part, store))
            status = ln_fail(memory->context, LINNET_ERROR_FORMAT,
                             "session file %s does not hold the recurrent states of this model", reader->path);
        if (status != LINNET_OK) {
            if (store) ln_memory_rewind(memory, 0);
            return status;
        }
        if (store) *reader = part;
    }
    memory->position = position;
    return LINNET_OK;
}

/* ---- memory on a device ---- */

/* Pages of one head at a time, by way of `some`. */
static linnet_status exchange(ln_memory *memory, int64_t l, bool take, ln_memory_pages pages, void *user,
                              unsigned char *some) {
    const ln_memory_layer *layer = &memory->layers[l];
    const uint64_t page = memory->layout.bytes;
    const int64_t first = layer->kept / LN_PAGE_TOKENS, end = end_of(layer, memory->position);
    for (int64_t h = 0; h < memory->shape.key_value_heads && end > first; h++) {
        linnet_status status = LINNET_OK;
        if (take) status = pages(user, l, h, first, end - first, &memory->layout, some);
        for (int64_t i = first; i < end && status == LINNET_OK; i++) {
            unsigned char *here =
                ln_memory_writable(memory, layer, i % layer->slots, true) + (uint64_t)(h * layer->run) * page;
            unsigned char *there = some + (uint64_t)(i - first) * page;
            memcpy(take ? here : there, take ? there : here, page);
        }
        if (!take) status = pages(user, l, h, first, end - first, &memory->layout, some);
        if (status != LINNET_OK) return status;
    }
    return LINNET_OK;
}

static linnet_status exchange_all(ln_memory *memory, bool take, ln_memory_pages pages, void *user) {
    int64_t most = 1;
    for (int64_t l = 0; l < memory->shape.layers; l++) most = ln_max_i64(most, memory->layers[l].slots);
    unsigned char *some = ln_allocate(memory->context, (uint64_t)most, memory->layout.bytes, "pages of a head");
    linnet_status status = some ? LINNET_OK : LINNET_ERROR_MEMORY;
    for (int64_t l = 0; l < memory->shape.layers && status == LINNET_OK; l++)
        if (memory->layers[l].slots) status = exchange(memory, l, take, pages, user, some);
    ln_release(memory->context, some);
    return status;
}

linnet_status ln_memory_take_pages(ln_memory *memory, int64_t position, int64_t reached, ln_memory_pages pages,
                                   void *user) {
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        ln_memory_layer *layer = &memory->layers[l];
        if (layer->slots && layer->window)
            layer->kept = ln_max_i64(0, ln_ceil_div(reached, LN_PAGE_TOKENS) - layer->slots) * LN_PAGE_TOKENS;
    }
    memory->position = position;
    return exchange_all(memory, true, pages, user);
}

linnet_status ln_memory_give_pages(ln_memory *memory, ln_memory_pages pages, void *user) {
    return exchange_all(memory, false, pages, user);
}

int64_t ln_memory_reached(const ln_memory *memory) {
    int64_t reached = memory->position;
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        const ln_memory_layer *layer = &memory->layers[l];
        if (layer->kept > 0) reached = ln_max_i64(reached, layer->kept + layer->slots * LN_PAGE_TOKENS);
    }
    return reached;
}
