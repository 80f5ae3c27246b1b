/* The kernel check program: every entry of every kernel table, on every instruction set that this processor reaches,
 * against a float64 oracle, and timed in the same loop.
 *
 * A family of kernels is one file kernel_check_NAME.c with one function, and a row in the table of kernel_check.c. */
#ifndef TESTS_KERNEL_CHECK_H
#define TESTS_KERNEL_CHECK_H

#include "base/context.h"
#include "base/random.h"
#include "kernel/kernel.h"
#include "kernel/peak.h"

enum { CHECK_MOST_ENTRIES = 2048 };

typedef struct check {
    linnet_context *context;
    const char *level; /* of the instruction sets being checked, and the table filled for it */
    unsigned cpu;
    ln_kernels kernels;
    ln_peak peaks[LN_PEAKS]; /* bench only: of this level */
    bool bench;
    const char *only; /* part of the names of what to check; NULL: all */
    int entries, failures;
    char (*seen)[96];
} check;

typedef void (*check_family)(check *c);
void check_matmul(check *c);
void check_vector(check *c);
void check_attend(check *c);
void check_softmax(check *c);
void check_fft(check *c);
void check_tile(check *c);
void check_delta(check *c);
void check_scan(check *c);

/* False where this kernel was checked at a lower level, or is not asked for. */
bool check_begin(check *c, const char *kernel, const char *variant);
/* error: the largest, in units of what is allowed; NaN or more than 1 fails. Ends the line unless speeds follow. */
void check_error(check *c, const char *kernel, const char *variant, double error);
/* amount: operations, or bytes read, of one run. kind: of the peak to compare with; LN_PEAKS: bytes, and none. */
void check_speed(check *c, const char *what, ln_peak_kind kind, double amount, double seconds);
void check_end(check *c);

/* Seconds of the fastest of several runs. */
double check_time(void (*run)(void *argument), void *argument);

/* Memory whose last byte is followed by a page that may not be touched. */
typedef struct guarded {
    unsigned char *data;
    void *map;
    size_t bytes;
} guarded;
guarded guarded_open(size_t bytes);
void guarded_close(guarded *memory);

/* ---- matrix products: also for a kernel that stands in no table ---- */

/* Largest error of a dense kernel over all shapes and inputs, in units of the bound. */
double check_panel_slot(const ln_panel_slot *slot, ln_prepare prepare, linnet_type type);

/* ---- tile products in bf16 ---- */

/* Largest error over shapes and layouts, in units of the bound. */
double check_tile_bf16(const ln_tile_bf16 *kernels);

/* ---- attention in bf16 ---- */

/* Largest error over all shapes and masks, in units of the bound. */
double check_attend_bf16_slot(const ln_attend_bf16 *kernels, linnet_type precision);
/* A tile of queries over 4096 keys, on one thread: to compare with the peak of `kernel_check --threads 1`. */
void check_attend_bf16_speed(check *c, const ln_attend_bf16 *kernels, int64_t size);

#endif
