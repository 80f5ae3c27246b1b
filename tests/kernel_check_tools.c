/* What the families of the kernel check share: reporting, timing, guarded memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernel_check.h"

bool check_begin(check *c, const char *kernel, const char *variant) {
    char name[96];
    snprintf(name, sizeof name, "%s %s", kernel, variant);
    if (c->only && !strstr(name, c->only)) return false;
    for (int i = 0; i < c->entries; i++)
        if (strcmp(c->seen[i], name) == 0) return false;
    if (c->entries == CHECK_MOST_ENTRIES) return false;
    memcpy(c->seen[c->entries++], name, sizeof name);
    return true;
}

void check_error(check *c, const char *kernel, const char *variant, double error) {
    const bool wrong = !(error <= 1);
    c->failures += wrong;
    printf("%-30s %-14s %s %5.2f", kernel, variant, wrong ? "WRONG" : "right", error);
}

void check_speed(check *c, const char *what, ln_peak_kind kind, double amount, double seconds) {
    const double rate = amount / seconds, peak = kind < LN_PEAKS ? c->peaks[kind].per_second : 0;
    printf("   %s %8.1f %s", what, rate / 1e9, kind >= LN_PEAK_READ ? "GB/s" : "GFLOP/s");
    if (peak > 0) printf(" %3.0f %%", 100 * rate / peak);
}

void check_end(check *c) {
    (void)c;
    printf("\n");
    fflush(stdout);
}

double check_time(void (*run)(void *argument), void *argument) {
    double best = INFINITY;
    const double start = ln_seconds();
    for (int i = 0; i < 2 || (i < 400 && ln_seconds() - start < 0.12); i++) {
        const double before = ln_seconds();
        run(argument);
        best = fmin(best, ln_seconds() - before);
        if (ln_seconds() - start > 0.5) break;
    }
    return best;
}

guarded guarded_open(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page + page;
    guarded memory = {.bytes = whole};
    memory.map = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory.map == MAP_FAILED || mprotect((unsigned char *)memory.map + whole - page, page, PROT_NONE) != 0) {
        perror("guarded memory");
        exit(2);
    }
    memory.data = (unsigned char *)memory.map + (whole - page - bytes);
    return memory;
}

void guarded_close(guarded *memory) {
    munmap(memory->map, memory->bytes);
}
