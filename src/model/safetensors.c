/* Owns: reading a safetensors file:
 *
 *     length:u64 header:JSON[length] data
 *     header: {"name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, "__metadata__": ...}
 *
 * Invariant: a tensor handed on has end - begin = the bytes of its shape, lies inside the data, and shares no byte with
 * another. */
#include <string.h>

#include "base/checked.h"
#include "model/huggingface.h"
#include "number/format.h"

enum {
    LONGEST_HEADER = 32 << 20, /* some 250000 tensors */
    MOST_DIMENSIONS = 16,
    LONGEST_NAME = 65535
};

typedef struct dtype_row {
    const char *name;
    unsigned bytes;
    linnet_type type;
} dtype_row;

static const dtype_row dtypes[] = {
    {"F32", 4, LINNET_F32},           {"F16", 2, LINNET_F16},          {"BF16", 2, LINNET_BF16},
    {"F64", 8, LINNET_TYPE_AUTO},     {"I64", 8, LINNET_TYPE_AUTO},    {"I32", 4, LINNET_TYPE_AUTO},
    {"I16", 2, LINNET_TYPE_AUTO},     {"I8", 1, LINNET_TYPE_AUTO},     {"U64", 8, LINNET_TYPE_AUTO},
    {"U32", 4, LINNET_TYPE_AUTO},     {"U16", 2, LINNET_TYPE_AUTO},    {"U8", 1, LINNET_TYPE_AUTO},
    {"BOOL", 1, LINNET_TYPE_AUTO},    {"C64", 8, LINNET_TYPE_AUTO},    {"F8_E4M3", 1, LINNET_TYPE_AUTO},
    {"F8_E5M2", 1, LINNET_TYPE_AUTO}, {"F8_E8M0", 1, LINNET_TYPE_AUTO}};

/* ---- JSON ---- */

/* Python writes the word Infinity where JSON has no number: "null    " in a copy of such a text, so that places in
 * errors stay. NULL: no memory. */
static char *without_infinities(linnet_context *context, const char *text, size_t bytes) {
    static const char word[] = "Infinity", none[] = "null    ";
    const size_t length = sizeof word - 1;
    char *copy = ln_allocate(context, bytes, 1, "JSON text");
    bool quoted = false;
    for (size_t i = 0; copy && i < bytes; i++) {
        copy[i] = text[i];
        if (text[i] == '"') quoted = !quoted;
        if (quoted && text[i] == '\\' && i + 1 < bytes) {
            i++;
            copy[i] = text[i];
        } else if (!quoted && bytes - i >= length && memcmp(text + i, word, length) == 0) {
            if (i > 0 && copy[i - 1] == '-') copy[i - 1] = ' ';
            memcpy(copy + i, none, length);
            i += length - 1;
        }
    }
    return copy;
}

static json_t *parse(linnet_context *context, const char *text, size_t bytes, size_t flags, json_error_t *error) {
    json_t *root = json_loadb(text, bytes, flags, error);
    if (root || !memmem(text, bytes, "Infinity", 8)) return root;
    char *copy = without_infinities(context, text, bytes);
    if (copy) root = json_loadb(copy, bytes, flags, error);
    ln_release(context, copy);
    return root;
}

linnet_status ln_json_open(linnet_context *context, const char *path, const void *text, uint64_t bytes, bool exact,
                           ln_json *json) {
    /* jansson takes some ten times the text's bytes, through malloc. */
    enum { BYTES_PER_CHARACTER = 16 };
    *json = (ln_json){0};
    if (bytes > LONGEST_HEADER)
        return ln_fail(context, LINNET_ERROR_FORMAT, "%s: %llu bytes of JSON; at most %d are read", path,
                       (unsigned long long)bytes, LONGEST_HEADER);
    if (!ln_account(context, bytes * BYTES_PER_CHARACTER, "JSON text")) return LINNET_ERROR_MEMORY;
    json->accounted = bytes * BYTES_PER_CHARACTER;
    json_error_t error;
    const size_t flags = JSON_REJECT_DUPLICATES | (exact ? 0 : (size_t)JSON_DECODE_INT_AS_REAL);
    json->root = parse(context, text, (size_t)bytes, flags, &error);
    linnet_status status = LINNET_OK;
    if (!json->root)
        status = ln_fail(context, LINNET_ERROR_FORMAT, "%s: the JSON is damaged in line %d, column %d: %s", path,
                         error.line, error.column, error.text);
    else if (!json_is_object(json->root))
        status = ln_fail(context, LINNET_ERROR_FORMAT, "%s: the JSON is no object; the file is damaged", path);
    if (status != LINNET_OK) ln_json_close(context, json);
    return status;
}

void ln_json_close(linnet_context *context, ln_json *json) {
    json_decref(json->root);
    ln_account_release(context, json->accounted);
    *json = (ln_json){0};
}

/* ---- one tensor ---- */

typedef struct span {
    uint64_t begin, end;
} span;

typedef struct reader {
    linnet_file *file;
    const char *path;
    const unsigned char *data;
    uint64_t bytes; /* of data */
    span *spans;    /* of the tensors so far */
    int64_t count;
} reader;

#define BAD(r, ...) ln_fail((r)->file->context, LINNET_ERROR_FORMAT, __VA_ARGS__)

static bool whole_number(const json_t *value, uint64_t *number) {
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *number = (uint64_t)json_integer_value(value);
    return true;
}

/* GGUF's order of dimensions is the reverse of the shape's. */
static linnet_status read_shape(const reader *r, const json_t *shape, unsigned value_bytes, linnet_tensor_info *info) {
    const size_t dimensions = json_array_size(shape);
    if (!json_is_array(shape) || dimensions > MOST_DIMENSIONS)
        return BAD(r, "%s: the tensor '%.80s' has no shape of up to %d numbers; the file is damaged", r->path,
                   info->name, MOST_DIMENSIONS);
    info->bytes = value_bytes;
    info->dimensions = dimensions == 0 ? 1 : (int)dimensions;
    for (size_t i = 0; i < dimensions; i++) {
        uint64_t size;
        if (!whole_number(json_array_get(shape, i), &size) || !ln_multiply_u64(info->bytes, size, &info->bytes) ||
            info->bytes > INT64_MAX)
            return BAD(r, "%s: dimension %zu of the tensor '%.80s' is no number that a file can hold; it is damaged",
                       r->path, i, info->name);
        if (dimensions <= 4) info->size[dimensions - 1 - i] = (int64_t)size;
    }
    if (dimensions > 4 || info->bytes == 0) info->type = LINNET_TYPE_AUTO;
    return LINNET_OK;
}

static linnet_status read_entry(reader *r, const char *name, const json_t *entry, linnet_tensor_info *info,
                                const char **dtype) {
    *info = (linnet_tensor_info){.name = name, .size = {1, 1, 1, 1}};
    if (strlen(name) > LONGEST_NAME || !ln_printable(name, strlen(name)))
        return BAD(r, "%s: the name of tensor %lld is too long or holds control characters; the file is damaged",
                   r->path, (long long)r->count);
    *dtype = json_string_value(json_object_get(entry, "dtype"));
    const dtype_row *row = NULL;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes && *dtype; i++)
        if (strcmp(dtypes[i].name, *dtype) == 0) row = &dtypes[i];
    if (!row)
        return BAD(r, "%s: the tensor '%.80s' has the dtype '%.20s', which is not known; save it as F32, F16 or BF16",
                   r->path, name, *dtype ? *dtype : "");
    info->type = row->type;
    const linnet_status status = read_shape(r, json_object_get(entry, "shape"), row->bytes, info);
    if (status != LINNET_OK) return status;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    span place;
    if (json_array_size(offsets) != 2 || !whole_number(json_array_get(offsets, 0), &place.begin) ||
        !whole_number(json_array_get(offsets, 1), &place.end) || place.begin > place.end || place.end > r->bytes)
        return BAD(r,
                   "%s: the data_offsets of the tensor '%.80s' do not lie in the %llu bytes of data: the file was cut "
                   "short or is damaged; fetch it again",
                   r->path, name, (unsigned long long)r->bytes);
    if (place.end - place.begin != info->bytes)
        return BAD(r, "%s: the tensor '%.80s' has %llu bytes, but its shape needs %llu; the file is damaged", r->path,
                   name, (unsigned long long)(place.end - place.begin), (unsigned long long)info->bytes);
    info->data = r->data + place.begin;
    r->spans[r->count++] = place;
    return LINNET_OK;
}

/* ---- the file ---- */

static int compare_spans(const void *rows, int64_t a, int64_t b) {
    const span *spans = rows;
    if (spans[a].begin != spans[b].begin) return spans[a].begin < spans[b].begin ? -1 : 1;
    return spans[a].end < spans[b].end ? -1 : spans[a].end > spans[b].end;
}

static linnet_status check_overlap(const reader *r) {
    int64_t *order = ln_allocate(r->file->context, (uint64_t)r->count, sizeof *order, "order of tensors");
    if (!order) return LINNET_ERROR_MEMORY;
    ln_sort_rows(order, r->count, compare_spans, r->spans);
    linnet_status status = LINNET_OK;
    for (int64_t i = 1; i < r->count && status == LINNET_OK; i++)
        if (r->spans[order[i]].begin < r->spans[order[i - 1]].end)
            status = BAD(r, "%s: two tensors share the bytes at %llu; the file is damaged: fetch it again", r->path,
                         (unsigned long long)r->spans[order[i]].begin);
    ln_release(r->file->context, order);
    return status;
}

static linnet_status read_entries(reader *r, json_t *header, ln_take_stored take, void *user) {
    linnet_context *context = r->file->context;
    r->spans = ln_allocate(context, json_object_size(header), sizeof *r->spans, "places of tensors");
    linnet_status status = r->spans ? LINNET_OK : LINNET_ERROR_MEMORY;
    for (void *at = json_object_iter(header); at && status == LINNET_OK; at = json_object_iter_next(header, at)) {
        const char *name = json_object_iter_key(at), *dtype = NULL;
        if (strcmp(name, "__metadata__") == 0) continue;
        linnet_tensor_info info;
        status = read_entry(r, name, json_object_iter_value(at), &info, &dtype);
        if (status == LINNET_OK) status = take(user, &info, dtype);
    }
    if (status == LINNET_OK) status = check_overlap(r);
    ln_release(context, r->spans);
    return status;
}

linnet_status ln_safetensors_read(linnet_file *file, const char *path, ln_take_stored take, void *user) {
    ln_map map;
    linnet_status status = ln_file_map(file, path, &map);
    if (status != LINNET_OK) return status;
    reader r = {.file = file, .path = path};
    uint64_t length = 0;
    for (unsigned i = 0; i < 8 && map.bytes >= 8; i++) length |= (uint64_t)map.data[i] << 8 * i;
    if (map.bytes < 8 || length > map.bytes - 8)
        return BAD(&r, "%s: its header of %llu bytes runs past the end of the file (%llu bytes); fetch it again", path,
                   (unsigned long long)length, (unsigned long long)map.bytes);
    r.data = map.data + 8 + length;
    r.bytes = map.bytes - 8 - length;
    ln_json header;
    status = ln_json_open(file->context, path, map.data + 8, length, true, &header);
    if (status != LINNET_OK) return status;
    status = read_entries(&r, header.root, take, user);
    ln_json_close(file->context, &header);
    return status;
}
