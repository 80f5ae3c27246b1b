/* Pages in a private file: slots of one size, each with users and a checksum, for the memories of a family.
 *
 * The file has no name, or loses it at once: it is gone when the process is, and no other can mistake it. What is read
 * is checked against 64 bits held in memory, so that a torn, truncated or altered file is refused. */
#ifndef LN_MEMORY_STORE_H
#define LN_MEMORY_STORE_H

#include "base/context.h"
#include "base/queue.h"

typedef struct ln_store ln_store;

/* The number of a slot; 0: none. */
typedef uint32_t ln_slot;

/* What a member with so many slots allocates. */
uint64_t ln_store_bytes(int64_t slots);
/* folder NULL: that of temporary files. Opens with one member. */
linnet_status ln_store_open(linnet_context *context, const char *folder, uint32_t slot_bytes, int64_t slots,
                            ln_store **store);
linnet_status ln_store_join(ln_store *store);
/* One member less, which has dropped its slots; the last one closes the file. NULL is allowed. */
void ln_store_leave(ln_store *store);

/* Makes sure that so many slots can be written. LINNET_ERROR_FILE: they cannot, and nothing has changed. */
linnet_status ln_store_reserve(ln_store *store, int64_t slots);
/* Writes a page into a slot of one user. */
linnet_status ln_store_write(ln_store *store, const void *page, ln_slot *slot);
void ln_store_share(ln_store *store, ln_slot slot);
void ln_store_drop(ln_store *store, ln_slot slot);

typedef struct ln_fetch {
    ln_read read;
    ln_slot slot;
    int32_t lane, page; /* the caller's */
    bool good;
} ln_fetch;

/* Begins to read so many slots to fetches[i].read.to, which stay where they are until ln_store_finish. */
void ln_store_begin(ln_store *store, ln_fetch *fetches, int64_t count);
/* Waits for these; those that are as they were written are good. LINNET_ERROR_FILE: some are not. */
linnet_status ln_store_finish(ln_store *store, ln_fetch *fetches, int64_t count);

/* Bytes of the file. */
uint64_t ln_store_size(const ln_store *store);
const ln_queue *ln_store_queue(const ln_store *store);

#endif
