/* A session file of any bytes, with the head and the checksum made right, so that the fuzzer gets behind them: into
 * memories of several policies, which must be as they were, or go on. The first byte names the memory. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ragged.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *const policies[] = {NULL,
                                       "full",
                                       "kivi:recent=32",
                                       "window:recent=32",
                                       "h2o:recent=32",
                                       "lagkv:recent=32",
                                       "expected:recent=32",
                                       "zipcache:recent=32",
                                       "keyformer:recent=32",
                                       "adakv:recent=32",
                                       "squeeze:recent=32"};
enum { MEMORIES = sizeof policies / sizeof *policies, TOKENS = 40 };

typedef struct fuzzed {
    world w;
    ln_policy policy[MEMORIES];
    ln_memory *memory[MEMORIES];
    char path[64];
} fuzzed;

static fuzzed *open_all(void) {
    static fuzzed f;
    if (f.w.context) return &f;
    open_world(&f.w, 1);
    const int file = memfd_create("fuzz", 0);
    if (file < 0) abort();
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", file);
    for (int i = 0; i < MEMORIES; i++) {
        if (policies[i]) f.policy[i] = test_policy(f.w.context, policies[i]);
        const ln_memory_shape shape = test_shape(&f.w, policies[i] ? &f.policy[i] : NULL, 400, 0);
        if (open_memory(&f.w, &shape, &f.memory[i]) != LINNET_OK) abort();
    }
    return &f;
}

static void go_on(fuzzed *f, ln_memory *memory) {
    static float output[OUTPUT];
    uint32_t seeds[TOKENS];
    for (uint32_t t = 0; t < TOKENS; t++) seeds[t] = t + 7;
    for (int step = 0; step < 3 && ln_memory_position(memory) + TOKENS <= 400; step++)
        if (feed_seeds(&f->w, memory, seeds, step == 1 ? 1 : TOKENS, output, NULL, NULL) != LINNET_OK) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    fuzzed *f = open_all();
    if (bytes < 1 || bytes > 1 << 20) return 0;
    ln_memory *memory = f->memory[data[0] % MEMORIES];
    /* ln_state_create writes beside a file and renames: here the stream goes to the file itself. */
    ln_state_writer writer = {.output.context = f->w.context};
    writer.output.file = fopen(f->path, "wb");
    if (!writer.output.file) abort();
    ln_state_begin(&writer);
    ln_state_put(&writer, data + 1, bytes - 1);
    ln_state_end(&writer);
    if (fclose(writer.output.file) != 0) abort();
    if (ln_memory_rewind(memory, 0) != LINNET_OK) abort();
    go_on(f, memory);
    const int64_t before = ln_memory_position(memory);
    const uint64_t used = linnet_memory_used(f->w.context);
    ln_state_reader reader;
    if (ln_state_open(f->w.context, f->path, &reader) != LINNET_OK) abort();
    const linnet_status status = ln_memory_read(memory, &reader, -1);
    ln_state_close(&reader);
    if (linnet_memory_used(f->w.context) != used) abort();
    if (status != LINNET_OK && (ln_memory_position(memory) != before || !*linnet_last_error(f->w.context))) abort();
    go_on(f, memory);
    ln_memory *fork;
    if (ln_memory_fork(memory, &fork) == LINNET_OK) {
        const int64_t limit = ln_memory_rewind_limit(fork);
        if (limit < ln_memory_position(fork) && ln_memory_rewind(fork, limit) != LINNET_OK) abort();
        go_on(f, fork);
        ln_memory_close(fork);
    }
    return 0;
}
