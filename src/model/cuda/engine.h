/* The inside of a model on an NVIDIA GPU: its weights (weights.c), which belong to the model; the room of a piece
 * (room.c), which a sequence shares with its forks; pages and the pass (engine.c). */
#ifndef LN_MODEL_CUDA_ENGINE_H
#define LN_MODEL_CUDA_ENGINE_H

#include "base/checked.h"
#include "kernel/cuda/attention_cuda.h"
#include "kernel/cuda/decode_cuda.h"
#include "kernel/cuda/heads_cuda.h"
#include "kernel/cuda/lanes_cuda.h"
#include "kernel/cuda/product_cuda.h"
#include "kernel/cuda/row_work_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "model/device.h"
#include "model/part_attention.h"
#include "model/part_feed_forward.h"

enum {
    LN_CUDA_PAGE_TOKENS = 32,
    LN_CUDA_CLASSES = 2,    /* of layers: those that see everything, those with a window */
    LN_CUDA_ALIGNMENT = 256 /* of parts of a block */
};

/* Gives out parts of one block of memory; with base NULL it only counts. */
typedef struct ln_cuda_carver {
    char *base;
    uint64_t used;
} ln_cuda_carver;

static inline void *ln_cuda_carve(ln_cuda_carver *from, uint64_t count, uint64_t size) {
    void *part = from->base ? from->base + from->used : NULL;
    from->used += ln_round_up(count * size, LN_CUDA_ALIGNMENT);
    return part;
}

/* Pages of elements; else of codes. */
static inline bool ln_cuda_plain(ln_cuda_page_format format) {
    return format == LN_CUDA_PAGE_BF16 || format == LN_CUDA_PAGE_F16;
}

/* A residual block, which has one part. */
typedef struct ln_cuda_block {
    const ln_block *of;
    const ln_attention_weights *attention; /* one of these two */
    const ln_feed_forward_weights *feed_forward;
    int64_t layer, class; /* class: of its pages */
    ln_cuda_norm norm, post;
    const float *bias;        /* of the part */
    ln_cuda_weight weight[4]; /* query, key, value, output; or gate, up, down */
    const float *query_bias, *key_bias, *value_bias, *query_norm, *key_norm;
} ln_cuda_block;

/* model->on_device */
typedef struct ln_cuda_model {
    ln_cuda_device device;
    void *library; /* NULL: own kernels alone */
    void *stream;
    char *memory; /* all weights */
    uint64_t bytes;
    ln_cuda_weight embedding, head;
    ln_cuda_norm embedding_norm, output_norm;
    int64_t count;
    ln_cuda_block *blocks;
} ln_cuda_model;

/* Status and sentence of a code; `what` was being done. */
linnet_status ln_cuda_fail(linnet_context *context, ln_cuda_code code, const char *what);
#define LN_CUDA_TRY(context, call, what)                                    \
    do {                                                                    \
        const ln_cuda_code code_ = (call);                                  \
        if (code_ != LN_CUDA_OK) return ln_cuda_fail(context, code_, what); \
    } while (0)

/* The GPU that is used; a sentence where there is none that can be. */
linnet_status ln_cuda_find_device(linnet_context *context, ln_cuda_device *device);
/* As ln_device says. */
linnet_status ln_cuda_check(linnet_model *model, char *about, int64_t capacity);

/* Bytes that the weights take on the device. */
uint64_t ln_cuda_weights_bytes(const linnet_model *model);
/* Puts them there, into model->on_device. */
linnet_status ln_cuda_weights_open(linnet_model *model, const ln_cuda_device *device);
void ln_cuda_weights_close(linnet_model *model);

/* ---- the room of a piece ---- */

/* What decode and prompts of a class of layers go by. */
typedef struct ln_cuda_class {
    int64_t layers;        /* of the model, in this class */
    int64_t window, slots; /* pages of a layer */
    bool any, any_prompt;  /* sizes without kernels of their own: ln_cuda_attend_any */
    ln_cuda_decode decode; /* of one token */
    ln_cuda_decode_plan decode_plan;
    void *decode_workspace;
    int32_t *table; /* on the device: the slot of each page */
    /* Of the prompt's piece at hand. */
    int64_t first; /* token that the gathered keys begin with */
    int64_t query_offsets[2], key_offsets[2];
    ln_cuda_attention attention;
    ln_cuda_attention_plan attention_plan;
    void *tasks; /* of the attention plan */
} ln_cuda_class;

typedef struct ln_cuda_room {
    linnet_model *model;
    ln_device_shape shape;
    int64_t users, rows;                  /* rows of logits at once */
    ln_policy policy;                     /* shape.policy points to it */
    int64_t lane_pages;                   /* under a policy: of a lane, at most */
    int64_t planned_tokens, planned_keys; /* likewise: what the plan of a piece's attention is for */
    uint64_t task_bytes;                  /* of attention in a class of layers */
    char *memory;                         /* on the device */
    uint64_t bytes;
    int32_t *step_host; /* position, length, ids [piece]; of the host */
    int32_t *step;      /* the same on the device */
    int32_t *best_host;
    void *tasks_host;
    bool running; /* something may still read step_host or write best_host */
    /* On the device. */
    float *x, *finished, *given, *stage, *key, *value, *logits, *cosine[2], *sine[2];
    void *h, *query, *mixed, *gated, *gathered[2], *products;
    ln_cuda_digits digits; /* h, for products of few tokens with codes */
    double *inverse[2];
    double magnitude[2];
    int32_t *best;
    void *best_workspace;
    ln_cuda_class classes[LN_CUDA_CLASSES];
} ln_cuda_room;

/* Bytes on the device; plans are made, nothing is allocated. LINNET_ERROR_UNSUPPORTED: no way to keep keys and values
 * so. */
linnet_status ln_cuda_room_plan(linnet_model *model, const ln_cuda_device *device, const ln_device_shape *shape,
                                ln_cuda_room *room);
linnet_status ln_cuda_room_open(linnet_model *model, const ln_device_shape *shape, ln_cuda_room **room);
void ln_cuda_room_close(ln_cuda_room *room);
/* Bytes of the keys (part 0) or values (part 1) of one page of one layer of a class. */
int64_t ln_cuda_page_bytes(const ln_cuda_room *room, int class, int part);
/* And of one head of it. */
int64_t ln_cuda_head_bytes(const ln_cuda_decode *decode, int64_t size);

/* ---- pages that come and go (transfer.c) ---- */

/* Pages of one head on the device, in the processor's layout: to the host, or from it. Between passes: they go through
 * the room's activations. */
typedef struct ln_cuda_transfer {
    ln_cuda_lane_pages pages;
    const int32_t *page_table;
    int64_t first, count;
    const ln_page_layout *layout;
} ln_cuda_transfer;
linnet_status ln_cuda_fetch_pages(ln_cuda_room *room, const ln_cuda_transfer *of, unsigned char *to);
linnet_status ln_cuda_store_pages(ln_cuda_room *room, const ln_cuda_transfer *of, const unsigned char *from);

/* ---- layers under a policy (lanes.c) ---- */

/* Of one sequence. */
typedef struct ln_cuda_lanes ln_cuda_lanes;

linnet_status ln_cuda_lanes_allow(linnet_model *model, const ln_policy *policy);
/* The lanes of such a model; false: it has none. */
bool ln_cuda_lanes_shape(const linnet_model *model, const ln_device_shape *shape, ln_ragged_shape *lanes);
/* Bytes on the device: pages; and tables with what is moved. */
void ln_cuda_lanes_bytes(const ln_cuda_room *room, uint64_t *pages, uint64_t *tables);
/* from: a fork of these, between passes; NULL: empty. */
linnet_status ln_cuda_lanes_open(ln_cuda_room *room, ln_cuda_lanes *from, ln_cuda_lanes **lanes);
void ln_cuda_lanes_close(ln_cuda_lanes *lanes);
/* Before so many tokens from `position` on are run: goes back there, if need be; one token gets its places at once. */
linnet_status ln_cuda_lanes_begin(ln_cuda_lanes *lanes, int64_t tokens, int64_t position);
/* Before a layer's keys and values are there: where they go, and what attention reads (pages, tables, lengths). */
linnet_status ln_cuda_lanes_enter(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens, ln_cuda_decode_tensors *tensors);
/* With queries, keys and values in the room (those of plain pages in the pages). */
linnet_status ln_cuda_lanes_attend(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens,
                                   const ln_cuda_decode_tensors *tensors);
/* After a piece has attended there; and after all: one token settles all layers then. */
linnet_status ln_cuda_lanes_leave(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens);
linnet_status ln_cuda_lanes_end(ln_cuda_lanes *lanes, int64_t tokens);
/* Between passes: all queries are looked at, and tokens from `position` on forgotten; or, where the lanes were loaded
 * anew, what was known of them. 0: all is forgotten, after a pass that broke off too; that never fails. */
linnet_status ln_cuda_lanes_settle_at(ln_cuda_lanes *lanes, int64_t position);
ln_ragged *ln_cuda_lanes_ragged(const ln_cuda_lanes *lanes);

#endif
