/* Key-value memory under a policy (policy.h), of the layers that see everything.
 *
 * A lane is one key-value head of one layer. Its tokens lie in pages of up to three kinds, in this order:
 *
 *     far   tokens that left the recent ones: kind `keys, values`, then kind `low_keys, low_values`
 *     near  the first pages (sinks), then the recent tokens and the piece that is being read
 *
 * A piece is appended near, attended, and settled layer by layer: what is older than the recent tokens moves to the far
 * kinds, and where a lane holds more than its allowance the tokens of least score are given up. So the most that is
 * ever held is the allowance and one piece of one layer, for a text of any length. Tokens keep their position; their
 * rotation is never redone. Attention is a sum over keys: the order of far tokens is free, so holes are filled by the
 * last ones.
 *
 * A PROBE is run after a piece, for its queries: they score what is held, its own tokens go again. A piece that awaits
 * one is HELD: it stays near in all layers, which the bytes have room for where the policy probes, and each layer is
 * settled when the probe has attended there.
 *
 * Invariant: in a lane all pages of a kind are full but the last one; near tokens are consecutive up to the newest. */
#ifndef LN_MEMORY_RAGGED_H
#define LN_MEMORY_RAGGED_H

#include "memory/policy.h"
#include "memory/pool.h"
#include "memory/score.h"
#include "memory/state_file.h"
#include "mixer/attention.h"

/* Keys and values on a device: pages are known to it by their numbers, and it is told what is to be moved. Of a lane,
 * the tokens that move come in two steps: those of one step may be moved at once, all after those of the step before.
 */
typedef struct ln_ragged_move {
    ln_page to, from;
    int32_t to_place, from_place;
} ln_ragged_move;
typedef struct ln_ragged_elsewhere {
    void *user;
    /* Called by several threads, for each head by one. */
    void (*move)(void *user, int64_t head, int step, const ln_ragged_move *move);
    /* A page in its layout, to the host or from it: for session files. */
    linnet_status (*fetch)(void *user, ln_page page, const ln_page_layout *layout, unsigned char *to);
    linnet_status (*store)(void *user, ln_page page, const ln_page_layout *layout, const unsigned char *from);
} ln_ragged_elsewhere;

typedef struct ln_ragged_shape {
    int64_t layers, heads, key_value_heads, key_size, value_size;
    float scale;
    const ln_policy *policy;              /* copied */
    const uint8_t *kinds;                 /* [layers * key_value_heads], LN_HEAD_..., copied; NULL: unknown */
    uint64_t bytes;                       /* all that may be allocated */
    int64_t capacity, piece;              /* tokens: of the text, of a piece */
    const char *folder;                   /* of the file of pages, for opening alone; NULL: that of temporary files */
    const ln_ragged_elsewhere *elsewhere; /* keys and values are there; NULL: here. All kinds of pages are then alike */
} ln_ragged_shape;

typedef struct ln_ragged ln_ragged;

/* Pages that lanes of this shape may have, numbered from 1; all on a device where the shape says so. 0: impossible. */
int64_t ln_ragged_pages(const ln_ragged_shape *shape);
/* And one lane, as far as the policy divides evenly. */
int64_t ln_ragged_lane_pages(const ln_ragged_shape *shape);

/* The least `bytes` that hold the text as the policy wants it: where it evicts, one page a lane beside what is always
 * kept. LINNET_ERROR_ARGUMENT: the policy is impossible for these sizes. */
linnet_status ln_ragged_least(linnet_context *context, const ln_ragged_shape *shape, uint64_t *bytes);
/* Of the bytes, what a piece takes before it is settled. */
uint64_t ln_ragged_staged(const ln_ragged_shape *shape);
/* Bytes of the workspace that attending and settling need, beside that of attention. */
uint64_t ln_ragged_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape);

linnet_status ln_ragged_open(linnet_context *context, const ln_ragged_shape *shape, ln_ragged **ragged);
void ln_ragged_close(ln_ragged *ragged);
/* Shares pages until one of the two changes them; takes as many bytes again, touched when used. */
linnet_status ln_ragged_fork(ln_ragged *ragged, ln_ragged **fork);
/* The same where pages are elsewhere: `there` has them under the same numbers, and shares none. */
linnet_status ln_ragged_fork_elsewhere(ln_ragged *ragged, const ln_ragged_elsewhere *there, ln_ragged **fork);

typedef enum ln_pass {
    LN_PASS_PIECE, /* attends and settles */
    LN_PASS_HELD,  /* a piece that a probe must follow */
    LN_PASS_PROBE  /* at most as many tokens as a piece has; position and length of the text stay */
} ln_pass;
/* What the tokens until the next commit are; a piece where nothing is said. */
void ln_ragged_begin(ln_ragged *ragged, ln_pass pass);

/* What attention of a piece is about. */
typedef struct ln_ragged_call {
    const ln_kernels *kernels;
    ln_team *team;
    const ln_attention *attention; /* of the whole layer */
    int64_t tokens;
    float *query; /* [tokens, heads, key_size]; may be changed */
    int64_t query_stride, query_head_stride;
    float *output; /* [tokens, heads, value_size]; may be `query` */
    int64_t output_stride, output_head_stride;
    const ln_scene_rotation *rotation; /* of queries and keys; NULL: none */
    /* Where keys are elsewhere, what the scorer reads of them: */
    const float *columns; /* [key-value heads][columns_stride]: scene->columns */
    int64_t columns_stride;
    const ln_page_view *views; /* [key-value heads]: the lanes' pages, when pages leave; of LN_READS_EACH always */
    const float *observed;     /* of LN_READS_EACH: [observed][heads][key_size] */
    const float *log_sum_exp;  /* and [key-value heads][tokens][group], of which the last `observed` are read */
    int64_t behind;            /* tokens that came after these: they are scored alone, and nothing leaves */
    const float *gate;         /* [tokens, key_value_heads] of the model's gate; NULL: it has none */
    void *workspace;           /* aligned to 64 */
} ln_ragged_call;

/* Tokens position .. position + tokens - 1 of a layer. */
void ln_ragged_append(ln_ragged *ragged, ln_team *team, int64_t layer, int64_t tokens, const float *keys,
                      int64_t key_stride, const float *values, int64_t value_stride);
/* Attention of the tokens appended last, then settling. LINNET_ERROR_FILE: what was appended since the last commit is
 * forgotten. */
linnet_status ln_ragged_attend(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call);
/* The three of a layer whose keys and values are elsewhere, in this order: tokens that have come, with keys and values
 * NULL (append); where its lanes' tokens are; what follows from attention: of `call` the tokens, attention's scale and
 * cap, kernels, team, workspace and what lies elsewhere are read. */
int64_t ln_ragged_lane_of(const ln_ragged *ragged, int64_t layer, int64_t head, const ln_page **pages, int64_t *count);
int64_t ln_ragged_leaving(const ln_ragged *ragged, int64_t layer); /* pages that leave the near ones */
linnet_status ln_ragged_attended(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call);
uint64_t ln_ragged_attended_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape);
/* Cosines of the residual stream before and after a layer's attention, for allocators that read them. */
void ln_ragged_observe_cosine(ln_ragged *ragged, int64_t layer, const double *cosine, int64_t tokens);
/* After every layer: position += tokens. */
void ln_ragged_commit(ln_ragged *ragged, int64_t tokens);

/* Of the tokens that a lane holds, in any order; returns how many. 0 where the policy has no scorer. */
int64_t ln_ragged_positions(const ln_ragged *ragged, int64_t layer, int64_t head, int32_t *positions);
/* Positions from here on can be forgotten exactly: since then nothing was given up or moved. */
int64_t ln_ragged_rewind_limit(const ln_ragged *ragged);
/* 0, or from the limit on. */
void ln_ragged_rewind(ln_ragged *ragged, int64_t position);

/* What the scorer knows of a lane; NULL: nothing. */
const void *ln_ragged_state(const ln_ragged *ragged, int64_t layer, int64_t head);
/* Tokens that a lane keeps when the others keep as many. */
int64_t ln_ragged_room(const ln_ragged *ragged);
/* Adds the first number that the scorer keeps of each token, over all lanes, to of[its position]; of: [position]. */
void ln_ragged_importance(const ln_ragged *ragged, float *of);
/* All that decides what comes, between two pieces, as part of a session file. Reading needs the same sizes and policy;
 * without `store` nothing changes, and what can be wrong is found. Where it fails with `store`, the memory is empty. */
bool ln_ragged_writes(const ln_ragged *ragged);                                  /* false: not of this policy */
linnet_status ln_ragged_write(const ln_ragged *ragged, ln_state_writer *writer); /* fails where a device does */
linnet_status ln_ragged_read(ln_ragged *ragged, ln_state_reader *reader, int64_t position, bool store);

typedef struct ln_ragged_usage {
    uint64_t bytes, peak; /* of the family: pages in use, with the tables */
    uint64_t file;        /* of the family, in the file of pages */
    int64_t kept, evicted;
} ln_ragged_usage;
ln_ragged_usage ln_ragged_measure(const ln_ragged *ragged);

#endif
