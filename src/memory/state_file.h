/* Session files: a stream of plain values, checked as a whole.
 *
 *     "LNSTATE1", byte-order mark 0x01020304 (u32), version (u32)      the head
 *     what the floors put, in order; all integers little-endian
 *     bytes of all before (u64), checksum of all before (u64)          the tail
 *
 * The reader checks head, tail, length and checksum of the whole file before it gives out the first byte, so a torn or
 * altered file is refused before anything changes. It reads, and maps nothing: a file that shrinks meanwhile ends early
 * instead of killing the process, and ln_state_changed tells. Writing goes by base/map.h: old or new, never half.
 */
#ifndef LN_MEMORY_STATE_FILE_H
#define LN_MEMORY_STATE_FILE_H

#include "base/map.h"
#include "kernel/attend.h"

typedef struct ln_checksum {
    uint64_t sum, pending;
    uint64_t bytes;
} ln_checksum;

typedef struct ln_state_writer {
    ln_output output;
    ln_checksum checksum;
} ln_state_writer;

/* Head and tail, for a stream that goes elsewhere than to ln_state_create's file. */
void ln_state_begin(ln_state_writer *writer);
void ln_state_end(ln_state_writer *writer);

linnet_status ln_state_create(linnet_context *context, const char *path, ln_state_writer *writer);
/* Failed writes are remembered and reported by ln_state_finish. */
void ln_state_put(ln_state_writer *writer, const void *data, uint64_t bytes);
void ln_state_put_i64(ln_state_writer *writer, int64_t value);
/* A page of keys and values, its first `tokens` tokens; the others as zeros. */
void ln_state_put_page(ln_state_writer *writer, const ln_page_layout *layout, const unsigned char *page,
                       int64_t tokens);
/* keep false: nothing appears. Always releases. */
linnet_status ln_state_finish(ln_state_writer *writer, bool keep);

/* Copies read on their own, of the same open file. */
typedef struct ln_state_reader {
    linnet_context *context;
    const char *path; /* the caller's: keep it */
    struct ln_state_input *input;
    uint64_t at, end;
} ln_state_reader;

linnet_status ln_state_open(linnet_context *context, const char *path, ln_state_reader *reader);
/* The next bytes; data NULL: skips them. false where fewer are left. */
bool ln_state_take(ln_state_reader *reader, void *data, uint64_t bytes);
bool ln_state_take_i64(ln_state_reader *reader, int64_t *value);
uint64_t ln_state_left(const ln_state_reader *reader);
/* Somebody wrote into the file since it was opened. */
bool ln_state_changed(const ln_state_reader *reader);
/* Of the reader that was opened. */
void ln_state_close(ln_state_reader *reader);

#endif
