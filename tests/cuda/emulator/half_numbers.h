/* LN_HALF: a number of two bytes and its pairs, computed in float32 and rounded to nearest, ties to even. */
#ifndef LN_EMULATOR_HALF_NUMBERS_H
#define LN_EMULATOR_HALF_NUMBERS_H

#include "cuda_runtime.h"

#define LN_HALF(TYPE, PAIR, RAW, OF, TO)                           \
    struct RAW {                                                   \
        unsigned short x;                                          \
    };                                                             \
    struct alignas(2) TYPE {                                       \
        unsigned short __x;                                        \
        TYPE() = default;                                          \
        TYPE(float value) : __x(ln_emulator::TO(value)) {}         \
        TYPE(double value) : __x(ln_emulator::TO((float)value)) {} \
        TYPE(int value) : __x(ln_emulator::TO((float)value)) {}    \
        TYPE(RAW raw) : __x(raw.x) {}                              \
        operator float() const { return ln_emulator::OF(__x); }    \
        operator RAW() const { return {__x}; }                     \
    };                                                             \
    struct alignas(4) PAIR {                                       \
        TYPE x, y;                                                 \
    };                                                             \
    static inline TYPE operator+(TYPE a, TYPE b) {                 \
        return TYPE((float)a + (float)b);                          \
    }                                                              \
    static inline TYPE operator-(TYPE a, TYPE b) {                 \
        return TYPE((float)a - (float)b);                          \
    }                                                              \
    static inline TYPE operator*(TYPE a, TYPE b) {                 \
        return TYPE((float)a * (float)b);                          \
    }                                                              \
    static inline TYPE operator/(TYPE a, TYPE b) {                 \
        return TYPE((float)a / (float)b);                          \
    }                                                              \
    static inline TYPE __hadd(TYPE a, TYPE b) {                    \
        return a + b;                                              \
    }                                                              \
    static inline TYPE __hsub(TYPE a, TYPE b) {                    \
        return a - b;                                              \
    }                                                              \
    static inline TYPE __hmul(TYPE a, TYPE b) {                    \
        return a * b;                                              \
    }                                                              \
    static inline TYPE __hfma(TYPE a, TYPE b, TYPE c) {            \
        return TYPE(fmaf(a, b, c));                                \
    }                                                              \
    static inline TYPE __hmax(TYPE a, TYPE b) {                    \
        return TYPE(fmaxf(a, b));                                  \
    }                                                              \
    static inline TYPE __hmin(TYPE a, TYPE b) {                    \
        return TYPE(fminf(a, b));                                  \
    }                                                              \
    static inline TYPE __hneg(TYPE a) {                            \
        return TYPE(RAW{(unsigned short)(a.__x ^ 0x8000)});        \
    }                                                              \
    static inline TYPE __habs(TYPE a) {                            \
        return TYPE(RAW{(unsigned short)(a.__x & 0x7fff)});        \
    }                                                              \
    static inline bool __hisnan(TYPE a) {                          \
        return (float)a != (float)a;                               \
    }                                                              \
    static inline PAIR __hadd2(PAIR a, PAIR b) {                   \
        return {a.x + b.x, a.y + b.y};                             \
    }                                                              \
    static inline PAIR __hsub2(PAIR a, PAIR b) {                   \
        return {a.x - b.x, a.y - b.y};                             \
    }                                                              \
    static inline PAIR __hmul2(PAIR a, PAIR b) {                   \
        return {a.x * b.x, a.y * b.y};                             \
    }                                                              \
    static inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) {           \
        return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};     \
    }                                                              \
    static inline PAIR __hmax2(PAIR a, PAIR b) {                   \
        return {__hmax(a.x, b.x), __hmax(a.y, b.y)};               \
    }                                                              \
    static inline PAIR __hneg2(PAIR a) {                           \
        return {__hneg(a.x), __hneg(a.y)};                         \
    }                                                              \
    static inline float __low2float(PAIR a) {                      \
        return a.x;                                                \
    }                                                              \
    static inline float __high2float(PAIR a) {                     \
        return a.y;                                                \
    }

#endif
