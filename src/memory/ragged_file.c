/* Owns: lanes in a session file, between two pieces.
 *
 *     "lanes", version, kinds, kept numbers, weights, bytes of a scorer's state, rewind limit           (i64 each)
 *     for each layer: its share (f64); statistics: two counts (i64), cosine, masses (f64)
 *     for each lane: distance (f64); far, low and near tokens, given up (i64 each)
 *     for each lane: the scorer's state
 *     where the policy orders key channels, for each lane: which ones (i32 each), zeros where they were not ordered yet
 *     for each lane and page, in the order of the lane: the page, its positions, kept numbers, weights
 *
 * Sizes, policy and position were checked before (pages_file.c). Of pages that are not full the tokens that are not
 * there are stored as zeros. Reading takes new pages: those of other members are not touched. */
#include <inttypes.h>
#include <string.h>

#include "memory/ragged_inside.h"

enum { LANES_TAG = 0x73656e616c /* "lanes" */, LANES_VERSION = 1 };

/* ---- writing ---- */

static void put_rows(ln_state_writer *writer, const void *rows, int64_t tokens, uint64_t row_bytes) {
    static const unsigned char zeros[LN_PAGE_TOKENS * sizeof(float)] = {0};
    if (!rows) return;
    ln_state_put(writer, rows, (uint64_t)tokens * row_bytes);
    for (uint64_t left = (uint64_t)(LN_PAGE_TOKENS - tokens) * row_bytes; left > 0;) {
        const uint64_t part = left < sizeof zeros ? left : sizeof zeros;
        ln_state_put(writer, zeros, part);
        left -= part;
    }
}

/* some: room for a page, where pages are elsewhere. */
static linnet_status put_page(const ln_ragged *ragged, ln_page page, int64_t tokens, unsigned char *some,
                              ln_state_writer *writer) {
    const ln_pool *pool = ragged->pool;
    const ln_ragged_elsewhere *there = ragged->shape.elsewhere;
    const ln_page_layout *layout = &ln_pool_layouts(pool)[ln_pool_kind(pool, page)];
    const uint64_t kept = (uint64_t)ln_pool_shape_of(pool)->kept * sizeof(float);
    const linnet_status status = there ? there->fetch(there->user, page, layout, some) : LINNET_OK;
    if (status != LINNET_OK) return status;
    ln_state_put_page(writer, layout, there ? some : ln_pool_data(pool, page), tokens);
    put_rows(writer, ln_pool_positions(pool, page), tokens, sizeof(int32_t));
    put_rows(writer, ln_pool_kept(pool, page), tokens, kept);
    put_rows(writer, ln_pool_weights(pool, page), tokens, sizeof(float));
    return LINNET_OK;
}

static unsigned char *room_for_page(const ln_ragged *ragged) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    uint64_t most = 0;
    for (int k = 0; k < pool->kinds; k++)
        if (pool->layout[k].bytes > most) most = pool->layout[k].bytes;
    return ln_allocate(ragged->context, 1, most, "a page of a session file");
}

static linnet_status put_pages(const ln_ragged *ragged, ln_state_writer *writer) {
    unsigned char *some = ragged->shape.elsewhere ? room_for_page(ragged) : NULL;
    linnet_status status = ragged->shape.elsewhere && !some ? LINNET_ERROR_MEMORY : LINNET_OK;
    for (int64_t i = 0; i < ragged->lanes; i++) {
        const ln_lane *lane = &ragged->lane[i];
        for (int64_t p = lane->begin; p < lane->begin + ln_lane_pages(lane) && status == LINNET_OK; p++)
            status = put_page(ragged, ragged->page[p], ragged->count[p], some, writer);
    }
    ln_release(ragged->context, some);
    return status;
}

bool ln_ragged_writes(const ln_ragged *ragged) {
    return !ragged->tier;
}

linnet_status ln_ragged_write(const ln_ragged *ragged, ln_state_writer *writer) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const int64_t head[] = {
        LANES_TAG, LANES_VERSION, pool->kinds, pool->kept, pool->weights, (int64_t)ragged->state_bytes, ragged->limit};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) ln_state_put_i64(writer, head[i]);
    for (int64_t l = 0; l < ragged->shape.layers; l++) {
        const ln_statistics *statistics = &ragged->statistics[l];
        ln_state_put(writer, &ragged->share[l], sizeof *ragged->share);
        ln_state_put_i64(writer, statistics->cosines);
        ln_state_put_i64(writer, statistics->masses);
        ln_state_put(writer, &statistics->cosine, sizeof statistics->cosine);
        ln_state_put(writer, statistics->mass, sizeof statistics->mass);
    }
    for (int64_t i = 0; i < ragged->lanes; i++) {
        const ln_lane *lane = &ragged->lane[i];
        ln_state_put(writer, &ragged->distance[i], sizeof *ragged->distance);
        ln_state_put_i64(writer, lane->tokens[LN_FAR]);
        ln_state_put_i64(writer, lane->tokens[LN_LOW]);
        ln_state_put_i64(writer, lane->tokens[LN_NEAR]);
        ln_state_put_i64(writer, lane->given_up);
    }
    ln_state_put(writer, ragged->state, (uint64_t)ragged->lanes * ragged->state_bytes);
    if (ragged->order)
        ln_state_put(writer, ragged->order, (uint64_t)(ragged->lanes * ragged->shape.key_size) * sizeof *ragged->order);
    return put_pages(ragged, writer);
}

/* ---- reading ---- */

typedef struct reading {
    ln_ragged *ragged;
    ln_state_reader *file;
    int64_t position, limit;
    bool store;
    unsigned char *some; /* room for a page, where pages are elsewhere */
    int64_t most;        /* pages of a lane there */
} reading;

static linnet_status refuse(const reading *r, const char *what) {
    return ln_fail(r->ragged->context, LINNET_ERROR_FORMAT, "session file %s holds keys and values that cannot be: %s",
                   r->file->path, what);
}
static linnet_status cut_off(const reading *r) {
    return refuse(r, "there are less of them than it says");
}

static bool take_number(const reading *r, double least, double most, double *number) {
    return ln_state_take(r->file, number, sizeof *number) && *number >= least && *number <= most;
}

static linnet_status read_head(reading *r) {
    const ln_ragged *ragged = r->ragged;
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const int64_t expected[] = {LANES_TAG,  LANES_VERSION, pool->kinds,
                                pool->kept, pool->weights, (int64_t)ragged->state_bytes};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int64_t found;
        if (!ln_state_take_i64(r->file, &found)) return cut_off(r);
        if (found != expected[i])
            return refuse(r, "their form is of another version, or of a policy that is not the one named");
    }
    if (!ln_state_take_i64(r->file, &r->limit)) return cut_off(r);
    return r->limit < 0 || r->limit > r->position ? refuse(r, "the limit of rewinding") : LINNET_OK;
}

static bool take_statistics(const reading *r, ln_statistics *statistics) {
    bool sound = ln_state_take_i64(r->file, &statistics->cosines) && ln_state_take_i64(r->file, &statistics->masses) &&
                 take_number(r, -1.001, 1.001, &statistics->cosine);
    for (int i = 0; sound && i < LN_STATISTICS_MASS; i++) sound = take_number(r, 0, 1.001, &statistics->mass[i]);
    return sound && statistics->cosines >= 0 && statistics->cosines <= r->position && statistics->masses >= 0 &&
           statistics->masses <= r->position * r->ragged->shape.key_value_heads;
}

static linnet_status read_layers(const reading *r) {
    ln_ragged *ragged = r->ragged;
    double sum = 0;
    for (int64_t l = 0; l < ragged->shape.layers; l++) {
        ln_statistics statistics = {.distance = ragged->statistics[l].distance};
        double share = 0;
        const bool sound = take_number(r, 0, 1, &share) && take_statistics(r, &statistics);
        sum += share;
        if (!sound || sum > 1 + 1e-9) return refuse(r, "what is known of layers");
        if (!r->store) continue;
        ragged->share[l] = share;
        ragged->statistics[l] = statistics;
    }
    return LINNET_OK;
}

/* A device attends to a lane as one sequence, whose table has room for the pages of one more piece. */
static bool possible_elsewhere(const reading *r, int64_t far, int64_t near) {
    const ln_ragged_shape *shape = &r->ragged->shape;
    const int64_t more = ln_min_i64(shape->piece, shape->capacity - r->position);
    return far % LN_PAGE_TOKENS == 0 && ln_ceil_div(far + near + more, LN_PAGE_TOKENS) <= r->most;
}

/* Tokens of a lane as they can be between two pieces. */
static bool possible(const reading *r, const int64_t tokens[LN_LANE_KINDS], int64_t given_up) {
    const ln_policy *policy = &r->ragged->policy;
    const int64_t sinks = ln_sink_pages(policy) * LN_PAGE_TOKENS, position = r->position;
    for (int k = 0; k < LN_LANE_KINDS; k++)
        if (tokens[k] < 0 || tokens[k] > position) return false;
    const int64_t near = tokens[LN_NEAR], left = tokens[LN_FAR] + tokens[LN_LOW];
    if (given_up < 0 || given_up != position - near - left) return false;
    if (given_up > 0 && !policy->scorer) return false;
    if (policy->channels && tokens[LN_FAR] % LN_PAGE_TOKENS) return false;
    if (ln_pool_shape_of(r->ragged->pool)->kinds <= LN_LOW && tokens[LN_LOW] > 0) return false;
    if (near - sinks - policy->recent >= LN_PAGE_TOKENS) return false;
    if (r->ragged->shape.elsewhere && !possible_elsewhere(r, left, near)) return false;
    return near == position ||
           (near >= sinks + policy->recent && r->limit >= position - (near - sinks - policy->recent));
}

static int64_t pages_of(const ln_lane *lane, int kind) {
    return ln_ceil_div(lane->tokens[kind], LN_PAGE_TOKENS);
}

/* Reads the table of lanes into `lanes`, without pages, and finds whether the bytes suffice. */
static linnet_status read_lanes(const reading *r, ln_lane *lanes, double *distances) {
    const ln_ragged *ragged = r->ragged;
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    uint64_t far = 0, room = ragged->allowance;
    for (int64_t i = 0; i < ragged->lanes; i++) {
        ln_lane *lane = &lanes[i];
        *lane = (ln_lane){0};
        if (!take_number(r, 0, 1e30, &distances[i])) return refuse(r, "what is known of heads");
        if (!ln_state_take_i64(r->file, &lane->tokens[LN_FAR]) || !ln_state_take_i64(r->file, &lane->tokens[LN_LOW]) ||
            !ln_state_take_i64(r->file, &lane->tokens[LN_NEAR]) || !ln_state_take_i64(r->file, &lane->given_up))
            return cut_off(r);
        if (!possible(r, lane->tokens, lane->given_up)) return refuse(r, "the numbers of tokens");
        if (lane->tokens[LN_NEAR] != lanes[0].tokens[LN_NEAR]) return refuse(r, "the numbers of recent tokens");
        far += (uint64_t)pages_of(lane, LN_FAR) * ln_pool_page_bytes(pool, LN_FAR);
        if (pool->kinds <= LN_LOW) continue;
        far += (uint64_t)pages_of(lane, LN_LOW) * ln_pool_page_bytes(pool, LN_LOW);
        room += ln_pool_page_bytes(pool, LN_LOW); /* a page of either kind may be begun */
    }
    if (far > room)
        return ln_fail(ragged->context, LINNET_ERROR_MEMORY,
                       "session file %s holds %" PRIu64
                       " bytes of keys and values beside the recent ones, this session "
                       "has room for %" PRIu64 ": open it with at least %" PRIu64 " bytes more",
                       r->file->path, far, room, far - room);
    return LINNET_OK;
}

/* Entries of the tables for what the lanes will hold. */
static void place_lanes(ln_ragged *ragged) {
    int64_t pages = 0, at = 0;
    for (int64_t i = 0; i < ragged->lanes; i++)
        for (int k = 0; k < LN_LANE_KINDS; k++) pages += pages_of(&ragged->lane[i], k);
    const int64_t left = (ragged->entries - pages) / ragged->lanes;
    for (int64_t i = 0; i < ragged->lanes; i++) {
        ln_lane *lane = &ragged->lane[i];
        lane->begin = at;
        lane->room = left;
        for (int k = 0; k < LN_LANE_KINDS; k++) lane->room += pages_of(lane, k);
        at += lane->room;
    }
}

/* Positions of a page whose first token is number `first` of its kind. */
static bool sound_positions(const reading *r, const ln_lane *lane, int kind, int64_t first, int64_t tokens,
                            const int32_t *positions) {
    const int64_t sinks = ln_sink_pages(&r->ragged->policy) * LN_PAGE_TOKENS, near = lane->tokens[LN_NEAR];
    for (int64_t i = 0; i < tokens; i++) {
        const int64_t n = first + i, position = positions[i];
        const int64_t recent = ln_max_i64(sinks, r->position - (near - sinks)); /* where the recent ones begin */
        if (kind == LN_NEAR && position != (n < sinks ? n : recent + n - sinks)) return false;
        if (kind != LN_NEAR && (position < sinks || position >= recent)) return false;
    }
    return true;
}

/* Skips a page, or puts it at the end of a lane. */
static linnet_status read_page(const reading *r, ln_lane *lane, int kind, int64_t first) {
    ln_ragged *ragged = r->ragged;
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const int64_t tokens = ln_min_i64(LN_PAGE_TOKENS, lane->tokens[kind] - first);
    ln_page page = 0;
    if (r->store) {
        page = ln_pool_take(ragged->pool, kind);
        if (!page)
            return ln_fail(ragged->context, LINNET_ERROR_MEMORY, "the pages of this policy do not suffice: a defect");
        const int64_t at = lane->begin + ln_lane_pages(lane);
        ragged->page[at] = page;
        ragged->kind[at] = (uint8_t)kind;
        ragged->count[at] = (uint8_t)tokens;
        lane->pages[kind]++;
    }
    const uint64_t word = LN_PAGE_TOKENS * sizeof(float);
    int32_t positions[LN_PAGE_TOKENS] = {0};
    const ln_ragged_elsewhere *there = page ? ragged->shape.elsewhere : NULL;
    unsigned char *to = there ? r->some : page ? ln_pool_data(ragged->pool, page) : NULL;
    if (!ln_state_take(r->file, to, pool->layout[kind].bytes) ||
        (pool->positions && !ln_state_take(r->file, positions, sizeof positions)))
        return cut_off(r);
    if (pool->positions && !sound_positions(r, lane, kind, first, tokens, positions))
        return refuse(r, "the positions of tokens");
    if (page && pool->positions) memcpy(ln_pool_positions(ragged->pool, page), positions, sizeof positions);
    if (!ln_state_take(r->file, page ? ln_pool_kept(ragged->pool, page) : NULL, (uint64_t)pool->kept * word) ||
        !ln_state_take(r->file, page ? ln_pool_weights(ragged->pool, page) : NULL, pool->weights ? word : 0))
        return cut_off(r);
    return there ? there->store(there->user, page, &pool->layout[kind], to) : LINNET_OK;
}

static linnet_status read_pages(const reading *r, ln_lane *lanes) {
    static const int order[] = {LN_FAR, LN_LOW, LN_NEAR};
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; i < r->ragged->lanes; i++)
        for (int k = 0; k < LN_LANE_KINDS; k++)
            for (int64_t first = 0; first < lanes[i].tokens[order[k]] && status == LINNET_OK; first += LN_PAGE_TOKENS)
                status = read_page(r, &lanes[i], order[k], first);
    return status;
}

static uint64_t far_bytes(const ln_ragged *ragged) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    uint64_t bytes = 0;
    for (int64_t i = 0; i < ragged->lanes; i++)
        for (int k = LN_FAR; k < pool->kinds; k++)
            bytes += (uint64_t)ragged->lane[i].pages[k] * ln_pool_page_bytes(pool, k);
    return bytes;
}

/* Each channel once, or zeros where nothing has left the near tokens. */
static bool sound_order(const int32_t *order, int64_t size, const ln_lane *lane) {
    bool seen[LN_HEAD_MOST] = {false}, none = true;
    for (int64_t i = 0; i < size; i++) none = none && order[i] == 0;
    if (none) return lane->tokens[LN_FAR] + lane->tokens[LN_LOW] + lane->given_up == 0;
    for (int64_t i = 0; i < size; i++) {
        if (order[i] < 0 || order[i] >= size || seen[order[i]]) return false;
        seen[order[i]] = true;
    }
    return true;
}

static linnet_status read_orders(const reading *r, const ln_lane *lanes) {
    ln_ragged *ragged = r->ragged;
    const int64_t size = ragged->shape.key_size;
    for (int64_t i = 0; ragged->order && i < ragged->lanes; i++) {
        int32_t order[LN_HEAD_MOST];
        if (!ln_state_take(r->file, order, (uint64_t)size * sizeof *order)) return cut_off(r);
        if (!sound_order(order, size, &lanes[i])) return refuse(r, "the order of channels");
        if (r->store) memcpy(ragged->order + i * size, order, (size_t)size * sizeof *order);
    }
    return LINNET_OK;
}

/* With store, `lanes` and `distances` are the memory's own. */
static linnet_status read_all(reading *r, ln_lane *lanes, double *distances) {
    ln_ragged *ragged = r->ragged;
    const uint64_t states = (uint64_t)ragged->lanes * ragged->state_bytes;
    linnet_status status = read_layers(r);
    if (status == LINNET_OK) status = read_lanes(r, lanes, distances);
    if (status == LINNET_OK && !ln_state_take(r->file, r->store ? ragged->state : NULL, states)) status = cut_off(r);
    if (status == LINNET_OK) status = read_orders(r, lanes);
    if (status == LINNET_OK && r->store) place_lanes(ragged);
    return status == LINNET_OK ? read_pages(r, lanes) : status;
}

linnet_status ln_ragged_read(ln_ragged *ragged, ln_state_reader *reader, int64_t position, bool store) {
    reading r = {.ragged = ragged, .file = reader, .position = position, .store = store};
    linnet_status status = read_head(&r);
    if (status != LINNET_OK) return status;
    if (ragged->shape.elsewhere) r.most = ln_ragged_lane_pages(&ragged->shape);
    if (!store) {
        const uint64_t lanes = (uint64_t)ragged->lanes;
        ln_lane *trial = ln_allocate(ragged->context, lanes, sizeof *trial + sizeof(double), "table of a session file");
        if (!trial) return LINNET_ERROR_MEMORY;
        status = read_all(&r, trial, (double *)(void *)(trial + lanes));
        ln_release(ragged->context, trial);
        return status;
    }
    r.some = ragged->shape.elsewhere ? room_for_page(ragged) : NULL;
    if (ragged->shape.elsewhere && !r.some) return LINNET_ERROR_MEMORY;
    ln_ragged_rewind(ragged, 0);
    status = read_all(&r, ragged->lane, ragged->distance);
    ln_release(ragged->context, r.some);
    if (status != LINNET_OK) {
        ln_ragged_rewind(ragged, 0);
        return status;
    }
    ragged->position = position;
    ragged->limit = r.limit;
    ragged->far_used = far_bytes(ragged);
    ragged->settled = false;
    return LINNET_OK;
}
