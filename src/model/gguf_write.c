/* Owns: the written form of GGUF v3: little-endian; texts are a u64 length and their bytes; the tensors' data starts at
 * a multiple of the alignment, and so does each tensor in it, in the order of the heads without gaps. */
#include "model/gguf_write.h"

#include <string.h>

#include "base/checked.h"

ln_key_writer ln_key_writer_open(linnet_context *context) {
    return (ln_key_writer){.bytes = {.context = context}, .names = {.context = context}};
}

void ln_key_writer_close(ln_key_writer *keys) {
    ln_buffer_release(&keys->bytes);
    ln_buffer_release(&keys->names);
    keys->count = 0;
}

linnet_status ln_key_writer_status(const ln_key_writer *keys) {
    return keys->bytes.failed || keys->names.failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

bool ln_key_writer_has(const ln_key_writer *keys, const char *name) {
    for (size_t at = 0; at < keys->names.bytes; at += strlen(keys->names.data + at) + 1)
        if (strcmp(keys->names.data + at, name) == 0) return true;
    return false;
}

/* `value` is the low `bytes` bytes of the number: the writer runs on little-endian machines only, as does the reader of
 * mapped weights. */
static void put_number(ln_buffer *buffer, uint64_t value, size_t bytes) {
    unsigned char data[8];
    for (size_t i = 0; i < 8; i++) data[i] = (unsigned char)(value >> 8 * i);
    ln_buffer_append(buffer, data, bytes);
}

static void put_text(ln_buffer *buffer, const char *text, size_t bytes) {
    put_number(buffer, bytes, 8);
    ln_buffer_append(buffer, text, bytes);
}

static bool begin_key(ln_key_writer *keys, const char *name, ln_value_kind kind) {
    if (ln_key_writer_has(keys, name)) return false;
    ln_buffer_append(&keys->names, name, strlen(name) + 1);
    put_text(&keys->bytes, name, strlen(name));
    put_number(&keys->bytes, (uint64_t)kind, 4);
    keys->count++;
    return true;
}

static void put_values(ln_buffer *buffer, ln_value_kind kind, const void *values, uint64_t count) {
    if (kind == LN_TEXT) {
        const ln_text *texts = values;
        for (uint64_t i = 0; i < count; i++) put_text(buffer, texts[i].data, texts[i].bytes);
    } else {
        ln_buffer_append(buffer, values, (size_t)count * ln_value_bytes(kind));
    }
}

void ln_write_integer(ln_key_writer *keys, const char *name, ln_value_kind kind, int64_t value) {
    if (begin_key(keys, name, kind)) put_number(&keys->bytes, (uint64_t)value, ln_value_bytes(kind));
}

void ln_write_float(ln_key_writer *keys, const char *name, double value) {
    const float rounded = (float)value;
    if (begin_key(keys, name, LN_FLOAT)) ln_buffer_append(&keys->bytes, &rounded, sizeof rounded);
}

void ln_write_text(ln_key_writer *keys, const char *name, const char *text, size_t bytes) {
    if (begin_key(keys, name, LN_TEXT)) put_text(&keys->bytes, text, bytes);
}

void ln_write_array(ln_key_writer *keys, const char *name, ln_value_kind kind, const void *values, uint64_t count) {
    if (!begin_key(keys, name, LN_ARRAY)) return;
    put_number(&keys->bytes, (uint64_t)kind, 4);
    put_number(&keys->bytes, count, 8);
    put_values(&keys->bytes, kind, values, count);
}

void ln_write_key(ln_key_writer *keys, const ln_key *key) {
    if (key->array)
        ln_write_array(keys, key->name, key->kind, key->values, key->count);
    else if (begin_key(keys, key->name, key->kind))
        put_values(&keys->bytes, key->kind, key->values, 1);
}

/* ---- the file ---- */

ln_gguf_writer ln_gguf_writer_open(linnet_context *context) {
    return (ln_gguf_writer){.keys = ln_key_writer_open(context), .tensors = {.context = context}};
}

void ln_gguf_writer_close(ln_gguf_writer *writer) {
    ln_key_writer_close(&writer->keys);
    ln_buffer_release(&writer->tensors);
}

void ln_gguf_add_tensor(ln_gguf_writer *writer, const char *name, linnet_type type, int dimensions, const int64_t *size,
                        uint64_t bytes) {
    ln_buffer *buffer = &writer->tensors;
    put_text(buffer, name, strlen(name));
    put_number(buffer, (uint64_t)dimensions, 4);
    for (int i = 0; i < dimensions; i++) put_number(buffer, (uint64_t)size[i], 8);
    put_number(buffer, (uint64_t)type, 4);
    put_number(buffer, writer->data_bytes, 8);
    writer->data_bytes += ln_round_up(bytes, LN_GGUF_ALIGNMENT);
    writer->tensor_count++;
}

linnet_status ln_gguf_write_head(const ln_gguf_writer *writer, ln_output *output) {
    const linnet_status status = ln_key_writer_status(&writer->keys);
    if (status != LINNET_OK) return status;
    if (writer->tensors.failed) return LINNET_ERROR_MEMORY;
    ln_buffer head = {.context = output->context};
    ln_buffer_append(&head, "GGUF", 4);
    put_number(&head, 3, 4);
    put_number(&head, writer->tensor_count, 8);
    put_number(&head, writer->keys.count, 8);
    const bool failed = head.failed;
    if (!failed) ln_output_write(output, head.data, head.bytes);
    ln_buffer_release(&head);
    if (failed) return LINNET_ERROR_MEMORY;
    ln_output_write(output, writer->keys.bytes.data, writer->keys.bytes.bytes);
    ln_output_write(output, writer->tensors.data, writer->tensors.bytes);
    ln_gguf_pad(output);
    return LINNET_OK;
}

void ln_gguf_pad(ln_output *output) {
    static const char zeros[LN_GGUF_ALIGNMENT];
    ln_output_write(output, zeros, ln_round_up(output->bytes, LN_GGUF_ALIGNMENT) - output->bytes);
}
