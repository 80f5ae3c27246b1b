/* The inside of a linnet_context, for all floors above: failing with a sentence, allocating within the limit, progress.
 */
#ifndef LN_BASE_CONTEXT_H
#define LN_BASE_CONTEXT_H

#include <stdatomic.h>

#include "base/threads.h"
#include "linnet/context.h"

struct linnet_context {
    linnet_context_settings settings;
    ln_team *team;
    unsigned cpu; /* flags of base/cpu.h, masked */
    _Atomic uint64_t used, peak;
    atomic_bool interrupted;
    char cpu_text[96];
    char error[1024];
};

/* Records the sentence and returns the status: `return ln_fail(context, LINNET_ERROR_FORMAT, "...")`. */
linnet_status ln_fail(linnet_context *context, linnet_status status, const char *format, ...) LINNET_PRINTF(3, 4);
void ln_log(linnet_context *context, linnet_log_level level, const char *format, ...) LINNET_PRINTF(3, 4);
void ln_progress(linnet_context *context, const char *what, int64_t done, int64_t total);
/* Between pieces of long work: true once linnet_interrupt was called. */
bool ln_interrupted(linnet_context *context);

/* count * size bytes, aligned to 64, not cleared (ln_allocate_zero: cleared). NULL, with the error recorded as
 * LINNET_ERROR_MEMORY, on overflow, at the limit, or where the system refuses; `what` names it for people ("key-value
 * pages"). */
void *ln_allocate(linnet_context *context, uint64_t count, uint64_t size, const char *what);
void *ln_allocate_zero(linnet_context *context, uint64_t count, uint64_t size, const char *what);
/* What ln_allocate takes from the limit for a block of `bytes` bytes. */
uint64_t ln_allocated_bytes(uint64_t bytes);
/* Knows its own size. NULL is allowed. */
void ln_release(linnet_context *context, void *block);
/* Changes the size of a block, keeping its content; NULL leaves the old block alive. block NULL: ln_allocate. */
void *ln_reallocate(linnet_context *context, void *block, uint64_t bytes, const char *what);
char *ln_copy_text(linnet_context *context, const char *text, size_t bytes);
/* Counts bytes allocated elsewhere (thread stacks) against the limit; false, recorded, where they do not fit. */
bool ln_account(linnet_context *context, uint64_t bytes, const char *what);
void ln_account_release(linnet_context *context, uint64_t bytes);

#endif
