/* Owns: the table of policies, and their text form.
 *
 * A row's defaults are themselves text, read by the same parser before what the user wrote, so a row can say nothing
 * that a user could not. */
#include "memory/policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/attend.h"
#include "memory/allocate.h"
#include "memory/merge.h"
#include "memory/precision.h"
#include "memory/score.h"
#include "memory/select.h"

/* Defaults are those published; where a paper keeps a number of tokens, here the budget of bytes says how many. */
static const ln_policy_row rows[] = {
    {"full", "", "keeps every token as it is: keys=, values= say how exactly", "keys=f16,values=f16,near=f16,recent=0"},
    {"quantized", "", "keeps every token, rotated, in few bits; the first and the last ones exactly",
     "keys=q4,values=q4,rotate=1,sinks=32,recent=64"},
    {"kivi", "P232", "keys in few bits by channel, values by token, the last 128 exactly",
     "keys=q2,values=q2,axis=channel,recent=128,sinks=0"},
    {"bfp", "P044",
     "keeps every token; keys in blocks of channels that are alike in size, which share 4 bits and a scale",
     "keys=q4,values=q4,order=magnitude,sinks=32,recent=64"},
    {"window", "StreamingLLM", "the first tokens and the last ones that fit", "scorer=window,sinks=4,recent=64"},
    {"h2o", "P057", "tokens that were given the most attention so far, and the last ones",
     "scorer=h2o,sinks=0,recent=128"},
    {"scissorhands", "P212", "tokens least often below the mean attention, and the last ones",
     "scorer=scissorhands,sinks=0,recent=128"},
    {"snapkv", "P205", "tokens that the last queries of a piece attend to, with their neighbours",
     "scorer=snapkv,window=64,pooling=5,sinks=0,recent=64"},
    {"think", "P022", "as snapkv; older keys keep the channels that queries give most",
     "scorer=snapkv,window=64,pooling=5,sinks=0,recent=64,channels=0.6"},
    {"keyformer", "P179", "key tokens by a score with noise, and the last ones", "scorer=keyformer,sinks=0,recent=128"},
    {"tova", "TOVA", "tokens that the last query attends to", "scorer=tova,sinks=0,recent=32"},
    {"expected", "Expected Attention", "tokens that future queries are expected to attend to",
     "scorer=expected,sinks=4,recent=64"},
    {"keydiff", "KeyDiff", "keys that differ most from the mean key", "scorer=keydiff,sinks=0,recent=64"},
    {"l2norm", "L2 norm", "keys of small norm", "scorer=l2norm,sinks=0,recent=64"},
    {"lagkv", "LagKV", "tokens that stand out against the next part of the text", "scorer=lagkv,sinks=4,recent=128"},
    {"kvzip", "KVzip", "tokens that a repetition of the text attends to",
     "scorer=kvzip,probe=repeat,allocator=level,alpha=0,near=q8_0,sinks=4,recent=64"},
    {"pyramidkv", "PyramidKV", "as snapkv, more for lower layers",
     "scorer=snapkv,allocator=pyramid,window=64,pooling=5,sinks=0,recent=64"},
    {"adakv", "AdaKV", "as snapkv, heads of a layer compete for its tokens",
     "scorer=snapkv,allocator=adakv,window=64,pooling=5,sinks=0,recent=64"},
    {"squeeze", "P088", "as window, less for layers that change the text little",
     "scorer=window,allocator=squeeze,sinks=4,recent=64"},
    {"prefixkv", "P216", "as h2o, layers share one threshold of attention",
     "scorer=h2o,allocator=prefix,sinks=0,recent=128"},
    {"taskkv", "P190", "as h2o, more for heads that differ from the others",
     "scorer=h2o,allocator=task,sinks=4,recent=128"},
    {"alisa", "P235", "the last tokens, and those that recent steps attended to", "scorer=alisa,sinks=0,recent=128"},
    {"zipcache", "P221", "salient tokens in 4 bits, the others in 2",
     "scorer=zipcache,keys=q4,values=q4,low-keys=q2,low-values=q2,salient=0.6,sinks=0,recent=64"},
    {"quest", "P053", "keeps every token; a step reads the pages whose keys can score highest",
     "selector=quest,keys=q8_0,values=q8_0,sinks=32,recent=64,read=1024,dense=2"},
    {"lserve", "P053", "as quest, by half pages, each choice for four steps",
     "selector=lserve,keys=q4,values=q4,sinks=64,recent=256,read=1024,reuse=4"},
    {"sentencekv", "P225", "keeps every token; a step reads the pages whose mean keys score highest",
     "tier=file,selector=sentence,keys=q8_0,values=q8_0,sinks=32,recent=64"},
    {"squeezed", "P209", "keeps every token; a step reads the pages that have the best clusters of keys",
     "selector=squeezed,keys=q8_0,values=q8_0,sinks=32,recent=64,read=1024"},
    {"zoomr", "P267", "keeps every token; a step opens the groups of pages whose coarse summaries score highest",
     "tier=file,selector=zoomr,keys=q8_0,values=q8_0,sinks=32,recent=64,open=4"},
    {"disk", "", "keeps every token: what RAM has no room for in a file, of which a step reads the best pages",
     "tier=file,selector=quest,near=q8_0,keys=q4,values=q4,rotate=1,sinks=32,recent=32"},
    {"ems", "P196", "tokens that are given up join the kept one whose key is most similar, unless it is not",
     "scorer=ems,merge=ems,window=32,pooling=5,sinks=4,recent=64"},
    {"razor", "P170", "heads that look far back keep most; what is given up of a head becomes one token, its mean",
     "scorer=window,allocator=duo,merge=compensation,sinks=4,recent=64"},
    {"duo", "DuoAttention", "heads that look far back keep what fits, the others the first and the last tokens",
     "scorer=keydiff,allocator=duo,sinks=4,recent=128"},
    {"speckv", "P294", "tokens that the words expected next attend to: a draft model says them after each piece",
     "scorer=snapkv,probe=draft,window=64,pooling=5,sinks=0,recent=64,lookahead=16,draft-window=256"},
    {"specpc", "P294", "reads of a prompt what a draft model attends to, with its neighbours; then as snapkv",
     "scorer=snapkv,prompt=draft,window=64,pooling=13,sinks=4,recent=64"},
    {"gate", "P218", "tokens that the model's own gate says will be needed", "scorer=gate,sinks=4,recent=64"},
    {"p117", "P117", "as snapkv, as many tokens in as many bits as lose least for the bytes: chosen by the plan",
     "scorer=snapkv,window=64,pooling=5,sinks=0,recent=64"},
    {"random", "", "any tokens: what a rule must beat", "scorer=random,sinks=4,recent=64"},
};
enum { ROWS = sizeof rows / sizeof *rows };

static const struct {
    const char *name, *about;
    double least, most;
} parameters[] = {
    {"alpha", "share of the mean that each head keeps (adakv)", 0, 1},
    {"beta", "steepness (pyramid)", 1, 1e6},
    {"middle", "share of the budget for middle tokens (task)", 0, 1},
    {"full", "share of the heads that keep everything (duo)", 0, 1},
    {"p", "share that layers of little change keep (squeeze)", 0, 1},
    {"read", "tokens of far pages that a step reads; without it 1024, or what RAM has room for (selector)", 32,
     1 << 24},
    {"dense", "first layers that read all pages (selector)", 0, 1 << 20},
    {"reuse", "steps that a choice of pages lasts (selector)", 1, 1 << 20},
    {"open", "pages that are chosen together (selector)", 1, 1024},
    {"seed", "of a scorer's random numbers", 0, 1e9},
    {"pooling-maximum", "1: neighbours share their maximum, not their mean (snapkv)", 0, 1},
    {"similar", "cosine of keys from which tokens are merged (merge=ems)", -1, 1},
    {"lookahead", "tokens that a draft model says after a piece (probe=draft)", 1, 1024},
    {"draft-window", "tokens that it reads before these (probe=draft)", 1, 1 << 20},
    {"prompt-tokens", "that are read of a prompt (prompt=draft); 0: as many as the memory keeps", 0, 1 << 24},
    {"future", "positions that queries are expected for (expected)", 1, 1 << 20},
    {"epsilon", "added to scores before they are weighed by values (expected)", 0, 1},
    {"tau-step", "growth of the temperature with each token generated (keyformer)", 0, 1},
};
enum { PARAMETERS = sizeof parameters / sizeof *parameters };

const ln_policy_row *ln_policy_row_at(int index) {
    return index >= 0 && index < ROWS ? &rows[index] : NULL;
}

const char *ln_policy_parameter_at(int index, const char **about) {
    if (index < 0 || index >= PARAMETERS) return NULL;
    *about = parameters[index].about;
    return parameters[index].name;
}

double ln_policy_parameter_of(const ln_policy *policy, const char *name, double fallback) {
    for (int i = 0; i < policy->parameters; i++)
        if (!strcmp(policy->parameter[i].name, name)) return policy->parameter[i].value;
    return fallback;
}

/* ---- words of the text ---- */

enum { WORD = 48 };

typedef struct word {
    char key[WORD], value[WORD];
} word;

typedef struct reading {
    linnet_context *context;
    ln_policy *policy;
    const word *w;
} reading;

static linnet_status wrong(const reading *r, const char *expected) {
    return ln_fail(r->context, LINNET_ERROR_ARGUMENT, "policy: %s=%s: %s", r->w->key, r->w->value, expected);
}

static linnet_status read_type(const reading *r, linnet_type *type) {
    ln_page_layout layout;
    *type = linnet_type_of_name(r->w->value);
    if (*type != LINNET_TYPE_AUTO && ln_page_layout_of(*type, *type, 64, 64, &layout)) return LINNET_OK;
    return wrong(r, "pages can be f32, f16, bf16, q8_0, q5, q4_0, q4, q3 or q2");
}

static linnet_status read_number(const reading *r, double least, double most, double *number) {
    char *end;
    *number = strtod(r->w->value, &end);
    if (end != r->w->value && !*end && *number >= least && *number <= most) return LINNET_OK;
    char expected[64];
    snprintf(expected, sizeof expected, "a number from %g to %g is expected", least, most);
    return wrong(r, expected);
}

static linnet_status read_integer(const reading *r, double most, int64_t *number) {
    double value = 0;
    const linnet_status status = read_number(r, 0, most, &value);
    *number = (int64_t)value;
    return status;
}

static linnet_status read_choice(const reading *r, const char *no, const char *yes, bool *is_yes) {
    *is_yes = !strcmp(r->w->value, yes);
    if (*is_yes || !strcmp(r->w->value, no)) return LINNET_OK;
    char expected[64];
    snprintf(expected, sizeof expected, "it is %s or %s", no, yes);
    return wrong(r, expected);
}

static const char *const probes[] = {
    [LN_PROBE_NONE] = "none", [LN_PROBE_REPEAT] = "repeat", [LN_PROBE_DRAFT] = "draft"};

static linnet_status read_probe(const reading *r) {
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        if (strcmp(probes[i], r->w->value) != 0) continue;
        r->policy->probe = (ln_probe)i;
        return LINNET_OK;
    }
    return wrong(r, "it is none, repeat or draft");
}

/* Parts that come from tables. */
static linnet_status read_part(const reading *r) {
    ln_policy *p = r->policy;
    const char *key = r->w->key, *name = r->w->value;
    const bool none = !strcmp(name, "none");
    if (!strcmp(key, "scorer")) {
        p->scorer = none ? NULL : ln_scorer_of(name);
        return none || p->scorer ? LINNET_OK : wrong(r, "there is no scorer of that name");
    }
    if (!strcmp(key, "allocator")) {
        p->allocator = none ? NULL : ln_allocator_of(name);
        return none || p->allocator ? LINNET_OK : wrong(r, "there is no allocator of that name");
    }
    if (!strcmp(key, "selector")) {
        p->selector = none ? NULL : ln_selector_of(name);
        return none || p->selector ? LINNET_OK : wrong(r, "there is no selector of that name");
    }
    p->merger = none ? NULL : ln_merger_of(name);
    return none || p->merger ? LINNET_OK : wrong(r, "there is no way of merging of that name");
}

static linnet_status read_parameter(const reading *r) {
    ln_policy *p = r->policy;
    for (int i = 0; i < PARAMETERS; i++) {
        if (strcmp(parameters[i].name, r->w->key) != 0) continue;
        double value;
        const linnet_status status = read_number(r, parameters[i].least, parameters[i].most, &value);
        if (status != LINNET_OK) return status;
        int at = 0;
        while (at < p->parameters && strcmp(p->parameter[at].name, r->w->key) != 0) at++;
        if (at == LN_POLICY_PARAMETERS) return wrong(r, "too many parameters");
        if (at == p->parameters) p->parameters++;
        p->parameter[at].name = parameters[i].name;
        p->parameter[at].value = value;
        return LINNET_OK;
    }
    return ln_fail(r->context, LINNET_ERROR_ARGUMENT, "policy %s has no '%s' (docs/memory.md lists what can be set)",
                   p->row->name, r->w->key);
}

static linnet_status apply(const reading *r) {
    ln_policy *p = r->policy;
    const char *key = r->w->key;
    const struct {
        const char *key;
        linnet_type *type;
    } types[] = {{"near", &p->near},
                 {"keys", &p->keys},
                 {"values", &p->values},
                 {"low-keys", &p->low_keys},
                 {"low-values", &p->low_values}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(key, types[i].key)) return read_type(r, types[i].type);
    const struct {
        const char *key;
        int64_t *number;
        double most;
    } integers[] = {{"sinks", &p->sinks, 1 << 20},
                    {"recent", &p->recent, 1 << 24},
                    {"window", &p->window, 1 << 16},
                    {"pooling", &p->pooling, 4096}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        if (!strcmp(key, integers[i].key)) return read_integer(r, integers[i].most, integers[i].number);
    if (!strcmp(key, "scorer") || !strcmp(key, "allocator") || !strcmp(key, "selector") || !strcmp(key, "merge"))
        return read_part(r);
    if (!strcmp(key, "probe")) return read_probe(r);
    if (!strcmp(key, "salient")) return read_number(r, 0, 1, &p->salient);
    if (!strcmp(key, "channels")) return read_number(r, 0.01, 1, &p->key_share);
    if (!strcmp(key, "order")) return read_choice(r, "none", "magnitude", &p->group);
    if (!strcmp(key, "axis")) return read_choice(r, "token", "channel", &p->channels);
    if (!strcmp(key, "rotate")) return read_choice(r, "0", "1", &p->rotate);
    if (!strcmp(key, "prompt")) return read_choice(r, "whole", "draft", &p->draft_prompt);
    if (!strcmp(key, "tier")) return read_choice(r, "ram", "file", &p->file);
    return read_parameter(r);
}

/* The next "key=value" of a list; false at its end. */
static linnet_status next_word(linnet_context *context, const char **text, word *w) {
    const size_t length = strcspn(*text, ","), key = strcspn(*text, "=,");
    if (key == 0 || key == length || key >= WORD || length - key - 1 >= WORD)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "policy: '%.*s' is not key=value",
                       (int)(length > 99 ? 99 : length), *text);
    memcpy(w->key, *text, key);
    w->key[key] = 0;
    memcpy(w->value, *text + key + 1, length - key - 1);
    w->value[length - key - 1] = 0;
    *text += length + ((*text)[length] == ',');
    return LINNET_OK;
}

static linnet_status apply_list(linnet_context *context, const char *text, ln_policy *policy) {
    while (*text) {
        word w;
        const reading r = {context, policy, &w};
        linnet_status status = next_word(context, &text, &w);
        if (status == LINNET_OK) status = apply(&r);
        if (status != LINNET_OK) return status;
    }
    return LINNET_OK;
}

/* ---- what fits together ---- */

static linnet_status check(linnet_context *context, const ln_policy *p) {
    const bool low = p->low_keys != LINNET_TYPE_AUTO || p->low_values != LINNET_TYPE_AUTO;
    const char *why = NULL;
    if (low && (p->low_keys == LINNET_TYPE_AUTO || p->low_values == LINNET_TYPE_AUTO))
        why = "low-keys and low-values go together";
    else if (low && !p->scorer)
        why = "low-keys and low-values need a scorer, which says what is salient";
    else if (p->channels && p->keys != LINNET_Q5 && p->keys != LINNET_Q4 && p->keys != LINNET_Q3 &&
             p->keys != LINNET_Q2)
        why = "axis=channel is for keys of q5, q4, q3 or q2";
    else if (p->channels && p->scorer)
        why = "keys with axis=channel cannot be given up one by one; use axis=token, or scorer=none";
    else if (ln_policy_orders(p) && p->rotate)
        why = "rotate=1 mixes the channels that channels= and order= tell apart; use one of them";
    else if (ln_policy_orders(p) && (p->selector || p->file))
        why = "channels= and order= change pages that a selector or tier=file has handed over; use one of them";
    else if (ln_policy_orders(p) && p->merger)
        why = "merge wants keys with all channels in their own order; use it without channels= and order=";
    else if (ln_policy_orders(p) && p->scorer && p->scorer->turns)
        why = "this scorer turns queries back by their rotation, so channels must keep their order; use snapkv";
    else if (p->allocator && !p->scorer)
        why = "an allocator divides what a scorer keeps; name a scorer";
    else if (p->allocator && p->allocator->heads && p->scorer->shared)
        why = "this scorer keeps the same tokens in all heads of a layer; use an allocator of layers, or none";
    else if (p->merger && !p->scorer)
        why = "merge is for what a scorer gives up; name a scorer";
    else if (p->probe && (!p->scorer || !p->scorer->observes || p->scorer->state))
        why = "probe= is for scorers that look at attention alone: kvzip, snapkv, h2o, tova, alisa";
    else if (p->draft_prompt && p->probe == LN_PROBE_DRAFT)
        why = "prompt=draft and probe=draft want a draft model for different work; use one of them";
    else if (p->scorer && p->selector)
        why = "a selector chooses among all tokens, a scorer gives some up; use one of them";
    else if (p->scorer && p->file)
        why = "tier=file keeps every token; use scorer=none";
    return why ? ln_fail(context, LINNET_ERROR_ARGUMENT, "policy %s: %s", p->row->name, why) : LINNET_OK;
}

/* ---- the text form ---- */

static const ln_policy_row *find_row(const char *name, size_t bytes) {
    for (int i = 0; i < ROWS; i++)
        if (strlen(rows[i].name) == bytes && !memcmp(rows[i].name, name, bytes)) return &rows[i];
    return NULL;
}

static linnet_status unknown_row(linnet_context *context, const char *text, size_t bytes) {
    char names[768] = "";
    for (int i = 0; i < ROWS; i++) {
        const size_t at = strlen(names);
        snprintf(names + at, sizeof names - at, "%s%s", at ? ", " : "", rows[i].name);
    }
    return ln_fail(context, LINNET_ERROR_ARGUMENT, "there is no policy '%.*s'; there are %s",
                   (int)(bytes > 99 ? 99 : bytes), text, names);
}

linnet_status ln_policy_parse(linnet_context *context, const char *text, ln_policy *policy) {
    const size_t bytes = strcspn(text, ":");
    *policy = (ln_policy){.row = find_row(text, bytes),
                          .near = LINNET_F16,
                          .keys = LINNET_F16,
                          .values = LINNET_F16,
                          .low_keys = LINNET_TYPE_AUTO,
                          .low_values = LINNET_TYPE_AUTO,
                          .salient = 1,
                          .key_share = 1,
                          .recent = 64,
                          .pooling = 1};
    if (!policy->row) return unknown_row(context, text, bytes);
    linnet_status status = apply_list(context, policy->row->parts, policy);
    if (status == LINNET_OK && text[bytes]) status = apply_list(context, text + bytes + 1, policy);
    return status == LINNET_OK ? check(context, policy) : status;
}

bool ln_policy_orders(const ln_policy *policy) {
    return policy->group || policy->key_share < 1;
}

int64_t ln_policy_key_size(const ln_policy *policy, int64_t key_size) {
    return policy->key_share < 1 ? (int64_t)ceil(policy->key_share * (double)key_size / 8 - 1e-9) * 8 : key_size;
}

/* The curve is an assumption: P(n) = (n / tokens)^(1 / 4), a quarter of the tokens holds 7 / 10 of the attention.
 * Errors are what the codecs lose of normally distributed rows, measured: root mean squares, in standard deviations. */
bool ln_policy_settle(ln_policy *policy, double bytes, int64_t tokens, int64_t key_size, int64_t value_size) {
    static const struct {
        linnet_type type;
        double error;
    } types[] = {{LINNET_F16, 2.1e-4}, {LINNET_Q8_0, 0.0053}, {LINNET_Q5, 0.038},
                 {LINNET_Q4, 0.075},   {LINNET_Q3, 0.152},    {LINNET_Q2, 0.305}};
    enum { TYPES = sizeof types / sizeof *types };
    const bool open =
        policy->keys == LINNET_F16 && policy->values == LINNET_F16 && policy->low_keys == LINNET_TYPE_AUTO;
    if (strcmp(policy->row->name, "p117") != 0 || !open) return false;
    ln_precision_option options[TYPES];
    double mass[LN_STATISTICS_MASS];
    for (int i = 0; i < LN_STATISTICS_MASS; i++) mass[i] = sqrt(sqrt((i + 1.0) / LN_STATISTICS_MASS));
    for (int i = 0; i < TYPES; i++) {
        ln_page_layout layout;
        if (!ln_page_layout_of(types[i].type, types[i].type, ln_policy_key_size(policy, key_size), value_size, &layout))
            return false;
        options[i] = (ln_precision_option){(double)layout.bytes / LN_PAGE_TOKENS + 8, types[i].error};
    }
    const ln_precision_choice best = ln_precision_solve(options, TYPES, bytes, tokens, mass);
    const int high = best.high >= 0 ? best.high : best.low >= 0 ? best.low : TYPES - 1;
    policy->keys = policy->values = types[high].type;
    if (best.high < 0 || best.low < 0) return true;
    policy->low_keys = policy->low_values = types[best.low].type;
    policy->salient = (double)best.high_tokens / (double)(best.high_tokens + best.low_tokens);
    policy->salient = (double)(int)(policy->salient * 1000) / 1000; /* as its text says it */
    return true;
}

void ln_policy_text(const ln_policy *p, char *text, size_t room) {
    size_t at = 0;
    text[0] = 0;
#define PUT(...)                                                                  \
    do {                                                                          \
        if (at < room) at += (size_t)snprintf(text + at, room - at, __VA_ARGS__); \
    } while (0)
    PUT("%s:scorer=%s,allocator=%s,selector=%s,merge=%s", p->row->name, p->scorer ? p->scorer->name : "none",
        p->allocator ? p->allocator->name : "none", p->selector ? p->selector->name : "none",
        p->merger ? p->merger->name : "none");
    PUT(",near=%s,keys=%s,values=%s", linnet_type_name(p->near), linnet_type_name(p->keys),
        linnet_type_name(p->values));
    if (p->low_keys != LINNET_TYPE_AUTO)
        PUT(",low-keys=%s,low-values=%s,salient=%g", linnet_type_name(p->low_keys), linnet_type_name(p->low_values),
            p->salient);
    PUT(",axis=%s,rotate=%d,tier=%s", p->channels ? "channel" : "token", p->rotate, p->file ? "file" : "ram");
    PUT(",sinks=%lld,recent=%lld,window=%lld,pooling=%lld", (long long)p->sinks, (long long)p->recent,
        (long long)p->window, (long long)p->pooling);
    if (p->key_share < 1 || strstr(p->row->parts, "channels=")) PUT(",channels=%g", p->key_share);
    if (p->group || strstr(p->row->parts, "order=")) PUT(",order=%s", p->group ? "magnitude" : "none");
    if (p->draft_prompt) PUT(",prompt=draft");
    if (p->probe) PUT(",probe=%s", probes[p->probe]);
    for (int i = 0; i < p->parameters; i++) PUT(",%s=%g", p->parameter[i].name, p->parameter[i].value);
#undef PUT
}
