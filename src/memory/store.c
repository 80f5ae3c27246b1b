/* Owns: the file of the disk tier.
 *
 *   slot n at bytes (n - 1) * slot_bytes;   free slots in a list, then those past the highest
 *
 * Room is asked of the system ahead, so that what was reserved can be written. Invariant: with n members there are n
 * times as many records as a member has slots, so a free one is always found. */
#include "memory/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"

enum { GROWTH = 16 << 20 };

typedef struct record {
    uint64_t checksum;
    uint32_t users, next; /* next: in the list of free ones */
} record;

struct ln_store {
    linnet_context *context;
    int file;
    uint32_t slot_bytes;
    ln_queue queue;
    int64_t slots, members; /* slots: of a member */
    int64_t high, used;     /* slots that were ever in use; that are now */
    int64_t reserved;       /* slots that the file has room for */
    ln_slot free;
    record *records; /* [1 + members * slots] */
    char folder[256];
};

/* h' = mix((h ^ word) * K) in four chains of 8-byte words, each step a bijection, so that a change of one word is
 * always seen; the slot's number begins the first. */
static uint64_t checksum_of(const unsigned char *data, uint64_t bytes, ln_slot slot) {
    uint64_t h[4] = {slot, 1, 2, 3};
    for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        const uint64_t x = (h[i / 8 % 4] ^ word) * 0x9fb21c651e98df25u;
        h[i / 8 % 4] = x ^ x >> 29;
    }
    for (int i = 1; i < 4; i++) {
        const uint64_t x = (h[0] ^ h[i]) * 0x9fb21c651e98df25u;
        h[0] = x ^ x >> 29;
    }
    return h[0];
}

static uint64_t record_bytes(int64_t slots, int64_t members) {
    return (uint64_t)(1 + slots * members) * sizeof(record);
}

uint64_t ln_store_bytes(int64_t slots) {
    return ln_allocated_bytes(sizeof(ln_store)) + ln_allocated_bytes(record_bytes(slots, 1));
}

static linnet_status open_file(ln_store *store, const char *folder) {
    if (!folder || !*folder) folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = "/tmp";
    snprintf(store->folder, sizeof store->folder, "%s", folder);
#if defined(O_TMPFILE)
    store->file = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (store->file >= 0) return LINNET_OK;
#endif
    char path[sizeof store->folder + 32];
    snprintf(path, sizeof path, "%s/linnet-pages-XXXXXX", store->folder);
    store->file = mkstemp(path);
    if (store->file < 0)
        return ln_fail(store->context, LINNET_ERROR_FILE,
                       "cannot make a file for pages in %s: %s; name another folder, or use tier=ram", store->folder,
                       strerror(errno));
    unlink(path);
    fcntl(store->file, F_SETFD, FD_CLOEXEC);
    return LINNET_OK;
}

linnet_status ln_store_open(linnet_context *context, const char *folder, uint32_t slot_bytes, int64_t slots,
                            ln_store **store) {
    *store = NULL;
    ln_store *made = ln_allocate_zero(context, 1, sizeof *made, "disk tier");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (ln_store){.context = context, .file = -1, .slot_bytes = slot_bytes, .slots = slots, .members = 1};
    made->records = ln_allocate(context, 1, record_bytes(slots, 1), "disk tier");
    linnet_status status = made->records ? open_file(made, folder) : LINNET_ERROR_MEMORY;
    if (status != LINNET_OK) {
        ln_release(context, made->records);
        ln_release(context, made);
        return status;
    }
    ln_queue_open(&made->queue, made->file);
    *store = made;
    return LINNET_OK;
}

linnet_status ln_store_join(ln_store *store) {
    record *records =
        ln_reallocate(store->context, store->records, record_bytes(store->slots, store->members + 1), "disk tier");
    if (!records) return LINNET_ERROR_MEMORY;
    store->records = records;
    store->members++;
    return LINNET_OK;
}

/* Slots are not moved: the records of a member that left are kept for those who stay. */
void ln_store_leave(ln_store *store) {
    if (!store || --store->members > 0) return;
    ln_queue_close(&store->queue);
    close(store->file);
    ln_release(store->context, store->records);
    ln_release(store->context, store);
}

/* ---- writing ---- */

/* 0, or what the system says. */
static int grow(ln_store *store, int64_t slots) {
    const uint64_t from = (uint64_t)store->reserved * store->slot_bytes, to = (uint64_t)slots * store->slot_bytes;
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && to > limit.rlim_cur) return EFBIG;
    int error;
    do error = posix_fallocate(store->file, (off_t)from, (off_t)(to - from));
    while (error == EINTR);
    if (error == 0) store->reserved = slots;
    return error;
}

linnet_status ln_store_reserve(ln_store *store, int64_t slots) {
    const int64_t needed = store->used + slots;
    if (needed <= store->reserved) return LINNET_OK;
    const int64_t ahead = store->reserved + ln_min_i64(store->reserved, GROWTH / store->slot_bytes);
    if (ahead > needed && grow(store, ahead) == 0) return LINNET_OK;
    const int error = grow(store, needed);
    if (error == 0) return LINNET_OK;
    return ln_fail(store->context, LINNET_ERROR_FILE,
                   "the file of pages in %s cannot grow to %llu bytes: %s; make room there, or name another folder; "
                   "what is held so far is whole",
                   store->folder, (unsigned long long)needed * store->slot_bytes, strerror(error));
}

linnet_status ln_store_write(ln_store *store, const void *page, ln_slot *slot) {
    *slot = 0;
    const ln_slot to = store->free ? store->free : (ln_slot)(store->high + 1);
    for (uint32_t at = 0; at < store->slot_bytes;) {
        const ssize_t put = pwrite(store->file, (const char *)page + at, store->slot_bytes - at,
                                   (off_t)((uint64_t)(to - 1) * store->slot_bytes + at));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return ln_fail(store->context, LINNET_ERROR_FILE,
                           "cannot write to the file of pages in %s: %s; what is held so far is whole", store->folder,
                           strerror(put < 0 ? errno : ENOSPC));
        at += (uint32_t)put;
    }
    record *r = &store->records[to];
    if (store->free)
        store->free = r->next;
    else
        store->high++;
    *r = (record){.checksum = checksum_of(page, store->slot_bytes, to), .users = 1};
    store->used++;
    *slot = to;
    return LINNET_OK;
}

void ln_store_share(ln_store *store, ln_slot slot) {
    store->records[slot].users++;
}

void ln_store_drop(ln_store *store, ln_slot slot) {
    record *r = &store->records[slot];
    if (--r->users > 0) return;
    r->next = store->free;
    store->free = slot;
    if (--store->used > 0) return;
    store->high = store->reserved = 0;
    store->free = 0;
    if (ftruncate(store->file, 0) != 0) ln_log(store->context, LINNET_LOG_WARNING, "a file of pages keeps its size");
}

/* ---- reading ---- */

void ln_store_begin(ln_store *store, ln_fetch *fetches, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        ln_read *read = &fetches[i].read;
        read->offset = (uint64_t)(fetches[i].slot - 1) * store->slot_bytes;
        read->bytes = store->slot_bytes;
        ln_queue_ask(&store->queue, read);
    }
    if (count > 0) ln_queue_submit(&store->queue);
}

linnet_status ln_store_finish(ln_store *store, ln_fetch *fetches, int64_t count) {
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; i < count; i++) {
        const ln_read *read = &fetches[i].read;
        const ln_slot slot = fetches[i].slot;
        ln_queue_finish(&store->queue, &fetches[i].read);
        fetches[i].good = read->result == (int32_t)read->bytes &&
                          checksum_of(read->to, read->bytes, slot) == store->records[slot].checksum;
        if (fetches[i].good) continue;
        const char *why = read->result < 0                      ? strerror(-read->result)
                          : read->result < (int32_t)read->bytes ? "it was cut off"
                                                                : "it was altered";
        status = ln_fail(store->context, LINNET_ERROR_FILE,
                         "a page in the file of pages in %s cannot be read: %s; rewind to 0 and feed again",
                         store->folder, why);
    }
    return status;
}

uint64_t ln_store_size(const ln_store *store) {
    return (uint64_t)store->reserved * store->slot_bytes;
}

const ln_queue *ln_store_queue(const ln_store *store) {
    return &store->queue;
}
