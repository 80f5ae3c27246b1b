/* Owns: reading GGUF v2 and v3 (the layout is the same):
 *
 *     "GGUF" version:u32 tensors:u64 keys:u64
 *     keys:     name:text kind:u32 value            text = length:u64 bytes; array = kind:u32 count:u64 elements
 *     tensors:  name:text dimensions:u32 size:u64 x dimensions type:u32 offset:u64
 *     data, from the next multiple of the alignment on; offsets count from there
 *
 * Two passes: the first only checks and measures, the second fills tables of exactly that size. Invariant: `at` never
 * exceeds `bytes`, every count is compared with what the remaining bytes could hold before anything is multiplied or
 * allocated by it, so memory stays proportional to the file. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/file.h"
#include "number/format.h"

enum {
    LEAST_KEY = 8 + 1 + 4 + 1, /* bytes of the smallest key and tensor head */
    LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8,
    LONGEST_NAME = 65535,
    SHOWN_NAME = 80, /* bytes of a name in an error */
    DEFAULT_ALIGNMENT = 32,
    LARGEST_ALIGNMENT = 1 << 24
};

typedef struct reader {
    linnet_file *file;
    const char *path;
    const unsigned char *data;
    uint64_t at, bytes;
} reader;

/* A key or tensor head as it lies in the file, checked. */
typedef struct key_head {
    ln_text name;
    ln_value_kind kind;
    bool array;
    uint64_t count;
    const void *values;
} key_head;

typedef struct tensor_head {
    ln_text name;
    linnet_tensor_info info; /* without name and data */
    uint64_t offset;
} tensor_head;

/* ---- taking bytes ---- */

static const unsigned char *take(reader *r, uint64_t bytes) {
    if (bytes > r->bytes - r->at) return NULL;
    r->at += bytes;
    return r->data + (r->at - bytes);
}

static bool take_number(reader *r, size_t bytes, uint64_t *value) {
    const unsigned char *data = take(r, bytes);
    if (!data) return false;
    *value = 0;
    for (size_t i = 0; i < bytes; i++) *value |= (uint64_t)data[i] << 8 * i;
    return true;
}

static bool take_text(reader *r, ln_text *text) {
    uint64_t bytes;
    const unsigned char *data = take_number(r, 8, &bytes) ? take(r, bytes) : NULL;
    *text = data ? (ln_text){(const char *)data, (size_t)bytes} : (ln_text){0};
    return data != NULL;
}

#define BAD(r, ...) ln_fail((r)->file->context, LINNET_ERROR_FORMAT, __VA_ARGS__)
#define SHOWN(text) (int)((text).bytes < SHOWN_NAME ? (text).bytes : SHOWN_NAME), (text).data
typedef unsigned long long ull;

static linnet_status cut_short(const reader *r, const char *what, ln_text name) {
    return BAD(r,
               "%s: the %s '%.*s' needs more bytes than the file has (%llu): it was cut short or is damaged; fetch or "
               "convert it again",
               r->path, what, SHOWN(name), (ull)r->bytes);
}

/* A name is text that can be printed and compared as a C string. */
static linnet_status take_name(reader *r, const char *what, uint64_t number, ln_text *name) {
    if (!take_text(r, name))
        return BAD(r, "%s: the name of %s %llu runs past the end of the file (byte %llu); fetch or convert it again",
                   r->path, what, (ull)number, (ull)r->bytes);
    if (name->bytes == 0 || name->bytes > LONGEST_NAME)
        return BAD(r, "%s: the name of %s %llu has %llu bytes (1 to %d are possible); the file is damaged", r->path,
                   what, (ull)number, (ull)name->bytes, LONGEST_NAME);
    if (!ln_printable(name->data, name->bytes))
        return BAD(r, "%s: the name of %s %llu holds control characters; the file is damaged", r->path, what,
                   (ull)number);
    return LINNET_OK;
}

/* ---- keys ---- */

/* The values of a key; with `keep`, texts as a table. */
static linnet_status take_values(reader *r, key_head *key, bool keep) {
    const size_t size = ln_value_bytes(key->kind);
    key->values = r->data + r->at;
    if (key->kind != LN_TEXT) {
        uint64_t bytes;
        if (!ln_multiply_u64(key->count, size, &bytes) || !take(r, bytes)) return cut_short(r, "key", key->name);
        return LINNET_OK;
    }
    if (key->count > (r->bytes - r->at) / 8) return cut_short(r, "key", key->name);
    ln_text *texts = NULL, text;
    if (keep) {
        texts = ln_file_own(r->file, key->count, sizeof *texts, "texts of a model file");
        if (!texts) return LINNET_ERROR_MEMORY;
        key->values = texts;
    }
    for (uint64_t i = 0; i < key->count; i++)
        if (!take_text(r, keep ? &texts[i] : &text)) return cut_short(r, "key", key->name);
    return LINNET_OK;
}

static linnet_status take_key(reader *r, uint64_t number, bool keep, key_head *key) {
    const linnet_status status = take_name(r, "key", number, &key->name);
    if (status != LINNET_OK) return status;
    uint64_t kind;
    if (!take_number(r, 4, &kind)) return cut_short(r, "key", key->name);
    key->array = kind == LN_ARRAY;
    key->count = 1;
    if (key->array && (!take_number(r, 4, &kind) || !take_number(r, 8, &key->count)))
        return cut_short(r, "key", key->name);
    if (kind == LN_ARRAY)
        return ln_fail(r->file->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the key '%.*s' is an array of arrays, which no known model needs; remove it to read the "
                       "file",
                       r->path, SHOWN(key->name));
    if (kind > LN_DOUBLE)
        return BAD(r, "%s: the key '%.*s' has the value kind %llu (0 to %d are possible); the file is damaged", r->path,
                   SHOWN(key->name), (ull)kind, LN_DOUBLE);
    key->kind = (ln_value_kind)kind;
    return take_values(r, key, keep);
}

/* Copies a name to the pool and moves on. */
static const char *keep_name(char **pool, ln_text name) {
    char *kept = *pool;
    memcpy(kept, name.data, name.bytes);
    kept[name.bytes] = 0;
    *pool += name.bytes + 1;
    return kept;
}

static linnet_status read_keys(reader *r, uint64_t count) {
    linnet_file *file = r->file;
    if (count > (r->bytes - r->at) / LEAST_KEY)
        return BAD(r, "%s claims %llu keys, more than its %llu bytes can hold; fetch or convert it again", r->path,
                   (ull)count, (ull)r->bytes);
    const uint64_t start = r->at;
    uint64_t name_bytes = 0;
    key_head head;
    for (uint64_t i = 0; i < count; i++, name_bytes += head.name.bytes + 1) {
        const linnet_status status = take_key(r, i, false, &head);
        if (status != LINNET_OK) return status;
    }
    file->keys = ln_file_own(file, count, sizeof *file->keys, "keys of a model file");
    char *names = ln_file_own(file, name_bytes, 1, "names of keys");
    if (!file->keys || !names) return LINNET_ERROR_MEMORY;
    r->at = start;
    for (uint64_t i = 0; i < count; i++) {
        if (take_key(r, i, true, &head) != LINNET_OK) return LINNET_ERROR_MEMORY;
        file->keys[i] = (ln_key){keep_name(&names, head.name), head.kind, head.array, head.count, head.values};
        file->key_count = (int64_t)i + 1;
    }
    return LINNET_OK;
}

linnet_status ln_gguf_read_keys(linnet_file *file, const char *path, const unsigned char *data, uint64_t bytes,
                                uint64_t count, uint64_t *used) {
    reader r = {file, path, data, 0, bytes};
    const linnet_status status = read_keys(&r, count);
    *used = r.at;
    return status;
}

/* ---- tensors ---- */

/* Formats of other programs that are met in practice: their number is named so that the user knows what to convert. */
static const char *foreign_type(uint64_t type) {
    static const char *const names[] = {
        [4] = "q4_2",     [5] = "q4_3",   [9] = "q8_1",    [15] = "q8_k",  [16] = "iq2_xxs", [17] = "iq2_xs",
        [18] = "iq3_xxs", [19] = "iq1_s", [20] = "iq4_nl", [21] = "iq3_s", [22] = "iq2_s",   [23] = "iq4_xs",
        [24] = "i8",      [25] = "i16",   [26] = "i32",    [27] = "i64",   [28] = "f64",     [29] = "iq1_m",
        [34] = "tq1_0",   [35] = "tq2_0", [39] = "mxfp4",  [40] = "nvfp4"};
    return type < sizeof names / sizeof *names && names[type] ? names[type] : "unknown";
}

static linnet_status check_shape(const reader *r, const tensor_head *head) {
    const linnet_tensor_info *info = &head->info;
    int block = 1, block_bytes = 0;
    linnet_type_layout(info->type, &block, &block_bytes);
    if (info->size[0] % block != 0)
        return BAD(r,
                   "%s: the tensor '%.*s' has rows of %lld values, no multiple of the %d in a block of %s; the file is "
                   "damaged",
                   r->path, SHOWN(head->name), (long long)info->size[0], block, linnet_type_name(info->type));
    return LINNET_OK;
}

/* Sizes and bytes of info, by the dimensions that follow in the file. */
static linnet_status take_sizes(reader *r, tensor_head *head) {
    linnet_tensor_info *info = &head->info;
    uint64_t dimensions, values = 1;
    if (!take_number(r, 4, &dimensions)) return cut_short(r, "tensor", head->name);
    if (dimensions < 1 || dimensions > 4)
        return BAD(r, "%s: the tensor '%.*s' has %llu dimensions (1 to 4 are possible); the file is damaged", r->path,
                   SHOWN(head->name), (ull)dimensions);
    info->dimensions = (int)dimensions;
    for (uint64_t i = 0; i < dimensions; i++) {
        uint64_t size;
        if (!take_number(r, 8, &size)) return cut_short(r, "tensor", head->name);
        if (size == 0 || !ln_multiply_u64(values, size, &values) || values > INT64_MAX / 8)
            return BAD(r, "%s: dimension %llu of the tensor '%.*s' is %llu, which no file can hold; it is damaged",
                       r->path, (ull)i, SHOWN(head->name), (ull)size);
        info->size[i] = (int64_t)size;
    }
    return LINNET_OK;
}

static linnet_status take_tensor(reader *r, uint64_t number, tensor_head *head) {
    *head = (tensor_head){.info.size = {1, 1, 1, 1}};
    linnet_status status = take_name(r, "tensor", number, &head->name);
    if (status == LINNET_OK) status = take_sizes(r, head);
    if (status != LINNET_OK) return status;
    uint64_t type;
    if (!take_number(r, 4, &type) || !take_number(r, 8, &head->offset)) return cut_short(r, "tensor", head->name);
    if (type >= LN_TYPES || !ln_format_of((linnet_type)type))
        return ln_fail(r->file->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the tensor '%.*s' is stored as type %llu (%s), which Linnet does not read; use a file in "
                       "f32, f16, bf16, q4_0 to q8_0 or q2_k to q6_k",
                       r->path, SHOWN(head->name), (ull)type, foreign_type(type));
    linnet_tensor_info *info = &head->info;
    info->type = (linnet_type)type;
    status = check_shape(r, head);
    if (status != LINNET_OK) return status;
    /* There are fewer than 2^60 values, of at most four bytes: no overflow. */
    info->bytes = ln_format_bytes(info->type, info->size[0]) * (uint64_t)info->size[1] * (uint64_t)info->size[2] *
                  (uint64_t)info->size[3];
    return LINNET_OK;
}

static linnet_status alignment_of(const reader *r, uint64_t *alignment) {
    *alignment = DEFAULT_ALIGNMENT;
    for (int64_t i = 0; i < r->file->key_count; i++) {
        const ln_key *key = &r->file->keys[i];
        if (strcmp(key->name, "general.alignment") != 0) continue;
        const int64_t value = ln_key_integer(key, 0, -1);
        if (key->array || value < 8 || value > LARGEST_ALIGNMENT || (value & (value - 1)))
            return BAD(r, "%s: the key 'general.alignment' is %lld, no power of two from 8 to %d; the file is damaged",
                       r->path, (long long)value, LARGEST_ALIGNMENT);
        *alignment = (uint64_t)value;
    }
    return LINNET_OK;
}

/* Where the tensor's bytes are: aligned, behind those of the tensor before, inside the file. */
static linnet_status place_tensor(const reader *r, const tensor_head *head, uint64_t data, uint64_t alignment,
                                  uint64_t *free_from, linnet_tensor_info *info) {
    if (head->offset % alignment != 0)
        return BAD(
            r, "%s: the tensor '%.*s' begins at offset %llu, no multiple of the alignment %llu; the file is damaged",
            r->path, SHOWN(head->name), (ull)head->offset, (ull)alignment);
    if (head->offset < *free_from)
        return BAD(r, "%s: the tensor '%.*s' at offset %llu overlaps the one before it; the file is damaged", r->path,
                   SHOWN(head->name), (ull)head->offset);
    const uint64_t held = r->bytes - data;
    if (head->offset > held || head->info.bytes > held - head->offset)
        return BAD(r,
                   "%s: the tensor '%.*s' needs %llu bytes at offset %llu of %llu bytes of weights: the file was cut "
                   "short; fetch it again",
                   r->path, SHOWN(head->name), (ull)head->info.bytes, (ull)head->offset, (ull)held);
    *free_from = head->offset + head->info.bytes;
    *info = head->info;
    info->data = r->data + data + head->offset;
    return LINNET_OK;
}

static linnet_status read_tensors(reader *r, uint64_t count) {
    linnet_file *file = r->file;
    if (count > (r->bytes - r->at) / LEAST_TENSOR)
        return BAD(r, "%s claims %llu tensors, more than its %llu bytes can hold; fetch or convert it again", r->path,
                   (ull)count, (ull)r->bytes);
    const uint64_t start = r->at;
    uint64_t name_bytes = 0, alignment, free_from = 0;
    linnet_status status = alignment_of(r, &alignment);
    tensor_head head;
    for (uint64_t i = 0; i < count && status == LINNET_OK; i++, name_bytes += head.name.bytes + 1)
        status = take_tensor(r, i, &head);
    if (status != LINNET_OK) return status;
    const uint64_t data = ln_round_up(r->at, alignment);
    if (count > 0 && data > r->bytes)
        return BAD(r, "%s ends before its weights (byte %llu of at least %llu); fetch it again", r->path, (ull)r->bytes,
                   (ull)data);
    file->tensors = ln_file_own(file, count, sizeof *file->tensors, "tensors of a model file");
    char *names = ln_file_own(file, name_bytes, 1, "names of tensors");
    if (!file->tensors || !names) return LINNET_ERROR_MEMORY;
    r->at = start;
    for (uint64_t i = 0; i < count && status == LINNET_OK; i++) {
        take_tensor(r, i, &head);
        status = place_tensor(r, &head, data, alignment, &free_from, &file->tensors[i]);
        file->tensors[i].name = keep_name(&names, head.name);
    }
    if (status == LINNET_OK) file->tensor_count = (int64_t)count;
    return status;
}

/* ---- the head ---- */

static linnet_status read_version(reader *r, linnet_file *file) {
    uint64_t version;
    if (!take(r, 4) || !take_number(r, 4, &version))
        return BAD(r, "%s has only %llu bytes, too few for a GGUF file; fetch it again", r->path, (ull)r->bytes);
    if (version == 2 || version == 3) {
        file->kind = version == 2 ? "GGUF v2" : "GGUF v3";
        return LINNET_OK;
    }
    if (version != 0 && (version & 0xffff) == 0)
        return ln_fail(file->context, LINNET_ERROR_UNSUPPORTED,
                       "%s is a big-endian GGUF file; convert the model again on a little-endian machine", r->path);
    return ln_fail(file->context, LINNET_ERROR_UNSUPPORTED,
                   "%s is GGUF version %llu; versions 2 and 3 are read: convert the model again with a current program",
                   r->path, (ull)version);
}

linnet_status ln_gguf_read(linnet_file *file, const char *path) {
    ln_map map;
    linnet_status status = ln_file_map(file, path, &map);
    if (status != LINNET_OK) return status;
    reader r = {file, path, map.data, 0, map.bytes};
    uint64_t tensors, keys;
    status = read_version(&r, file);
    if (status != LINNET_OK) return status;
    if (!take_number(&r, 8, &tensors) || !take_number(&r, 8, &keys))
        return BAD(&r, "%s has only %llu bytes, too few for a GGUF file; fetch it again", path, (ull)r.bytes);
    status = read_keys(&r, keys);
    return status == LINNET_OK ? read_tensors(&r, tensors) : status;
}
