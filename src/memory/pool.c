/* Owns: the slabs of a family's pages, and the records that tell where each page lies.
 *
 *   a slab's pages   slab / page_bytes(kind)
 *   page n of a kind lies in place n % pages of the kind's slab n / pages
 *
 * Invariant: pages 0 .. used - 1 of a kind exist, and ceil(used / pages) slabs are the kind's. */
#include "memory/pool.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"

enum { SLAB_LEAST = 16 << 10, SLAB_PAGES = 4, SLAB_UNIT = 4096, HUGE_PAGE = 2 << 20, PARTS = 16 /* of an allowance */ };

typedef struct record {
    uint32_t place; /* page of its kind; free: the next free record */
    uint16_t users; /* 0: free */
    uint8_t kind, unused;
} record;

typedef struct arena {
    unsigned char *base;
    uint32_t used; /* slabs */
} arena;

typedef struct page_kind {
    uint64_t stored; /* bytes of a page here */
    uint32_t slab_pages, used;
    uint32_t *slabs;  /* [slabs of all members] */
    uint32_t *owners; /* [pages of all members]: record of each page */
} page_kind;

struct ln_pool {
    linnet_context *context;
    ln_pool_shape shape;
    uint64_t slab, stored;         /* bytes of a slab: as they count, and here */
    int64_t slabs, pages;          /* of a member; pages: its records */
    int64_t members, opened, room; /* opened: arenas, as many or more; room: members that the tables have room for */
    page_kind kinds[LN_KINDS];
    arena *arenas;      /* [room]; the tables' block */
    record *records;    /* [1 + room * pages] */
    uint8_t *slab_used; /* [room * slabs] */
    uint32_t free;      /* first free record */
    uint64_t in_use, peak, version;
    pthread_mutex_t lock;
};

/* ---- sizes ---- */

static uint64_t extra_bytes(const ln_pool_shape *shape) {
    const uint64_t word = LN_PAGE_TOKENS * sizeof(float);
    return word * (uint64_t)(shape->positions + shape->kept + shape->weights);
}

static uint64_t net_bytes(const ln_pool_shape *shape, int kind) {
    return shape->layout[kind].bytes + extra_bytes(shape);
}
static uint64_t stored_bytes(const ln_pool_shape *shape, int kind) {
    return shape->elsewhere ? extra_bytes(shape) : net_bytes(shape, kind);
}

/* Large enough that little of it is left over, small enough that the last ones of all kinds are a small part. */
static uint64_t slab_bytes(const ln_pool_shape *shape) {
    uint64_t most = 0;
    for (int k = 0; k < shape->kinds; k++)
        if (net_bytes(shape, k) > most) most = net_bytes(shape, k);
    uint64_t slab = ln_round_up(SLAB_PAGES * most, SLAB_UNIT);
    while (slab < 1 << 20 && slab * PARTS * 8 * (uint64_t)shape->kinds < shape->bytes) slab *= 2;
    return slab < SLAB_LEAST ? SLAB_LEAST : slab;
}

/* With its part of what a slab has left over. */
uint64_t ln_pool_page_bytes(const ln_pool_shape *shape, int kind) {
    const uint64_t slab = slab_bytes(shape), pages = slab / net_bytes(shape, kind);
    return (slab + pages - 1) / pages;
}

uint64_t ln_pool_waste(const ln_pool_shape *shape) {
    return (uint64_t)shape->kinds * slab_bytes(shape);
}

static int64_t slabs_of(const ln_pool_shape *shape) {
    return (int64_t)(shape->bytes / slab_bytes(shape));
}

uint64_t ln_pool_capacity(const ln_pool_shape *shape) {
    return (uint64_t)slabs_of(shape) * slab_bytes(shape);
}

int64_t ln_pool_pages_most(const ln_pool_shape *shape) {
    const uint64_t slab = slab_bytes(shape);
    uint64_t most = 0;
    for (int k = 0; k < shape->kinds; k++)
        if (slab / net_bytes(shape, k) > most) most = slab / net_bytes(shape, k);
    return slabs_of(shape) * (int64_t)most;
}

/* Bytes of the tables of `members` members: one block. */
static uint64_t table_bytes(const ln_pool_shape *shape, int64_t members) {
    const uint64_t slabs = (uint64_t)(members * slabs_of(shape)),
                   pages = (uint64_t)(members * ln_pool_pages_most(shape));
    return (uint64_t)members * sizeof(arena) + (pages + 1) * sizeof(record) +
           (uint64_t)shape->kinds * (slabs + pages) * sizeof(uint32_t) + slabs;
}

uint64_t ln_pool_bytes(const ln_pool_shape *shape) {
    return ln_allocated_bytes(sizeof(ln_pool)) + ln_allocated_bytes(table_bytes(shape, 1)) +
           ln_allocated_bytes((uint64_t)slabs_of(shape) * slab_bytes(shape));
}

/* ---- members ---- */

/* The tables in a block for `members` members, with what the old ones hold of the first `members before`. */
static void place_tables(ln_pool *pool, unsigned char *block, int64_t members, int64_t before) {
    const ln_pool old = *pool;
    const size_t slabs = (size_t)(members * pool->slabs), pages = (size_t)(members * pool->pages);
    const size_t old_slabs = (size_t)(before * pool->slabs), old_pages = (size_t)(before * pool->pages);
    pool->arenas = (arena *)(void *)block;
    pool->records = (record *)(void *)(pool->arenas + members);
    uint32_t *words = (uint32_t *)(void *)(pool->records + pages + 1);
    for (int k = 0; k < pool->shape.kinds; k++, words += slabs + pages) {
        pool->kinds[k].slabs = words;
        pool->kinds[k].owners = words + slabs;
        if (!before) continue;
        memcpy(pool->kinds[k].slabs, old.kinds[k].slabs, old_slabs * sizeof *words);
        memcpy(pool->kinds[k].owners, old.kinds[k].owners, old_pages * sizeof *words);
    }
    pool->slab_used = (uint8_t *)words;
    if (!before) return;
    memcpy(pool->arenas, old.arenas, (size_t)before * sizeof *pool->arenas);
    memcpy(pool->records, old.records, (old_pages + 1) * sizeof *pool->records);
    memcpy(pool->slab_used, old.slab_used, old_slabs);
}

/* Slabs and records of one more member in the tables. */
static void add_member(ln_pool *pool, unsigned char *base) {
    const int64_t member = pool->room++;
    pool->arenas[member] = (arena){.base = base};
    for (int64_t i = pool->pages; i > 0; i--) {
        const uint32_t page = (uint32_t)(member * pool->pages + i);
        pool->records[page] = (record){.place = pool->free};
        pool->free = page;
    }
}

static unsigned char *open_arena(linnet_context *context, const ln_pool *pool) {
    const uint64_t bytes = (uint64_t)pool->slabs * pool->stored;
    unsigned char *base = ln_allocate(context, 1, bytes, "key-value pages");
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = ln_round_up((uintptr_t)base, HUGE_PAGE),
                    last = ((uintptr_t)base + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (base && last > first && last - first >= 16 * HUGE_PAGE) madvise((void *)first, last - first, MADV_HUGEPAGE);
#endif
    return base;
}

linnet_status ln_pool_open(linnet_context *context, const ln_pool_shape *shape, ln_pool **pool) {
    *pool = NULL;
    const int64_t pages = ln_pool_pages_most(shape);
    if (pages < 1 || pages > UINT32_MAX / 64)
        return ln_fail(context, LINNET_ERROR_MEMORY, "%llu bytes hold %s pages of keys and values",
                       (unsigned long long)shape->bytes, pages < 1 ? "no" : "too many");
    ln_pool *made = ln_allocate_zero(context, 1, sizeof *made, "key-value page pool");
    unsigned char *tables = made ? ln_allocate_zero(context, 1, table_bytes(shape, 1), "key-value page tables") : NULL;
    if (!tables) {
        ln_release(context, made);
        return LINNET_ERROR_MEMORY;
    }
    made->context = context;
    made->shape = *shape;
    made->slab = slab_bytes(shape);
    made->slabs = slabs_of(shape);
    made->pages = pages;
    made->stored = shape->elsewhere ? 64 : made->slab;
    for (int k = 0; k < shape->kinds; k++) {
        made->kinds[k].stored = stored_bytes(shape, k);
        made->kinds[k].slab_pages = (uint32_t)(made->slab / net_bytes(shape, k));
        const uint64_t stored = made->kinds[k].slab_pages * made->kinds[k].stored;
        if (shape->elsewhere && stored > made->stored) made->stored = stored;
    }
    place_tables(made, tables, 1, 0);
    unsigned char *base = open_arena(context, made);
    if (!base || pthread_mutex_init(&made->lock, NULL) != 0) {
        ln_release(context, base);
        ln_release(context, tables);
        ln_release(context, made);
        return LINNET_ERROR_MEMORY;
    }
    add_member(made, base);
    made->members = made->opened = 1;
    *pool = made;
    return LINNET_OK;
}

linnet_status ln_pool_join(ln_pool *pool) {
    linnet_context *context = pool->context;
    if (pool->opened > pool->members) { /* one that could not be emptied */
        pool->members++;
        return LINNET_OK;
    }
    unsigned char *base = open_arena(context, pool);
    if (!base) return LINNET_ERROR_MEMORY;
    if (pool->opened < pool->room) {
        pool->arenas[pool->opened].base = base;
    } else {
        const uint64_t bytes = table_bytes(&pool->shape, pool->room + 1);
        unsigned char *tables = ln_allocate_zero(context, 1, bytes, "key-value page tables");
        if (!tables) {
            ln_release(context, base);
            return LINNET_ERROR_MEMORY;
        }
        unsigned char *old = (unsigned char *)pool->arenas;
        place_tables(pool, tables, pool->room + 1, pool->room);
        ln_release(context, old);
        add_member(pool, base);
    }
    pool->opened++;
    pool->members++;
    return LINNET_OK;
}

linnet_status ln_pool_clone(const ln_pool *pool, ln_pool **clone) {
    const linnet_status status = ln_pool_open(pool->context, &pool->shape, clone);
    if (status != LINNET_OK) return status;
    ln_pool *made = *clone;
    unsigned char *base = made->arenas[0].base;
    memcpy(made->arenas, pool->arenas, table_bytes(&pool->shape, 1));
    memcpy(base, pool->arenas[0].base, (size_t)pool->slabs * pool->stored);
    made->arenas[0].base = base;
    for (int k = 0; k < pool->shape.kinds; k++) made->kinds[k].used = pool->kinds[k].used;
    made->free = pool->free;
    made->in_use = pool->in_use;
    made->peak = pool->peak;
    return LINNET_OK;
}

/* ---- slabs ---- */

static unsigned char *slab_at(const ln_pool *pool, uint32_t slab) {
    return pool->arenas[slab / pool->slabs].base + (uint64_t)(slab % pool->slabs) * pool->stored;
}

/* A free slab of the first `members` members, the lowest; false: none. */
static bool free_slab(ln_pool *pool, int64_t members, uint32_t *slab) {
    for (int64_t a = 0; a < members; a++) {
        if (pool->arenas[a].used == pool->slabs) continue;
        const uint8_t *from = pool->slab_used + a * pool->slabs;
        const uint8_t *found = memchr(from, 0, (size_t)pool->slabs);
        *slab = (uint32_t)(found - pool->slab_used);
        return true;
    }
    return false;
}

static void mark_slab(ln_pool *pool, uint32_t slab, bool used) {
    pool->slab_used[slab] = used;
    arena *a = &pool->arenas[slab / pool->slabs];
    a->used += used ? 1u : (uint32_t)-1;
    pool->in_use += used ? pool->slab : (uint64_t)0 - pool->slab;
    if (pool->in_use > pool->peak) pool->peak = pool->in_use;
}

/* Empties the last arena into the others, as far as they have room. */
static void empty_last_arena(ln_pool *pool) {
    const uint32_t first = (uint32_t)((pool->opened - 1) * pool->slabs);
    for (int k = 0; k < pool->shape.kinds; k++) {
        const page_kind *of = &pool->kinds[k];
        for (uint32_t i = 0; i * of->slab_pages < of->used; i++) {
            uint32_t to;
            if (of->slabs[i] < first || !free_slab(pool, pool->opened - 1, &to)) continue;
            pool->version++;
            memcpy(slab_at(pool, to), slab_at(pool, of->slabs[i]), pool->stored);
            mark_slab(pool, of->slabs[i], false);
            mark_slab(pool, to, true);
            of->slabs[i] = to;
        }
    }
}

void ln_pool_leave(ln_pool *pool) {
    if (!pool) return;
    linnet_context *context = pool->context;
    pool->members--;
    while (pool->opened > pool->members) {
        if (pool->members > 0) empty_last_arena(pool);
        arena *last = &pool->arenas[pool->opened - 1];
        if (pool->members > 0 && last->used > 0) return;
        ln_release(context, last->base);
        last->base = NULL;
        pool->opened--;
    }
    if (pool->members > 0) return;
    pthread_mutex_destroy(&pool->lock);
    ln_release(context, pool->arenas);
    ln_release(context, pool);
}

/* ---- pages ---- */

static unsigned char *place_of(const ln_pool *pool, const page_kind *of, uint32_t n) {
    return slab_at(pool, of->slabs[n / of->slab_pages]) + (uint64_t)(n % of->slab_pages) * of->stored;
}

static ln_page take(ln_pool *pool, int number) {
    page_kind *of = &pool->kinds[number];
    const ln_page page = pool->free;
    if (!page) return 0;
    if (of->used % of->slab_pages == 0) {
        uint32_t slab;
        if (!free_slab(pool, pool->opened, &slab)) return 0;
        mark_slab(pool, slab, true);
        of->slabs[of->used / of->slab_pages] = slab;
    }
    record *r = &pool->records[page];
    pool->free = r->place;
    *r = (record){.place = of->used, .users = 1, .kind = (uint8_t)number};
    of->owners[of->used++] = page;
    return page;
}

ln_page ln_pool_take(ln_pool *pool, int number) {
    pthread_mutex_lock(&pool->lock);
    const ln_page page = take(pool, number);
    pthread_mutex_unlock(&pool->lock);
    if (page) memset(ln_pool_data(pool, page), 0, pool->kinds[number].stored);
    return page;
}

void ln_pool_share(ln_pool *pool, ln_page page) {
    pool->records[page].users++;
}

void ln_pool_drop(ln_pool *pool, ln_page page) {
    record *r = &pool->records[page];
    if (--r->users > 0) return;
    page_kind *of = &pool->kinds[r->kind];
    const uint32_t last = --of->used;
    pool->version++;
    if (r->place != last) {
        memcpy(place_of(pool, of, r->place), place_of(pool, of, last), of->stored);
        of->owners[r->place] = of->owners[last];
        pool->records[of->owners[last]].place = r->place;
    }
    if (last % of->slab_pages == 0) mark_slab(pool, of->slabs[last / of->slab_pages], false);
    *r = (record){.place = pool->free};
    pool->free = page;
}

int ln_pool_kind(const ln_pool *pool, ln_page page) {
    return pool->records[page].kind;
}
bool ln_pool_shared(const ln_pool *pool, ln_page page) {
    return pool->records[page].users > 1;
}
unsigned char *ln_pool_data(const ln_pool *pool, ln_page page) {
    const record *r = &pool->records[page];
    return place_of(pool, &pool->kinds[r->kind], r->place);
}

ln_page ln_pool_copy(ln_pool *pool, ln_page page) {
    pthread_mutex_lock(&pool->lock);
    const ln_page copy = take(pool, pool->records[page].kind);
    pthread_mutex_unlock(&pool->lock);
    if (copy) memcpy(ln_pool_data(pool, copy), ln_pool_data(pool, page), pool->kinds[pool->records[page].kind].stored);
    return copy;
}

/* What follows the page: positions, kept, weights, as far as the shape has them. */
static void *extra_of(const ln_pool *pool, ln_page page, int before) {
    const uint64_t offset = pool->shape.elsewhere ? 0 : pool->shape.layout[pool->records[page].kind].bytes;
    return ln_pool_data(pool, page) + offset + (uint64_t)before * LN_PAGE_TOKENS * sizeof(float);
}
int32_t *ln_pool_positions(const ln_pool *pool, ln_page page) {
    return pool->shape.positions ? extra_of(pool, page, 0) : NULL;
}
float *ln_pool_kept(const ln_pool *pool, ln_page page) {
    return pool->shape.kept ? extra_of(pool, page, pool->shape.positions) : NULL;
}
float *ln_pool_weights(const ln_pool *pool, ln_page page) {
    return pool->shape.weights ? extra_of(pool, page, pool->shape.positions + pool->shape.kept) : NULL;
}

const ln_pool_shape *ln_pool_shape_of(const ln_pool *pool) {
    return &pool->shape;
}
const ln_page_layout *ln_pool_layouts(const ln_pool *pool) {
    return pool->shape.layout;
}
uint64_t ln_pool_version(const ln_pool *pool) {
    return pool->version;
}

int64_t ln_pool_members(const ln_pool *pool) {
    return pool->members;
}

uint64_t ln_pool_used(const ln_pool *pool, uint64_t *peak) {
    if (peak) *peak = pool->peak;
    return pool->in_use;
}
