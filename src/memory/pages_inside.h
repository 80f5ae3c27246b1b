/* The inside of a key-value memory, for pages.c and pages_file.c alone. */
#ifndef LN_MEMORY_PAGES_INSIDE_H
#define LN_MEMORY_PAGES_INSIDE_H

#include "base/context.h"
#include "memory/pages.h"
#include "memory/states.h"

typedef struct ln_memory_layer {
    int64_t window, slots, run; /* run: slots that lie head after head */
    int64_t lane_layer;         /* of memory->lanes; -1: it has slots, or no keys and values */
    int64_t first;              /* its first index of slots and users */
    uint64_t offset;            /* in the pool */
    int64_t kept;               /* positions kept .. position - 1 are in the slots */
    int64_t appended;           /* tokens since the last commit */
} ln_memory_layer;

struct ln_memory {
    linnet_context *context;
    ln_memory_shape shape;
    ln_page_layout layout;
    int64_t position;
    ln_pass pass;
    ln_memory *next; /* ring of the family */
    ln_memory_layer *layers;
    unsigned char **slots;
    uint32_t *users;
    unsigned char *pool;
    ln_states *states; /* NULL: no layer has one */
    ln_policy policy;  /* shape.policy points to it */
    ln_ragged *lanes;  /* of the layers under a policy; NULL: there are none */
};

/* Where a slot of this memory's own pool is. */
unsigned char *ln_memory_own_slot(const ln_memory *memory, const ln_memory_layer *layer, int64_t slot);
/* The slot in use, made unshared; keep: with its content. */
unsigned char *ln_memory_writable(ln_memory *memory, const ln_memory_layer *layer, int64_t slot, bool keep);

#endif
