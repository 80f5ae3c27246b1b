/* The host's side of products: sizes of weights, which way a product goes, slices of quantised weights. */
#include "kernel/cuda/product_cuda.h"

#include <stdio.h>

#include "kernel/cuda/product_library.h"
#include "kernel/cuda/product_table.h"
#include "kernel/cuda/row_work_cuda.h"

static int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}
static bool whole(const void *pointer, int64_t unit) {
    return pointer && (uintptr_t)pointer % (uintptr_t)unit == 0;
}

int64_t ln_cuda_padded(int64_t columns) {
    return round_up(columns, LN_CUDA_TILE_COLUMNS);
}

int64_t ln_cuda_weight_bytes(ln_cuda_weight_kind kind, int64_t rows, int64_t columns, int64_t *scales) {
    const int64_t elements = round_up(rows, LN_CUDA_TILE_ROWS) * ln_cuda_padded(columns);
    const int64_t codes = kind == LN_CUDA_WEIGHT_BF16   ? 2 * elements
                          : kind == LN_CUDA_WEIGHT_Q8_0 ? elements
                                                        : elements / 2;
    *scales = round_up(codes, 256);
    return *scales + (kind == LN_CUDA_WEIGHT_BF16 ? 0 : round_up(elements / 16, 256));
}

ln_cuda_code ln_cuda_weight_place(const ln_cuda_weight *weight, ln_cuda_raw_kind kind, const void *raw,
                                  int64_t first_row, int64_t rows, void *stream) {
    const bool blocks = weight->kind != LN_CUDA_WEIGHT_BF16;
    if (rows == 0) return LN_CUDA_OK;
    if (first_row < 0 || rows < 0 || first_row + rows > weight->rows || first_row % LN_CUDA_TILE_ROWS ||
        (rows % LN_CUDA_TILE_ROWS && first_row + rows != weight->rows))
        return LN_CUDA_ARGUMENT;
    if (!whole(raw, 16) || !whole(weight->codes, 256) || (blocks && !whole(weight->scales, 256)))
        return LN_CUDA_ARGUMENT;
    if (blocks && (weight->columns % 32 || (weight->kind == LN_CUDA_WEIGHT_Q8_0) != (kind == LN_CUDA_RAW_Q8_0) ||
                   (weight->kind == LN_CUDA_WEIGHT_Q4_0) != (kind == LN_CUDA_RAW_Q4_0)))
        return LN_CUDA_UNSUPPORTED;
    if (!blocks && (kind == LN_CUDA_RAW_Q8_0 || kind == LN_CUDA_RAW_Q4_0)) return LN_CUDA_UNSUPPORTED;
    return ln_cuda_weight_tile(weight, kind, raw, first_row, rows, stream);
}

/* ---- which way ---- */

/* Rows of a quantised weight that are rounded to bf16 at once. */
static int64_t slice_rows(const ln_cuda_weight *weight) {
    const int64_t rows = LN_CUDA_SLICE_BYTES / (2 * ln_cuda_padded(weight->columns)) / 128 * 128;
    return rows < 128 ? 128 : rows;
}

ln_cuda_code ln_cuda_product_plan_make(const ln_cuda_product *product, const ln_cuda_device *device,
                                       const void *library, ln_cuda_product_plan *plan) {
    *plan = {};
    plan->device = *device;
    const ln_cuda_weight *first = &product->weight[0];
    if (product->count < 1 || product->count > LN_CUDA_PRODUCT_MOST || product->tokens < 1 ||
        product->tokens > 1 << 30 || (product->gated && product->count != 2)) {
        snprintf(plan->why, sizeof plan->why, "a product is of 1 to 3 matrices, or of 2 that are gated, with a token");
        return LN_CUDA_ARGUMENT;
    }
    for (int i = 0; i < product->count; i++) {
        const ln_cuda_weight *weight = &product->weight[i];
        if (weight->rows < 1 || weight->columns < 1 || weight->rows > 1 << 30 || weight->columns > 1 << 30 ||
            weight->columns != first->columns || weight->kind != first->kind ||
            (product->gated && weight->rows != first->rows)) {
            snprintf(plan->why, sizeof plan->why, "matrices that share x have one kind and number of columns");
            return LN_CUDA_ARGUMENT;
        }
    }
    if (device->major < 8) {
        snprintf(plan->why, sizeof plan->why, "products need compute capability 8.0, the device has %d.%d",
                 device->major, device->minor);
        return LN_CUDA_UNSUPPORTED;
    }
    plan->few = product->tokens <= LN_CUDA_PRODUCT_FEW;
    if (plan->few) {
        const bool codes = first->kind != LN_CUDA_WEIGHT_BF16;
        /* Two digits a value, and a step for each 32. */
        if (codes) plan->workspace = round_up(product->tokens * ln_cuda_padded(first->columns) * 17 / 8, 256);
        snprintf(plan->why, sizeof plan->why, "%d tokens: weights are read once, straight from memory%s",
                 (int)product->tokens, codes ? ", and multiplied as bytes" : "");
        return LN_CUDA_OK;
    }
    plan->library = library != NULL;
    for (int i = 0; i < product->count && first->kind != LN_CUDA_WEIGHT_BF16; i++) {
        const int64_t slice = slice_rows(&product->weight[i]), rows = product->weight[i].rows;
        const int64_t bytes = round_up(slice < rows ? slice : rows, 128) * ln_cuda_padded(first->columns) * 2;
        if (bytes > plan->workspace) plan->workspace = round_up(bytes, 256);
    }
    if (library) plan->workspace += LN_CUDA_LIBRARY_BYTES;
    snprintf(plan->why, sizeof plan->why, "%d tokens: %s%s", (int)product->tokens,
             library ? "cuBLASLt" : "own kernel, as cuBLASLt was not found",
             plan->workspace ? ", of weights rounded to bf16 slice by slice" : "");
    return LN_CUDA_OK;
}

/* ---- running ---- */

static ln_cuda_code run_slice(const ln_cuda_product *product, const ln_cuda_product_plan *plan, void *library,
                              const void *weight, int64_t rows, float *y, int64_t stride, void *room, void *stream) {
    const int64_t columns = product->weight[0].columns;
    if (plan->library) {
        const ln_cuda_code code = ln_cuda_library_multiply(library, weight, rows, ln_cuda_padded(columns), product->x,
                                                           product->x_stride, product->tokens, y, stride, room, stream);
        if (code != LN_CUDA_UNSUPPORTED) return code;
    }
    return ln_cuda_product_many(weight, rows, columns, product->x, product->x_stride, product->tokens, y, stride,
                                stream);
}

static ln_cuda_code run_matrix(const ln_cuda_product *product, const ln_cuda_product_plan *plan, void *library, int i,
                               void *workspace, void *stream) {
    const ln_cuda_weight *weight = &product->weight[i];
    char *room = (char *)workspace, *slice = room + (plan->library ? LN_CUDA_LIBRARY_BYTES : 0);
    if (weight->kind == LN_CUDA_WEIGHT_BF16)
        return run_slice(product, plan, library, weight->codes, weight->rows, product->y[i], product->stride[i], room,
                         stream);
    const int64_t most = slice_rows(weight);
    for (int64_t first = 0; first < weight->rows; first += most) {
        const int64_t rows = weight->rows - first < most ? weight->rows - first : most;
        ln_cuda_code code = ln_cuda_product_round(weight, first, rows, slice, stream);
        if (!code)
            code =
                run_slice(product, plan, library, slice, rows, product->y[i] + first, product->stride[i], room, stream);
        if (code) return code;
    }
    return LN_CUDA_OK;
}

ln_cuda_code ln_cuda_product_run(const ln_cuda_product *product, const ln_cuda_product_plan *plan, void *library,
                                 void *workspace, void *stream) {
    if (product->rows) {
        const ln_cuda_rows *rows = product->rows;
        if (!plan->few || !ln_cuda_product_finishes(product, &plan->device, rows)) return LN_CUDA_UNSUPPORTED;
        if (!whole(rows->given, 16) || !whole(rows->next.weight, 16) || (rows->h && !whole(rows->h, 16)) ||
            !whole(rows->x, 16) || !whole(rows->finished, 16) || rows->finished == rows->x)
            return LN_CUDA_ARGUMENT;
    } else if (!whole(product->x, 16) || product->x_stride % 8 ||
               product->x_stride < ln_cuda_padded(product->weight[0].columns)) {
        return LN_CUDA_ARGUMENT;
    }
    for (int i = 0; i < product->count; i++) {
        const ln_cuda_weight *weight = &product->weight[i];
        if (!whole(weight->codes, 256) || (weight->kind != LN_CUDA_WEIGHT_BF16 && !whole(weight->scales, 256)))
            return LN_CUDA_ARGUMENT;
        if (!(product->gated && plan->few) && (!product->y[i] || product->stride[i] < weight->rows))
            return LN_CUDA_ARGUMENT;
    }
    if (product->gated && (!product->given || product->given_stride < product->weight[0].rows)) return LN_CUDA_ARGUMENT;
    if (plan->few != (product->tokens <= LN_CUDA_PRODUCT_FEW)) return LN_CUDA_ARGUMENT;
    if (plan->workspace && !whole(workspace, 256)) return LN_CUDA_ARGUMENT;
    if (plan->few) return ln_cuda_product_few(product, &plan->device, workspace, stream);
    for (int i = 0; i < product->count; i++) {
        const ln_cuda_code code = run_matrix(product, plan, library, i, workspace, stream);
        if (code) return code;
    }
    return product->gated ? ln_cuda_product_gate(product, stream) : LN_CUDA_OK;
}
