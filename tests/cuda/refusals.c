/* What can be wrong with a device, on an emulated one: none, too old a driver, too little memory, a device that fails
 * while it works. Each gives a status and a sentence that names it, the process goes on, and a session takes the
 * processor where `auto` allows it and nowhere else. A session whose device has failed goes on as one that never did.
 *
 *     cuda_refusals MODEL          a golden model, beside the others
 *     cuda_refusals MODEL 7.5      a device without kernels */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "linnet/cuda.h"
#include "linnet/linnet.h"
#include "random_model.h"

static linnet_context *context;
static linnet_model *model;
static const char *golden;
static int checks, failures;

static void expect(bool right, const char *what) {
    checks++;
    if (right) return;
    failures++;
    printf("FAILED: %s: %s\n", what, linnet_last_error(context));
}
static bool told(const char *words) {
    return strstr(linnet_last_error(context), words) != NULL;
}
static void set(const char *name, const char *value) {
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static linnet_status open_session(const char *device, linnet_session **session) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 32;
    settings.device = device;
    return linnet_session_open(model, &settings, session);
}

/* One prompt; where it ran is in *where: "" is the processor. */
static linnet_status read_prompt(const char *device, char where[8]) {
    static const int32_t ids[] = {1, 5, 9, 2, 7};
    linnet_session *session = NULL;
    linnet_status status = open_session(device, &session);
    where[0] = '\0';
    if (status != LINNET_OK) return status;
    snprintf(where, 8, "%.4s", linnet_session_plan(session).device);
    status = linnet_session_feed(session, ids, 5);
    if (status == LINNET_OK && !linnet_session_logits(session)) status = LINNET_ERROR_UNSUPPORTED;
    linnet_session_close(session);
    return status;
}

/* No session on the device, with `words` in the sentence; `auto` reads on the processor. */
static void check_session(linnet_status refused, const char *words, const char *what) {
    char where[8];
    expect(read_prompt("cuda", where) == refused && told(words), what);
    expect(read_prompt("auto", where) == LINNET_OK && !*where, what);
    expect(read_prompt("cpu", where) == LINNET_OK && !*where, what);
}

static void check_no_device(void) {
    linnet_cuda *cuda = NULL;
    set("LN_EMULATOR_DEVICE", "none");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("no CUDA device"), "none");
    check_session(LINNET_ERROR_UNSUPPORTED, "device", "a session without a device");
    set("LN_EMULATOR_DEVICE", "old");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("CUDA 11.0") &&
               told("update the driver"),
           "an old driver");
    check_session(LINNET_ERROR_UNSUPPORTED, "driver", "a session with an old driver");
    set("LN_EMULATOR_DEVICE", NULL);
}

static void check_memory(void) {
    linnet_cuda *cuda = NULL;
    void *memory = NULL;
    linnet_peaks peaks = {.size = sizeof peaks};
    set("LN_EMULATOR_MEMORY", "10000");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_OK, "a small device");
    expect(linnet_cuda_allocate(cuda, 8000, &memory) == LINNET_OK && memory, "what fits");
    void *more = memory;
    expect(linnet_cuda_allocate(cuda, 8000, &more) == LINNET_ERROR_MEMORY && !more && told("free memory"), "too much");
    expect(linnet_cuda_measure_peaks(cuda, &peaks) == LINNET_ERROR_MEMORY && told("free memory"), "peaks");
    linnet_cuda_release(cuda, memory);
    expect(linnet_cuda_allocate(cuda, 8000, &memory) == LINNET_OK, "what fits again");
    linnet_cuda_release(cuda, memory);
    linnet_cuda_close(cuda);
    check_session(LINNET_ERROR_MEMORY, "10000 bytes left", "a session on a small device");
    set("LN_EMULATOR_MEMORY", NULL);
}

static linnet_status plan_for(linnet_session_settings *settings, uint64_t memory, linnet_plan *plan) {
    settings->memory = memory;
    return linnet_plan_session(model, settings, plan);
}

/* The least that is named suffices, and nothing less; of all pieces and precisions where nothing is asked for. */
static void check_least(const char *policy, linnet_type precision) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan, least;
    settings.context = 4000;
    settings.device = "cuda";
    settings.policy = policy;
    settings.precision = precision;
    expect(plan_for(&settings, 0, &plan) == LINNET_OK && plan.smallest < plan.total, "a plan without bounds");
    expect(plan_for(&settings, 1000, &least) == LINNET_ERROR_MEMORY && least.smallest == plan.smallest, "1000 bytes");
    expect(!policy || told(strstr(policy, "q4_0") ? " q4_0 keys" : " f16 keys"), "the precision of lanes");
    expect(plan_for(&settings, plan.smallest, &least) == LINNET_OK && least.total == plan.smallest, "the least");
    expect(plan_for(&settings, plan.smallest - 1, &least) == LINNET_ERROR_MEMORY, "a byte less than the least");
}

/* Where nothing but the device itself is a bound. */
static void check_reserve(void) {
    char number[32];
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan;
    settings.context = 4000;
    settings.device = "cuda";
    expect(plan_for(&settings, 0, &plan) == LINNET_OK, "a plan");
    for (int less = 0; less < 2; less++) {
        const uint64_t needed = plan.smallest + (256 << 20);
        linnet_plan tight;
        snprintf(number, sizeof number, "%llu", (unsigned long long)(needed - (unsigned)less));
        set("LN_EMULATOR_MEMORY", number);
        const linnet_status status = plan_for(&settings, 0, &tight);
        snprintf(number, sizeof number, "at least %llu", (unsigned long long)needed);
        expect(less ? status == LINNET_ERROR_MEMORY && told(number) : status == LINNET_OK, "what stays unplanned");
    }
    set("LN_EMULATOR_MEMORY", NULL);
}

/* What a GPU cannot do, the processor does where it may. */
static void check_either(void) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan;
    settings.context = 100000;
    settings.piece = 1 << 20;
    settings.device = "cuda";
    expect(plan_for(&settings, 0, &plan) == LINNET_OK && plan.piece == 65535, "the longest pieces");
    settings.piece = 0;
    settings.compute = LINNET_COMPUTE_EXACT;
    expect(plan_for(&settings, 0, &plan) == LINNET_ERROR_UNSUPPORTED && told("--exact"), "exact activations");
    settings.device = "auto";
    expect(plan_for(&settings, 0, &plan) == LINNET_OK && !*plan.device, "exact activations, on either");
    settings.compute = LINNET_COMPUTE_FAST;
    settings.precision = LINNET_F32;
    expect(plan_for(&settings, 0, &plan) == LINNET_OK && !*plan.device, "f32 pages, on either");
    settings.device = "cuda";
    expect(plan_for(&settings, 0, &plan) == LINNET_ERROR_UNSUPPORTED && told("not as f32"), "f32 pages");
}

/* `check` with another model: a random one of this shape and type, or, F32, the golden one of this name. */
static void with_model(const char *shape, linnet_type type, void (*check)(void)) {
    const bool random = type != LINNET_F32;
    char path[600] = "/tmp/linnet-refusals-XXXXXX";
    linnet_model *const other = model;
    const int file = random ? mkstemp(path) : -1;
    if (!random) snprintf(path, sizeof path, "%s/../%s", golden, shape);
    expect(!random || (file >= 0 && write_random_model(path, shape, type)), "a random model");
    expect(linnet_model_open(context, path, &model) == LINNET_OK, "another model");
    check();
    linnet_model_close(model);
    model = other;
    if (!random) return;
    close(file);
    unlink(path);
}

/* Without a session that was opened no weights stay on the device, whatever of the host's memory was missing. */
static void check_weights(void) {
    enum { ALL = 1 << 30 };
    linnet_cuda *cuda = NULL;
    linnet_status status = LINNET_ERROR_MEMORY;
    int failed = 0;
    set("LN_EMULATOR_MEMORY", "1073741824");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_OK, "a device");
    for (uint64_t more = 1 << 10; status != LINNET_OK && more < 1 << 26; more += more / 4) {
        linnet_session *session = NULL;
        void *memory = NULL;
        linnet_memory_limit(context, linnet_memory_used(context) + more);
        status = open_session("cuda", &session);
        linnet_memory_limit(context, 0);
        linnet_session_close(session);
        if (status == LINNET_OK) break;
        failed++;
        expect(linnet_cuda_allocate(cuda, ALL - 4096, &memory) == LINNET_OK, "what a session left that was not opened");
        linnet_cuda_release(cuda, memory);
    }
    expect(failed > 3 && status == LINNET_OK, "the host's memory");
    linnet_cuda_close(cuda);
    set("LN_EMULATOR_MEMORY", NULL);
}

/* Where every layer has a window, a longer text takes pages of tables alone. */
static void check_windows(void) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan shorter, longer;
    settings.device = "cuda";
    settings.piece = 64;
    settings.context = 1000;
    expect(plan_for(&settings, 0, &shorter) == LINNET_OK, "a plan with windows");
    settings.context = 100000;
    expect(plan_for(&settings, 0, &longer) == LINNET_OK, "a plan with windows");
    expect(longer.workspace < shorter.workspace + 100000 && longer.pages == shorter.pages, "what nobody gathers");
}

static void check_plans(void) {
    check_least(NULL, LINNET_TYPE_AUTO);
    check_least(NULL, LINNET_BF16);
    check_least("window", LINNET_TYPE_AUTO);
    check_least("h2o", LINNET_TYPE_AUTO);
    check_least("adakv", LINNET_TYPE_AUTO);
    check_least("window:near=q4_0,keys=q4_0,values=q4_0", LINNET_TYPE_AUTO);
    check_reserve();
    check_either();
}

/* The device fails in launch n, for every n until a prompt is read without reaching it. */
static void check_lost(void) {
    char where[8], number[16];
    int failed = 0;
    linnet_status status = LINNET_ERROR_UNSUPPORTED;
    for (int n = 1; n < 4000 && status != LINNET_OK; n = n < 8 ? n + 1 : n * 2) {
        snprintf(number, sizeof number, "%d", n);
        set("LN_EMULATOR_LOST", number);
        status = read_prompt("cuda", where);
        if (status == LINNET_OK) break;
        failed++;
        expect(told("reported an error (cudaError 719)"), "a device that fails");
    }
    expect(failed > 3 && status == LINNET_OK && !strcmp(where, "cuda"), "the last launch");
    set("LN_EMULATOR_LOST", NULL);
    expect(read_prompt("cuda", where) == LINNET_OK && !strcmp(where, "cuda"), "a device that works again");
}

/* ---- going on after it ---- */

enum { PIECE = 20, PROMPT = 2 * PIECE, TOKENS = PROMPT + 3 };

static linnet_session *open_for(const char *policy) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_session *session = NULL;
    settings.context = 800;
    settings.piece = PIECE;
    settings.policy = policy;
    settings.device = "cuda";
    expect(linnet_session_open(model, &settings, &session) == LINNET_OK, policy ? policy : "no policy");
    return session;
}

/* Up to `end`: the prompt, then tokens alone. */
static linnet_status read_on(linnet_session *session, const int32_t *ids, int64_t end) {
    const int64_t at = linnet_session_position(session), prompt = end < PROMPT ? end : PROMPT;
    linnet_status status = at < prompt ? linnet_session_feed(session, ids + at, prompt - at) : LINNET_OK;
    for (int64_t i = at > prompt ? at : prompt; i < end && status == LINNET_OK; i++)
        status = linnet_session_feed(session, ids + i, 1);
    return status;
}

static bool same_logits(linnet_session *a, linnet_session *b) {
    const float *got = linnet_session_logits(a), *want = linnet_session_logits(b);
    return got && want && !memcmp(got, want, (size_t)linnet_model_describe(model).vocabulary * sizeof *got);
}

/* The device fails in a launch behind the first `before` tokens; `right` is a session that read all of them. */
static void check_recovery(linnet_session *right, const int32_t *ids, const char *policy, int64_t before,
                           const char *launch) {
    char what[80];
    linnet_session *failed = open_for(policy);
    snprintf(what, sizeof what, "%s, launch %s after %lld tokens", policy ? policy : "no policy", launch,
             (long long)before);
    expect(read_on(failed, ids, before) == LINNET_OK, what);
    set("LN_EMULATOR_LOST", launch);
    const linnet_status status = read_on(failed, ids, TOKENS);
    set("LN_EMULATOR_LOST", NULL);
    expect(status == LINNET_ERROR_UNSUPPORTED && told("reported an error"), what);
    expect(!linnet_session_logits(failed), "logits of what the device did not do");
    expect(policy ? linnet_session_position(failed) == 0 : linnet_session_position(failed) >= before,
           "what is left after a failure");
    expect(read_on(failed, ids, TOKENS) == LINNET_OK, what);
    expect(linnet_session_usage(failed).kept == linnet_session_usage(right).kept, what);
    expect(same_logits(failed, right), what);
    linnet_session_close(failed);
}

static void check_recoveries(void) {
    /* Within the first piece, within the second; a step that is captured, and one that was. */
    static const struct {
        const char *policy, *launch[2];
        int64_t before[2];
    } cases[] = {{NULL, {"40", "0"}, {0, PROMPT + 1}},
                 {"window:recent=32", {"40", "5"}, {0, PROMPT + 2}},
                 {"snapkv:recent=32,window=16", {"10"}, {0}}};
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 37 % 500;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        linnet_session *right = open_for(cases[i].policy);
        expect(read_on(right, ids, TOKENS) == LINNET_OK, "a session that never fails");
        for (int k = 0; k < 2 && cases[i].launch[k]; k++)
            check_recovery(right, ids, cases[i].policy, cases[i].before[k], cases[i].launch[k]);
        linnet_session_close(right);
    }
}

/* A file that could not be put on the device leaves an empty session, however far it came; without a policy, pages of
 * it may lie there. */
static void check_file(const char *policy) {
    int32_t ids[TOKENS];
    char path[] = "/tmp/linnet-session-XXXXXX", launch[16];
    const int file = mkstemp(path);
    linnet_session *right = open_for(policy), *other = open_for(policy);
    linnet_status status = LINNET_ERROR_UNSUPPORTED;
    int failed = 0;
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(i * 37 % linnet_model_describe(model).vocabulary);
    expect(read_on(right, ids, TOKENS) == LINNET_OK && linnet_session_save(right, path) == LINNET_OK, "a file");
    for (int n = 0; n < 4000; n = 2 * n + 1) {
        expect(read_on(other, ids, 7) == LINNET_OK && linnet_session_logits(other), "a session that is replaced");
        snprintf(launch, sizeof launch, "%d", n);
        set("LN_EMULATOR_LOST", launch);
        status = linnet_session_load(other, path);
        set("LN_EMULATOR_LOST", NULL);
        if (status == LINNET_OK) break;
        failed++;
        expect(linnet_session_position(other) == 0 && linnet_session_usage(other).kept == 0, "what a file left");
        expect(linnet_session_rewind_limit(other) == 0, "how far it was");
        expect(read_on(other, ids, TOKENS) == LINNET_OK && same_logits(other, right), "after half a file");
        expect(linnet_session_save(other, path) == LINNET_OK, "saving after half a file");
        expect(linnet_session_rewind(other, 0) == LINNET_OK, "beginning again");
    }
    expect(failed > 2 && status == LINNET_OK && same_logits(other, right), "the whole file");
    linnet_session_close(right);
    linnet_session_close(other);
    close(file);
    unlink(path);
}

static void check_files(void) {
    check_file(NULL);
    check_file("window:recent=32");
}

int main(int count, char **words) {
    if (count < 2 || count > 3) {
        fprintf(stderr, "usage: %s MODEL [7.5]\n", words[0]);
        return 2;
    }
    if (count == 3) set("LN_EMULATOR_DEVICE", words[2]);
    golden = words[1];
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1; /* the emulator's threads leave little of a small stack */
    if (linnet_context_open(&settings, &context) != LINNET_OK ||
        linnet_model_open(context, words[1], &model) != LINNET_OK) {
        printf("FAILED: %s\n", context ? linnet_last_error(context) : "no context");
        return 1;
    }
    if (count == 3) {
        linnet_cuda *cuda = NULL;
        expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("compute capability"),
               "a device without kernels");
        check_session(LINNET_ERROR_UNSUPPORTED, "compute capability", "a session on a device without kernels");
    } else {
        check_no_device();
        check_memory();
        with_model("mistral-window", LINNET_F32, check_windows);
        with_model("words", LINNET_Q4_0, check_plans);
        check_weights();
        check_lost();
        with_model("pair", LINNET_BF16, check_recoveries);
        with_model("gemma3-nested", LINNET_F32, check_files);
    }
    linnet_model_close(model);
    linnet_context_close(context);
    printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
