/* The inside of a linnet_file. Whatever the kind of file, what it says is given in GGUF's terms: keys, and tensors by
 * GGUF names. The readers (gguf.c, safetensors.c with huggingface.c) check every count, offset and size; all later code
 * trusts this table. */
#ifndef LN_MODEL_FILE_H
#define LN_MODEL_FILE_H

#include "base/buffer.h"
#include "base/map.h"
#include "linnet/model.h"

/* The numbers of GGUF. */
typedef enum ln_value_kind {
    LN_U8,
    LN_I8,
    LN_U16,
    LN_I16,
    LN_U32,
    LN_I32,
    LN_FLOAT,
    LN_BOOL,
    LN_TEXT,
    LN_ARRAY,
    LN_U64,
    LN_I64,
    LN_DOUBLE
} ln_value_kind;

typedef struct ln_text {
    const char *data; /* not terminated */
    size_t bytes;
} ln_text;

typedef struct ln_key {
    const char *name;   /* terminated */
    ln_value_kind kind; /* of the value, or of the elements of an array */
    bool array;
    uint64_t count; /* elements of an array; 1 otherwise */
    /* Values in little-endian order, unaligned (read with memcpy); for LN_TEXT: `count` ln_text structures. */
    const void *values;
} ln_key;

struct linnet_file {
    linnet_context *context;
    char *path;
    const char *kind;
    ln_key *keys;
    int64_t key_count;
    linnet_tensor_info *tensors;
    int64_t tensor_count;
    int64_t *key_order, *tensor_order; /* indices sorted by name, for look-up */
    uint64_t mapped_bytes;
    bool huggingface; /* query and key rows are in Hugging Face's half order even where the architecture's GGUF form
                         interleaves them */
    ln_map *maps;
    int64_t map_count;
    void **owned; /* blocks made at opening: index tables, synthetic tensors and values */
    int64_t owned_count;
};

const ln_key *ln_file_key(const linnet_file *file, const char *name);
/* A key "PREFIX.suffix" of the file's own architecture: ln_file_key_of(file, "attention.head_count") */
const ln_key *ln_file_key_of(const linnet_file *file, const char *suffix);
/* Typed reading, `fallback` where the key is missing or of another kind (any integer kind, bool included, converts
 * where it fits). index: element of an array, 0 for a scalar; out of range gives the fallback. */
int64_t ln_key_integer(const ln_key *key, uint64_t index, int64_t fallback);
double ln_key_number(const ln_key *key, uint64_t index, double fallback);
/* data NULL where it is no text. */
ln_text ln_key_text(const ln_key *key, uint64_t index);
const linnet_tensor_info *ln_file_find(const linnet_file *file, const char *name);

/* Bytes of one value of a scalar kind; 0 for LN_TEXT, LN_ARRAY and numbers that are no kind. */
size_t ln_value_bytes(ln_value_kind kind);

/* Blocks (not cleared) and maps that live as long as the file. NULL: recorded. A map's bytes stay where they are. */
void *ln_file_own(linnet_file *file, uint64_t count, uint64_t size, const char *what);
linnet_status ln_file_map(linnet_file *file, const char *path, ln_map *map);

/* The readers: fill an empty file whose context and path are set; on failure linnet_file_close cleans up. */
linnet_status ln_gguf_read(linnet_file *file, const char *path);
/* The keys alone: `count` of them in GGUF v3's form, in bytes that live as long as the file; `used` gets their length.
 */
linnet_status ln_gguf_read_keys(linnet_file *file, const char *path, const unsigned char *data, uint64_t bytes,
                                uint64_t count, uint64_t *used);
/* A folder (without `weights`: its keys alone), or one .safetensors file, whose tensors keep their own names. */
linnet_status ln_huggingface_read(linnet_file *file, const char *path, bool weights);
/* A tokenizer.json alone. */
linnet_status ln_huggingface_read_tokenizer(linnet_file *file, const char *path);

/* linnet_file_open for those who need no weights: a folder may lack them, and a tokenizer.json will do. */
linnet_status ln_file_open_tokenizer(linnet_context *context, const char *path, linnet_file **file);

/* MODEL.kind.gguf beside MODEL.gguf: what was learned for a model and is no part of it. *file stays NULL where there is
 * none. */
linnet_status ln_file_open_beside(linnet_context *context, const char *path, const char *kind, linnet_file **file);

/* Whether text holds no control characters: names from files are shown on terminals and compared as C strings. */
bool ln_printable(const char *text, size_t bytes);

/* Fills order[count] with row numbers in ascending order. compare: negative, 0 or positive, of two rows. Heap sort: in
 * place, never slow whatever a file holds. */
typedef int (*ln_compare_rows)(const void *rows, int64_t a, int64_t b);
void ln_sort_rows(int64_t *order, int64_t count, ln_compare_rows compare, const void *rows);

#endif
