/* Owns: reading rows of tensors, and laying chosen rows out as key-value pages (kernel/attend.h). */
#include "mixer/pack.h"

#include <string.h>

#include "base/checked.h"

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

void ln_pack_page(const ln_page_layout *layout, const ln_rows *key, const ln_rows *value, int64_t head,
                  const int64_t *tokens, int64_t count, unsigned char *to) {
    const void *keys[LN_PAGE_TOKENS], *values[LN_PAGE_TOKENS];
    for (int64_t t = 0; t < count; t++) {
        keys[t] = ln_row_at(key, tokens[t], head);
        values[t] = ln_row_at(value, tokens[t], head);
    }
    if (count < LN_PAGE_TOKENS) memset(to, 0, layout->bytes);
    ln_page_fill(layout, to, key->type, count, keys, values);
}

static void pack_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_packing *p = argument;
    const int64_t page = task / p->heads, head = task % p->heads, first = page * LN_PAGE_TOKENS;
    const int64_t count = ln_min_i64(LN_PAGE_TOKENS, p->tokens - first);
    int64_t tokens[LN_PAGE_TOKENS];
    for (int64_t i = 0; i < count; i++) tokens[i] = p->order ? p->order[head * p->order_stride + first + i] : first + i;
    ln_pack_page(&p->layout, &p->key, &p->value, head, tokens, count,
                 p->pages + (uint64_t)head * p->head_stride + (uint64_t)page * p->layout.bytes);
}

void ln_pack_pages(ln_team *team, const ln_packing *packing) {
    ln_parallel(team, ln_ceil_div(packing->tokens, LN_PAGE_TOKENS) * packing->heads, pack_task,
                (void *)(uintptr_t)packing);
}
