/* Owns: choosing what to keep where the user gave bytes and nothing else.
 *
 * Everything in float16 where it fits. Else the calibrated policies (calibration.h) are planned one by one; of those
 * that fit, the one with the least loss at its share of the float16 bytes is taken, or, of those about as good, the one
 * that decodes fastest. Without a calibration beside the model nothing is known of it: then the most bits that hold
 * everything are taken, and tokens are given up only where nothing else fits. */
#include <stdio.h>
#include <string.h>

#include "generate/calibration.h"
#include "generate/session.h"

enum { QUICK_PIECE = 64 };
static const double ABOUT = 1.1, AS_GOOD = 0.002; /* losses that differ by less are alike */
/* Where nothing is known and everything kept does not fit. */
static const char *const LAST = "keydiff:keys=q4,values=q4,rotate=1,near=q8_0";
static const char *const PLAIN = "full:keys=q8_0,values=q8_0"; /* kept without lanes */

typedef struct choice {
    linnet_plan plan;
    ln_calibration_row row;
    bool found, evicts;
} choice;

static uint64_t full_bytes(const linnet_model *model, int64_t tokens) {
    const ln_hyperparameters *h = &model->hyper;
    return (uint64_t)(tokens * h->attention_layers * h->key_value_heads * (h->key_size + h->value_size)) *
           sizeof(uint16_t);
}

static linnet_session_settings settings_of(const linnet_session_settings *settled, const char *policy) {
    linnet_session_settings s = *settled;
    s.policy = strcmp(policy, PLAIN) ? policy : NULL;
    s.precision = strcmp(policy, PLAIN) ? LINNET_TYPE_AUTO : LINNET_Q8_0;
    return s;
}

static bool better(const choice *a, const choice *b) {
    const double x = ln_calibration_loss(&a->row), y = ln_calibration_loss(&b->row);
    if (x > ABOUT * y + AS_GOOD) return false;
    if (y > ABOUT * x + AS_GOOD) return true;
    if (a->evicts != b->evicts) return b->evicts;
    return a->row.decode > b->row.decode;
}

/* One policy: whether it fits and is known, and then in *made. */
static bool try_policy(linnet_model *model, const linnet_session_settings *settled, const ln_calibration *calibration,
                       const char *text, choice *made) {
    ln_policy policy;
    const linnet_session_settings s = settings_of(settled, text);
    if (ln_policy_parse(model->context, text, &policy) != LINNET_OK) return false;
    if (ln_plan_with(model, &s, &made->plan) != LINNET_OK) return false;
    made->evicts = policy.scorer != NULL;
    const double share = (double)made->plan.pages / (double)full_bytes(model, settled->context);
    return !calibration || ln_calibration_at(calibration, text, made->evicts ? share : 1e9, &made->row);
}

static void explain(const linnet_model *model, const linnet_session_settings *settled,
                    const ln_calibration *calibration, choice *best) {
    linnet_plan *plan = &best->plan;
    const int name = (int)strcspn(plan->policy, ":");
    const double share = 100 * (double)plan->pages / (double)full_bytes(model, settled->context);
    if (!calibration)
        snprintf(plan->reason, sizeof plan->reason,
                 "%.*s%s: %.0f %% of what float16 takes; chosen by its bits alone, as nothing is known of this model: "
                 "'linnet calibrate' measures it",
                 name, *plan->policy ? plan->policy : "q8_0", *plan->policy ? "" : " keys and values", share);
    else if (best->row.share == 0)
        snprintf(plan->reason, sizeof plan->reason,
                 "%.*s, at %.0f %% of what float16 takes: less than was calibrated, so what is lost is not known; the "
                 "tokens it scores least are given up",
                 name, plan->policy, share);
    else
        snprintf(
            plan->reason, sizeof plan->reason,
            "%.*s: the best calibrated choice that fits, at %.0f %% of what float16 takes; its most likely token was "
            "the full cache's in %.0f %% (divergence %.3f, of recalled facts %.3f nats)%s",
            *plan->policy ? name : 4, *plan->policy ? plan->policy : "q8_0", share, 100 * best->row.agreement,
            best->row.divergence, best->row.recalled, best->evicts ? "; given up: the tokens it scores least" : "");
}

static linnet_status choose(linnet_model *model, const linnet_session_settings *settled,
                            const ln_calibration *calibration, linnet_plan *plan) {
    choice best = {0}, made = {0};
    const char *text, *smallest = PLAIN;
    uint64_t least = UINT64_MAX;
    for (int i = 0; (text = ln_calibration_policy(i)); i++) {
        if (try_policy(model, settled, calibration, text, &made)) {
            if (!calibration && made.evicts) continue;
            if (!best.found || (calibration && better(&made, &best))) best = made;
            best.found = true;
        } else if (made.plan.smallest && made.plan.smallest < least && made.plan.policy[0]) {
            least = made.plan.smallest;
            smallest = text;
        }
    }
    for (int i = -1; !best.found && (text = i < 0 ? LAST : ln_calibration_policy(i)); i++)
        best.found = try_policy(model, settled, NULL, text, &best);
    if (best.found) {
        explain(model, settled, calibration, &best);
        *plan = best.plan;
        return LINNET_OK;
    }
    const linnet_session_settings s = settings_of(settled, smallest);
    return ln_plan_with(model, &s, plan);
}

linnet_status ln_plan_choose(linnet_model *model, const linnet_session_settings *settled, linnet_plan *plan) {
    linnet_session_settings full = *settled;
    full.precision = LINNET_F16;
    full.policy = NULL;
    const int64_t quick = settled->context < QUICK_PIECE ? settled->context : QUICK_PIECE;
    if (ln_plan_with(model, &full, plan) == LINNET_OK && (settled->piece || plan->piece >= quick)) {
        snprintf(plan->reason, sizeof plan->reason, "f16 keys and values are the most exact that fit%s",
                 plan->slice < plan->feed_forward ? "; the feed-forward part in slices to make room" : "");
        return LINNET_OK;
    }
    ln_calibration *calibration;
    const linnet_status status = ln_calibration_open(model, &calibration);
    if (status != LINNET_OK) return status;
    const linnet_status chosen = choose(model, settled, calibration, plan);
    ln_calibration_close(model, calibration);
    return chosen;
}
