/* Reads of a file, many at once: by io_uring where the system has it and lets, else one after the other. */
#ifndef LN_BASE_QUEUE_H
#define LN_BASE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ln_read {
    void *to;
    uint64_t offset;
    uint32_t bytes;
    int32_t result; /* bytes read, fewer only at the end of the file; or -errno */
    bool asked, done;
} ln_read;

typedef struct ln_queue {
    int file;
    int ring; /* -1: one after the other */
    unsigned depth, flying;
    unsigned *head, *tail, *mask, *array;        /* of what is asked */
    unsigned *done_head, *done_tail, *done_mask; /* of what is done */
    void *entries, *done_entries, *rings;
    uint64_t rings_bytes, entries_bytes;
} ln_queue;

/* Always usable afterwards. */
void ln_queue_open(ln_queue *queue, int file);
/* Nothing may be in flight. */
void ln_queue_close(ln_queue *queue);
/* Asks for a read, which stays where it is until finished; begun by the next submit at the latest. */
void ln_queue_ask(ln_queue *queue, ln_read *read);
void ln_queue_submit(ln_queue *queue);
/* Waits until it is done. */
void ln_queue_finish(ln_queue *queue, ln_read *read);

#endif
