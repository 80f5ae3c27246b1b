/* Owns: prefix linear attention: keys and values of an encoder's, over the first tokens of each sequence, are in the
 * state before the first token reads it:
 *
 *     S[-1] += sum over t < P of phi(ke[t]) ve[t]^T, then linear attention of q, k, v
 *
 * P counts tokens of this call: a text's prefix is given whole, with its beginning; what follows has P = 0. */
#include <string.h>

#include "base/checked.h"
#include "mixer/feature.h"
#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE, PREFIX_KEY, PREFIX_VALUE };
enum { Q, K, V, O, DQ, DK, DV, DO };

static void blocks(const linnet_mixer_settings *s, ln_block *b) {
    const int64_t features = s->option[LN_PREFIX_TAYLOR] != 0 ? ln_features_taylor(s) : s->key_size;
    b[0] = (ln_block){1, features * (s->value_size + (s->normalise ? 1 : 0))};
}

static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    floats[Q] = floats[K] = tokens * s->key_heads * s->key_size;
    floats[V] = floats[O] = tokens * s->heads * s->value_size;
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DQ] = floats[DK] = floats[Q];
    floats[DV] = floats[DO] = floats[V];
}

static const char *base(const linnet_mixer_settings *s, int i, linnet_mixer_settings *b) {
    b->scale = s->scale;
    b->normalise = s->normalise;
    return i > 0 ? NULL : s->option[LN_PREFIX_TAYLOR] != 0 ? "based" : "linear_elu";
}

static ln_stage_run run_of(const ln_stage *st) {
    const int64_t keys = st->s->key_size, values = st->s->value_size;
    return (ln_stage_run){.tensors = {.input = {ln_stage_tensor(st, Q, keys), ln_stage_tensor(st, K, keys),
                                                ln_stage_tensor(st, V, values)},
                                      .output = ln_stage_tensor(st, O, values),
                                      .output_gradient = ln_stage_tensor(st, DO, values),
                                      .input_gradient = {ln_stage_tensor(st, DQ, keys), ln_stage_tensor(st, DK, keys),
                                                         ln_stage_tensor(st, DV, values)}}};
}

static bool begins(const ln_stage *st) {
    return st->piece == 0 && st->s->option[LN_PREFIX_TOKENS] > 0;
}

/* The keys are their own queries: what these read, nobody wants. */
static void encode(ln_stage *st, bool back) {
    const int64_t most = (int64_t)st->s->option[LN_PREFIX_TOKENS];
    for (int64_t e = 0; ln_stage_seek(st, e, most), st->tokens > 0; e++) {
        ln_stage_pack(st, PREFIX_KEY, Q);
        ln_stage_pack(st, PREFIX_KEY, K);
        ln_stage_pack(st, PREFIX_VALUE, V);
        const ln_stage_run run = run_of(st);
        if (!back) {
            ln_stage_forward(st, &run);
            continue;
        }
        memset(st->room[DO], 0, (size_t)(st->tokens * st->s->heads * st->s->value_size) * sizeof(float));
        ln_stage_backward(st, &run);
        ln_stage_add(st, PREFIX_KEY, DK);
        ln_stage_add(st, PREFIX_VALUE, DV);
    }
    ln_stage_seek(st, 0, INT64_MAX);
}

static void pack(ln_stage *st) {
    if (begins(st)) encode(st, false);
    ln_stage_pack(st, QUERY, Q);
    ln_stage_pack(st, KEY, K);
    ln_stage_pack(st, VALUE, V);
}

static void forward(ln_stage *st) {
    pack(st);
    const ln_stage_run run = run_of(st);
    ln_stage_forward(st, &run);
    ln_stage_put(st, O);
}

static void backward(ln_stage *st) {
    pack(st);
    ln_stage_take(st, DO);
    const ln_stage_run run = run_of(st);
    ln_stage_backward(st, &run);
    ln_stage_add(st, QUERY, DQ);
    ln_stage_add(st, KEY, DK);
    ln_stage_add(st, VALUE, DV);
    if (begins(st)) encode(st, true);
}

const ln_staged ln_staged_prefix = {
    .blocks = blocks, .rooms = rooms, .base = base, .forward = forward, .backward = backward};

double ln_prefix_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    ln_block b[LN_BLOCKS];
    blocks(s, b);
    return (form == LINNET_MIXER_STEP ? 5 : form == LINNET_MIXER_FORWARD ? 4 : 12) * (double)b[0].floats;
}
