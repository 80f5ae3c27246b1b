/* The instructions of compute capability 9.0 that the C++ of CUDA does not have: barriers in shared memory that count
 * bytes, the tensor copy engine, and products of a warp group (128 threads) with operands in shared memory.
 *
 * A tile in shared memory is a row of panels of 64 (or 32) columns: each row of a panel is 128 (64) bytes, whose
 * 16-byte pieces the copy engine stores in an order that depends on the row (swizzle), so that eight rows meet all
 * banks.
 *
 * Accumulators of a 64 x N product: thread t of the warp group holds rows 16 (t / 32) + (t % 32) / 4 + 8 r, r = 0, 1,
 * and columns 8 j + 2 (t % 4) + c, c = 0, 1, as element 4 j + 2 r + c. The left operand in registers has the same
 * places. */
#ifndef LN_KERNEL_CUDA_HOPPER_CUH
#define LN_KERNEL_CUDA_HOPPER_CUH

#include <cuda.h>

#include "kernel/cuda/instructions.cuh"

namespace ln {

/* ---- barriers ---- */

static __device__ __forceinline__ void barrier_open(uint64_t *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
static __device__ __forceinline__ void barriers_opened() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, int phase) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(phase)
                 : "memory");
}
static __device__ __forceinline__ void named_wait(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
static __device__ __forceinline__ void named_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
/* What ordinary stores wrote is seen by the tensor cores and the copy engine. */
static __device__ __forceinline__ void stores_to_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int REGISTERS> static __device__ __forceinline__ void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> static __device__ __forceinline__ void registers_less() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* ---- the copy engine ---- */

static __device__ __forceinline__ void map_prefetch(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* A box of the tensor [token][head][column] that starts there. */
static __device__ __forceinline__ void copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int column,
                                                int head, int token) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
                 "%5}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(token)
                 : "memory");
}
/* The same of what nobody will read again: the second cache gives it up first. */
static __device__ __forceinline__ void copy_box_once(void *to, const CUtensorMap *map, uint64_t *barrier, int column,
                                                     int head, int token) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(token), "l"(0x12f0000000000000ull)
                 : "memory");
}
/* `bytes` (a multiple of 16) that lie in a row. */
static __device__ __forceinline__ void copy_row(void *to, const void *from, uint64_t *barrier, int bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* ---- clusters: blocks that run together and reach each other's shared memory ---- */

static __device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/* All threads of all blocks of the cluster. */
static __device__ __forceinline__ void cluster_meet() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/* At the barrier that lies at the same place in that block. It says that something was read: where .release.cluster is
 * asked for, a fence of the whole device comes before each, which doubles a walk's time. */
static __device__ __forceinline__ void barrier_arrive_at(uint64_t *barrier, int rank) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
                 "r"(rank)
                 : "memory");
}
/* copy_box and copy_row to the same place in both blocks of a cluster of two, each of whose barriers counts. */
static __device__ __forceinline__ void copy_box_both(void *to, const CUtensorMap *map, uint64_t *barrier, int column,
                                                     int head, int token) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(token), "h"((uint16_t)3)
                 : "memory");
}
static __device__ __forceinline__ void copy_row_both(void *to, const void *from, uint64_t *barrier, int bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
                 "[%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"((uint16_t)3)
                 : "memory");
}

/* ---- sums that several blocks add to in a fixed order ---- */

/* to[0 .. 3] += more; to aligned to 16. The device's second cache adds; nothing is read here. */
static __device__ __forceinline__ void add_four(float *to, float4 more) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(more.x), "f"(more.y), "f"(more.z),
                 "f"(more.w)
                 : "memory");
}
/* The copy engine: to = (or +=) from in shared memory, float32, `bytes` (a multiple of 16) in a row. */
static __device__ __forceinline__ void engine_add(float *to, const void *from, int bytes, bool add) {
    if (add)
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                     "r"(shared_address(from)), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                     "r"(bytes)
                     : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* All that this thread gave to the engine has been read, or is written. */
static __device__ __forceinline__ void engine_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
static __device__ __forceinline__ void engine_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
/* Until the counter has this value; what the block that set it wrote before is seen then. */
static __device__ __forceinline__ void turn_await(const int *counter, int value) {
    int now;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    } while (now != value);
}
static __device__ __forceinline__ void turn_set(int *counter, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

/* ---- products of a warp group ---- */

template <int COLUMNS> struct panel { static constexpr int columns = COLUMNS % 64 == 0 ? 64 : 32; };
/* Where a panel lies and how far apart its groups of eight rows and the next panel are. */
template <int COLUMNS, int ROWS> static __device__ __forceinline__ uint64_t tile_descriptor(const void *tile) {
    constexpr int width = panel<COLUMNS>::columns * 2;
    const uint64_t swizzle = width == 128 ? 1 : 2, group = width * 8 / 16, next = width * ROWS / 16;
    return swizzle << 62 | group << 32 | next << 16 | (uint64_t)((shared_address(tile) & 0x3ffff) >> 4);
}

static __device__ __forceinline__ void products_open() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
/* The left operands (rows row .. row + 15, all columns) of a tile. */
template <int COLUMNS, int ROWS>
static __device__ __forceinline__ void load_left(uint32_t (&left)[COLUMNS / 4], const void *tile, int row) {
    constexpr int width = panel<COLUMNS>::columns * 2;
    row += threadIdx.x % 16;
    const uint32_t from = shared_address(tile) + row * width;
    const int piece = threadIdx.x % 32 / 16, swizzle = width == 128 ? row % 8 : row / 2 % 4;
#pragma unroll
    for (int k = 0; k < COLUMNS / 16; k++) {
        const int at = k * 32 / width * ROWS * width + ((k * 2 % (width / 16) + piece) ^ swizzle) * 16;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(left[4 * k]), "=r"(left[4 * k + 1]), "=r"(left[4 * k + 2]), "=r"(left[4 * k + 3])
                     : "r"(from + at)
                     : "memory");
    }
}

/* The compiler keeps these registers where they are across this point. */
template <int N> static __device__ __forceinline__ void hold(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int N> static __device__ __forceinline__ void hold(uint32_t (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(registers[i])::"memory");
}

/* product<N>::shared: sums = (or +=) left (64 x 16, rows in shared memory) * right^T (N x 16, likewise).
 * product<N>::turned: the same with left 16 x 64 or right 16 x N in shared memory where said.
 * product<N>::adding: the same, added to the sums where `add` is true.
 * product<N>::registers: the same with left in registers; TURNED: right is 16 x N, rows in shared memory.
 * HALF: operands are f16, else bf16. */
template <int N, bool HALF = false> struct product;

#define LN_F8(i)                                                                                                \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
        "+f"(s[i + 7])
#define LN_N2 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define LN_N4 LN_N2 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LN_N5 LN_N4 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define LN_N6 LN_N5 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define LN_N7 LN_N6 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define LN_N8 LN_N7 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define LN_N12                                                               \
    LN_N8 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
          ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define LN_N16                                                                            \
    LN_N12 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
           ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define LN_L2 LN_F8(0), LN_F8(8)
#define LN_L4 LN_F8(0), LN_F8(8), LN_F8(16), LN_F8(24)
#define LN_L5 LN_L4, LN_F8(32)
#define LN_L6 LN_L5, LN_F8(40)
#define LN_L7 LN_L6, LN_F8(48)
#define LN_L8 LN_L7, LN_F8(56)
#define LN_L12 LN_L8, LN_F8(64), LN_F8(72), LN_F8(80), LN_F8(88)
#define LN_L16 LN_L12, LN_F8(96), LN_F8(104), LN_F8(112), LN_F8(120)

/* a .. g: the numbers of the operands after the sums. */
#define LN_PRODUCT_OF(n, m, half, type, a, b, c, d, e, f, g)                                                        \
    template <> struct product<n, half> {                                                                           \
        template <bool ADD>                                                                                         \
        static __device__ __forceinline__ void shared(float (&s)[n / 2], uint64_t left, uint64_t right) {           \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" c ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" LN_N##m               \
                         "}, %" a ", %" b ", add, 1, 1, 0, 0;\n}"                                                   \
                         : LN_L##m                                                                                  \
                         : "l"(left), "l"(right), "n"(ADD ? 1 : 0));                                                \
        }                                                                                                           \
        template <bool ADD, bool LEFT_TURNED, bool RIGHT_TURNED>                                                    \
        static __device__ __forceinline__ void turned(float (&s)[n / 2], uint64_t left, uint64_t right) {           \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" c ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" LN_N##m               \
                         "}, %" a ", %" b ", add, 1, 1, %" d ", %" e ";\n}"                                         \
                         : LN_L##m                                                                                  \
                         : "l"(left), "l"(right), "n"(ADD ? 1 : 0), "n"(LEFT_TURNED ? 1 : 0),                       \
                           "n"(RIGHT_TURNED ? 1 : 0));                                                              \
        }                                                                                                           \
        template <bool LEFT_TURNED, bool RIGHT_TURNED>                                                              \
        static __device__ __forceinline__ void adding(float (&s)[n / 2], uint64_t left, uint64_t right, bool add) { \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" c ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" LN_N##m               \
                         "}, %" a ", %" b ", add, 1, 1, %" d ", %" e ";\n}"                                         \
                         : LN_L##m                                                                                  \
                         : "l"(left), "l"(right), "r"(add ? 1 : 0), "n"(LEFT_TURNED ? 1 : 0),                       \
                           "n"(RIGHT_TURNED ? 1 : 0));                                                              \
        }                                                                                                           \
        template <bool ADD, bool TURNED>                                                                            \
        static __device__ __forceinline__ void registers(float (&s)[n / 2], const uint32_t *left, uint64_t right) { \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" f ", 0;\n"                                        \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" LN_N##m               \
                         "}, {%" a ",%" b ",%" c ",%" d "}, %" e ", add, 1, 1, %" g ";\n}"                          \
                         : LN_L##m                                                                                  \
                         : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "n"(ADD ? 1 : 0),    \
                           "n"(TURNED ? 1 : 0));                                                                    \
        }                                                                                                           \
    };

#define LN_PRODUCT(n, m, ...)                       \
    LN_PRODUCT_OF(n, m, false, "bf16", __VA_ARGS__) \
    LN_PRODUCT_OF(n, m, true, "f16", __VA_ARGS__)

LN_PRODUCT(32, 2, "16", "17", "18", "19", "20", "21", "22")
LN_PRODUCT(64, 4, "32", "33", "34", "35", "36", "37", "38")
LN_PRODUCT(80, 5, "40", "41", "42", "43", "44", "45", "46")
LN_PRODUCT(96, 6, "48", "49", "50", "51", "52", "53", "54")
LN_PRODUCT(112, 7, "56", "57", "58", "59", "60", "61", "62")
LN_PRODUCT(128, 8, "64", "65", "66", "67", "68", "69", "70")
LN_PRODUCT(192, 12, "96", "97", "98", "99", "100", "101", "102")
LN_PRODUCT(256, 16, "128", "129", "130", "131", "132", "133", "134")

} // namespace ln

#endif
