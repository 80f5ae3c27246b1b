/* Small model folders for tests: safetensors files of values that every format of 16 bits holds exactly. */
#ifndef LN_TESTS_STORED_H
#define LN_TESTS_STORED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "number/format.h"

typedef struct stored {
    const char *name, *dtype; /* F32, BF16 or F16 */
    int64_t rows, columns;    /* columns 0: a vector */
} stored;

static inline float stored_value(const stored *tensor, int64_t i) {
    uint32_t mix = (uint32_t)i * 2654435761u;
    for (const char *at = tensor->name; *at; at++) mix = (mix ^ (unsigned char)*at) * 16777619u;
    return (float)((int)(mix >> 20 & 127) - 64) / 32;
}

static inline void write_text_file(const char *folder, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(text, 1, strlen(text), file) != strlen(text) || fclose(file) != 0) abort();
}

static inline void write_stored(const char *folder, const char *name, const stored *tensors, size_t count) {
    char path[256], header[8192], *at = header;
    uint64_t offset = 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (!file) abort();
    for (size_t t = 0; t < count; t++) {
        const uint64_t values = (uint64_t)(tensors[t].rows * (tensors[t].columns ? tensors[t].columns : 1));
        const uint64_t bytes = values * (tensors[t].dtype[0] == 'F' && tensors[t].dtype[1] == '3' ? 4 : 2);
        char shape[64];
        snprintf(shape, sizeof shape, tensors[t].columns ? "%lld,%lld" : "%lld", (long long)tensors[t].rows,
                 (long long)tensors[t].columns);
        at += snprintf(at, (size_t)(header + sizeof header - at),
                       "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", t ? ',' : '{',
                       tensors[t].name, tensors[t].dtype, shape, (unsigned long long)offset,
                       (unsigned long long)(offset + bytes));
        offset += bytes;
    }
    const uint64_t length = (uint64_t)snprintf(at, (size_t)(header + sizeof header - at), "%s", count ? "}" : "{}") +
                            (uint64_t)(at - header);
    fwrite(&length, 8, 1, file);
    fwrite(header, 1, (size_t)length, file);
    for (size_t t = 0; t < count; t++)
        for (int64_t i = 0; i < tensors[t].rows * (tensors[t].columns ? tensors[t].columns : 1); i++) {
            const float value = stored_value(&tensors[t], i);
            const uint16_t half = tensors[t].dtype[0] == 'B' ? ln_float_bf16(value) : ln_float_f16(value);
            if (strcmp(tensors[t].dtype, "F32") == 0)
                fwrite(&value, sizeof value, 1, file);
            else
                fwrite(&half, sizeof half, 1, file);
        }
    if (fclose(file) != 0) abort();
}

/* The files that tests write, and the folder. */
static inline void remove_stored(const char *folder) {
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "chat_template.jinja",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "a.safetensors",
                                        "b.safetensors",
                                        "out.gguf",
                                        "again.gguf"};
    char path[256];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

#endif
