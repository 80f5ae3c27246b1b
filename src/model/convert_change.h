/* What GGUF holds in another form than a Hugging Face folder does, for the converter: which tensors are written, and
 * which rows of the source, times which factor, they are. */
#ifndef LN_MODEL_CONVERT_CHANGE_H
#define LN_MODEL_CONVERT_CHANGE_H

#include "model/architecture.h"

enum { LN_CHANGE_FACTORS = 5 };

/* One tensor as it is written; its data are the source's, or the sources' one after the other. */
typedef struct ln_change {
    linnet_tensor_info tensor;
    int64_t rows, of, first;  /* row r is row r / rows * of + first + r % rows of the source; rows 0: row r */
    const void *const *stack; /* NULL: not; row r is row r % stack_rows of stack[r / stack_rows] */
    int64_t stack_rows;
    int factors; /* rows up to end[i], from the one before on, are multiplied by factor[i]; 0: none is */
    int64_t end[LN_CHANGE_FACTORS];
    float factor[LN_CHANGE_FACTORS];
} ln_change;

typedef struct ln_changes {
    linnet_context *context;
    bool multiplied;
    ln_change *list; /* [count], in the order of the file */
    int64_t count;
    char (*names)[96];
    const void **stacked; /* [tensors] */
    int64_t stacked_count;
    bool *taken; /* [tensors] that lie in a stack */
} ln_changes;

linnet_status ln_changes_open(linnet_context *context, const linnet_file *file, const ln_architecture *architecture,
                              ln_changes *changes);
void ln_changes_close(ln_changes *changes);
/* Where row `row` of the tensor as it is written lies, rows being of `bytes` bytes. */
const unsigned char *ln_change_row(const ln_change *change, const void *data, int64_t row, size_t bytes);
float ln_change_factor(const ln_change *change, int64_t row);
/* Whether a key says what the written weights have in them. */
bool ln_changes_spend(const ln_changes *changes, const ln_key *key);

#endif
