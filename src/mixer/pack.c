/* Owns: reading rows of tensors, and laying them out as key-value pages (kernel/attend.h). Bytes of a page beyond its
 * last token are zeroed, so that nothing which is not finite stands there. */
#include "mixer/pack.h"

#include <string.h>

#include "base/checked.h"

ln_rows ln_rows_of(const linnet_tensor *tensor, linnet_type type, int64_t heads, int64_t size) {
    return (ln_rows){.type = type,
                     .data = tensor->data,
                     .token_stride = tensor->token_stride ? tensor->token_stride : heads * size,
                     .head_stride = tensor->head_stride ? tensor->head_stride : size,
                     .size = size};
}

void ln_row_read(const ln_rows *rows, int64_t token, int64_t head, float *to) {
    const void *from = ln_row_at(rows, token, head);
    if (rows->type == LINNET_F32)
        memcpy(to, from, (size_t)rows->size * sizeof *to);
    else
        ln_format_of(rows->type)->decode(from, to, rows->size);
}

/* A row as codes of the layout's precision. */
static const void *codes_of(const ln_packing *pack, const ln_rows *rows, int64_t token, int64_t head, float *scratch,
                            uint16_t *codes) {
    if (rows->type == pack->layout.precision) return ln_row_at(rows, token, head);
    ln_row_read(rows, token, head, scratch);
    if (pack->layout.precision == LINNET_F32) return scratch;
    for (int64_t i = 0; i < rows->size; i++) codes[i] = ln_float_bf16(scratch[i]);
    return codes;
}

/* Element i of a row goes to `place` + i * step elements. */
static void scatter(const void *codes, int64_t element, int64_t n, unsigned char *to, int64_t place, int64_t step) {
    if (element == 4) {
        uint32_t *at = (uint32_t *)(void *)to + place;
        for (int64_t i = 0; i < n; i++) at[i * step] = ((const uint32_t *)codes)[i];
    } else {
        uint16_t *at = (uint16_t *)(void *)to + place;
        for (int64_t i = 0; i < n; i++) at[i * step] = ((const uint16_t *)codes)[i];
    }
}

static void pack_page(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_packing *pack = argument;
    const ln_page_layout *layout = &pack->layout;
    const int64_t page = task / pack->heads, head = task % pack->heads, first = page * LN_PAGE_TOKENS;
    const int64_t tokens = ln_min_i64(LN_PAGE_TOKENS, pack->tokens - first);
    unsigned char *to = pack->pages + (uint64_t)task * layout->bytes;
    if (tokens < LN_PAGE_TOKENS) memset(to, 0, layout->bytes);
    float scratch[LN_HEAD_MOST];
    uint16_t codes[LN_HEAD_MOST];
    for (int64_t i = 0; i < tokens; i++) {
        const int64_t token =
            pack->order ? pack->order[head * pack->order_stride + first + i] : pack->begin + first + i;
        scatter(codes_of(pack, &pack->key, token, head, scratch, codes), layout->element, layout->key_size, to, i,
                LN_PAGE_TOKENS);
        const unsigned char *value = codes_of(pack, &pack->value, token, head, scratch, codes);
        for (int64_t c = 0; c < layout->value_size; c += LN_PANEL) {
            const int64_t columns = ln_min_i64(LN_PANEL, layout->value_size - c);
            memcpy(to + layout->values + (uint64_t)((c * LN_PAGE_TOKENS + i * columns) * layout->element),
                   value + c * layout->element, (size_t)(columns * layout->element));
        }
    }
}

void ln_pack_pages(ln_team *team, const ln_packing *pack) {
    ln_parallel(team, ln_ceil_div(pack->tokens, LN_PAGE_TOKENS) * pack->heads, pack_page, (void *)(uintptr_t)pack);
}
