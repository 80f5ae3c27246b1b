/* The fillers of the attention kernels, one an instruction set: each overwrites the whole table, those of
 * VNNI and AMX only their parts for integers and bf16. */
#ifndef LN_KERNEL_ATTEND_SETS_H
#define LN_KERNEL_ATTEND_SETS_H

#include "kernel/attend.h"

void ln_attend_fill_avx2(ln_attend_kernels *kernels);
void ln_attend_fill_avx512(ln_attend_kernels *kernels);
void ln_attend_fill_avx512vnni(ln_attend_kernels *kernels);
void ln_attend_fill_low_avx2(ln_attend_kernels *kernels);       /* integers alone */
void ln_attend_fill_low_avx512vnni(ln_attend_kernels *kernels); /* integers of low bits alone */
void ln_attend_fill_amx(ln_attend_kernels *kernels);
void ln_attend_fill_avx512bf16(ln_attend_kernels *kernels); /* pairs alone */
void ln_attend_fill_pairs_amx(ln_attend_kernels *kernels);
void ln_attend_fill_neon(ln_attend_kernels *kernels);

#endif
