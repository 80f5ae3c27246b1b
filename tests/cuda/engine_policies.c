/* Models on a device with memory under policies against the processor's: what is kept of which tokens, logits, going
 * back, forks, files. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "generate/session.h"
#include "memory/pages_inside.h"
#include "random_model.h"

enum { POLICY_PROMPT = 210, POLICY_LONG = 610, POLICY_SINGLE = 75, POLICY_PIECE = 48, POLICY_CONTEXT = 800 };

/* The same bytes for lanes, so that both keep as many tokens. */
static void open_policy(pair *p, const char *policy, int64_t pages) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan;
    settings.context = POLICY_CONTEXT;
    settings.piece = POLICY_PIECE;
    settings.compute = LINNET_COMPUTE_EXACT;
    settings.policy = policy;
    must(p->context, linnet_plan_session(p->model, &settings, &plan), policy);
    settings.cache = plan.pages + (uint64_t)pages * plan.bytes_per_token * 32;
    must(p->context, linnet_session_open(p->model, &settings, &p->host), policy);
    const uint64_t lanes = linnet_session_plan(p->host).cache;
    settings.compute = LINNET_COMPUTE_FAST;
    settings.device = "cuda";
    settings.cache = 2 * lanes;
    must(p->context, linnet_plan_session(p->model, &settings, &plan), policy);
    p->cache = settings.cache = 3 * lanes - plan.cache; /* with what layers with windows take */
    must(p->context, linnet_session_open(p->model, &settings, &p->device), policy);
    plan = linnet_session_plan(p->device);
    EXPECT(plan.cache == lanes, "%s: %llu bytes for lanes on the device, %llu on the processor", p->name,
           (unsigned long long)plan.cache, (unsigned long long)lanes);
    EXPECT(plan.pages <= settings.cache, "%s: %llu bytes of pages exceed %llu", p->name, (unsigned long long)plan.pages,
           (unsigned long long)settings.cache);
}

static int by_value(const void *a, const void *b) {
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* What share of a lane's tokens both keep; of the worst lane. */
static double shared_part(const ln_ragged *here, const ln_ragged *there, int64_t layers, int64_t heads) {
    int32_t kept[2][POLICY_CONTEXT];
    double least = 1;
    for (int64_t i = 0; i < layers * heads; i++) {
        const int64_t n = ln_ragged_positions(here, i / heads, i % heads, kept[0]),
                      m = ln_ragged_positions(there, i / heads, i % heads, kept[1]);
        int64_t both = 0;
        qsort(kept[0], (size_t)n, 4, by_value);
        for (int64_t k = 0; k < m; k++) both += bsearch(&kept[1][k], kept[0], (size_t)n, 4, by_value) != NULL;
        if (n != m) return 0;
        if ((double)both / (double)n < least) least = (double)both / (double)n;
    }
    return least;
}

static void compare_kept(const pair *p, const char *what) {
    const linnet_usage here = linnet_session_usage(p->host), there = linnet_session_usage(p->device);
    EXPECT(here.evicted == there.evicted, "%s, %s: gave up %lld tokens, the processor %lld", p->name, what,
           (long long)there.evicted, (long long)here.evicted);
    const linnet_model_info info = linnet_model_describe(p->model);
    const double part = shared_part(p->host->memory->lanes, p->device->device->lanes(p->device->sequence),
                                    info.attention_layers - info.window_layers, info.key_value_heads);
    if (strchr(what, '!')) printf("%s, %s %.3f of the tokens are the same\n", p->name, what, part);
    EXPECT(part >= p->same, "%s, %s: only %.3f of the tokens are the same", p->name, what, part);
}

/* A file holds all that decides what comes: on the device the same bits follow, the processor keeps the same tokens. */
static void check_policy_file(pair *p, const int32_t *ids) {
    const size_t bytes = (size_t)p->vocabulary * sizeof(float);
    char path[] = "/tmp/linnet-session-XXXXXX";
    float *before = malloc(bytes);
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_session *other;
    const linnet_plan plan = linnet_session_plan(p->device);
    close(mkstemp(path));
    settings.context = plan.context;
    settings.piece = plan.piece;
    settings.policy = plan.policy;
    settings.cache = p->cache;
    settings.device = "cuda";
    must(p->context, linnet_session_open(p->model, &settings, &other), "another session on the device");
    must(p->context, linnet_session_save(p->device, path), "saving");
    EXPECT(linnet_session_load(other, "/nowhere") != LINNET_OK && linnet_session_position(other) == 0,
           "%s: a file that is not there is loaded", p->name);
    must(p->context, linnet_session_load(other, path), "loading");
    const linnet_status here = linnet_session_load(p->host, path);
    if (here == LINNET_OK) {
        const linnet_model_info info = linnet_model_describe(p->model);
        EXPECT(shared_part(p->host->memory->lanes, p->device->device->lanes(p->device->sequence),
                           info.attention_layers - info.window_layers, info.key_value_heads) == 1,
               "%s: the processor found other tokens in the file", p->name);
        must(p->context, linnet_session_feed(p->host, ids, 1), "a token on the processor");
    }
    EXPECT(here == LINNET_OK || linnet_model_describe(p->model).window_layers, "%s: the processor does not read it: %s",
           p->name, linnet_last_error(p->context));
    for (int i = 0; i < 40; i++) {
        must(p->context, linnet_session_feed(p->device, ids + i, 1), "a token");
        must(p->context, linnet_session_feed(other, ids + i, 1), "a token after loading");
        if (i == 0 && here == LINNET_OK)
            compare(p, linnet_session_logits(p->device), linnet_session_logits(p->host), 1, "from a file");
    }
    memcpy(before, linnet_session_logits(p->device), bytes);
    EXPECT(!memcmp(before, linnet_session_logits(other), bytes), "%s: what was loaded goes on with other bits",
           p->name);
    if (here == LINNET_OK) { /* and back, from the processor */
        must(p->context, linnet_session_save(p->host, path), "saving on the processor");
        must(p->context, linnet_session_load(other, path), "loading from the processor");
        must(p->context, linnet_session_feed(p->host, ids, 1), "feeding on");
        must(p->context, linnet_session_feed(other, ids, 1), "feeding what was loaded");
        compare(p, linnet_session_logits(other), linnet_session_logits(p->host), 1, "from a file of the processor");
    }
    linnet_session_close(other);
    unlink(path);
    free(before);
}

/* From where it can go back, the same bits again; and from the start. */
static void check_policy_back(pair *p, const int32_t *ids, int64_t prompt, int64_t count) {
    const size_t bytes = (size_t)p->vocabulary * sizeof(float);
    float *before = malloc(bytes);
    linnet_session *fork, *apart;
    memcpy(before, linnet_session_logits(p->device), bytes);
    EXPECT(linnet_session_rewind_limit(p->device) == linnet_session_rewind_limit(p->host),
           "%s: goes back to %lld, the processor to %lld", p->name, (long long)linnet_session_rewind_limit(p->device),
           (long long)linnet_session_rewind_limit(p->host));
    if (linnet_session_rewind_limit(p->device) < count) {
        must(p->context, linnet_session_rewind(p->device, count - 1), "going back");
        must(p->context, linnet_session_feed(p->device, ids + count - 1, 1), "a token again");
        EXPECT(!memcmp(before, linnet_session_logits(p->device), bytes), "%s: going back changed bits", p->name);
    }
    check_policy_file(p, ids);
    must(p->context, linnet_session_fork(p->device, &fork), "forking");
    must(p->context, linnet_session_fork(p->device, &apart), "forking");
    for (int i = 0; i < 35; i++) {
        must(p->context, linnet_session_feed(fork, ids + i, 1), "feeding the fork");
        must(p->context, linnet_session_feed(apart, ids + 50 + i, 1), "feeding another");
        must(p->context, linnet_session_feed(p->device, ids + i, 1), "feeding what it came from");
    }
    EXPECT(!memcmp(linnet_session_logits(fork), linnet_session_logits(p->device), bytes), "%s: a fork has other bits",
           p->name);
    linnet_session_close(fork);
    linnet_session_close(apart);
    must(p->context, linnet_session_rewind(p->device, 0), "beginning again");
    must(p->context, linnet_session_feed(p->device, ids, prompt), "the prompt again");
    for (int64_t i = prompt; i < count; i++)
        must(p->context, linnet_session_feed(p->device, ids + i, 1), "a token again");
    EXPECT(!memcmp(before, linnet_session_logits(p->device), bytes), "%s: beginning again changed bits", p->name);
    free(before);
}

static void run_policy(pair *p, const char *policy, int64_t pages, int64_t prompt) {
    int32_t ids[POLICY_LONG + POLICY_SINGLE];
    float *got = malloc((size_t)(prompt * p->vocabulary) * sizeof *got),
          *want = malloc((size_t)(prompt * p->vocabulary) * sizeof *want);
    collected here = {want, p->vocabulary}, there = {got, p->vocabulary};
    for (int64_t i = 0; i < prompt + POLICY_SINGLE; i++) ids[i] = (int32_t)(rand() % p->vocabulary);
    open_policy(p, policy, pages);
    must(p->context, linnet_session_feed_logits(p->host, ids, prompt, collect, &here), "the prompt");
    must(p->context, linnet_session_feed_logits(p->device, ids, prompt, collect, &there), "on the device");
    compare(p, got, want, prompt, "a prompt");
    compare_kept(p, "a prompt!");
    for (int64_t i = prompt; i < prompt + POLICY_SINGLE; i++) {
        must(p->context, linnet_session_feed(p->host, ids + i, 1), "a token");
        must(p->context, linnet_session_feed(p->device, ids + i, 1), "a token on the device");
        compare(p, linnet_session_logits(p->device), linnet_session_logits(p->host), 1, "a token");
        compare_kept(p, "a token");
    }
    compare_kept(p, "the end!");
    EXPECT(linnet_session_usage(p->device).evicted > 0, "%s: nothing was given up", p->name);
    check_policy_back(p, ids, prompt, prompt + POLICY_SINGLE);
    linnet_session_close(p->device);
    linnet_session_close(p->host);
    free(got);
    free(want);
}

void check_policies(linnet_context *context, const char *only, const char *shape) {
    /* Where scores are nearly equal, rounding decides between them, and by keydiff's the tokens that differ most from
     * all others come and go. */
    static const struct {
        const char *policy;
        int64_t pages; /* of 32 tokens, in all layers, beside the least */
        double same, tolerance, row;
    } policies[] = {{"window", 2, 1, TOLERANCE, ROW},
                    {"window:near=bf16,keys=bf16,values=bf16,recent=16", 0, 1, TOLERANCE, ROW},
                    {"window:near=q8_0,keys=q8_0,values=q8_0,recent=32,sinks=0", 1, 1, TOLERANCE, ROW},
                    {"window:near=q4_0,keys=q4_0,values=q4_0,recent=32", 1, 1, 3 * TOLERANCE, ROW},
                    {"random:recent=32", 2, 1, TOLERANCE, ROW},
                    {"keydiff:recent=32", 2, 0.9, 0.5, 3},
                    {"l2norm:near=q8_0,keys=q8_0,values=q8_0,recent=32", 2, 0.9, 0.3, 1.5},
                    {"lagkv:recent=32", 4, 0.9, 0.3, 1.5},
                    {"h2o:recent=32", 2, 0.9, 0.3, 1.5},
                    {"snapkv:recent=32,window=16", 2, 0.9, 0.3, 1.5},
                    {"adakv:recent=32,window=16", 4, 0.9, 0.3, 1.5},
                    {"keyformer:recent=32", 2, 0.85, 0.3, 1.5},
                    {"scissorhands:recent=32,window=40", 2, 0.7, 0.3, 1.5},
                    {"expected:recent=32,sinks=0", 2, 0.85, 0.3, 1.5},
                    {"pyramidkv:recent=32", 4, 0.9, 0.3, 1.5},
                    {"tova:near=q8_0,keys=q8_0,values=q8_0,recent=32", 2, 0.9, 0.3, 1.5},
                    {"full:scorer=critical,near=q4_0,keys=q4_0,values=q4_0,recent=32", 2, 0.8, 0.5, 3}};
    static const char *const refused[] = {"quest", "kivi", "speckv", "ems", "kvzip", "squeeze", "zipcache"};
    char path[] = "/tmp/linnet-policies-XXXXXX";
    const int file = mkstemp(path);
    linnet_convert_settings conversion = linnet_convert_settings_default();
    conversion.type = LINNET_BF16;
    if (file >= 0 && strchr(shape, '/'))
        must(context, linnet_convert(context, shape, path, &conversion), shape);
    else if (file < 0 || !write_random_model(path, shape, LINNET_BF16)) {
        printf("FAILED: %s cannot be written\n", path);
        exit(1);
    }
    close(file);
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        pair p = {.context = context, .name = policies[i].policy};
        if (only && strncmp(only, p.name, strlen(only)) != 0) continue;
        must(context, linnet_model_open(context, path, &p.model), path);
        p.vocabulary = linnet_model_describe(p.model).vocabulary;
        p.tolerance = policies[i].tolerance;
        p.row = policies[i].row;
        p.same = policies[i].same;
        run_policy(&p, p.name, policies[i].pages, strchr(shape, '/') ? POLICY_LONG : POLICY_PROMPT);
        tell(&p);
        linnet_model_close(p.model);
    }
    linnet_model *model;
    must(context, linnet_model_open(context, path, &model), path);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        linnet_session_settings settings = linnet_session_settings_default();
        linnet_plan plan;
        settings.context = POLICY_CONTEXT;
        settings.policy = refused[i];
        settings.device = "cuda";
        EXPECT(linnet_plan_session(model, &settings, &plan) == LINNET_ERROR_UNSUPPORTED, "%s is not refused",
               refused[i]);
    }
    linnet_model_close(model);
    unlink(path);
}
