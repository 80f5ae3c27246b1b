/* Putting GGUF keys and tensor heads together. Keys are written in the very form of the file format, so what a key
 * writer holds can be saved, or read back as ln_key structures (ln_gguf_read_keys): one representation for both.
 *
 * Nothing here fails at once: a refused allocation is remembered by the buffers and reported by ln_key_writer_status or
 * ln_gguf_write_head. The first value of a name stands and later ones are ignored, so write what matters most first. */
#ifndef LN_MODEL_GGUF_WRITE_H
#define LN_MODEL_GGUF_WRITE_H

#include "model/file.h"

enum { LN_GGUF_ALIGNMENT = 32 };

/* Zero-initialise, then ln_key_writer_open. */
typedef struct ln_key_writer {
    ln_buffer bytes; /* key, kind, value; key, kind, value; ... as in a GGUF v3 file */
    ln_buffer names; /* terminated names, one after the other */
    uint64_t count;
} ln_key_writer;

ln_key_writer ln_key_writer_open(linnet_context *context);
void ln_key_writer_close(ln_key_writer *keys);
linnet_status ln_key_writer_status(const ln_key_writer *keys);
bool ln_key_writer_has(const ln_key_writer *keys, const char *name);

/* kind: any integer kind or LN_BOOL. */
void ln_write_integer(ln_key_writer *keys, const char *name, ln_value_kind kind, int64_t value);
void ln_write_float(ln_key_writer *keys, const char *name, double value); /* float32 */
void ln_write_text(ln_key_writer *keys, const char *name, const char *text, size_t bytes);
/* values: little-endian elements of `kind` one after the other (LN_BOOL: one byte each); for LN_TEXT: ln_text
 * structures. */
void ln_write_array(ln_key_writer *keys, const char *name, ln_value_kind kind, const void *values, uint64_t count);
void ln_write_key(ln_key_writer *keys, const ln_key *key);

/* Writes the tokenizer.ggml.* keys of a Hugging Face file (made by the tokenizer's part from tokenizer.huggingface.*).
 * LINNET_ERROR_UNSUPPORTED where GGUF cannot say what the tokenizer does: then nothing is written. */
linnet_status ln_tokenizer_keys(linnet_context *context, const linnet_file *file, ln_key_writer *keys);

/* The whole file: keys first, then ln_gguf_add_tensor for each, then the head, then each tensor's bytes in the same
 * order, each followed by ln_gguf_pad. */
typedef struct ln_gguf_writer {
    ln_key_writer keys;
    ln_buffer tensors;
    uint64_t tensor_count, data_bytes;
} ln_gguf_writer;

ln_gguf_writer ln_gguf_writer_open(linnet_context *context);
void ln_gguf_writer_close(ln_gguf_writer *writer);
void ln_gguf_add_tensor(ln_gguf_writer *writer, const char *name, linnet_type type, int dimensions, const int64_t *size,
                        uint64_t bytes);
linnet_status ln_gguf_write_head(const ln_gguf_writer *writer, ln_output *output);
void ln_gguf_pad(ln_output *output);

#endif
