/* Owns: what a draft model's session takes, and which draft models fit (P294).
 *
 * For probes it reads the last `draft-window` tokens anew each time, so that it holds these and what it says alone. For
 * prompts it reads all, under snapkv and, where the session's cache is bounded, in a quarter of that: tokens that it
 * gives up are not chosen. */
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"

enum { DRAFT_WINDOW = 256, DRAFT_LOOKAHEAD = 16, DRAFT_PIECE = 256, DRAFT_PART = 4 };

static bool same_words(const linnet_model *a, const linnet_model *b) {
    if (a->hyper.vocabulary != b->hyper.vocabulary) return false;
    if (!a->tokenizer || !b->tokenizer) return true;
    for (int64_t id = 0; id < a->hyper.vocabulary; id++) {
        size_t bytes, others;
        const char *word = linnet_token_bytes(a->tokenizer, (int32_t)id, &bytes);
        const char *other = linnet_token_bytes(b->tokenizer, (int32_t)id, &others);
        if (!word != !other || (word && (bytes != others || memcmp(word, other, bytes) != 0))) return false;
    }
    return true;
}

static linnet_status check_draft(const linnet_model *model, const linnet_model *draft, const ln_policy *policy) {
    linnet_context *context = model->context;
    if (!draft)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "policy %s needs a draft model: a small one of the same vocabulary, by --draft MODEL or in the "
                       "session's settings",
                       policy->row->name);
    if (draft->context != context)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the draft model was opened in another context than the model");
    if (!same_words(model, draft))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "the draft model %s has another vocabulary (%lld tokens) than the model (%lld tokens)",
                       draft->name ? draft->name : "", (long long)draft->hyper.vocabulary,
                       (long long)model->hyper.vocabulary);
    return LINNET_OK;
}

linnet_status ln_draft_plan(const linnet_model *model, const linnet_session_settings *settled, const ln_policy *policy,
                            linnet_session_settings *draft, linnet_plan *plan) {
    *draft = linnet_session_settings_default();
    *plan = (linnet_plan){0};
    if (policy->probe != LN_PROBE_DRAFT && !policy->draft_prompt) return LINNET_OK;
    linnet_status status = check_draft(model, settled->draft, policy);
    if (status != LINNET_OK) return status;
    draft->compute = settled->compute;
    if (!policy->draft_prompt) {
        draft->context = (int64_t)ln_policy_parameter_of(policy, "draft-window", DRAFT_WINDOW) +
                         (int64_t)ln_policy_parameter_of(policy, "lookahead", DRAFT_LOOKAHEAD);
        draft->precision = LINNET_Q8_0;
        draft->piece = ln_min_i64(draft->context, DRAFT_PIECE);
        return linnet_plan_session(settled->draft, draft, plan);
    }
    draft->context = settled->context;
    draft->piece = ln_min_i64(settled->context, DRAFT_PIECE);
    draft->policy = "snapkv:near=q8_0,keys=q8_0,values=q8_0,sinks=4";
    status = linnet_plan_session(settled->draft, draft, plan);
    if (status != LINNET_OK) return status;
    const uint64_t whole = plan->pages + plan->bytes_per_token * (uint64_t)settled->context * 3 / 2;
    const uint64_t part = settled->cache ? settled->cache / DRAFT_PART : whole;
    draft->cache = part < plan->pages ? plan->pages : part < whole ? part : whole;
    return linnet_plan_session(settled->draft, draft, plan);
}
