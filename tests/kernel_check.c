/* kernel_check [--bench] [--threads N] [PART OF A NAME]
 *
 * Checks every kernel once, at the lowest level that has it; with --bench, times it too, in percent of the peak of that
 * level, measured just before. Exit status 1 where one is wrong. */
#include "kernel_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "linnet/linnet.h"

static const check_family families[] = {check_matmul, check_vector, check_attend, check_softmax,
                                        check_fft,    check_tile,   check_delta,  check_scan};

enum { AVX512 = LN_CPU_AVX2 | LN_CPU_AVX512 };

static const struct {
    const char *name;
    unsigned allowed;
} levels[] = {
    {"portable", 0},
    {"avx2", LN_CPU_AVX2},
    {"avx512", AVX512},
    {"avx512 vnni", AVX512 | LN_CPU_AVX512_VNNI},
    {"avx512 bf16", AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16},
    {"amx-int8", AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16 | LN_CPU_AMX_INT8},
    {"neon", LN_CPU_NEON},
    {"all", ~0u},
};

static void check_level(check *c) {
    char text[96];
    ln_cpu_text(c->cpu, text, sizeof text);
    printf("\n%s (%s)\n", c->level, text);
    if (c->bench && ln_peak_measure(c->context, c->cpu, c->peaks) == LINNET_OK)
        for (int i = 0; i < LN_PEAKS; i++)
            if (c->peaks[i].name)
                printf("peak %-25s %8.1f %s\n", c->peaks[i].name, c->peaks[i].per_second / 1e9,
                       i == LN_PEAK_READ ? "GB/s" : "GFLOP/s");
    ln_kernels_choose(c->cpu, &c->kernels);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) families[i](c);
}

int main(int count, char **words) {
    check c = {0};
    linnet_context_settings settings = linnet_context_settings_default();
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "--bench") == 0)
            c.bench = true;
        else if (strcmp(words[i], "--threads") == 0 && i + 1 < count)
            settings.threads = atoi(words[++i]);
        else if (words[i][0] != '-' && !c.only)
            c.only = words[i];
        else
            return fprintf(stderr, "usage: kernel_check [--bench] [--threads N] [PART OF A NAME]\n"), 2;
    }
    if (linnet_context_open(&settings, &c.context) != LINNET_OK) {
        fprintf(stderr, "%s\n", linnet_last_error(c.context));
        return 2;
    }
    c.seen = calloc(CHECK_MOST_ENTRIES, sizeof *c.seen);
    if (!c.seen) return 2;
    printf("error: in units of the bound of float32 arithmetic. %d threads\n", ln_team_size(c.context->team));
    const unsigned cpu = ln_cpu_detect();
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        bool before = false;
        for (size_t j = 0; j < i; j++) before |= (cpu & levels[j].allowed) == (cpu & levels[i].allowed);
        c.level = levels[i].name;
        c.cpu = cpu & levels[i].allowed;
        if (!before) check_level(&c);
    }
    printf("\n%d entries, %d wrong\n", c.entries, c.failures);
    free(c.seen);
    linnet_context_close(c.context);
    return c.failures > 0;
}
