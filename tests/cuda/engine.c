/* Models on a device against the same models on the processor: logits of prompts and of single tokens, texts, going
 * back, forks, budgets, and what is refused.
 *
 *     cuda_engine_check FOLDER [NAME]                      golden models that a device runs, in three formats
 *     cuda_engine_check MODEL [TOKENS [PROMPT [alone]]]    the same text at temperature 0, and the time it takes
 *     cuda_engine_check pages                              a random model, with keys and values in each precision
 *     cuda_engine_check policies [POLICY [SHAPE]]          a random model or a folder, with memory under policies
 *     cuda_engine_check make FILE tiny|pair|odd|words|1b|8b q4_0|q8_0|bf16
 *
 * The processor computes exactly, with keys and values in bf16 or f16 as the device has them. The device rounds what
 * goes into products to bf16 (2^-9 each), and weights of prompts of Q8_0 and Q4_0 once more; the logits may differ by
 * TOLERANCE of their standard deviation, those of a token by ROW: of some tokens random models make much of little.
 * Their logits are nearly equal too, so that texts are compared token by token, each after the processor's tokens,
 * where it is sure of its choice. */
#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "generate/session.h"
#include "memory/pages_inside.h"
#include "random_model.h"

int check_count, check_failures;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void must(linnet_context *context, linnet_status status, const char *what) {
    if (status == LINNET_OK) return;
    printf("FAILED: %s: %s\n", what, linnet_last_error(context));
    exit(1);
}

static linnet_session *open_session(linnet_context *context, linnet_model *model, const char *device,
                                    linnet_type precision, int64_t length, int64_t piece) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_session *session;
    settings.context = length;
    settings.piece = piece;
    settings.precision = precision;
    if (!strcmp(device, "cpu")) settings.compute = LINNET_COMPUTE_EXACT;
    settings.device = device;
    must(context, linnet_session_open(model, &settings, &session), device);
    return session;
}

/* ---- logits ---- */

linnet_status collect(void *user, int64_t first, int64_t count, const float *logits) {
    collected *to = user;
    memcpy(to->rows + first * to->vocabulary, logits, (size_t)(count * to->vocabulary) * sizeof *logits);
    return LINNET_OK;
}

static double deviation_of(const float *x, int64_t n) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i], squares += (double)x[i] * (double)x[i];
    return sqrt(squares / (double)n - sum / (double)n * (sum / (double)n)) + 1e-30;
}

/* The root of the mean square of the difference, in deviations. */
static double distance(const float *got, const float *want, int64_t n) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)got[i] - (double)want[i];
        squares += d * d;
    }
    const double away = sqrt(squares / (double)n) / deviation_of(want, n);
    return isnan(away) ? INFINITY : away;
}

static int32_t most_likely(const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* ---- one model ---- */

enum { PROMPT = 77, SINGLE = 9, CONTEXT = 96 };

void compare(pair *p, const float *got, const float *want, int64_t rows, const char *what) {
    if (!got || !want) {
        EXPECT(false, "%s, %s: no logits: %s", p->name, what, linnet_last_error(p->context));
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        const double away = distance(got + i * p->vocabulary, want + i * p->vocabulary, p->vocabulary);
        if (away > p->worst) p->worst = away;
        p->squares += away * away;
        p->rows++;
        EXPECT(away <= (p->row > 0 ? p->row : ROW), "%s, %s, row %lld: off by %.3g deviations", p->name, what,
               (long long)i, away);
    }
}

/* Whether the device chose what the processor did, where that is sure. */
static void compare_choice(pair *p, const float *want) {
    linnet_sampler_settings settings = linnet_sampler_settings_default();
    linnet_sampler *sampler;
    int32_t on_device, here;
    settings.temperature = 0;
    must(p->context, linnet_sampler_open(p->model, &settings, &sampler), "a sampler");
    must(p->context, linnet_sample(sampler, p->device, &on_device), "sampling on the device");
    must(p->context, linnet_sample(sampler, p->host, &here), "sampling");
    EXPECT(on_device >= 0 && on_device < p->vocabulary, "%s: the device chose token %d", p->name, on_device);
    const double margin = (double)want[here] - (double)want[on_device];
    EXPECT(margin <= 2 * ROW * deviation_of(want, p->vocabulary),
           "%s: the device chose token %d, the processor %d, by %.3g deviations", p->name, on_device, here,
           margin / deviation_of(want, p->vocabulary));
    /* Logits that were fetched must agree with the choice that was not. */
    const float *logits = linnet_session_logits(p->device);
    EXPECT(logits && most_likely(logits, p->vocabulary) == on_device, "%s: choice and logits differ", p->name);
    linnet_sampler_close(sampler);
}

static void check_back(pair *p, const int32_t *ids) {
    const size_t bytes = (size_t)p->vocabulary * sizeof(float);
    float *before = malloc(bytes);
    const float *now = linnet_session_logits(p->device);
    linnet_session *fork = NULL;
    const int64_t last = PROMPT + SINGLE - 1;
    if (now) memcpy(before, now, bytes);
    must(p->context, linnet_session_rewind(p->device, last), "going back");
    must(p->context, linnet_session_fork(p->device, &fork), "forking");
    must(p->context, linnet_session_feed(fork, ids + last, 1), "feeding the fork");
    must(p->context, linnet_session_feed(p->device, ids + last, 1), "feeding again");
    now = linnet_session_logits(p->device);
    EXPECT(now && !memcmp(before, now, bytes), "%s: going back changed bits", p->name);
    now = linnet_session_logits(fork);
    EXPECT(now && !memcmp(before, now, bytes), "%s: a fork has other bits", p->name);
    must(p->context, linnet_session_feed(fork, ids, 1), "feeding the fork");
    now = linnet_session_logits(p->device);
    EXPECT(now && !memcmp(before, now, bytes), "%s: a fork changed what it came from", p->name);
    linnet_session_close(fork);
    free(before);
}

/* A session that is saved goes on with the same bits in another, and on the processor. */
static void check_file_of(pair *p, const int32_t *ids, linnet_type precision, int64_t piece) {
    const size_t bytes = (size_t)p->vocabulary * sizeof(float);
    char path[] = "/tmp/linnet-session-XXXXXX";
    close(mkstemp(path));
    linnet_session *other = open_session(p->context, p->model, "cuda", precision, CONTEXT, piece),
                   *host = open_session(p->context, p->model, "cpu", precision, CONTEXT, piece);
    float *before = malloc(bytes);
    must(p->context, linnet_session_save(p->device, path), "saving");
    must(p->context, linnet_session_load(other, path), "loading");
    must(p->context, linnet_session_load(host, path), "loading on the processor");
    EXPECT(linnet_session_position(other) == linnet_session_position(p->device), "%s: the file holds other tokens",
           p->name);
    memcpy(before, linnet_session_logits(p->device), bytes);
    EXPECT(linnet_session_logits(other) && !memcmp(before, linnet_session_logits(other), bytes),
           "%s: logits of the file differ", p->name);
    must(p->context, linnet_session_feed(p->device, ids, 1), "feeding on");
    must(p->context, linnet_session_feed(other, ids, 1), "feeding what was loaded");
    must(p->context, linnet_session_feed(host, ids, 1), "feeding what was loaded");
    memcpy(before, linnet_session_logits(p->device), bytes);
    EXPECT(!memcmp(before, linnet_session_logits(other), bytes), "%s: what was loaded goes on with other bits",
           p->name);
    compare(p, before, linnet_session_logits(host), 1, "from a file");
    /* And back, from the processor. */
    must(p->context, linnet_session_save(host, path), "saving on the processor");
    must(p->context, linnet_session_load(other, path), "loading from the processor");
    must(p->context, linnet_session_feed(host, ids, 1), "feeding on");
    must(p->context, linnet_session_feed(other, ids, 1), "feeding what was loaded");
    compare(p, linnet_session_logits(other), linnet_session_logits(host), 1, "from a file of the processor");
    linnet_session_close(other);
    linnet_session_close(host);
    unlink(path);
    free(before);
}

/* What a file of short pieces lost of layers with a window is lost in a session of long ones too, and in its file. */
static void check_limit(pair *p) {
    int32_t ids[PROMPT];
    char path[] = "/tmp/linnet-session-XXXXXX";
    close(mkstemp(path));
    linnet_session *saver = open_session(p->context, p->model, "cpu", LINNET_BF16, CONTEXT, 8);
    p->host = open_session(p->context, p->model, "cpu", LINNET_BF16, CONTEXT, 64);
    p->device = open_session(p->context, p->model, "cuda", LINNET_BF16, CONTEXT, 64);
    for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)(rand() % p->vocabulary);
    must(p->context, linnet_session_feed(saver, ids, PROMPT), "the prompt");
    must(p->context, linnet_session_save(saver, path), "saving");
    must(p->context, linnet_session_load(p->device, path), "loading");
    must(p->context, linnet_session_save(p->device, path), "saving on the device");
    must(p->context, linnet_session_load(p->host, path), "loading on the processor");
    const int64_t limit = linnet_session_rewind_limit(saver);
    EXPECT(linnet_session_rewind_limit(p->device) == limit && linnet_session_rewind_limit(p->host) == limit,
           "%s: a file goes back to %lld, what loaded it to %lld, what loaded that to %lld", p->name, (long long)limit,
           (long long)linnet_session_rewind_limit(p->device), (long long)linnet_session_rewind_limit(p->host));
    must(p->context, linnet_session_rewind(saver, limit), "going back");
    must(p->context, linnet_session_rewind(p->device, limit), "going back on the device");
    must(p->context, linnet_session_feed(saver, ids, 1), "a token");
    must(p->context, linnet_session_feed(p->device, ids, 1), "a token on the device");
    compare(p, linnet_session_logits(p->device), linnet_session_logits(saver), 1, "back in a file");
    linnet_session_close(saver);
    linnet_session_close(p->host);
    linnet_session_close(p->device);
    unlink(path);
}

static void run_pair(pair *p, linnet_type precision, int64_t piece) {
    int32_t ids[PROMPT + SINGLE];
    float *got = malloc((size_t)(PROMPT * p->vocabulary) * sizeof *got),
          *want = malloc((size_t)(PROMPT * p->vocabulary) * sizeof *want);
    collected here = {want, p->vocabulary}, there = {got, p->vocabulary};
    for (int i = 0; i < PROMPT + SINGLE; i++) ids[i] = (int32_t)(rand() % p->vocabulary);
    p->host = open_session(p->context, p->model, "cpu", precision, CONTEXT, piece);
    p->device = open_session(p->context, p->model, "cuda", precision, CONTEXT, piece);
    must(p->context, linnet_session_feed_logits(p->host, ids, PROMPT, collect, &here), "the prompt");
    must(p->context, linnet_session_feed_logits(p->device, ids, PROMPT, collect, &there), "the prompt on the device");
    compare(p, got, want, PROMPT, "a prompt");
    for (int i = PROMPT; i < PROMPT + SINGLE; i++) {
        must(p->context, linnet_session_feed(p->host, ids + i, 1), "a token");
        must(p->context, linnet_session_feed(p->device, ids + i, 1), "a token on the device");
        compare_choice(p, linnet_session_logits(p->host));
        compare(p, linnet_session_logits(p->device), linnet_session_logits(p->host), 1, "a token");
    }
    check_back(p, ids);
    check_file_of(p, ids, precision, piece);
    linnet_session_close(p->device);
    linnet_session_close(p->host);
    free(got);
    free(want);
}

void tell(const pair *p) {
    const double mean = sqrt(p->squares / (double)p->rows);
    EXPECT(mean <= (p->tolerance > 0 ? p->tolerance : TOLERANCE), "%s: off by %.3g deviations", p->name, mean);
    printf("%-28s off by %.2g deviations, %.2g at most\n", p->name, mean, p->worst);
}

static void check_budget(pair *p) {
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan, tight;
    settings.context = CONTEXT;
    settings.device = "cuda";
    settings.precision = LINNET_BF16;
    must(p->context, linnet_plan_session(p->model, &settings, &plan), "a plan on the device");
    EXPECT(!strncmp(plan.device, "cuda: ", 6), "%s: the plan is for '%s'", p->name, plan.device);
    EXPECT(plan.total == plan.model + plan.pages + plan.workspace, "%s: the plan does not add up", p->name);
    settings.piece = 8;
    settings.memory = plan.total - 1;
    must(p->context, linnet_plan_session(p->model, &settings, &tight), "a plan of small pieces");
    EXPECT(tight.total <= settings.memory, "%s: a plan exceeds its budget", p->name);
    settings.memory = tight.total - 1;
    EXPECT(linnet_plan_session(p->model, &settings, &tight) == LINNET_ERROR_MEMORY, "%s: a budget too small is taken",
           p->name);
    settings.memory = 0;
    settings.policy = "quest";
    EXPECT(linnet_plan_session(p->model, &settings, &tight) == LINNET_ERROR_UNSUPPORTED, "%s: a policy is taken",
           p->name);
    settings.policy = NULL;
    settings.device = "abacus";
    EXPECT(linnet_plan_session(p->model, &settings, &tight) == LINNET_ERROR_ARGUMENT, "%s: any device is taken",
           p->name);
}

/* false: this model does not run on a device, and a sentence said so. */
static bool check_file(linnet_context *context, const char *path, const char *name) {
    pair p = {.context = context, .name = name};
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan;
    must(context, linnet_model_open(context, path, &p.model), path);
    p.vocabulary = linnet_model_describe(p.model).vocabulary;
    settings.context = CONTEXT;
    settings.device = "cuda";
    const linnet_status status = linnet_plan_session(p.model, &settings, &plan);
    if (status == LINNET_OK) {
        run_pair(&p, LINNET_BF16, 64);
        run_pair(&p, LINNET_F16, 13);
        check_limit(&p);
        check_budget(&p);
        tell(&p);
    } else {
        EXPECT(status == LINNET_ERROR_UNSUPPORTED, "%s: %s", name, linnet_last_error(context));
        settings.device = "cuda,cpu";
        EXPECT(linnet_plan_session(p.model, &settings, &plan) == LINNET_OK && !*plan.device,
               "%s: the processor is not taken where it was asked for", name);
    }
    linnet_model_close(p.model);
    return status == LINNET_OK;
}

/* ---- the golden models ---- */

static void check_folder(linnet_context *context, const char *folder, const char *only) {
    static const struct {
        linnet_type type;
        const char *name;
    } types[] = {{LINNET_BF16, "bf16"}, {LINNET_Q8_0, "q8_0"}, {LINNET_Q4_0, "q4_0"}};
    char temporary[] = "/tmp/linnet-engine-XXXXXX", path[600], name[300];
    int models = 0, refused = 0;
    struct dirent *entry;
    DIR *directory = opendir(folder);
    if (!directory || !mkdtemp(temporary)) {
        printf("FAILED: %s cannot be read\n", folder);
        exit(1);
    }
    snprintf(path, sizeof path, "%s/model.gguf", temporary);
    while ((entry = readdir(directory))) {
        if (entry->d_name[0] == '.' || (only && strcmp(only, entry->d_name) != 0)) continue;
        for (int i = 0; i < 3; i++) {
            char source[600];
            linnet_convert_settings settings = linnet_convert_settings_default();
            settings.type = types[i].type;
            snprintf(source, sizeof source, "%s/%.250s", folder, entry->d_name);
            snprintf(name, sizeof name, "%.200s in %s", entry->d_name, types[i].name);
            must(context, linnet_convert(context, source, path, &settings), source);
            const bool runs = check_file(context, path, name);
            models += runs;
            refused += !runs;
            if (!runs) break;
        }
    }
    closedir(directory);
    unlink(path);
    rmdir(temporary);
    printf("%d models in a format, %d models refused with a sentence\n", models, refused);
}

/* ---- one model, its text ---- */

typedef struct written {
    int32_t *ids;
    int64_t count;
    double prompt_seconds, seconds;
} written;

static written generate(linnet_context *context, linnet_model *model, const char *device, const int32_t *prompt,
                        int64_t count, int64_t tokens) {
    linnet_session *session = open_session(context, model, device, LINNET_BF16, count + tokens, 0);
    linnet_sampler_settings settings = linnet_sampler_settings_default();
    linnet_sampler *sampler;
    written made = {malloc((size_t)tokens * sizeof(int32_t)), 0, 0, 0};
    settings.temperature = 0;
    must(context, linnet_sampler_open(model, &settings, &sampler), "a sampler");
    double began = seconds();
    must(context, linnet_session_feed(session, prompt, count), "the prompt");
    must(context, linnet_sample(sampler, session, &made.ids[made.count++]), "sampling");
    made.prompt_seconds = seconds() - began;
    began = seconds();
    while (made.count < tokens) {
        must(context, linnet_session_feed(session, &made.ids[made.count - 1], 1), "a token");
        must(context, linnet_sample(sampler, session, &made.ids[made.count++]), "sampling");
    }
    made.seconds = seconds() - began;
    linnet_sampler_close(sampler);
    linnet_session_close(session);
    return made;
}

static void print_speed(const char *what, const written *w, int64_t prompt) {
    printf("%-8s prompt of %lld tokens in %.3f s (%.0f tokens/s), then %.1f tokens/s\n", what, (long long)prompt,
           w->prompt_seconds, (double)prompt / w->prompt_seconds, (double)(w->count - 1) / w->seconds);
}

static void check_text(linnet_context *context, const char *path, int64_t tokens, int64_t count, bool alone) {
    linnet_model *model;
    must(context, linnet_model_open(context, path, &model), path);
    const linnet_model_info info = linnet_model_describe(model);
    int32_t *prompt = malloc((size_t)count * sizeof *prompt);
    static const char text[] = "Once upon a time there was a little bird that wanted to see the sea. ";
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) prompt[i] = (int32_t)(rand() % info.vocabulary);
    const linnet_tokenizer *tokenizer = linnet_model_tokenizer(model);
    if (tokenizer) linnet_tokenize(tokenizer, text, sizeof text - 1, 0, prompt, count, &found);
    for (int64_t i = found; found > 0 && i < count; i++) prompt[i] = prompt[i % found];
    written there = generate(context, model, "cuda", prompt, count, tokens);
    print_speed("device", &there, count);
    if (!alone) {
        written here = generate(context, model, "cpu", prompt, count, tokens);
        print_speed("cpu", &here, count);
        int64_t same = 0;
        while (same < tokens && here.ids[same] == there.ids[same]) same++;
        printf("%lld of %lld tokens are the same\n", (long long)same, (long long)tokens);
        EXPECT(same == tokens, "the texts part at token %lld", (long long)same);
        free(here.ids);
    }
    free(there.ids);
    free(prompt);
    linnet_model_close(model);
}

/* ---- each precision of pages ---- */

/* Pages pass through the activations, whose columns up to whole tiles must be zeros again. */
static void check_columns(linnet_context *context) {
    enum { READ = 420, ROOM = 500, FILES = 4 };
    char path[] = "/tmp/linnet-columns-XXXXXX", saved[] = "/tmp/linnet-session-XXXXXX";
    pair p = {.context = context, .name = "columns of no whole tile"};
    int32_t ids[READ];
    close(mkstemp(saved));
    const int file = mkstemp(path);
    if (file < 0 || !write_random_model(path, "odd", LINNET_BF16)) {
        printf("FAILED: %s cannot be written\n", path);
        exit(1);
    }
    close(file);
    must(context, linnet_model_open(context, path, &p.model), path);
    p.vocabulary = linnet_model_describe(p.model).vocabulary;
    p.host = open_session(context, p.model, "cpu", LINNET_Q8_0, ROOM, 16);
    p.device = open_session(context, p.model, "cuda", LINNET_Q8_0, ROOM, 16);
    for (int i = 0; i < FILES; i++) {
        for (int k = 0; k < READ; k++) ids[k] = (int32_t)((k * 37 + k * k * i) % p.vocabulary);
        must(context, linnet_session_rewind(p.host, 0), "beginning again");
        must(context, linnet_session_feed(p.host, ids, READ), "a text");
        must(context, linnet_session_save(p.host, saved), "saving");
        must(context, linnet_session_load(p.device, saved), "loading");
        must(context, linnet_session_feed(p.host, ids, 32), "what follows");
        must(context, linnet_session_feed(p.device, ids, 32), "what follows on the device");
        compare(&p, linnet_session_logits(p.device), linnet_session_logits(p.host), 1, "after a file");
    }
    linnet_session_close(p.host);
    linnet_session_close(p.device);
    linnet_model_close(p.model);
    unlink(path);
    unlink(saved);
}

/* Heads of 128, for which there are kernels of every format. */
static void check_pages(linnet_context *context) {
    static const linnet_type precisions[] = {LINNET_BF16, LINNET_F16, LINNET_Q8_0, LINNET_Q4_0};
    char path[] = "/tmp/linnet-pages-XXXXXX", name[64];
    const int file = mkstemp(path);
    if (file < 0 || !write_random_model(path, "tiny", LINNET_Q8_0)) {
        printf("FAILED: %s cannot be written\n", path);
        exit(1);
    }
    close(file);
    for (int i = 0; i < 4; i++) {
        pair p = {.context = context, .name = name};
        snprintf(name, sizeof name, "random, pages in %s", linnet_type_name(precisions[i]));
        must(context, linnet_model_open(context, path, &p.model), path);
        p.vocabulary = linnet_model_describe(p.model).vocabulary;
        /* What lies near the edge between two codes goes either way. */
        if (precisions[i] == LINNET_Q4_0) p.tolerance = 3 * TOLERANCE;
        run_pair(&p, precisions[i], 48);
        tell(&p);
        linnet_model_close(p.model);
    }
    unlink(path);
    check_columns(context);
}

static bool is_folder_of_models(const char *path) {
    char inside[600];
    snprintf(inside, sizeof inside, "%s/config.json", path);
    DIR *directory = opendir(path);
    if (directory) closedir(directory);
    return directory && access(inside, R_OK) != 0;
}

int main(int count, char **words) {
    linnet_context_settings settings = linnet_context_settings_default();
    linnet_context *context;
    if (count < 2) {
        fprintf(stderr,
                "usage: %s FOLDER [NAME] | MODEL [TOKENS [PROMPT [alone]]] | pages | policies | make FILE SHAPE TYPE\n",
                words[0]);
        return 2;
    }
    if (!strcmp(words[1], "make") && count == 5)
        return !write_random_model(words[2], words[3], linnet_type_of_name(words[4]));
    const unsigned seed = (unsigned)time(NULL) ^ (unsigned)getpid();
    printf("seed %u\n", seed);
    srand(seed);
    if (linnet_context_open(&settings, &context) != LINNET_OK) {
        /* The emulator's threads leave little of a small stack. */
        linnet_context_close(context);
        settings.threads = 1;
        must(context, linnet_context_open(&settings, &context), "opening a context");
    }
    if (!strcmp(words[1], "pages"))
        check_pages(context);
    else if (!strcmp(words[1], "policies"))
        check_policies(context, count > 2 ? words[2] : NULL, count > 3 ? words[3] : "pair");
    else if (is_folder_of_models(words[1]))
        check_folder(context, words[1], count > 2 ? words[2] : NULL);
    else
        check_text(context, words[1], count > 2 ? atoll(words[2]) : 64, count > 3 ? atoll(words[3]) : 100, count > 4);
    linnet_context_close(context);
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures != 0;
}
