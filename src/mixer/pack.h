/* Tensors of the public interface as rows of floats and as key-value pages. */
#ifndef LN_MIXER_PACK_H
#define LN_MIXER_PACK_H

#include "base/threads.h"
#include "kernel/kernel.h"
#include "linnet/attention.h"

/* The tensor with its strides written out: both 0 mean packed. */
static inline linnet_tensor ln_tensor_settle(linnet_tensor tensor, int64_t heads, int64_t size) {
    if (tensor.head_stride == 0 && tensor.token_stride == 0) {
        tensor.head_stride = size;
        tensor.token_stride = heads * size;
    }
    return tensor;
}
/* The first element of a token, of `type`; NULL of a tensor without data, which may be one of no tokens. */
static inline const void *ln_tensor_at(const linnet_tensor *tensor, linnet_type type, int64_t token) {
    if (!tensor->data) return NULL;
    return (const char *)tensor->data + token * tensor->token_stride * (type == LINNET_BF16 ? 2 : 4);
}

/* A tensor [token, head, size] with its type, head count and strides filled in. */
typedef struct ln_rows {
    linnet_type type; /* F32 or BF16 */
    unsigned char *data;
    int64_t token_stride, head_stride, size;
} ln_rows;

ln_rows ln_rows_of(const linnet_tensor *tensor, linnet_type type, int64_t heads, int64_t size);
static inline int64_t ln_row_element(const ln_rows *rows) {
    return rows->type == LINNET_BF16 ? 2 : 4;
}
static inline const void *ln_row_at(const ln_rows *rows, int64_t token, int64_t head) {
    return rows->data + (token * rows->token_stride + head * rows->head_stride) * ln_row_element(rows);
}
/* Of float32 rows that are written. */
static inline float *ln_row_to(const ln_rows *rows, int64_t token, int64_t head) {
    return (float *)(void *)rows->data + token * rows->token_stride + head * rows->head_stride;
}
void ln_row_read(const ln_rows *rows, int64_t token, int64_t head, float *to);

/* One page of a head from the rows of `count` tokens; what is beyond them is zeroed. */
void ln_pack_page(const ln_page_layout *layout, const ln_rows *key, const ln_rows *value, int64_t head,
                  const int64_t *tokens, int64_t count, unsigned char *to);

/* Some tokens of `key` and `value` as pages (ln_page_fill): token i of the pages of a head is token
 * order[head * order_stride + i] of the tensors, or i without an order. A layout narrower than the rows takes their
 * first columns. */
typedef struct ln_packing {
    ln_page_layout layout;
    ln_rows key, value;
    int64_t heads, tokens;
    const int32_t *order;
    int64_t order_stride;
    unsigned char *pages; /* those of a head one after the other, */
    uint64_t head_stride; /* bytes from head to head */
} ln_packing;

/* Bytes of a head's pages. */
static inline uint64_t ln_pack_bytes(const ln_page_layout *layout, int64_t tokens) {
    return (uint64_t)((tokens + LN_PAGE_TOKENS - 1) / LN_PAGE_TOKENS) * layout->bytes;
}
/* The last page's bytes beyond its last token are zeroed. */
void ln_pack_pages(ln_team *team, const ln_packing *packing);

#endif
