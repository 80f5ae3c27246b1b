/* Owns: choosing the next token from logits.
 *
 * In this order: repeat penalty (a positive logit of a recent token is divided by it, a negative one multiplied; Keskar
 * et al. 2019), top-k, softmax, top-p (the fewest most likely tokens whose sum reaches p; Holtzman et al. 2020), min-p
 * (tokens at least min_p times as likely as the first), temperature, draw. Ties go to the smaller id, so a seed gives
 * the same text everywhere that gives the same logits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "generate/session.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct linnet_sampler {
    linnet_context *context;
    linnet_sampler_settings settings;
    ln_random random;
    int64_t vocabulary;
    int64_t
        named; /* ids from here on have logits but no text: the head of many models is wider than their vocabulary */
    candidate *candidates; /* [vocabulary] */
    double *weights;       /* [vocabulary] */
};

linnet_sampler_settings linnet_sampler_settings_default(void) {
    return (linnet_sampler_settings){.size = sizeof(linnet_sampler_settings),
                                     .temperature = 0.8f,
                                     .top_k = 40,
                                     .top_p = 0.95f,
                                     .min_p = 0.05f,
                                     .repeat_penalty = 1,
                                     .repeat_last = 64};
}

static linnet_status check_settings(linnet_context *context, const linnet_sampler_settings *s) {
    if (!(s->temperature >= 0) || isinf(s->temperature))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the temperature must be 0 or more");
    if (s->top_k < 0) return ln_fail(context, LINNET_ERROR_ARGUMENT, "top-k must be 0 (off) or more");
    if (!(s->top_p > 0 && s->top_p <= 1))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "top-p must be more than 0 and at most 1 (off)");
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "min-p must be from 0 (off) to 1");
    if (!(s->repeat_penalty > 0) || isinf(s->repeat_penalty) || s->repeat_last < 0)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "the repeat penalty must be more than 0 (1: off), its length 0 or more");
    return LINNET_OK;
}

linnet_status linnet_sampler_open(const linnet_model *model, const linnet_sampler_settings *settings,
                                  linnet_sampler **sampler) {
    *sampler = NULL;
    linnet_context *context = model->context;
    linnet_sampler_settings chosen = linnet_sampler_settings_default();
    if (settings) memcpy(&chosen, settings, settings->size < sizeof chosen ? settings->size : sizeof chosen);
    const linnet_status status = check_settings(context, &chosen);
    if (status != LINNET_OK) return status;
    linnet_sampler *made = ln_allocate_zero(context, 1, sizeof *made, "sampler");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->settings = chosen;
    made->vocabulary = made->named = model->hyper.vocabulary;
    if (model->tokenizer) made->named = ln_min_i64(made->vocabulary, linnet_tokenizer_size(model->tokenizer));
    made->candidates = ln_allocate(context, (uint64_t)made->vocabulary, sizeof *made->candidates, "sampler");
    made->weights = ln_allocate(context, (uint64_t)made->vocabulary, sizeof *made->weights, "sampler");
    if (!made->candidates || !made->weights) {
        linnet_sampler_close(made);
        return LINNET_ERROR_MEMORY;
    }
    ln_random_seed(&made->random, chosen.seed);
    *sampler = made;
    return LINNET_OK;
}

void linnet_sampler_close(linnet_sampler *sampler) {
    if (!sampler) return;
    ln_release(sampler->context, sampler->weights);
    ln_release(sampler->context, sampler->candidates);
    ln_release(sampler->context, sampler);
}

static bool before(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int compare(const void *a, const void *b) {
    const candidate *first = a, *second = b;
    return before(*first, *second) ? -1 : before(*second, *first) ? 1 : 0;
}

/* Moves the k first candidates to the front, in no order (quickselect; the pivot is the middle, so the work is the same
 * every time). */
static void select_first(candidate *c, int64_t n, int64_t k) {
    for (int64_t low = 0, high = n - 1; low < high;) {
        const candidate pivot = c[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(c[i], pivot)) i++;
            while (before(pivot, c[j])) j--;
            if (i <= j) {
                const candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            return;
    }
}

static void penalise(linnet_sampler *sampler, const linnet_session *session) {
    const linnet_sampler_settings *s = &sampler->settings;
    if (s->repeat_penalty == 1) return;
    const int64_t first = ln_max_i64(0, session->position - s->repeat_last);
    for (int64_t i = first; i < session->position; i++) {
        const int32_t id = session->tokens[i];
        bool seen = false; /* each token once, however often it occurs */
        for (int64_t k = first; k < i && !seen; k++) seen = session->tokens[k] == id;
        if (seen) continue;
        float *logit = &sampler->candidates[id].logit;
        *logit = *logit > 0 ? *logit / s->repeat_penalty : *logit * s->repeat_penalty;
    }
}

static int32_t most_likely(const candidate *c, int64_t n) {
    candidate best = c[0];
    for (int64_t i = 1; i < n; i++)
        if (before(c[i], best)) best = c[i];
    return best.id;
}

/* How many of the n sorted candidates top-p and min-p leave. */
static int64_t cut(linnet_sampler *sampler, int64_t n) {
    const linnet_sampler_settings *s = &sampler->settings;
    const candidate *c = sampler->candidates;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += sampler->weights[i] = exp((double)c[i].logit - (double)c[0].logit);
    double reached = 0;
    int64_t kept = 0;
    while (kept < n && (kept == 0 || reached < (double)s->top_p * sum)) reached += sampler->weights[kept++];
    while (kept > 1 && sampler->weights[kept - 1] < (double)s->min_p * sampler->weights[0]) kept--;
    return kept;
}

static int32_t draw(linnet_sampler *sampler, int64_t n) {
    const candidate *c = sampler->candidates;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sampler->weights[i] = exp(((double)c[i].logit - (double)c[0].logit) / (double)sampler->settings.temperature);
        sum += sampler->weights[i];
    }
    double point = ln_random_unit(&sampler->random) * sum;
    for (int64_t i = 0; i < n; i++) {
        point -= sampler->weights[i];
        if (point < 0) return c[i].id;
    }
    return c[n - 1].id;
}

linnet_status linnet_sample(linnet_sampler *sampler, const linnet_session *session, int32_t *id) {
    const linnet_sampler_settings *s = &sampler->settings;
    const int64_t vocabulary = sampler->vocabulary;
    if (session->device && session->has_logits && !session->fetched && s->temperature == 0 && s->repeat_penalty == 1 &&
        session->model->hyper.vocabulary == vocabulary)
        return ln_device_session_best(session, id);
    const float *logits = linnet_session_logits(session);
    if (!logits && session->device && session->has_logits) return LINNET_ERROR_UNSUPPORTED; /* it was recorded */
    if (!logits || session->model->hyper.vocabulary != vocabulary)
        return ln_fail(sampler->context, LINNET_ERROR_ARGUMENT, "the session has no logits: feed it a token first");
    for (int64_t i = 0; i < vocabulary; i++) /* a NaN would break every order */
        sampler->candidates[i] =
            (candidate){isnan(logits[i]) || i >= sampler->named ? -INFINITY : logits[i], (int32_t)i};
    penalise(sampler, session);
    if (s->temperature == 0) {
        *id = most_likely(sampler->candidates, vocabulary);
        return LINNET_OK;
    }
    const int64_t n = s->top_k > 0 ? ln_min_i64(s->top_k, vocabulary) : vocabulary;
    if (n < vocabulary) select_first(sampler->candidates, vocabulary, n);
    qsort(sampler->candidates, (size_t)n, sizeof *sampler->candidates, compare);
    *id = draw(sampler, cut(sampler, n));
    return LINNET_OK;
}
