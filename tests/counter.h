/* An allocator that counts, and fails at the n-th call. */
#ifndef LN_TESTS_COUNTER_H
#define LN_TESTS_COUNTER_H

#include <stdlib.h>

#include "base/context.h"

typedef struct counter {
    int64_t live, bytes, calls, fail_at;
} counter;

static inline void *counted_allocate(void *user, size_t bytes) {
    counter *c = user;
    if (++c->calls == c->fail_at) return NULL;
    c->live++;
    c->bytes += (int64_t)bytes;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static inline void counted_release(void *user, void *block, size_t bytes) {
    counter *c = user;
    c->live--;
    c->bytes -= (int64_t)bytes;
    free(block);
}

/* c NULL: nobody counts. */
static inline linnet_context *counted_context(counter *c, int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.user = c;
    if (c) {
        settings.allocate = counted_allocate;
        settings.release = counted_release;
    }
    linnet_context *context;
    if (linnet_context_open(&settings, &context) != LINNET_OK) abort();
    return context;
}

#endif
