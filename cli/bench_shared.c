/* Owns: what the benchmarks share (bench_shared.h). */
#include "bench_shared.h"

#include <stdlib.h>
#include <string.h>

void *cli_block(cli_blocks *blocks, double bytes) {
    enum { ALIGNED = 4096, MOST = sizeof blocks->block / sizeof *blocks->block };
    if (bytes > 0x1p46 || blocks->count >= MOST) return NULL;
    void *block = aligned_alloc(ALIGNED, ((size_t)bytes + ALIGNED) / ALIGNED * ALIGNED);
    if (block) blocks->block[blocks->count++] = block;
    return block;
}

void cli_blocks_free(cli_blocks *blocks) {
    while (blocks->count > 0) free(blocks->block[--blocks->count]);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cli_median(double *values, int count) {
    if (count < 1) return 0;
    qsort(values, (size_t)count, sizeof *values, ascending);
    return 0.5 * (values[count / 2] + values[(count - 1) / 2]);
}

bool cli_wanted(const char *work, const char *parts) {
    if (!parts) return true;
    for (const char *word = parts; *word; word += strspn(word, ",")) {
        const size_t bytes = strcspn(word, ",");
        if (bytes && memmem(work, strlen(work), word, bytes)) return true;
        word += bytes;
    }
    return false;
}
