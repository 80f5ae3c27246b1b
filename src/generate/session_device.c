/* Owns: sessions on a device: feeding piece by piece, logits that are fetched when somebody asks for them, going back.
 *
 * A piece is started and not waited for until the next one, or the end of the feed.
 *
 * Invariant: tokens[0 .. sound - 1] were waited for. Where the device fails the session goes back there, which one
 * piece more never takes from sliding layers; under a policy, whose lanes change while a piece is run, it is empty. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "generate/session.h"

linnet_status ln_device_session_open(linnet_session *session, const ln_device *device) {
    const linnet_plan *plan = &session->plan;
    const bool policy = *plan->policy;
    const ln_device_shape shape = {plan->context, plan->piece, plan->precision, policy ? &session->policy : NULL,
                                   plan->cache};
    if (policy) {
        const linnet_status status = ln_policy_parse(session->model->context, plan->policy, &session->policy);
        if (status != LINNET_OK) return status;
    }
    session->device = device;
    return device->open(session->model, &shape, &session->sequence);
}

/* ---- a device that fails ---- */

static void empty(linnet_session *session) {
    ln_ragged *lanes;
    session->position = session->sound = session->reached = 0;
    session->has_logits = false;
    session->device->lanes_at(session->sequence, 0, &lanes);
}

/* After `status`, which is not LINNET_OK. */
static linnet_status lose(linnet_session *session, linnet_status status) {
    session->has_logits = false;
    session->position = ln_min_i64(session->position, session->sound);
    if (session->device->lanes(session->sequence)) empty(session);
    return status;
}

/* After a function of the device that waits. */
static linnet_status waited(linnet_session *session, linnet_status status) {
    if (status != LINNET_OK) return lose(session, status);
    session->sound = session->position;
    return LINNET_OK;
}

static linnet_status wait(linnet_session *session) {
    return waited(session, session->device->take(session->sequence, NULL, NULL));
}

/* ---- session files ---- */

static linnet_status fetch(void *user, int64_t layer, int64_t head, int64_t first, int64_t count,
                           const ln_page_layout *layout, unsigned char *pages) {
    linnet_session *session = user;
    return session->device->fetch(session->sequence, layer, head, first, count, layout, pages);
}

static linnet_status store(void *user, int64_t layer, int64_t head, int64_t first, int64_t count,
                           const ln_page_layout *layout, unsigned char *pages) {
    linnet_session *session = user;
    return session->device->store(session->sequence, layer, head, first, count, layout, pages);
}

linnet_status ln_device_session_memory(linnet_session *session, bool filled, ln_memory **memory) {
    const linnet_plan *plan = &session->plan;
    ln_memory_shape shape = ln_session_shape(session->model, plan->context, plan->piece, plan->precision,
                                             *plan->policy ? &session->policy : NULL, plan->cache);
    *memory = NULL;
    /* Pages go through the device's activations, where logits lie too. */
    linnet_status status = session->has_logits ? ln_device_session_fetch(session) : LINNET_OK;
    if (status == LINNET_OK)
        status = waited(session, session->device->lanes_at(session->sequence, session->position, &shape.lanes));
    if (status == LINNET_OK) status = ln_memory_open(session->model->context, &shape, memory);
    if (status == LINNET_OK && filled)
        status = ln_memory_take_pages(*memory, session->position, session->reached, fetch, session);
    if (status == LINNET_OK) return LINNET_OK;
    ln_memory_close(*memory);
    *memory = NULL;
    return status;
}

/* A file that failed half way has left the session at 0, or its lanes empty. */
void ln_device_session_failed(linnet_session *session) {
    const ln_ragged *lanes = session->device->lanes(session->sequence);
    if (session->position == 0 || (lanes && ln_ragged_measure(lanes).kept == 0)) empty(session);
}

linnet_status ln_device_session_store(linnet_session *session, ln_memory *memory) {
    ln_ragged *lanes;
    linnet_status status = ln_memory_give_pages(memory, store, session);
    if (status == LINNET_OK) status = session->device->lanes_at(session->sequence, ln_memory_position(memory), &lanes);
    if (status != LINNET_OK) {
        empty(session);
        return status;
    }
    session->position = session->sound = ln_memory_position(memory);
    session->reached = ln_memory_reached(memory);
    session->fetched = session->has_logits;
    return LINNET_OK;
}

/* Everything is allocated when the session is opened. */
linnet_usage ln_device_session_usage(const linnet_session *session) {
    const linnet_model *model = session->model;
    const ln_ragged *lanes = session->device->lanes(session->sequence);
    ln_ragged_usage held = {0};
    if (lanes) held = ln_ragged_measure(lanes);
    for (int64_t i = 0; i < model->hyper.layers; i++) {
        const int64_t window = model->windows[i];
        if (!model->attends[i] || (lanes && !window)) continue;
        const int64_t most = window ? window + session->plan.piece : session->position;
        held.kept += ln_min_i64(session->position, most) * model->hyper.key_value_heads;
    }
    return (linnet_usage){.size = sizeof(linnet_usage),
                          .pages = session->plan.pages,
                          .pages_peak = session->plan.pages,
                          .kept = held.kept,
                          .evicted = held.evicted};
}

linnet_status ln_device_session_refuse(const linnet_session *session, const char *what) {
    return ln_fail(session->model->context, LINNET_ERROR_UNSUPPORTED, "a session on a device cannot %s yet", what);
}

static linnet_status feed_piece(linnet_session *session, const int32_t *ids, int64_t count, bool last) {
    linnet_context *context = session->model->context;
    linnet_status status = wait(session);
    if (status != LINNET_OK) return status;
    if (ln_interrupted(context)) return ln_fail(context, LINNET_INTERRUPTED, "interrupted");
    /* The device holds one row of logits, which are gone now. */
    if (!session->fetched) session->has_logits = false;
    session->reached = ln_max_i64(session->reached, session->position + count);
    status = session->device->run(session->sequence, ids, count, session->position, last);
    if (status != LINNET_OK) return lose(session, status);
    memcpy(session->tokens + session->position, ids, (size_t)count * sizeof *ids);
    session->position += count;
    session->has_logits = last;
    session->fetched = false;
    return LINNET_OK;
}

linnet_status ln_device_session_feed(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_context *context = session->model->context;
    linnet_status status = LINNET_OK;
    for (int64_t done = 0; done < count && status == LINNET_OK;) {
        if (count > session->plan.piece) ln_progress(context, "reading the prompt", done, count);
        const int64_t piece = ln_min_i64(session->plan.piece, count - done);
        status = feed_piece(session, ids + done, piece, done + piece == count);
        done += piece;
        if (done == count && count > session->plan.piece && status == LINNET_OK)
            ln_progress(context, "reading the prompt", done, count);
    }
    if (status != LINNET_OK || !session->has_logits) return status;
    return session->shares ? ln_device_session_fetch(session) : wait(session);
}

linnet_status ln_device_session_feed_logits(linnet_session *session, const int32_t *ids, int64_t count,
                                            linnet_take_logits take, void *user) {
    linnet_context *context = session->model->context;
    const int64_t vocabulary = session->model->hyper.vocabulary,
                  capacity = ln_max_i64(1, ln_min_i64(session->plan.piece, (16 << 20) / vocabulary));
    float *rows = ln_allocate(context, (uint64_t)(capacity * vocabulary), sizeof *rows, "logits of a piece");
    linnet_status status = rows ? LINNET_OK : LINNET_ERROR_MEMORY;
    for (int64_t done = 0; done < count && status == LINNET_OK;) {
        const int64_t piece = ln_min_i64(session->plan.piece, count - done);
        status = feed_piece(session, ids + done, piece, done + piece == count);
        /* Before the rows, which take its place on the device. */
        if (status == LINNET_OK && session->has_logits) status = ln_device_session_fetch(session);
        for (int64_t given = 0; given < piece && status == LINNET_OK;) {
            const int64_t some = ln_min_i64(capacity, piece - given);
            status = waited(session, session->device->rows(session->sequence, given, some, rows));
            if (status == LINNET_OK) status = take(user, done + given, some, rows);
            given += some;
        }
        done += piece;
    }
    ln_release(context, rows);
    return status;
}

linnet_status ln_device_session_fetch(linnet_session *session) {
    if (session->fetched) return LINNET_OK;
    const linnet_status status = waited(session, session->device->take(session->sequence, session->logits, NULL));
    session->fetched = status == LINNET_OK;
    return status;
}

linnet_status ln_device_session_best(const linnet_session *session, int32_t *id) {
    return session->device->take(session->sequence, NULL, id);
}

linnet_status ln_device_session_rewind(linnet_session *session, int64_t position) {
    const int64_t limit = linnet_session_rewind_limit(session);
    if (position > 0 && position < limit)
        return ln_fail(session->model->context, LINNET_ERROR_UNSUPPORTED,
                       "cannot rewind to position %lld: what sliding layers and the policy kept is whole from %lld on; "
                       "rewind to 0 and feed again",
                       (long long)position, (long long)limit);
    if (position == 0) empty(session);
    return LINNET_OK;
}

/* The fork's logits are fetched here: the device holds those of one sequence. */
linnet_status ln_device_session_fork(linnet_session *session, linnet_session *fork) {
    const linnet_status status = session->has_logits ? ln_device_session_fetch(session) : LINNET_OK;
    if (status != LINNET_OK) return status;
    fork->device = session->device;
    fork->shares = session->shares = true;
    fork->reached = session->reached;
    fork->sound = session->position;
    fork->fetched = session->fetched;
    return session->device->fork(session->sequence, session->position, &fork->sequence);
}
