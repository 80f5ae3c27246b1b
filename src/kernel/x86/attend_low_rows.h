/* Any number of rows of integers and pages of low bits, for attend_low_*.c alone: the includer has score_channels,
 * score_tokens and add_pages for 1 to GROUP rows, which are constants there. Gives scores_q2 .. scores_q5 and
 * outputs_q2 .. outputs_q5. */

#define BY_ROWS(rows, CALL) \
    switch (rows) {         \
    case 1:                 \
        CALL(1);            \
        break;              \
    case 2:                 \
        CALL(2);            \
        break;              \
    case 3:                 \
        CALL(3);            \
        break;              \
    default:                \
        CALL(4);            \
    }

INLINE void scores_of(int bits, const ln_attend_operand *keys, const ln_attend_integers *a, int64_t rows, float *c,
                      bool add) {
    for (int64_t r = 0; r < rows; r += GROUP) {
        float *to = c + r * LN_ATTEND_STRIDE;
        for (const ln_attend_part *part = keys->parts; part < keys->parts + keys->count; part++, to += LN_PAGE_TOKENS) {
            if (part->channels) {
#define CALL(n) score_channels(bits, part, keys->depth, a + r, n, to, add)
                BY_ROWS(rows - r, CALL)
#undef CALL
            } else {
#define CALL(n) score_tokens(bits, part, keys->depth, a + r, n, to, add)
                BY_ROWS(rows - r, CALL)
#undef CALL
            }
        }
    }
}

INLINE void outputs_of(int bits, const ln_attend_operand *values, int64_t panels, const float *weights, int64_t rows,
                       float *c) {
    for (int64_t r = 0; r < rows; r += GROUP) {
#define CALL(n) add_pages(bits, values, panels, weights + r * LN_ATTEND_STRIDE, n, c + r * LN_ATTEND_STRIDE)
        BY_ROWS(rows - r, CALL)
#undef CALL
    }
}

#define PRECISION(bits)                                                                                              \
    static void scores_q##bits(const ln_attend_operand *keys, const ln_attend_integers *a, int64_t rows, float *c,   \
                               bool add) {                                                                           \
        scores_of(bits, keys, a, rows, c, add);                                                                      \
    }                                                                                                                \
    static void outputs_q##bits(const ln_attend_operand *values, int64_t panels, const float *weights, int64_t rows, \
                                float *c) {                                                                          \
        outputs_of(bits, values, panels, weights, rows, c);                                                          \
    }
PRECISION(2)
PRECISION(3)
PRECISION(4)
PRECISION(5)
