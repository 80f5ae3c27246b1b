/* The inside of exact attention, for attention.c and its ways of doing a block (attention_f32.c, attention_bf16.c). */
#ifndef LN_MIXER_ATTENTION_INSIDE_H
#define LN_MIXER_ATTENTION_INSIDE_H

#include "base/checked.h"
#include "mixer/attention.h"

enum {
    LN_DEPTH = 256, /* columns of queries or outputs side by side in one matrix of the tile */
    LN_BLOCK_PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS,
};

typedef struct ln_attention_tile ln_attention_tile;

/* A way of computing: its tile's shape, the parts of the worker's scratch, and its steps. */
typedef struct ln_attention_way {
    int64_t (*tile_rows)(const ln_kernels *kernels, const ln_attention *attention);
    int64_t row_unit; /* a tile's rows are padded to a multiple of this, with queries of zeros */
    int64_t blocks;   /* most that one step takes, where all rows see them as they are */
    /* Floats of scratch of a worker for tiles of `rows` rows, beside maximum, sum and output. */
    uint64_t (*scratch)(const ln_kernels *kernels, const ln_attention *attention, int64_t rows);
    /* Sets output_stride and output_panel, and takes the queries. */
    void (*load)(ln_attention_tile *tile);
    /* Keys begin .. end - 1 of one block, of which the tile's rows see all or some, or of several that they see whole.
     * false: this way cannot, and the item must be done by ln_attention_f32 from its beginning. */
    bool (*step)(ln_attention_tile *tile, int64_t begin, int64_t end, ln_sight sight);
} ln_attention_way;

extern const ln_attention_way ln_attention_f32, ln_attention_bf16;

typedef struct ln_attention_call {
    const ln_kernels *kernels;
    const ln_attention *attention;
    const ln_attention_way *way;
    const ln_attention_sequence *sequences;
    int64_t count, group, rows, tile_tokens; /* rows: most in a tile */
    int64_t *first_item;                     /* [count + 1]: items before each sequence */
    int64_t *first_block;                    /* [items + 1], where items are split into spans */
    int64_t items, blocks, spans;            /* spans 0: an item is a task */
    uint64_t worker_floats;
    float *partial; /* [2 spans][rows][2 + value_size] */
    float *scratch;
} ln_attention_call;

/* An item: some tokens of a sequence x the heads that share one key-value head. Row r is token r / group, head
 * r % group. */
struct ln_attention_tile {
    const ln_attention_call *call;
    const ln_attention_way *way;
    const ln_attention_sequence *sequence;
    ln_mask mask;
    int64_t head;            /* key-value head */
    int64_t token, position; /* of the first token */
    int64_t tokens, rows;
    bool adjusts;                        /* there is a cap or a bias */
    int64_t padded_rows;                 /* what `output`, and the way's scratch, are laid out for */
    float *output;                       /* see ln_tile_output */
    int64_t output_stride, output_panel; /* floats from row to row, from LN_DEPTH columns to the next */
    float *maximum;                      /* [padded_rows], of scores in base 2 */
    float *sum;                          /* [padded_rows][LN_ATTEND_LANES] */
    float *scratch;                      /* the way's */
};

static inline int64_t ln_depth_panels(int64_t size) {
    return ln_ceil_div(size, LN_DEPTH);
}
/* Where columns 32 panel and up of the tile's outputs are. */
static inline float *ln_tile_output(const ln_attention_tile *tile, int64_t row, int64_t panel) {
    enum { PANELS = LN_DEPTH / LN_PANEL };
    return tile->output + row * tile->output_stride + panel / PANELS * tile->output_panel + panel % PANELS * LN_PANEL;
}
/* Of the page of a key. */
static inline const ln_page_layout *ln_tile_layout(const ln_attention_tile *tile, int64_t key) {
    return ln_page_layout_at(&tile->sequence->view, key / LN_PAGE_TOKENS);
}
static inline const unsigned char *ln_tile_page(const ln_attention_tile *tile, int64_t key) {
    return ln_page_of(&tile->sequence->view, tile->head, key / LN_PAGE_TOKENS);
}
/* Tokens that are in the page that begins at `key`, before `end`. */
static inline int64_t ln_tokens_there(const ln_attention_sequence *sequence, int64_t key, int64_t end) {
    const int64_t count = sequence->counts ? sequence->counts[key / LN_PAGE_TOKENS] : LN_PAGE_TOKENS;
    return ln_min_i64(count, end - key);
}
/* The mask's view of tokens t .. t + tokens - 1 of the tile. */
static inline ln_mask_tile ln_tile_queries(const ln_attention_tile *tile, int64_t t, int64_t tokens) {
    const int64_t group = tile->call->group;
    return (ln_mask_tile){tile->head * group, group, tile->position + t, tokens};
}
/* Cap, bias and mask of one row's scores of keys begin .. end - 1, where there are any. */
void ln_tile_adjust(const ln_attention_tile *tile, int64_t row, int64_t begin, int64_t end, ln_sight sight,
                    float *scores);
/* Cap or bias: then scores must be seen before they are softened. */
static inline bool ln_tile_adjusts(const ln_attention_tile *tile) {
    return tile->adjusts;
}

#endif
