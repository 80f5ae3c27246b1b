/* Bytes that grow: text and files being put together. */
#ifndef LN_BASE_BUFFER_H
#define LN_BASE_BUFFER_H

#include "base/context.h"

/* Zero-initialise with a context. After a failure `failed` stays set and appends do nothing: check once at the end. */
typedef struct ln_buffer {
    linnet_context *context;
    char *data;
    size_t bytes, capacity;
    bool failed;
} ln_buffer;

void ln_buffer_append(ln_buffer *buffer, const void *data, size_t bytes);
void ln_buffer_text(ln_buffer *buffer, const char *text);
void ln_buffer_format(ln_buffer *buffer, const char *format, ...) LINNET_PRINTF(2, 3);
void ln_buffer_release(ln_buffer *buffer);

#endif
