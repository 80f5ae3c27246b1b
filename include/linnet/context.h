/* Linnet: the context: allocator, threads, instruction sets and the last error. Everything else hangs on one.
 *
 * A context and all that was made from it is used by one thread at a time; only linnet_interrupt may be called from
 * anywhere, a signal handler included. Contexts are independent of each other. */
#ifndef LINNET_CONTEXT_H
#define LINNET_CONTEXT_H

#include "linnet/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct linnet_context linnet_context;

typedef struct linnet_context_settings {
    size_t size;           /* set by linnet_context_settings_default: lets the structure grow */
    int threads;           /* 0: as many as the process may use */
    const char *cpu;       /* highest instruction set to use: portable, avx2, avx512, amx, neon; NULL: the variable
                              LINNET_CPU,       and without it all that the processor has */
    uint64_t memory_limit; /* bytes the library may have allocated at any one time; 0: no limit */
    /* Allocator; both or neither. Blocks are aligned to 64 bytes. */
    void *(*allocate)(void *user, size_t bytes);
    void (*release)(void *user, void *block, size_t bytes);
    /* Called with one line of text without a newline. NULL: silent. */
    void (*log)(void *user, linnet_log_level level, const char *text);
    /* Called during long work with what is being done and how far it is. NULL: silent. */
    void (*progress)(void *user, const char *what, int64_t done, int64_t total);
    void *user;
} linnet_context_settings;

LINNET_API linnet_context_settings linnet_context_settings_default(void);
/* settings NULL: the defaults. Returns LINNET_ERROR_ARGUMENT for an unknown cpu name, LINNET_ERROR_MEMORY. *context is
 * NULL only where not even the context could be allocated; otherwise linnet_last_error tells the reason, and it must be
 * closed. */
LINNET_API linnet_status linnet_context_open(const linnet_context_settings *settings, linnet_context **context);
/* Close last: models and sessions of the context must be closed before. NULL is allowed. */
LINNET_API void linnet_context_close(linnet_context *context);

/* The sentence of the last failure on this context; "" where none failed. */
LINNET_API const char *linnet_last_error(const linnet_context *context);
/* Makes the long call that is running (or the next one) return LINNET_INTERRUPTED soon. Async-signal-safe. */
LINNET_API void linnet_interrupt(linnet_context *context);
LINNET_API void linnet_interrupt_clear(linnet_context *context);

/* Bytes allocated now, and the most at any time since opening. Mapped files are not counted. */
LINNET_API uint64_t linnet_memory_used(const linnet_context *context);
LINNET_API uint64_t linnet_memory_peak(const linnet_context *context);
/* Replaces the limit of the settings; LINNET_ERROR_MEMORY where more is in use already. */
LINNET_API linnet_status linnet_memory_limit(linnet_context *context, uint64_t bytes);
LINNET_API int linnet_threads(const linnet_context *context);
/* The instruction sets in use, for people: "avx512 vnni bf16". */
LINNET_API const char *linnet_cpu(const linnet_context *context);

#ifdef __cplusplus
}
#endif
#endif
