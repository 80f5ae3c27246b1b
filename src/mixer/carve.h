/* One block of memory cut into arrays, each aligned to 64 bytes. With base NULL nothing but the size is found: the same
 * code then sizes a workspace and lays it out. */
#ifndef LN_MIXER_CARVE_H
#define LN_MIXER_CARVE_H

#include "base/checked.h"

typedef struct ln_carver {
    unsigned char *base;
    uint64_t used;
    bool overflow; /* stays true: `used` means nothing then */
} ln_carver;

static inline void *ln_carve(ln_carver *carver, uint64_t count, uint64_t size) {
    uint64_t bytes, end;
    if (!ln_multiply_u64(count, size, &bytes) || bytes > UINT64_MAX / 2 ||
        !ln_add_u64(carver->used, ln_round_up(bytes, 64), &end)) {
        carver->overflow = true;
        return NULL;
    }
    unsigned char *place = carver->base ? carver->base + carver->used : NULL;
    carver->used = end;
    return place;
}

/* Bytes of `count` blocks like it; UINT64_MAX: too many to be counted. */
static inline uint64_t ln_carved(const ln_carver *carver, int count) {
    uint64_t bytes;
    return !carver->overflow && ln_multiply_u64(carver->used, (uint64_t)count, &bytes) ? bytes : UINT64_MAX;
}

#endif
