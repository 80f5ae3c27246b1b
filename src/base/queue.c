/* Owns: reading by io_uring without its library: two rings shared with the kernel, entries written at the tail of one,
 * results taken from the head of the other. What the ring did not read, or not all of it, is read by pread. */
#include "base/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#define RING 1
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#endif
#endif

static void read_rest(const ln_queue *queue, ln_read *read) {
    uint32_t at = read->done && read->result > 0 ? (uint32_t)read->result : 0;
    read->done = true;
    while (at < read->bytes) {
        const ssize_t got = pread(queue->file, (char *)read->to + at, read->bytes - at, (off_t)(read->offset + at));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            read->result = -errno;
            return;
        }
        if (got == 0) break;
        at += (uint32_t)got;
    }
    read->result = (int32_t)at;
}

#ifdef RING

enum { DEPTH = 64 };

static bool map_rings(ln_queue *queue, const struct io_uring_params *p) {
    const uint64_t asked = p->sq_off.array + p->sq_entries * sizeof(unsigned),
                   done = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    queue->rings_bytes = asked > done ? asked : done;
    queue->entries_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    unsigned char *rings = mmap(NULL, queue->rings_bytes, protection, flags, queue->ring, IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED) return false;
    queue->rings = rings;
    void *entries = mmap(NULL, queue->entries_bytes, protection, flags, queue->ring, IORING_OFF_SQES);
    if (entries == MAP_FAILED) return false;
    queue->entries = entries;
    queue->head = (unsigned *)(void *)(rings + p->sq_off.head);
    queue->tail = (unsigned *)(void *)(rings + p->sq_off.tail);
    queue->mask = (unsigned *)(void *)(rings + p->sq_off.ring_mask);
    queue->array = (unsigned *)(void *)(rings + p->sq_off.array);
    queue->done_head = (unsigned *)(void *)(rings + p->cq_off.head);
    queue->done_tail = (unsigned *)(void *)(rings + p->cq_off.tail);
    queue->done_mask = (unsigned *)(void *)(rings + p->cq_off.ring_mask);
    queue->done_entries = rings + p->cq_off.cqes;
    queue->depth = p->sq_entries;
    return true;
}

void ln_queue_open(ln_queue *queue, int file) {
    *queue = (ln_queue){.file = file, .ring = -1};
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    queue->ring = (int)syscall(SYS_io_uring_setup, DEPTH, &parameters);
    if (queue->ring < 0) {
        queue->ring = -1;
        return;
    }
    fcntl(queue->ring, F_SETFD, FD_CLOEXEC);
    if ((parameters.features & IORING_FEAT_SINGLE_MMAP) && map_rings(queue, &parameters)) return;
    ln_queue_close(queue);
}

void ln_queue_close(ln_queue *queue) {
    if (queue->ring < 0) return;
    if (queue->entries) munmap(queue->entries, queue->entries_bytes);
    if (queue->rings) munmap(queue->rings, queue->rings_bytes);
    close(queue->ring);
    *queue = (ln_queue){.file = queue->file, .ring = -1};
}

static void take_results(ln_queue *queue) {
    unsigned head = *queue->done_head;
    const unsigned tail = __atomic_load_n(queue->done_tail, __ATOMIC_ACQUIRE);
    const struct io_uring_cqe *entries = queue->done_entries;
    for (; head != tail; head++, queue->flying--) {
        const struct io_uring_cqe *entry = &entries[head & *queue->done_mask];
        ln_read *read = (ln_read *)(uintptr_t)entry->user_data;
        read->result = entry->res;
        read->done = true;
    }
    __atomic_store_n(queue->done_head, head, __ATOMIC_RELEASE);
}

/* Hands over what lies in the ring, and waits for `least` results. */
static void enter(ln_queue *queue, unsigned least) {
    for (;;) {
        const unsigned waiting = *queue->tail - __atomic_load_n(queue->head, __ATOMIC_ACQUIRE);
        const long status = syscall(SYS_io_uring_enter, queue->ring, waiting, least, IORING_ENTER_GETEVENTS, NULL, 0);
        take_results(queue);
        if (status >= 0 || (errno != EINTR && errno != EAGAIN && errno != EBUSY)) return;
    }
}

void ln_queue_ask(ln_queue *queue, ln_read *read) {
    read->done = read->asked = false;
    if (queue->ring < 0) return;
    if (queue->flying == queue->depth) enter(queue, 1);
    if (queue->flying == queue->depth) return; /* left to ln_queue_finish */
    const unsigned tail = *queue->tail, at = tail & *queue->mask;
    struct io_uring_sqe *entry = (struct io_uring_sqe *)queue->entries + at;
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_READ;
    entry->fd = queue->file;
    entry->addr = (uintptr_t)read->to;
    entry->len = read->bytes;
    entry->off = read->offset;
    entry->user_data = (uintptr_t)read;
    queue->array[at] = at;
    __atomic_store_n(queue->tail, tail + 1, __ATOMIC_RELEASE);
    read->asked = true;
    queue->flying++;
}

void ln_queue_submit(ln_queue *queue) {
    if (queue->ring >= 0 && queue->flying > 0) enter(queue, 0);
}

void ln_queue_finish(ln_queue *queue, ln_read *read) {
    while (read->asked && !read->done) enter(queue, 1);
    if (!read->done || read->result != (int32_t)read->bytes) read_rest(queue, read);
}

#else

void ln_queue_open(ln_queue *queue, int file) {
    *queue = (ln_queue){.file = file, .ring = -1};
}

void ln_queue_close(ln_queue *queue) {
    (void)queue;
}

void ln_queue_ask(ln_queue *queue, ln_read *read) {
    read->done = false;
#if defined(POSIX_FADV_WILLNEED)
    posix_fadvise(queue->file, (off_t)read->offset, (off_t)read->bytes, POSIX_FADV_WILLNEED);
#endif
}

void ln_queue_submit(ln_queue *queue) {
    (void)queue;
}

void ln_queue_finish(ln_queue *queue, ln_read *read) {
    read_rest(queue, read);
}

#endif
