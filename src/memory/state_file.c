/* Owns: session files as a checked stream.
 *
 * Checksum: h' = mix((h ^ word) * K) over 8-byte words, mix(x) = x ^ x >> 29, K odd; the last word is padded with
 * zeros, and the count of bytes is the last word. Every step is a bijection of h and of the word, so any change that
 * stays within one word is always seen, others with probability 1 - 2^-64. */
#include "memory/state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel/page.h"

static const char state_magic[8] = {'L', 'N', 'S', 'T', 'A', 'T', 'E', '1'};
enum {
    STATE_VERSION = 1,
    STATE_ORDER = 0x01020304,
    HEAD_BYTES = 16,
    TAIL_BYTES = 16,
    BUFFER = 16 << 10,
    PAGE_BYTES_MOST = 8 * LN_PAGE_TOKENS * LN_HEAD_MOST
};

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

void ln_state_begin(ln_state_writer *writer) {
    const uint32_t marks[2] = {STATE_ORDER, STATE_VERSION};
    ln_state_put(writer, state_magic, sizeof state_magic);
    ln_state_put(writer, marks, sizeof marks);
}

void ln_state_end(ln_state_writer *writer) {
    const uint64_t tail[2] = {writer->checksum.bytes, checksum_value(&writer->checksum)};
    ln_output_write(&writer->output, tail, sizeof tail);
}

linnet_status ln_state_create(linnet_context *context, const char *path, ln_state_writer *writer) {
    memset(writer, 0, sizeof *writer);
    const linnet_status status = ln_output_open(context, path, &writer->output);
    if (status == LINNET_OK) ln_state_begin(writer);
    return status;
}

void ln_state_put(ln_state_writer *writer, const void *data, uint64_t bytes) {
    checksum_add(&writer->checksum, data, bytes);
    ln_output_write(&writer->output, data, bytes);
}

void ln_state_put_i64(ln_state_writer *writer, int64_t value) {
    ln_state_put(writer, &value, sizeof value);
}

void ln_state_put_page(ln_state_writer *writer, const ln_page_layout *layout, const unsigned char *page,
                       int64_t tokens) {
    if (tokens == LN_PAGE_TOKENS) {
        ln_state_put(writer, page, layout->bytes);
        return;
    }
    unsigned char copy[PAGE_BYTES_MOST];
    memcpy(copy, page, layout->bytes);
    ln_page_clear(layout, copy, tokens);
    ln_state_put(writer, copy, layout->bytes);
}

linnet_status ln_state_finish(ln_state_writer *writer, bool keep) {
    ln_state_end(writer);
    return ln_output_close(&writer->output, keep);
}

/* ---- reading ---- */

typedef struct ln_state_input {
    int file;
    uint64_t bytes;
    struct timespec changed;
    uint64_t begin, held; /* of the file, in the buffer */
    unsigned char buffer[BUFFER];
} ln_state_input;

/* Bytes from `at` on; false where the file has fewer. */
static bool read_at(const ln_state_input *input, uint64_t at, void *data, uint64_t bytes) {
    for (unsigned char *to = data; bytes > 0;) {
        const size_t most = bytes > 1 << 30 ? 1 << 30 : (size_t)bytes;
        const ssize_t got = pread(input->file, to, most, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got;
        at += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return true;
}

/* The same, small parts by the buffer. */
static bool read_part(ln_state_input *input, uint64_t at, void *data, uint64_t bytes) {
    if (bytes >= BUFFER) return read_at(input, at, data, bytes);
    if (at < input->begin || at + bytes > input->begin + input->held) {
        const uint64_t left = input->bytes - at;
        input->begin = at;
        input->held = left < BUFFER ? left : BUFFER;
        if (!read_at(input, at, input->buffer, input->held)) {
            input->held = 0;
            return false;
        }
    }
    memcpy(data, input->buffer + (at - input->begin), bytes);
    return true;
}

static bool sum_up(ln_state_input *input, uint64_t bytes, ln_checksum *checksum) {
    input->held = 0;
    for (uint64_t at = 0; at < bytes;) {
        const uint64_t part = bytes - at < BUFFER ? bytes - at : BUFFER;
        if (!read_at(input, at, input->buffer, part)) return false;
        checksum_add(checksum, input->buffer, part);
        at += part;
    }
    return true;
}

static linnet_status check(const ln_state_reader *reader) {
    ln_state_input *input = reader->input;
    const uint64_t bytes = input->bytes;
    char magic[sizeof state_magic];
    uint32_t marks[2];
    uint64_t tail[2];
    if (bytes < sizeof magic || !read_at(input, 0, magic, sizeof magic) ||
        memcmp(magic, state_magic, sizeof magic) != 0)
        return ln_fail(reader->context, LINNET_ERROR_FORMAT, "%s is not a session file of linnet", reader->path);
    if (bytes < HEAD_BYTES + TAIL_BYTES || !read_at(input, sizeof magic, marks, sizeof marks) ||
        !read_at(input, bytes - TAIL_BYTES, tail, sizeof tail))
        return ln_fail(reader->context, LINNET_ERROR_FORMAT, "session file %s is cut off after %llu bytes",
                       reader->path, (unsigned long long)bytes);
    if (marks[0] != STATE_ORDER || marks[1] != STATE_VERSION)
        return ln_fail(reader->context, LINNET_ERROR_UNSUPPORTED,
                       "session file %s has version %u or another byte order; this version reads %d", reader->path,
                       marks[1], STATE_VERSION);
    ln_checksum checksum = {0};
    if (!sum_up(input, bytes - TAIL_BYTES, &checksum) || tail[0] != bytes - TAIL_BYTES ||
        tail[1] != checksum_value(&checksum))
        return ln_fail(reader->context, LINNET_ERROR_FORMAT,
                       "session file %s is damaged or cut off: its checksum does not match", reader->path);
    return LINNET_OK;
}

static linnet_status open_input(const ln_state_reader *reader) {
    ln_state_input *input = reader->input;
    struct stat state;
    input->file = open(reader->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would block */
    if (input->file < 0 || fstat(input->file, &state) != 0)
        return ln_fail(reader->context, LINNET_ERROR_FILE, "cannot open %s: %s", reader->path, strerror(errno));
    if (!S_ISREG(state.st_mode))
        return ln_fail(reader->context, LINNET_ERROR_FILE, "%s is not a regular file", reader->path);
    input->bytes = (uint64_t)state.st_size;
    input->changed = state.st_mtim;
    return LINNET_OK;
}

linnet_status ln_state_open(linnet_context *context, const char *path, ln_state_reader *reader) {
    *reader = (ln_state_reader){.context = context, .path = path};
    reader->input = ln_allocate_zero(context, 1, sizeof *reader->input, "buffer of a session file");
    if (!reader->input) return LINNET_ERROR_MEMORY;
    linnet_status status = open_input(reader);
    if (status == LINNET_OK) status = check(reader);
    if (status != LINNET_OK) {
        ln_state_close(reader);
        return status;
    }
    reader->at = HEAD_BYTES;
    reader->end = reader->input->bytes - TAIL_BYTES;
    reader->input->held = 0;
    return LINNET_OK;
}

bool ln_state_take(ln_state_reader *reader, void *data, uint64_t bytes) {
    if (bytes > ln_state_left(reader)) return false;
    if (data && !read_part(reader->input, reader->at, data, bytes)) return false;
    reader->at += bytes;
    return true;
}

bool ln_state_take_i64(ln_state_reader *reader, int64_t *value) {
    return ln_state_take(reader, value, sizeof *value);
}

uint64_t ln_state_left(const ln_state_reader *reader) {
    return reader->end - reader->at;
}

bool ln_state_changed(const ln_state_reader *reader) {
    const ln_state_input *input = reader->input;
    struct stat state;
    return fstat(input->file, &state) != 0 || (uint64_t)state.st_size != input->bytes ||
           state.st_mtim.tv_sec != input->changed.tv_sec || state.st_mtim.tv_nsec != input->changed.tv_nsec;
}

void ln_state_close(ln_state_reader *reader) {
    if (reader->input && reader->input->file >= 0) close(reader->input->file);
    ln_release(reader->context, reader->input);
    *reader = (ln_state_reader){.context = reader->context, .path = reader->path};
}
