/* The panel way of the matrix products (many tokens): its fillers, and what they share: where things lie in a strip,
 * and the packing of any format through its codec. */
#ifndef LN_KERNEL_PANEL_H
#define LN_KERNEL_PANEL_H

#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "kernel/matmul_kernels.h"

/* Portable C, then every instruction set that `cpu` (flags of base/cpu.h) allows, in ascending order. */
void ln_panel_choose(unsigned cpu, ln_matmul_kernels *kernels);

/* The fillers, one a file: each overwrites the slots that it serves better. */
void ln_panel_fill_portable(ln_matmul_kernels *kernels);
void ln_panel_fill_avx2(ln_matmul_kernels *kernels);
void ln_panel_fill_avx512(ln_matmul_kernels *kernels);
void ln_panel_fill_avx512vnni(ln_matmul_kernels *kernels);
void ln_panel_fill_avx512bf16(ln_matmul_kernels *kernels);
void ln_panel_fill_amx(unsigned cpu, ln_matmul_kernels *kernels);
void ln_panel_fill_neon(ln_matmul_kernels *kernels);

static inline int64_t ln_panel_padded(int64_t columns) {
    return (columns + 63) / 64 * 64;
}

/* Values of a row that share a scale in the INT8 form. */
static inline int ln_panel_group(linnet_type type) {
    return type == LINNET_Q2_K || type == LINNET_Q3_K || type == LINNET_Q6_K ? 16 : 32;
}

/* Bytes from one strip of a panel to the next; at most 64 a column. */
static inline int64_t ln_strip_bytes(ln_form form, linnet_type type, int64_t columns) {
    const int64_t padded = ln_panel_padded(columns);
    if (form == LN_FORM_F32) return padded * LN_STRIP * 4;
    if (form == LN_FORM_BF16) return padded * LN_STRIP * 2;
    return padded * LN_STRIP + padded / ln_panel_group(type) * LN_STRIP * 4 * (ln_format_of(type)->has_minimum ? 2 : 1);
}

/* Fills the slots [exact] of the types that `wanted` accepts. */
static inline void ln_panel_fill(ln_matmul_kernels *kernels, int exact, bool (*wanted)(const ln_format *format),
                                 ln_panel_slot slot) {
    for (int type = 0; type < LN_TYPES; type++) {
        const ln_format *format = ln_format_of((linnet_type)type);
        if (format && wanted(format)) kernels->panel[exact][type] = slot;
    }
}

static inline bool ln_panel_any(const ln_format *format) {
    return format != NULL;
}
static inline bool ln_panel_blocks(const ln_format *format) {
    return format->unpack != NULL;
}
/* F16 and BF16 */
static inline bool ln_panel_halves(const ln_format *format) {
    return format->block == 1 && format->bytes == 2;
}

#endif
