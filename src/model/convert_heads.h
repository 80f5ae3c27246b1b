/* A model with fewer key-value heads, one layer at a time, for the converter: which tensors change, their new sizes,
 * their new values. */
#ifndef LN_MODEL_CONVERT_HEADS_H
#define LN_MODEL_CONVERT_HEADS_H

#include "model/file.h"

typedef struct ln_heads ln_heads;

/* Opens the model once more and runs it over the calibration text. *heads NULL: the model has as many heads already. */
linnet_status ln_heads_open(linnet_context *context, const char *source, const linnet_convert_settings *settings,
                            ln_heads **heads);
void ln_heads_close(ln_heads *heads);
/* Whether merging changes this tensor; `changed` gets its new sizes (float32), without data. */
bool ln_heads_changes(const ln_heads *heads, const linnet_tensor_info *tensor, linnet_tensor_info *changed);
/* Fills in the data, valid until the next call: tensors of one layer after the other need each layer once. */
linnet_status ln_heads_make(ln_heads *heads, linnet_tensor_info *changed);

#endif
