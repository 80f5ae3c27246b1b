/* Owns: measuring the peaks: the best of several short runs on all threads, for the highest instruction set allowed.
 *
 * Reading is measured over more memory than any cache holds, each thread in a part of its own. */
#include "kernel/peak.h"

#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/cpu.h"

enum { LANES = 16, CHAINS = 4, RUNS = 15, ROUNDS = 1 << 16 };

double ln_peak_f32_portable(int64_t rounds) {
    float sums[CHAINS][LANES] = {{0}};
    for (int64_t i = 0; i < rounds; i++) {
        const float factor = 0.5f;
        for (int c = 0; c < CHAINS; c++)
            for (int j = 0; j < LANES; j++) sums[c][j] = sums[c][j] * factor + 1.0f;
    }
    volatile float sink = 0;
    for (int c = 0; c < CHAINS; c++)
        for (int j = 0; j < LANES; j++) sink = sink + sums[c][j];
    return 2.0 * CHAINS * LANES * (double)rounds;
}

uint64_t ln_peak_read_portable(const void *data, uint64_t bytes) {
    const uint64_t *p = data;
    uint64_t sums[8] = {0};
    for (uint64_t i = 0; i < bytes / 8; i += 8)
        for (int j = 0; j < 8; j++) sums[j] ^= p[i + (uint64_t)j];
    for (int j = 1; j < 8; j++) sums[0] ^= sums[j];
    return sums[0];
}

static const struct loop {
    ln_peak_kind kind;
    unsigned flag;
    const char *name;
    ln_peak_loop loop;
    ln_peak_read read;
} loops[] = {
    {LN_PEAK_F32, 0, "multiply_add__portable", ln_peak_f32_portable, NULL},
    {LN_PEAK_READ, 0, "read__portable", NULL, ln_peak_read_portable},
#if defined(__x86_64__)
    {LN_PEAK_F32, LN_CPU_AVX2, "vfmadd__avx2", ln_peak_f32_avx2, NULL},
    {LN_PEAK_F32, LN_CPU_AVX512, "vfmadd__avx512", ln_peak_f32_avx512, NULL},
    {LN_PEAK_INT8, LN_CPU_AVX512_VNNI, "vpdpbusd__avx512vnni", ln_peak_int8_avx512vnni, NULL},
    {LN_PEAK_BF16, LN_CPU_AVX512_BF16, "vdpbf16ps__avx512bf16", ln_peak_bf16_avx512bf16, NULL},
    {LN_PEAK_BF16, LN_CPU_AMX_BF16, "tdpbf16ps__amx", ln_peak_bf16_amx, NULL},
    {LN_PEAK_INT8, LN_CPU_AMX_INT8, "tdpbssd__amx", ln_peak_int8_amx, NULL},
    {LN_PEAK_READ, LN_CPU_AVX2, "read__avx2", NULL, ln_peak_read_avx2},
    {LN_PEAK_READ, LN_CPU_AVX512, "read__avx512", NULL, ln_peak_read_avx512},
#elif defined(__aarch64__)
    {LN_PEAK_F32, LN_CPU_NEON, "fmla__neon", ln_peak_f32_neon, NULL},
#endif
};

typedef struct measurement {
    ln_peak_loop loop;
    ln_peak_read read;
    const unsigned char *data;
    uint64_t part;    /* bytes of a task */
    int64_t rounds;   /* of a task */
    double done[256]; /* by task */
} measurement;

static void measure_task(void *argument, int64_t task, int worker) {
    (void)worker;
    measurement *m = argument;
    if (m->loop) {
        m->done[task] = m->loop(m->rounds);
        return;
    }
    volatile uint64_t sink = m->read(m->data + m->part * (uint64_t)task, m->part);
    (void)sink;
    m->done[task] = (double)m->part;
}

static double best_rate(ln_team *team, measurement *m, int tasks) {
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        const double start = ln_seconds();
        ln_parallel(team, tasks, measure_task, m);
        const double seconds = ln_seconds() - start;
        double done = 0;
        for (int i = 0; i < tasks; i++) done += m->done[i];
        if (done / seconds > best) best = done / seconds;
    }
    return best;
}

linnet_status ln_peak_measure(linnet_context *context, unsigned cpu, ln_peak peaks[LN_PEAKS]) {
    memset(peaks, 0, sizeof(ln_peak) * LN_PEAKS);
    unsigned char *data = ln_allocate(context, 1, LN_PEAK_BYTES, "memory to measure reading");
    if (!data) return LINNET_ERROR_MEMORY;
    memset(data, 1, LN_PEAK_BYTES);
    const int threads = ln_team_size(context->team);
    for (int kind = 0; kind < LN_PEAKS; kind++) {
        const struct loop *loop = NULL; /* the last that is allowed */
        for (size_t i = 0; i < sizeof loops / sizeof *loops; i++)
            if ((int)loops[i].kind == kind && !(loops[i].flag & ~cpu)) loop = &loops[i];
        if (!loop) continue;
        measurement m = {.loop = loop->loop, .read = loop->read, .data = data, .rounds = ROUNDS};
        m.part = LN_PEAK_BYTES / (uint64_t)threads / 4096 * 4096;
        peaks[kind] = (ln_peak){loop->name, best_rate(context->team, &m, threads)};
    }
    ln_release(context, data);
    return LINNET_OK;
}
