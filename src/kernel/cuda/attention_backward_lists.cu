/* Lists of tiles (P033) for the gradients of attention, on the host. A list says which tiles of keys a tile of queries
 * sees; the backward pass walks by tiles of keys, so that lists are turned about:
 *
 *     visits of keys k = { (head h, queries q) : list of (h, q) has some of the 64 x 64 blocks of k x q },
 *     turn of k at (h, q) = how many of its list come before k in the order of attention_backward_cuda.cu.
 *
 * Tiles of lists are multiples of 64, those of kernels 64 or 128: where they do not agree a visit says which blocks of
 * 64 x 64 are seen, and the others are masked.
 *
 * Invariant: visits and turns are those of the plan without lists, some left out: each task meets those that are left
 * in the same order, and so does each tile of queries. What waits for nobody behind it still does not. */
#include <limits.h>

#include "kernel/cuda/attention_backward_table.h"

enum { BLOCK = 64 };

/* ---- forth: from a tile of queries to tiles of keys ---- */

/* Where a walk through one list stands: at blocks of 64 keys, `part` of those of a listed tile. */
typedef struct list_place {
    int64_t at, end, part;
} list_place;

/* Through the lists of a kernel's tile of queries, which may have two. */
typedef struct list_walk {
    const ln_cuda_attention *attention;
    list_place list[2];
    int lists;
    int64_t blocks; /* of a kernel's tile of keys */
    int32_t always; /* bits of blocks that the kernel's tiles do not have */
} list_walk;

static list_walk walk_open(const ln_cuda_attention *a, const ln_cuda_backward_kernel *kernel,
                           const ln_cuda_backward_rows *rows, int64_t head) {
    const int64_t of_head = (a->query_offsets[1] + a->query_tile - 1) / a->query_tile;
    list_walk walk = {a, {}, rows->rows > BLOCK ? 2 : 1, kernel->keys / BLOCK, 0};
    for (int i = 0; i < walk.lists; i++) {
        const int64_t list = (a->list_per_head ? head * of_head : 0) + (rows->query + i * BLOCK) / a->query_tile;
        walk.list[i] = {a->list_offsets[list], a->list_offsets[list + 1], 0};
    }
    walk.always = (kernel->keys == BLOCK ? 2 | 8 : 0) | (walk.lists == 1 ? 4 | 8 : 0);
    return walk;
}

/* The block of 64 keys at which a list stands, past the last one INT64_MAX. */
static int64_t block_at(const list_walk *walk, int list) {
    const list_place *p = &walk->list[list];
    if (p->at == p->end) return INT64_MAX;
    return walk->attention->listed[p->at] * (walk->attention->key_tile / BLOCK) + p->part;
}

/* The next tile of keys, or -1; *seen: its blocks. */
static int64_t walk_next(list_walk *walk, int32_t *seen) {
    int64_t first = block_at(walk, 0);
    if (walk->lists > 1 && block_at(walk, 1) < first) first = block_at(walk, 1);
    if (first == INT64_MAX) return -1;
    const int64_t tile = first / walk->blocks, parts = walk->attention->key_tile / BLOCK;
    *seen = walk->always;
    for (int i = 0; i < walk->lists; i++)
        for (int64_t block; (block = block_at(walk, i)) / walk->blocks == tile;) {
            *seen |= 1 << (block % walk->blocks + 2 * i);
            list_place *p = &walk->list[i];
            if (++p->part < parts) continue;
            p->part = 0;
            p->at++;
        }
    return tile;
}

int64_t ln_cuda_backward_listed(const ln_cuda_attention *attention, const ln_cuda_backward_kernel *kernel,
                                const ln_cuda_backward_rows *rows, int64_t head, int32_t *tiles) {
    list_walk walk = walk_open(attention, kernel, rows, head);
    int64_t count = 0;
    int32_t seen;
    for (int64_t tile; (tile = walk_next(&walk, &seen)) >= 0;) {
        if (tile < rows->first_tile || tile >= rows->end_tile) continue;
        if (tiles) tiles[count] = (int32_t)tile;
        count++;
    }
    return count;
}

/* ---- back: from a tile of keys to tiles of queries ---- */

/* How many of the ascending numbers are below. */
static int64_t count_below(const int32_t *numbers, int64_t count, int64_t bound) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (numbers[middle] < bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* As turn_of of the kernels, among those that are listed; task: as it is without lists. */
static int64_t turn_among(const ln_cuda_backward_task *task, int tile, const int32_t *listed, int64_t count) {
    const int64_t own = count_below(listed, count, task->tile);
    if (task->order == LN_CUDA_UP) return count - 1 - own;
    if (task->order == LN_CUDA_DOWN) return own;
    const int64_t tiles = task->end - task->first, at = tile - task->first;
    int64_t started = ((at + 1) * task->members + tiles - 1) / tiles;
    if (started > task->members) started = task->members;
    const int64_t before = count_below(listed, count, task->before),
                  middle = count_below(listed, count, task->before + started),
                  end = count_below(listed, count, task->before + task->members);
    return task->member < started ? before + middle - 1 - own : middle + end - 1 - own;
}

static void turn_about(ln_cuda_backward_visit *visits, int64_t count) {
    for (int64_t i = 0; i < count / 2; i++) {
        const ln_cuda_backward_visit other = visits[i];
        visits[i] = visits[count - 1 - i];
        visits[count - 1 - i] = other;
    }
}

/* Visits of one head, ascending, are put in the order in which the task makes them. */
static void order_visits(const ln_cuda_backward_task *task, ln_cuda_backward_visit *visits, int64_t count) {
    if (task->order == LN_CUDA_DOWN) turn_about(visits, count);
    if (task->order != LN_CUDA_ROUND) return;
    int64_t behind = 0; /* of those in front of the start */
    while (behind < count && visits[behind].tile < task->start) behind++;
    turn_about(visits, behind);
    turn_about(visits + behind, count - behind);
    turn_about(visits, count);
}

/* Visits of each tile of keys, of its heads one after the other and ascending in each; ends[n]: behind those of tile n
 * % count of key-value head n / count. */
static void gather_visits(const ln_cuda_attention *a, const ln_cuda_backward_plan *plan,
                          const ln_cuda_backward_tables *t, int64_t count) {
    const int64_t group = a->heads / a->key_value_heads;
    for (int64_t n = 0; n <= plan->tasks; n++) t->ends[n] = 0;
    for (int64_t place = 0; place < plan->places; place++)
        for (int64_t i = t->starts[place]; i < t->starts[place + 1]; i++)
            t->ends[place / plan->tiles / group * count + t->listed[i] + 1]++;
    for (int64_t n = 0; n < plan->tasks; n++) t->ends[n + 1] += t->ends[n];
    for (int64_t place = 0; place < plan->places; place++) {
        const int64_t head = place / plan->tiles, tile = place % plan->tiles;
        const ln_cuda_backward_rows *rows = &t->tiles[tile];
        list_walk walk = walk_open(a, plan->kernel, rows, head);
        int32_t seen;
        for (int64_t key; (key = walk_next(&walk, &seen)) >= 0;)
            if (key >= rows->first_tile && key < rows->end_tile)
                t->visits[t->ends[head / group * count + key]++] = {(int32_t)head, (int32_t)tile, 0, seen};
    }
}

void ln_cuda_backward_lists(const ln_cuda_attention *attention, const ln_cuda_backward_plan *plan,
                            const ln_cuda_backward_tables *tables) {
    const ln_cuda_backward_tables *t = tables;
    const int64_t count = plan->tasks / attention->key_value_heads; /* tiles of keys */
    t->starts[0] = 0;
    for (int64_t place = 0; place < plan->places; place++)
        t->starts[place + 1] =
            t->starts[place] + (int32_t)ln_cuda_backward_listed(attention, plan->kernel, &t->tiles[place % plan->tiles],
                                                                place / plan->tiles, t->listed + t->starts[place]);
    gather_visits(attention, plan, t, count);
    for (int64_t i = 0; i < plan->tasks; i++) {
        ln_cuda_backward_task *task = &t->tasks[i];
        const int64_t n = task->head * count + task->tile;
        const int32_t first = n ? t->ends[n - 1] : 0, end = t->ends[n];
        for (int32_t v = first, next; v < end; v = next) {
            const int32_t head = t->visits[v].head;
            for (next = v; next < end && t->visits[next].head == head; next++) {
                const int64_t place = head * plan->tiles + t->visits[next].tile;
                t->visits[next].turn = (int32_t)turn_among(task, t->visits[next].tile, t->listed + t->starts[place],
                                                           t->starts[place + 1] - t->starts[place]);
            }
            order_visits(task, t->visits + v, next - v);
        }
        task->first = first;
        task->end = end;
    }
}
