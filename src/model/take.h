/* Taking what a model file holds, checked: tensors of layers, and keys with a value for each layer. What is taken lies
 * in the mapped file or lives as long as the file; what nobody took is refused when the model is open. */
#ifndef LN_MODEL_TAKE_H
#define LN_MODEL_TAKE_H

#include "model/model.h"

#define LN_TRY(call)                              \
    do {                                          \
        const linnet_status status_ = (call);     \
        if (status_ != LINNET_OK) return status_; \
    } while (0)

/* The tensor blk.LAYER.name, or `name` alone where layer is negative; NULL: the file has none. Counts as taken. */
const linnet_tensor_info *ln_take_find(linnet_model *model, int64_t layer, const char *name);
linnet_status ln_take_missing(linnet_model *model, int64_t layer, const char *name);
linnet_status ln_take_wrong(linnet_model *model, const linnet_tensor_info *tensor, int64_t rows, int64_t columns);

/* A float32 vector of n values; NULL where it is missing and may be. Axes of one more or less are the same to vectors
 * and values. */
linnet_status ln_take_vector(linnet_model *model, int64_t layer, const char *name, int64_t n, bool required,
                             const float **vector);
/* [rows, columns] values as float32, for what is no matrix of a product: taps, rates, states at the beginning. */
linnet_status ln_take_values(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                             bool required, const float **values);
linnet_status ln_take_matrix(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                             ln_matrix *matrix);
/* Rows first .. first + rows - 1 of a matrix that has `total` rows. */
linnet_status ln_take_rows(linnet_model *model, int64_t layer, const char *name, int64_t first, int64_t rows,
                           int64_t total, int64_t columns, ln_matrix *matrix);
/* The same of each of `count` matrices in one tensor. */
linnet_status ln_take_stack(linnet_model *model, int64_t layer, const char *name, int64_t count, int64_t first,
                            int64_t rows, int64_t total, int64_t columns, ln_matrix *matrices);
/* NAME.weight, or NAME alone, [width of the model] and, where the file has it, NAME.bias, with which the mean is taken
 * off. */
linnet_status ln_take_norm(linnet_model *model, int64_t layer, const char *name, bool required, ln_norm *norm);
/* The key ARCHITECTURE.suffix: one value for all layers, or an array with a value for each. */
int64_t ln_take_integer(const linnet_model *model, const char *suffix, int64_t layer, int64_t fallback);
double ln_take_number(const linnet_model *model, const char *suffix, int64_t layer, double fallback);
/* The same from `least` to `most`, else a sentence; *value keeps what it holds where the key is missing and that is
 * within. */
linnet_status ln_take_count(linnet_model *model, const char *suffix, int64_t layer, int64_t least, int64_t most,
                            int64_t *value);

#endif
