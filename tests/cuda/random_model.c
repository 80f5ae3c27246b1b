/* A llama with random weights, for timing: its shape and format count, its text does not. Norms are 1, matrices of
 * deviation about 1 / sqrt(columns): the same few megabytes of codes again and again. */
#include "random_model.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linnet/linnet.h"

typedef struct shape {
    const char *name;
    uint32_t layers, width, feed_forward, heads, key_value_heads;
    uint64_t vocabulary;
} shape;

static const shape SHAPES[] = {{"1b", 16, 2048, 8192, 32, 8, 128256}, {"8b", 32, 4096, 14336, 32, 8, 128256},
                               {"tiny", 2, 256, 512, 2, 1, 1024},     {"pair", 2, 256, 512, 4, 2, 512},
                               {"odd", 2, 256, 544, 4, 2, 512}, /* no whole tiles of 64 */
                               {"words", 2, 256, 512, 4, 2, 128256}};

typedef struct model {
    FILE *file;
    const shape *of;
    linnet_type type;
    uint64_t offset, tensors;
    int pass; /* 0: counts, 1: describes, 2: writes */
} model;

static void put(model *m, const void *data, size_t bytes) {
    if (fwrite(data, 1, bytes, m->file) != bytes) {
        perror("random_model");
        exit(1);
    }
}
static void put_32(model *m, uint32_t value) {
    put(m, &value, 4);
}
static void put_64(model *m, uint64_t value) {
    put(m, &value, 8);
}
static void put_text(model *m, const char *text) {
    put_64(m, strlen(text));
    put(m, text, strlen(text));
}

enum { ALIGNMENT = 32, PATTERN = 9 << 20, GGUF_U32 = 4, GGUF_F32 = 6, GGUF_TEXT = 8 };

static void key_text(model *m, const char *name, const char *value) {
    put_text(m, name);
    put_32(m, GGUF_TEXT);
    put_text(m, value);
}
static void key_u32(model *m, const char *name, uint32_t value) {
    put_text(m, name);
    put_32(m, GGUF_U32);
    put_32(m, value);
}
static void key_f32(model *m, const char *name, float value) {
    put_text(m, name);
    put_32(m, GGUF_F32);
    put(m, &value, 4);
}

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint16_t half_of(double x, bool bf16) {
    union {
        float f;
        uint32_t u;
    } bits = {(float)x};
    if (bf16) return (uint16_t)(bits.u >> 16);
    return (uint16_t)((bits.u >> 16 & 0x8000) | (((bits.u >> 23 & 255) - 112) << 10) | (bits.u >> 13 & 1023));
}

/* A whole number of blocks of each format. */
static const unsigned char *pattern(linnet_type type, uint64_t columns, uint64_t *bytes) {
    static unsigned char room[PATTERN];
    const double deviation = 1 / sqrt((double)columns);
    int block, size;
    linnet_type_layout(type, &block, &size);
    *bytes = (uint64_t)(PATTERN / (2 * 17 * 18) * (2 * 17 * 18));
    for (uint64_t i = 0; i + 8 <= *bytes; i += 8) {
        const uint64_t bits = next();
        memcpy(room + i, &bits, 8);
    }
    /* Codes are even: of 16 the deviation is 4.6, of 256 it is 74. */
    const uint16_t scale = half_of(deviation / (type == LINNET_Q4_0 ? 4.6 : 74), false);
    for (uint64_t i = 0; i < *bytes; i += (uint64_t)size) {
        const uint16_t value = half_of(deviation * ((double)(next() % 2001) / 1000 - 1) * 1.73, true);
        memcpy(room + i, type == LINNET_BF16 ? &value : &scale, 2);
    }
    return room;
}

static void tensor(model *m, const char *name, linnet_type type, uint64_t columns, uint64_t rows) {
    int block, size;
    linnet_type_layout(type, &block, &size);
    const uint64_t bytes = columns * rows / (uint64_t)block * (uint64_t)size;
    if (m->pass == 0) m->tensors++;
    if (m->pass == 1) {
        put_text(m, name);
        put_32(m, rows > 1 ? 2 : 1);
        put_64(m, columns);
        if (rows > 1) put_64(m, rows);
        put_32(m, (uint32_t)type);
        put_64(m, m->offset);
        m->offset += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (m->pass != 2) return;
    if (type == LINNET_F32) {
        const float one = 1;
        for (uint64_t i = 0; i < columns; i++) put(m, &one, 4);
    } else {
        uint64_t whole;
        const unsigned char *from = pattern(type, columns, &whole);
        for (uint64_t done = 0; done < bytes; done += whole) put(m, from, bytes - done < whole ? bytes - done : whole);
    }
    for (uint64_t at = bytes; at % ALIGNMENT; at++) put(m, "", 1);
}

static void layer(model *m, uint32_t i, const char *part, linnet_type type, uint64_t columns, uint64_t rows) {
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s.weight", i, part);
    tensor(m, name, type, columns, rows);
}

static void tensors(model *m, int pass) {
    const shape *s = m->of;
    const uint64_t width = s->width, small = width / s->heads * s->key_value_heads;
    m->pass = pass;
    tensor(m, "token_embd.weight", m->type, width, s->vocabulary);
    tensor(m, "output.weight", m->type, width, s->vocabulary);
    tensor(m, "output_norm.weight", LINNET_F32, width, 1);
    for (uint32_t i = 0; i < s->layers; i++) {
        layer(m, i, "attn_norm", LINNET_F32, width, 1);
        layer(m, i, "attn_q", m->type, width, width);
        layer(m, i, "attn_k", m->type, width, small);
        layer(m, i, "attn_v", m->type, width, small);
        layer(m, i, "attn_output", m->type, width, width);
        layer(m, i, "ffn_norm", LINNET_F32, width, 1);
        layer(m, i, "ffn_gate", m->type, width, s->feed_forward);
        layer(m, i, "ffn_up", m->type, width, s->feed_forward);
        layer(m, i, "ffn_down", m->type, s->feed_forward, width);
    }
}

bool write_random_model(const char *path, const char *shape_name, linnet_type type) {
    model m = {.type = type};
    for (unsigned i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++)
        if (!strcmp(shape_name, SHAPES[i].name)) m.of = &SHAPES[i];
    if (!m.of || (m.type != LINNET_Q4_0 && m.type != LINNET_Q8_0 && m.type != LINNET_BF16)) return false;
    m.file = fopen(path, "wb");
    if (!m.file) return false;
    tensors(&m, 0);
    put(&m, "GGUF", 4);
    put_32(&m, 3);
    put_64(&m, m.tensors);
    put_64(&m, 10);
    key_text(&m, "general.architecture", "llama");
    key_text(&m, "general.name", m.of->name);
    key_u32(&m, "llama.block_count", m.of->layers);
    key_u32(&m, "llama.embedding_length", m.of->width);
    key_u32(&m, "llama.feed_forward_length", m.of->feed_forward);
    key_u32(&m, "llama.attention.head_count", m.of->heads);
    key_u32(&m, "llama.attention.head_count_kv", m.of->key_value_heads);
    key_u32(&m, "llama.context_length", 131072);
    key_f32(&m, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_f32(&m, "llama.rope.freq_base", 500000);
    tensors(&m, 1);
    for (long at = ftell(m.file); at % ALIGNMENT; at++) put(&m, "", 1);
    tensors(&m, 2);
    return fclose(m.file) == 0;
}
