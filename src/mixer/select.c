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
    for (int64_t head = tile->head; head < tile->head + tile->heads; head++)
        for (int64_t token = tile->begin; token < tile->end; token += call->s->query_stride)
            memcpy(rows + count++ * LN_SELECT_STRIDE, ln_select_query(call, head, token),
                   (size_t)call->s->key_size * sizeof *rows);
    return count;
}

/* ---- the tile loop ---- */

ln_paged ln_paged_carve(const ln_select_call *call, ln_carver *carver, const ln_page_layout *layout, int64_t tokens) {
    ln_paged pages = {.layout = *layout, .tokens = tokens};
    pages.pages = ln_carve(carver, (uint64_t)call->s->key_value_heads, ln_pack_bytes(layout, tokens));
    pages.slots = ln_carve(carver, (uint64_t)ln_ceil_div(tokens, LN_PAGE_TOKENS) + 1, sizeof *pages.slots);
    return pages;
}

void ln_select_pack(const ln_select_call *call, const ln_paged *pages, int64_t at, const ln_rows *key,
                    const ln_rows *value, int64_t tokens, const int32_t *order, int64_t order_stride) {
    const int64_t first = at / LN_PAGE_TOKENS;
    const ln_packing packing = {.layout = pages->layout,
                                .key = *key,
                                .value = *value,
                                .heads = call->s->key_value_heads,
                                .tokens = tokens,
                                .order = order,
                                .order_stride = order_stride,
                                .pages = pages->pages + (uint64_t)first * pages->layout.bytes,
                                .head_stride = ln_pack_bytes(&pages->layout, pages->tokens)};
    for (int64_t i = 0; i * LN_PAGE_TOKENS < tokens; i++)
        pages->slots[first + i] = packing.pages + (uint64_t)i * pages->layout.bytes;
    ln_pack_pages(call->team, &packing);
}

ln_page_view ln_select_view(const ln_select_call *call, const ln_paged *pages, int64_t at, int64_t tokens) {
    return (ln_page_view){.layout = pages->layout,
                          .key_value_heads = call->s->key_value_heads,
                          .slots = pages->slots + at / LN_PAGE_TOKENS,
                          .slot_count = ln_max_i64(1, ln_ceil_div(tokens, LN_PAGE_TOKENS)),
                          .head_stride = ln_pack_bytes(&pages->layout, pages->tokens),
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
                                    .bf16 = s->type == LINNET_BF16 && !s->exact,
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
    if (!blocks->offsets || blocks->query_tile < 1) return "blocks must be given, with their tile sizes";
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

const ln_select_row ln_select_blocks = {.name = "blocks",
                                        .source = "Dao et al. 2022",
                                        .needs = LN_SELECT_BACKWARD,
                                        .check = check_blocks,
                                        .open = open_blocks,
                                        .tile = mark_given};
