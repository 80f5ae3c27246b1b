/* Whether the emulated GPU sees what it is there to see: one kernel, right and with one fault at a time, by blocks and
 * by clusters of two.
 *
 *     emulator_faults [FAULT]
 *
 * The kernel adds products of tiles, sums[64][64] = sum over n of left(n) * right(n)^T, with every means that our
 * kernels use: a copying warp that fills two stages by the copy engine, a warp group that multiplies them, a tile
 * written by ordinary stores, cp.async, static shared memory, blocks that wait for each other. In a cluster one block
 * asks for the left tiles of both, the other for the right ones. A fault is a thing left out; every one must be
 * reported, or else change the result (what it reads too early is NaN). Each runs in a process of its own, until it is
 * seen: the order of things is random. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"

namespace {

enum fault {
    NONE,
    NO_WAIT_FULL,
    NO_WAIT_FREE,
    EARLY_FREE,
    NO_EXPECT,
    FEW_BYTES,
    MANY_BYTES,
    WRONG_PHASE,
    TOO_MANY_ARRIVALS,
    TOO_FEW_ARRIVALS,
    NOT_OPENED,
    NO_BLOCK_SYNC,
    NO_PRODUCTS_OPEN,
    NO_COMMIT,
    NO_PRODUCTS_WAIT,
    NO_STORES_TO_ASYNC,
    NO_NAMED_WAIT,
    WRONG_NAMED_COUNT,
    WRONG_SWIZZLE,
    WRONG_STRIDE,
    LEFT_REGISTERS_CHANGED,
    NO_COPIES_WAIT,
    NO_WARP_SYNC,
    LANE_ABSENT,
    UNWRITTEN_SHARED,
    PAST_THE_MEMORY,
    NO_TURN,
    TURN_NEVER_SET,
    NONE_IN_CLUSTER,
    OWN_ARRIVALS,
    FREE_TO_ITSELF,
    FREE_TO_THE_OTHER,
    OWN_BYTES,
    BOTH_ASK,
    COPY_TO_ITSELF,
    NO_FIRST_MEETING,
    NO_LAST_MEETING,
    ONE_MEETS_TWICE,
    NO_CLUSTERS,
    FAULTS
};
static const char *const NAMES[FAULTS] = {"none",
                                          "a full stage is not waited for",
                                          "a free stage is not waited for",
                                          "a stage is freed before its product ends",
                                          "bytes are not expected",
                                          "too few bytes are expected",
                                          "too many bytes are expected",
                                          "wrong phase",
                                          "barrier for too many arrivals",
                                          "barrier for too few arrivals",
                                          "barrier not opened",
                                          "no __syncthreads after barriers are opened",
                                          "no products_open",
                                          "no products_commit",
                                          "no products_wait",
                                          "no stores_to_async",
                                          "no named_wait after ordinary stores",
                                          "wrong count of a named barrier",
                                          "wrong swizzle of a tile",
                                          "wrong stride of a tile",
                                          "left registers change under a product",
                                          "no copies_wait",
                                          "no __syncwarp",
                                          "a lane is absent from a shuffle",
                                          "static shared memory is read unwritten",
                                          "store behind the block's memory",
                                          "a block does not wait for its turn",
                                          "a turn never comes",
                                          "none, in clusters",
                                          "a barrier counts its own block's warps alone",
                                          "a stage is freed to its own block alone",
                                          "a stage is freed to the other block alone",
                                          "only the bytes asked for are expected",
                                          "both blocks ask for all, for both",
                                          "a block asks for itself alone",
                                          "no meeting after barriers are opened",
                                          "a block leaves without meeting",
                                          "one block meets once more",
                                          "blocks that are no clusters"};

enum {
    STEPS = 6,
    TILE = 64 * 64 * 2,
    BLOCKS = 3,
    CLUSTERED = 4,
    LEFT = 0,
    RIGHT = 2 * TILE,
    OWN = 4 * TILE,
    CONTROL = 5 * TILE
};

struct control {
    uint64_t full[2], free[2];
};

struct arguments {
    float *sums;         /* [64][64], all blocks in turn */
    const uint16_t *own; /* a last right operand, [64][64], copied by the threads themselves */
    int *turn;
    fault with;
};

/* Each block one of the operands, for both. */
static void copy_shared(const CUtensorMap *left, const CUtensorMap *right, char *shared, control *c, int n,
                        fault with) {
    const int stage = n % 2, rank = ln::cluster_rank();
    const auto copy = with == COPY_TO_ITSELF ? ln::copy_box : ln::copy_box_both;
    if (rank == 0 || with == BOTH_ASK) copy(shared + LEFT + stage * TILE, left, &c->full[stage], 0, 0, n * 64);
    if (rank == 1 || with == BOTH_ASK) copy(shared + RIGHT + stage * TILE, right, &c->full[stage], 0, 0, n * 64);
}

static void copy_steps(const CUtensorMap *left, const CUtensorMap *right, char *shared, control *c, fault with) {
    for (int n = 0; n < STEPS; n++) {
        const int stage = n % 2, phase = n / 2 % 2;
        if (with != NO_WAIT_FREE) ln::barrier_wait(&c->free[stage], phase ^ 1 ^ (with == WRONG_PHASE));
        const int bytes = with == FEW_BYTES || with == OWN_BYTES ? TILE : with == MANY_BYTES ? 2 * TILE + 16 : 2 * TILE;
        if (with == NO_EXPECT)
            ln::barrier_arrive(&c->full[stage]);
        else
            ln::barrier_expect(&c->full[stage], bytes);
        if (with >= NONE_IN_CLUSTER) {
            copy_shared(left, right, shared, c, n, with);
            continue;
        }
        ln::copy_box(shared + LEFT + stage * TILE, left, &c->full[stage], 0, 0, n * 64);
        ln::copy_box(shared + RIGHT + stage * TILE, right, &c->full[stage], 0, 0, n * 64);
    }
}

/* The last operand: cp.async to a plain place, then ordinary stores to where the product wants it. */
static void place_own(char *shared, const uint16_t *own, fault with) {
    alignas(16) static thread_local uint16_t plain[64][64];
    const int thread = (int)threadIdx.x, row = thread / 2;
    for (int piece = thread % 2 * 4; piece < thread % 2 * 4 + 4; piece++)
        ln::copy_piece(&plain[row][piece * 8], own + row * 64 + piece * 8, true);
    ln::copies_commit();
    if (with != NO_COPIES_WAIT) ln::copies_wait<0>();
    if (with != NO_WARP_SYNC) __syncwarp();
    const int other = row ^ 1; /* what the neighbours copied */
    for (int piece = thread % 2 * 4; piece < thread % 2 * 4 + 4; piece++)
        memcpy(shared + OWN + other * 128 + (piece ^ other % 8) * 16, &plain[other][piece * 8], 16);
    if (with != NO_STORES_TO_ASYNC) ln::stores_to_async();
    if (with != NO_NAMED_WAIT) ln::named_wait(1, with == WRONG_NAMED_COUNT ? 96 + 32 * (thread / 64) : 128);
}

static void free_stage(uint64_t *barrier, fault with) {
    const int lane = (int)threadIdx.x % 32;
    if (with < NONE_IN_CLUSTER || with == FREE_TO_ITSELF) {
        if (lane == 0) ln::barrier_arrive(barrier);
    } else if (lane < 2 && (with != FREE_TO_THE_OTHER || lane != ln::cluster_rank()))
        ln::barrier_arrive_at(barrier, lane);
}

static void multiply_steps(char *shared, control *c, float (&sum)[32], fault with) {
    const uint64_t wrong = with == WRONG_SWIZZLE ? UINT64_C(3) << 62 : with == WRONG_STRIDE ? UINT64_C(32) << 32 : 0;
    for (int n = 0; n < STEPS; n++) {
        const int stage = n % 2, phase = n / 2 % 2;
        if (with != NO_WAIT_FULL) ln::barrier_wait(&c->full[stage], phase);
        const uint64_t left = ln::tile_descriptor<64, 64>(shared + LEFT + stage * TILE),
                       right = ln::tile_descriptor<64, 64>(shared + RIGHT + stage * TILE) ^ wrong;
        if (with != NO_PRODUCTS_OPEN) ln::products_open();
        for (uint64_t k = 0; k < 4; k++) ln::product<64>::shared<true>(sum, left + 2 * k, right + 2 * k);
        if (with != NO_COMMIT) ln::products_commit();
        if (with == EARLY_FREE) free_stage(&c->free[stage], with);
        if (with == EARLY_FREE) __syncwarp();
        if (with != NO_PRODUCTS_WAIT) ln::products_wait<0>();
        if (with != EARLY_FREE && (with < NONE_IN_CLUSTER || n + 1 < STEPS)) free_stage(&c->free[stage], with);
    }
}

static void multiply_own(char *shared, float (&sum)[32], fault with) {
    uint32_t left[4 * 4];
    ln::load_left<64, 64>(left, shared + OWN, (int)threadIdx.x / 32 * 16);
    const uint64_t right = ln::tile_descriptor<64, 64>(shared + OWN);
    ln::products_open();
    for (uint64_t k = 0; k < 4; k++) ln::product<64>::registers<true, false>(sum, left + 4 * k, right + 2 * k);
    ln::products_commit();
    if (with == LEFT_REGISTERS_CHANGED) left[0] = ln::pack(1, 1);
    ln::products_wait<0>();
    ln::hold(left);
}

/* The blocks' sums, such that their order shows. */
static void add_sums(const arguments &a, const float (&sum)[32]) {
    static thread_local float unwritten[128];
    const int thread = (int)threadIdx.x;
    const float own = a.with == UNWRITTEN_SHARED ? unwritten[thread ^ 1] : 0;
    unwritten[thread] = 0;
    for (int i = 0; i < 32; i++) {
        float *to =
            a.sums + (thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + thread % 4 * 2 + i % 2;
        *to = 2 * *to + (float)(blockIdx.x + 1) * sum[i] + own;
    }
}

static void kernel(const CUtensorMap left, const CUtensorMap right, const arguments a) {
    char *shared = ln::block_memory();
    control *c = (control *)(shared + CONTROL);
    const bool clusters = a.with >= NONE_IN_CLUSTER;
    const int arrivals = a.with == TOO_MANY_ARRIVALS          ? 5
                         : a.with == TOO_FEW_ARRIVALS         ? 3
                         : clusters && a.with != OWN_ARRIVALS ? 8
                                                              : 4;
    if (threadIdx.x == 0 && a.with != NOT_OPENED)
        for (int stage = 0; stage < 2; stage++) {
            ln::barrier_open(&c->full[stage], 1);
            ln::barrier_open(&c->free[stage], arrivals);
        }
    if (a.with == PAST_THE_MEMORY && threadIdx.x == 40) shared[CONTROL + sizeof(control)] = 0;
    if (a.with != NO_BLOCK_SYNC) __syncthreads();
    if (clusters && a.with != NO_FIRST_MEETING) ln::cluster_meet();
    if (a.with == ONE_MEETS_TWICE && ln::cluster_rank() == 0) ln::cluster_meet();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128) copy_steps(&left, &right, shared, c, a.with);
        return;
    }
    float sum[32] = {};
    multiply_steps(shared, c, sum, a.with);
    place_own(shared, a.own, a.with);
    multiply_own(shared, sum, a.with);
    if (a.with == LANE_ABSENT) {
        if (threadIdx.x % 32 != 5) sum[0] += 0 * __shfl_xor_sync(~0u, sum[0], 1);
    }
    if (a.with != NO_TURN) {
        if (threadIdx.x == 0) ln::turn_await(a.turn, (int)(a.with == TURN_NEVER_SET ? 7 : blockIdx.x));
        ln::named_wait(2, 128);
    } else if (*(volatile int *)a.turn != (int)blockIdx.x)
        __threadfence();
    add_sums(a, sum);
    ln::named_wait(3, 128);
    if (threadIdx.x == 0) ln::turn_set(a.turn, (int)blockIdx.x + 1);
    /* The last stage only here: a block that did not meet may have ended. */
    if (clusters) free_stage(&c->free[(STEPS - 1) % 2], a.with);
    if (clusters && a.with != NO_LAST_MEETING) ln::cluster_meet();
}

static CUtensorMap describe(const uint16_t *data) {
    CUtensorMap map;
    const cuuint64_t extents[3] = {64, 1, STEPS * 64}, strides[2] = {128, 128};
    const cuuint32_t box[3] = {64, 1, 64}, steps[3] = {1, 1, 1};
    if (ln_emulator::encode_tiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)data, extents, strides, box, steps,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
        exit(2);
    return map;
}

static uint16_t *random_tiles(int tiles) {
    void *data;
    if (cudaMalloc(&data, (size_t)tiles * TILE)) exit(2);
    for (int i = 0; i < tiles * 64 * 64; i++)
        ((uint16_t *)data)[i] = ln_emulator::bf16_of((float)((int)(ln_emulator::random_next() % 9) - 4));
    return (uint16_t *)data;
}

static void add_reference(std::vector<float> &sums, const uint16_t *left, const uint16_t *right) {
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++)
            for (int k = 0; k < 64; k++)
                sums[(size_t)(i * 64 + j)] +=
                    ln_emulator::of_bf16(left[i * 64 + k]) * ln_emulator::of_bf16(right[j * 64 + k]);
}

/* 0: the result is right, 3: it is not; ends with 1 where the emulator reports something. */
static int run(fault with) {
    const uint16_t *left = random_tiles(STEPS), *right = random_tiles(STEPS), *own = random_tiles(1);
    std::vector<float> sums(64 * 64), expected(64 * 64);
    for (int n = 0; n < STEPS; n++) add_reference(expected, left + n * 4096, right + n * 4096);
    add_reference(expected, own, own);
    int turn = 0;
    const arguments a = {sums.data(), own, &turn, with};
    const int blocks = with < NONE_IN_CLUSTER ? BLOCKS : CLUSTERED,
              together = with < NONE_IN_CLUSTER || with == NO_CLUSTERS ? 1 : 2;
    if (ln::launch_clusters(together, kernel, dim3((unsigned)blocks), dim3(160), CONTROL + (int)sizeof(control), NULL,
                            describe(left), describe(right), a))
        exit(2);
    float times = 0;
    for (int block = 0; block < blocks; block++) times = 2 * times + (float)(block + 1);
    bool right_result = true;
    for (size_t i = 0; i < sums.size(); i++) right_result &= sums[i] == times * expected[i];
    return right_result ? 0 : 3;
}

/* Seen: status 1 or 3, or killed by a sanitizer. */
static bool seen(fault with, char *words, size_t room) {
    int both[2], status;
    fflush(stdout);
    if (pipe(both)) exit(2);
    const pid_t child = fork();
    if (child == 0) {
        close(both[0]);
        dup2(both[1], 1);
        dup2(both[1], 2);
        const int code = run(with);
        if (code) printf("FAILED: wrong result\n");
        fflush(stdout);
        _exit(code);
    }
    close(both[1]);
    FILE *said = fdopen(both[0], "r");
    char line[400];
    words[0] = 0;
    while (fgets(line, sizeof line, said))
        if (!strncmp(line, "FAILED", 6) && !words[0]) snprintf(words, room, "%s", line);
    fclose(said);
    waitpid(child, &status, 0);
    words[strcspn(words, "\n")] = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2) exit(2);
    return status != 0;
}

} // namespace

int main(int count, char **given) {
    if (count > 1) return run((fault)atoi(given[1]));
    int wrong = 0;
    for (int with = 0; with < FAULTS; with++) {
#ifdef __SANITIZE_ADDRESS__
        if (with == UNWRITTEN_SHARED) continue; /* variables are not filled then */
#endif
        const bool none = with == NONE || with == NONE_IN_CLUSTER;
        const int most = none ? 4 : 24;
        int tries = 1;
        char words[400];
        bool caught = seen((fault)with, words, sizeof words);
        for (; !caught && tries < most; tries++) caught = seen((fault)with, words, sizeof words);
        const bool right = caught != none;
        wrong += !right;
        printf("%s%-46s run %2d times: %s\n", right ? "" : "FAILED: ", NAMES[with], tries, words);
    }
    printf("%d faults, %d not as they should be\n", FAULTS - 2, wrong);
    return wrong != 0;
}
