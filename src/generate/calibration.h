/* What policies cost a model: the file beside the model, and what a plan reads from it.
 *
 * A row is a policy at a budget, of texts of `tokens` tokens: how far its answers are from those of the full cache, and
 * how fast it is. The budget counts as a share of the bytes of the full cache in float16, so it is used for texts of
 * any length: figures between two budgets are interpolated in the logarithm of the share, those below the least
 * measured do not exist. */
#ifndef LN_GENERATE_CALIBRATION_H
#define LN_GENERATE_CALIBRATION_H

#include "model/model.h"

enum { LN_CALIBRATION_ROWS = 256, LN_CALIBRATION_TEXT = 160 };

typedef struct ln_calibration_row {
    char policy[LN_CALIBRATION_TEXT];
    double share;                /* of the float16 bytes: given as the budget */
    double divergence, recalled; /* mean KL divergence in nats of prose, and of facts that come again */
    double agreement;            /* share of all of these whose most likely token is that of the full cache */
    double prompt, decode;       /* tokens a second, as shares of those of the full cache */
} ln_calibration_row;

typedef struct ln_calibration {
    int64_t tokens, layers, heads, count;
    ln_calibration_row *rows;
    double *figures; /* [layers][heads]: share of attention to what followed the same token before */
} ln_calibration;

/* The file's place: the model's path without .gguf, and ".calibration.json". NULL: recorded. */
char *ln_calibration_path(const linnet_model *model);
/* *calibration is NULL where there is no file. One that is damaged or of another model is refused. */
linnet_status ln_calibration_open(const linnet_model *model, ln_calibration **calibration);
/* Room for so many rows, all of them zeros; NULL: recorded. */
ln_calibration *ln_calibration_make(const linnet_model *model, int64_t rows);
void ln_calibration_close(const linnet_model *model, ln_calibration *calibration);
linnet_status ln_calibration_write(const linnet_model *model, const ln_calibration *calibration, const char *path);

/* What a policy, by its text, does at a share; false: not known there. */
bool ln_calibration_at(const ln_calibration *calibration, const char *policy, double share, ln_calibration_row *row);
/* The smaller, the better: what plans choose by. */
static inline double ln_calibration_loss(const ln_calibration_row *row) {
    return row->divergence + row->recalled;
}

/* The policies that are calibrated, and that plans choose among; NULL past the end. */
const char *ln_calibration_policy(int index);

#endif
