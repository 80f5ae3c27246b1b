/* What the benchmarks of single operators share. */
#ifndef CLI_BENCH_SHARED_H
#define CLI_BENCH_SHARED_H

#include "cli.h"

/* Blocks of memory that end together. */
typedef struct cli_blocks {
    void *block[64];
    int count;
} cli_blocks;

/* Aligned to a page; NULL where there is no memory, or no place in the list. */
void *cli_block(cli_blocks *blocks, double bytes);
void cli_blocks_free(cli_blocks *blocks);
/* Sorts them. */
double cli_median(double *values, int count);
/* Whether the work's name contains one of the comma-separated parts; NULL: all do. */
bool cli_wanted(const char *work, const char *parts);

#endif
