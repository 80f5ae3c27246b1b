/* Owns: growable bytes. Invariant: data[bytes] is 0 once anything was appended, so that data is also a C string. */
#include "base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"

static bool reserve(ln_buffer *buffer, size_t more) {
    if (buffer->failed) return false;
    uint64_t need;
    if (!ln_add_u64(buffer->bytes, (uint64_t)more + 1, &need)) {
        buffer->failed = true;
        return false;
    }
    if (need <= buffer->capacity) return true;
    const uint64_t grown = need < 256 ? 256 : need + need / 2;
    char *data = ln_reallocate(buffer->context, buffer->data, grown, "text buffer");
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = grown;
    return true;
}

void ln_buffer_append(ln_buffer *buffer, const void *data, size_t bytes) {
    if (!reserve(buffer, bytes)) return;
    if (bytes) memcpy(buffer->data + buffer->bytes, data, bytes);
    buffer->bytes += bytes;
    buffer->data[buffer->bytes] = 0;
}

void ln_buffer_text(ln_buffer *buffer, const char *text) {
    ln_buffer_append(buffer, text, strlen(text));
}

void ln_buffer_format(ln_buffer *buffer, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int bytes = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (bytes >= 0 && reserve(buffer, (size_t)bytes)) {
        vsnprintf(buffer->data + buffer->bytes, (size_t)bytes + 1, format, again);
        buffer->bytes += (size_t)bytes;
    }
    va_end(again);
}

void ln_buffer_release(ln_buffer *buffer) {
    ln_release(buffer->context, buffer->data);
    *buffer = (ln_buffer){.context = buffer->context};
}
