/* Unpacking 256 weights of each block format in AVX2 registers, one shape for all:
 *
 *     weight i = scale[i / 16] * q[i] + minimum[i / 16]
 *
 * with q unsigned below 64, so that vpmaddubsw cannot saturate: formats of signed values are moved up by their offset,
 * and minimum = -offset * scale, which is exact, moves them back. Q8_0 alone is given signed, with no minimum. A block
 * of fewer values is a group of eight. */
#ifndef LN_KERNEL_X86_UNPACK_AVX2_H
#define LN_KERNEL_X86_UNPACK_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define LN_INLINE static inline __attribute__((always_inline))

typedef struct ln_unpacked {
    __m256i q[8];
    __m256 scale[2], minimum[2];
} ln_unpacked;

typedef void (*ln_unpack256)(const unsigned char *p, ln_unpacked *w);

LN_INLINE __m256i ln_load256(const unsigned char *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
LN_INLINE __m128i ln_load128(const unsigned char *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
LN_INLINE short ln_load_half(const unsigned char *p) {
    short half;
    __builtin_memcpy(&half, p, 2);
    return half;
}

LN_INLINE void ln_minus(int offset, ln_unpacked *w) {
    for (int i = 0; i < 2; i++) w->minimum[i] = _mm256_mul_ps(w->scale[i], _mm256_set1_ps((float)-offset));
}

/* ---- eight blocks of 32 ---- */

/* The float16 numbers at p and at seven more places `bytes` apart, each twice. */
LN_INLINE void ln_block_halves(const unsigned char *p, int bytes, __m256 to[2]) {
    const __m128i h =
        _mm_set_epi16(ln_load_half(p + 7 * bytes), ln_load_half(p + 6 * bytes), ln_load_half(p + 5 * bytes),
                      ln_load_half(p + 4 * bytes), ln_load_half(p + 3 * bytes), ln_load_half(p + 2 * bytes),
                      ln_load_half(p + bytes), ln_load_half(p));
    to[0] = _mm256_cvtph_ps(_mm_unpacklo_epi16(h, h));
    to[1] = _mm256_cvtph_ps(_mm_unpackhi_epi16(h, h));
}

LN_INLINE __m256i ln_nibbles(const unsigned char *p) {
    const __m128i v = ln_load128(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
}

/* The 32 fifth bits at p, worth 16 each. */
LN_INLINE __m256i ln_fifth(const unsigned char *p) {
    int bits;
    __builtin_memcpy(&bits, p, 4);
    const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i tests = _mm256_set1_epi64x((long long)0x8040201008040201);
    const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), tests);
    return _mm256_and_si256(_mm256_cmpeq_epi8(set, tests), _mm256_set1_epi8(16));
}

LN_INLINE void ln_unpack256_q8_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = ln_load256(p + 34 * j + 2);
    ln_block_halves(p, 34, w->scale);
    w->minimum[0] = w->minimum[1] = _mm256_setzero_ps();
}
LN_INLINE void ln_unpack256_q4_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = ln_nibbles(p + 18 * j + 2);
    ln_block_halves(p, 18, w->scale);
    ln_minus(8, w);
}
LN_INLINE void ln_unpack256_q4_1(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = ln_nibbles(p + 20 * j + 4);
    ln_block_halves(p, 20, w->scale);
    ln_block_halves(p + 2, 20, w->minimum);
}
LN_INLINE void ln_unpack256_q5_0(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = _mm256_or_si256(ln_nibbles(p + 22 * j + 6), ln_fifth(p + 22 * j + 2));
    ln_block_halves(p, 22, w->scale);
    ln_minus(16, w);
}
LN_INLINE void ln_unpack256_q5_1(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = _mm256_or_si256(ln_nibbles(p + 24 * j + 8), ln_fifth(p + 24 * j + 4));
    ln_block_halves(p, 24, w->scale);
    ln_block_halves(p + 2, 24, w->minimum);
}

/* ---- blocks of 256 ---- */

/* Bits `shift` and up of the bytes at p. */
LN_INLINE __m256i ln_field(const unsigned char *p, int shift, int keep) {
    return _mm256_and_si256(_mm256_srli_epi16(ln_load256(p), shift), _mm256_set1_epi8((char)keep));
}
/* Bit j of the bytes at p, moved to the value `worth`. */
LN_INLINE __m256i ln_bit(const unsigned char *p, int j, int worth) {
    const __m256i test = _mm256_set1_epi8((char)(1 << j));
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(ln_load256(p), test), test);
    return _mm256_and_si256(set, _mm256_set1_epi8((char)worth));
}

/* factor * 16 signed bytes */
LN_INLINE void ln_scaled(const unsigned char *half, int sign, __m128i bytes, __m256 to[2]) {
    const __m256 factor =
        _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi16(ln_load_half(half))), _mm256_set1_ps((float)sign));
    to[0] = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    to[1] = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}

LN_INLINE void ln_unpack256_q2_k(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = ln_field(p + 16 + j / 4 * 32, 2 * (j % 4), 3);
    const __m128i both = ln_load128(p), low = _mm_set1_epi8(15);
    ln_scaled(p + 80, 1, _mm_and_si128(both, low), w->scale);
    ln_scaled(p + 82, -1, _mm_and_si128(_mm_srli_epi16(both, 4), low), w->minimum);
}

LN_INLINE void ln_unpack256_q3_k(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++)
        w->q[j] = _mm256_or_si256(ln_field(p + 32 + j / 4 * 32, 2 * (j % 4), 3), ln_bit(p, j, 4));
    const uint64_t nibbles = 0x0f0f0f0f0f0f0f0f;
    uint64_t packed;
    int tops;
    __builtin_memcpy(&packed, p + 96, 8);
    __builtin_memcpy(&tops, p + 104, 4);
    const __m128i low = _mm_set_epi64x((long long)(packed >> 4 & nibbles), (long long)(packed & nibbles));
    const __m128i top = _mm_srlv_epi32(_mm_set1_epi32(tops), _mm_set_epi32(6, 4, 2, 0));
    const __m128i scale = _mm_or_si128(low, _mm_slli_epi16(_mm_and_si128(top, _mm_set1_epi8(3)), 4));
    ln_scaled(p + 108, 1, _mm_sub_epi8(scale, _mm_set1_epi8(32)), w->scale);
    ln_minus(4, w);
}

/* Scales and minimums of Q4_K and Q5_K, each twice: see unpack_six_bits in number/format.c. */
LN_INLINE void ln_six_bits(const unsigned char *p, ln_unpacked *w) {
    uint32_t a, b, c;
    __builtin_memcpy(&a, p + 4, 4);
    __builtin_memcpy(&b, p + 8, 4);
    __builtin_memcpy(&c, p + 12, 4);
    const uint32_t s = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), m = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    const __m128i scales = _mm_cvtsi64_si128((long long)((uint64_t)s << 32 | (a & 0x3f3f3f3f)));
    const __m128i minimums = _mm_cvtsi64_si128((long long)((uint64_t)m << 32 | (b & 0x3f3f3f3f)));
    ln_scaled(p, 1, _mm_unpacklo_epi8(scales, scales), w->scale);
    ln_scaled(p + 2, -1, _mm_unpacklo_epi8(minimums, minimums), w->minimum);
}

LN_INLINE void ln_unpack256_q4_k(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) w->q[j] = ln_field(p + 16 + j / 2 * 32, 4 * (j % 2), 15);
    ln_six_bits(p, w);
}
LN_INLINE void ln_unpack256_q5_k(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++)
        w->q[j] = _mm256_or_si256(ln_field(p + 48 + j / 2 * 32, 4 * (j % 2), 15), ln_bit(p + 16, j, 16));
    ln_six_bits(p, w);
}
LN_INLINE void ln_unpack256_q6_k(const unsigned char *p, ln_unpacked *w) {
    for (int j = 0; j < 8; j++) {
        const __m256i low = ln_field(p + j / 4 * 64 + j % 2 * 32, 4 * (j / 2 % 2), 15);
        const __m256i top = ln_field(p + 128 + j / 4 * 32, 2 * (j % 4), 3);
        w->q[j] = _mm256_or_si256(low, _mm256_slli_epi16(top, 4));
    }
    ln_scaled(p + 208, 1, ln_load128(p + 192), w->scale);
    ln_minus(32, w);
}

/* ---- the end of a row ---- */

/* All bits in the first n of lanes 8 i .. 8 i + 7. */
LN_INLINE __m256i ln_first_lanes(int n, int i) {
    const __m256i lane = _mm256_add_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32(8 * i));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
/* Scale and minimum become 0 behind the first `groups` groups, whatever follows a row. */
LN_INLINE void ln_first_groups(ln_unpacked *w, int groups) {
    for (int i = 0; i < 2; i++) {
        const __m256 keep = _mm256_castsi256_ps(ln_first_lanes(groups, i));
        w->scale[i] = _mm256_and_ps(w->scale[i], keep);
        w->minimum[i] = _mm256_and_ps(w->minimum[i], keep);
    }
}

#endif
