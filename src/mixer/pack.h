/* Tensors of the public interface as rows of floats and as key-value pages. */
#ifndef LN_MIXER_PACK_H
#define LN_MIXER_PACK_H

#include "base/threads.h"
#include "kernel/kernel.h"
#include "linnet/attention.h"

/* A tensor [token, head, size] with its type, head count and strides filled in. */
typedef struct ln_rows {
    linnet_type type; /* F32 or BF16 */
    unsigned char *data;
    int64_t token_stride, head_stride, size;
} ln_rows;

/* Strides 0 mean packed. */
ln_rows ln_rows_of(const linnet_tensor *tensor, linnet_type type, int64_t heads, int64_t size);
static inline const void *ln_row_at(const ln_rows *rows, int64_t token, int64_t head) {
    const int64_t element = rows->type == LINNET_BF16 ? 2 : 4;
    return rows->data + (token * rows->token_stride + head * rows->head_stride) * element;
}
/* Of float32 rows that are written. */
static inline float *ln_row_to(const ln_rows *rows, int64_t token, int64_t head) {
    return (float *)(void *)rows->data + token * rows->token_stride + head * rows->head_stride;
}
void ln_row_read(const ln_rows *rows, int64_t token, int64_t head, float *to);

/* Tokens of `key` and `value`, as pages of one layout (F32 or BF16): token i of the pages of a head is token
 * order[head * order_stride + i] of the tensors, or begin + i without an order. A layout narrower than the rows takes
 * their first columns. */
typedef struct ln_packing {
    ln_page_layout layout;
    ln_rows key, value;
    int64_t heads, begin, tokens;
    const int32_t *order;
    int64_t order_stride;
    unsigned char *pages; /* [page][head], layout.bytes each */
} ln_packing;

static inline uint64_t ln_pack_bytes(const ln_page_layout *layout, int64_t heads, int64_t tokens) {
    return (uint64_t)((tokens + LN_PAGE_TOKENS - 1) / LN_PAGE_TOKENS * heads) * layout->bytes;
}
void ln_pack_pages(ln_team *team, const ln_packing *pack);

#endif
