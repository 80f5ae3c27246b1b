/* Owns: what is in a page.
 *
 * Keys and values have one shape: square b of 32 rows and `columns` columns holds values 32 b and up of 32 tokens. A
 * key's value i is in row i of column `token`, a value's in row `token` of column i. So a token is taken out of a page
 * as its codes, one after the other, with its scales, and put into another: encoding and decoding are between those and
 * floats, and moving is neither. */
#include "kernel/page.h"

#include <math.h>
#include <string.h>

enum { SQUARES = LN_HEAD_MOST / LN_LOW_SQUARE };

/* The keys or the values of a page. */
typedef struct side {
    linnet_type type;
    int64_t bits, size;
    bool values, blocks;    /* blocks: each token has scales */
    uint64_t codes, scales; /* in the page */
} side;

/* One token's codes, each in whole bytes, and scales. */
typedef struct token_row {
    unsigned char code[LN_HEAD_MOST * 4];
    uint16_t scale[SQUARES];
} token_row;

static bool in_blocks(linnet_type type) {
    return type == LINNET_Q8_0 || type == LINNET_Q4_0 || ln_low_bits(type);
}

static side keys_of(const ln_page_layout *layout) {
    return (side){.type = layout->key_type,
                  .bits = layout->key_bits,
                  .size = layout->key_size,
                  .blocks = in_blocks(layout->key_type) && !layout->key_channels,
                  .scales = layout->key_scales};
}
static side values_of(const ln_page_layout *layout) {
    return (side){.type = layout->value_type,
                  .bits = layout->value_bits,
                  .size = layout->value_size,
                  .values = true,
                  .blocks = in_blocks(layout->value_type),
                  .codes = layout->values,
                  .scales = layout->value_scales};
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static size_t width_of(const side *s) {
    return s->bits < 8 ? 1 : (size_t)s->bits / 8;
}

/* ---- a token in a page ---- */

/* Codes of square b as they lie, and how many columns it has. */
static uint64_t square_at(const side *s, int64_t b, int64_t *columns) {
    *columns = s->values && !ln_low_bits(s->type) ? smaller(LN_PANEL, s->size - b * LN_LOW_SQUARE) : LN_PAGE_TOKENS;
    return s->codes + ln_code_bytes(s->bits, b * LN_LOW_SQUARE * LN_PAGE_TOKENS);
}

/* Codes of a token in square b: all that it has room for, where it is whole. */
static int64_t codes_in(const side *s, int64_t b) {
    return ln_low_bits(s->type) ? LN_LOW_SQUARE : smaller(LN_LOW_SQUARE, s->size - b * LN_LOW_SQUARE);
}

/* Byte and shift of a half of Q4_0. */
static int64_t half_at(int64_t row, int64_t column, int64_t columns, int *shift) {
    *shift = row & 4;
    return (row / 8 * 4 + row % 4) * columns + column;
}

static void take_codes(const side *s, const unsigned char *square, int64_t columns, int64_t token, int64_t n,
                       unsigned char *to) {
    const size_t width = width_of(s);
    if (s->values && s->bits >= 8) {
        memcpy(to, square + (size_t)(token * columns) * width, (size_t)n * width);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = s->values ? token : i, column = s->values ? i : token;
        int shift;
        if (s->type == LINNET_Q4_0) {
            const int64_t at = half_at(row, column, columns, &shift);
            to[i] = (unsigned char)(square[at] >> shift & 15);
        } else if (s->bits < 8) {
            to[i] = (unsigned char)ln_code_at(square, (int)s->bits, row, column);
        } else {
            memcpy(to + (size_t)i * width, square + (size_t)(row * columns + column) * width, width);
        }
    }
}

static void put_codes(const side *s, unsigned char *square, int64_t columns, int64_t token, int64_t n,
                      const unsigned char *from) {
    const size_t width = width_of(s);
    if (s->values && s->bits >= 8) {
        memcpy(square + (size_t)(token * columns) * width, from, (size_t)n * width);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = s->values ? token : i, column = s->values ? i : token;
        int shift;
        if (s->type == LINNET_Q4_0) {
            const int64_t at = half_at(row, column, columns, &shift);
            square[at] = (unsigned char)((square[at] & 0xf0 >> shift) | from[i] << shift);
        } else if (s->bits < 8) {
            ln_code_put(square, (int)s->bits, row, column, from[i]);
        } else if (width == 2) {
            memcpy(square + (size_t)(row * columns + column) * 2, from + (size_t)i * 2, 2);
        } else {
            memcpy(square + (size_t)(row * columns + column) * width, from + (size_t)i * width, width);
        }
    }
}

static void take_row(const side *s, const unsigned char *page, int64_t token, token_row *to) {
    for (int64_t b = 0; b * LN_LOW_SQUARE < s->size; b++) {
        int64_t columns;
        const uint64_t square = square_at(s, b, &columns);
        take_codes(s, page + square, columns, token, codes_in(s, b),
                   to->code + (size_t)(b * LN_LOW_SQUARE) * width_of(s));
        if (s->blocks) memcpy(&to->scale[b], page + s->scales + (uint64_t)(2 * (b * LN_PAGE_TOKENS + token)), 2);
    }
}

static void put_row(const side *s, unsigned char *page, int64_t token, const token_row *from) {
    for (int64_t b = 0; b * LN_LOW_SQUARE < s->size; b++) {
        int64_t columns;
        const uint64_t square = square_at(s, b, &columns);
        put_codes(s, page + square, columns, token, codes_in(s, b),
                  from->code + (size_t)(b * LN_LOW_SQUARE) * width_of(s));
        if (s->blocks) memcpy(page + s->scales + (uint64_t)(2 * (b * LN_PAGE_TOKENS + token)), &from->scale[b], 2);
    }
}

/* ---- floats ---- */

static void encode_row(const side *s, const float *values, token_row *to) {
    const ln_format *format = ln_format_of(s->type);
    for (int64_t i = 0; i < s->size; i += LN_LOW_SQUARE) {
        const int64_t n = smaller(LN_LOW_SQUARE, s->size - i);
        unsigned char *code = to->code + (size_t)i * width_of(s), block[34];
        if (ln_low_bits(s->type)) {
            uint8_t codes[LN_LOW_SQUARE];
            to->scale[i / LN_LOW_SQUARE] = ln_fit_token(values + i, n, (int)s->bits, codes);
            memcpy(code, codes, LN_LOW_SQUARE);
            continue;
        }
        if (!s->blocks) {
            format->encode(values + i, code, n);
            continue;
        }
        float whole[LN_LOW_SQUARE] = {0};
        memcpy(whole, values + i, (size_t)n * sizeof *whole);
        format->encode(whole, block, LN_LOW_SQUARE);
        memcpy(&to->scale[i / LN_LOW_SQUARE], block, 2);
        for (int64_t j = 0; j < n; j++)
            code[j] =
                (unsigned char)(s->type == LINNET_Q8_0 ? block[2 + j] : block[2 + j % 16] >> (j < 16 ? 0 : 4) & 15);
    }
}

static void decode_row(const side *s, const token_row *from, float *values) {
    if (!s->blocks) {
        ln_format_of(s->type)->decode(from->code, values, s->size);
        return;
    }
    for (int64_t i = 0; i < s->size; i++) {
        const uint16_t scale = from->scale[i / LN_LOW_SQUARE];
        const unsigned char code = from->code[i];
        if (s->type == LINNET_Q8_0)
            values[i] = ln_f16_float(scale) * (float)(int8_t)code;
        else if (s->type == LINNET_Q4_0)
            values[i] = ln_f16_float(scale) * (float)(code - 8);
        else
            values[i] = ln_token_step(scale) * (float)code + ln_token_minimum(scale, (int)s->bits);
    }
}

/* ---- keys by channel ---- */

static uint64_t steps_at(const ln_page_layout *layout, int64_t channel) {
    return layout->key_scales + (uint64_t)(channel / LN_LOW_SQUARE) * sizeof(ln_channel_steps);
}

static void encode_channels(const ln_page_layout *layout, unsigned char *page, int64_t count, const float *keys,
                            int64_t stride) {
    for (int64_t k = 0; k < layout->key_size; k++) {
        float channel[LN_PAGE_TOKENS];
        uint8_t codes[LN_PAGE_TOKENS];
        ln_channel_steps *steps = (ln_channel_steps *)(void *)(page + steps_at(layout, k));
        for (int64_t t = 0; t < count; t++) channel[t] = keys[t * stride + k];
        ln_fit_channel(channel, count, (int)layout->key_bits, &steps->minimum[k % LN_LOW_SQUARE],
                       &steps->step[k % LN_LOW_SQUARE], codes);
        unsigned char *square =
            page + ln_code_bytes(layout->key_bits, k / LN_LOW_SQUARE * LN_LOW_SQUARE * LN_PAGE_TOKENS);
        for (int64_t t = 0; t < count; t++) ln_code_put(square, (int)layout->key_bits, k % LN_LOW_SQUARE, t, codes[t]);
    }
}

static void decode_channels(const ln_page_layout *layout, const unsigned char *page, const token_row *row, float *key) {
    for (int64_t k = 0; k < layout->key_size; k++) {
        const ln_channel_steps *steps = (const ln_channel_steps *)(const void *)(page + steps_at(layout, k));
        key[k] = ln_channel_step(steps->step[k % LN_LOW_SQUARE]) * (float)row->code[k] +
                 ln_f16_float(steps->minimum[k % LN_LOW_SQUARE]);
    }
}

/* ---- pages ---- */

static void encode_token(const side *s, unsigned char *page, int64_t token, const float *values) {
    token_row row;
    encode_row(s, values, &row);
    put_row(s, page, token, &row);
}

void ln_page_encode_token(const ln_page_layout *layout, unsigned char *page, int64_t token, const float *key,
                          const float *value) {
    const side keys = keys_of(layout), values = values_of(layout);
    encode_token(&keys, page, token, key);
    if (value && !layout->value_in_key) encode_token(&values, page, token, value);
}

void ln_page_encode(const ln_page_layout *layout, unsigned char *page, int64_t count, const float *keys,
                    int64_t key_stride, const float *values, int64_t value_stride) {
    const side key = keys_of(layout), value = values_of(layout);
    memset(page, 0, layout->bytes);
    if (layout->key_channels && count > 0) encode_channels(layout, page, count, keys, key_stride);
    for (int64_t t = 0; t < count; t++) {
        if (!layout->key_channels) encode_token(&key, page, t, keys + t * key_stride);
        if (!layout->value_in_key) encode_token(&value, page, t, values + t * value_stride);
    }
}

void ln_page_decode_token(const ln_page_layout *layout, const unsigned char *page, int64_t token, float *key,
                          float *value) {
    side s = keys_of(layout);
    token_row row;
    if (key || layout->value_in_key) {
        float keys[LN_HEAD_MOST], *to = key ? key : keys;
        take_row(&s, page, token, &row);
        if (layout->key_channels)
            decode_channels(layout, page, &row, to);
        else
            decode_row(&s, &row, to);
        if (value && layout->value_in_key) memcpy(value, to, (size_t)layout->value_size * sizeof *value);
    }
    if (!value || layout->value_in_key) return;
    s = values_of(layout);
    take_row(&s, page, token, &row);
    decode_row(&s, &row, value);
}

bool ln_page_move(const ln_page_layout *layout, unsigned char *to, int64_t to_token, const unsigned char *from,
                  int64_t from_token) {
    if (layout->key_channels) return false;
    const side keys = keys_of(layout), values = values_of(layout);
    token_row row;
    take_row(&keys, from, from_token, &row);
    put_row(&keys, to, to_token, &row);
    if (layout->value_in_key) return true;
    take_row(&values, from, from_token, &row);
    put_row(&values, to, to_token, &row);
    return true;
}

void ln_page_clear(const ln_page_layout *layout, unsigned char *page, int64_t first) {
    static const token_row nothing;
    const side keys = keys_of(layout), values = values_of(layout);
    for (int64_t t = first; t < LN_PAGE_TOKENS; t++) {
        put_row(&keys, page, t, &nothing);
        if (!layout->value_in_key) put_row(&values, page, t, &nothing);
    }
}

/* ---- rotation ---- */

void ln_hadamard(float *row, int64_t n) {
    const int64_t run = n & -n;
    const float scale = 1 / sqrtf((float)run);
    for (float *x = row; x < row + n; x += run) {
        for (int64_t half = 1; half < run; half *= 2) {
            for (int64_t i = 0; i < run; i += 2 * half) {
                for (int64_t j = i; j < i + half; j++) {
                    const float a = x[j], b = x[j + half];
                    x[j] = a + b;
                    x[j + half] = a - b;
                }
            }
        }
        for (int64_t i = 0; i < run; i++) x[i] *= scale;
    }
}
