/* Owns: probes: what is run after a piece for its queries alone (memory/ragged.h), under policies with probe=; and
 * which tokens of a prompt are read at all, under policies with prompt=draft.
 *
 *   repeat  a short request and the piece once more (KVzip): what a token is worth is the most attention that the
 *           repetition gives it. Nothing is asked yet, so nothing is given up for what will not be asked.
 *   draft   what a draft model says next (SpecKV, P294), found anew after each piece, as a prompt is compressed while
 *           it is read: what a token is worth is what the last queries of the piece and these give it.
 *   prompt  a draft model reads the prompt (SpecPC, P294); what its last queries give to a token, summed over its heads
 *           and meaned over neighbours, says which tokens the model reads, in their order, one position after the
 *           other.
 *
 * A probe fits into a piece, so a piece that it repeats is shorter by the request. Pieces of fewer than LN_PROBE_LEAST
 * tokens have none: they are settled by their own queries, so that generating costs no more. A draft model is run
 * before anything changes: where it fails, nothing has. */
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"

static const char request[] = "\n\nRepeat the previous context:\n\n";

/* Without memory of its own from call to call: forks share it. */
typedef struct ln_draft {
    linnet_session *session;
    int64_t users;
} ln_draft;

struct ln_probing {
    ln_draft *draft;
    int32_t *ids;      /* [piece] of the probe; the first `requested` of them are the request */
    int32_t *chosen;   /* [context] with prompt=draft, as the following */
    float *given;      /* what a token was given, */
    float *neighbours; /* and its neighbours */
    int64_t requested, count;
};

static uint64_t block_bytes(const ln_policy *policy, int64_t piece, int64_t context) {
    const uint64_t word = sizeof(float), prompt = policy->draft_prompt ? (uint64_t)context * 3 : 0;
    return sizeof(ln_probing) + ((uint64_t)piece + prompt) * word;
}

uint64_t ln_probing_bytes(const ln_policy *policy, int64_t piece, int64_t context) {
    if (!policy || (!policy->probe && !policy->draft_prompt)) return 0;
    return ln_allocated_bytes(block_bytes(policy, piece, context)) + ln_allocated_bytes(sizeof(ln_draft));
}

uint64_t ln_probing_pages(const linnet_session *session) {
    if (!session->probing || !session->probing->draft) return 0;
    return linnet_session_plan(session->probing->draft->session).pages;
}

/* ---- opening ---- */

static linnet_status find_request(linnet_session *session, ln_probing *probing) {
    linnet_model *model = session->model;
    const int64_t most = session->plan.piece - LN_PROBE_LEAST;
    if (!model->tokenizer || most < 1) return LINNET_OK;
    const linnet_status status =
        linnet_tokenize(model->tokenizer, request, sizeof request - 1, 0, probing->ids, most, &probing->requested);
    if (status != LINNET_OK || probing->requested > most) probing->requested = 0;
    return status;
}

static linnet_status make(linnet_session *session) {
    linnet_context *context = session->model->context;
    const int64_t piece = session->plan.piece, most = session->plan.context;
    ln_probing *made = ln_allocate_zero(context, 1, block_bytes(&session->policy, piece, most), "tokens of a probe");
    if (!made) return LINNET_ERROR_MEMORY;
    made->ids = (int32_t *)(void *)(made + 1);
    if (session->policy.draft_prompt) {
        made->chosen = made->ids + piece;
        made->given = (float *)(void *)(made->chosen + most);
        made->neighbours = made->given + most;
    }
    session->probing = made;
    return session->policy.probe == LN_PROBE_REPEAT ? find_request(session, made) : LINNET_OK;
}

linnet_status ln_probing_open(linnet_session *session, const linnet_session_settings *settled) {
    if (!*session->plan.policy || (!session->policy.probe && !session->policy.draft_prompt)) return LINNET_OK;
    linnet_status status = make(session);
    linnet_session_settings settings;
    linnet_plan plan;
    if (status == LINNET_OK) status = ln_draft_plan(session->model, settled, &session->policy, &settings, &plan);
    if (status != LINNET_OK || !plan.pages) return status;
    ln_draft *draft = ln_allocate_zero(session->model->context, 1, sizeof *draft, "draft");
    if (!draft) return LINNET_ERROR_MEMORY;
    draft->users = 1;
    session->probing->draft = draft;
    return linnet_session_open(settled->draft, &settings, &draft->session);
}

void ln_probing_close(linnet_session *session) {
    ln_probing *probing = session->probing;
    if (!probing) return;
    linnet_context *context = session->model->context;
    if (probing->draft && --probing->draft->users == 0) {
        linnet_session_close(probing->draft->session);
        ln_release(context, probing->draft);
    }
    ln_release(context, probing);
    session->probing = NULL;
}

linnet_status ln_probing_fork(linnet_session *session, linnet_session *fork) {
    if (!session->probing) return LINNET_OK;
    const linnet_status status = make(fork);
    if (status != LINNET_OK) return status;
    fork->probing->draft = session->probing->draft;
    if (fork->probing->draft) fork->probing->draft->users++;
    return LINNET_OK;
}

/* ---- what a draft model says next ---- */

static int32_t most_likely(const linnet_session *session) {
    const float *logits = linnet_session_logits(session);
    int32_t best = 0;
    for (int32_t i = 1; i < session->model->hyper.vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* The last tokens of session and piece, then what follows them. */
static linnet_status look_ahead(linnet_session *session, const int32_t *ids, int64_t count) {
    ln_probing *probing = session->probing;
    linnet_session *draft = probing->draft->session;
    const int64_t wanted = (int64_t)ln_policy_parameter_of(&session->policy, "lookahead", 0);
    const int64_t window = draft->plan.context - wanted, ahead = ln_min_i64(wanted, session->plan.piece);
    const int64_t of_piece = ln_min_i64(window, count), before = ln_min_i64(window - of_piece, session->position);
    linnet_status status = linnet_session_rewind(draft, 0);
    if (status == LINNET_OK) status = linnet_session_feed(draft, session->tokens + session->position - before, before);
    if (status == LINNET_OK) status = linnet_session_feed(draft, ids + count - of_piece, of_piece);
    for (int64_t i = 0; i < ahead && status == LINNET_OK; i++) {
        probing->ids[i] = most_likely(draft);
        if (i + 1 < ahead) status = linnet_session_feed(draft, probing->ids + i, 1);
    }
    probing->count = ahead;
    return status;
}

/* ---- pieces ---- */

int64_t ln_probing_piece(const linnet_session *session, int64_t left) {
    const int64_t most = session->plan.piece - (session->probing ? session->probing->requested : 0);
    return ln_min_i64(most, left);
}

linnet_status ln_probing_prepare(linnet_session *session, const int32_t *ids, int64_t count) {
    ln_probing *probing = session->probing;
    if (!probing || !session->policy.probe) return LINNET_OK;
    linnet_status status = LINNET_OK;
    probing->count = 0;
    if (count >= LN_PROBE_LEAST && session->policy.probe == LN_PROBE_DRAFT) {
        status = look_ahead(session, ids, count);
    } else if (count >= LN_PROBE_LEAST) {
        memcpy(probing->ids + probing->requested, ids, (size_t)count * sizeof *ids);
        probing->count = probing->requested + count;
    }
    if (status == LINNET_OK) ln_memory_begin(session->memory, probing->count ? LN_PASS_HELD : LN_PASS_PIECE);
    return status;
}

linnet_status ln_probing_run(linnet_session *session) {
    const ln_probing *probing = session->probing;
    if (!probing || !probing->count) return LINNET_OK;
    ln_memory_begin(session->memory, LN_PASS_PROBE);
    return ln_forward_run(&session->workspace->forward, session->memory, probing->ids, probing->count);
}

/* ---- which tokens of a prompt are read ---- */

static void mean_of_neighbours(const float *given, int64_t count, int64_t width, float *mean) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t from = ln_max_i64(0, i - width / 2), to = ln_min_i64(count, i + width / 2 + 1);
        float sum = 0;
        for (int64_t n = from; n < to; n++) sum += given[n];
        mean[i] = sum / (float)width;
    }
}

/* The largest bound that at least `most` of the values, none of which is negative, reach: floats are ordered as their
 * bits are. */
static float bound_of(const float *values, int64_t count, int64_t most) {
    uint32_t bits = 0;
    float bound;
    for (int bit = 30; bit >= 0; bit--) {
        const uint32_t trial = bits | UINT32_C(1) << bit;
        memcpy(&bound, &trial, sizeof bound);
        int64_t reach = 0;
        for (int64_t i = 0; i < count; i++) reach += values[i] >= bound;
        if (reach >= most) bits = trial;
    }
    memcpy(&bound, &bits, sizeof bound);
    return bound;
}

/* Of values, the `most` largest, the later ones of equals, to `chosen` in their order. */
static void choose_largest(const float *values, const int32_t *ids, int64_t count, int64_t most, int32_t *chosen) {
    const float bound = bound_of(values, count, most);
    int64_t above = 0, equal = 0, at = 0;
    for (int64_t i = 0; i < count; i++) {
        above += values[i] > bound;
        equal += values[i] == bound;
    }
    for (int64_t i = 0; i < count; i++) {
        const bool tie = values[i] == bound;
        if (values[i] > bound || (tie && equal <= most - above)) chosen[at++] = ids[i];
        equal -= tie;
    }
}

linnet_status ln_probing_choose(linnet_session *session, const int32_t **ids, int64_t *count) {
    enum { CERTAIN = 1 << 30 };
    ln_probing *probing = session->probing;
    const ln_policy *policy = &session->policy;
    const int64_t all = *count, last = ln_max_i64(policy->window, 16);
    if (!probing || !policy->draft_prompt || all <= 2 * last) return LINNET_OK;
    int64_t most = (int64_t)ln_policy_parameter_of(policy, "prompt-tokens", 0);
    if (!most) most = ln_memory_room(session->memory) - session->position;
    most = ln_max_i64(most, 2 * last);
    if (most >= all) return LINNET_OK;
    linnet_session *draft = probing->draft->session;
    linnet_status status = linnet_session_rewind(draft, 0);
    if (status == LINNET_OK) status = linnet_session_feed(draft, *ids, all);
    if (status != LINNET_OK) return status;
    memset(probing->given, 0, (size_t)all * sizeof *probing->given);
    ln_memory_importance(draft->memory, probing->given);
    mean_of_neighbours(probing->given, all, ln_max_i64(1, policy->pooling), probing->neighbours);
    for (int64_t i = 0; i < ln_min_i64(policy->sinks, last); i++) probing->neighbours[i] = CERTAIN;
    for (int64_t i = all - last; i < all; i++) probing->neighbours[i] = CERTAIN;
    choose_largest(probing->neighbours, *ids, all, most, probing->chosen);
    *ids = probing->chosen;
    *count = most;
    return LINNET_OK;
}
