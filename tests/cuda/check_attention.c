/* Attention against float64. */
#include "oracle_attention.h"

static const attention_work WORKS[] = {
    {"one token", 2, 2, 128, 128, {1}, {1}, .float32 = true},
    {"63 full", 4, 4, 128, 128, {63}, {63}, .float32 = true},
    {"127 causal", 4, 4, 128, 128, {127}, {127}, .causal = true},
    {"129 causal, groups", 8, 2, 128, 128, {129}, {129}, .causal = true},
    {"300 causal, large scores", 2, 2, 128, 128, {300}, {300}, .causal = true, .stretch = 8},
    {"1000 causal", 4, 4, 128, 128, {1000}, {1000}, .causal = true, .layout = PADDED},
    {"1000 full", 4, 1, 128, 128, {1000}, {1000}, .layout = HEAD_MAJOR},
    {"2048 full", 4, 4, 128, 128, {2048}, {2048}, .causal = false},
    {"4096 causal", 8, 8, 128, 128, {4096}, {4096}, .causal = true},
    {"4099 full, large scores", 2, 2, 128, 128, {4099}, {4099}, .stretch = 8},
    {"3001 causal, large scores", 2, 2, 128, 128, {3001}, {3001}, .causal = true, .stretch = 8},
    {"ragged causal", 4, 2, 128, 128, {1, 77, 512, 129, 1000}, {1, 77, 512, 129, 1000}, .causal = true},
    {"ragged full, infinite neighbours",
     4,
     2,
     128,
     128,
     {33, 70, 200, 5, 300},
     {200, 90, 70, 333, 300},
     .infinite = true},
    {"queries at the end", 4, 2, 128, 128, {17, 128, 300}, {900, 128, 1111}, .causal = true},
    {"more queries than keys", 4, 2, 128, 128, {300, 10}, {100, 200}, .causal = true, .float32 = true},
    {"no keys", 4, 2, 128, 128, {50, 70}, {0, 100}, .float32 = true},
    {"window causal", 4, 2, 128, 128, {1500}, {1500}, .causal = true, .window = 200},
    {"window 1", 2, 2, 128, 128, {300}, {300}, .causal = true, .window = 1},
    {"window both sides", 4, 2, 128, 128, {1500, 100}, {1500, 400}, .causal = false, .window = 130},
    {"cap", 4, 2, 128, 128, {700}, {700}, .causal = true, .cap = 30, .stretch = 8},
    {"cap and window", 4, 2, 128, 128, {700}, {900}, .causal = true, .window = 300, .cap = 5, .stretch = 3},
    {"d64 1000 causal", 6, 2, 64, 64, {1000}, {1000}, .causal = true},
    {"d64 ragged full", 6, 2, 64, 64, {191, 193, 65, 1}, {191, 193, 65, 400}, .layout = PADDED, .infinite = true},
    {"d64 4096 full", 4, 4, 64, 64, {4096}, {4096}, .float32 = true},
    {"d64 window", 4, 4, 64, 64, {1300}, {1300}, .causal = true, .window = 333},
    {"d64 cap", 4, 4, 64, 64, {777}, {777}, .causal = false, .cap = 20, .stretch = 4},
    {"d256 1000 causal", 4, 2, 256, 256, {1000}, {1000}, .causal = true},
    {"d256 2000 full", 2, 2, 256, 256, {2000}, {2000}, .causal = false},
    {"d256 window cap", 2, 2, 256, 256, {700}, {700}, .causal = true, .window = 150, .cap = 25},
    {"d96 1000 causal", 4, 2, 96, 96, {1000}, {1000}, .causal = true},
    {"d96 2000 full", 2, 2, 96, 96, {2000}, {2000}, .layout = HEAD_MAJOR},
    {"d96 ragged window", 2, 1, 96, 96, {500, 129}, {500, 300}, .causal = true, .window = 100},
    {"d192/128 1000 causal", 4, 4, 192, 128, {1000}, {1000}, .causal = true},
    {"d192/128 ragged full", 4, 4, 192, 128, {300, 80}, {300, 500}, .causal = false},
    {"d192 1000 causal", 4, 2, 192, 192, {1000}, {1000}, .causal = true},
    {"d192 cap", 2, 2, 192, 192, {500}, {500}, .causal = false, .cap = 30},
    {"f16 300 causal", 4, 2, 128, 128, {300}, {300}, .causal = true, .half = true},
    {"f16 d64 ragged window", 2, 1, 64, 64, {100, 200}, {150, 200}, .causal = true, .window = 70, .half = true},
    {"f16 d96 full, float32", 2, 2, 96, 96, {200}, {260}, .half = true, .float32 = true},
    {"f16 d256 cap", 2, 2, 256, 256, {150}, {150}, .causal = true, .cap = 20, .half = true},
    {"f16 d192/128", 2, 2, 192, 128, {130}, {190}, .half = true},
    {"sinks causal", 4, 2, 128, 128, {200}, {200}, .causal = true, .sinks = true},
    {"sinks, some rows see no key", 2, 1, 64, 64, {150}, {90}, .causal = true, .sinks = true, .window = 40},
    {"sinks far above the scores", 2, 2, 96, 96, {70}, {70}, .causal = true, .sinks = true, .stretch = 0.01f},
    {"factors causal", 4, 2, 128, 128, {300}, {300}, .causal = true, .rank = 5},
    {"factors, ragged", 2, 2, 64, 64, {100, 33}, {80, 133}, .rank = 21, .float32 = true},
    {"factors d96 f16", 2, 1, 96, 96, {150}, {150}, .causal = true, .rank = 3, .half = true},
    {"factors d192", 2, 2, 192, 192, {100}, {100}, .causal = true, .rank = 20, .window = 50},
    {"factors of 40", 2, 2, 128, 128, {140}, {140}, .rank = 40, .sinks = true},
    {"lists 128 x 128", 4, 2, 128, 128, {700}, {700}, .causal = true, .query_tile = 128, .key_tile = 128},
    {"lists 128 x 64 per head", 3, 3, 64, 64, {500}, {777}, .query_tile = 128, .key_tile = 64, .per_head = true},
    {"lists 64 x 64", 2, 1, 128, 128, {300}, {300}, .causal = true, .query_tile = 64, .key_tile = 64, .per_head = true},
    {"lists 256 x 192, window",
     2,
     2,
     96,
     96,
     {600},
     {600},
     .causal = true,
     .window = 250,
     .query_tile = 256,
     .key_tile = 192},
    {"lists d256 f16", 2, 1, 256, 256, {300}, {300}, .causal = true, .query_tile = 128, .key_tile = 64, .half = true},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

/* The worst relative error of sampled rows; lse within 1e-4 of its size. */
static double compare(const attention_case *p, const char *kernel) {
    const attention_work *w = p->of;
    double worst = 0, *wanted = malloc(2 * (size_t)w->value_size * sizeof *wanted), *got = wanted + w->value_size;
    for (int s = 0; s < p->attention.sequences; s++) {
        if (w->infinite && s % 2) continue;
        const int64_t n = w->queries[s], samples = n < 40 ? n : 40;
        for (int64_t i = 0; i < samples; i++) {
            int64_t row = n <= 40 ? i : (int64_t)(random_next() >> 1) % n;
            if (n > 40 && i < 2) row = i ? n - 1 : 0;
            const int64_t head = (int64_t)(random_next() >> 1) % w->heads, token = p->query_offsets[s] + row;
            const double lse = attention_row(p, s, row, head, wanted);
            for (int e = 0; e < w->value_size; e++) got[e] = tensor_at(&p->output, token, head, e);
            worst = fmax(worst, relative_error(got, wanted, w->value_size));
            const double sum = tensor_at(&p->log_sum_exp, token, 0, head);
            EXPECT(lse == -INFINITY ? sum == lse : fabs(sum - lse) <= 1e-4 * (1 + fabs(lse)),
                   "%s, %s: lse of query %lld of sequence %d, head %lld is %g, not %g", w->name, kernel, (long long)row,
                   s, (long long)head, sum, lse);
        }
    }
    free(wanted);
    return worst;
}

/* ---- runs ---- */

static void check_kernel(attention_case *p, const ln_cuda_device *device, const ln_cuda_kernel *kernel) {
    const char *name = p->of->name;
    ln_cuda_attention_plan plan;
    if (ln_cuda_attention_plan_make(&p->attention, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!attention_workspace(p, &plan, &p->workspace)) return;
    p->plan = &plan;
    tensor_poison(&p->output);
    tensor_poison(&p->log_sum_exp);
    run_now(attention_forward, p, name, kernel->name);
    tensor_fetch(&p->output);
    tensor_fetch(&p->log_sum_exp);
    tensor_expect_written(&p->output, name, kernel->name);
    const double worst = compare(p, kernel->name);
    EXPECT(worst < 6e-3, "%s, %s: relative error %.2e", name, kernel->name, worst);
    cudaGraphExec_t graph = run_capture(attention_forward, p, name, kernel->name);
    tensor_poison(&p->output);
    tensor_poison(&p->log_sum_exp);
    run_graph(graph, name, kernel->name);
    tensor_expect_same(&p->output, name, kernel->name, "output");
    tensor_expect_same(&p->log_sum_exp, name, kernel->name, "sums");
    printf("  %-34s %-28s %.2e\n", name, kernel->name, worst);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

/* ---- without a GPU ---- */

/* Every query, key block and head is in the tasks once, and those left out are not seen. */
static void check_tasks(const attention_work *w, const ln_cuda_kernel *kernel, const ln_cuda_device *device) {
    attention_case p;
    attention_case_describe(&p, w);
    const int sequences = attention_sequences(w);
    ln_cuda_attention_plan plan;
    if (ln_cuda_attention_plan_make(&p.attention, device, kernel, &plan) != LN_CUDA_OK) {
        free(p.list_offsets);
        free(p.listed);
        return;
    }
    ln_cuda_task *tasks = malloc((size_t)plan.tables + 1);
    ln_cuda_attention_tasks(&p.attention, &plan, tasks);
    const int32_t *blocks = (const int32_t *)(tasks + plan.tasks);
    int64_t rows = 0, seen = 0, wanted = 0;
    for (int64_t t = 0; t < plan.tasks; t++) {
        rows += tasks[t].rows;
        for (int64_t place = tasks[t].first_block; place < tasks[t].end_block; place++) {
            const int64_t block = w->query_tile ? blocks[place] : place;
            for (int row = 0; row < tasks[t].rows; row++)
                for (int64_t j = block * kernel->keys; j < (block + 1) * kernel->keys; j++) {
                    const int64_t position = tasks[t].position + row;
                    seen += j < tasks[t].keys && (!w->causal || j <= position) &&
                            (!w->window || (position - j < w->window && (w->causal || j - position < w->window)));
                }
        }
    }
    for (int s = 0; s < sequences; s++)
        for (int64_t i = 0; i < w->queries[s]; i++)
            for (int64_t j = 0; j < w->keys[s]; j++)
                for (int64_t h = 0; h < w->heads; h++) wanted += attention_sees(&p, s, i, h, j);
    EXPECT(rows == p.query_offsets[sequences] * w->heads, "%s, %s: %lld rows in tasks", w->name, kernel->name,
           (long long)rows);
    EXPECT(seen == wanted, "%s, %s: tasks see %lld pairs of %lld", w->name, kernel->name, (long long)seen,
           (long long)wanted);
    free(tasks);
    free(p.list_offsets);
    free(p.listed);
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_attention attention = {.heads = 8,
                                   .key_value_heads = 2,
                                   .key_size = 128,
                                   .value_size = 128,
                                   .sequences = 1,
                                   .query_offsets = offsets,
                                   .key_offsets = offsets,
                                   .scale = 0.1f,
                                   .causal = true};
    ln_cuda_attention_plan plan;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 9,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_attention_plan_make(&attention, &ampere, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 8,
           "plan: %s", plan.why);
    const int64_t far[2] = {0, 16384};
    attention.query_offsets = attention.key_offsets = far;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && !plan.kernel->short_rows,
           "plan: %s", plan.why);
    attention.window = 1000;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->short_rows &&
               (plan.kernel->options & LN_CUDA_WINDOW),
           "plan: %s", plan.why);
    attention.window = 0;
    attention.query_offsets = attention.key_offsets = offsets;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->short_rows,
           "plan: %s", plan.why);
    attention.key_size = 40;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "size 40: %s", plan.why);
    attention.key_size = 128;
    attention.heads = 7;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT &&
               strstr(plan.why, "heads"),
           "7 heads: %s", plan.why);
    attention.heads = 8;
    attention.key_offsets = wrong;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT &&
               strstr(plan.why, "offsets"),
           "offsets: %s", plan.why);
    attention.key_offsets = offsets;
    const int64_t lists[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    const int32_t listed[] = {0, 1, 2, 3, 4, 5, 6, 70};
    attention.query_tile = attention.key_tile = 128;
    attention.list_offsets = lists;
    attention.listed = listed;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT &&
               strstr(plan.why, "list"),
           "lists: %s", plan.why);
    attention.query_tile = 0;
    attention.rank = 200;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED, "rank: %s", plan.why);
    attention.rank = 0;
    attention.scale = -1;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT &&
               strstr(plan.why, "scale"),
           "scale: %s", plan.why);
    for (int row = 0; ln_cuda_attention_kernels(row)->start; row++) {
        const ln_cuda_kernel *kernel = ln_cuda_attention_kernels(row);
        EXPECT(kernel->shared_bytes <= (kernel->major == 9 ? 232448 : 101376), "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
        for (int i = 0; i < WORK_COUNT; i++)
            if (WORKS[i].queries[0] <= 1500) check_tasks(&WORKS[i], kernel, kernel->major == 9 ? &hopper : &ampere);
    }
}

static void bench_work(const attention_work *w, const ln_cuda_device *device, const check_options *options,
                       bool burst) {
    attention_case p[KERNELS_MOST];
    void *contexts[KERNELS_MOST];
    ln_cuda_attention_plan plan[KERNELS_MOST];
    timing times[KERNELS_MOST];
    int kernels = 0;
    attention_case_open(&p[0], w);
    for (int row = 0; ln_cuda_attention_kernels(row)->start && kernels < KERNELS_MOST; row++) {
        const ln_cuda_kernel *kernel = ln_cuda_attention_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (!w->window && (kernel->options & ~LN_CUDA_HALF) && !(w->cap > 0) && !w->query_tile && !w->rank) continue;
        if (ln_cuda_attention_plan_make(&p[0].attention, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
        p[kernels] = p[0];
        p[kernels].plan = &plan[kernels];
        contexts[kernels] = &p[kernels];
        kernels += attention_workspace(&p[0], &plan[kernels], &p[kernels].workspace);
    }
    time_in_turns(attention_forward, contexts, kernels, options->rounds, times);
    const double flops = 2 * (double)(w->key_size + w->value_size) * attention_pairs(w);
    for (int k = 0; k < kernels; k++)
        printf("%-30s %-28s %8.3f ms %7.1f TFLOP/s (best %.1f)\n", w->name, plan[k].kernel->name, times[k].median,
               flops / times[k].median * 1e-9, flops / times[k].least * 1e-9);
    if (burst && kernels) {
        const double each = time_burst(attention_forward, &p[0], 300);
        printf("%-30s %-28s %8.3f ms %7.1f TFLOP/s back to back\n", w->name, plan[0].kernel->name, each,
               flops / each * 1e-9);
    }
    fflush(stdout);
    for (int k = 0; k < kernels; k++) device_close(p[k].workspace);
    attention_case_close(&p[0]);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        const attention_work *w = &WORKS[i];
        if (!work_wanted(options, w->name, attention_pairs(w) * (w->key_size + w->value_size))) continue;
        attention_case p;
        attention_case_open(&p, w);
        for (int row = 0; ln_cuda_attention_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_attention_kernels(row)->name))
                check_kernel(&p, device, ln_cuda_attention_kernels(row));
        attention_case_close(&p);
        fflush(stdout);
    }
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < ATTENTION_BENCH_COUNT; i++)
        if (strstr(ATTENTION_BENCH[i].name, options->works)) bench_work(&ATTENTION_BENCH[i], device, options, i < 2);
}

const suite cuda_suite_attention = {"attention", WORK_COUNT, check_plans, check, bench};
