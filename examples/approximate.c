/* Compares approximate with exact attention, on keys that queries look for in runs: approximate [TOKENS [BUDGET]]
 *
 *     cc approximate.c $(pkg-config --cflags --libs linnet) -o approximate */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <linnet/linnet.h>

enum { HEADS = 2, SIZE = 64, RUN = 64 };

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float uniform(void) {
    return (float)rand() / (float)RAND_MAX - 0.5f;
}

int main(int count, char **words) {
    const int64_t tokens = count > 1 ? atoll(words[1]) : 4096, budget = count > 2 ? atoll(words[2]) : 1024;
    const size_t n = (size_t)(tokens * HEADS * SIZE);
    float *query = malloc(n * 4), *key = malloc(n * 4), *value = malloc(n * 4), *output = malloc(n * 4);
    /* Keys of a run of tokens share a direction; queries of a run look for that of an earlier run. */
    for (size_t i = 0; i < n; i++) {
        const size_t token = i / (HEADS * SIZE), earlier = token / RUN * 7919 % (token / RUN + 1) * RUN;
        srand((unsigned)(token / RUN * 1000 + i % (HEADS * SIZE)));
        key[i] = 3 * uniform();
        srand((unsigned)(earlier / RUN * 1000 + i % (HEADS * SIZE)));
        query[i] = 3 * uniform();
    }
    for (size_t i = 0; i < n; i++) query[i] += uniform(), key[i] += uniform(), value[i] = uniform();

    linnet_context *context;
    if (linnet_context_open(NULL, &context) != LINNET_OK) return 1;
    const linnet_approximate_tensors tensors = {.size = sizeof tensors,
                                                .query = {query, 0, 0},
                                                .key = {key, 0, 0},
                                                .value = {value, 0, 0},
                                                .output = {output, 0, 0}};
    printf("%-8s %9s %9s %9s %9s\n", "method", "seconds", "error", "mass", "visited");
    for (int method = LINNET_APPROXIMATE_HYPER; method < LINNET_APPROXIMATIONS; method++) {
        linnet_approximate_settings settings = linnet_approximate_settings_default((linnet_approximation)method);
        linnet_approximate_plan *plan;
        linnet_approximate_report report;
        settings.tokens = tokens, settings.heads = HEADS, settings.key_size = SIZE, settings.budget = budget;
        if (method == LINNET_APPROXIMATE_RANKING) continue; /* needs documents */
        if (linnet_approximate_plan_open(context, &settings, &plan) != LINNET_OK)
            return puts(linnet_last_error(context)), 1;
        void *workspace = aligned_alloc(64, linnet_approximate_workspace(plan));
        linnet_approximate_error(plan, &tensors, workspace, &report);
        const double begin = now();
        linnet_approximate_forward(plan, &tensors, workspace);
        printf("%-8s %9.4f %9.4f %9.4f %9.4f\n", linnet_approximate_name(settings.method), now() - begin, report.error,
               report.mass, report.visited / report.pairs);
        free(workspace);
        linnet_approximate_plan_close(plan);
    }
    linnet_context_close(context);
}
