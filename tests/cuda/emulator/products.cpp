/* Matrix products of a warp and of a warp group, and operands from shared memory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"

namespace ln_emulator {

/* ---- numbers ---- */

float of_bf16(uint16_t bits) {
    const uint32_t word = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &word, 4);
    return x;
}
uint16_t bf16_of(float x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    if (x != x) return 0x7fff;
    return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
float of_f16(uint16_t bits) {
    uint32_t word = (uint32_t)(bits & 0x7fff) << 13;
    float x;
    memcpy(&x, &word, 4);
    x *= 0x1p112f; /* the exponents' difference; right for numbers below the normal ones too */
    if ((bits & 0x7c00) == 0x7c00) x = bits & 0x3ff ? NAN : INFINITY;
    return bits & 0x8000 ? -x : x;
}
uint16_t f16_of(float x) {
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    uint32_t word;
    if (size < 0x1p-14f) {
        const float steps = size + 0x1p-1f; /* the last bit of 0.5 .. 1 is 2^-24 */
        memcpy(&word, &steps, 4);
        return (uint16_t)(sign | (word - 0x3f000000));
    }
    memcpy(&word, &size, 4);
    word += 0xfff + (word >> 13 & 1);
    return (uint16_t)(sign | ((word >> 13) - (112 << 10)));
}

static float of_kind(uint16_t bits, element_kind kind) {
    return kind == BF16 ? of_bf16(bits) : of_f16(bits);
}
static float of_tf32(uint32_t word) {
    float x;
    word &= ~UINT32_C(0x1fff);
    memcpy(&x, &word, 4);
    return x;
}

/* ---- operands from shared memory ---- */

struct matrices {
    uint32_t *part;
    char *row;
    int count;
    bool turn;
};

static void load_all(void *const *brought, uint32_t) {
    const matrices *first = (const matrices *)brought[0];
    for (int m = 0; m < first->count; m++) {
        uint16_t element[8][8];
        for (int r = 0; r < 8; r++) memcpy(element[r], ((const matrices *)brought[m * 8 + r])->row, 16);
        for (int lane = 0; lane < 32; lane++) {
            const int r = lane / 4, c = lane % 4 * 2;
            const uint16_t low = first->turn ? element[c][r] : element[r][c],
                           high = first->turn ? element[c + 1][r] : element[r][c + 1];
            ((const matrices *)brought[lane])->part[m] = (uint32_t)low | (uint32_t)high << 16;
        }
    }
}

static void store_all(void *const *brought, uint32_t) {
    const matrices *first = (const matrices *)brought[0];
    for (int m = 0; m < first->count; m++) {
        uint16_t element[8][8];
        for (int lane = 0; lane < 32; lane++) {
            const int r = lane / 4, c = lane % 4 * 2;
            const uint32_t word = ((const matrices *)brought[lane])->part[m];
            (first->turn ? element[c][r] : element[r][c]) = (uint16_t)word;
            (first->turn ? element[c + 1][r] : element[r][c + 1]) = (uint16_t)(word >> 16);
        }
        for (int r = 0; r < 8; r++) memcpy(((const matrices *)brought[m * 8 + r])->row, element[r], 16);
    }
}

static void row_check(const void *row, int count) {
    if (running->lane < 8 * count && shared_address(row) % 16)
        fail("a row of a matrix at %#x is not aligned to 16", shared_address(row));
}
void load_matrices(uint32_t *part, int count, const void *from, bool turn) {
    matrices m = {part, (char *)from, count, turn};
    row_check(from, count);
    warp_meet(~0u, "load_matrices", &m, load_all);
}
void store_matrices(void *to, const uint32_t *part, int count, bool turn) {
    matrices m = {(uint32_t *)part, (char *)to, count, turn};
    row_check(to, count);
    warp_meet(~0u, "store_matrices", &m, store_all);
}

uint32_t transpose_matrix(uint32_t part) {
    uint32_t turned, *both[2] = {&part, &turned};
    warp_meet(~0u, "transpose_matrix", both, [](void *const *brought, uint32_t) {
        for (int lane = 0; lane < 32; lane++) {
            uint32_t word = 0;
            for (int c = 0; c < 2; c++) {
                const int row = lane / 4, column = lane % 4 * 2 + c; /* of the result */
                const uint32_t *from = ((uint32_t *const *)brought[column * 4 + row / 2])[0];
                word |= (*from >> row % 2 * 16 & 0xffff) << 16 * c;
            }
            *((uint32_t *const *)brought[lane])[1] = word;
        }
    });
    return turned;
}

/* ---- products of a warp ---- */

struct warp_product {
    float *sum;
    const uint32_t *left, *right;
    element_kind kind;
};

static void multiply_warp(void *const *brought, uint32_t) {
    const element_kind kind = ((const warp_product *)brought[0])->kind;
    const int depth = kind == TF32 ? 8 : 16;
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const warp_product *p = (const warp_product *)brought[lane];
        const int g = lane / 4, t = lane % 4;
        if (kind == TF32) {
            for (int i = 0; i < 4; i++) left[g + i % 2 * 8][t + i / 2 * 4] = of_tf32(p->left[i]);
            for (int i = 0; i < 2; i++) right[t + i * 4][g] = of_tf32(p->right[i]);
            continue;
        }
        for (int i = 0; i < 4; i++)
            for (int c = 0; c < 2; c++)
                left[g + i % 2 * 8][2 * t + c + i / 2 * 8] = of_kind((uint16_t)(p->left[i] >> 16 * c), kind);
        for (int i = 0; i < 2; i++)
            for (int c = 0; c < 2; c++) right[2 * t + c + i * 8][g] = of_kind((uint16_t)(p->right[i] >> 16 * c), kind);
    }
    for (int lane = 0; lane < 32; lane++) {
        float *sum = ((const warp_product *)brought[lane])->sum;
        for (int i = 0; i < 4; i++) {
            const int r = lane / 4 + i / 2 * 8, c = lane % 4 * 2 + i % 2;
            for (int k = 0; k < depth; k++) sum[i] += left[r][k] * right[k][c];
        }
    }
}

void add_product(float *sum, const uint32_t *left, const uint32_t *right, element_kind kind) {
    warp_product p = {sum, left, right, kind};
    warp_meet(~0u, "add_product", &p, multiply_warp);
}

/* ---- products of a warp group: each warp does its 16 rows by itself ---- */

enum { COLUMNS_MOST = 256, DEPTH = 16 };

/* Sums that products are writing. */
struct sums {
    float *lane[32];
    int columns, pending; /* products */
    float value[16][COLUMNS_MOST];
};
struct started {
    sums *to;
    group_product what;
    const uint32_t *left[32];
    uint64_t group;
    uint32_t left_words[32][4];           /* as they were at the start */
    uint16_t left_rows[16][DEPTH];        /* of memory */
    uint16_t right[COLUMNS_MOST * DEPTH]; /* in the order of memory */
};
struct group_state {
    bool fenced;
    uint64_t group;
    std::vector<started *> queue;
    std::vector<sums *> open;
};

void *products_new() {
    return new group_state();
}
void products_delete(void *state) {
    group_state *s = (group_state *)state;
    if (!s->queue.empty()) fail("a block ends before its products do");
    delete s;
}

/* ---- tiles in shared memory, by their 64-bit descriptions ---- */

struct tile {
    uint32_t start, leading, stride;
    int swizzle; /* bits */
};
static tile tile_of(uint64_t bits) {
    static const int SWIZZLE[4] = {0, 3, 2, 1};
    if (bits >> 49 & 7) fail("descriptions with a base offset are not emulated");
    return {(uint32_t)(bits & 0x3fff) << 4, (uint32_t)(bits >> 16 & 0x3fff) << 4, (uint32_t)(bits >> 32 & 0x3fff) << 4,
            SWIZZLE[bits >> 62]};
}
static const char *piece_at(const tile &t, uint32_t address) {
    address &= 0x3ffff;
    address ^= (address >> 7 & ((1u << t.swizzle) - 1)) << 4;
    const uint32_t end = MEMORY_FIRST + (uint32_t)running_block()->shared_bytes;
    if (address < MEMORY_FIRST || address + 16 > end)
        fail("a product reads shared memory at %#x, outside %#x to %#x", address, MEMORY_FIRST, end);
    const char *piece = (const char *)shared_pointer(address);
    async_read(piece, 16);
    return piece;
}
/* Rows of 16 elements of k: two pieces of 16 bytes each. */
static void gather_rows(uint64_t bits, int first, int count, uint16_t *to) {
    const tile t = tile_of(bits);
    const uint32_t pitch = 16u << t.swizzle;
    for (int r = first; r < first + count; r++)
        for (uint32_t piece = 0; piece < 2; piece++, to += 8) {
            const uint32_t along = t.swizzle ? piece * 16 : piece * t.leading;
            memcpy(to, piece_at(t, t.start + (uint32_t)(r / 8) * t.stride + (uint32_t)(r % 8) * pitch + along), 16);
        }
}
/* 16 rows of k, of `count` elements from `first` on each. */
static void gather_turned(uint64_t bits, int first, int count, uint16_t *to) {
    const tile t = tile_of(bits);
    const int pieces = 1 << t.swizzle; /* of 8 elements, side by side */
    const uint32_t pitch = 16u << t.swizzle, side = t.swizzle ? t.leading : t.stride,
                   down = t.swizzle ? t.stride : t.leading;
    for (int k = 0; k < DEPTH; k++)
        for (int piece = first / 8; piece < (first + count) / 8; piece++, to += 8)
            memcpy(to,
                   piece_at(t, t.start + (uint32_t)(k / 8) * down + (uint32_t)(k % 8) * pitch +
                                   (uint32_t)(piece / pieces) * side + (uint32_t)(piece % pieces) * 16),
                   16);
}
static void gather_right(const group_product &p, uint16_t *to) {
    if (p.right_turned)
        gather_turned(p.right_tile, 0, p.columns, to);
    else
        gather_rows(p.right_tile, 0, p.columns, to);
}
static void gather_left(const group_product &p, int quarter, uint16_t (*to)[DEPTH]) {
    if (!p.left_turned) {
        gather_rows(p.left_tile, 16 * quarter, 16, to[0]);
        return;
    }
    uint16_t turned[DEPTH][16];
    gather_turned(p.left_tile, 16 * quarter, 16, turned[0]);
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < DEPTH; k++) to[r][k] = turned[k][r];
}

/* ---- sums in registers ---- */

static void place(int lane, int i, int *row, int *column) {
    *row = lane / 4 + i / 2 % 2 * 8;
    *column = i / 4 * 8 + lane % 4 * 2 + i % 2;
}

static sums *open_sums(group_state *s, void *const *brought) {
    const group_product *first = (const group_product *)brought[0];
    for (sums *known : s->open)
        if (known->lane[0] == first->sum && known->columns == first->columns) return known;
    if (!s->fenced) fail("a product starts on sums without products_open() since the last wait");
    sums *fresh = new sums();
    fresh->columns = first->columns;
    for (int lane = 0; lane < 32; lane++) {
        float *sum = fresh->lane[lane] = ((const group_product *)brought[lane])->sum;
        for (int i = 0; i < first->columns / 2; i++) {
            int row, column;
            place(lane, i, &row, &column);
            fresh->value[row][column] = sum[i];
        }
        memset((void *)sum, 0xff, (size_t)first->columns * 2);
    }
    s->open.push_back(fresh);
    return fresh;
}

static void close_sums(group_state *s, sums *done) {
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < done->columns / 2; i++) {
            uint32_t word;
            memcpy(&word, done->lane[lane] + i, 4);
            if (word != ~0u) fail("sums were written before the products on them were waited for");
            int row, column;
            place(lane, i, &row, &column);
            done->lane[lane][i] = done->value[row][column];
        }
    for (size_t i = 0; i < s->open.size(); i++)
        if (s->open[i] == done) s->open.erase(s->open.begin() + (ptrdiff_t)i);
    delete done;
}

/* ---- one product ---- */

#if defined(__x86_64__) && defined(__clang__)
#define LN_WIDE __attribute__((target("avx2,fma")))
#elif defined(__x86_64__)
#define LN_WIDE __attribute__((target("avx2,fma"), optimize("O3")))
#endif

static inline __attribute__((always_inline)) void multiply_rows(float (*sum)[COLUMNS_MOST], const float (*left)[DEPTH],
                                                                const float (*right)[COLUMNS_MOST], int columns) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < DEPTH; k++) {
            const float x = left[r][k];
            for (int c = 0; c < columns; c++) sum[r][c] += x * right[k][c];
        }
}
#ifdef LN_WIDE
LN_WIDE static void multiply_wide(float (*sum)[COLUMNS_MOST], const float (*left)[DEPTH],
                                  const float (*right)[COLUMNS_MOST], int columns) {
    multiply_rows(sum, left, right, columns);
}
#endif
static void multiply(float (*sum)[COLUMNS_MOST], const float (*left)[DEPTH], const float (*right)[COLUMNS_MOST],
                     int columns) {
#ifdef LN_WIDE
    static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (wide) {
        multiply_wide(sum, left, right, columns);
        return;
    }
#endif
    multiply_rows(sum, left, right, columns);
}

static void start_all(void *const *brought, uint32_t) {
    group_state *s = (group_state *)warp_products();
    started *p = new started();
    p->what = *(const group_product *)brought[0];
    for (int lane = 0; lane < 32; lane++) {
        const group_product *each = (const group_product *)brought[lane];
        if (each->left_tile != p->what.left_tile || each->right_tile != p->what.right_tile)
            fail("threads of a warp describe other tiles to one product");
        p->left[lane] = each->left;
        if (each->left) memcpy(p->left_words[lane], each->left, 16);
    }
    if (p->what.left && !s->fenced) fail("a product of registers starts without products_open() since the last wait");
    p->to = open_sums(s, brought);
    p->to->pending++;
    p->group = s->group;
    if (!p->what.left) gather_left(p->what, running->warp % 4, p->left_rows);
    gather_right(p->what, p->right);
    s->queue.push_back(p);
}

static void unpack_left(const started *p, float (*left)[DEPTH]) {
    if (!p->what.left) {
        for (int r = 0; r < 16; r++)
            for (int k = 0; k < DEPTH; k++) left[r][k] = of_kind(p->left_rows[r][k], p->what.kind);
        return;
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 8; i++) {
            int row, column;
            place(lane, i, &row, &column);
            left[row][column] = of_kind((uint16_t)(p->left_words[lane][i / 2] >> i % 2 * 16), p->what.kind);
        }
}

/* Whatever was read at the start must still be there. */
static void compare_operands(const started *p) {
    static __thread uint16_t right[COLUMNS_MOST * DEPTH];
    gather_right(p->what, right);
    if (memcmp(right, p->right, (size_t)p->what.columns * DEPTH * 2))
        fail("the right operand of a product (at %#x) changed while it ran, or was not there when it started",
             (unsigned)(p->what.right_tile & 0x3fff) << 4);
    uint16_t rows[16][DEPTH];
    if (!p->what.left) {
        gather_left(p->what, running->warp % 4, rows);
        if (memcmp(rows, p->left_rows, sizeof rows))
            fail("the left operand of a product (at %#x) changed while it ran, or was not there when it started",
                 (unsigned)(p->what.left_tile & 0x3fff) << 4);
        return;
    }
    for (int lane = 0; lane < 32; lane++)
        if (memcmp(p->left[lane], p->left_words[lane], 16))
            fail("the left operand of a product, in registers, changed before the product was waited for (hold it "
                 "behind the wait)");
}

static void end_product(group_state *s, started *p) {
    static __thread float left[16][DEPTH], right[DEPTH][COLUMNS_MOST];
    const int columns = p->what.columns;
    compare_operands(p);
    unpack_left(p, left);
    for (int c = 0; c < columns; c++)
        for (int k = 0; k < DEPTH; k++)
            right[k][c] = of_kind(p->right[p->what.right_turned ? k * columns + c : c * DEPTH + k], p->what.kind);
    if (!p->what.add) memset((void *)p->to->value, 0, sizeof p->to->value);
    multiply(p->to->value, left, right, columns);
    if (--p->to->pending == 0) close_sums(s, p->to);
    delete p;
}

static void end_until(group_state *s, uint64_t group) {
    size_t done = 0;
    while (done < s->queue.size() && s->queue[done]->group < group) end_product(s, s->queue[done++]);
    s->queue.erase(s->queue.begin(), s->queue.begin() + (ptrdiff_t)done);
}

void products_start(group_product product) {
    warp_meet(~0u, "product of a warp group", &product, start_all);
}
void products_open() {
    warp_meet(~0u, "products_open", NULL,
              [](void *const *, uint32_t) { ((group_state *)warp_products())->fenced = true; });
}
void products_commit() {
    warp_meet(~0u, "products_commit", NULL, [](void *const *, uint32_t) { ((group_state *)warp_products())->group++; });
}
void products_wait(int left) {
    warp_meet(~0u, "products_wait", &left, [](void *const *brought, uint32_t) {
        group_state *s = (group_state *)warp_products();
        const uint64_t keep = (uint64_t) * (const int *)brought[0];
        s->fenced = false;
        if (s->group > keep) end_until(s, s->group - keep);
    });
}

} // namespace ln_emulator
