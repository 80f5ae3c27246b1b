/* Owns: the table of approximate attention's methods, and the tools that its rows share. */
#include "mixer/select.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"

const ln_select_row *ln_select_row_of(linnet_approximation method) {
    static const ln_select_row *const rows[LINNET_APPROXIMATIONS] = {
        [LINNET_APPROXIMATE_BLOCKS] = &ln_select_blocks,   [LINNET_APPROXIMATE_HYPER] = &ln_select_hyper,
        [LINNET_APPROXIMATE_HIP] = &ln_select_hip,         [LINNET_APPROXIMATE_CORE] = &ln_select_core,
        [LINNET_APPROXIMATE_RANKING] = &ln_select_ranking, [LINNET_APPROXIMATE_SEA] = &ln_select_sea,
        [LINNET_APPROXIMATE_SLA] = &ln_select_sla,         [LINNET_APPROXIMATE_PAGES] = &ln_select_pages,
    };
    const unsigned at = (unsigned)method;
    return at < LINNET_APPROXIMATIONS ? rows[at] : NULL;
}

void *ln_carve(ln_carver *carver, uint64_t count, uint64_t size) {
    uint64_t bytes, end;
    if (!ln_multiply_u64(count, size, &bytes) || bytes > UINT64_MAX / 2 ||
        !ln_add_u64(carver->used, ln_round_up(bytes, 64), &end)) {
        carver->overflow = true;
        return NULL;
    }
    unsigned char *place = carver->base ? carver->base + carver->used : NULL;
    carver->used = end;
    return place;
}

/* ---- scores ---- */

void ln_select_product(const ln_select_call *call, const float *panel, int64_t depth, const float *a, int64_t rows,
                       float *c, bool add) {
    const ln_attend_part part = {.codes = (const unsigned char *)panel};
    const ln_attend_operand b = {&part, 1, depth, LN_PANEL, false};
    call->kernels->attend.many(&b, a, rows, c, add);
}

/* Worse: the one of two indices that leaves first. */
static inline bool worse(const float *scores, int32_t a, int32_t b) {
    return scores[a] < scores[b] || (scores[a] == scores[b] && a > b);
}

static void sink(const float *scores, int32_t *heap, int64_t n, int64_t at) {
    for (;;) {
        int64_t least = at;
        for (int64_t child = 2 * at + 1; child <= 2 * at + 2 && child < n; child++)
            if (worse(scores, heap[child], heap[least])) least = child;
        if (least == at) return;
        const int32_t keep = heap[at];
        heap[at] = heap[least];
        heap[least] = keep;
        at = least;
    }
}

int64_t ln_select_top(const float *scores, int64_t n, int64_t k, int32_t *heap, int32_t *chosen) {
    k = ln_max_i64(0, ln_min_i64(k, n));
    if (k == 0) return 0;
    for (int64_t i = 0; i < k; i++) heap[i] = (int32_t)i;
    for (int64_t i = k / 2; i-- > 0;) sink(scores, heap, k, i);
    for (int64_t i = k; i < n; i++) {
        if (!worse(scores, heap[0], (int32_t)i)) continue;
        heap[0] = (int32_t)i;
        sink(scores, heap, k, 0);
    }
    /* heap[0] is the worst that stays: one pass finds them all in order. */
    const int32_t last = heap[0];
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (i == last || worse(scores, last, (int32_t)i)) chosen[count++] = (int32_t)i;
    return count;
}

int64_t ln_select_free(const ln_select_tile *tile, int32_t *free_tiles) {
    int64_t count = 0;
    for (int64_t j = 0; j < tile->limit; j++)
        if (!tile->marks[j]) free_tiles[count++] = (int32_t)j;
    return count;
}

int64_t ln_select_sampled_queries(const ln_select_call *call, const ln_select_tile *tile, float *rows) {
    int64_t count = 0;
    for (int64_t token = tile->begin; token < tile->end; token += call->s->query_stride)
        memcpy(rows + count++ * LN_SELECT_STRIDE, ln_select_query(call, tile->head, token),
               (size_t)call->s->key_size * sizeof *rows);
    return count;
}

/* ---- the tile loop ---- */

void ln_select_slots(const ln_page_layout *layout, int64_t heads, int64_t tokens, const unsigned char *pages,
                     const unsigned char **slots) {
    for (int64_t i = 0; i * LN_PAGE_TOKENS < tokens; i++) slots[i] = pages + (uint64_t)(i * heads) * layout->bytes;
}

ln_page_view ln_select_view(const ln_select_call *call, const ln_page_layout *layout, const unsigned char *const *slots,
                            int64_t page, int64_t tokens) {
    return (ln_page_view){.layout = *layout,
                          .key_value_heads = call->s->key_value_heads,
                          .slots = slots + page,
                          .slot_count = ln_max_i64(1, ln_ceil_div(tokens, LN_PAGE_TOKENS)),
                          .head_stride = layout->bytes,
                          .end = tokens};
}

void ln_select_attend(const ln_select_call *call, const ln_mask *mask, const ln_attention_sequence *sequences,
                      int64_t count) {
    const linnet_approximate_settings *s = call->s;
    const ln_attention attention = {.heads = s->heads,
                                    .key_value_heads = s->key_value_heads,
                                    .key_size = s->key_size,
                                    .value_size = s->value_size,
                                    .scale = s->scale,
                                    .exact = s->exact,
                                    .mask = *mask};
    ln_attention_run(call->kernels, call->team, &attention, sequences, count, call->attention_workspace);
}

void ln_select_merge(float *output, float *lse, const float *other, float other_lse, int64_t n) {
    const float larger = fmaxf(*lse, other_lse);
    if (other_lse == -INFINITY) return;
    const double own = exp((double)*lse - (double)larger), its = exp((double)other_lse - (double)larger);
    const float keep = (float)(own / (own + its)), add = (float)(its / (own + its));
    for (int64_t i = 0; i < n; i++) output[i] = keep * output[i] + add * other[i];
    *lse = (float)((double)larger + log(own + its));
}

/* ---- P033: given lists ---- */

static void mark_given(ln_select_call *call, const ln_select_tile *tile) {
    const linnet_block_mask *blocks = &call->s->blocks;
    const int64_t list = blocks->per_head ? tile->head * call->plan->query_tiles + tile->tile : tile->tile;
    for (int64_t i = blocks->offsets[list]; i < blocks->offsets[list + 1]; i++)
        if (blocks->tiles[i] < tile->limit) tile->marks[blocks->tiles[i]] = 1;
}

static const char *check_blocks(linnet_approximate_settings *s) {
    const linnet_block_mask *blocks = &s->blocks;
    if (!blocks->offsets) return "blocks.offsets must be given";
    s->query_tile = blocks->query_tile;
    s->key_tile = blocks->key_tile;
    return NULL;
}

/* Checks and copies the lists. */
static linnet_status open_blocks(linnet_approximate_plan *plan) {
    linnet_block_mask *blocks = &plan->s.blocks;
    const int64_t lists = (blocks->per_head ? plan->s.heads : 1) * plan->query_tiles;
    const int64_t count = blocks->offsets[lists];
    for (int64_t l = 0; l < lists; l++) {
        const int64_t begin = blocks->offsets[l], end = blocks->offsets[l + 1];
        if (blocks->offsets[0] != 0 || begin > end || end > count || (count > 0 && !blocks->tiles))
            return ln_fail(plan->context, LINNET_ERROR_ARGUMENT, "blocks: offsets must ascend from 0");
        for (int64_t i = begin; i < end; i++)
            if (blocks->tiles[i] < (i > begin ? blocks->tiles[i - 1] + 1 : 0) || blocks->tiles[i] >= plan->key_tiles)
                return ln_fail(plan->context, LINNET_ERROR_ARGUMENT,
                               "blocks: the tiles of list %lld must ascend and be below %lld", (long long)l,
                               (long long)plan->key_tiles);
    }
    const uint64_t offset_bytes = ln_round_up((uint64_t)(lists + 1) * sizeof(int64_t), 64);
    unsigned char *copy =
        ln_allocate(plan->context, 1, offset_bytes + (uint64_t)count * sizeof(int32_t), "block lists");
    if (!copy) return LINNET_ERROR_MEMORY;
    plan->own = copy;
    memcpy(copy, blocks->offsets, (size_t)(lists + 1) * sizeof(int64_t));
    if (count > 0) memcpy(copy + offset_bytes, blocks->tiles, (size_t)count * sizeof(int32_t));
    blocks->offsets = (const int64_t *)(void *)copy;
    blocks->tiles = (const int32_t *)(void *)(copy + offset_bytes);
    return LINNET_OK;
}

const ln_select_row ln_select_blocks = {
    .name = "blocks", .source = "Dao et al. 2022", .check = check_blocks, .open = open_blocks, .tile = mark_given};
