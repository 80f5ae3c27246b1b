/* Owns: the context: errors, allocation inside the limit, progress, interruption.
 *
 * Each block carries its size in a 64-byte header before it, so that releasing needs no size and the count of bytes in
 * use is exact: used = sum of header + block over all live blocks. `used` never exceeds settings.memory_limit. */
#include "base/context.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"

enum { HEADER_BYTES = 64 };

const char *linnet_version(void) {
    return "0.1.0";
}

int linnet_version_number(void) {
    return 10000 * LINNET_VERSION_MAJOR + 100 * LINNET_VERSION_MINOR + LINNET_VERSION_PATCH;
}

const char *linnet_status_name(linnet_status status) {
    switch (status) {
    case LINNET_OK:
        return "ok";
    case LINNET_ERROR_ARGUMENT:
        return "argument";
    case LINNET_ERROR_MEMORY:
        return "memory";
    case LINNET_ERROR_FILE:
        return "file";
    case LINNET_ERROR_FORMAT:
        return "format";
    case LINNET_ERROR_UNSUPPORTED:
        return "unsupported";
    case LINNET_ERROR_FULL:
        return "full";
    case LINNET_INTERRUPTED:
        return "interrupted";
    }
    return "unknown";
}

/* ---- errors, log, progress ---- */

linnet_status ln_fail(linnet_context *context, linnet_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context->error, sizeof context->error, format, arguments);
    va_end(arguments);
    /* Names from files are part of sentences: what would steer a terminal is not let through. */
    for (char *at = context->error; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = '?';
    return status;
}

void ln_log(linnet_context *context, linnet_log_level level, const char *format, ...) {
    if (!context->settings.log) return;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    context->settings.log(context->settings.user, level, text);
}

void ln_progress(linnet_context *context, const char *what, int64_t done, int64_t total) {
    if (context->settings.progress) context->settings.progress(context->settings.user, what, done, total);
}

const char *linnet_last_error(const linnet_context *context) {
    return context ? context->error : "no context: out of memory";
}

void linnet_interrupt(linnet_context *context) {
    atomic_store(&context->interrupted, true);
}
void linnet_interrupt_clear(linnet_context *context) {
    atomic_store(&context->interrupted, false);
}
bool ln_interrupted(linnet_context *context) {
    return atomic_load_explicit(&context->interrupted, memory_order_relaxed);
}

/* ---- memory ---- */

static void *system_allocate(void *user, size_t bytes) {
    (void)user;
    return aligned_alloc(64, ln_round_up(bytes, 64));
}

static void system_release(void *user, void *block, size_t bytes) {
    (void)user;
    (void)bytes;
    free(block);
}

bool ln_account(linnet_context *context, uint64_t bytes, const char *what) {
    const uint64_t limit = context->settings.memory_limit;
    uint64_t before = atomic_load(&context->used), after;
    do {
        if (!ln_add_u64(before, bytes, &after) || (limit && after > limit)) {
            ln_fail(context, LINNET_ERROR_MEMORY,
                    "%s need %llu bytes more than the %llu in use, over the memory limit of %llu bytes", what,
                    (unsigned long long)bytes, (unsigned long long)before, (unsigned long long)limit);
            return false;
        }
    } while (!atomic_compare_exchange_weak(&context->used, &before, after));
    uint64_t peak = atomic_load(&context->peak);
    while (peak < after && !atomic_compare_exchange_weak(&context->peak, &peak, after)) {
    }
    return true;
}

void ln_account_release(linnet_context *context, uint64_t bytes) {
    atomic_fetch_sub(&context->used, bytes);
}

uint64_t ln_allocated_bytes(uint64_t bytes) {
    return ln_round_up(bytes + HEADER_BYTES, 64);
}

void *ln_allocate(linnet_context *context, uint64_t count, uint64_t size, const char *what) {
    uint64_t bytes, total;
    if (!ln_multiply_u64(count, size, &bytes) || !ln_add_u64(bytes, HEADER_BYTES + 63, &total) || total > PTRDIFF_MAX) {
        ln_fail(context, LINNET_ERROR_MEMORY, "%s of %llu x %llu bytes exceed what can be addressed", what,
                (unsigned long long)count, (unsigned long long)size);
        return NULL;
    }
    total = ln_allocated_bytes(bytes);
    if (!ln_account(context, total, what)) return NULL;
    unsigned char *block = context->settings.allocate(context->settings.user, total);
    if (!block) {
        ln_account_release(context, total);
        ln_fail(context, LINNET_ERROR_MEMORY, "the system refused %llu bytes for %s", (unsigned long long)total, what);
        return NULL;
    }
    memcpy(block, &total, sizeof total);
    return block + HEADER_BYTES;
}

void *ln_allocate_zero(linnet_context *context, uint64_t count, uint64_t size, const char *what) {
    void *block = ln_allocate(context, count, size, what);
    if (block) memset(block, 0, count * size);
    return block;
}

static uint64_t block_total(const void *block) {
    uint64_t total;
    memcpy(&total, (const unsigned char *)block - HEADER_BYTES, sizeof total);
    return total;
}

void ln_release(linnet_context *context, void *block) {
    if (!block) return;
    const uint64_t total = block_total(block);
    context->settings.release(context->settings.user, (unsigned char *)block - HEADER_BYTES, total);
    ln_account_release(context, total);
}

void *ln_reallocate(linnet_context *context, void *block, uint64_t bytes, const char *what) {
    void *grown = ln_allocate(context, 1, bytes, what);
    if (!grown || !block) return grown;
    const uint64_t held = block_total(block) - HEADER_BYTES;
    memcpy(grown, block, held < bytes ? held : bytes);
    ln_release(context, block);
    return grown;
}

char *ln_copy_text(linnet_context *context, const char *text, size_t bytes) {
    char *copy = ln_allocate(context, (uint64_t)bytes + 1, 1, "text");
    if (!copy) return NULL;
    if (bytes) memcpy(copy, text, bytes);
    copy[bytes] = 0;
    return copy;
}

uint64_t linnet_memory_used(const linnet_context *context) {
    return atomic_load(&context->used);
}
uint64_t linnet_memory_peak(const linnet_context *context) {
    return atomic_load(&context->peak);
}

linnet_status linnet_memory_limit(linnet_context *context, uint64_t bytes) {
    const uint64_t used = linnet_memory_used(context);
    if (bytes && used > bytes)
        return ln_fail(context, LINNET_ERROR_MEMORY, "a memory limit of %llu bytes is below the %llu already in use",
                       (unsigned long long)bytes, (unsigned long long)used);
    context->settings.memory_limit = bytes;
    return LINNET_OK;
}

/* ---- opening ---- */

linnet_context_settings linnet_context_settings_default(void) {
    return (linnet_context_settings){.size = sizeof(linnet_context_settings)};
}

static linnet_status choose_cpu(linnet_context *context) {
    const char *name = context->settings.cpu ? context->settings.cpu : getenv("LINNET_CPU");
    unsigned mask = ~0u;
    if (name && *name && !ln_cpu_mask(name, &mask))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "'%s' is no instruction set; LINNET_CPU may be portable, avx2, avx512, amx, neon or all", name);
    context->cpu = ln_cpu_detect() & mask;
    ln_cpu_text(context->cpu, context->cpu_text, sizeof context->cpu_text);
    return LINNET_OK;
}

linnet_status linnet_context_open(const linnet_context_settings *settings, linnet_context **context) {
    *context = NULL;
    linnet_context_settings chosen = linnet_context_settings_default();
    if (settings) memcpy(&chosen, settings, settings->size < sizeof chosen ? settings->size : sizeof chosen);
    const bool own_allocator = chosen.allocate && chosen.release;
    if (!own_allocator) {
        chosen.allocate = system_allocate;
        chosen.release = system_release;
    }
    linnet_context *made = chosen.allocate(chosen.user, sizeof *made);
    if (!made) return LINNET_ERROR_MEMORY;
    memset(made, 0, sizeof *made);
    made->settings = chosen;
    *context = made;
    if (settings && !own_allocator && (settings->allocate || settings->release))
        return ln_fail(made, LINNET_ERROR_ARGUMENT, "allocate and release must be given together");
    const linnet_status status = choose_cpu(made);
    if (status != LINNET_OK) return status;
    return ln_team_open(made, chosen.threads, &made->team);
}

void linnet_context_close(linnet_context *context) {
    if (!context) return;
    ln_team_close(context, context->team);
    context->settings.release(context->settings.user, context, sizeof *context);
}

int linnet_threads(const linnet_context *context) {
    return ln_team_size(context->team);
}
const char *linnet_cpu(const linnet_context *context) {
    return context->cpu_text;
}
