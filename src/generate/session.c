/* Owns: sessions: feeding tokens piece by piece, logits, rewinding, forking.
 *
 * Invariant: the memory holds keys and values of exactly tokens[0 .. position - 1]; has_logits says that `logits`
 * follows the last of them. */
#include "generate/session.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"

static void release_workspace(linnet_context *context, ln_workspace *workspace) {
    if (!workspace || --workspace->users > 0) return;
    ln_forward_close(&workspace->forward);
    ln_release(context, workspace);
}

static ln_memory_shape session_memory(const linnet_session *session) {
    const linnet_plan *plan = &session->plan;
    ln_memory_shape shape = ln_session_shape(session->model, plan->context, plan->piece, plan->precision,
                                             *plan->policy ? &session->policy : NULL, plan->cache);
    shape.snapshots = session->snapshots;
    shape.interval = session->interval;
    shape.limits = session->limits;
    return shape;
}

static linnet_status open_workspace(linnet_session *session, bool exact) {
    const linnet_plan *plan = &session->plan;
    ln_forward_shape shape = {.piece = plan->piece, .slice = plan->slice, .step = plan->step, .exact = exact};
    const ln_memory_shape memory = session_memory(session);
    shape.lanes = ln_session_lanes(session->model, &memory);
    session->workspace = ln_allocate_zero(session->model->context, 1, sizeof *session->workspace, "workspace");
    if (!session->workspace) return LINNET_ERROR_MEMORY;
    session->workspace->users = 1;
    return ln_forward_open(session->model, &shape, plan->context, &session->workspace->forward);
}

/* A session of a plan without workspace and memory. NULL: recorded. */
static linnet_session *make_session(linnet_model *model, const linnet_plan *plan) {
    linnet_context *context = model->context;
    linnet_session *session = ln_allocate_zero(context, 1, sizeof *session, "session");
    if (!session) return NULL;
    session->model = model;
    session->plan = *plan;
    session->tokens = ln_allocate(context, (uint64_t)plan->context, sizeof *session->tokens, "token ids");
    session->logits = ln_allocate(context, (uint64_t)model->hyper.vocabulary, sizeof *session->logits, "logits");
    if (!session->tokens || !session->logits) {
        linnet_session_close(session);
        return NULL;
    }
    return session;
}

static linnet_status open_on_device(linnet_session *made, const linnet_session_settings *settled) {
    const ln_device *device;
    char about[sizeof made->plan.device];
    const linnet_status status = ln_session_device(made->model, settled, &device, about, sizeof about);
    if (status != LINNET_OK) return status;
    return device ? ln_device_session_open(made, device) : LINNET_ERROR_UNSUPPORTED;
}

linnet_status linnet_session_open(linnet_model *model, const linnet_session_settings *settings,
                                  linnet_session **session) {
    *session = NULL;
    linnet_plan plan;
    linnet_status status = linnet_plan_session(model, settings, &plan);
    if (status != LINNET_OK) return status;
    linnet_session_settings settled;
    status = ln_session_settle(model, settings, &settled);
    if (status != LINNET_OK) return status;
    linnet_session *made = make_session(model, &plan);
    if (!made) return LINNET_ERROR_MEMORY;
    made->spare = ln_plan_spare(&plan, &settled);
    made->snapshots = settled.snapshots;
    made->interval = settled.snapshot_interval;
    made->limits = ln_session_limits(&settled);
    if (*plan.device) {
        status = open_on_device(made, &settled);
        if (status == LINNET_OK) {
            *session = made;
            return LINNET_OK;
        }
        linnet_session_close(made);
        if (!ln_session_either(&settled)) return status;
        ln_log(model->context, LINNET_LOG_INFO, "the CPU is used: %s", linnet_last_error(model->context));
        settled.device = "cpu";
        return linnet_session_open(model, &settled, session);
    }
    if (*plan.policy) status = ln_policy_parse(model->context, plan.policy, &made->policy);
    if (status == LINNET_OK) status = ln_probing_open(made, &settled);
    if (status == LINNET_OK) status = open_workspace(made, settled.compute == LINNET_COMPUTE_EXACT);
    if (status == LINNET_OK) {
        ln_memory_shape shape = session_memory(made);
        shape.folder = settled.folder;
        uint8_t *kinds = NULL;
        status = ln_session_heads(model, *plan.policy ? &made->policy : NULL, &kinds);
        shape.head_kinds = kinds;
        if (status == LINNET_OK) status = ln_memory_open(model->context, &shape, &made->memory);
        ln_release(model->context, kinds);
    }
    if (status != LINNET_OK) {
        linnet_session_close(made);
        return status;
    }
    *session = made;
    return LINNET_OK;
}

void linnet_session_close(linnet_session *session) {
    if (!session) return;
    linnet_context *context = session->model->context;
    if (session->sequence) session->device->close(session->sequence);
    ln_probing_close(session);
    ln_memory_close(session->memory);
    release_workspace(context, session->workspace);
    ln_release(context, session->logits);
    ln_release(context, session->tokens);
    ln_release(context, session);
}

linnet_plan linnet_session_plan(const linnet_session *session) {
    return session->plan;
}
linnet_usage linnet_session_usage(const linnet_session *session) {
    if (session->device) return ln_device_session_usage(session);
    const ln_ragged_usage usage = ln_memory_measure(session->memory);
    const uint64_t draft = ln_probing_pages(session);
    return (linnet_usage){.size = sizeof(linnet_usage),
                          .pages = usage.bytes + draft,
                          .pages_peak = usage.peak + draft,
                          .file = usage.file,
                          .kept = usage.kept,
                          .evicted = usage.evicted,
                          .states = session->plan.states};
}
int64_t linnet_session_position(const linnet_session *session) {
    return session->position;
}
const int32_t *linnet_session_tokens(const linnet_session *session) {
    return session->tokens;
}
const float *linnet_session_logits(const linnet_session *session) {
    if (session->device && session->has_logits &&
        ln_device_session_fetch((linnet_session *)(uintptr_t)session) != LINNET_OK)
        return NULL;
    return session->has_logits ? session->logits : NULL;
}

linnet_status linnet_session_states(const linnet_session *session, int64_t layer, linnet_layer_states *states,
                                    double *norms) {
    linnet_context *context = session->model->context;
    *states = (linnet_layer_states){.size = sizeof *states};
    if (layer < 0 || layer >= session->model->hyper.layers)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "there is no layer %lld among %lld", (long long)layer,
                       (long long)session->model->hyper.layers);
    const ln_states *all = session->device ? NULL : ln_memory_states(session->memory);
    if (all) states->heads = ln_states_heads(all, layer, &states->floats);
    if (!states->heads) return LINNET_OK;
    double *now = ln_allocate(context, 2 * (uint64_t)states->heads, sizeof *now, "norms of states");
    if (!now) return LINNET_ERROR_MEMORY;
    const double *early = now + states->heads;
    ln_states_norms(all, layer, now, now + states->heads);
    for (int64_t h = 0; h < states->heads; h++) {
        states->mean += now[h] * now[h] / (double)states->heads;
        states->early_mean += early[h] * early[h] / (double)states->heads;
        if (now[h] > states->largest) {
            states->largest = now[h];
            states->largest_head = h;
        }
        if (early[h] > 0 && now[h] / early[h] > states->growth) {
            states->growth = now[h] / early[h];
            states->growth_head = h;
        }
        if (norms) norms[h] = now[h];
    }
    states->mean = sqrt(states->mean);
    states->early_mean = sqrt(states->early_mean);
    ln_release(context, now);
    return LINNET_OK;
}

/* ---- feeding ---- */

linnet_status ln_session_check(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_context *context = session->model->context;
    const int64_t vocabulary = session->model->hyper.vocabulary, room = session->plan.context - session->position;
    if (count < 0 || (count > 0 && !ids)) return ln_fail(context, LINNET_ERROR_ARGUMENT, "no tokens were given");
    if (count > room)
        return ln_fail(context, LINNET_ERROR_FULL,
                       "%lld tokens do not fit after the %lld held: the context has room for %lld in all",
                       (long long)count, (long long)session->position, (long long)session->plan.context);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "token %lld has the id %d, outside the vocabulary of %lld",
                           (long long)i, ids[i], (long long)vocabulary);
    return LINNET_OK;
}

/* To be followed by ln_probing_run. */
static linnet_status feed_piece(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_status status = ln_probing_prepare(session, ids, count);
    if (status != LINNET_OK) return status;
    status = ln_forward_run(&session->workspace->forward, session->memory, ids, count);
    if (status != LINNET_OK) return status;
    memcpy(session->tokens + session->position, ids, (size_t)count * sizeof *ids);
    session->position += count;
    session->has_logits = false;
    return LINNET_OK;
}

/* How many of `left` tokens are read next. */
static int64_t next_piece(const linnet_session *session, int64_t left) {
    const ln_states *states = ln_memory_states(session->memory);
    const int64_t piece = ln_probing_piece(session, left);
    return states ? ln_states_room(states, session->position, piece) : piece;
}

static void keep_last_logits(linnet_session *session, int64_t piece) {
    ln_forward_logits(&session->workspace->forward, piece - 1, 1, 1, session->logits);
    session->has_logits = true;
}

linnet_status linnet_session_feed(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_status status = ln_session_check(session, ids, count);
    linnet_context *context = session->model->context;
    if (session->device) return status == LINNET_OK ? ln_device_session_feed(session, ids, count) : status;
    if (status == LINNET_OK) status = ln_probing_choose(session, &ids, &count);
    if (status == LINNET_OK && count > 1) ln_memory_mark(session->memory);
    for (int64_t done = 0; done < count && status == LINNET_OK;) {
        if (count > session->plan.piece) ln_progress(context, "reading the prompt", done, count);
        const int64_t piece = next_piece(session, count - done);
        status = feed_piece(session, ids + done, piece);
        if (status != LINNET_OK) break;
        done += piece;
        if (done == count) keep_last_logits(session, piece);
        status = ln_probing_run(session);
        if (done == count && count > session->plan.piece) ln_progress(context, "reading the prompt", done, count);
    }
    return status;
}

/* Hands out the logits of the piece that was run last, in as many rows at once as `rows` has room for. */
static linnet_status give_logits(linnet_session *session, float *rows, int64_t capacity, int64_t first, int64_t piece,
                                 linnet_take_logits take, void *user) {
    for (int64_t done = 0; done < piece;) {
        const int64_t count = ln_min_i64(capacity, piece - done);
        ln_forward_logits(&session->workspace->forward, done, count, piece, rows);
        done += count;
        if (done == piece) {
            const size_t row = (size_t)session->model->hyper.vocabulary;
            if (rows != session->logits) memcpy(session->logits, rows + (size_t)(count - 1) * row, row * sizeof *rows);
            session->has_logits = true;
        }
        const linnet_status status = take(user, first + done - count, count, rows);
        if (status != LINNET_OK) return status;
    }
    return LINNET_OK;
}

/* As many rows of logits as the limits allow, at most a piece; where none fits, the session's own. */
static float *find_rows(linnet_session *session, int64_t *rows) {
    const uint64_t row = (uint64_t)session->model->hyper.vocabulary * sizeof(float);
    for (*rows = session->plan.piece; *rows > 1; *rows /= 2) {
        if (ln_allocated_bytes((uint64_t)*rows * row) > session->spare) continue;
        float *block = ln_allocate(session->model->context, (uint64_t)*rows, row, "logits of a piece");
        if (block) return block;
    }
    *rows = 1;
    return session->logits;
}

linnet_status linnet_session_feed_logits(linnet_session *session, const int32_t *ids, int64_t count,
                                         linnet_take_logits take, void *user) {
    linnet_status status = ln_session_check(session, ids, count);
    if (status != LINNET_OK || count == 0) return status;
    if (session->device) return ln_device_session_feed_logits(session, ids, count, take, user);
    int64_t capacity;
    float *rows = find_rows(session, &capacity);
    for (int64_t done = 0; done < count && status == LINNET_OK;) {
        const int64_t piece = next_piece(session, count - done);
        status = feed_piece(session, ids + done, piece);
        if (status != LINNET_OK) break;
        status = give_logits(session, rows, capacity, done, piece, take, user);
        const linnet_status settled = ln_probing_run(session);
        if (status == LINNET_OK) status = settled;
        done += piece;
    }
    if (rows != session->logits) ln_release(session->model->context, rows);
    return status;
}

/* ---- going back, going two ways ---- */

int64_t linnet_session_rewind_limit(const linnet_session *session) {
    return session->device ? session->device->rewind_limit(session->sequence, session->reached)
                           : ln_memory_rewind_limit(session->memory);
}

void linnet_session_mark(linnet_session *session) {
    if (!session->device) ln_memory_mark(session->memory);
}

int64_t linnet_session_rewind_point(const linnet_session *session, int64_t position) {
    if (position <= 0) return 0;
    if (session->device) {
        const int64_t point = ln_min_i64(position, session->position);
        return point == session->position || point >= linnet_session_rewind_limit(session) ? point : 0;
    }
    return ln_memory_rewind_point(session->memory, ln_min_i64(position, session->position));
}

linnet_status linnet_session_rewind(linnet_session *session, int64_t position) {
    linnet_context *context = session->model->context;
    if (position < 0 || position > session->position)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "cannot rewind to token %lld of %lld", (long long)position,
                       (long long)session->position);
    if (position == session->position) return LINNET_OK;
    const linnet_status status =
        session->device ? ln_device_session_rewind(session, position) : ln_memory_rewind(session->memory, position);
    if (status != LINNET_OK) return status;
    session->position = position;
    session->has_logits = false;
    return LINNET_OK;
}

linnet_status linnet_session_fork(linnet_session *session, linnet_session **fork) {
    *fork = NULL;
    linnet_session *made = make_session(session->model, &session->plan);
    if (!made) return LINNET_ERROR_MEMORY;
    made->policy = session->policy;
    linnet_status status =
        session->device ? ln_device_session_fork(session, made) : ln_memory_fork(session->memory, &made->memory);
    if (status == LINNET_OK && !session->device) status = ln_probing_fork(session, made);
    if (status != LINNET_OK) {
        linnet_session_close(made);
        return status;
    }
    made->spare = session->spare;
    made->snapshots = session->snapshots;
    made->interval = session->interval;
    made->limits = session->limits;
    made->workspace = session->workspace;
    if (made->workspace) made->workspace->users++;
    made->position = session->position;
    made->has_logits = session->has_logits;
    memcpy(made->tokens, session->tokens, (size_t)session->position * sizeof *made->tokens);
    memcpy(made->logits, session->logits, (size_t)session->model->hyper.vocabulary * sizeof *made->logits);
    *fork = made;
    return LINNET_OK;
}

/* ---- the table of policies ---- */

const char *linnet_policy_name(int index) {
    const ln_policy_row *row = ln_policy_row_at(index);
    return row ? row->name : NULL;
}

const char *linnet_policy_about(int index) {
    const ln_policy_row *row = ln_policy_row_at(index);
    return row ? row->about : NULL;
}
