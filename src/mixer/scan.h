/* The elementwise scan: recurrences whose channels, or small groups of states, do not see one another.
 *
 * A task is a block of channels of a head. The driver cuts time into blocks of LN_SCAN_STEPS, keeps the block's states
 * in one piece of cache, and hands the row a block of time at a time: `block` moves the states and writes outputs.
 * Going backward it walks forward first, keeping the states before each block of time, then hands the blocks over in
 * descending order: `gradient` makes of the gradient of the states after a block that of the states before.
 *
 * States and inputs indexed by slots are padded with zeros to whole vectors, here alone. */
#ifndef LN_MIXER_SCAN_H
#define LN_MIXER_SCAN_H

#include "mixer/mixer.h"

enum { LN_SCAN_STEPS = 32, LN_SCAN_CHANNELS = 128, LN_SCAN_BUFFERS = 24 };

typedef struct ln_scan_row ln_scan_row;

typedef struct ln_scan_task {
    const ln_mixer_call *call;
    const ln_scan_row *row;
    const ln_scan_kernels *kernels;
    bool backward;
    int64_t head, first, channels; /* columns first .. first + channels - 1 of the head's values */
    int64_t block;                 /* counts blocks of channels over all heads */
    int64_t sequence;
    int64_t padded;                        /* slots in whole vectors */
    int64_t part[LINNET_MIXER_STATES + 1]; /* where each part of the states begins, and their floats together */
    float *state, *state_gradient;
    float *checkpoints;                     /* [blocks of time][floats of the states] */
    float *unseen;                          /* outputs on the way forward of the way back */
    float *buffer[LN_SCAN_BUFFERS];         /* the row's, from lay_out */
    const float *constant[LN_SCAN_BUFFERS]; /* likewise: what prepare found */
    float *shared;                          /* of all tasks, backward alone */
} ln_scan_task;

struct ln_scan_row {
    bool whole; /* the channels of a head belong together */
    bool wide;  /* works on its inputs where they lie: blocks of channels should be wide, as rows lie pages apart */
    /* Carves the task's buffers. */
    void (*lay_out)(ln_scan_task *task, ln_carver *carver);
    /* Once a task: parameters. */
    void (*prepare)(ln_scan_task *task);
    void (*block)(ln_scan_task *task, int64_t step, int64_t count);
    /* The states are those before the block, and may be written. */
    void (*gradient)(ln_scan_task *task, int64_t step, int64_t count);
    /* Once a task: gradients of parameters. */
    void (*finish)(ln_scan_task *task);
    /* Gradients of inputs that several tasks share: floats (`blocks` of channels), and what follows all tasks. */
    uint64_t (*shared_floats)(const linnet_mixer_settings *settings, int64_t padded, int64_t blocks);
    void (*gather)(const ln_mixer_call *call, const float *shared);
};

/* ---- for rows of ln_mixer ---- */
uint64_t ln_scan_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                           const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_scan_forward(const ln_mixer_call *call);
void ln_scan_backward(const ln_mixer_call *call);

/* ---- for rows of ln_scan_row ---- */

/* Floats of one row of an input as the task sees it: its channels alone, slots padded. */
int64_t ln_scan_columns(const ln_scan_task *task, int input);
float *ln_scan_carve(ln_carver *carver, int64_t rows, int64_t columns);
/* Rows of an input (of a parameter: one), where they lie or in the buffer; `at` is NULL where it was left out. */
ln_series ln_scan_input(const ln_scan_task *task, int input, int64_t step, int64_t count, float *buffer);
/* A parameter's floats from the task's first channel on, as they lie. */
const float *ln_scan_parameter(const ln_scan_task *task, int input);
/* Adds packed rows to an input's gradient, where it is wanted. */
void ln_scan_add_gradient(const ln_scan_task *task, int input, int64_t step, int64_t count, const float *rows);
/* Of a parameter, all of it as it lies. */
void ln_scan_add_packed_gradient(const ln_scan_task *task, int input, const float *row);
ln_series_out ln_scan_output(const ln_scan_task *task, int64_t step);
ln_series ln_scan_output_gradient(const ln_scan_task *task, int64_t step);
/* Going backward: the states before the block of time that begins at `step`. */
const float *ln_scan_checkpoint(const ln_scan_task *task, int64_t step);
/* Blocks of channels of a head going backward. */
int64_t ln_scan_blocks(const ln_scan_row *row, const linnet_mixer_settings *settings);

/* ---- short convolutions inside rows: slots taps; weights as the kernel has them, [tap][channel] ---- */

/* rows: room for LN_SCAN_STEPS + slots - 1 pointers; tail: the slots - 1 rows before. */
ln_short_convolution ln_scan_taps(const ln_scan_task *task, ln_series value, int64_t count, const float *tail,
                                  const float *weight, float *rows);
/* The last slots - 1 rows become the tail; scratch is as large. */
void ln_scan_keep_tail(const ln_short_convolution *s, float *tail, float *scratch);
/* Readies rows_gradient [steps + slots - 1][channels]: its first rows become the tail's gradient, the others are the
 * values', and what the tail after the block is owed is in its last rows from the start. */
void ln_scan_taps_gradient(ln_short_convolution *s, float *tail_gradient, float *rows_gradient);
/* Of a parameter [channel][tap]; scratch [channels][padded]. */
void ln_scan_add_taps_gradient(const ln_scan_task *task, int input, const float *taps_gradient, float *scratch);

/* What the rows of rows_scan.c are made of. */
extern const ln_scan_row ln_scan_hgrn, ln_scan_rg_lru, ln_scan_min_gru, ln_scan_selective, ln_scan_convolution,
    ln_scan_s4d, ln_scan_h3, ln_scan_s5, ln_scan_lssl;

#endif
