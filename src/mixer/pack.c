/* Owns: reading rows of tensors, and laying chosen rows out as key-value pages (kernel/attend.h). */
#include "mixer/pack.h"

#include <string.h>

#include "base/checked.h"
#include "mixer/attention_plan.h"

ln_rows ln_rows_of(const linnet_tensor *tensor, linnet_type type, int64_t heads, int64_t size) {
    const linnet_tensor settled = ln_tensor_settle(*tensor, heads, size);
    return (ln_rows){type, settled.data, settled.token_stride, settled.head_stride, size};
}

void ln_row_read(const ln_rows *rows, int64_t token, int64_t head, float *to) {
    const void *from = ln_row_at(rows, token, head);
    if (rows->type == LINNET_F32)
        memcpy(to, from, (size_t)rows->size * sizeof *to);
    else
        ln_format_of(rows->type)->decode(from, to, rows->size);
}

static void pack_page(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_packing *p = argument;
    const int64_t page = task / p->heads, head = task % p->heads, first = page * LN_PAGE_TOKENS;
    const int64_t tokens = ln_min_i64(LN_PAGE_TOKENS, p->tokens - first);
    unsigned char *to = p->pages + (uint64_t)head * p->head_stride + (uint64_t)page * p->layout.bytes;
    const void *keys[LN_PAGE_TOKENS], *values[LN_PAGE_TOKENS];
    for (int64_t i = 0; i < tokens; i++) {
        const int64_t token = p->order ? p->order[head * p->order_stride + first + i] : first + i;
        keys[i] = ln_row_at(&p->key, token, head);
        values[i] = ln_row_at(&p->value, token, head);
    }
    if (tokens < LN_PAGE_TOKENS) memset(to, 0, p->layout.bytes);
    ln_page_fill(&p->layout, to, p->key.type, tokens, keys, values);
}

void ln_pack_pages(ln_team *team, const ln_packing *packing) {
    ln_parallel(team, ln_ceil_div(packing->tokens, LN_PAGE_TOKENS) * packing->heads, pack_page,
                (void *)(uintptr_t)packing);
}
