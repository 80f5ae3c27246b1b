/* An emulated GPU: what the shadowing headers call.
 *
 * A thread of a block is a fiber, a block an operating system thread of which one runs at a time; fibers change only
 * where they wait for each other (or touch memory that other blocks may watch), in an order drawn from the seed. What
 * the hardware does on its own time is done as late as its rules allow, and the place of its result is filled with
 * NaNs from the start:
 *
 *     copies (cp.async, the copy engine) write NaNs when they start and their data when they are waited for, or a
 * random number of turns later; products of a warp group leave NaNs in their sums until they are waited for, and read
 *     their operands twice, when they start and when they end: a difference is a race, and reported.
 *
 * The blocks of a cluster start together and reach each other's memory until they end.
 *
 * A block in which no fiber can run is reported with what each waits for. Any report ends the program with status 1. */
#ifndef LN_EMULATOR_EMULATOR_H
#define LN_EMULATOR_EMULATOR_H

#include <functional>
#include <stdint.h>

#include "cuda.h"
#include "cuda_runtime_api.h"
#include "vector_types.h"

namespace ln_emulator {

struct block;

struct fiber {
    uint3 thread_index; /* first: read most */
    int index, warp, lane;
    block *of;
};
extern __thread fiber *running;
extern __thread uint3 block_index;
extern dim3 block_size, grid_size;

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- meeting ---- */

/* The lanes of the mask meet in an instruction; the last to come acts for all, with what each brought. */
typedef void meeting_act(void *const *brought, uint32_t mask);
void warp_meet(uint32_t mask, const char *instruction, void *brought, meeting_act *act);
void named_barrier(int barrier, int threads, bool wait); /* threads 0: all of the block */
int block_vote(bool vote);                               /* waits for the block; how many said yes */
uint32_t warp_alive();

/* Lets others run: a thread that polls memory, and one that might be watched. */
void spin();
void maybe_yield();

/* ---- memory of the block ---- */

enum { MEMORY_FIRST = 1024, MEMORY_MOST = 232448 };
char *block_memory();
uint32_t shared_address(const void *pointer);
void *shared_pointer(uint32_t address);

/* ---- clusters ---- */

int cluster_rank();
void cluster_meet();
/* What lies in that block where `mine` lies in this one. What `act` does, it does to that block. */
void in_block(int rank, const char *instruction, const void *mine, const std::function<void(char *there)> &act);

/* ---- barriers that count bytes ---- */

void barrier_open(uint64_t *barrier, int arrivals);
void barrier_arrive(uint64_t *barrier, int arrivals, int bytes); /* bytes expected beside */
void barrier_arrive_at(uint64_t *barrier, int rank);
void barrier_wait(uint64_t *barrier, int phase);
bool barrier_passed(uint64_t *barrier, int phase);
void stores_to_async();

/* ---- copies ---- */

/* 16, 8 or 4 bytes by cp.async; the first `valid` from memory, the rest 0. */
void copy_piece(void *to, const void *from, int bytes, int valid);
void copies_commit();
void copies_wait(int left);
void copies_arrive(uint64_t *barrier); /* cp.async.mbarrier.arrive.noinc */

enum engine_store { STORE, ADD_FLOAT32, ADD_BF16, ADD_F16 };
/* Blocks: a bit for each of the cluster; 0: this one. */
void engine_load(void *to, const CUtensorMap *map, uint64_t *barrier, const int *coordinates, int rank,
                 uint32_t blocks = 0);
void engine_store_box(const CUtensorMap *map, const void *from, const int *coordinates, int rank, engine_store how);
void engine_load_bytes(void *to, const void *from, int bytes, uint64_t *barrier, uint32_t blocks = 0);
void engine_store_bytes(void *to, const void *from, int bytes, engine_store how);
void engine_commit();
void engine_wait(int left, bool read_only);

CUresult encode_tiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data,
                      const cuuint64_t *extents, const cuuint64_t *strides, const cuuint32_t *box,
                      const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

/* ---- products ---- */

enum element_kind { BF16, F16, TF32 };
void load_matrices(uint32_t *part, int count, const void *from, bool turn);
void store_matrices(void *to, const uint32_t *part, int count, bool turn);
uint32_t transpose_matrix(uint32_t part);
/* sums (16 x 8) += left (16 x 16; tf32: 16 x 8) * right. */
void add_product(float *sum, const uint32_t *left, const uint32_t *right, element_kind kind);
void add_product_bytes(int *sum, const uint32_t *left, const uint32_t *right);

/* One product of a warp group, 64 x columns x 16. left NULL: left_tile describes it. */
struct group_product {
    float *sum;
    const uint32_t *left;
    uint64_t left_tile, right_tile;
    int columns;
    element_kind kind;
    bool add, left_turned, right_turned; /* turned: rows of k, contiguous along the other side */
};
void products_open();
void products_start(group_product product);
void products_commit();
void products_wait(int left);

float of_bf16(uint16_t bits);
uint16_t bf16_of(float x);
float of_f16(uint16_t bits);
uint16_t f16_of(float x);

/* ---- launch ---- */

cudaError_t launch(const void *kernel, std::function<void()> thread, dim3 grid, dim3 block, int shared_bytes,
                   cudaStream_t stream, int cluster = 1);

cudaError_t function_attribute(const void *kernel, cudaFuncAttribute attribute, int value);

/* ---- inside the emulator ---- */

uint64_t random_next();
void run_grid(const std::function<void()> &thread, dim3 grid, dim3 block, int shared_bytes, int cluster);
void *warp_products(); /* state of the running fiber's warp, kept by the products */
void *products_new();
void products_delete(void *state);
struct device_traits {
    int major, minor, multiprocessors, shared_bytes, cache_bytes;
};
const device_traits &device();

} // namespace ln_emulator

#endif
