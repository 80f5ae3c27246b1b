/* The inside of layers under a policy on a GPU, for lanes*.c alone: opening (lanes.c), settling (lanes_settle.c),
 * attention and the rest of the pass (lanes_pass.c). */
#ifndef LN_MODEL_CUDA_LANES_INSIDE_H
#define LN_MODEL_CUDA_LANES_INSIDE_H

#include "base/checked.h"
#include "base/context.h"
#include "model/cuda/engine.h"
#include "model/take.h"

enum {
    MOVES = 1 << 14 /* that go to the device at once */,
    STEPS = 2,
    KEPT = 32, /* queries of tokens alone that are kept until they are looked at */
};

typedef struct ln_cuda_move_list {
    ln_cuda_lane_move *moves;
    int64_t count;
} ln_cuda_move_list;

struct ln_cuda_lanes {
    ln_cuda_room *room;
    ln_ragged_elsewhere elsewhere;
    ln_ragged *ragged;
    int64_t position, layers, heads, table_stride, most; /* most: moves of a head */
    int64_t *index;                                      /* [layers of the model]: among those with lanes */
    bool *stale;                                         /* [layers]: the device has another table */
    int64_t *pages;                                      /* [layers]: of its lanes when the table was made */
    int32_t *host;            /* lengths [layers][heads], tables [layers][heads][table_stride] */
    ln_cuda_move_list *lists; /* [STEPS][heads] */
    ln_cuda_lane_move *block; /* of the lists; then the moves of a step */
    void *workspace;          /* of settling */
    /* What the scorer reads. */
    int reads;
    int64_t pending;            /* tokens alone whose queries were not looked at yet */
    float *columns;             /* [KEPT][heads][stride] */
    float *queries;             /* of LN_READS_EACH: [observed][heads][key_size] */
    float *log_sum_exps, *each; /* [heads][observed][group]; as the scorer wants them */
    ln_scene_rotation rotation[2];
    ln_page_layout layout;
    unsigned char *fetched;      /* pages of a layer, [heads][table_stride] */
    const unsigned char **slots; /* likewise */
    ln_page_view *views;         /* [heads] */
    uint64_t staging_bytes;
    /* On the device. */
    char *staging, *kept; /* kept: [layers][KEPT][heads of queries * key_size] */
    float *log_sum_exp;
    char *memory;
    uint64_t bytes;
    ln_cuda_lane_pages of;
    int32_t *lengths, *tables;
    ln_cuda_lane_move *moves;
};

static inline bool ln_cuda_looks_at_queries(int reads) {
    return reads & (LN_READS_SUMS | LN_READS_MOST | LN_READS_EACH);
}

/* Queries of a piece that the scorer wants. */
static inline int64_t ln_cuda_observed(const ln_policy *policy, int64_t tokens) {
    return ln_min_i64(tokens, policy->scorer->observes(policy, tokens));
}

static inline void *ln_cuda_lanes_stream(const ln_cuda_lanes *lanes) {
    return ((const ln_cuda_model *)lanes->room->model->on_device)->stream;
}

/* After a piece of `tokens` was attended in a layer (its number among those with lanes). */
linnet_status ln_cuda_lanes_settle_piece(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens);
/* After a token alone was attended in all layers. */
linnet_status ln_cuda_lanes_settle_token(ln_cuda_lanes *lanes);
/* Scores what is pending, before tokens go, or come that are more than one. */
linnet_status ln_cuda_lanes_look_behind(ln_cuda_lanes *lanes);

#endif
