/* Owns: RWKV-4, an average of values with weights e^(k + decays), channel by channel:
 *
 *     out[t] = (a + e^(u + k) v) / (b + e^(u + k)),   a[t] = e^w a[t-1] + e^k v,   b[t] = e^w b[t-1] + e^k
 *
 * a and b are kept divided by e^m, m[t] = max(w + m[t-1], k): no exponential is of a positive number. b = 0 is a
 * beginning, whatever m is. out does not depend on m, so its gradient is that of the state at the end, followed
 * backward to the key that made the maximum (as in rows_gated.c). Channels of a head are a vector; time is sequential.
 */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/threads.h"
#include "mixer/mixer.h"

enum { KEY, VALUE, DECAY, BONUS };
enum { CHUNK = 64 };
/* The four exponentials of a token: weights of the past and of the token in its output, and in the state. */
enum { OLD, NEW, KEEP, WRITE, EXPONENTIALS };

/* A worker's rows. */
typedef struct room {
    float *a, *b, *m, *decay, *bonus, *key, *value;        /* [V] */
    float *da, *db, *dm, *dkey, *dvalue, *ddecay, *dbonus; /* backward */
    float *e, *next;                                       /* [4 V], [V] */
    const ln_kernels *kernels;
    float *states; /* [chunks][3 V], then of a chunk [CHUNK][3 V] */
} room;

static uint64_t lay_out(room *r, const linnet_mixer_settings *s, bool backward, unsigned char *base) {
    ln_carver carver = {.base = base};
    const uint64_t n = (uint64_t)s->value_size;
    float **all[] = {&r->a,  &r->b,  &r->m,  &r->decay, &r->bonus,  &r->key,    &r->value,
                     &r->da, &r->db, &r->dm, &r->dkey,  &r->dvalue, &r->ddecay, &r->dbonus};
    for (size_t i = 0; i < (backward ? 14 : 7); i++) *all[i] = ln_carve(&carver, n, sizeof(float));
    r->e = ln_carve(&carver, n, EXPONENTIALS * sizeof(float));
    r->next = ln_carve(&carver, n, sizeof(float));
    if (backward) {
        const int64_t chunks = ln_ceil_div(ln_mixer_longest(s), CHUNK) + CHUNK;
        r->states = ln_carve(&carver, (uint64_t)chunks, 3 * n * sizeof(float));
    }
    return carver.overflow ? UINT64_MAX : carver.used;
}

static uint64_t parameter_floats(const linnet_mixer_settings *s) {
    return 2 * (uint64_t)(s->sequences * s->heads) * (uint64_t)s->value_size;
}

static uint64_t workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads, const linnet_mixer_settings *s,
                          linnet_mixer_form form) {
    (void)mixer;
    (void)kernels;
    room r;
    const uint64_t each = lay_out(&r, s, form == LINNET_MIXER_BACKWARD, NULL);
    uint64_t all;
    if (each == UINT64_MAX || !ln_multiply_u64(each, (uint64_t)threads, &all)) return UINT64_MAX;
    return form == LINNET_MIXER_BACKWARD ? all + parameter_floats(s) * sizeof(float) : all;
}

static void open_room(room *r, const ln_mixer_call *call, bool backward, int64_t sequence, int64_t head, int worker) {
    const int64_t n = call->settings->value_size;
    const uint64_t each = lay_out(r, call->settings, backward, NULL);
    lay_out(r, call->settings, backward, (unsigned char *)call->workspace + each * (uint64_t)worker);
    r->kernels = call->kernels;
    const float *in = ln_mixer_state_in(call, sequence, head);
    float *const to[] = {r->a, r->b, r->m};
    for (int i = 0; i < 3; i++)
        if (in)
            memcpy(to[i], in + i * n, (size_t)n * sizeof *in);
        else
            memset(to[i], 0, (size_t)n * sizeof *in);
    ln_mixer_load(call, DECAY, head, 0, 0, 1, r->decay);
    ln_mixer_load(call, BONUS, head, 0, 0, 1, r->bonus);
}

static void exponentials(const room *r, int64_t n) {
    float *old = r->e, *fresh = old + n, *keep = fresh + n, *write = keep + n;
    for (int64_t i = 0; i < n; i++) {
        const float m = r->b[i] == 0 ? -INFINITY : r->m[i], k = r->key[i], now = r->bonus[i] + k,
                    late = r->decay[i] + m;
        const float most = now > m ? now : m, next = late >= k ? late : k;
        old[i] = m - most;
        fresh[i] = now - most;
        keep[i] = late - next;
        write[i] = k - next;
        r->next[i] = next;
    }
    r->kernels->vector.exponential(r->e, r->e, 0, EXPONENTIALS * n);
}

/* One token; out may be NULL. */
static void advance(const room *r, int64_t n, float *out) {
    exponentials(r, n);
    const float *old = r->e, *fresh = old + n, *keep = fresh + n, *write = keep + n, *v = r->value;
    for (int64_t i = 0; out && i < n; i++)
        out[i] = (old[i] * r->a[i] + fresh[i] * v[i]) / (old[i] * r->b[i] + fresh[i]);
    for (int64_t i = 0; i < n; i++) {
        r->a[i] = keep[i] * r->a[i] + write[i] * v[i];
        r->b[i] = keep[i] * r->b[i] + write[i];
    }
    memcpy(r->m, r->next, (size_t)n * sizeof *r->m);
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    const linnet_mixer_settings *s = call->settings;
    const int64_t sequence = task / s->heads, head = task % s->heads, n = s->value_size;
    int64_t first, count;
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    room r;
    open_room(&r, call, false, sequence, head, worker);
    for (int64_t t = 0; t < count; t++) {
        ln_mixer_load(call, KEY, head, sequence, t, 1, r.key);
        ln_mixer_load(call, VALUE, head, sequence, t, 1, r.value);
        advance(&r, n, ln_mixer_output(call, head, sequence, t));
    }
    float *out = ln_mixer_state_out(call, sequence, head), *const from[] = {r.a, r.b, r.m};
    for (int i = 0; out && i < 3; i++) memcpy(out + i * n, from[i], (size_t)n * sizeof *out);
}

static void forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

/* One token: r has the state before it; da, db, dm those of the state behind it become those before. */
static void recede(const room *r, int64_t n, const float *of) {
    exponentials(r, n);
    for (int64_t i = 0; i < n; i++) {
        const bool begun = r->b[i] != 0;
        const float a = r->a[i], b = r->b[i], v = r->value[i], old = r->e[OLD * n + i], fresh = r->e[NEW * n + i],
                    keep = r->e[KEEP * n + i], write = r->e[WRITE * n + i];
        const float weight = 1 / (old * b + fresh), out = (old * a + fresh * v) * weight, share = of[i] * weight;
        const float of_now = share * fresh * (v - out), of_keep = keep * (r->da[i] * a + r->db[i] * b),
                    of_write = write * (r->da[i] * v + r->db[i]);
        float of_next = r->dm[i] - of_keep - of_write, of_m = of_keep + share * old * (a - out * b);
        r->dbonus[i] += of_now;
        r->dkey[i] = of_now + of_write;
        r->dvalue[i] = share * fresh + r->da[i] * write;
        r->ddecay[i] += of_keep;
        if (begun && r->decay[i] + r->m[i] >= r->key[i]) {
            r->ddecay[i] += of_next;
            of_m += of_next;
        } else {
            r->dkey[i] += of_next;
        }
        r->da[i] = keep * r->da[i] + share * old;
        r->db[i] = keep * r->db[i] - share * old * out;
        r->dm[i] = begun ? of_m : 0;
    }
}

static void keep_state(const room *r, int64_t n, float *to, bool back) {
    float *const parts[] = {r->a, r->b, r->m};
    for (int i = 0; i < 3; i++, to += n) memcpy(back ? parts[i] : to, back ? to : parts[i], (size_t)n * sizeof *to);
}

static void chunk_back(const room *r, const ln_mixer_call *call, int64_t sequence, int64_t head, int64_t at,
                       int64_t count, float *states) {
    const int64_t n = call->settings->value_size;
    for (int64_t t = 0; t < count; t++) {
        keep_state(r, n, states + t * 3 * n, false);
        ln_mixer_load(call, KEY, head, sequence, at + t, 1, r->key);
        ln_mixer_load(call, VALUE, head, sequence, at + t, 1, r->value);
        advance(r, n, NULL);
    }
    for (int64_t t = count - 1; t >= 0; t--) {
        keep_state(r, n, states + t * 3 * n, true);
        ln_mixer_load(call, KEY, head, sequence, at + t, 1, r->key);
        ln_mixer_load(call, VALUE, head, sequence, at + t, 1, r->value);
        recede(r, n, ln_mixer_output_gradient(call, head, sequence, at + t));
        float *key = ln_mixer_gradient(call, KEY, head, sequence, at + t),
              *value = ln_mixer_gradient(call, VALUE, head, sequence, at + t);
        if (key) memcpy(key, r->dkey, (size_t)n * sizeof *key);
        if (value) memcpy(value, r->dvalue, (size_t)n * sizeof *value);
    }
}

static float *parameters_of(const ln_mixer_call *call) {
    room r;
    const uint64_t each = lay_out(&r, call->settings, true, NULL);
    return (float *)(void *)((unsigned char *)call->workspace + each * (uint64_t)ln_team_size(call->team));
}

static void backward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    const linnet_mixer_settings *s = call->settings;
    const int64_t sequence = task / s->heads, head = task % s->heads, n = s->value_size;
    float *parameters = parameters_of(call) + task * 2 * n;
    int64_t first, count, chunk = 0;
    memset(parameters, 0, (size_t)(2 * n) * sizeof *parameters);
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    room r;
    open_room(&r, call, true, sequence, head, worker);
    const float *of = ln_mixer_state_out_gradient(call, sequence, head);
    float *const gradients[] = {r.da, r.db, r.dm};
    for (int i = 0; i < 3; i++)
        for (int64_t c = 0; c < n; c++) gradients[i][c] = of ? of[i * n + c] : 0;
    memset(r.ddecay, 0, (size_t)n * sizeof(float));
    memset(r.dbonus, 0, (size_t)n * sizeof(float));
    float *within = r.states + ln_ceil_div(ln_mixer_longest(s), CHUNK) * 3 * n;
    for (int64_t at = 0; at < count; at += CHUNK, chunk++) {
        keep_state(&r, n, r.states + chunk * 3 * n, false);
        for (int64_t t = at; t < ln_min_i64(at + CHUNK, count); t++) {
            ln_mixer_load(call, KEY, head, sequence, t, 1, r.key);
            ln_mixer_load(call, VALUE, head, sequence, t, 1, r.value);
            advance(&r, n, NULL);
        }
    }
    while (chunk-- > 0) {
        keep_state(&r, n, r.states + chunk * 3 * n, true);
        chunk_back(&r, call, sequence, head, chunk * CHUNK, ln_min_i64(CHUNK, count - chunk * CHUNK), within);
    }
    float *to = ln_mixer_state_in_gradient(call, sequence, head);
    for (int i = 0; to && i < 3; i++) memcpy(to + i * n, gradients[i], (size_t)n * sizeof *to);
    memcpy(parameters, r.ddecay, (size_t)n * sizeof *parameters);
    memcpy(parameters + n, r.dbonus, (size_t)n * sizeof *parameters);
}

static void backward(const ln_mixer_call *call) {
    const linnet_mixer_settings *s = call->settings;
    ln_parallel(call->team, s->sequences * s->heads, backward_task, (void *)(uintptr_t)call);
    const float *from = parameters_of(call);
    for (int64_t task = 0; task < s->sequences * s->heads; task++)
        for (int input = DECAY; input <= BONUS; input++, from += s->value_size) {
            float *to = ln_mixer_gradient(call, input, task % s->heads, 0, 0);
            if (to) call->kernels->vector.add(to, from, s->value_size);
        }
}

static double flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 60 : 20) * (double)s->value_size;
}

static const ln_mixer_input inputs[] = {
    {.name = "key", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER, .range = LINNET_RANGE_DECAY},
    {.name = "bonus", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER},
    {0},
};
static const ln_mixer_state states[] = {{.name = "values", .columns = LN_AXIS_VALUE},
                                        {.name = "weights", .columns = LN_AXIS_VALUE},
                                        {.name = "maximum", .columns = LN_AXIS_VALUE},
                                        {0}};

const ln_mixer ln_rows_channel[] = {
    {.name = "rwkv4",
     .core = "scan",
     .paper = "Peng et al. 2023, arXiv 2305.13048",
     .formula = "out = (a + e^(bonus + k) v) / (b + e^(bonus + k)); a = e^decay a + e^k v, b = e^decay b + e^k",
     .inputs = inputs,
     .states = states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .workspace = workspace,
     .forward = forward,
     .backward = backward,
     .flops = flops},
    {0},
};
