/* The tables of Unicode's normalisation form C. */
#ifndef LN_MODEL_TOKENIZER_NFC_H
#define LN_MODEL_TOKENIZER_NFC_H

#include <stdint.h>

typedef struct ln_decomposition {
    uint32_t code, first, second; /* second 0: a single character */
} ln_decomposition;

typedef struct ln_combining_range {
    uint32_t first, last;
    uint32_t class; /* canonical combining class of all of them */
} ln_combining_range;

extern const ln_decomposition ln_decompositions[]; /* by code */
extern const int ln_decomposition_count;
extern const uint16_t ln_compositions[]; /* those decompositions that compose again, by first and second */
extern const int ln_composition_count;
extern const uint32_t ln_joining_starters[]; /* characters of class 0 that compose with the one before; few */
extern const int ln_joining_starter_count;
extern const ln_combining_range ln_combining_ranges[]; /* ascending; class 0 elsewhere */
extern const int ln_combining_range_count;

#endif
