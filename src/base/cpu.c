/* Owns: reading the processor's flags.
 *
 * CPUID says what the processor has, XGETBV what the system saves on a task switch: both are needed. AMX tiles must
 * also be asked for (arch_prctl), once a process, and a system may refuse. */
#include "base/cpu.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif

#if defined(__x86_64__)

static unsigned long long read_xcr0(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}

static bool amx_granted(void) {
#if defined(__linux__)
    enum { ARCH_REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

unsigned ln_cpu_detect(void) {
    unsigned a, b, c, d, flags = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned long long saved = read_xcr0();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;

    if (ymm && fma && f16c && b >> 5 & 1) flags |= LN_CPU_AVX2;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    if (zmm && flags && (b & avx512) == avx512) {
        flags |= LN_CPU_AVX512;
        const bool vbmi = c >> 1 & 1;
        if (c >> 11 & 1) flags |= LN_CPU_AVX512_VNNI;
        const bool has_tiles = d >> 24 & 1, tile_int8 = d >> 25 & 1, tile_bf16 = d >> 22 & 1;
        unsigned a1, b1, c1, d1;
        if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && a1 >> 5 & 1) flags |= LN_CPU_AVX512_BF16;
        if (tiles && has_tiles && amx_granted()) {
            if (tile_int8) flags |= LN_CPU_AMX_INT8;
            if (tile_bf16 && vbmi) flags |= LN_CPU_AMX_BF16;
        }
    }
    return flags;
}

#elif defined(__aarch64__)

unsigned ln_cpu_detect(void) {
    unsigned flags = LN_CPU_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP) >> 20 & 1) flags |= LN_CPU_NEON_DOT;
#endif
    return flags;
}

#else

unsigned ln_cpu_detect(void) {
    return 0;
}

#endif

static const struct {
    unsigned flag;
    const char *name;
} flag_names[] = {
    {LN_CPU_AVX2, "avx2"},        {LN_CPU_AVX512, "avx512"},     {LN_CPU_AVX512_VNNI, "vnni"},
    {LN_CPU_AVX512_BF16, "bf16"}, {LN_CPU_AMX_INT8, "amx-int8"}, {LN_CPU_AMX_BF16, "amx-bf16"},
    {LN_CPU_NEON, "neon"},        {LN_CPU_NEON_DOT, "dot"},
};

bool ln_cpu_mask(const char *name, unsigned *mask) {
    const unsigned avx512 = LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16;
    const struct {
        const char *name;
        unsigned mask;
    } levels[] = {
        {"portable", 0}, {"avx2", LN_CPU_AVX2}, {"avx512", avx512}, {"amx", ~0u}, {"neon", ~0u}, {"all", ~0u},
    };
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(levels[i].name, name) == 0) {
            *mask = levels[i].mask;
            return true;
        }
    }
    return false;
}

void ln_cpu_text(unsigned flags, char *text, size_t capacity) {
    size_t used = 0;
    snprintf(text, capacity, "portable");
    for (size_t i = 0; i < sizeof flag_names / sizeof *flag_names; i++) {
        if (!(flags & flag_names[i].flag) || used >= capacity) continue;
        const int wrote = snprintf(text + used, capacity - used, "%s%s", used ? " " : "", flag_names[i].name);
        if (wrote > 0) used += (size_t)wrote;
    }
}

size_t ln_cpu_cache_bytes(void) {
    static _Atomic size_t known; /* asking takes a microsecond */
    size_t bytes = known;
    if (bytes > 0) return bytes;
    bytes = (size_t)1 << 20;
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long told = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (told > 0) bytes = (size_t)told;
#endif
    known = bytes;
    return bytes;
}
