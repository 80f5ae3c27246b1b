/* Owns: pages of keys and values between a GPU and the processor, whose layout they have on the host.
 *
 * They go through the room's activations, which are zeros afterwards: products read columns up to whole tiles that no
 * kernel writes. Plain pages go as they are, pages of codes as float32, which is decoded exactly, and rounded back to
 * the same codes: a block's largest value keeps its code, and so its scale. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "kernel/page.h"
#include "model/cuda/engine.h"
#include "model/take.h"

typedef struct transfer {
    ln_cuda_room *room;
    const ln_cuda_transfer *of;
    ln_page_layout layout; /* of what is copied */
    bool codes;            /* which is float32 then */
    unsigned char *host;   /* room for `most` pages of it, where there are codes */
    char *device;
    int64_t most;
    float *rows; /* of a page */
} transfer;

/* The activations from x to the logits lie one after the other. */
static linnet_status open_transfer(transfer *t, ln_cuda_room *room, const ln_cuda_transfer *of) {
    linnet_context *context = room->model->context;
    const ln_page_layout *layout = of->layout;
    *t = (transfer){.room = room, .of = of, .layout = *layout, .codes = !ln_cuda_plain(of->pages.format)};
    if (t->codes) ln_page_layout_of(LINNET_F32, LINNET_F32, layout->key_size, layout->value_size, &t->layout);
    t->device = (char *)room->x;
    t->most = ((char *)room->inverse[0] - t->device) / (int64_t)t->layout.bytes;
    t->most = ln_min_i64(t->most, of->count);
    if (t->most < 1) return ln_fail(context, LINNET_ERROR_MEMORY, "the workspace on the device holds no page");
    if (!t->codes) return LINNET_OK;
    t->host = ln_allocate(context, (uint64_t)t->most, t->layout.bytes, "pages from the device");
    t->rows = ln_allocate(context, LN_PAGE_TOKENS * (uint64_t)(layout->key_size + layout->value_size), sizeof *t->rows,
                          "rows of a page");
    return t->host && t->rows ? LINNET_OK : LINNET_ERROR_MEMORY;
}

static void close_transfer(transfer *t) {
    ln_release(t->room->model->context, t->rows);
    ln_release(t->room->model->context, t->host);
}

static ln_cuda_lane_fetch part_of(const transfer *t, int64_t done) {
    return (ln_cuda_lane_fetch){.pages = t->of->pages,
                                .page_table = t->of->page_table,
                                .first = t->of->first + done,
                                .count = ln_min_i64(t->most, t->of->count - done),
                                .keys = true,
                                .values = true,
                                .page_bytes = (int64_t)t->layout.bytes,
                                .values_at = (int64_t)t->layout.values,
                                .to = t->device};
}

static void recode(const transfer *t, const ln_page_layout *from_layout, const unsigned char *from,
                   const ln_page_layout *to_layout, unsigned char *to) {
    const int64_t key = from_layout->key_size, value = from_layout->value_size;
    float *values = t->rows + LN_PAGE_TOKENS * key;
    for (int64_t i = 0; i < LN_PAGE_TOKENS; i++)
        ln_page_decode_token(from_layout, from, i, t->rows + i * key, values + i * value);
    ln_page_encode(to_layout, to, LN_PAGE_TOKENS, t->rows, key, values, value);
}

static linnet_status fetch_all(const transfer *t, unsigned char *to) {
    linnet_context *context = t->room->model->context;
    void *stream = ((ln_cuda_model *)t->room->model->on_device)->stream;
    for (int64_t done = 0; done < t->of->count; done += t->most) {
        const ln_cuda_lane_fetch part = part_of(t, done);
        unsigned char *at = to + (uint64_t)done * t->of->layout->bytes;
        const uint64_t bytes = (uint64_t)part.count * t->layout.bytes;
        LN_CUDA_TRY(context, ln_cuda_lanes_fetch(&part, stream), "fetching pages");
        LN_CUDA_TRY(context, ln_cuda_copy_to_host(t->codes ? t->host : at, t->device, bytes, stream), "fetching pages");
        LN_CUDA_TRY(context, ln_cuda_wait(stream), "fetching pages");
        for (int64_t i = 0; i < part.count && t->codes; i++)
            recode(t, &t->layout, t->host + (uint64_t)i * t->layout.bytes, t->of->layout,
                   at + (uint64_t)i * t->of->layout->bytes);
    }
    return LINNET_OK;
}

static linnet_status store_all(const transfer *t, const unsigned char *from) {
    linnet_context *context = t->room->model->context;
    void *stream = ((ln_cuda_model *)t->room->model->on_device)->stream;
    for (int64_t done = 0; done < t->of->count; done += t->most) {
        const ln_cuda_lane_fetch part = part_of(t, done);
        const unsigned char *at = from + (uint64_t)done * t->of->layout->bytes;
        const uint64_t bytes = (uint64_t)part.count * t->layout.bytes;
        for (int64_t i = 0; i < part.count && t->codes; i++)
            recode(t, t->of->layout, at + (uint64_t)i * t->of->layout->bytes, &t->layout,
                   t->host + (uint64_t)i * t->layout.bytes);
        LN_CUDA_TRY(context, ln_cuda_copy_to_device(t->device, t->codes ? t->host : at, bytes, stream),
                    "storing pages");
        LN_CUDA_TRY(context, ln_cuda_lanes_store(&part, stream), "storing pages");
        LN_CUDA_TRY(context, ln_cuda_wait(stream), "storing pages");
    }
    return LINNET_OK;
}

static linnet_status clear(const transfer *t) {
    void *stream = ((ln_cuda_model *)t->room->model->on_device)->stream;
    LN_CUDA_TRY(t->room->model->context, ln_cuda_zero(t->device, (uint64_t)t->most * t->layout.bytes, stream),
                "clearing activations");
    return LINNET_OK;
}

/* One of both is NULL. */
static linnet_status run_transfer(ln_cuda_room *room, const ln_cuda_transfer *of, unsigned char *to,
                                  const unsigned char *from) {
    transfer t;
    linnet_status status = open_transfer(&t, room, of);
    if (status == LINNET_OK) {
        status = to ? fetch_all(&t, to) : store_all(&t, from);
        const linnet_status cleared = clear(&t);
        if (status == LINNET_OK) status = cleared;
    }
    close_transfer(&t);
    return status;
}

linnet_status ln_cuda_fetch_pages(ln_cuda_room *room, const ln_cuda_transfer *of, unsigned char *to) {
    return run_transfer(room, of, to, NULL);
}

linnet_status ln_cuda_store_pages(ln_cuda_room *room, const ln_cuda_transfer *of, const unsigned char *from) {
    return run_transfer(room, of, NULL, from);
}
