/* Owns: `bench attention`: the speed of the attention operator, beside what the machine can do at most, measured in the
 * same run.
 *
 * A work is one row of `kinds` at one type, size and length. Its figure is the median over repetitions, after one that
 * is not counted. Operations are those of the pairs of query and key that are seen: 2 products forward, 5 backward;
 * bytes are those of the cached keys and values, each once. Works that are compared with others (a window with the
 * tiles that it visits, a batch with its sequences one by one) run in turn with them, round by round. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "bench_shared.h"
#include "linnet/bench.h"

const cli_option cli_attention_options[] = {
    CLI_OPTION(0, "works", CLI_TEXT, works, "NAME,NAME", "works whose name contains one of these; all without it"),
    CLI_OPTION(0, "lengths", CLI_INTEGERS, lengths, "N,N", "tokens", .fallback = "4096", .lowest = 1, .highest = 1e7),
    CLI_OPTION(0, "sizes", CLI_INTEGERS, sizes, "N,N", "of keys and values of a head", .fallback = "64,128",
               .lowest = 8, .highest = 576),
    CLI_OPTION(0, "heads", CLI_INTEGER, heads, "N", "heads of queries", .fallback = "32", .lowest = 1, .highest = 4096),
    CLI_OPTION(0, "key-heads", CLI_INTEGER, key_heads, "N", "heads of keys and values; 0: as many", .fallback = "0",
               .highest = 4096),
    CLI_OPTION(0, "seconds", CLI_NUMBER, seconds, "X", "stop repeating a work after this time", .fallback = "3",
               .highest = 1e6),
    {0}};

enum { MOST_ROUNDS = 1000, MOST_JOBS = 24 };

typedef struct bench bench;
typedef struct job job;

/* One thing that is timed. */
struct job {
    linnet_status (*run)(const job *);
    linnet_context *context;
    linnet_attention_plan *plan;
    linnet_attention_tensors tensors;
    void *workspace;
    linnet_cache *cache;
    linnet_attention_cost cost;
    double seconds[MOST_ROUNDS];
    double median, fastest;
};

/* One work, and what it is compared with. */
struct bench {
    cli_engine engine; /* its context alone */
    const cli_arguments *arguments;
    linnet_peaks peaks;
    job jobs[MOST_JOBS];
    int job_count;
    cli_blocks blocks;
    linnet_type type;
    int64_t size, length;
    bool causal;
};

/* ---- making jobs ---- */

static int failed(const bench *b, linnet_status status) {
    return cli_engine_fail(&b->engine, status);
}

/* Uniform, of variance 1. */
static void *random_tensor(bench *b, linnet_type type, int64_t values, uint32_t seed) {
    float *f32 = cli_block(&b->blocks, (double)values * (type == LINNET_BF16 ? 2 : 4));
    uint16_t *bf16 = (uint16_t *)f32;
    if (!f32) return NULL;
    uint32_t state = seed;
    for (int64_t i = 0; i < values; i++) {
        state = state * 1664525 + 1013904223;
        const float value = ((float)(state >> 8) * 0x1p-23f - 1) * 1.7320508f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (type == LINNET_BF16)
            bf16[i] = (uint16_t)(bits >> 16);
        else
            f32[i] = value;
    }
    return f32;
}

static int64_t key_heads(const bench *b) {
    return b->arguments->key_heads ? b->arguments->key_heads : b->arguments->heads;
}

static linnet_attention_settings settings_of(const bench *b, const int64_t *offsets, int64_t sequences) {
    linnet_attention_settings settings = linnet_attention_settings_default();
    settings.type = b->type;
    settings.heads = b->arguments->heads;
    settings.key_value_heads = key_heads(b);
    settings.key_size = b->size;
    settings.sequences = sequences;
    settings.query_offsets = offsets;
    settings.causal = b->causal;
    return settings;
}

/* Queries, keys, values and outputs of `tokens` tokens. */
static int make_tensors(bench *b, int64_t tokens, linnet_attention_tensors *tensors) {
    const int64_t queries = tokens * b->arguments->heads * b->size, keys = tokens * key_heads(b) * b->size;
    *tensors = (linnet_attention_tensors){.size = sizeof *tensors,
                                          .query = {.data = random_tensor(b, b->type, queries, 1)},
                                          .key = {.data = random_tensor(b, b->type, keys, 2)},
                                          .value = {.data = random_tensor(b, b->type, keys, 3)},
                                          .output = {.data = cli_block(&b->blocks, 4.0 * (double)queries)}};
    if (tensors->query.data && tensors->key.data && tensors->value.data && tensors->output.data) return CLI_OK;
    return cli_error("not enough memory for attention over %lld tokens", (long long)tokens);
}

/* The same from a later token on. */
static linnet_attention_tensors tensors_from(const bench *b, const linnet_attention_tensors *tensors, int64_t token) {
    linnet_attention_tensors t = *tensors;
    const int64_t width = b->type == LINNET_BF16 ? 2 : 4;
    const int64_t query = token * b->arguments->heads * b->size, key = token * key_heads(b) * b->size;
    t.query.data = (char *)t.query.data + query * width;
    t.key.data = (char *)t.key.data + key * width;
    t.value.data = (char *)t.value.data + key * width;
    t.output.data = (float *)t.output.data + query;
    return t;
}

static linnet_status run_forward(const job *j) {
    return linnet_attention_forward(j->plan, &j->tensors, j->workspace);
}

static linnet_status run_backward(const job *j) {
    return linnet_attention_backward(j->plan, &j->tensors, j->workspace);
}

static int add_job(bench *b, const linnet_attention_settings *settings, const linnet_attention_tensors *tensors,
                   linnet_status (*run)(const job *)) {
    job *j = &b->jobs[b->job_count];
    memset(j, 0, sizeof *j);
    linnet_status status = linnet_attention_plan_open(b->engine.context, settings, &j->plan);
    if (status != LINNET_OK) return failed(b, status);
    b->job_count++;
    j->run = run;
    j->tensors = *tensors;
    j->cost.size = sizeof j->cost;
    status = linnet_attention_plan_cost(j->plan, &j->cost);
    if (status != LINNET_OK) return failed(b, status);
    const uint64_t bytes = linnet_attention_workspace(j->plan);
    j->workspace = aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64);
    return j->workspace ? CLI_OK : cli_error("not enough memory for a workspace of %s", cli_size(bytes));
}

static void end_work(bench *b) {
    for (int i = 0; i < b->job_count; i++) {
        linnet_cache_close(b->jobs[i].cache);
        linnet_attention_plan_close(b->jobs[i].plan);
        free(b->jobs[i].workspace);
    }
    cli_blocks_free(&b->blocks);
    b->job_count = 0;
}

/* ---- timing ---- */

/* Rounds of all jobs in turn: as many as were asked for; more of short ones, up to a tenth of --seconds; fewer, but
 * one, where they take longer than it. The first counts only where it alone takes that long. */
static int time_jobs(bench *b) {
    const double most = b->arguments->seconds;
    double spent = 0;
    int counted = 0;
    for (int round = 0; counted < MOST_ROUNDS; round++) {
        double sum = 0;
        for (int i = 0; i < b->job_count; i++) {
            job *j = &b->jobs[i];
            const double began = cli_seconds();
            const linnet_status status = j->run(j);
            if (status != LINNET_OK) return failed(b, status);
            j->seconds[counted] = cli_seconds() - began;
            sum += j->seconds[counted];
        }
        if (cli_interrupted()) return CLI_INTERRUPTED;
        if (round == 0 && sum < most) continue;
        spent += sum;
        counted++;
        if (spent >= most || (counted >= b->arguments->repetitions && spent >= 0.1 * most)) break;
    }
    for (int i = 0; i < b->job_count; i++) {
        job *j = &b->jobs[i];
        j->median = cli_median(j->seconds, counted); /* sorts them */
        j->fastest = j->seconds[0];
    }
    return CLI_OK;
}

/* ---- reporting ---- */

typedef struct figure {
    const char *work, *path;
    int64_t key_value_heads;
    double seconds, fastest;
    double operations, bytes; /* of a run; the one that bounds it */
    const char *peak_name;
    double peak;
    double percent; /* of what `of` says; 0: of nothing */
    const char *of;
} figure;

static int report(const bench *b, const figure *f) {
    const bool reads = f->bytes > 0;
    const double rate = f->seconds > 0 ? (reads ? f->bytes : f->operations) / f->seconds : 0;
    const double percent = f->peak > 0 ? 100 * rate / f->peak : 0;
    if (b->arguments->json) {
        json_t *row = json_pack(
            "{ss ss sI sI sI sI si sf sf sf ss sf}", "work", f->work, "path", f->path, "length", (json_int_t)b->length,
            "heads", (json_int_t)b->arguments->heads, "key_value_heads", (json_int_t)f->key_value_heads, "size",
            (json_int_t)b->size, "threads", linnet_threads(b->engine.context), "seconds", f->seconds, "fastest",
            f->fastest, reads ? "gbs" : "gflops", 1e-9 * rate, "peak", f->peak_name, "percent_of_peak", percent);
        if (row && f->of) {
            json_object_set_new(row, "percent", json_real(f->percent));
            json_object_set_new(row, "of", json_string(f->of));
        }
        return cli_json_line(row);
    }
    char compared[64] = "";
    if (f->of) snprintf(compared, sizeof compared, "%.1f %% of %s", f->percent, f->of);
    printf("| %-30s | %-26s | %7lld | %10.6f | %8.1f %-8s | %6.1f %% of %-4s | %-32s |\n", f->work, f->path,
           (long long)b->length, f->seconds, 1e-9 * rate, reads ? "GB/s" : "GFLOP/s", percent, f->peak_name, compared);
    fflush(stdout);
    return CLI_OK;
}

/* The kernel's name, from the plan's text. */
static void kernel_of(const job *j, char *name, size_t bytes) {
    char text[2048];
    linnet_attention_plan_text(j->plan, text, sizeof text);
    text[sizeof text - 1] = 0;
    const char *line = j->run == run_backward ? strstr(text, "\nbackward ") : NULL;
    if (!line) line = strstr(text, "\nkernel ");
    snprintf(name, bytes, "?");
    if (!line) return;
    line += strcspn(line, " ");
    line += strspn(line, " ");
    snprintf(name, bytes, "%.*s", (int)strcspn(line, ", \n"), line);
}

/* The first job's figure against the peak of the units that its kernel uses. */
static int report_job(const bench *b, const char *work, double products, double percent, const char *of) {
    const job *j = &b->jobs[0];
    char path[64];
    kernel_of(j, path, sizeof path);
    const bool bf16 = strstr(path, "bf16") || strstr(path, "__amx");
    const figure f = {.work = work,
                      .path = path,
                      .key_value_heads = key_heads(b),
                      .seconds = j->median,
                      .fastest = j->fastest,
                      .operations = 0.5 * products * j->cost.flops,
                      .peak_name = bf16 ? "bf16" : "f32",
                      .peak = bf16 ? b->peaks.bf16_operations : b->peaks.f32_operations,
                      .percent = percent,
                      .of = of};
    return report(b, &f);
}

/* ---- works ---- */

static int forward(bench *b, const char *work) {
    const int64_t offsets[] = {0, b->length};
    const linnet_attention_settings settings = settings_of(b, offsets, 1);
    linnet_attention_tensors tensors;
    int status = make_tensors(b, b->length, &tensors);
    if (status == CLI_OK) status = add_job(b, &settings, &tensors, run_forward);
    if (status == CLI_OK) status = time_jobs(b);
    return status == CLI_OK ? report_job(b, work, 2, 0, NULL) : status;
}

static int backward(bench *b, const char *work) {
    const int64_t offsets[] = {0, b->length}, heads = b->arguments->heads;
    linnet_attention_settings settings = settings_of(b, offsets, 1);
    settings.backward = true;
    linnet_attention_tensors tensors;
    int status = make_tensors(b, b->length, &tensors);
    if (status != CLI_OK) return status;
    const int64_t queries = b->length * heads * b->size, keys = b->length * key_heads(b) * b->size;
    tensors.log_sum_exp = cli_block(&b->blocks, 4.0 * (double)(b->length * heads));
    tensors.output_gradient.data = random_tensor(b, LINNET_F32, queries, 4);
    tensors.query_gradient.data = cli_block(&b->blocks, 4.0 * (double)queries);
    tensors.key_gradient.data = cli_block(&b->blocks, 4.0 * (double)keys);
    tensors.value_gradient.data = cli_block(&b->blocks, 4.0 * (double)keys);
    if (!tensors.log_sum_exp || !tensors.output_gradient.data || !tensors.query_gradient.data ||
        !tensors.key_gradient.data || !tensors.value_gradient.data)
        return cli_error("not enough memory for gradients of %lld tokens", (long long)b->length);
    status = add_job(b, &settings, &tensors, run_backward);
    if (status != CLI_OK) return status;
    const linnet_status done = run_forward(b->jobs);
    if (done != LINNET_OK) return failed(b, done);
    status = time_jobs(b);
    return status == CLI_OK ? report_job(b, work, 5, 0, NULL) : status;
}

enum { DENSE = 4096 }; /* tokens of the dense work that a sparse one is compared with */

/* The settings' work in percent of the time that its visited tiles would take at the speed of all-to-all attention. */
static int sparse(bench *b, const char *work, const linnet_attention_settings *settings) {
    const int64_t offsets[] = {0, DENSE};
    linnet_attention_settings dense = settings_of(b, offsets, 1);
    dense.causal = false;
    linnet_attention_tensors tensors;
    int status = make_tensors(b, b->length > DENSE ? b->length : DENSE, &tensors);
    if (status == CLI_OK) status = add_job(b, settings, &tensors, run_forward);
    if (status == CLI_OK) status = add_job(b, &dense, &tensors, run_forward);
    if (status == CLI_OK) status = time_jobs(b);
    if (status != CLI_OK) return status;
    const job *j = b->jobs;
    const double tiles = j[0].cost.visited_flops / (j[1].cost.flops / j[1].median);
    return report_job(b, work, 2, 100 * tiles / j[0].median, "the visited tiles alone");
}

static int window(bench *b, const char *work) {
    const int64_t offsets[] = {0, b->length};
    linnet_attention_settings settings = settings_of(b, offsets, 1);
    settings.window = 1024;
    return sparse(b, work, &settings);
}

static int neighbourhood(bench *b, const char *work) {
    enum { SIDE = 128, WINDOW = 32 };
    b->length = SIDE * SIDE;
    const int64_t offsets[] = {0, b->length};
    linnet_attention_settings settings = settings_of(b, offsets, 1);
    settings.neighbourhood = (linnet_neighbourhood){.axes = 2, .extent = {SIDE, SIDE}, .window = {WINDOW, WINDOW}};
    return sparse(b, work, &settings);
}

/* Sequences of length, length / 2, length / 3 and so on; compared with the same one by one. */
static int ragged(bench *b, const char *work) {
    enum { SEQUENCES = 16 };
    int64_t offsets[SEQUENCES + 1] = {0};
    for (int i = 0; i < SEQUENCES; i++) offsets[i + 1] = offsets[i] + (b->length + i) / (i + 1);
    linnet_attention_settings settings = settings_of(b, offsets, SEQUENCES);
    linnet_attention_tensors tensors;
    int status = make_tensors(b, offsets[SEQUENCES], &tensors);
    if (status == CLI_OK) status = add_job(b, &settings, &tensors, run_forward);
    for (int i = 0; status == CLI_OK && i < SEQUENCES; i++) {
        const int64_t alone[] = {0, offsets[i + 1] - offsets[i]};
        const linnet_attention_tensors part = tensors_from(b, &tensors, offsets[i]);
        settings = settings_of(b, alone, 1);
        status = add_job(b, &settings, &part, run_forward);
    }
    if (status == CLI_OK) status = time_jobs(b);
    if (status != CLI_OK) return status;
    double sum = 0;
    for (int i = 1; i <= SEQUENCES; i++) sum += b->jobs[i].median;
    return report_job(b, work, 2, 100 * sum / b->jobs[0].median, "its sequences one by one");
}

/* ---- decoding ---- */

static linnet_status run_cached(const job *j) {
    return linnet_attention_cached(j->plan, &j->tensors, &j->cache, j->workspace);
}

enum { CACHE_BYTES = 256 << 20, APPENDED = 512 };

/* One query over a cache of more bytes than the processor's caches hold. */
static int decode_from(bench *b, const char *work, linnet_type precision, int64_t group) {
    int block, bytes;
    if (!linnet_type_layout(precision, &block, &bytes)) return CLI_OK;
    const int64_t heads = b->arguments->heads / group;
    const double token_bytes = (double)(2 * heads * b->size * bytes) / block;
    linnet_cache_settings kept = linnet_cache_settings_default();
    kept.key_value_heads = heads;
    kept.key_size = kept.value_size = b->size;
    kept.precision = precision;
    kept.capacity = b->length = (int64_t)(CACHE_BYTES / token_bytes) / APPENDED * APPENDED;
    const int64_t offsets[] = {0, 1};
    linnet_attention_settings settings = settings_of(b, offsets, 1);
    settings.key_value_heads = heads;
    settings.causal = true;
    settings.cache_capacity = kept.capacity;
    linnet_attention_tensors tensors;
    int status = make_tensors(b, APPENDED, &tensors);
    if (status == CLI_OK) status = add_job(b, &settings, &tensors, run_cached);
    if (status != CLI_OK) return status;
    job *j = &b->jobs[0];
    linnet_status done = linnet_cache_open(b->engine.context, &kept, &j->cache);
    for (int64_t t = 0; done == LINNET_OK && t < kept.capacity; t += APPENDED)
        done = linnet_cache_append(j->cache, APPENDED, tensors.key, tensors.value);
    if (done == LINNET_ERROR_ARGUMENT || done == LINNET_ERROR_UNSUPPORTED) {
        cli_note("%s is left out: %s", work, linnet_last_error(b->engine.context));
        return CLI_OK;
    }
    if (done != LINNET_OK) return failed(b, done);
    status = time_jobs(b);
    char path[64];
    kernel_of(j, path, sizeof path);
    const figure f = {.work = work,
                      .path = path,
                      .key_value_heads = heads,
                      .seconds = j->median,
                      .fastest = j->fastest,
                      .bytes = token_bytes * (double)kept.capacity,
                      .peak_name = "read",
                      .peak = b->peaks.read_bytes};
    return status == CLI_OK ? report(b, &f) : status;
}

static int decode(bench *b) {
    static const linnet_type types[] = {LINNET_F32, LINNET_BF16, LINNET_F16, LINNET_Q8_0, LINNET_Q4_0,
                                        LINNET_Q5,  LINNET_Q4,   LINNET_Q3,  LINNET_Q2};
    static const int64_t groups[] = {1, 4, 8};
    int status = CLI_OK;
    b->type = LINNET_F32;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int s = 0; s < b->arguments->sizes.count; s++)
            for (size_t g = 0; status == CLI_OK && g < sizeof groups / sizeof *groups; g++) {
                char work[96];
                b->size = b->arguments->sizes.value[s];
                snprintf(work, sizeof work, "decode_%s_d%lld_g%lld", linnet_type_name(types[t]), (long long)b->size,
                         (long long)groups[g]);
                if (!cli_wanted(work, b->arguments->works) || b->arguments->heads % groups[g]) continue;
                status = decode_from(b, work, types[t], groups[g]);
                end_work(b);
            }
    return status;
}

/* ---- softmax ---- */

enum { ROWS = 32, ROW = 1 << 20 };

static linnet_status run_softmax(const job *j) {
    return linnet_softmax(j->context, ROWS, ROW, j->tensors.query.data, 0, j->tensors.output.data, 0, NULL);
}

/* Rows of 2^20; in two passes it reads them twice and writes them once. */
static int softmax(bench *b) {
    static const char work[] = "softmax_f32";
    if (!cli_wanted(work, b->arguments->works)) return CLI_OK;
    job *j = &b->jobs[b->job_count++];
    *j = (job){.run = run_softmax, .context = b->engine.context};
    j->tensors.query.data = random_tensor(b, LINNET_F32, (int64_t)ROWS * ROW, 1);
    j->tensors.output.data = cli_block(&b->blocks, 4.0 * ROWS * ROW);
    int status = j->tensors.query.data && j->tensors.output.data ? CLI_OK : cli_error("not enough memory for rows");
    b->length = ROW;
    b->size = 1;
    if (status == CLI_OK) status = time_jobs(b);
    const figure f = {.work = work,
                      .path = "two_passes",
                      .key_value_heads = key_heads(b),
                      .seconds = j->median,
                      .fastest = j->fastest,
                      .bytes = 12.0 * ROWS * ROW,
                      .peak_name = "read",
                      .peak = b->peaks.read_bytes};
    if (status == CLI_OK) status = report(b, &f);
    end_work(b);
    return status;
}

/* ---- the table ---- */

static const struct kind {
    const char *name, *ending;
    int (*measure)(bench *, const char *work);
    bool causal;
    int64_t length; /* 0: those of --lengths */
} kinds[] = {
    {"forward", "causal", forward, true, 0},   {"forward", "full", forward, false, 0},
    {"backward", "causal", backward, true, 0}, {"ragged", "causal", ragged, true, 0},
    {"window", "w1024", window, true, 32768},  {"neighbourhood", "128x128_w32x32", neighbourhood, false, 128 * 128},
};

static int run_kind(bench *b, const struct kind *kind) {
    static const linnet_type types[] = {LINNET_F32, LINNET_BF16};
    const cli_arguments *arguments = b->arguments;
    int status = CLI_OK;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int s = 0; s < arguments->sizes.count; s++) {
            char work[96];
            b->type = types[t];
            b->size = arguments->sizes.value[s];
            snprintf(work, sizeof work, "%s_%s_d%lld_%s", kind->name, linnet_type_name(b->type), (long long)b->size,
                     kind->ending);
            if (!cli_wanted(work, arguments->works)) continue;
            for (int l = 0; status == CLI_OK && l < (kind->length ? 1 : arguments->lengths.count); l++) {
                b->causal = kind->causal;
                b->length = kind->length ? kind->length : arguments->lengths.value[l];
                status = kind->measure(b, work);
                end_work(b);
            }
        }
    return status;
}

static int report_peaks(const bench *b) {
    const linnet_peaks *p = &b->peaks;
    const char *cpu = linnet_cpu(b->engine.context);
    const int threads = linnet_threads(b->engine.context);
    if (!b->arguments->json) {
        printf("attention of %lld heads on %lld, %d threads, %s, linnet %s\n\n", (long long)b->arguments->heads,
               (long long)key_heads(b), threads, cpu, linnet_version());
        printf("peaks: %.1f GB/s read; %.0f (f32), %.0f (bf16) GFLOP/s\n\n", 1e-9 * p->read_bytes,
               1e-9 * p->f32_operations, 1e-9 * p->bf16_operations);
        printf("| %-30s | %-26s | %7s | %10s | %17s | %16s | %-32s |\n| :-- | :-- | --: | --: | --: | --: | :-- |\n",
               "work", "kernel", "length", "seconds", "speed", "of the peak", "compared");
        fflush(stdout);
        return CLI_OK;
    }
    const struct {
        const char *work, *unit;
        double value;
    } rows[] = {{"peak_f32", "gflops", p->f32_operations},
                {"peak_bf16", "gflops", p->bf16_operations},
                {"peak_read", "gbs", p->read_bytes}};
    int status = CLI_OK;
    for (size_t i = 0; status == CLI_OK && i < sizeof rows / sizeof *rows; i++)
        status = cli_json_line(json_pack("{ss ss si sf}", "work", rows[i].work, "path", cpu, "threads", threads,
                                         rows[i].unit, 1e-9 * rows[i].value));
    return status;
}

int cli_bench_attention(const cli_arguments *arguments) {
    static bench b;
    b.arguments = arguments;
    int status = cli_context_open(arguments, &b.engine.context);
    if (status != CLI_OK) return status;
    b.peaks.size = sizeof b.peaks;
    const linnet_status measured = linnet_measure_peaks(b.engine.context, &b.peaks);
    status = measured == LINNET_OK ? report_peaks(&b) : failed(&b, measured);
    for (size_t i = 0; status == CLI_OK && i < sizeof kinds / sizeof *kinds; i++) status = run_kind(&b, &kinds[i]);
    if (status == CLI_OK) status = decode(&b);
    if (status == CLI_OK) status = softmax(&b);
    cli_engine_close(&b.engine);
    return status;
}
