/* Owns: the memory plan: which precision, which piece and which slices of activations fit into the bounds.
 *
 *   total = model + pages(context, piece, precision) + states + workspace(piece, slice, step) + overhead
 *   cost  = multiply-adds of a token's products
 *         + packing of all weights / piece + preparing of what is multiplied + adding of slices + meetings / piece
 *
 * A candidate is a piece (tokens at once) and a slice of the feed-forward part (model/forward.h). All of a small table
 * are weighed; of those within the bounds and about as cheap as the cheapest (0.5 %; 2 % where there are no bounds to
 * be used) the one with the smallest workspace is taken. Everything a session ever allocates is in the total, so a plan
 * that fits is a promise: feeding allocates nothing. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"

/* What the process takes beside the library's allocations: stack, C library, file buffers (measured by
 * tests/cli/test_run.py). */
enum {
    STAGED_PART = 10 /* of lanes, that a piece may take */,
    WORKSPACE_PART = 4 /* of memory, under a policy */,
    HELD_PART = 3 /* where all layers hold it for its probe */,
    OVERHEAD_BYTES = 6 << 20,
    SMALLEST_PIECE = 8,
    QUICK_PIECE = 64,
    MOST_CONTEXT = 1 << 30,
    MOST_SNAPSHOTS = 1 << 12
};

/* Most are multiples of the tokens of the panel kernels' tiles. */
static const int64_t pieces[] = {8, 12, 16, 24, 32, 48, 64, 96, 128, 144, 192, 240, 288, 336, 384, 432, 480, 512};
static const int64_t parts[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64}; /* slices of the feed-forward part */
static const int64_t steps[] = {INT64_MAX, 1024, 512, 256};

enum {
    PIECES = sizeof pieces / sizeof *pieces,
    PARTS = sizeof parts / sizeof *parts,
    STEPS = sizeof steps / sizeof *steps,
    MOST_CANDIDATES = PIECES * PARTS * STEPS,
};

/* In multiply-adds of the same form, as measured: unpacking a weight, preparing an activation, adding a value of one
 * more slice, threads meeting once. */
static const double PACKING[LN_FORMS] = {[LN_FORM_F32] = 8, [LN_FORM_BF16] = 12, [LN_FORM_INT8] = 20};
static const double PREPARING = 30, ADDING = 100, MEETING = 1e6;

typedef struct candidate {
    ln_forward_shape shape;
    uint64_t workspace;
    uint64_t least, staged; /* bytes of lanes: the least, and of them for the piece alone */
    double cost;
} candidate;

typedef struct candidates {
    const linnet_session_settings *settings;
    const ln_policy *policy; /* NULL: none */
    linnet_plan draft;       /* of the draft model's session */
    uint64_t cache;          /* of lanes: what workspaces must suffice for */
    uint64_t least, staged;  /* of the piece at hand */
    int count;
    uint64_t smallest; /* workspace */
    candidate rows[MOST_CANDIDATES];
} candidates;

linnet_session_settings linnet_session_settings_default(void) {
    return (linnet_session_settings){.size = sizeof(linnet_session_settings), .precision = LINNET_TYPE_AUTO};
}

static linnet_status check_limits(const linnet_model *model, const linnet_session_settings *settled) {
    const double growth = settled->state_growth, limit = settled->state_limit;
    if (settled->state_reference < 0 || !(growth >= 0 && limit >= 0) || isinf(growth) || isinf(limit))
        return ln_fail(model->context, LINNET_ERROR_ARGUMENT,
                       "state_reference, state_growth and state_limit must be finite and not negative");
    if (growth > 0 && !settled->state_reference)
        return ln_fail(model->context, LINNET_ERROR_ARGUMENT,
                       "state_growth needs state_reference: after how many tokens norms are taken");
    if (!settled->state_reference && limit <= 0) return LINNET_OK;
    for (int64_t i = 0; i < model->hyper.layers; i++)
        if (model->state_heads[i].count) return LINNET_OK;
    return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                   "the model has no matrix states that could be limited: leave state_reference and state_limit 0");
}

ln_state_limits ln_session_limits(const linnet_session_settings *settled) {
    return (ln_state_limits){settled->state_reference, settled->state_growth, settled->state_limit};
}

linnet_status ln_session_settle(const linnet_model *model, const linnet_session_settings *settings,
                                linnet_session_settings *settled) {
    linnet_context *context = model->context;
    *settled = linnet_session_settings_default();
    if (settings) memcpy(settled, settings, settings->size < sizeof *settled ? settings->size : sizeof *settled);
    if (settled->context == 0) settled->context = model->hyper.context_length;
    if (settled->context < 1 || settled->context > MOST_CONTEXT)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a context of %lld tokens is outside 1 to %d",
                       (long long)settled->context, MOST_CONTEXT);
    if (settled->piece < 0 || settled->piece > 1 << 20)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a piece of %lld tokens is outside 1 to %d",
                       (long long)settled->piece, 1 << 20);
    if (settled->snapshots < 0 || settled->snapshots > MOST_SNAPSHOTS || settled->snapshot_interval < 0)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "%lld snapshots are outside 0 to %d, or their interval is negative",
                       (long long)settled->snapshots, MOST_SNAPSHOTS);
    const linnet_status limits = check_limits(model, settled);
    if (limits != LINNET_OK) return limits;
    switch (settled->precision) {
    case LINNET_TYPE_AUTO:
    case LINNET_F32:
    case LINNET_F16:
    case LINNET_BF16:
    case LINNET_Q8_0:
    case LINNET_Q4_0:
        break;
    default:
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "keys and values can be kept as f32, bf16, f16, q8_0 or q4_0, not as %s",
                       linnet_type_name(settled->precision) ? linnet_type_name(settled->precision) : "that");
    }
    return LINNET_OK;
}

ln_memory_shape ln_session_shape(const linnet_model *model, int64_t context, int64_t piece, linnet_type precision,
                                 const ln_policy *policy, uint64_t cache) {
    const ln_hyperparameters *hyper = &model->hyper;
    return (ln_memory_shape){.layers = hyper->layers,
                             .key_value_heads = hyper->key_value_heads,
                             .key_size = hyper->key_size,
                             .value_size = hyper->value_size,
                             .window = model->windows,
                             .attends = model->attends,
                             .state_floats = model->state_floats,
                             .state_heads = model->state_heads,
                             .value_in_key = hyper->value_in_key,
                             .precision = precision,
                             .capacity = context + (policy && policy->probe ? piece : 0),
                             .piece = piece,
                             .policy = policy,
                             .lane_bytes = cache,
                             .heads = hyper->heads,
                             .scale = hyper->score_scale};
}

uint64_t ln_session_lanes(const linnet_model *model, const ln_memory_shape *memory) {
    ln_ragged_shape lanes;
    if (!ln_memory_lanes(memory, &lanes)) return 0;
    return ln_ragged_workspace(&model->kernels, ln_team_size(model->context->team), &lanes);
}

bool ln_session_policy(const linnet_session_settings *settings) {
    return settings->policy && *settings->policy && strcmp(settings->policy, "auto") != 0;
}

/* ---- candidates ---- */

/* Of a layer, on average. */
static double cost_of(const linnet_model *model, const ln_forward_shape *shape) {
    const ln_cost cost = ln_forward_cost(model, shape);
    const double piece = (double)shape->piece;
    double sum = cost.prepared * PREPARING + cost.added * ADDING + cost.meetings * MEETING / piece;
    for (int form = 0; form < LN_FORMS; form++)
        sum += cost.weights[form] + (cost.weights[form] + cost.packed[form]) * PACKING[form] / piece;
    return sum / (double)model->hyper.layers;
}

static void add_candidate(linnet_model *model, const ln_forward_shape *shape, candidates *all) {
    const uint64_t workspace =
        ln_forward_bytes(model, shape) + ln_allocated_bytes((uint64_t)model->hyper.vocabulary * sizeof(float)) +
        ln_allocated_bytes(sizeof(ln_workspace)) + ln_allocated_bytes(sizeof(linnet_session)) +
        ln_probing_bytes(all->policy, shape->piece, all->settings->context) + all->draft.workspace;
    all->rows[all->count++] = (candidate){*shape, workspace, all->least, all->staged, cost_of(model, shape)};
    if (workspace < all->smallest) all->smallest = workspace;
}

/* What lanes need for a piece. */
static linnet_status weigh_lanes(linnet_model *model, int64_t piece, candidates *all, ln_forward_shape *shape) {
    const ln_memory_shape memory =
        ln_session_shape(model, all->settings->context, piece, LINNET_F16, all->policy, all->cache);
    ln_ragged_shape lanes;
    if (!ln_memory_lanes(&memory, &lanes))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "policy %s is for layers that see the whole text; this model has none", all->policy->row->name);
    if (all->policy->scorer && all->policy->scorer->gate && !model->gate)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "policy %s asks the model's own gate, and this model has none: its file would hold it, or "
                       "MODEL.gate.gguf beside MODEL.gguf",
                       all->policy->row->name);
    const linnet_status status = ln_ragged_least(model->context, &lanes, &all->least);
    all->staged = ln_ragged_staged(&lanes);
    if (all->cache < all->least) lanes.bytes = all->least;
    shape->lanes = ln_ragged_workspace(&model->kernels, ln_team_size(model->context->team), &lanes);
    return status;
}

static linnet_status add_slices(linnet_model *model, int64_t piece, bool exact, candidates *all) {
    const int64_t columns = model->hyper.feed_forward, unit = ln_forward_unit(model, exact);
    ln_forward_shape shape = {.piece = piece, .slice = columns, .step = columns, .exact = exact};
    const linnet_status status = all->policy ? weigh_lanes(model, piece, all, &shape) : LINNET_OK;
    if (status != LINNET_OK) return status;
    if (piece < model->kernels.matmul.panel_from || columns == 0) {
        add_candidate(model, &shape, all);
        return LINNET_OK;
    }
    for (int i = 0; i < PARTS; i++) {
        const int64_t before = shape.slice;
        shape.slice = ln_min_i64(columns, ln_ceil_div(ln_ceil_div(columns, unit), parts[i]) * unit);
        if (i > 0 && shape.slice == before) continue;
        for (int k = 0; k < STEPS; k++) {
            shape.step = ln_min_i64(steps[k], shape.slice);
            if (k == 0 || steps[k] < shape.slice) add_candidate(model, &shape, all);
        }
    }
    return LINNET_OK;
}

static linnet_status list_candidates(linnet_model *model, candidates *all) {
    const linnet_session_settings *settings = all->settings;
    const bool exact = settings->compute == LINNET_COMPUTE_EXACT;
    all->count = 0;
    all->smallest = UINT64_MAX;
    if (settings->piece || settings->context < SMALLEST_PIECE) {
        const int64_t piece = settings->piece ? settings->piece : SMALLEST_PIECE;
        return add_slices(model, ln_min_i64(piece, settings->context), exact, all);
    }
    linnet_status status = LINNET_OK;
    for (int i = 0; i < PIECES && status == LINNET_OK; i++) {
        if (i > 0 && pieces[i - 1] >= settings->context) break;
        status = add_slices(model, ln_min_i64(pieces[i], settings->context), exact, all);
    }
    return status;
}

/* ---- choice ---- */

/* What `bound` leaves beside `taken`. */
static uint64_t rest_of(uint64_t bound, uint64_t taken) {
    return bound > taken ? bound - taken : 0;
}

/* Bytes for lanes: what the bounds leave, or what holds everything. */
static uint64_t lanes_of(const linnet_session_settings *settings, const candidate *row, const linnet_plan *plan) {
    uint64_t cache = settings->cache ? rest_of(settings->cache, plan->pages) : UINT64_MAX;
    if (settings->memory) {
        const uint64_t left =
            rest_of(settings->memory, plan->model + plan->pages + plan->states + plan->workspace + plan->overhead);
        if (left < cache) cache = left;
    }
    return cache == UINT64_MAX ? row->least : cache;
}

/* Fills the sizes of one candidate. */
static void weigh(const linnet_model *model, const candidates *all, linnet_type precision, const candidate *row,
                  linnet_plan *plan) {
    const ln_hyperparameters *hyper = &model->hyper;
    const linnet_session_settings *settings = all->settings;
    ln_memory_shape shape = ln_session_shape(model, settings->context, row->shape.piece, precision, all->policy, 0);
    shape.snapshots = settings->snapshots;
    shape.limits = ln_session_limits(settings);
    ln_page_layout page = {0};
    if (hyper->attention_layers)
        ln_page_layout_of(all->policy ? all->policy->keys : precision, all->policy ? all->policy->values : precision,
                          all->policy ? ln_policy_key_size(all->policy, hyper->key_size) : hyper->key_size,
                          hyper->value_size, &page);
    *plan = (linnet_plan){.size = sizeof *plan,
                          .context = settings->context,
                          .piece = row->shape.piece,
                          .page_tokens = LN_PAGE_TOKENS,
                          .feed_forward = hyper->feed_forward,
                          .slice = row->shape.slice,
                          .step = row->shape.step,
                          .precision = precision,
                          .weights_mapped = model->weight_bytes,
                          .model = linnet_memory_used(model->context),
                          .pages = ln_memory_bytes(&shape),
                          .states = ln_memory_state_bytes(&shape),
                          .workspace = row->workspace,
                          .overhead = OVERHEAD_BYTES};
    if (plan->pages < UINT64_MAX / 2) plan->pages -= plan->states;
    if (plan->pages < UINT64_MAX / 2) plan->pages += ln_allocated_bytes((uint64_t)settings->context * sizeof(int32_t));
    plan->draft = all->draft.pages + all->draft.workspace;
    plan->pages += all->draft.pages;
    if (all->policy) {
        plan->cache = lanes_of(settings, row, plan);
        if (all->cache && plan->cache > all->cache) plan->cache = all->cache; /* what the workspace suffices for */
        plan->pages += plan->cache;
        ln_policy_text(all->policy, plan->policy, sizeof plan->policy);
    }
    plan->total = plan->model + plan->pages + plan->states + plan->workspace + plan->overhead;
    plan->bytes_per_token = (uint64_t)(hyper->attention_layers * hyper->key_value_heads) * page.bytes / LN_PAGE_TOKENS;
}

static bool fits(const linnet_plan *plan, const candidates *all, const candidate *row) {
    const linnet_session_settings *settings = all->settings;
    return (settings->memory == 0 || plan->total <= settings->memory) &&
           (settings->cache == 0 || plan->pages <= settings->cache) &&
           (settings->activations == 0 || plan->workspace <= settings->activations) &&
           (!all->policy || plan->cache >= row->least);
}

/* The cheapest that fits, of pieces of at least `least` tokens; then the smallest of those about as cheap. */
static bool choose(const linnet_model *model, linnet_type type, int64_t least, const candidates *all,
                   linnet_plan *plan) {
    const linnet_session_settings *settings = all->settings;
    const double slack = settings->memory || settings->cache || settings->activations ? 1.005 : 1.02;
    const uint64_t part = all->policy && all->policy->probe ? HELD_PART : STAGED_PART;
    double cheapest = 0;
    bool found = false;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < all->count; i++) {
            const candidate *row = &all->rows[i];
            linnet_plan made;
            if (row->shape.piece < ln_min_i64(least, all->rows[all->count - 1].shape.piece)) continue;
            if (least > 1 && all->policy && settings->cache && row->staged > settings->cache / part) continue;
            if (round == 1 && (row->cost > slack * cheapest || row->workspace >= plan->workspace)) continue;
            weigh(model, all, type, row, &made);
            if (!fits(&made, all, row) || (round == 0 && found && row->cost >= cheapest)) continue;
            if (round == 0) cheapest = row->cost;
            *plan = made;
            found = true;
        }
    }
    return found;
}

/* Half precision, then 8 bits, then smaller pieces: below QUICK_PIECE they cost more speed than 8 bits exactness. */
static int list_types(const linnet_session_settings *settings, linnet_type types[2]) {
    if (settings->precision != LINNET_TYPE_AUTO) {
        types[0] = settings->precision;
        return 1;
    }
    types[0] = LINNET_F16;
    types[1] = LINNET_Q8_0;
    return 2;
}

/* What the policy leaves open, for so many bytes of keys and values; 0: as little as it can. */
static bool settle_policy(const linnet_model *model, uint64_t cache, int64_t context, ln_policy *policy) {
    const ln_hyperparameters *h = &model->hyper;
    const double lanes = (double)(h->attention_layers * h->key_value_heads),
                 near = (double)(policy->sinks + policy->recent);
    const double token = 2.0 * (double)(h->key_size + h->value_size), waste = 0.1;
    const double bytes = (1 - waste) * (double)cache / lanes - near * token;
    return ln_policy_settle(policy, bytes, context, h->key_size, h->value_size);
}

/* most: the piece that would be taken without bounds. */
static void explain(linnet_plan *plan, const linnet_session_settings *settings, int64_t most) {
    char activations[96] = "";
    if (plan->slice < plan->feed_forward)
        snprintf(activations, sizeof activations, "; the feed-forward part in slices of %lld of %lld columns",
                 (long long)plan->slice, (long long)plan->feed_forward);
    if (*plan->policy) {
        const char *keys = strncmp(plan->policy, "p117:", 5) == 0 ? strstr(plan->policy, ",keys=") : NULL;
        const char *end = keys ? strstr(keys, ",axis") : NULL;
        snprintf(plan->reason, sizeof plan->reason, "policy %.*s as asked for%s%.*s%s%s",
                 (int)strcspn(plan->policy, ":"), plan->policy, end ? ", with " : "", end ? (int)(end - keys - 1) : 0,
                 end ? keys + 1 : "", plan->piece < most ? ", the prompt in smaller pieces to make room" : "",
                 activations);
        return;
    }
    if (plan->bytes_per_token == 0) {
        snprintf(plan->reason, sizeof plan->reason, "recurrent states take the same whatever the context%s%s",
                 plan->piece < most ? "; the prompt in smaller pieces to make room" : "", activations);
        return;
    }
    if (settings->memory == 0 && settings->cache == 0 && settings->activations == 0) {
        snprintf(plan->reason, sizeof plan->reason, "no budget given: %s keys and values%s",
                 linnet_type_name(plan->precision), activations);
        return;
    }
    snprintf(plan->reason, sizeof plan->reason, "%s keys and values %s%s%s", linnet_type_name(plan->precision),
             settings->precision != LINNET_TYPE_AUTO         ? "as asked for"
             : settings->memory == 0 && settings->cache == 0 ? "by default"
                                                             : "are the most exact that fit",
             plan->piece < most ? ", the prompt in smaller pieces to make room" : "", activations);
}

/* ---- refusal ---- */

/* The candidate with the least total, within the bound of activations where any is. */
static void find_smallest(const linnet_model *model, linnet_type type, const candidates *all, linnet_plan *plan) {
    const linnet_session_settings *settings = all->settings;
    linnet_session_settings free = *settings;
    candidates unbounded = {.settings = &free, .policy = all->policy, .draft = all->draft};
    free.memory = free.cache = 0;
    linnet_plan made;
    bool found = false;
    for (int i = 0; i < all->count; i++) {
        if (settings->activations && all->rows[i].workspace > settings->activations &&
            all->smallest <= settings->activations)
            continue;
        weigh(model, &unbounded, type, &all->rows[i], &made);
        if (!found || made.total < plan->total) *plan = made;
        found = true;
    }
    plan->smallest = plan->total;
    plan->smallest_workspace = all->smallest;
}

static linnet_status refuse(linnet_context *context, const linnet_session_settings *settings, const linnet_plan *plan) {
    if (settings->activations && settings->activations < plan->smallest_workspace)
        return ln_fail(context, LINNET_ERROR_MEMORY,
                       "%llu bytes are too little for activations: at least %llu are needed",
                       (unsigned long long)settings->activations, (unsigned long long)plan->smallest_workspace);
    if (settings->cache && settings->cache < plan->pages)
        return ln_fail(context, LINNET_ERROR_MEMORY,
                       "%llu bytes are too little for the keys and values of %lld tokens: at least %llu are needed",
                       (unsigned long long)settings->cache, (long long)settings->context,
                       (unsigned long long)plan->pages);
    return ln_fail(
        context, LINNET_ERROR_MEMORY,
        "a budget of %llu bytes is too small for %lld tokens: at least %llu are needed (%s keys and values take "
        "%llu, recurrent states %llu, tables of the model %llu, workspace %llu, the program %llu)",
        (unsigned long long)settings->memory, (long long)settings->context, (unsigned long long)plan->smallest,
        linnet_type_name(plan->precision), (unsigned long long)plan->pages, (unsigned long long)plan->states,
        (unsigned long long)plan->model, (unsigned long long)plan->workspace, (unsigned long long)plan->overhead);
}

uint64_t ln_plan_spare(const linnet_plan *plan, const linnet_session_settings *settings) {
    return settings->activations ? settings->activations - plan->workspace : UINT64_MAX;
}

/* The best candidate of the precisions in their order; of quick pieces where any fits. */
static bool choose_among(const linnet_model *model, const candidates *all, const linnet_type *types, int count,
                         linnet_plan *plan) {
    const linnet_session_settings *settings = all->settings;
    const int64_t quick = settings->memory || settings->cache ? QUICK_PIECE : 1;
    bool found = false;
    for (int i = 0; i < count && !found; i++) found = choose(model, types[i], quick, all, plan);
    if (!found && all->policy && all->policy->probe) found = choose(model, types[0], 2, all, plan);
    return found || choose(model, types[count - 1], 1, all, plan);
}

/* The plan for lanes of at most all->cache bytes. What the policy leaves open is settled for them; where that does not
 * fit, as coarsely as it can be. */
static linnet_status try_lanes(linnet_model *model, candidates *all, const ln_policy *asked, ln_policy *policy,
                               linnet_plan *plan, bool *found) {
    const linnet_type type = LINNET_F16;
    bool open = true;
    *found = false;
    for (int coarse = 0; coarse < 2 && open && !*found; coarse++) {
        *policy = *asked;
        open = settle_policy(model, coarse ? 0 : all->cache, all->settings->context, policy);
        const linnet_status status = list_candidates(model, all);
        if (status != LINNET_OK) return status;
        *found = choose_among(model, all, &type, 1, plan);
    }
    return LINNET_OK;
}

/* The workspace of a policy grows with the bytes of its lanes, which are what the workspace leaves: the bound of the
 * lanes that leaves them most is found by halving. */
static linnet_status choose_lanes(linnet_model *model, candidates *all, ln_policy *policy, const linnet_plan *smallest,
                                  linnet_plan *plan, bool *found) {
    enum { TRIALS = 9 };
    const linnet_session_settings *settings = all->settings;
    const ln_policy asked = *policy;
    uint64_t low = smallest->cache, high = settings->cache;
    if (settings->memory) high = rest_of(settings->memory, smallest->total - smallest->cache);
    *found = false;
    for (int i = 0; i < TRIALS; i++) {
        linnet_plan made;
        bool fitting;
        const bool last = i + 1 == TRIALS;
        if (last && *found) break;
        all->cache = last ? smallest->cache : i ? low + rest_of(high, low) / 2 : high;
        const linnet_status status = try_lanes(model, all, &asked, policy, &made, &fitting);
        if (status != LINNET_OK) return status;
        if (fitting && (!*found || made.cache > plan->cache)) *plan = made;
        *found = *found || fitting;
        if (fitting && (made.cache >= all->cache || !settings->memory)) {
            if (i == 0) break;
            low = all->cache;
        } else {
            high = all->cache;
        }
    }
    return LINNET_OK;
}

linnet_status ln_plan_with(linnet_model *model, const linnet_session_settings *given, linnet_plan *plan) {
    const linnet_session_settings settled = *given;
    linnet_status status = LINNET_OK;
    *plan = (linnet_plan){.size = sizeof *plan};
    ln_policy asked, policy;
    candidates all = {.settings = &settled};
    if (ln_session_policy(&settled)) {
        status = ln_policy_parse(model->context, settled.policy, &asked);
        policy = asked;
        if (status == LINNET_OK) settle_policy(model, 0, settled.context, &policy);
        all.policy = &policy;
        linnet_session_settings draft;
        if (status == LINNET_OK) status = ln_draft_plan(model, &settled, &policy, &draft, &all.draft);
    }
    if (status == LINNET_OK) status = list_candidates(model, &all);
    if (status != LINNET_OK) return status;
    linnet_type types[2] = {LINNET_F16};
    const int count = all.policy ? 1 : list_types(&settled, types);
    linnet_plan smallest = {0};
    find_smallest(model, types[count - 1], &all, &smallest);
    bool found;
    if (all.policy && (settled.memory || settled.cache)) {
        policy = asked;
        status = choose_lanes(model, &all, &policy, &smallest, plan, &found);
    } else {
        found = choose_among(model, &all, types, count, plan);
    }
    if (status != LINNET_OK) return status;
    if (!found) {
        *plan = smallest;
        return refuse(model->context, &settled, plan);
    }
    plan->smallest = smallest.smallest;
    plan->smallest_workspace = smallest.smallest_workspace;
    linnet_session_settings free = settled;
    linnet_plan unbounded = {0};
    free.memory = free.cache = free.activations = 0;
    all.settings = &free;
    choose(model, plan->precision, 1, &all, &unbounded);
    explain(plan, &settled, unbounded.piece);
    return LINNET_OK;
}

linnet_status linnet_plan_session(const linnet_model *constant, const linnet_session_settings *settings,
                                  linnet_plan *plan) {
    linnet_model *model = (linnet_model *)(uintptr_t)constant; /* sizes are only read */
    linnet_session_settings settled;
    const linnet_status status = ln_session_settle(model, settings, &settled);
    *plan = (linnet_plan){.size = sizeof *plan};
    if (status != LINNET_OK) return status;
    const ln_device *device;
    char about[sizeof plan->device];
    const linnet_status found = ln_session_device(model, &settled, &device, about, sizeof about);
    if (found != LINNET_OK) return found;
    if (device) {
        const linnet_status fitted = ln_plan_device(model, &settled, device, about, plan);
        const bool cannot = fitted == LINNET_ERROR_MEMORY || fitted == LINNET_ERROR_UNSUPPORTED;
        if (!cannot || !ln_session_either(&settled)) return fitted;
        ln_log(model->context, LINNET_LOG_INFO, "the CPU is used: %s", linnet_last_error(model->context));
        *plan = (linnet_plan){.size = sizeof *plan};
    }
    const bool open =
        settled.precision == LINNET_TYPE_AUTO && !ln_session_policy(&settled) && model->hyper.attention_layers;
    return open && (settled.memory || settled.cache) ? ln_plan_choose(model, &settled, plan)
                                                     : ln_plan_with(model, &settled, plan);
}
