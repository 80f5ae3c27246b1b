/* What this machine can do at most, measured by small loops that do nothing else: the figure that a kernel's speed is
 * compared with. */
#ifndef LN_KERNEL_PEAK_H
#define LN_KERNEL_PEAK_H

#include "base/context.h"

/* The first three stand in the order of ln_form. */
typedef enum ln_peak_kind { LN_PEAK_F32, LN_PEAK_BF16, LN_PEAK_INT8, LN_PEAK_READ, LN_PEAKS } ln_peak_kind;

typedef struct ln_peak {
    const char *name;  /* of the loop, "vpdpbusd__avx512vnni"; NULL where these instruction sets have none */
    double per_second; /* operations (a multiply-add is two), or bytes read from memory; of all threads together */
} ln_peak;

/* Takes about half a second and, for the time being, LN_PEAK_BYTES of memory. cpu: flags of base/cpu.h that may be
 * used, of those that the processor has. */
enum { LN_PEAK_BYTES = 256 << 20 };
linnet_status ln_peak_measure(linnet_context *context, unsigned cpu, ln_peak peaks[LN_PEAKS]);

/* The loops, one file an instruction set: `rounds` rounds, returning the operations done. */
typedef double (*ln_peak_loop)(int64_t rounds);
double ln_peak_f32_portable(int64_t rounds);
double ln_peak_f32_avx2(int64_t rounds);
double ln_peak_f32_avx512(int64_t rounds);
double ln_peak_int8_avx512vnni(int64_t rounds);
double ln_peak_bf16_avx512bf16(int64_t rounds);
double ln_peak_bf16_amx(int64_t rounds);
double ln_peak_int8_amx(int64_t rounds);
double ln_peak_f32_neon(int64_t rounds);
/* Reads bytes (a multiple of 4096); the result only keeps the compiler from leaving it out. */
typedef uint64_t (*ln_peak_read)(const void *data, uint64_t bytes);
uint64_t ln_peak_read_portable(const void *data, uint64_t bytes);
uint64_t ln_peak_read_avx2(const void *data, uint64_t bytes);
uint64_t ln_peak_read_avx512(const void *data, uint64_t bytes);

#endif
