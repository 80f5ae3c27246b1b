/* Exact attention's inner loops, and the layout of the key-value pages that they read.
 *
 * A page holds 32 consecutive tokens of one key-value head. Both products of attention are then the same small matrix
 * product, C [rows, 32] (+)= A [rows, depth] B [depth, 32], with B straight from the page:
 *   scores   A = queries, B = keys    [key_size][32 tokens]
 *   output   A = weights, B = values  [panel of 32 sizes][32 tokens][32 sizes], the last panel as narrow as it is
 * Keys and values may be of different types. Codes are those of the type's format (number/format.h), each token's row
 * encoded alone; Q8_0 keeps its codes in that order as int8, and its float16 scales apart: of keys [key_size / 32,
 * rounded up][32 tokens], of values [panel][32 tokens]. Q4_0 has two rows in one of bytes: rows 8 g + i and 8 g + 4 + i
 * (i < 4) are the low and the high half of byte row 4 g + i; a half h stands for h - 8. Q2 to Q5 have squares of 32
 * rows and columns (kernel/low_bits.h), the last one filled up with zeros: of keys [channel / 32], of values [panel],
 * and their words as Q8_0 its scales; or keys are scaled by channel: [channel / 32] ln_channel_steps. Bytes of tokens
 * that were not written yet are anything: keys of them give scores that nobody reads, values of them are outside the
 * depth of a product. */
#ifndef LN_KERNEL_ATTEND_H
#define LN_KERNEL_ATTEND_H

#include <stdbool.h>

#include "kernel/low_bits.h"

enum {
    LN_PAGE_TOKENS = 32,
    LN_PANEL = 32,          /* columns of a product */
    LN_HEAD_MOST = 576,     /* largest key_size and value_size; both are multiples of 8 */
    LN_ATTEND_BLOCK = 128,  /* keys whose scores are held at once */
    LN_ATTEND_STRIDE = 272, /* floats from row to row of A and C, at most 256 wide: a constant, and no power of two */
    LN_ATTEND_DEPTH = 256,  /* most columns of A */
    LN_ATTEND_LANES = 16,
    LN_ATTEND_SLACK = 8,
    LN_ATTEND_FEW_ROWS = 8,
    LN_ATTEND_PAD = 16 /* the softmax may write scores beyond n up to a multiple of this */
};

/* ---- pages ---- */

typedef struct ln_page_layout {
    linnet_type key_type, value_type;
    int64_t key_size, value_size;
    int64_t key_bits, value_bits; /* of a code */
    bool key_channels;            /* keys have a scale for each channel, not for each token */
    bool value_in_key;            /* values are the first value_size columns of the keys: a page has no others */
    uint64_t key_scales, values, value_scales, bytes; /* offsets in a page, and its size, a multiple of 64 */
} ln_page_layout;

/* false where a type is not F32, F16, BF16, Q8_0, Q4_0 or Q2 to Q5, or a size not a multiple of 8 from 8 to
 * LN_HEAD_MOST. */
bool ln_page_layout_of(linnet_type key_type, linnet_type value_type, int64_t key_size, int64_t value_size,
                       ln_page_layout *layout);
/* Of such a layout with keys of Q2 to Q5 (else false): they are scaled by channel. */
bool ln_page_layout_by_channel(ln_page_layout *layout);
/* Of such a layout of one type, value_size <= key_size: pages of keys alone. */
void ln_page_layout_join(ln_page_layout *layout);

/* Fills a page of F32 alone or of BF16 alone from `count` tokens, whose rows are float32 or bf16. */
void ln_page_fill(const ln_page_layout *layout, unsigned char *page, linnet_type rows, int64_t count,
                  const void *const *keys, const void *const *values);

/* The pages of one layer. Page n (tokens 32 n to 32 n + 31) of a head is at slots[n % slot_count] + head * head_stride;
 * tokens `first` to `end` - 1 are there. Pages may be of several layouts, of one value_size; where key_size is smaller
 * than that of the queries, their first columns count. */
typedef struct ln_page_view {
    ln_page_layout layout;         /* of all pages, where kinds is NULL */
    const ln_page_layout *layouts; /* [layout_count]: else page n of a head has layouts[kinds[n]] */
    int64_t layout_count;
    const uint8_t *kinds;
    int64_t key_value_heads;
    const unsigned char *const *slots;
    int64_t slot_count;
    uint64_t head_stride;
    int64_t first, end;
} ln_page_view;

static inline const ln_page_layout *ln_page_layout_at(const ln_page_view *view, int64_t page) {
    return view->kinds ? &view->layouts[view->kinds[page]] : &view->layout;
}
/* The layouts that its pages may have. */
static inline const ln_page_layout *ln_page_layouts(const ln_page_view *view, int64_t *count) {
    *count = view->kinds ? view->layout_count : 1;
    return view->kinds ? view->layouts : &view->layout;
}
static inline const unsigned char *ln_page_of(const ln_page_view *view, int64_t head, int64_t page) {
    return view->slots[page % view->slot_count] + (uint64_t)head * view->head_stride;
}

/* ---- products ---- */

/* Some rows of B: codes, and scales where the format has them. */
typedef struct ln_attend_part {
    const unsigned char *codes, *scales;
    const unsigned char *ahead; /* few: codes that will be needed soon, fetched while these are read */
    int64_t first;              /* of Q4_0 and Q2 to Q5: the row where this part begins in codes */
    bool channels;              /* scales are ln_channel_steps */
} ln_attend_part;

/* Bytes of n codes, a multiple of 8. */
static inline uint64_t ln_code_bytes(int64_t bits, int64_t n) {
    return (uint64_t)(n * bits / 8);
}

/* B: count parts of `depth` rows each, one below the other; `columns` (8, 16, 24 or 32) codes in a row. */
typedef struct ln_attend_operand {
    const ln_attend_part *parts;
    int64_t count, depth, columns;
    bool values; /* scales as of values: one a row; else one a column and 32 rows */
} ln_attend_operand;

/* Keys from column `column`, a multiple of 32, on. */
static inline ln_attend_part ln_page_keys(const ln_page_layout *layout, const unsigned char *page, int64_t column) {
    const unsigned char *codes = page + ln_code_bytes(layout->key_bits, column * LN_PAGE_TOKENS);
    const uint64_t scales = (uint64_t)(layout->key_channels ? 3 * column : 2 * column);
    return (ln_attend_part){codes, page + layout->key_scales + scales, codes, 0, layout->key_channels};
}
/* Values of sizes 32 panel and up, from the page's token `token` on. */
static inline ln_attend_part ln_page_values(const ln_page_layout *layout, const unsigned char *page, int64_t panel,
                                            int64_t token) {
    const int64_t left = layout->value_size - panel * LN_PANEL, columns = left < LN_PANEL ? left : LN_PANEL;
    const int64_t first = layout->value_bits >= 8 ? 0 : ln_low_bits(layout->value_type) ? token : token % 8;
    const int64_t at = panel * LN_PANEL * LN_PAGE_TOKENS + (token - first) * columns;
    const unsigned char *codes = page + layout->values + ln_code_bytes(layout->value_bits, at);
    const uint64_t scale = (uint64_t)(2 * (panel * LN_PAGE_TOKENS + token));
    return (ln_attend_part){codes, page + layout->value_scales + scale, codes, first, false};
}

/* C (+)= A B; rows of A and C are LN_ATTEND_STRIDE floats apart, A has count * depth columns. The
 * order of an element's additions depends on B's shape only, never on `rows`. */
typedef void (*ln_attend_product)(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool add);
/* B as floats [count * depth, columns]. */
typedef void (*ln_attend_decode)(const ln_attend_operand *b, float *values);
/* ---- few rows of integers, where the processor multiplies bytes ---- */

/* A row of A: column i is scale (256 high[i] + low[i]), bytes signed; sum[b]: of the integers of columns 32 b and up.
 * Again in single bytes, for pages of low bits: column i of block b = i / 32 is about unit[b] byte[i]; total[b]: the
 * sum of the block's columns, rest[b]: what the bytes leave of it. */
typedef struct ln_attend_integers {
    int8_t high[LN_ATTEND_DEPTH], low[LN_ATTEND_DEPTH];
    int32_t sum[LN_ATTEND_DEPTH / 32];
    float scale; /* NaN where the row is not finite */
    int8_t byte[LN_ATTEND_DEPTH];
    float unit[LN_ATTEND_DEPTH / 32], rest[LN_ATTEND_DEPTH / 32], total[LN_ATTEND_DEPTH / 32];
    const float *row; /* of A itself */
    float unused[12];
} ln_attend_integers;

/* The products of `few` with whole pages of Q8_0 and Q4_0, with a relative error below 2^-15 of a row's largest query
 * or weight of a page, and of Q2 to Q5 with one below 2^-7, of half the range of the codes: few rows then take less
 * time than reading the page. Functions are NULL where there are none. */
typedef struct ln_attend_integer {
    const char *name;
    void (*quantize)(const float *a, int64_t depth, int64_t rows, ln_attend_integers *to);
    /* Parts of a page each: part n's scores begin at column LN_PAGE_TOKENS n of c. */
    void (*scores[LN_TYPES])(const ln_attend_operand *keys, const ln_attend_integers *a, int64_t rows, float *c,
                             bool add);
    /* Parts of LN_PAGE_TOKENS rows, that of the first of `panels` whole panels; c += weights (>= 0) times values. */
    void (*outputs[LN_TYPES])(const ln_attend_operand *values, int64_t panels, const float *weights, int64_t rows,
                              float *c);
} ln_attend_integer;

/* score = cap tanh(score) for n scores. */
typedef void (*ln_attend_cap)(float *scores, int64_t n, float cap);
/* One step of the online softmax over n new scores of a row, base 2. Where
 * a score exceeds m by more than LN_ATTEND_SLACK, m becomes the largest; scores become 2^(score - m), at most 2^slack;
 * the row's sum, which is that of LN_ATTEND_LANES numbers, is multiplied by 2^(old m - m) and grows by them. Returns
 * that factor, by which the row's output must be multiplied. No score but -inf so far: m stays -inf and scores become
 * 0. */
typedef float (*ln_attend_softmax)(float *scores, int64_t n, float *maximum, float *sum);

/* ---- bf16 on matrix units ---- */

/* Queries, keys, values and weights are bf16, scores, sums and outputs float32. A page of keys or values is packed once
 * into the operand that the units read; then a tile of query rows takes a step over a block of keys.
 *
 * Weights are 2^(score - maximum) as bf16, with a relative error below 6e-3, rms 1.9e-3 (exact rounding: 3.9e-3 and
 * 1.7e-3). The row's sum is that of these weights: what their errors have in common cancels, and the output stays a
 * mean of values. maximum is a whole number, so that rescaling is exact; it rises when a score exceeds it by more than
 * LN_BF16_SLACK, which a bound on the scores (of lengths, by Cauchy and Schwarz) mostly excludes without looking at
 * them. A row's result depends on its own query and mask and the sequence of blocks alone, bit for bit. */
enum {
    LN_BF16_ROWS = 32,   /* rows of a tile come in groups of this */
    LN_BF16_BLOCK = 512, /* keys of a step */
    LN_BF16_SLACK = 48,  /* powers of two */
    LN_BF16_VALUE = 48   /* values of 2^this and more, or not finite, are not for these kernels */
};

/* Query rows of one key-value head. Rows that are padding hold zeros, and in maximum what others hold. */
typedef struct ln_attend_bf16_tile {
    int64_t rows;                 /* a multiple of LN_BF16_ROWS */
    int64_t key_size, value_size; /* multiples of 8 */
    const void *query;            /* rows * query_bytes, written by pack_query, aligned to 64 */
    const float *length;          /* [rows]: |query|, as pack_query returned it */
    float factor;                 /* > 0: a score, base 2, is factor query . key */
    float *maximum;               /* [rows]: -inf before the first key */
    float *sum;                   /* [rows][LN_ATTEND_LANES]: the sum is that of a row's lanes; aligned to 64 */
    float *output;                /* [rows][output_stride]: value_size rounded up to 16 columns; aligned to 64 */
    int64_t output_stride;        /* floats, a multiple of 16 */
} ln_attend_bf16_tile;

/* At most LN_BF16_BLOCK keys. */
typedef struct ln_attend_bf16_block {
    const void *keys, *values; /* packed pages, one after the other, key_bytes and value_bytes each; aligned to 64 */
    int64_t count;             /* keys; the last page may be a part */
    float length;              /* the largest of what pack_keys returned for the pages */
    const uint64_t (*seen)[LN_BF16_BLOCK / 64]; /* [rows], bit i: the row sees key i. NULL: all see all */
} ln_attend_bf16_block;

typedef struct ln_attend_bf16 {
    const char *name; /* NULL, and all functions: not on this processor */

    int64_t (*query_bytes)(int64_t key_size); /* of a row, a page, a page; multiples of 64 */
    int64_t (*key_bytes)(int64_t key_size);
    int64_t (*value_bytes)(int64_t value_size);

    /* Row `row` of a tile's operand from F32 or BF16; query NULL: zeros. Returns its length: NaN or infinite where the
     * query is. */
    float (*pack_query)(linnet_type type, const void *query, int64_t key_size, int64_t row, void *operand);
    /* The first `tokens` tokens of a page; the others become zeros. Return the largest length of a key and the largest
     * magnitude of a value; +inf where some are not finite. to: aligned to 64. */
    float (*pack_keys)(const ln_page_layout *layout, const unsigned char *page, int64_t tokens, void *to);
    float (*pack_values)(const ln_page_layout *layout, const unsigned char *page, int64_t tokens, void *to);

    /* Scores, softmax, output. A row that sees a score of NaN or +inf gets a sum of NaN. */
    void (*step)(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block);
    /* The two halves of a step, for what changes scores between: scores[row * stride + key] = factor query . key for
     * `count` rounded up to 32 keys; finish takes `factor` times them, -inf hides a key. With 1 here and tile->factor
     * there the bits are those of step. */
    void (*scores)(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, float factor, float *scores,
                   int64_t stride);
    void (*finish)(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, float factor,
                   const float *scores, int64_t stride);
} ln_attend_bf16;

/* ---- gradients ---- */

/* A tile of attention's backward pass: rows are keys, columns (a multiple of 32, at most LN_ATTEND_BLOCK) are queries;
 * rows of all matrices are LN_ATTEND_STRIDE apart. */
typedef struct ln_attend_gradient_tile {
    int64_t rows, columns;
    float *weights;  /* in: scores, s / factor; out: P = 2^(cap tanh(s) + bias - shift), or 2^(s + bias - shift) for cap
                        0 */
    float *gradient; /* in: of P; out: of s but for constants, P (gradient - delta) (1 - tanh(s)^2). NULL: none */
    float *uncapped; /* out: the same without the last factor; NULL: not wanted */
    const float *bias;    /* NULL: none */
    const uint32_t *bits; /* [rows][LN_ATTEND_BLOCK / 32]: bit c % 32 of word c / 32: row seen by column c, else P and
                             its gradient are 0. NULL: all */
    const float *shift, *delta; /* [columns] */
    float factor, cap;          /* of scores: s = factor * score; cap 0: none */
} ln_attend_gradient_tile;
typedef void (*ln_attend_gradient)(const ln_attend_gradient_tile *tile);
/* to[c * to_stride + r] = from[r * from_stride + c]; rows a multiple of LN_ATTEND_LANES, columns of 8. */
typedef void (*ln_attend_transpose)(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float *to,
                                    int64_t to_stride);

/* Products of bf16 with sums of float32. The right-hand side holds pairs of rows: [rows / 2][columns][2]. */
typedef struct ln_attend_pairs {
    const char *name; /* NULL, and all functions: not on this processor */

    void (*start)(void); /* before and after some products of a thread */
    void (*stop)(void);
    /* C [rows][columns] (+)= A [rows][depth] B. All three are multiples of 32; strides of A's rows and B's pairs of
     * rows in bytes, rows of C are LN_ATTEND_STRIDE floats apart. */
    void (*product)(const void *a, int64_t a_stride, const void *b, int64_t b_stride, int64_t rows, int64_t columns,
                    int64_t depth, float *c, bool add);
    /* Pairs of an even number of rows, columns a multiple of 16; strides in bytes. */
    void (*join)(const void *from, int64_t from_stride, int64_t rows, int64_t columns, void *pairs,
                 int64_t pairs_stride);
    /* Rows of floats, from_stride floats apart, to the nearest bf16, to_stride bytes apart. */
    void (*round)(const float *from, int64_t from_stride, int64_t rows, int64_t columns, void *to, int64_t to_stride);
    /* P and its gradient of a tile without cap, to bf16: `rows` rows, an even number, of which those from tile->rows on
     * are zeros; the gradient also as pairs. 2^x has a relative error of 7.5e-5. */
    void (*weigh)(const ln_attend_gradient_tile *tile, int64_t rows, void *weights, void *gradient, int64_t stride,
                  void *pairs, int64_t pairs_stride);
} ln_attend_pairs;

typedef struct ln_attend_kernels {
    const char *name;
    ln_attend_product many;          /* any rows, B of floats: bound by arithmetic */
    ln_attend_product few[LN_TYPES]; /* LN_ATTEND_FEW_ROWS or so, B of any precision: bound by memory */
    ln_attend_decode decode[LN_TYPES];
    ln_attend_integer integer;
    ln_attend_cap cap;
    bool (*finite)(const float *x, int64_t n); /* n a multiple of 8: none of them is infinite or NaN */
    ln_attend_softmax softmax;
    ln_attend_bf16 bf16; /* beside the others, which serve what it does not */
    ln_attend_gradient gradient;
    ln_attend_transpose transpose;
    ln_attend_pairs pairs;
} ln_attend_kernels;

void ln_attend_choose(unsigned cpu, ln_attend_kernels *kernels);

#endif
