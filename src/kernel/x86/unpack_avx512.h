/* Unpacking 256 weights of each block format in AVX-512 registers, one shape for all:
 *
 *     weight i = scale[i / 16] * u[i] + minimum[i / 16],   u unsigned bytes in order.
 *
 * Formats of signed values are moved up by their offset (128, 16, 8, 32, 4: a power of two), and minimum = -offset *
 * scale, which is exact, moves them back. A block of fewer values is a group of eight. */
#ifndef LN_KERNEL_X86_UNPACK_AVX512_H
#define LN_KERNEL_X86_UNPACK_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LN_INLINE static inline __attribute__((always_inline))

typedef struct ln_unpacked {
    __m512i u[4];
    __m512 scale, minimum;
    int offset; /* 0 in formats that have minimums of their own */
} ln_unpacked;

typedef ln_unpacked (*ln_unpack512)(const unsigned char *p);

LN_INLINE ln_unpacked ln_offset(ln_unpacked w, int offset) {
    w.minimum = _mm512_mul_ps(w.scale, _mm512_set1_ps((float)-offset));
    w.offset = offset;
    return w;
}

/* ---- eight blocks of 32 ---- */

/* The float16 numbers at word `at` of eight blocks of `words` words, each twice. Words 0 .. 63 are read at p, the rest
 * at word `rest` (as one or two vectors), all inside the blocks. */
LN_INLINE __m512 ln_block_halves(const unsigned char *p, int words, int at, int rest, int rest_vectors) {
    _Alignas(64) int16_t low[32] = {0}, high[32] = {0};
    __mmask32 from_high = 0;
    for (int g = 0; g < 16; g++) {
        const int word = g / 2 * words + at;
        low[g] = (int16_t)(word & 63);
        high[g] = (int16_t)((word - rest) & 63);
        if (word > 63) from_high |= (__mmask32)1 << g;
    }
    const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
    __m512i halves = _mm512_permutex2var_epi16(a, _mm512_load_si512(low), b);
    if (rest_vectors == 1)
        halves =
            _mm512_mask_permutexvar_epi16(halves, from_high, _mm512_load_si512(high), _mm512_loadu_si512(p + 2 * rest));
    if (rest_vectors == 2) {
        const __m512i c = _mm512_loadu_si512(p + 2 * rest), d = _mm512_loadu_si512(p + 2 * rest + 64);
        const __m512i others = _mm512_permutex2var_epi16(c, _mm512_load_si512(high), d);
        halves = _mm512_mask_mov_epi16(halves, from_high, others);
    }
    return _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
}

/* Nibbles at p and q, 16 bytes each, to 64 bytes: low of p, high of p, low of q, high of q. */
LN_INLINE __m512i ln_nibbles(const unsigned char *p, const unsigned char *q) {
    const __m512i shifts =
        _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0);
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
    v = _mm512_mask_broadcast_i32x4(v, 0xff00, _mm_loadu_si128((const __m128i *)(const void *)q));
    return _mm512_and_si512(_mm512_srlv_epi16(v, shifts), _mm512_set1_epi8(15));
}

/* The 32 fifth bits at p and at q, worth 16 each. */
LN_INLINE __m512i ln_fifth(__m512i nibbles, const unsigned char *p, const unsigned char *q) {
    uint32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, q, 4);
    return _mm512_mask_add_epi8(nibbles, (__mmask64)high << 32 | low, nibbles, _mm512_set1_epi8(16));
}

LN_INLINE ln_unpacked ln_unpack512_q8_0(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) {
        const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(p + 68 * k + 2));
        const __m512i both = _mm512_inserti64x4(
            _mm512_castsi256_si512(low), _mm256_loadu_si256((const __m256i *)(const void *)(p + 68 * k + 36)), 1);
        w.u[k] = _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    }
    w.scale = ln_block_halves(p, 17, 0, 64, 2);
    return ln_offset(w, 128);
}
LN_INLINE ln_unpacked ln_unpack512_q4_0(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) w.u[k] = ln_nibbles(p + 36 * k + 2, p + 36 * k + 20);
    w.scale = ln_block_halves(p, 9, 0, 0, 0);
    return ln_offset(w, 8);
}
LN_INLINE ln_unpacked ln_unpack512_q4_1(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) w.u[k] = ln_nibbles(p + 40 * k + 4, p + 40 * k + 24);
    w.scale = ln_block_halves(p, 10, 0, 48, 1);
    w.minimum = ln_block_halves(p, 10, 1, 48, 1);
    w.offset = 0;
    return w;
}
LN_INLINE ln_unpacked ln_unpack512_q5_0(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) {
        const unsigned char *a = p + 44 * k, *b = a + 22;
        w.u[k] = ln_fifth(ln_nibbles(a + 6, b + 6), a + 2, b + 2);
    }
    w.scale = ln_block_halves(p, 11, 0, 56, 1);
    return ln_offset(w, 16);
}
LN_INLINE ln_unpacked ln_unpack512_q5_1(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) {
        const unsigned char *a = p + 48 * k, *b = a + 24;
        w.u[k] = ln_fifth(ln_nibbles(a + 8, b + 8), a + 4, b + 4);
    }
    w.scale = ln_block_halves(p, 12, 0, 64, 1);
    w.minimum = ln_block_halves(p, 12, 1, 64, 1);
    w.offset = 0;
    return w;
}

/* ---- blocks of 256 ---- */

/* The float16 number at p, its sign turned by `flip` (0x8000). */
LN_INLINE __m512 ln_half_broadcast(const unsigned char *p, int flip) {
    uint16_t half;
    memcpy(&half, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)(half ^ flip)));
}
LN_INLINE __m128i ln_load128(const unsigned char *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
LN_INLINE __m512i ln_twice256(const unsigned char *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* Bits `first` and up of the bytes of the first half, `second` and up of those of the second; others' bits above them.
 */
LN_INLINE __m512i ln_down(__m512i v, int first, int second) {
    return _mm512_srlv_epi16(v,
                             _mm512_inserti64x4(_mm512_set1_epi16((short)first), _mm256_set1_epi16((short)second), 1));
}
LN_INLINE __m512i ln_keep(__m512i v, int bits) {
    return _mm512_and_si512(v, _mm512_set1_epi8((char)((1 << bits) - 1)));
}
/* Bytes of low_bits bits of `low`, below high_bits bits of `high` that start at bit `first` in the first half and at
 * `second` in the second: a rotation brings them into place, whatever else it brings is masked. */
LN_INLINE __m512i ln_join(__m512i low, int low_bits, __m512i high, int first, int second, int high_bits) {
    const __m512i turns =
        _mm512_inserti64x4(_mm512_set1_epi32(first - low_bits), _mm256_set1_epi32(second - low_bits), 1);
    const __m512i below = _mm512_set1_epi8((char)((1 << low_bits) - 1));
    const __m512i both = _mm512_ternarylogic_epi64(below, low, _mm512_rorv_epi32(high, turns), 0xca);
    return ln_keep(both, low_bits + high_bits);
}

LN_INLINE ln_unpacked ln_unpack512_q2_k(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++)
        w.u[k] = ln_keep(ln_down(ln_twice256(p + 16 + k / 2 * 32), k % 2 * 4, k % 2 * 4 + 2), 2);
    const __m512i both = _mm512_cvtepu8_epi32(ln_load128(p));
    const __m512 s = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15)));
    const __m512 m = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4));
    w.scale = _mm512_mul_ps(ln_half_broadcast(p + 80, 0), s);
    w.minimum = _mm512_mul_ps(ln_half_broadcast(p + 82, 0x8000), m);
    w.offset = 0;
    return w;
}

LN_INLINE ln_unpacked ln_unpack512_q3_k(const unsigned char *p) {
    ln_unpacked w;
    const __m512i high = ln_twice256(p);
    for (int k = 0; k < 4; k++) {
        const __m512i low = ln_down(ln_twice256(p + 32 + k / 2 * 32), k % 2 * 4, k % 2 * 4 + 2);
        w.u[k] = ln_join(low, 2, high, 2 * k, 2 * k + 1, 1);
    }
    uint64_t nibbles;
    uint32_t tops;
    memcpy(&nibbles, p + 96, 8);
    memcpy(&tops, p + 104, 4);
    const __m128i low =
        _mm_set_epi64x((long long)(nibbles >> 4 & 0x0f0f0f0f0f0f0f0f), (long long)(nibbles & 0x0f0f0f0f0f0f0f0f));
    const __m128i top =
        _mm_and_si128(_mm_srlv_epi32(_mm_set1_epi32((int)tops), _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
    const __m128i scale = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(top, 4)), _mm_set1_epi8(32));
    w.scale = _mm512_mul_ps(ln_half_broadcast(p + 108, 0), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scale)));
    return ln_offset(w, 4);
}

/* Scales and minimums of Q4_K and Q5_K, each twice: see unpack_six_bits in number/format.c. */
LN_INLINE void ln_six_bits(const unsigned char *p, ln_unpacked *w) {
    uint32_t a, b, c;
    memcpy(&a, p + 4, 4);
    memcpy(&b, p + 8, 4);
    memcpy(&c, p + 12, 4);
    const uint32_t s = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), m = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    const __m128i scales = _mm_cvtsi64_si128((long long)((uint64_t)s << 32 | (a & 0x3f3f3f3f)));
    const __m128i minimums = _mm_cvtsi64_si128((long long)((uint64_t)m << 32 | (b & 0x3f3f3f3f)));
    const __m512i s16 = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(scales, scales));
    const __m512i m16 = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(minimums, minimums));
    w->scale = _mm512_mul_ps(ln_half_broadcast(p, 0), _mm512_cvtepi32_ps(s16));
    w->minimum = _mm512_mul_ps(ln_half_broadcast(p + 2, 0x8000), _mm512_cvtepi32_ps(m16));
}

LN_INLINE ln_unpacked ln_unpack512_q4_k(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) w.u[k] = ln_keep(ln_down(ln_twice256(p + 16 + 32 * k), 0, 4), 4);
    ln_six_bits(p, &w);
    w.offset = 0;
    return w;
}
LN_INLINE ln_unpacked ln_unpack512_q5_k(const unsigned char *p) {
    ln_unpacked w;
    const __m512i high = ln_twice256(p + 16);
    for (int k = 0; k < 4; k++)
        w.u[k] = ln_join(ln_down(ln_twice256(p + 48 + 32 * k), 0, 4), 4, high, 2 * k, 2 * k + 1, 1);
    ln_six_bits(p, &w);
    w.offset = 0;
    return w;
}
LN_INLINE ln_unpacked ln_unpack512_q6_k(const unsigned char *p) {
    ln_unpacked w;
    for (int k = 0; k < 4; k++) {
        const __m512i nibbles = _mm512_loadu_si512(p + k / 2 * 64), tops = ln_twice256(p + 128 + k / 2 * 32);
        const __m512i low = k % 2 ? _mm512_srli_epi16(nibbles, 4) : nibbles;
        w.u[k] = ln_join(low, 4, tops, k % 2 * 4, k % 2 * 4 + 2, 2);
    }
    w.scale =
        _mm512_mul_ps(ln_half_broadcast(p + 208, 0), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(ln_load128(p + 192))));
    return ln_offset(w, 32);
}

/* ---- the end of a row ---- */

/* Scale and minimum become 0 behind the first `groups` groups, whatever follows a row. */
LN_INLINE ln_unpacked ln_first_groups(ln_unpacked w, int groups) {
    const __mmask16 keep = (__mmask16)((1u << groups) - 1);
    w.scale = _mm512_maskz_mov_ps(keep, w.scale);
    w.minimum = _mm512_maskz_mov_ps(keep, w.minimum);
    return w;
}

#endif
