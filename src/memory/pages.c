/* Owns: key-value memory: slots, rings, sharing, and the encoding of new tokens.
 *
 * A slot is the room for one page of every head of a layer. slots[i] points at the slot in use for index i, in this
 * memory's pool or in that of another of its family; users[i] counts the memories that use index i of this pool.
 * Invariant: over a family of n memories the users of an index sum to n; so while one slot has two users, another has
 * none. Runs of slots lie head after head, so that a head's pages are consecutive while memory grows compactly. */
#include "memory/pages_inside.h"

#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "kernel/page.h"
#include "memory/allocate.h"

enum { RUN = 64, HUGE_PAGE = 2 << 20, HUGE_FROM = 16 /* huge pages in a layer */ };

/* ---- sizes ---- */

static bool attends(const ln_memory_shape *shape, int64_t layer) {
    return !shape->attends || shape->attends[layer];
}

static bool any_attends(const ln_memory_shape *shape) {
    for (int64_t i = 0; i < shape->layers; i++)
        if (attends(shape, i)) return true;
    return false;
}

static ln_states_shape states_of(const ln_memory_shape *shape) {
    return (ln_states_shape){.layers = shape->layers,
                             .floats = shape->state_floats,
                             .snapshots = shape->snapshots,
                             .interval = shape->interval,
                             .heads = shape->state_heads,
                             .limits = shape->limits};
}

static int64_t slots_of(const ln_memory_shape *shape, int64_t layer) {
    const int64_t window = shape->window ? shape->window[layer] : 0;
    if (!attends(shape, layer) || (shape->policy && !window)) return 0;
    const int64_t all = ln_ceil_div(shape->capacity, LN_PAGE_TOKENS);
    if (!window) return all;
    return ln_min_i64(all, ln_ceil_div(window + shape->piece, LN_PAGE_TOKENS) + 1);
}

/* Slots in a run; the last run may be left partly unused: by less than one slot a run. */
static int64_t run_of(int64_t slots) {
    return slots ? ln_ceil_div(slots, ln_ceil_div(slots, RUN)) : 1;
}

static bool possible(const ln_memory_shape *shape, ln_page_layout *layout) {
    const int64_t most = (int64_t)1 << 40;
    if (shape->layers < 1 || shape->layers > 1 << 20 || shape->capacity < 1 || shape->capacity > most ||
        shape->piece < 1 || shape->piece > most)
        return false;
    *layout = (ln_page_layout){0};
    if (!any_attends(shape)) return true;
    if (!ln_page_layout_of(shape->precision, shape->precision, shape->key_size, shape->value_size, layout))
        return false;
    if (shape->value_in_key && shape->value_size > shape->key_size) return false;
    if (shape->value_in_key && shape->policy) return false;
    if (shape->value_in_key) ln_page_layout_join(layout);
    if (shape->key_value_heads < 1 || shape->key_value_heads > 1 << 20) return false;
    for (int64_t i = 0; shape->window && i < shape->layers; i++)
        if (shape->window[i] < 0 || shape->window[i] > most) return false;
    return true;
}

bool ln_memory_lanes(const ln_memory_shape *shape, ln_ragged_shape *lanes) {
    *lanes = (ln_ragged_shape){.heads = shape->heads,
                               .key_value_heads = shape->key_value_heads,
                               .key_size = shape->key_size,
                               .value_size = shape->value_size,
                               .scale = shape->scale,
                               .policy = shape->policy,
                               .kinds = shape->head_kinds,
                               .bytes = shape->lane_bytes,
                               .capacity = shape->capacity,
                               .piece = ln_min_i64(shape->piece, shape->capacity),
                               .folder = shape->folder};
    for (int64_t i = 0; shape->policy && i < shape->layers; i++)
        if (attends(shape, i) && (!shape->window || !shape->window[i])) lanes->layers++;
    return lanes->layers > 0;
}

/* Slots and pool bytes of all layers; false on overflow. */
static bool sizes(const ln_memory_shape *shape, const ln_page_layout *layout, uint64_t *slots, uint64_t *pool) {
    *slots = *pool = 0;
    for (int64_t i = 0; i < shape->layers; i++) {
        const int64_t count = slots_of(shape, i), run = run_of(count);
        uint64_t bytes = (uint64_t)(ln_ceil_div(count, run) * run);
        if (!ln_multiply_u64(bytes, (uint64_t)shape->key_value_heads * layout->bytes, &bytes) ||
            !ln_add_u64(*pool, bytes, pool) || !ln_add_u64(*slots, (uint64_t)count, slots) || *slots > UINT64_MAX / 64)
            return false;
    }
    return true;
}

static uint64_t tables_bytes(const ln_memory_shape *shape, uint64_t slots) {
    return sizeof(ln_memory) + (uint64_t)shape->layers * (sizeof(ln_memory_layer) + sizeof(int64_t) + sizeof(bool)) +
           slots * (sizeof(unsigned char *) + sizeof(uint32_t));
}

uint64_t ln_memory_bytes(const ln_memory_shape *shape) {
    ln_page_layout layout;
    uint64_t slots, pool, total;
    if (!possible(shape, &layout) || !sizes(shape, &layout, &slots, &pool)) return UINT64_MAX;
    const uint64_t tables = ln_allocated_bytes(tables_bytes(shape, slots));
    ln_ragged_shape lanes;
    const uint64_t more = ln_memory_lanes(shape, &lanes) ? shape->lane_bytes : 0;
    const uint64_t states = ln_memory_state_bytes(shape);
    if (!ln_add_u64(pool, tables + 128, &total) || !ln_add_u64(total, more, &total) ||
        !ln_add_u64(total, states, &total))
        return UINT64_MAX;
    return tables + (pool ? ln_allocated_bytes(pool) : 0) + more + states;
}

uint64_t ln_memory_state_bytes(const ln_memory_shape *shape) {
    const ln_states_shape states = states_of(shape);
    return ln_states_any(&states) ? ln_states_bytes(&states) : 0;
}

/* ---- opening and closing ---- */

unsigned char *ln_memory_own_slot(const ln_memory *memory, const ln_memory_layer *layer, int64_t slot) {
    const uint64_t page = memory->layout.bytes, run = (uint64_t)layer->run;
    const uint64_t before = (uint64_t)slot / run * run * (uint64_t)memory->shape.key_value_heads;
    return memory->pool + layer->offset + (before + (uint64_t)slot % run) * page;
}

static void advise_huge_pages(const ln_memory *memory, uint64_t pool_bytes) {
#if defined(MADV_HUGEPAGE)
    for (int64_t i = 0; i < memory->shape.layers; i++) {
        const uint64_t from = memory->layers[i].offset,
                       to = i + 1 < memory->shape.layers ? memory->layers[i + 1].offset : pool_bytes;
        if (to - from < (uint64_t)HUGE_FROM * HUGE_PAGE) continue;
        const uintptr_t first = ln_round_up((uintptr_t)memory->pool + from, HUGE_PAGE);
        const uintptr_t last = ((uintptr_t)memory->pool + to) / HUGE_PAGE * HUGE_PAGE;
        madvise((void *)first, last - first, MADV_HUGEPAGE);
    }
#else
    (void)memory;
    (void)pool_bytes;
#endif
}

static void lay_out(ln_memory *memory) {
    uint64_t offset = 0;
    int64_t first = 0, lane_layers = 0;
    for (int64_t i = 0; i < memory->shape.layers; i++) {
        ln_memory_layer *layer = &memory->layers[i];
        const bool lane = memory->shape.policy && !memory->shape.window[i] && attends(&memory->shape, i);
        layer->lane_layer = lane ? lane_layers++ : -1;
        layer->window = memory->shape.window[i];
        layer->slots = slots_of(&memory->shape, i);
        layer->run = run_of(layer->slots);
        layer->first = first;
        layer->offset = offset;
        offset += (uint64_t)(ln_ceil_div(layer->slots, layer->run) * layer->run * memory->shape.key_value_heads) *
                  memory->layout.bytes;
        for (int64_t s = 0; s < layer->slots; s++) {
            memory->slots[first + s] = ln_memory_own_slot(memory, layer, s);
            memory->users[first + s] = 1;
        }
        first += layer->slots;
    }
}

/* Without lanes. */
static linnet_status open_slots(linnet_context *context, const ln_memory_shape *shape, ln_memory **memory) {
    *memory = NULL;
    ln_page_layout layout;
    uint64_t slots, pool;
    if (!possible(shape, &layout) || !sizes(shape, &layout, &slots, &pool))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "key-value memory needs a precision of f32, f16, bf16, q8_0, q4_0, q5, q4, q3 or q2, head sizes "
                       "that are multiples of "
                       "8 up to %d, and a context that can be addressed",
                       LN_HEAD_MOST);
    ln_memory *made = ln_allocate_zero(context, 1, tables_bytes(shape, slots), "key-value page tables");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->shape = *shape;
    made->layout = layout;
    made->next = made;
    made->layers = (ln_memory_layer *)(void *)(made + 1);
    int64_t *window = (int64_t *)(void *)(made->layers + shape->layers);
    if (shape->window) memcpy(window, shape->window, (size_t)shape->layers * sizeof *window);
    made->shape.window = window;
    if (shape->policy) {
        made->policy = *shape->policy;
        made->shape.policy = &made->policy;
        made->shape.head_kinds = NULL; /* lanes have copied them */
    }
    made->slots = (unsigned char **)(void *)(window + shape->layers);
    made->users = (uint32_t *)(void *)(made->slots + slots);
    bool *attending = (bool *)(void *)(made->users + slots);
    for (int64_t i = 0; i < shape->layers; i++) attending[i] = attends(shape, i);
    made->shape.attends = attending;
    if (pool) made->pool = ln_allocate(context, 1, pool, "key-value pages");
    if (pool && !made->pool) {
        ln_release(context, made);
        return LINNET_ERROR_MEMORY;
    }
    lay_out(made);
    advise_huge_pages(made, pool);
    *memory = made;
    return LINNET_OK;
}

linnet_status ln_memory_open(linnet_context *context, const ln_memory_shape *shape, ln_memory **memory) {
    ln_ragged_shape lanes;
    linnet_status status = open_slots(context, shape, memory);
    if (status == LINNET_OK && shape->lanes)
        (*memory)->lanes = shape->lanes;
    else if (status == LINNET_OK && ln_memory_lanes(shape, &lanes))
        status = ln_ragged_open(context, &lanes, &(*memory)->lanes);
    const ln_states_shape states = states_of(shape);
    if (status == LINNET_OK && ln_states_any(&states)) status = ln_states_open(context, &states, &(*memory)->states);
    if (status == LINNET_OK) {
        (*memory)->shape.folder = NULL;
        (*memory)->shape.state_floats = NULL; /* the states have copied them */
        (*memory)->shape.state_heads = NULL;
        return LINNET_OK;
    }
    ln_memory_close(*memory);
    *memory = NULL;
    return status;
}

/* ---- sharing ---- */

static void copy_slot(const ln_memory *memory, const ln_memory_layer *layer, unsigned char *to,
                      const unsigned char *from) {
    const uint64_t stride = (uint64_t)layer->run * memory->layout.bytes;
    for (int64_t h = 0; h < memory->shape.key_value_heads; h++)
        memcpy(to + (uint64_t)h * stride, from + (uint64_t)h * stride, memory->layout.bytes);
}

/* The memory of the family whose own slot this is. */
static ln_memory *owner_of(ln_memory *memory, const ln_memory_layer *layer, int64_t slot, const unsigned char *place) {
    while (ln_memory_own_slot(memory, layer, slot) != place) memory = memory->next;
    return memory;
}

/* A memory of the family, this one first, whose own slot nobody uses: see the invariant. */
static ln_memory *free_slot(ln_memory *memory, const ln_memory_layer *layer, int64_t slot) {
    while (memory->users[layer->first + slot]) memory = memory->next;
    return memory;
}

unsigned char *ln_memory_writable(ln_memory *memory, const ln_memory_layer *layer, int64_t slot, bool keep) {
    const int64_t i = layer->first + slot;
    unsigned char *shared = memory->slots[i];
    ln_memory *owner = owner_of(memory, layer, slot, shared);
    if (owner->users[i] == 1) return shared;
    ln_memory *other = free_slot(memory, layer, slot);
    unsigned char *own = ln_memory_own_slot(other, layer, slot);
    if (keep) copy_slot(memory, layer, own, shared);
    owner->users[i]--;
    other->users[i] = 1;
    return memory->slots[i] = own;
}

linnet_status ln_memory_fork(ln_memory *memory, ln_memory **fork) {
    *fork = NULL;
    ln_memory *made;
    linnet_status status = open_slots(memory->context, &memory->shape, &made);
    if (status == LINNET_OK && memory->lanes) status = ln_ragged_fork(memory->lanes, &made->lanes);
    if (status == LINNET_OK && memory->states) status = ln_states_fork(memory->states, &made->states);
    if (status != LINNET_OK) {
        ln_memory_close(made);
        return status;
    }
    made->next = memory->next;
    memory->next = made;
    made->position = memory->position;
    const int64_t pages = ln_ceil_div(memory->position, LN_PAGE_TOKENS);
    for (int64_t l = 0; l < memory->shape.layers; l++) {
        ln_memory_layer *layer = &made->layers[l];
        layer->kept = memory->layers[l].kept;
        for (int64_t s = 0; s < ln_min_i64(pages, layer->slots); s++) {
            const int64_t i = layer->first + s;
            made->slots[i] = memory->slots[i];
            owner_of(memory, layer, s, memory->slots[i])->users[i]++;
            made->users[i] = 0;
        }
    }
    *fork = made;
    return LINNET_OK;
}

/* Moves what others still use of this memory's slot into a free slot of theirs. */
static void hand_over(ln_memory *memory, const ln_memory_layer *layer, int64_t slot) {
    const int64_t i = layer->first + slot;
    owner_of(memory, layer, slot, memory->slots[i])->users[i]--;
    if (memory->users[i] == 0) return;
    const unsigned char *own = ln_memory_own_slot(memory, layer, slot);
    ln_memory *heir = free_slot(memory, layer, slot);
    unsigned char *place = ln_memory_own_slot(heir, layer, slot);
    copy_slot(memory, layer, place, own);
    heir->users[i] = memory->users[i];
    for (ln_memory *m = memory->next; m != memory; m = m->next)
        if (m->slots[i] == own) m->slots[i] = place;
}

void ln_memory_close(ln_memory *memory) {
    if (!memory) return;
    if (memory->next != memory) {
        for (int64_t l = 0; l < memory->shape.layers; l++)
            for (int64_t s = 0; s < memory->layers[l].slots; s++) hand_over(memory, &memory->layers[l], s);
        ln_memory *before = memory->next;
        while (before->next != memory) before = before->next;
        before->next = memory->next;
    }
    if (!memory->shape.lanes) ln_ragged_close(memory->lanes);
    ln_states_close(memory->states);
    ln_release(memory->context, memory->pool);
    ln_release(memory->context, memory);
}

/* ---- tokens ---- */

int64_t ln_memory_position(const ln_memory *memory) {
    return memory->position;
}

typedef struct append_call {
    const ln_memory *memory;
    const ln_memory_layer *layer;
    int64_t tokens;
    const float *keys, *values;
    int64_t key_stride, value_stride;
} append_call;

/* One page of one head. */
static void append_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const append_call *call = argument;
    const ln_memory *memory = call->memory;
    const ln_page_layout *layout = &memory->layout;
    const int64_t heads = memory->shape.key_value_heads, head = task % heads;
    const int64_t page = memory->position / LN_PAGE_TOKENS + task / heads;
    const int64_t begin = ln_max_i64(0, page * LN_PAGE_TOKENS - memory->position),
                  end = ln_min_i64(call->tokens, (page + 1) * LN_PAGE_TOKENS - memory->position);
    unsigned char *to = memory->slots[call->layer->first + page % call->layer->slots] +
                        (uint64_t)(head * call->layer->run) * layout->bytes;
    for (int64_t t = begin; t < end; t++) {
        const int64_t token = (memory->position + t) % LN_PAGE_TOKENS;
        const float *key = call->keys + t * call->key_stride + head * layout->key_size;
        const float *value =
            layout->value_in_key ? NULL : call->values + t * call->value_stride + head * layout->value_size;
        ln_page_encode_token(layout, to, token, key, value);
    }
}

void ln_memory_append(ln_memory *memory, ln_team *team, int64_t layer, int64_t tokens, const float *keys,
                      int64_t key_stride, const float *values, int64_t value_stride) {
    if (tokens <= 0) return;
    ln_memory_layer *to = &memory->layers[layer];
    if (to->lane_layer >= 0) {
        ln_ragged_append(memory->lanes, team, to->lane_layer, tokens, keys, key_stride, values, value_stride);
        return;
    }
    const int64_t first = memory->position / LN_PAGE_TOKENS, last = (memory->position + tokens - 1) / LN_PAGE_TOKENS;
    for (int64_t page = first; page <= last; page++)
        ln_memory_writable(memory, to, page % to->slots, page * LN_PAGE_TOKENS < memory->position);
    append_call call = {memory, to, tokens, keys, values, key_stride, value_stride};
    ln_parallel(team, (last - first + 1) * memory->shape.key_value_heads, append_task, &call);
    to->appended = tokens;
    to->kept = ln_max_i64(to->kept, (last - to->slots + 1) * LN_PAGE_TOKENS);
}

void ln_memory_begin(ln_memory *memory, ln_pass pass) {
    memory->pass = pass;
    if (memory->lanes) ln_ragged_begin(memory->lanes, pass);
}

ln_pass ln_memory_pass(const ln_memory *memory) {
    return memory->pass;
}

void ln_memory_commit(ln_memory *memory, int64_t tokens) {
    if (memory->pass != LN_PASS_PROBE) {
        if (memory->states) ln_states_commit(memory->states, memory->position, memory->position + tokens);
        memory->position += tokens;
    }
    memory->pass = LN_PASS_PIECE;
    for (int64_t i = 0; i < memory->shape.layers; i++) memory->layers[i].appended = 0;
    if (memory->lanes) ln_ragged_commit(memory->lanes, tokens);
}

const float *ln_memory_state(const ln_memory *memory, int64_t layer) {
    return ln_states_now(memory->states, layer);
}

float *ln_memory_next_state(ln_memory *memory, int64_t layer) {
    return ln_states_next(memory->states, layer);
}

const ln_states *ln_memory_states(const ln_memory *memory) {
    return memory->states;
}

void ln_memory_mark(ln_memory *memory) {
    if (memory->states) ln_states_mark(memory->states, memory->position);
}

ln_page_view ln_memory_view(const ln_memory *memory, int64_t layer) {
    const ln_memory_layer *from = &memory->layers[layer];
    return (ln_page_view){.layout = memory->layout,
                          .key_value_heads = memory->shape.key_value_heads,
                          .slots = (const unsigned char *const *)(memory->slots + from->first),
                          .slot_count = from->slots,
                          .head_stride = (uint64_t)from->run * memory->layout.bytes,
                          .first = from->kept,
                          .end = memory->position + from->appended};
}

int64_t ln_memory_room(const ln_memory *memory) {
    return memory->lanes ? ln_ragged_room(memory->lanes) : memory->shape.capacity;
}

void ln_memory_importance(const ln_memory *memory, float *of) {
    if (memory->lanes) ln_ragged_importance(memory->lanes, of);
}

bool ln_memory_undoes(const ln_memory *memory) {
    return !memory->lanes;
}

linnet_status ln_memory_attend(ln_memory *memory, int64_t layer, const ln_ragged_call *call) {
    const int64_t lane_layer = memory->layers[layer].lane_layer;
    if (lane_layer >= 0) return ln_ragged_attend(memory->lanes, lane_layer, call);
    const ln_attention_sequence sequence = {.view = ln_memory_view(memory, layer),
                                            .keys = memory->position + call->tokens,
                                            .tokens = call->tokens,
                                            .position = memory->position,
                                            .query_type = LINNET_F32,
                                            .query = call->query,
                                            .output = call->output,
                                            .query_stride = call->query_stride,
                                            .query_head_stride = call->query_head_stride,
                                            .output_stride = call->output_stride,
                                            .output_head_stride = call->output_head_stride};
    ln_attention_run(call->kernels, call->team, call->attention, &sequence, 1, call->workspace);
    return LINNET_OK;
}

bool ln_memory_wants_gate(const ln_memory *memory) {
    return memory->lanes && memory->policy.scorer && memory->policy.scorer->gate;
}

bool ln_memory_wants_cosine(const ln_memory *memory) {
    return memory->lanes && memory->policy.allocator && memory->policy.allocator->cosine;
}

void ln_memory_observe_cosine(ln_memory *memory, int64_t layer, const double *cosine, int64_t tokens) {
    const int64_t lane_layer = memory->layers[layer].lane_layer;
    if (lane_layer >= 0) ln_ragged_observe_cosine(memory->lanes, lane_layer, cosine, tokens);
}

const void *ln_memory_lane_state(const ln_memory *memory, int64_t layer, int64_t head) {
    const int64_t lane_layer = memory->layers[layer].lane_layer;
    return lane_layer < 0 ? NULL : ln_ragged_state(memory->lanes, lane_layer, head);
}

ln_ragged_usage ln_memory_measure(const ln_memory *memory) {
    ln_ragged_usage usage = {0};
    if (memory->lanes) usage = ln_ragged_measure(memory->lanes);
    for (int64_t i = 0; i < memory->shape.layers; i++) {
        const ln_memory_layer *layer = &memory->layers[i];
        const int64_t pages = ln_min_i64(layer->slots, ln_ceil_div(memory->position, LN_PAGE_TOKENS));
        const uint64_t bytes = (uint64_t)(pages * memory->shape.key_value_heads) * memory->layout.bytes;
        usage.bytes += bytes;
        usage.peak += bytes;
        if (layer->lane_layer < 0 && memory->shape.attends[i])
            usage.kept += (memory->position - layer->kept) * memory->shape.key_value_heads;
    }
    return usage;
}

/* A query at position p of a sliding layer needs the keys from p - window + 1 on. */
static int64_t page_limit(const ln_memory *memory) {
    int64_t limit = 0;
    for (int64_t i = 0; i < memory->shape.layers; i++) {
        const ln_memory_layer *layer = &memory->layers[i];
        if (layer->kept > 0) limit = ln_max_i64(limit, layer->kept + layer->window - 1);
    }
    if (memory->lanes) limit = ln_max_i64(limit, ln_ragged_rewind_limit(memory->lanes));
    return limit;
}

int64_t ln_memory_rewind_point(const ln_memory *memory, int64_t position) {
    const int64_t point = memory->states ? ln_states_point(memory->states, memory->position, position) : position;
    return point == memory->position || point >= page_limit(memory) ? point : 0;
}

int64_t ln_memory_rewind_limit(const ln_memory *memory) {
    int64_t limit = page_limit(memory), from = memory->position;
    if (!memory->states) return limit;
    while (from > limit && ln_states_point(memory->states, memory->position, from - 1) == from - 1) from--;
    return from;
}

linnet_status ln_memory_rewind(ln_memory *memory, int64_t position) {
    if (position < 0 || position > memory->position)
        return ln_fail(memory->context, LINNET_ERROR_ARGUMENT, "cannot rewind to position %lld: %lld tokens are held",
                       (long long)position, (long long)memory->position);
    const int64_t limit = page_limit(memory), point = ln_memory_rewind_point(memory, position);
    if (position > 0 && position < limit)
        return ln_fail(memory->context, LINNET_ERROR_UNSUPPORTED,
                       "cannot rewind to position %lld: what was given up since is gone, positions from %lld on are "
                       "whole; rewind to 0 and feed again",
                       (long long)position, (long long)limit);
    if (point != position)
        return ln_fail(memory->context, LINNET_ERROR_UNSUPPORTED,
                       "cannot rewind to position %lld: recurrent states are not known there; rewind to %lld and feed "
                       "again from there, or keep more snapshots",
                       (long long)position, (long long)point);
    if (memory->states) ln_states_rewind(memory->states, memory->position, position);
    memory->position = position;
    if (memory->lanes) ln_ragged_rewind(memory->lanes, position);
    for (int64_t i = 0; i < memory->shape.layers; i++) {
        memory->layers[i].appended = 0;
        if (position == 0) memory->layers[i].kept = 0;
    }
    return LINNET_OK;
}
