/* Owns: session files as a checked stream.
 *
 * Checksum: h' = mix((h ^ word) * K) over 8-byte words, mix(x) = x ^ x >> 29, K odd; the last word is padded with
 * zeros, and the count of bytes is the last word. Every step is a bijection of h and of the word, so any change that
 * stays within one word is always seen, others with probability 1 - 2^-64. */
#include "memory/state_file.h"

#include <string.h>

static const char state_magic[8] = {'L', 'N', 'S', 'T', 'A', 'T', 'E', '1'};
enum { STATE_VERSION = 1, STATE_ORDER = 0x01020304, HEAD_BYTES = 16, TAIL_BYTES = 16 };

static inline uint64_t step(uint64_t sum, uint64_t word) {
    const uint64_t x = (sum ^ word) * 0x9fb21c651e98df25u;
    return x ^ x >> 29;
}

static void checksum_add(ln_checksum *checksum, const void *data, uint64_t bytes) {
    const unsigned char *from = data;
    uint64_t sum = checksum->sum, i = 0;
    for (; i < bytes && checksum->bytes % 8; i++) {
        checksum->pending |= (uint64_t)from[i] << checksum->bytes % 8 * 8;
        if (++checksum->bytes % 8 == 0) {
            sum = step(sum, checksum->pending);
            checksum->pending = 0;
        }
    }
    for (; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, from + i, 8);
        sum = step(sum, word);
        checksum->bytes += 8;
    }
    for (; i < bytes; i++) checksum->pending |= (uint64_t)from[i] << checksum->bytes++ % 8 * 8;
    checksum->sum = sum;
}

static uint64_t checksum_value(const ln_checksum *checksum) {
    return step(step(checksum->sum, checksum->pending), checksum->bytes);
}

/* ---- writing ---- */

linnet_status ln_state_create(linnet_context *context, const char *path, ln_state_writer *writer) {
    memset(writer, 0, sizeof *writer);
    const linnet_status status = ln_output_open(context, path, &writer->output);
    if (status != LINNET_OK) return status;
    const uint32_t marks[2] = {STATE_ORDER, STATE_VERSION};
    ln_state_put(writer, state_magic, sizeof state_magic);
    ln_state_put(writer, marks, sizeof marks);
    return LINNET_OK;
}

void ln_state_put(ln_state_writer *writer, const void *data, uint64_t bytes) {
    checksum_add(&writer->checksum, data, bytes);
    ln_output_write(&writer->output, data, bytes);
}

void ln_state_put_i64(ln_state_writer *writer, int64_t value) {
    ln_state_put(writer, &value, sizeof value);
}

linnet_status ln_state_finish(ln_state_writer *writer, bool keep) {
    const uint64_t tail[2] = {writer->checksum.bytes, checksum_value(&writer->checksum)};
    ln_output_write(&writer->output, tail, sizeof tail);
    return ln_output_close(&writer->output, keep);
}

/* ---- reading ---- */

static linnet_status check(const ln_state_reader *reader) {
    const unsigned char *data = reader->map.data;
    const uint64_t bytes = reader->map.bytes;
    if (bytes < sizeof state_magic || memcmp(data, state_magic, sizeof state_magic) != 0)
        return ln_fail(reader->context, LINNET_ERROR_FORMAT, "%s is not a session file of linnet", reader->path);
    if (bytes < HEAD_BYTES + TAIL_BYTES)
        return ln_fail(reader->context, LINNET_ERROR_FORMAT, "session file %s is cut off after %llu bytes",
                       reader->path, (unsigned long long)bytes);
    uint32_t marks[2];
    memcpy(marks, data + sizeof state_magic, sizeof marks);
    if (marks[0] != STATE_ORDER || marks[1] != STATE_VERSION)
        return ln_fail(reader->context, LINNET_ERROR_UNSUPPORTED,
                       "session file %s has version %u or another byte order; this version reads %d", reader->path,
                       marks[1], STATE_VERSION);
    uint64_t tail[2];
    memcpy(tail, data + bytes - TAIL_BYTES, TAIL_BYTES);
    ln_checksum checksum = {0};
    checksum_add(&checksum, data, bytes - TAIL_BYTES);
    if (tail[0] != bytes - TAIL_BYTES || tail[1] != checksum_value(&checksum))
        return ln_fail(reader->context, LINNET_ERROR_FORMAT,
                       "session file %s is damaged or cut off: its checksum does not match", reader->path);
    return LINNET_OK;
}

linnet_status ln_state_open(linnet_context *context, const char *path, ln_state_reader *reader) {
    *reader = (ln_state_reader){.context = context, .path = path};
    linnet_status status = ln_map_open(context, path, &reader->map);
    if (status != LINNET_OK) return status;
    status = check(reader);
    if (status != LINNET_OK) {
        ln_state_close(reader);
        return status;
    }
    reader->at = HEAD_BYTES;
    reader->end = reader->map.bytes - TAIL_BYTES;
    return LINNET_OK;
}

const void *ln_state_take(ln_state_reader *reader, uint64_t bytes) {
    if (bytes > ln_state_left(reader)) return NULL;
    const void *data = reader->map.data + reader->at;
    reader->at += bytes;
    return data;
}

bool ln_state_take_i64(ln_state_reader *reader, int64_t *value) {
    const void *data = ln_state_take(reader, sizeof *value);
    if (data) memcpy(value, data, sizeof *value);
    return data != NULL;
}

uint64_t ln_state_left(const ln_state_reader *reader) {
    return reader->end - reader->at;
}

void ln_state_close(ln_state_reader *reader) {
    ln_map_close(&reader->map);
    reader->at = reader->end = 0;
}
