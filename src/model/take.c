/* Owns: taking tensors out of a model's file.
 *
 * Invariant: what was taken has exactly the rows and columns that were asked for, lies whole in the file or in a copy
 * of its own, and has a type the kernels know. */
#include "model/take.h"

#include <stdio.h>
#include <string.h>

#include "base/checked.h"

linnet_status ln_take_wrong(linnet_model *model, const linnet_tensor_info *tensor, int64_t rows, int64_t columns) {
    return ln_fail(model->context, LINNET_ERROR_FORMAT,
                   "%s: tensor %s is [%lld, %lld] where the model's keys ask for [%lld, %lld]", model->file->path,
                   tensor->name, (long long)tensor->size[1], (long long)tensor->size[0], (long long)rows,
                   (long long)columns);
}

const linnet_tensor_info *ln_take_find(linnet_model *model, int64_t layer, const char *name) {
    char full[128];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "blk.%lld.%s", (long long)layer, name);
    const linnet_tensor_info *tensor = ln_file_find(model->file, full);
    if (tensor) model->taken[tensor - model->file->tensors] = true;
    return tensor;
}

linnet_status ln_take_missing(linnet_model *model, int64_t layer, const char *name) {
    return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: the tensor %s of layer %lld is missing", model->file->path,
                   name, (long long)layer);
}

/* Whether the tensor is [rows, columns] but for axes of one. */
static bool fits(const linnet_tensor_info *tensor, int64_t rows, int64_t columns) {
    const int64_t wanted[] = {columns, rows};
    int k = 0;
    for (int i = 0; i < tensor->dimensions; i++) {
        if (tensor->size[i] == 1) continue;
        while (k < 2 && wanted[k] == 1) k++;
        if (k == 2 || tensor->size[i] != wanted[k++]) return false;
    }
    while (k < 2 && wanted[k] == 1) k++;
    return k == 2;
}

linnet_status ln_take_values(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                             bool required, const float **values) {
    const linnet_tensor_info *tensor = ln_take_find(model, layer, name);
    *values = NULL;
    if (!tensor) return required ? ln_take_missing(model, layer, name) : LINNET_OK;
    const int64_t n = rows * columns;
    if (!fits(tensor, rows, columns)) return ln_take_wrong(model, tensor, rows, columns);
    const ln_format *format = ln_format_of(tensor->type);
    if (tensor->type == LINNET_F32 && (uintptr_t)tensor->data % sizeof(float) == 0) {
        *values = tensor->data;
        return LINNET_OK;
    }
    if (tensor->size[0] % format->block != 0) return ln_take_wrong(model, tensor, rows, columns);
    float *copy = ln_file_own(model->file, (uint64_t)n, sizeof *copy, "converted vector");
    if (!copy) return LINNET_ERROR_MEMORY;
    format->decode(tensor->data, copy, n);
    *values = copy;
    return LINNET_OK;
}

linnet_status ln_take_vector(linnet_model *model, int64_t layer, const char *name, int64_t n, bool required,
                             const float **vector) {
    return ln_take_values(model, layer, name, 1, n, required, vector);
}

linnet_status ln_take_stack(linnet_model *model, int64_t layer, const char *name, int64_t count, int64_t first,
                            int64_t rows, int64_t total, int64_t columns, ln_matrix *matrices) {
    const linnet_tensor_info *tensor = ln_take_find(model, layer, name);
    if (!tensor) return ln_take_missing(model, layer, name);
    const uint64_t row_bytes = ln_format_bytes(tensor->type, columns);
    if (tensor->dimensions > 3 || tensor->size[0] != columns || tensor->size[1] != total || tensor->size[2] != count ||
        row_bytes == 0) {
        if (count == 1) return ln_take_wrong(model, tensor, total, columns);
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: tensor %s is [%lld, %lld, %lld] where the model's keys ask for [%lld, %lld, %lld]",
                       model->file->path, tensor->name, (long long)tensor->size[2], (long long)tensor->size[1],
                       (long long)tensor->size[0], (long long)count, (long long)total, (long long)columns);
    }
    if ((uintptr_t)tensor->data % (tensor->type == LINNET_F32 ? 4 : 2) != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: tensor %s starts at an odd byte; convert the model to GGUF", model->file->path,
                       tensor->name);
    for (int64_t i = 0; i < count; i++)
        matrices[i] = (ln_matrix){tensor->type, rows, columns,
                                  (const char *)tensor->data + (uint64_t)(i * total + first) * row_bytes};
    return LINNET_OK;
}

linnet_status ln_take_rows(linnet_model *model, int64_t layer, const char *name, int64_t first, int64_t rows,
                           int64_t total, int64_t columns, ln_matrix *matrix) {
    return ln_take_stack(model, layer, name, 1, first, rows, total, columns, matrix);
}

linnet_status ln_take_matrix(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                             ln_matrix *matrix) {
    return ln_take_rows(model, layer, name, 0, rows, rows, columns, matrix);
}

linnet_status ln_take_norm(linnet_model *model, int64_t layer, const char *name, bool required, ln_norm *norm) {
    char full[64];
    snprintf(full, sizeof full, "%.50s.weight", name);
    if (!ln_take_find(model, layer, full) && ln_take_find(model, layer, name)) full[strlen(full) - 7] = 0;
    LN_TRY(ln_take_vector(model, layer, full, model->hyper.width, required, &norm->weight));
    snprintf(full, sizeof full, "%.50s.bias", name);
    return norm->weight ? ln_take_vector(model, layer, full, model->hyper.width, false, &norm->bias) : LINNET_OK;
}

/* ---- keys ---- */

static uint64_t element(const ln_key *key, int64_t layer) {
    return key && key->array && layer >= 0 ? (uint64_t)layer : 0;
}

int64_t ln_take_integer(const linnet_model *model, const char *suffix, int64_t layer, int64_t fallback) {
    const ln_key *key = ln_file_key_of(model->file, suffix);
    return ln_key_integer(key, element(key, layer), fallback);
}

double ln_take_number(const linnet_model *model, const char *suffix, int64_t layer, double fallback) {
    const ln_key *key = ln_file_key_of(model->file, suffix);
    return ln_key_number(key, element(key, layer), fallback);
}

linnet_status ln_take_count(linnet_model *model, const char *suffix, int64_t layer, int64_t least, int64_t most,
                            int64_t *value) {
    const ln_key *key = ln_file_key_of(model->file, suffix);
    if (key) *value = ln_key_integer(key, element(key, layer), INT64_MIN);
    if (*value >= least && *value <= most) return LINNET_OK;
    return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: %s.%s must be a number from %lld to %lld",
                   model->file->path, model->architecture->name, suffix, (long long)least, (long long)most);
}
