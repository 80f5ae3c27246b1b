/* Owns: reading a Hugging Face folder as if it were a GGUF file: config.json becomes keys, weights get GGUF's names and
 * order of dimensions, the tokenizer's files are carried as they are:
 *
 *     tokenizer.huggingface.json, tokenizer.huggingface.config    the text of tokenizer.json, tokenizer_config.json
 *     tokenizer.linnet.end_token_ids                               every token that ends generation
 *
 * Matrices stay in the mapped file. Vectors are given as float32, and norms that are multiplied by 1 + w are given as
 * 1 + w, as in GGUF: these are owned copies. Rows of queries and keys stay in Hugging Face's order (file->huggingface).
 */
#include "model/huggingface.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "number/format.h"

typedef struct folder {
    linnet_file *file;
    const char *path;
    char *name; /* PATH/file, overwritten by file_name */
    char *config_name;
    size_t name_bytes;
    ln_config config;
    bool alone; /* one .safetensors file */
    bool tied;
    ln_buffer rows;   /* linnet_tensor_info of the tensors taken */
    ln_json index;    /* weight_map entries not found yet */
    ln_buffer stacks; /* stack */
    const char *shard;
} folder;

/* A matrix whose rows come one by one. */
typedef struct stack {
    int64_t index; /* of the tensor in rows */
    unsigned seen; /* bits of its parts */
    int parts;
} stack;

/* ---- files of the folder ---- */

static const char *file_name(folder *f, const char *name) {
    snprintf(f->name, f->name_bytes, "%s/%s", f->path, name);
    return f->name;
}

static bool exists(folder *f, const char *name) {
    struct stat state;
    return stat(file_name(f, name), &state) == 0 && S_ISREG(state.st_mode);
}

/* text.data NULL where there is no such file. */
static linnet_status map_text(folder *f, const char *name, ln_text *text) {
    *text = (ln_text){0};
    if (!exists(f, name)) return LINNET_OK;
    ln_map map;
    const linnet_status status = ln_file_map(f->file, file_name(f, name), &map);
    if (status == LINNET_OK) *text = (ln_text){map.data ? (const char *)map.data : "", (size_t)map.bytes};
    return status;
}

static linnet_status open_json(folder *f, const char *name, ln_json *json) {
    *json = (ln_json){0};
    if (!exists(f, name)) return LINNET_OK;
    ln_map map;
    linnet_status status = ln_map_open(f->file->context, file_name(f, name), &map);
    if (status != LINNET_OK) return status;
    status = ln_json_open(f->file->context, f->name, map.data ? (const char *)map.data : "", map.bytes, false, json);
    ln_map_close(&map);
    return status;
}

/* ---- tensors ---- */

/* An exact or widened copy as float32, with `shift` added, or changed as the row of its name says. */
static linnet_status own_values(linnet_file *file, linnet_tensor_info *info, float shift, const ln_name_row *row) {
    const int64_t columns = info->size[0], rows = info->size[1], count = columns * rows * info->size[2] * info->size[3];
    float *values = ln_file_own(file, (uint64_t)count, sizeof *values, "vectors of a model");
    if (!values) return LINNET_ERROR_MEMORY;
    /* A copy first: the file promises no alignment. */
    if (info->type == LINNET_F32) {
        memcpy(values, info->data, info->bytes);
    } else {
        for (int64_t i = 0; i < count; i++) {
            uint16_t half;
            memcpy(&half, (const char *)info->data + 2 * i, sizeof half);
            values[i] = info->type == LINNET_BF16 ? ln_bf16_float(half) : ln_f16_float(half);
        }
    }
    if (shift != 0)
        for (int64_t i = 0; i < count; i++) values[i] += shift;
    if (row && row->change) row->change(values, rows, columns);
    info->type = LINNET_F32;
    info->bytes = (uint64_t)count * sizeof *values;
    info->data = values;
    return LINNET_OK;
}

/* Each matrix of `info`, whose values are owned float32. */
static linnet_status transpose(linnet_file *file, linnet_tensor_info *info) {
    const int64_t columns = info->size[0], rows = info->size[1], matrices = info->size[2] * info->size[3];
    const float *from = info->data;
    float *to = ln_file_own(file, (uint64_t)(columns * rows * matrices), sizeof *to, "transposed weights");
    if (!to) return LINNET_ERROR_MEMORY;
    info->data = to;
    info->size[0] = rows;
    info->size[1] = columns;
    for (int64_t m = 0; m < matrices; m++, from += rows * columns, to += rows * columns)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j];
    return LINNET_OK;
}

static linnet_status place_tensor(folder *f, linnet_tensor_info *info, const ln_name_row *row) {
    const size_t unit = info->type == LINNET_F32 ? 4 : 2;
    const bool aligned = (uintptr_t)info->data % unit == 0;
    const ln_architecture *architecture = f->config.architecture;
    /* Taps of a convolution that goes by channels: [channels, 1, taps]. */
    if (!f->alone && info->dimensions == 3 && info->size[1] == 1 && !strstr(info->name, ".ssm_conv1d_")) {
        info->dimensions = 2;
        info->size[1] = info->size[2];
        info->size[2] = 1;
    }
    if (row && row->flat) {
        for (int i = 1; i < 4; i++) {
            info->size[0] *= info->size[i];
            info->size[i] = 1;
        }
        info->dimensions = 1;
    }
    if (row && (row->change || row->transpose || row->parts)) {
        const linnet_status status = own_values(f->file, info, 0, row);
        return status == LINNET_OK && row->transpose ? transpose(f->file, info) : status;
    }
    if (!f->alone && info->dimensions == 1) {
        const bool norm = strstr(info->name, "norm.weight") && !strstr(info->name, ".ssm_norm.");
        const float shift = norm && architecture && architecture->traits & LN_NORM_PLUS_ONE ? 1 : 0;
        return shift == 0 && info->type == LINNET_F32 && aligned ? LINNET_OK : own_values(f->file, info, shift, row);
    }
    if (aligned) return LINNET_OK;
    void *copy = ln_file_own(f->file, info->bytes, 1, "weights that lie unaligned in their file");
    if (!copy) return LINNET_ERROR_MEMORY;
    memcpy(copy, info->data, info->bytes);
    info->data = copy;
    return LINNET_OK;
}

/* A row of a matrix: the first that comes makes it. */
static linnet_status stack_tensor(folder *f, linnet_tensor_info *info, const ln_name_row *row) {
    const int64_t columns = info->size[0] * info->size[1] * info->size[2] * info->size[3];
    stack *stacks = (stack *)(void *)f->stacks.data, *found = NULL;
    linnet_tensor_info *whole = NULL;
    for (size_t i = 0; i < f->stacks.bytes / sizeof *stacks && !found; i++) {
        whole = (linnet_tensor_info *)(void *)f->rows.data + stacks[i].index;
        if (strcmp(whole->name, info->name) == 0) found = &stacks[i];
    }
    if (found && (whole->size[0] != columns || found->seen & 1U << row->part))
        return ln_fail(f->file->context, LINNET_ERROR_FORMAT, "%s: the vectors of %s do not fit together", f->path,
                       info->name);
    const float *values = info->data;
    float *to = found ? (float *)(uintptr_t)whole->data
                      : ln_file_own(f->file, (uint64_t)(columns * row->parts), sizeof *to, "vectors of a model");
    if (!to) return LINNET_ERROR_MEMORY;
    memcpy(to + row->part * columns, values, (size_t)columns * sizeof *to);
    if (found) {
        found->seen |= 1U << row->part;
        return LINNET_OK;
    }
    const stack made = {(int64_t)(f->rows.bytes / sizeof *info), 1U << row->part, row->parts};
    info->data = to;
    info->bytes = (uint64_t)(columns * row->parts) * sizeof *to;
    info->dimensions = 4; /* as others write them */
    info->size[0] = columns;
    info->size[1] = info->size[2] = 1;
    info->size[3] = row->parts;
    ln_buffer_append(&f->stacks, &made, sizeof made);
    ln_buffer_append(&f->rows, info, sizeof *info);
    return f->rows.failed || f->stacks.failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

static linnet_status check_stacks(folder *f) {
    const stack *stacks = (const stack *)(void *)f->stacks.data;
    for (size_t i = 0; i < f->stacks.bytes / sizeof *stacks; i++)
        if (stacks[i].seen != (1U << stacks[i].parts) - 1)
            return ln_fail(f->file->context, LINNET_ERROR_FORMAT, "%s: a vector of %s is missing", f->path,
                           ((linnet_tensor_info *)(void *)f->rows.data)[stacks[i].index].name);
    return LINNET_OK;
}

static linnet_status append_tensor(folder *f, linnet_tensor_info *info, const char *name, const ln_name_row *row) {
    const size_t bytes = strlen(name) + 1;
    char *kept = ln_file_own(f->file, bytes, 1, "names of tensors");
    if (!kept) return LINNET_ERROR_MEMORY;
    info->name = memcpy(kept, name, bytes);
    const linnet_status status = place_tensor(f, info, row);
    if (status != LINNET_OK) return status;
    if (row && row->parts) return stack_tensor(f, info, row);
    ln_buffer_append(&f->rows, info, sizeof *info);
    return f->rows.failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

static linnet_status take_stored(void *user, const linnet_tensor_info *stored, const char *dtype) {
    folder *f = user;
    linnet_context *context = f->file->context;
    json_t *map = json_object_get(f->index.root, "weight_map");
    const char *listed = json_string_value(json_object_get(map, stored->name));
    if (listed && strcmp(listed, f->shard) == 0) json_object_del(map, stored->name);
    linnet_tensor_info info = *stored;
    if (f->alone) {
        if (info.type != LINNET_TYPE_AUTO) return append_tensor(f, &info, stored->name, NULL);
        ln_log(context, LINNET_LOG_WARNING, "%s: the tensor '%.80s' (%s) is left out: only F32, F16 and BF16 are read",
               f->path, stored->name, dtype);
        return LINNET_OK;
    }
    char name[256];
    const ln_name_row *row;
    const ln_name_fate fate = ln_gguf_name(f->config.architecture, stored->name, name, sizeof name, &row);
    if (fate == LN_NAME_IGNORED) return LINNET_OK;
    if (fate == LN_NAME_KNOWN && f->tied && strcmp(name, "output.weight") == 0) return LINNET_OK;
    if (fate == LN_NAME_UNKNOWN && f->config.architecture)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the weight '%.80s' has no place in a %s model as Linnet knows it", f->path, stored->name,
                       f->config.architecture->name);
    if (info.type == LINNET_TYPE_AUTO)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the weight '%.80s' is stored as %s or in a shape that is not read; save the model in F32, "
                       "F16 or BF16",
                       f->path, stored->name, dtype);
    return append_tensor(f, &info, fate == LN_NAME_KNOWN ? name : stored->name, row);
}

static linnet_status take_made(void *user, const char *name, const float *values, int64_t count) {
    linnet_tensor_info info = {.type = LINNET_F32,
                               .dimensions = 1,
                               .size = {count, 1, 1, 1},
                               .bytes = (uint64_t)count * sizeof *values,
                               .data = values};
    return append_tensor(user, &info, name, NULL);
}

static linnet_status keep_tensors(folder *f) {
    linnet_file *file = f->file;
    const size_t bytes = f->rows.bytes;
    file->tensors = ln_file_own(file, bytes, 1, "tensors of a model file");
    if (!file->tensors) return LINNET_ERROR_MEMORY;
    if (bytes) memcpy(file->tensors, f->rows.data, bytes);
    file->tensor_count = (int64_t)(bytes / sizeof *file->tensors);
    return LINNET_OK;
}

/* ---- the files of weights ---- */

static linnet_status read_shard(folder *f, const char *shard) {
    f->shard = shard;
    return ln_safetensors_read(f->file, file_name(f, shard), take_stored, f);
}

static int compare_texts(const void *rows, int64_t a, int64_t b) {
    const char *const *texts = rows;
    return strcmp(texts[a], texts[b]);
}

/* Reads each of the files once, in the order of their names. list: terminated names, one after the other. */
static linnet_status read_shards(folder *f, const ln_buffer *list) {
    linnet_context *context = f->file->context;
    ln_buffer names = {.context = context};
    for (size_t at = 0; at < list->bytes; at += strlen(list->data + at) + 1) {
        const char *name = list->data + at;
        ln_buffer_append(&names, &name, sizeof name);
    }
    const char **rows = (const char **)(void *)names.data;
    const int64_t count = (int64_t)(names.bytes / sizeof *rows);
    int64_t *order = ln_allocate(context, (uint64_t)count, sizeof *order, "order of files");
    linnet_status status = order && !names.failed && !list->failed ? LINNET_OK : LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) ln_sort_rows(order, count, compare_texts, rows);
    for (int64_t i = 0; i < count && status == LINNET_OK; i++)
        if (i == 0 || strcmp(rows[order[i]], rows[order[i - 1]]) != 0) status = read_shard(f, rows[order[i]]);
    ln_release(context, order);
    ln_buffer_release(&names);
    return status;
}

/* Each weight of the index must be in the file that the index names. */
static linnet_status read_indexed(folder *f, const char *index) {
    linnet_context *context = f->file->context;
    linnet_status status = open_json(f, index, &f->index);
    if (status != LINNET_OK) return status;
    json_t *map = json_object_get(f->index.root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return ln_fail(context, LINNET_ERROR_FORMAT, "%s/%s has no \"weight_map\"; fetch it again", f->path, index);
    ln_buffer names = {.context = context};
    const char *weight;
    json_t *value;
    json_object_foreach(map, weight, value) {
        const char *shard = json_string_value(value);
        if (!shard || !*shard || strchr(shard, '/') || strlen(shard) > 200) {
            status = ln_fail(context, LINNET_ERROR_FORMAT,
                             "%s/%s: the weight '%.80s' is not in a plain file of the folder; the index is damaged",
                             f->path, index, weight);
            break;
        }
        ln_buffer_append(&names, shard, strlen(shard) + 1);
    }
    if (status == LINNET_OK) status = read_shards(f, &names);
    if (status == LINNET_OK && json_object_size(map) > 0)
        status = ln_fail(context, LINNET_ERROR_FORMAT,
                         "%s: the weight '%.80s' of the index is in none of the files; "
                         "fetch the missing file again",
                         f->path, json_object_iter_key(json_object_iter(map)));
    ln_buffer_release(&names);
    return status;
}

/* Every *.safetensors, where neither of the usual names is there. */
static linnet_status read_any(folder *f) {
    linnet_context *context = f->file->context;
    ln_buffer names = {.context = context};
    DIR *listing = opendir(f->path);
    if (!listing) return ln_fail(context, LINNET_ERROR_FILE, "cannot list %s: %s", f->path, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(listing));) {
        const size_t bytes = strlen(entry->d_name);
        if (bytes > 12 && strcmp(entry->d_name + bytes - 12, ".safetensors") == 0)
            ln_buffer_append(&names, entry->d_name, bytes + 1);
    }
    closedir(listing);
    linnet_status status = LINNET_OK;
    if (!names.failed && names.bytes == 0)
        status = ln_fail(context, LINNET_ERROR_FILE,
                         "%s holds no .safetensors file; where the weights are .bin files, save the model again with "
                         "safe serialisation",
                         f->path);
    if (status == LINNET_OK) status = read_shards(f, &names);
    ln_buffer_release(&names);
    return status;
}

static linnet_status read_weights(folder *f) {
    if (exists(f, "model.safetensors")) return read_shard(f, "model.safetensors");
    if (exists(f, "model.safetensors.index.json")) return read_indexed(f, "model.safetensors.index.json");
    return read_any(f);
}

/* ---- keys ---- */

/* The part of a path after the last slash. */
static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void write_model_name(folder *f, ln_key_writer *keys) {
    char *resolved = realpath(f->path, NULL);
    const char *listed = json_string_value(json_object_get(f->config.root, "_name_or_path"));
    const char *name = listed && *last_part(listed) ? last_part(listed) : last_part(resolved ? resolved : f->path);
    if (*name) ln_write_text(keys, "general.name", name, strlen(name));
    free(resolved);
}

/* A template of its own file, or the one in tokenizer_config.json (a text, or the one named "default" of several). */
static linnet_status write_chat_template(folder *f, ln_key_writer *keys, const ln_json *tokenizer) {
    ln_text text;
    const linnet_status status = map_text(f, "chat_template.jinja", &text);
    if (status != LINNET_OK) return status;
    const json_t *template = json_object_get(tokenizer->root, "chat_template");
    for (size_t i = 0; json_is_array(template) && i < json_array_size(template); i++) {
        const json_t *entry = json_array_get(template, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, "default") == 0) template = json_object_get(entry, "template");
    }
    if (!text.data && json_is_string(template))
        text = (ln_text){json_string_value(template), json_string_length(template)};
    if (text.data) ln_write_text(keys, "tokenizer.chat_template", text.data, text.bytes);
    return LINNET_OK;
}

/* Reads the written keys back as the file's, and adds those whose text stays in a map. */
static linnet_status keep_keys(linnet_file *file, const ln_key_writer *written, const char *const names[2],
                               const ln_text texts[2]) {
    const linnet_status written_status = ln_key_writer_status(written);
    if (written_status != LINNET_OK) return written_status;
    unsigned char *bytes = ln_file_own(file, written->bytes.bytes, 1, "keys of a model folder");
    if (!bytes) return LINNET_ERROR_MEMORY;
    if (written->bytes.bytes) memcpy(bytes, written->bytes.data, written->bytes.bytes);
    uint64_t used;
    const linnet_status status =
        ln_gguf_read_keys(file, file->path, bytes, written->bytes.bytes, written->count, &used);
    if (status != LINNET_OK) return status;
    ln_key *keys = ln_file_own(file, (uint64_t)file->key_count + 2, sizeof *keys, "keys of a model folder");
    ln_text *kept = ln_file_own(file, 2, sizeof *kept, "texts of a model folder");
    if (!keys || !kept) return LINNET_ERROR_MEMORY;
    memcpy(keys, file->keys, (size_t)file->key_count * sizeof *keys);
    file->keys = keys;
    for (int i = 0; i < 2; i++) {
        if (!texts[i].data) continue;
        kept[i] = texts[i];
        keys[file->key_count++] = (ln_key){names[i], LN_TEXT, false, 1, &kept[i]};
    }
    return LINNET_OK;
}

static const char *const tokenizer_keys[2] = {"tokenizer.huggingface.json", "tokenizer.huggingface.config"};

static linnet_status read_keys(folder *f, ln_key_writer *keys, const ln_json *tokenizer) {
    linnet_status status = ln_config_keys(&f->config, keys, take_made, f);
    write_model_name(f, keys);
    if (status == LINNET_OK) status = write_chat_template(f, keys, tokenizer);
    ln_text texts[2] = {{0}};
    if (status == LINNET_OK) status = map_text(f, "tokenizer.json", &texts[0]);
    if (status == LINNET_OK) status = map_text(f, "tokenizer_config.json", &texts[1]);
    return status == LINNET_OK ? keep_keys(f->file, keys, tokenizer_keys, texts) : status;
}

static linnet_status read_folder(folder *f, bool weights) {
    linnet_context *context = f->file->context;
    ln_json config = {0}, generate = {0}, tokenizer = {0};
    ln_key_writer keys = ln_key_writer_open(context);
    linnet_status status = open_json(f, "config.json", &config);
    if (status == LINNET_OK && !config.root)
        status = ln_fail(context, LINNET_ERROR_FILE,
                         "%s has no config.json; give a GGUF file or the folder of a Hugging Face model", f->path);
    if (status == LINNET_OK) status = open_json(f, "generation_config.json", &generate);
    if (status == LINNET_OK) status = open_json(f, "tokenizer_config.json", &tokenizer);
    if (status == LINNET_OK) status = ln_config_open(f->file, f->config_name, config.root, generate.root, &f->config);
    if (status == LINNET_OK) status = read_keys(f, &keys, &tokenizer);
    if (status == LINNET_OK) {
        f->tied = ln_config_tied(&f->config);
        if (weights) status = read_weights(f);
    }
    ln_key_writer_close(&keys);
    ln_json_close(context, &config);
    ln_json_close(context, &generate);
    ln_json_close(context, &tokenizer);
    return status;
}

linnet_status ln_huggingface_read(linnet_file *file, const char *path, bool weights) {
    struct stat state;
    folder f = {.file = file,
                .path = path,
                .rows = {.context = file->context},
                .stacks = {.context = file->context},
                .name_bytes = strlen(path) + 300};
    f.alone = stat(path, &state) == 0 && !S_ISDIR(state.st_mode);
    file->kind = f.alone ? "safetensors file" : "safetensors folder";
    file->huggingface = !f.alone;
    f.name = ln_allocate(file->context, f.name_bytes, 1, "file name");
    f.config_name = ln_allocate(file->context, f.name_bytes, 1, "file name");
    linnet_status status = f.name && f.config_name ? LINNET_OK : LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) {
        snprintf(f.config_name, f.name_bytes, "%s/config.json", path);
        status = f.alone ? ln_safetensors_read(file, path, take_stored, &f) : read_folder(&f, weights);
    }
    if (status == LINNET_OK) status = check_stacks(&f);
    if (status == LINNET_OK) status = keep_tensors(&f);
    ln_json_close(file->context, &f.index);
    ln_buffer_release(&f.rows);
    ln_buffer_release(&f.stacks);
    ln_release(file->context, f.name);
    ln_release(file->context, f.config_name);
    return status;
}

linnet_status ln_huggingface_read_tokenizer(linnet_file *file, const char *path) {
    ln_map map;
    const linnet_status status = ln_file_map(file, path, &map);
    if (status != LINNET_OK) return status;
    file->kind = "tokenizer.json";
    const ln_text texts[2] = {{map.data ? (const char *)map.data : "", (size_t)map.bytes}, {0}};
    ln_key_writer keys = ln_key_writer_open(file->context);
    const linnet_status kept = keep_keys(file, &keys, tokenizer_keys, texts);
    ln_key_writer_close(&keys);
    return kept;
}
