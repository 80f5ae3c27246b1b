/* What the processor can do, as bits in ascending order of use; read once when a context opens, and masked by name. */
#ifndef LN_BASE_CPU_H
#define LN_BASE_CPU_H

#include <stdbool.h>
#include <stddef.h>

enum {
    LN_CPU_AVX2 = 1 << 0,        /* with FMA and F16C */
    LN_CPU_AVX512 = 1 << 1,      /* F, BW, DQ, VL, CD */
    LN_CPU_AVX512_VNNI = 1 << 2, /* int8 dot products */
    LN_CPU_AVX512_BF16 = 1 << 3,
    LN_CPU_AMX_INT8 = 1 << 4,
    LN_CPU_AMX_BF16 = 1 << 5, /* with AVX-512 VBMI */
    LN_CPU_NEON = 1 << 8,
    LN_CPU_NEON_DOT = 1 << 9
};

/* Flags of this processor; AMX only where the system grants its tile registers to the process. */
unsigned ln_cpu_detect(void);
/* Flags that the level `name` allows ("portable", "avx2", "avx512", "amx", "neon"); false for an unknown name. */
bool ln_cpu_mask(const char *name, unsigned *mask);
/* Of the cache that belongs to one core, the largest; 1 MiB where the system does not tell. */
size_t ln_cpu_cache_bytes(void);
/* "avx512 vnni bf16" */
void ln_cpu_text(unsigned flags, char *text, size_t capacity);

#endif
