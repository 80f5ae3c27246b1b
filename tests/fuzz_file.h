/* What both file fuzzers do: the input becomes a file in memory, is opened, and everything that can be asked is asked.
 */
#ifndef LN_TESTS_FUZZ_FILE_H
#define LN_TESTS_FUZZ_FILE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"

static inline linnet_context *fuzz_context(void) {
    static linnet_context *context;
    if (!context) {
        linnet_context_settings settings = linnet_context_settings_default();
        settings.threads = 1;
        settings.memory_limit = 256u << 20;
        if (linnet_context_open(&settings, &context) != LINNET_OK) abort();
    }
    return context;
}

static inline int fuzz_write(int file, const void *data, size_t bytes) {
    if (ftruncate(file, 0) != 0) return -1;
    return pwrite(file, data, bytes, 0) == (ssize_t)bytes ? 0 : -1;
}

/* Reads every key and every byte of every tensor: a sanitizer sees what lies outside. */
static inline void fuzz_read(const linnet_file *file) {
    unsigned sum = 0;
    char text[200];
    for (int64_t i = 0; i < linnet_file_keys(file); i++) {
        const char *name = linnet_file_key(file, i, text, sizeof text);
        const ln_key *key = name ? ln_file_key(file, name) : NULL;
        if (key != &file->keys[i]) abort();
        for (uint64_t k = 0; k < key->count; k++) {
            const ln_text value = ln_key_text(key, k);
            for (size_t b = 0; b < value.bytes; b++) sum += (unsigned char)value.data[b];
            sum += (unsigned)ln_key_integer(key, k, 1) + (ln_key_number(key, k, 2) > 3);
        }
    }
    linnet_tensor_info info;
    for (int64_t i = 0; linnet_file_tensor(file, i, &info); i++) {
        const linnet_tensor_info *found = ln_file_find(file, info.name);
        if (!found || found->data != info.data) abort();
        const unsigned char *data = info.data;
        for (uint64_t b = 0; b < info.bytes; b++) sum += data[b];
    }
    __asm__ volatile("" : : "r"(sum)); /* keeps the reads */
}

/* Opens `path`, which must leave nothing allocated and, where it fails, must say why. */
static inline void fuzz_open(const char *path) {
    linnet_context *context = fuzz_context();
    const uint64_t before = linnet_memory_used(context);
    linnet_file *file;
    if (linnet_file_open(context, path, &file) == LINNET_OK)
        fuzz_read(file);
    else if (!*linnet_last_error(context) || file)
        abort();
    linnet_file_close(file);
    if (linnet_memory_used(context) != before) abort();
}

#endif
