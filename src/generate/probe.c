/* Owns: probes: what is run after a piece for its queries alone (memory/ragged.h), under policies with probe=.
 *
 *   repeat  a short request and the piece once more (KVzip): what a token is worth is the most attention that the
 *           repetition gives it. Nothing is asked yet, so nothing is given up for what will not be asked.
 *
 * A probe fits into a piece, so the piece that it repeats is shorter by the request. Pieces of fewer than
 * LN_PROBE_LEAST tokens have none: they are settled by their own queries, in which generating costs no more. */
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"

static const char request[] = "\n\nRepeat the previous context:\n\n";

struct ln_probing {
    int32_t *ids; /* [piece] of the probe; the first `requested` of them are the request */
    int64_t requested, count;
};

static linnet_status find_request(linnet_session *session, ln_probing *probing) {
    linnet_model *model = session->model;
    const int64_t most = session->plan.piece - LN_PROBE_LEAST;
    if (!model->tokenizer || most < 1) return LINNET_OK;
    const linnet_status status =
        linnet_tokenize(model->tokenizer, request, sizeof request - 1, 0, probing->ids, most, &probing->requested);
    if (status != LINNET_OK || probing->requested > most) probing->requested = 0;
    return status;
}

uint64_t ln_probing_bytes(const ln_policy *policy, int64_t piece) {
    if (!policy || !policy->probe) return 0;
    return ln_allocated_bytes(sizeof(ln_probing) + (uint64_t)piece * sizeof(int32_t));
}

linnet_status ln_probing_open(linnet_session *session) {
    if (!session->policy.probe) return LINNET_OK;
    linnet_context *context = session->model->context;
    ln_probing *made = ln_allocate_zero(context, 1, sizeof *made + (uint64_t)session->plan.piece * sizeof *made->ids,
                                        "tokens of a probe");
    if (!made) return LINNET_ERROR_MEMORY;
    made->ids = (int32_t *)(void *)(made + 1);
    session->probing = made;
    return session->policy.probe == LN_PROBE_REPEAT ? find_request(session, made) : LINNET_OK;
}

void ln_probing_close(linnet_session *session) {
    if (session->probing) ln_release(session->model->context, session->probing);
    session->probing = NULL;
}

linnet_status ln_probing_fork(linnet_session *session, linnet_session *fork) {
    (void)session;
    return ln_probing_open(fork);
}

int64_t ln_probing_piece(const linnet_session *session, int64_t left) {
    const int64_t most = session->plan.piece - (session->probing ? session->probing->requested : 0);
    return ln_min_i64(most, left);
}

linnet_status ln_probing_prepare(linnet_session *session, const int32_t *ids, int64_t count) {
    ln_probing *probing = session->probing;
    if (!probing) return LINNET_OK;
    probing->count = 0;
    if (count >= LN_PROBE_LEAST) {
        memcpy(probing->ids + probing->requested, ids, (size_t)count * sizeof *ids);
        probing->count = probing->requested + count;
    }
    ln_memory_begin(session->memory, probing->count ? LN_PASS_HELD : LN_PASS_PIECE);
    return LINNET_OK;
}

linnet_status ln_probing_run(linnet_session *session) {
    const ln_probing *probing = session->probing;
    if (!probing || !probing->count) return LINNET_OK;
    ln_memory_begin(session->memory, LN_PASS_PROBE);
    return ln_forward_run(&session->workspace->forward, session->memory, probing->ids, probing->count);
}
