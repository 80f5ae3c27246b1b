/* How the keys of a batch are divided over the blocks of a decode kernel, on the device, from the lengths that it finds
 * there.
 *
 * A unit is a tile of 16 (or 64) tokens of one sequence and one key-value head. All units lie in a line, sequence by
 * sequence, head by head, token by token; share b is units b n .. b n + n - 1, n = ceil(units / shares): a run of
 * segments, of which only the first and the last may go on in other shares. But where sequences are about equally long
 * and shares divide evenly among them and their heads, each has `parts` shares of its own: less is begun and joined,
 * and the heads of a page are read at the same time. Where the rows of a head are several tiles,
 * as many blocks have the same share, one tile each, next to one another so that they meet in the second cache. */
#ifndef LN_KERNEL_CUDA_DECODE_WORK_CUH
#define LN_KERNEL_CUDA_DECODE_WORK_CUH

#include "kernel/cuda/decode_layout.h"
#include "kernel/cuda/instructions.cuh"

namespace ln {

/* Where plain rows are in what the copy engine was told, [row][lines of 128 bytes]: a page is so many rows after the
 * one before, a head so many rows and so many lines. */
struct page_steps {
    int page, head, lines;
};

/* What a kernel is given. */
struct decode_run {
    ln_cuda_decode_tensors of;
    int sequences, queries, heads, key_value_heads;
    int group, rows;            /* query heads of a key-value head; rows: group * queries */
    int tiles, shares;          /* tiles of rows; blocks: tiles * shares */
    int page_shift, unit_shift; /* log2 of the tokens of a page and of a unit */
    int window, least;          /* least: units of a share */
    page_steps key, value;      /* of codes, in pieces of 16 bytes */
    float scale;                /* of scores, with log2(e) in it; with a cap: cap * log2(e) */
    float cap_scale;            /* 2 scale / cap, with log2(e) in it; 0: no cap */
    int query_element, output_float32;
    float *partial; /* [blocks][2][rows of a tile][value_size + 2]; all NOT_YET before and after a run */
    int parts;      /* shares of a sequence and head where all are about as long; 0: they do not divide evenly */
    int joined;     /* another kernel joins what blocks leave, and words are what they are */
    int splits, tiles_most; /* of short contexts: blocks of a sequence and head; tiles of the capacity */
};
#define LN_CUDA_NOT_YET 0xffffffffu /* a NaN that no sum is */

/* A share's units of one sequence and head. */
struct decode_segment {
    int sequence, head, length;
    int first;      /* number of the tile of tokens that unit 0 is */
    int units;      /* of the sequence and head */
    int begin, end; /* those of this share */
    int left;       /* the share's units after these */
    int origin;     /* the number of unit 0 in the line */
    int number;     /* of the sequence and head */
};

static __device__ __forceinline__ int decode_units(const decode_run &run, int length, int *first) {
    const int low = run.window ? max(0, length - run.queries - run.window + 1) : 0;
    *first = low >> run.unit_shift;
    return length > 0 ? ((length - 1) >> run.unit_shift) + 1 - *first : 0;
}

static __device__ __forceinline__ void segment_fill(decode_segment &at) {
    at.end = min(at.units, at.begin + at.left);
    at.left -= at.end - at.begin;
}
/* To the next segment of a share that has units left. */
static __device__ __forceinline__ void segment_next(const decode_run &run, decode_segment &at) {
    at.origin += at.units;
    at.begin = 0;
    if (++at.head == run.key_value_heads) {
        at.head = 0;
        do {
            at.length = run.of.lengths[++at.sequence];
            at.units = decode_units(run, at.length, &at.first);
        } while (at.units == 0);
    }
    segment_fill(at);
}

/* a / b of 0 <= a, 0 < b: in fewer steps than the compiler's. */
static __device__ __forceinline__ int quotient(int a, int b) {
    int q = (int)((float)a * reciprocal((float)b)), left = a - q * b;
    while (left < 0) q--, left += b;
    while (left >= b) q++, left -= b;
    return q;
}

/* Of this block, whose tile of rows is the rest. */
static __device__ __forceinline__ int share_number(const decode_run &run) {
    return run.tiles == 1 ? (int)blockIdx.x : (int)blockIdx.x / run.tiles;
}
static __device__ __forceinline__ int tile_number(const decode_run &run) {
    return run.tiles == 1 ? 0 : (int)blockIdx.x % run.tiles;
}

/* Units of each of `parts` parts. */
static __device__ __forceinline__ int part_of(int units, int parts) {
    return quotient(units + parts - 1, parts);
}
static __device__ __forceinline__ bool about_equal(int64_t even, int64_t all) {
    return even * 32 <= all * 33;
}
/* The units of a share, for so many in all and so many of the longest sequence; negative: the number of parts of
 * each sequence and head. */
static __device__ __forceinline__ int share_of(const decode_run &run, int all, int most) {
    if (run.parts && about_equal((int64_t)most * run.sequences * run.key_value_heads, all)) return -run.parts;
    return max(part_of(all, run.shares), run.least);
}

/* A part of one sequence and head. */
static __device__ __forceinline__ decode_segment segment_part(const decode_run &run, int parts, int share) {
    decode_segment at = {};
    at.number = parts == 1 ? share : quotient(share, parts);
    at.sequence = quotient(at.number, run.key_value_heads);
    if (at.sequence >= run.sequences) return at;
    at.head = at.number - at.sequence * run.key_value_heads;
    at.length = run.of.lengths[at.sequence];
    at.units = decode_units(run, at.length, &at.first);
    const int each = part_of(at.units, parts);
    at.begin = min((share - at.number * parts) * each, at.units);
    at.end = min(at.begin + each, at.units);
    return at;
}

/* The first segment of this block; every warp finds it for itself: its lanes sum the units of a slab of sequences each.
 * share: units of a share. No units: begin = end. */
static __device__ __forceinline__ decode_segment segment_first(const decode_run &run, int *share) {
    const int lane = threadIdx.x % 32, slab = (run.sequences + 31) / 32, heads = run.key_value_heads;
    const int low = lane * slab, high = min(run.sequences, low + slab);
    int own = 0, length = 0, most = 0, unused;
    for (int s = low; s < high; s++) {
        const int units = decode_units(run, length = run.of.lengths[s], &unused);
        own += units, most = max(most, units);
    }
    int until = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, until, step);
        if (lane >= step) until += other;
        most = max(most, __shfl_xor_sync(~0u, most, step));
    }
    const int all = __shfl_sync(~0u, until, 31) * heads;
    *share = share_of(run, all, most);
    if (*share < 0) return segment_part(run, -*share, share_number(run));
    const int begin = share_number(run) * *share;
    decode_segment at = {};
    if (begin >= all) return at;
    const int holder = __ffs((int)__ballot_sync(~0u, until * heads > begin)) - 1;
    int sequence = low, before = until - own;
    if (lane == holder && slab > 1)
        for (;;) {
            length = run.of.lengths[sequence];
            const int units = decode_units(run, length, &unused);
            if ((before + units) * heads > begin) break;
            before += units;
            sequence++;
        }
    at.sequence = __shfl_sync(~0u, sequence, holder);
    before = __shfl_sync(~0u, before, holder);
    at.length = __shfl_sync(~0u, length, holder);
    at.units = decode_units(run, at.length, &at.first);
    at.head = quotient(begin - before * heads, at.units);
    at.origin = before * heads + at.head * at.units;
    at.begin = begin - at.origin;
    at.left = min(*share, all - begin);
    segment_fill(at);
    return at;
}

/* Keys low .. high - 1 are those that some row, or every row, of the sequence sees. */
struct decode_sight {
    int low, high;
};
static __device__ __forceinline__ decode_sight seen_by_some(const decode_run &run, int length) {
    return {run.window ? max(0, length - run.queries - run.window + 1) : 0, length};
}
static __device__ __forceinline__ decode_sight seen_by_all(const decode_run &run, int length) {
    return {run.window ? max(0, length - run.window) : 0, length - run.queries + 1};
}
/* Of a row of the part. */
static __device__ __forceinline__ decode_sight seen_by_row(const decode_run &run, int length, int row) {
    const int position = length - run.queries + row / run.group;
    return {run.window ? max(0, position - run.window + 1) : 0, position + 1};
}

} // namespace ln

#endif
