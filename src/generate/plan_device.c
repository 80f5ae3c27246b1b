/* Owns: which device a session asks for, and its plan there:
 *
 *   total = weights + pages(context, piece, precision) + workspace(piece), all bytes of the device.
 *
 * The most exact precision is taken with which pieces of QUICK_PIECE tokens fit, and of these the longest; where none
 * does, shorter pieces of the coarsest. Of what the device has left, RESERVE bytes stay for what nobody plans: kernels
 * that are loaded when they are first used, captured graphs, libraries. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "generate/session.h"

enum { QUICK_PIECE = 64, MOST_PIECE = 65535 /* of a grid of blocks */, RESERVE = 256 << 20 };

static const int64_t pieces[] = {2048, 1024, 512, 256, 128, 64, 32, 16, 8};
static const linnet_type types[] = {LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0}; /* attention multiplies bf16 */
enum { PIECES = sizeof pieces / sizeof *pieces, TYPES = sizeof types / sizeof *types };

/* ---- which device ---- */

/* What a device cannot do whatever the model. */
static linnet_status check_settings(linnet_model *model, const linnet_session_settings *settled,
                                    const ln_device *device) {
    ln_policy policy;
    if (settled->draft)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "draft models are for policies with probes, which need the CPU");
    if (settled->compute == LINNET_COMPUTE_EXACT)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "a GPU rounds activations to bf16: exact ones (--exact) need the CPU");
    if (!ln_session_policy(settled)) return LINNET_OK;
    const linnet_status status = ln_policy_parse(model->context, settled->policy, &policy);
    return status == LINNET_OK ? device->allows(model, &policy) : status;
}

bool ln_session_either(const linnet_session_settings *settings) {
    const char *name = settings->device;
    return name && (!strcmp(name, "auto") || !strcmp(name, "cuda,cpu"));
}

linnet_status ln_session_device(linnet_model *model, const linnet_session_settings *settled, const ln_device **device,
                                char *about, int64_t capacity) {
    const char *name = settled->device;
    *device = NULL;
    if (!name || !*name || !strcmp(name, "cpu")) return LINNET_OK;
    const bool either = ln_session_either(settled);
    if (!either && strcmp(name, "cuda") != 0)
        return ln_fail(model->context, LINNET_ERROR_ARGUMENT,
                       "there is no device '%s': cpu, cuda, and auto or cuda,cpu for either", name);
    const ln_device *cuda = ln_device_cuda();
    linnet_status status;
    if (cuda) {
        status = cuda->check(model, about, capacity);
        if (status == LINNET_OK) status = check_settings(model, settled, cuda);
    } else {
        status = ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                         "this build has no kernels for GPUs: configure it with -DLINNET_CUDA=ON, or use --device cpu");
    }
    if (status == LINNET_OK) {
        *device = cuda;
        return LINNET_OK;
    }
    if (!either) return status;
    ln_log(model->context, LINNET_LOG_INFO, "the CPU is used: %s", linnet_last_error(model->context));
    return LINNET_OK;
}

/* ---- the plan ---- */

typedef struct device_choice {
    linnet_model *model;
    const linnet_session_settings *settled;
    const ln_device *device;
    const ln_policy *policy; /* NULL: none */
    uint64_t enough;         /* bytes of lanes for which pieces may be long */
    uint64_t available;
} device_choice;

static bool holds(const device_choice *c, const ln_device_bytes *bytes) {
    const linnet_session_settings *s = c->settled;
    const uint64_t total = bytes->weights + bytes->pages + bytes->workspace;
    return total + RESERVE <= bytes->available && (!s->memory || total <= s->memory) &&
           (!s->cache || bytes->pages <= s->cache) && (!s->activations || bytes->workspace <= s->activations);
}

/* Under a policy: the most for lanes that the bounds hold, no more than they can use and no less than they need;
 * without bounds that. The workspace grows with it, so it is found by halving. */
static linnet_status weigh_lanes(device_choice *c, ln_device_shape *shape, ln_device_bytes *bytes) {
    enum { NEAR = 4096 };
    const linnet_session_settings *s = c->settled;
    linnet_status status = c->device->weigh(c->model, shape, bytes);
    if (status != LINNET_OK || !c->policy) return status;
    uint64_t low = bytes->lanes_least, high = bytes->lanes_most;
    const uint64_t rest = s->cache > bytes->pages ? s->cache - bytes->pages : 0; /* beside sliding layers' pages */
    if (s->cache && high > rest) high = rest;
    if (high < low || (!s->memory && !s->cache)) high = low;
    shape->lane_bytes = high;
    status = c->device->weigh(c->model, shape, bytes);
    if (status != LINNET_OK || holds(c, bytes)) return status;
    while (status == LINNET_OK && high - low > NEAR) {
        shape->lane_bytes = low + (high - low) / 2;
        status = c->device->weigh(c->model, shape, bytes);
        if (holds(c, bytes))
            low = shape->lane_bytes;
        else
            high = shape->lane_bytes;
    }
    shape->lane_bytes = low;
    return status == LINNET_OK ? c->device->weigh(c->model, shape, bytes) : status;
}

static linnet_status weigh(device_choice *c, linnet_type precision, int64_t piece, linnet_plan *plan, bool *fits) {
    const linnet_session_settings *settled = c->settled;
    ln_device_shape shape = {.context = settled->context, .piece = piece, .precision = precision, .policy = c->policy};
    ln_device_bytes bytes;
    const linnet_status status = weigh_lanes(c, &shape, &bytes);
    if (status != LINNET_OK) return status;
    plan->cache = shape.lane_bytes;
    c->available = bytes.available;
    plan->piece = piece;
    plan->precision = precision;
    plan->model = bytes.weights;
    plan->pages = bytes.pages;
    plan->workspace = bytes.workspace;
    plan->bytes_per_token = bytes.token;
    plan->total = bytes.weights + bytes.pages + bytes.workspace;
    *fits = holds(c, &bytes);
    return LINNET_OK;
}

/* Of so many tokens, as far as there are any, and kernels take them; or as asked for. */
static int64_t piece_of(const device_choice *c, int64_t tokens) {
    return ln_min_i64(c->settled->piece ? ln_min_i64(c->settled->piece, MOST_PIECE) : tokens, c->settled->context);
}

/* The longest piece of at least `least` tokens with which this precision fits; under a policy, that leaves lanes most
 * of what the shortest of these would. */
static linnet_status choose(device_choice *c, linnet_type precision, int64_t least, linnet_plan *plan, bool *found) {
    bool fits;
    *found = false;
    c->enough = 0;
    if (c->policy && !c->settled->piece) {
        const linnet_status status = weigh(c, precision, piece_of(c, least), plan, &fits);
        if (status != LINNET_OK) return status;
        if (c->settled->memory || c->settled->cache) c->enough = plan->cache / 4 * 3;
    }
    for (int i = 0; i < PIECES && pieces[i] >= least && !*found; i++) {
        const linnet_status status = weigh(c, precision, piece_of(c, pieces[i]), plan, &fits);
        if (status != LINNET_OK) return status;
        *found = fits && plan->cache >= c->enough;
        if (c->settled->piece) break;
    }
    return LINNET_OK;
}

/* Precisions in their order; in a second round the coarsest that the model can have, in any piece. */
static linnet_status choose_among(device_choice *c, const linnet_type *list, int count, linnet_plan *plan,
                                  bool *found) {
    int known = 0;
    *found = false;
    for (int i = 0; i < count && !*found; i++) {
        const linnet_status status = choose(c, list[i], QUICK_PIECE, plan, found);
        if (status == LINNET_ERROR_UNSUPPORTED && i > 0) break;
        if (status != LINNET_OK) return status;
        known = i + 1;
    }
    return *found ? LINNET_OK : choose(c, list[known - 1], pieces[PIECES - 1], plan, found);
}

/* The coarsest precision that the model can have, in the shortest pieces, whatever the bounds. */
static linnet_status find_smallest(const device_choice *c, const linnet_type *list, int count, linnet_plan *plan) {
    linnet_session_settings free = *c->settled;
    device_choice unbounded = *c;
    linnet_status status;
    bool fits;
    free.memory = free.cache = free.activations = 0;
    unbounded.settled = &free;
    do status = weigh(&unbounded, list[--count], piece_of(c, pieces[PIECES - 1]), plan, &fits);
    while (status == LINNET_ERROR_UNSUPPORTED && count > 0);
    plan->smallest = plan->total;
    plan->smallest_workspace = plan->workspace;
    return status;
}

static linnet_status refuse(const device_choice *c, const linnet_plan *plan) {
    const linnet_session_settings *s = c->settled;
    const unsigned long long least = (unsigned long long)plan->total;
    const linnet_type precision = c->policy ? c->policy->near : plan->precision;
    if (s->memory && plan->total > s->memory)
        return ln_fail(c->model->context, LINNET_ERROR_MEMORY,
                       "a budget of %llu bytes on the device is too small for %lld tokens: at least %llu are needed "
                       "(weights take %llu, %s keys and values %llu, workspace %llu)",
                       (unsigned long long)s->memory, (long long)s->context, least, (unsigned long long)plan->model,
                       linnet_type_name(precision), (unsigned long long)plan->pages,
                       (unsigned long long)plan->workspace);
    if (s->cache && plan->pages > s->cache)
        return ln_fail(c->model->context, LINNET_ERROR_MEMORY,
                       "%llu bytes are too little for the keys and values of %lld tokens: at least %llu are needed",
                       (unsigned long long)s->cache, (long long)s->context, (unsigned long long)plan->pages);
    if (s->activations && plan->workspace > s->activations)
        return ln_fail(c->model->context, LINNET_ERROR_MEMORY,
                       "%llu bytes are too little for activations: at least %llu are needed",
                       (unsigned long long)s->activations, (unsigned long long)plan->workspace);
    return ln_fail(c->model->context, LINNET_ERROR_MEMORY,
                   "the device has %llu bytes left, and %lld tokens of this model need at least %llu",
                   (unsigned long long)c->available, (long long)s->context, least + RESERVE);
}

linnet_status ln_plan_device(linnet_model *model, const linnet_session_settings *settled, const ln_device *device,
                             const char *about, linnet_plan *plan) {
    ln_policy policy;
    device_choice c = {.model = model, .settled = settled, .device = device};
    *plan = (linnet_plan){.size = sizeof *plan,
                          .context = settled->context,
                          .page_tokens = LN_PAGE_TOKENS,
                          .feed_forward = model->hyper.feed_forward,
                          .slice = model->hyper.feed_forward,
                          .step = model->hyper.feed_forward,
                          .weights_mapped = model->weight_bytes};
    snprintf(plan->device, sizeof plan->device, "%s: %.80s", device->name, about);
    if (ln_session_policy(settled)) {
        const linnet_status parsed = ln_policy_parse(model->context, settled->policy, &policy);
        if (parsed != LINNET_OK) return parsed;
        ln_policy_text(&policy, plan->policy, sizeof plan->policy);
        c.policy = &policy;
    }
    const linnet_type beside = LINNET_F16; /* of sliding layers, as on the processor */
    const bool open = settled->precision == LINNET_TYPE_AUTO && !c.policy;
    const linnet_type *list = open ? types : c.policy ? &beside : &settled->precision;
    const int count = open ? TYPES : 1;
    bool found;
    linnet_plan smallest = *plan;
    linnet_status status = choose_among(&c, list, count, plan, &found);
    if (status == LINNET_OK) status = find_smallest(&c, list, count, &smallest);
    if (status != LINNET_OK) return status;
    if (!found) {
        *plan = smallest;
        return refuse(&c, plan);
    }
    plan->smallest = smallest.smallest;
    plan->smallest_workspace = smallest.smallest_workspace;
    if (c.policy) {
        snprintf(plan->reason, sizeof plan->reason, "policy %s as asked for", policy.row->name);
        return LINNET_OK;
    }
    snprintf(plan->reason, sizeof plan->reason, "%s keys and values %s", linnet_type_name(plan->precision),
             !open                         ? "as asked for"
             : plan->precision == types[0] ? "on the device"
                                           : "are the most exact that fit");
    return LINNET_OK;
}
