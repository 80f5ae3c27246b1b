/* Pages of several kinds in one allowance of bytes, shared by the memories of a family (a session and its forks).
 *
 * The allowance is cut into slabs; a slab holds pages of one kind. Pages of a kind lie dense: whoever drops one moves
 * the kind's last page into the hole, so a kind wastes less than a slab and tokens can change from kind to kind without
 * fragments. A page is known by its number, which never changes, not by its place.
 *
 * Invariant: with n members there are n allowances; a member that refers to pages of at most one allowance always finds
 * room, because pages shared by members lie there once. */
#ifndef LN_MEMORY_POOL_H
#define LN_MEMORY_POOL_H

#include "base/context.h"
#include "kernel/attend.h"

enum { LN_KINDS = 4 };

/* The number of a page; 0: none. */
typedef uint32_t ln_page;

typedef struct ln_pool_shape {
    int kinds;
    ln_page_layout layout[LN_KINDS];
    bool positions; /* pages know the position of each token */
    int kept;       /* and so many numbers that the scorer keeps of it */
    bool weights;   /* and how many tokens it stands for */
    bool elsewhere; /* keys and values lie on a device, which knows pages by their numbers: here is the rest alone */
    uint64_t bytes; /* for pages, of one member */
} ln_pool_shape;

typedef struct ln_pool ln_pool;

/* Bytes that a page of a kind takes of an allowance. */
uint64_t ln_pool_page_bytes(const ln_pool_shape *shape, int kind);
/* Bytes that kinds may waste together. */
uint64_t ln_pool_waste(const ln_pool_shape *shape);
/* Bytes of whole slabs: what pages can take of shape->bytes. */
uint64_t ln_pool_capacity(const ln_pool_shape *shape);
/* What a member allocates; the most pages that it may refer to. */
uint64_t ln_pool_bytes(const ln_pool_shape *shape);
int64_t ln_pool_pages_most(const ln_pool_shape *shape);

/* Opens a pool with one member. */
linnet_status ln_pool_open(linnet_context *context, const ln_pool_shape *shape, ln_pool **pool);
linnet_status ln_pool_join(ln_pool *pool);
/* Another pool of one member with the same pages under the same numbers; of a pool of one member. */
linnet_status ln_pool_clone(const ln_pool *pool, ln_pool **clone);
/* One member less, which has dropped its pages; the last one closes the pool. NULL is allowed. */
void ln_pool_leave(ln_pool *pool);

/* A page of one user, empty; 0 where no room is left. May be called by several threads at once. */
ln_page ln_pool_take(ln_pool *pool, int kind);
void ln_pool_share(ln_pool *pool, ln_page page);
/* One user less. Moves other pages: not while anybody reads any. */
void ln_pool_drop(ln_pool *pool, ln_page page);

int ln_pool_kind(const ln_pool *pool, ln_page page);
bool ln_pool_shared(const ln_pool *pool, ln_page page);
/* Where it lies until the next drop, join or leave; not of pages that are elsewhere. */
unsigned char *ln_pool_data(const ln_pool *pool, ln_page page);
/* A page of the same kind, data and all, of one user: 0 where no room is left. */
ln_page ln_pool_copy(ln_pool *pool, ln_page page);
/* Of its LN_PAGE_TOKENS tokens; NULL where the shape has none. */
int32_t *ln_pool_positions(const ln_pool *pool, ln_page page);
/* [LN_PAGE_TOKENS][kept] */
float *ln_pool_kept(const ln_pool *pool, ln_page page);
float *ln_pool_weights(const ln_pool *pool, ln_page page);
const ln_pool_shape *ln_pool_shape_of(const ln_pool *pool);
const ln_page_layout *ln_pool_layouts(const ln_pool *pool);
/* Changes whenever pages may have moved. */
uint64_t ln_pool_version(const ln_pool *pool);
int64_t ln_pool_members(const ln_pool *pool);
/* Bytes of slabs in use now, and the most so far. */
uint64_t ln_pool_used(const ln_pool *pool, uint64_t *peak);

#endif
