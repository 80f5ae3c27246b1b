/* The memory of one sequence: keys and values in pages (kernel/attend.h tells what is in one), and recurrent states
 * (memory/states.h) of the layers that have such.
 *
 * Under a policy, layers that see everything are lanes of memory/ragged.h. Every other layer has slots, each for 32
 * consecutive tokens of all its heads: a layer that sees everything as many as the capacity needs, a sliding layer a
 * ring of ceil((window + piece) / 32) + 1. Slots are taken in order and touched when written, so memory that was not
 * used is not resident.
 *
 * Forks share slots. A slot index of a layer exists once in each of the n memories of a family, and at most n different
 * contents of it are in use, so whoever must write into a shared slot always finds a free one: appending never fails.
 */
#ifndef LN_MEMORY_PAGES_H
#define LN_MEMORY_PAGES_H

#include "kernel/attend.h"
#include "memory/ragged.h"
#include "memory/states.h"

typedef struct ln_memory_shape {
    int64_t layers, key_value_heads, key_size, value_size;
    const int64_t *window;   /* [layers]; 0: the layer sees everything. NULL: all do */
    linnet_type precision;   /* F32, F16, BF16, Q8_0, Q4_0, Q5 to Q2 */
    int64_t capacity;        /* tokens */
    int64_t piece;           /* most tokens appended between two commits */
    bool value_in_key;       /* values are the first value_size columns of the keys, and are not stored */
    const ln_policy *policy; /* of layers that see everything; NULL: these have slots too. Not with value_in_key */
    uint64_t lane_bytes;     /* that they may take; the following are theirs too */
    int64_t heads;
    float scale;
    const char *folder;  /* of the file of pages; read when opening */
    const bool *attends; /* [layers]: have keys and values; NULL: all. Where none has, sizes of heads are unread */
    const int64_t *state_floats;       /* [layers], multiples of 16: of the recurrent state; NULL: none has one */
    int64_t snapshots, interval;       /* of states (memory/states.h) */
    const ln_state_heads *state_heads; /* likewise [layers], or NULL */
    ln_state_limits limits;
    ln_ragged *lanes;          /* they are there already, on a device, and stay; NULL: they are opened and closed too */
    const uint8_t *head_kinds; /* [layers * key_value_heads] of layers that see everything, as in ln_ragged_shape */
} ln_memory_shape;

typedef struct ln_memory ln_memory;

/* Exactly what ln_memory_open allocates; UINT64_MAX where the shape is impossible. */
uint64_t ln_memory_bytes(const ln_memory_shape *shape);
linnet_status ln_memory_open(linnet_context *context, const ln_memory_shape *shape, ln_memory **memory);
void ln_memory_close(ln_memory *memory);

/* The part of the shape that is lanes; false: none. */
bool ln_memory_lanes(const ln_memory_shape *shape, ln_ragged_shape *lanes);

/* What of them is recurrent states. */
uint64_t ln_memory_state_bytes(const ln_memory_shape *shape);

/* Tokens held, without those appended since the last commit. */
int64_t ln_memory_position(const ln_memory *memory);
/* Keys [tokens, key_stride >= key_value_heads * key_size] and values of positions position .. position + tokens - 1 of
 * one layer, tokens <= piece and within the capacity. Again before a commit: replaces them. */
void ln_memory_append(ln_memory *memory, ln_team *team, int64_t layer, int64_t tokens, const float *keys,
                      int64_t key_stride, const float *values, int64_t value_stride);
/* What the tokens until the next commit are (memory/ragged.h); without a policy it makes no difference but that a
 * probe is not counted. */
void ln_memory_begin(ln_memory *memory, ln_pass pass);
ln_pass ln_memory_pass(const ln_memory *memory);
/* Attention of the tokens appended last to a layer: of `call` all but `rotation` is read. */
linnet_status ln_memory_attend(ln_memory *memory, int64_t layer, const ln_ragged_call *call);
/* The recurrent state of a layer, [state_floats]: all zeros at position 0; and where what the tokens make of it is to
 * be written, all of it, before the commit. */
const float *ln_memory_state(const ln_memory *memory, int64_t layer);
float *ln_memory_next_state(ln_memory *memory, int64_t layer);
/* The states alone; NULL: no layer has one. */
const ln_states *ln_memory_states(const ln_memory *memory);
/* Keeps a snapshot of the states where they are now, if there are states and snapshots. */
void ln_memory_mark(ln_memory *memory);
/* Whether tokens appended since the last commit can be left uncommitted: a policy has given up others for them. */
bool ln_memory_undoes(const ln_memory *memory);
/* Whether a policy asks what the model's gate says of tokens (ln_ragged_call.gate). */
bool ln_memory_wants_gate(const ln_memory *memory);
/* Whether a policy divides the budget over layers by how much attention changes the residual stream, and by how much it
 * did: the cosine of what was there before and after, of each token. */
bool ln_memory_wants_cosine(const ln_memory *memory);
void ln_memory_observe_cosine(ln_memory *memory, int64_t layer, const double *cosine, int64_t tokens);
/* position += tokens, after every layer got them. */
void ln_memory_commit(ln_memory *memory, int64_t tokens);
/* What attention reads of a layer with slots: with all that was appended. Valid until the next append, rewind, fork,
 * read or close of any memory of the family. */
ln_page_view ln_memory_view(const ln_memory *memory, int64_t layer);

/* Forgets what is at `position` and after. Sliding layers have lost what left their ring, and recurrent states are
 * known at few positions: ln_memory_rewind_point is the last position up to `position` that can be gone back to, others
 * are refused (LINNET_ERROR_UNSUPPORTED). From rewind_limit on all can. */
linnet_status ln_memory_rewind(ln_memory *memory, int64_t position);
int64_t ln_memory_rewind_point(const ln_memory *memory, int64_t position);
int64_t ln_memory_rewind_limit(const ln_memory *memory);
/* What the scorer knows of a lane; NULL: the layer has slots, or the scorer no state. */
const void *ln_memory_lane_state(const ln_memory *memory, int64_t layer, int64_t head);
/* Of the layers under a policy (memory/ragged.h); room: the capacity where there are none. */
int64_t ln_memory_room(const ln_memory *memory);
void ln_memory_importance(const ln_memory *memory, float *of);
/* What is held; of the family. */
ln_ragged_usage ln_memory_measure(const ln_memory *memory);
/* A memory with the same content, sharing slots until one of them writes; takes ln_memory_bytes like the first. */
linnet_status ln_memory_fork(ln_memory *memory, ln_memory **fork);

/* Pages first .. first + count - 1 of a layer's head, in the memory's layout one after the other. */
typedef linnet_status (*ln_memory_pages)(void *user, int64_t layer, int64_t head, int64_t first, int64_t count,
                                         const ln_page_layout *layout, unsigned char *pages);
/* A memory that stands for one on a device, which has as many slots: it gets the device's pages from `pages`, or gives
 * its own to it. reached: the most tokens that the device held at once: of sliding layers earlier pages are lost. Not
 * of layers under a policy. ln_memory_reached: what it would have been of a device that has lost what this memory has;
 * it may exceed the capacity. */
linnet_status ln_memory_take_pages(ln_memory *memory, int64_t position, int64_t reached, ln_memory_pages pages,
                                   void *user);
linnet_status ln_memory_give_pages(ln_memory *memory, ln_memory_pages pages, void *user);
int64_t ln_memory_reached(const ln_memory *memory);

/* The memory's part of a session file. Reading needs the same shape and policy but for capacity, piece and bytes, which
 * must suffice. ln_memory_check_write refuses what cannot be written yet. A file that does not fit, or does not hold
 * `expected` tokens (-1: any number), is refused with a sentence and nothing is changed; where the file changes while
 * it is read, the memory may be left empty. */
linnet_status ln_memory_check_write(const ln_memory *memory);
linnet_status ln_memory_write(const ln_memory *memory, ln_state_writer *writer);
linnet_status ln_memory_read(ln_memory *memory, ln_state_reader *reader, int64_t expected);

#endif
