/* Owns: checking the sequences, masks and biases of attention settings: afterwards no size or offset in them can lead
 * outside of what the caller gave. */
#include <math.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/mask.h"

static linnet_status wrong(linnet_context *context, const char *sentence) {
    return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention settings: %s", sentence);
}

/* name[0] .. name[count] ascend from 0 or more. */
static linnet_status check_offsets(linnet_context *context, const char *name, const int64_t *offsets, int64_t count) {
    if (!offsets) return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention settings: %s are missing", name);
    for (int64_t i = 0; i <= count; i++)
        if (offsets[i] < (i ? offsets[i - 1] : 0))
            return ln_fail(context, LINNET_ERROR_ARGUMENT,
                           "attention settings: %s[%lld] is %lld, but they must ascend from 0", name, (long long)i,
                           (long long)offsets[i]);
    return LINNET_OK;
}

static int64_t sequences_of(const linnet_attention_settings *s) {
    return ln_max_i64(1, s->sequences);
}
static const int64_t *key_offsets_of(const linnet_attention_settings *s) {
    return s->key_offsets ? s->key_offsets : s->query_offsets;
}

static linnet_status check_sequences(linnet_context *context, const linnet_attention_settings *s) {
    if (s->sequences < 0) return wrong(context, "sequences is negative");
    if (s->cache_capacity < 0) return wrong(context, "cache_capacity is negative");
    linnet_status status = check_offsets(context, "query_offsets", s->query_offsets, sequences_of(s));
    if (!status) status = check_offsets(context, "key_offsets", key_offsets_of(s), sequences_of(s));
    if (status) return status;
    if (s->query_offsets[0] != 0 || key_offsets_of(s)[0] != 0)
        return wrong(context, "query_offsets and key_offsets must begin with 0");
    return LINNET_OK;
}

static linnet_status check_documents(linnet_context *context, const linnet_attention_settings *s) {
    if (s->documents < 0) return wrong(context, "documents is negative");
    if (s->documents == 0) return LINNET_OK;
    const linnet_status status = check_offsets(context, "document_offsets", s->document_offsets, s->documents);
    if (status) return status;
    const int64_t end = s->document_offsets[s->documents], keys = key_offsets_of(s)[sequences_of(s)];
    if (s->cache_capacity == 0 && end > keys)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "attention settings: document_offsets end at %lld, but the batch has %lld keys", (long long)end,
                       (long long)keys);
    return LINNET_OK;
}

static linnet_status check_lists(linnet_context *context, const linnet_block_mask *blocks, int64_t lists,
                                 int64_t key_tiles) {
    const linnet_status status = check_offsets(context, "blocks.offsets", blocks->offsets, lists);
    if (status) return status;
    if (blocks->offsets[0] != 0) return wrong(context, "blocks.offsets must begin with 0");
    if (!blocks->tiles && blocks->offsets[lists] > 0) return wrong(context, "blocks.tiles are missing");
    for (int64_t l = 0; l < lists; l++) {
        for (int64_t i = blocks->offsets[l]; i < blocks->offsets[l + 1]; i++) {
            const int64_t tile = blocks->tiles[i];
            if (tile < 0 || tile >= key_tiles)
                return ln_fail(context, LINNET_ERROR_ARGUMENT,
                               "attention settings: blocks.tiles[%lld] is %lld, but there are %lld key tiles",
                               (long long)i, (long long)tile, (long long)key_tiles);
            if (i > blocks->offsets[l] && tile <= blocks->tiles[i - 1])
                return ln_fail(context, LINNET_ERROR_ARGUMENT,
                               "attention settings: blocks.tiles[%lld] must be above the one before it in its list",
                               (long long)i);
        }
    }
    return LINNET_OK;
}

static int64_t tiles_of(int64_t tokens, int64_t tile) {
    return tokens / tile + (tokens % tile != 0);
}

static linnet_status check_blocks(linnet_context *context, const linnet_attention_settings *s) {
    const linnet_block_mask *blocks = &s->blocks;
    if (blocks->query_tile == 0 && blocks->key_tile == 0) return LINNET_OK;
    if (blocks->query_tile <= 0) return wrong(context, "blocks.query_tile must be positive where key_tile is given");
    if (blocks->key_tile <= 0 || blocks->key_tile % 32 != 0 || blocks->key_tile > INT32_MAX)
        return wrong(context, "blocks.key_tile must be a positive multiple of 32 below 2^31");
    if (sequences_of(s) != 1) return wrong(context, "blocks are for one sequence only");
    if (s->neighbourhood.axes) return wrong(context, "blocks and a neighbourhood cannot be given together");
    int64_t lists = tiles_of(s->query_offsets[1], blocks->query_tile);
    if (blocks->per_head && !ln_multiply_i64(lists, s->heads, &lists))
        return wrong(context, "blocks has too many lists");
    const int64_t keys = ln_max_i64(key_offsets_of(s)[1], s->cache_capacity);
    return check_lists(context, blocks, lists, tiles_of(keys, blocks->key_tile));
}

static linnet_status check_axis(linnet_context *context, const linnet_neighbourhood *n, int axis) {
    const int64_t extent = n->extent[axis], window = n->window[axis], dilation = ln_max_i64(1, n->dilation[axis]);
    const char *fault = NULL;
    if (extent <= 0 || extent > INT32_MAX)
        fault = "extent must be positive and below 2^31";
    else if (window <= 0)
        fault = "window must be positive";
    else if (n->dilation[axis] < 0 || dilation > extent)
        fault = "dilation must be from 1 to extent, or 0 for 1";
    else if (!n->causal[axis] && window > extent / dilation)
        fault = "window must be at most extent / dilation";
    if (!fault) return LINNET_OK;
    return ln_fail(context, LINNET_ERROR_ARGUMENT,
                   "attention settings: axis %d of the neighbourhood (extent %lld, window %lld, dilation %lld): its %s",
                   axis, (long long)extent, (long long)window, (long long)n->dilation[axis], fault);
}

static linnet_status check_neighbourhood(linnet_context *context, const linnet_attention_settings *s) {
    const linnet_neighbourhood *n = &s->neighbourhood;
    if (n->axes < 0 || n->axes > LINNET_AXES_MOST) return wrong(context, "neighbourhood.axes must be 0 to 3");
    int64_t points = 1;
    for (int a = 0; a < n->axes; a++) {
        const linnet_status status = check_axis(context, n, a);
        if (status) return status;
        if (!ln_multiply_i64(points, n->extent[a], &points))
            return wrong(context, "the neighbourhood has more than 2^63 points");
    }
    if (n->axes == 0) return LINNET_OK;
    if (s->cache_capacity) return wrong(context, "a neighbourhood is for self attention only, not for a cache");
    for (int64_t i = 0; i < sequences_of(s); i++) {
        const int64_t queries = s->query_offsets[i + 1] - s->query_offsets[i];
        const int64_t keys = key_offsets_of(s)[i + 1] - key_offsets_of(s)[i];
        if (queries != points || keys != points)
            return ln_fail(context, LINNET_ERROR_ARGUMENT,
                           "attention settings: sequence %lld has %lld queries and %lld keys, but the extents of the "
                           "neighbourhood multiply to %lld",
                           (long long)i, (long long)queries, (long long)keys, (long long)points);
    }
    return LINNET_OK;
}

static linnet_status check_biases(linnet_context *context, const linnet_attention_settings *s) {
    if (s->rank < 0 || s->rank > INT32_MAX) return wrong(context, "rank must be from 0 to 2^31 - 1");
    if (s->relative < 0 || s->relative > INT32_MAX) return wrong(context, "relative must be from 0 to 2^31 - 1");
    for (int64_t h = 0; s->alibi && h < s->heads; h++)
        if (!isfinite(s->alibi[h]))
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention settings: alibi[%lld] is not finite",
                           (long long)h);
    return LINNET_OK;
}

linnet_status ln_mask_check(linnet_context *context, const linnet_attention_settings *settings) {
    linnet_status status = check_sequences(context, settings);
    if (status) return status;
    if (settings->window < 0) return wrong(context, "window is negative");
    if (settings->prefix < 0) return wrong(context, "prefix is negative");
    if (!status) status = check_documents(context, settings);
    if (!status) status = check_blocks(context, settings);
    if (!status) status = check_neighbourhood(context, settings);
    if (!status) status = check_biases(context, settings);
    return status;
}
