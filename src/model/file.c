/* Owns: linnet_file: opening by kind, look-up of keys and tensors by name, typed reading, closing.
 *
 * Look-up is a binary search over indices sorted by name (heap sort: n log n whatever the file holds), so two equal
 * names are neighbours and refused. Invariant: once linnet_file_open has returned a file, names are unique and every
 * value and tensor lies in a map or an owned block. */
#include "model/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"

/* ---- sorted names: keys and tensors both begin with their name ---- */

_Static_assert(offsetof(ln_key, name) == 0 && offsetof(linnet_tensor_info, name) == 0, "names come first");

typedef struct name_table {
    const void *rows;
    size_t stride;
    int64_t *order;
    int64_t count;
} name_table;

static const char *name_at(const name_table *table, int64_t place) {
    const char *name;
    memcpy(&name, (const char *)table->rows + (size_t)table->order[place] * table->stride, sizeof name);
    return name;
}

static int compare_names(const void *rows, int64_t a, int64_t b) {
    const name_table *table = rows;
    const char *names[2];
    memcpy(&names[0], (const char *)table->rows + (size_t)a * table->stride, sizeof *names);
    memcpy(&names[1], (const char *)table->rows + (size_t)b * table->stride, sizeof *names);
    return strcmp(names[0], names[1]);
}

static void sift_down(int64_t *order, int64_t root, int64_t count, ln_compare_rows compare, const void *rows) {
    for (int64_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(rows, order[child], order[child + 1]) < 0) child++;
        if (compare(rows, order[root], order[child]) >= 0) return;
        const int64_t kept = order[root];
        order[root] = order[child];
        order[child] = kept;
    }
}

void ln_sort_rows(int64_t *order, int64_t count, ln_compare_rows compare, const void *rows) {
    for (int64_t i = 0; i < count; i++) order[i] = i;
    for (int64_t root = count / 2; root-- > 0;) sift_down(order, root, count, compare, rows);
    for (int64_t last = count - 1; last > 0; last--) {
        const int64_t largest = order[0];
        order[0] = order[last];
        order[last] = largest;
        sift_down(order, 0, last, compare, rows);
    }
}

/* The first name that occurs twice, or NULL. */
static const char *sort_names(const name_table *table) {
    ln_sort_rows(table->order, table->count, compare_names, table);
    for (int64_t i = 1; i < table->count; i++)
        if (strcmp(name_at(table, i - 1), name_at(table, i)) == 0) return name_at(table, i);
    return NULL;
}

/* The index of a row, -1 where no row has the name. */
static int64_t find_name(const name_table *table, const char *name) {
    for (int64_t low = 0, high = table->count; low < high;) {
        const int64_t middle = low + (high - low) / 2;
        const int order = strcmp(name, name_at(table, middle));
        if (order == 0) return table->order[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

static name_table key_names(const linnet_file *file) {
    return (name_table){file->keys, sizeof *file->keys, file->key_order, file->key_count};
}
static name_table tensor_names(const linnet_file *file) {
    return (name_table){file->tensors, sizeof *file->tensors, file->tensor_order, file->tensor_count};
}

static linnet_status index_names(linnet_file *file) {
    file->key_order = ln_file_own(file, (uint64_t)file->key_count, sizeof *file->key_order, "index of keys");
    file->tensor_order =
        ln_file_own(file, (uint64_t)file->tensor_count, sizeof *file->tensor_order, "index of tensors");
    if (!file->key_order || !file->tensor_order) return LINNET_ERROR_MEMORY;
    const name_table tables[2] = {key_names(file), tensor_names(file)};
    for (int i = 0; i < 2; i++) {
        const char *twice = sort_names(&tables[i]);
        if (twice)
            return ln_fail(file->context, LINNET_ERROR_FORMAT,
                           "%s holds the %s '%s' twice; the file is damaged: fetch or convert it again", file->path,
                           i == 0 ? "key" : "tensor", twice);
    }
    return LINNET_OK;
}

/* ---- what lives as long as the file ---- */

/* A list of `count` rows has room for the next power of two rows. */
static void *grow_list(linnet_context *context, void *list, int64_t count, size_t row) {
    if (count & (count - 1)) return list;
    return ln_reallocate(context, list, (uint64_t)(count ? 2 * count : 1) * row, "list of a model file's parts");
}

void *ln_file_own(linnet_file *file, uint64_t count, uint64_t size, const char *what) {
    void **owned = grow_list(file->context, file->owned, file->owned_count, sizeof *owned);
    if (!owned) return NULL;
    file->owned = owned;
    void *block = ln_allocate(file->context, count, size, what);
    if (block) file->owned[file->owned_count++] = block;
    return block;
}

linnet_status ln_file_map(linnet_file *file, const char *path, ln_map *map) {
    ln_map *maps = grow_list(file->context, file->maps, file->map_count, sizeof *maps);
    if (!maps) return LINNET_ERROR_MEMORY;
    file->maps = maps;
    const linnet_status status = ln_map_open(file->context, path, map);
    if (status != LINNET_OK) return status;
    file->maps[file->map_count++] = *map;
    file->mapped_bytes += map->bytes;
    return LINNET_OK;
}

/* ---- opening ---- */

static linnet_status read_by_kind(linnet_file *file, const char *path, bool weights) {
    linnet_context *context = file->context;
    struct stat state;
    if (stat(path, &state) != 0)
        return ln_fail(context, LINNET_ERROR_FILE, "cannot open %s: %s", path, strerror(errno));
    if (S_ISDIR(state.st_mode)) return ln_huggingface_read(file, path, weights);
    ln_map map;
    const linnet_status status = ln_map_open(context, path, &map);
    if (status != LINNET_OK) return status;
    const bool gguf = map.bytes >= 4 && memcmp(map.data, "GGUF", 4) == 0;
    const bool safetensors = map.bytes >= 9 && map.data[8] == '{';
    ln_map_close(&map);
    if (gguf) return ln_gguf_read(file, path);
    if (safetensors && weights) return ln_huggingface_read(file, path, true);
    if (!weights) return ln_huggingface_read_tokenizer(file, path);
    return ln_fail(context, LINNET_ERROR_FORMAT,
                   "%s is no model file: it begins neither as GGUF nor as safetensors; give a .gguf file, a "
                   ".safetensors file or a folder with config.json and *.safetensors",
                   path);
}

static linnet_status open_file(linnet_context *context, const char *path, bool weights, linnet_file **file) {
    *file = NULL;
    linnet_file *made = ln_allocate_zero(context, 1, sizeof *made, "model file");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->kind = "";
    made->path = ln_copy_text(context, path, strlen(path));
    linnet_status status = made->path ? read_by_kind(made, path, weights) : LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) status = index_names(made);
    if (status != LINNET_OK) {
        linnet_file_close(made);
        return status;
    }
    *file = made;
    return LINNET_OK;
}

linnet_status linnet_file_open(linnet_context *context, const char *path, linnet_file **file) {
    return open_file(context, path, true, file);
}

linnet_status ln_file_open_tokenizer(linnet_context *context, const char *path, linnet_file **file) {
    return open_file(context, path, false, file);
}

linnet_status ln_file_open_beside(linnet_context *context, const char *path, const char *kind, linnet_file **file) {
    static const char ending[] = ".gguf";
    const size_t bytes = strlen(path), last = sizeof ending - 1, room = bytes + strlen(kind) + 2;
    *file = NULL;
    if (bytes < last || strcmp(path + bytes - last, ending) != 0) return LINNET_OK;
    char *name = ln_allocate(context, room, 1, "path");
    if (!name) return LINNET_ERROR_MEMORY;
    snprintf(name, room, "%.*s.%s%s", (int)(bytes - last), path, kind, ending);
    const linnet_status status = access(name, F_OK) == 0 ? linnet_file_open(context, name, file) : LINNET_OK;
    ln_release(context, name);
    return status;
}

void linnet_file_close(linnet_file *file) {
    if (!file) return;
    for (int64_t i = 0; i < file->owned_count; i++) ln_release(file->context, file->owned[i]);
    for (int64_t i = 0; i < file->map_count; i++) ln_map_close(&file->maps[i]);
    ln_release(file->context, file->owned);
    ln_release(file->context, file->maps);
    ln_release(file->context, file->path);
    ln_release(file->context, file);
}

/* ---- look-up ---- */

const ln_key *ln_file_key(const linnet_file *file, const char *name) {
    const name_table names = key_names(file);
    const int64_t index = find_name(&names, name);
    return index < 0 ? NULL : &file->keys[index];
}

const ln_key *ln_file_key_of(const linnet_file *file, const char *suffix) {
    const ln_text architecture = ln_key_text(ln_file_key(file, "general.architecture"), 0);
    char name[256];
    if (!architecture.data || architecture.bytes >= sizeof name) return NULL;
    const int bytes = snprintf(name, sizeof name, "%.*s.%s", (int)architecture.bytes, architecture.data, suffix);
    return bytes > 0 && (size_t)bytes < sizeof name ? ln_file_key(file, name) : NULL;
}

const linnet_tensor_info *ln_file_find(const linnet_file *file, const char *name) {
    const name_table names = tensor_names(file);
    const int64_t index = find_name(&names, name);
    return index < 0 ? NULL : &file->tensors[index];
}

/* ---- typed reading ---- */

size_t ln_value_bytes(ln_value_kind kind) {
    static const unsigned char bytes[] = {
        [LN_U8] = 1,    [LN_I8] = 1,   [LN_U16] = 2,    [LN_I16] = 2, [LN_U32] = 4, [LN_I32] = 4,
        [LN_FLOAT] = 4, [LN_BOOL] = 1, [LN_DOUBLE] = 8, [LN_U64] = 8, [LN_I64] = 8};
    return (unsigned)kind < sizeof bytes ? bytes[kind] : 0;
}

static const unsigned char *value_at(const ln_key *key, uint64_t index, size_t bytes) {
    if (!key || index >= key->count || bytes == 0) return NULL;
    return (const unsigned char *)key->values + index * bytes;
}

/* The number as an integer; false where it is none or does not fit. */
static bool integer_at(const ln_key *key, uint64_t index, int64_t *value) {
    const size_t bytes = key ? ln_value_bytes(key->kind) : 0;
    const unsigned char *data = value_at(key, index, bytes);
    if (!data || key->kind == LN_FLOAT || key->kind == LN_DOUBLE) return false;
    uint64_t bits = 0;
    for (size_t i = 0; i < bytes; i++) bits |= (uint64_t)data[i] << 8 * i;
    const bool is_signed = key->kind == LN_I8 || key->kind == LN_I16 || key->kind == LN_I32;
    if (is_signed && data[bytes - 1] & 0x80) bits |= ~(uint64_t)0 << 8 * bytes;
    if (key->kind == LN_U64 && bits > INT64_MAX) return false;
    *value = (int64_t)bits;
    return true;
}

int64_t ln_key_integer(const ln_key *key, uint64_t index, int64_t fallback) {
    int64_t value;
    return integer_at(key, index, &value) ? value : fallback;
}

double ln_key_number(const ln_key *key, uint64_t index, double fallback) {
    const unsigned char *data = key ? value_at(key, index, ln_value_bytes(key->kind)) : NULL;
    if (!data) return fallback;
    if (key->kind == LN_FLOAT) {
        float value;
        memcpy(&value, data, sizeof value);
        return value;
    }
    if (key->kind == LN_DOUBLE) {
        double value;
        memcpy(&value, data, sizeof value);
        return value;
    }
    int64_t value;
    if (integer_at(key, index, &value)) return (double)value;
    uint64_t large;
    memcpy(&large, data, sizeof large);
    return (double)large;
}

ln_text ln_key_text(const ln_key *key, uint64_t index) {
    if (!key || key->kind != LN_TEXT || index >= key->count) return (ln_text){0};
    return ((const ln_text *)key->values)[index];
}

/* ---- for people ---- */

int64_t linnet_file_tensors(const linnet_file *file) {
    return file->tensor_count;
}

bool linnet_file_tensor(const linnet_file *file, int64_t index, linnet_tensor_info *info) {
    if (index < 0 || index >= file->tensor_count) return false;
    *info = file->tensors[index];
    return true;
}

int64_t linnet_file_keys(const linnet_file *file) {
    return file->key_count;
}

const char *linnet_file_text(const linnet_file *file, const char *name, size_t *bytes) {
    const ln_text text = ln_key_text(ln_file_key(file, name), 0);
    if (bytes) *bytes = text.bytes;
    return text.data;
}

const char *linnet_file_kind(const linnet_file *file) {
    return file->kind;
}

typedef struct line {
    char *text;
    size_t capacity, used;
} line;

static void put(line *out, const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes && out->used + 1 < out->capacity; i++) out->text[out->used++] = text[i];
    if (out->capacity) out->text[out->used] = 0;
}

bool ln_printable(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) return false;
    return true;
}

/* Control characters are spelled out, so that a file cannot steer the terminal; at most `most` bytes are shown. */
static void put_escaped(line *out, ln_text text, size_t most) {
    for (size_t i = 0; i < text.bytes && i < most; i++) {
        const unsigned char byte = (unsigned char)text.data[i];
        char written[8];
        if (byte == '\n')
            strcpy(written, "\\n");
        else if (byte < 0x20 || byte == 0x7f)
            snprintf(written, sizeof written, "\\x%02x", byte);
        else
            snprintf(written, sizeof written, "%c", byte);
        put(out, written, strlen(written));
    }
    if (text.bytes > most) put(out, "...", 3);
}

static void put_value(line *out, const ln_key *key, uint64_t index) {
    enum { LONGEST_TEXT = 400, LONGEST_ELEMENT = 40 };
    char number[40];
    int64_t integer;
    if (key->kind == LN_TEXT) {
        put_escaped(out, ln_key_text(key, index), key->array ? LONGEST_ELEMENT : LONGEST_TEXT);
        return;
    }
    const size_t bytes = ln_value_bytes(key->kind);
    if (key->kind == LN_U64) {
        uint64_t large;
        memcpy(&large, value_at(key, index, bytes), sizeof large);
        snprintf(number, sizeof number, "%llu", (unsigned long long)large);
    } else if (!integer_at(key, index, &integer)) {
        snprintf(number, sizeof number, bytes == 4 ? "%.7g" : "%.16g", ln_key_number(key, index, NAN));
    } else if (key->kind == LN_BOOL) {
        snprintf(number, sizeof number, "%s", integer ? "true" : "false");
    } else {
        snprintf(number, sizeof number, "%lld", (long long)integer);
    }
    put(out, number, strlen(number));
}

const char *linnet_file_key(const linnet_file *file, int64_t index, char *text, size_t capacity) {
    enum { MOST_ELEMENTS = 8 };
    if (index < 0 || index >= file->key_count) return NULL;
    const ln_key *key = &file->keys[index];
    line out = {text, capacity, 0};
    put(&out, "", 0);
    if (key->array) put(&out, "[", 1);
    for (uint64_t i = 0; i < key->count && i < MOST_ELEMENTS; i++) {
        if (i > 0) put(&out, ", ", 2);
        put_value(&out, key, i);
    }
    if (key->count > MOST_ELEMENTS) {
        char rest[48];
        snprintf(rest, sizeof rest, ", ... %llu in all", (unsigned long long)key->count);
        put(&out, rest, strlen(rest));
    }
    if (key->array) put(&out, "]", 1);
    return key->name;
}
