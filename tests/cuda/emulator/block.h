/* A block that runs, as the files of the emulator see it. */
#ifndef LN_EMULATOR_BLOCK_H
#define LN_EMULATOR_BLOCK_H

#include <string>
#include <vector>

#include "emulator.h"

namespace ln_emulator {

struct piece { /* of cp.async */
    char *to;
    const char *from;
    int bytes, valid;
    uint64_t group;
};
struct engine_piece { /* from shared memory, by the copy engine */
    CUtensorMap map;  /* or none: bytes */
    char *to;
    const char *from;
    int bytes, coordinates[5];
    engine_store how;
    uint64_t group;
    bool read;
    std::vector<char> content; /* as it was at the start, and once read */
};
struct transfer { /* to shared memory, by the copy engine */
    CUtensorMap map;
    char *to;
    const char *from; /* NULL: by the map */
    uint64_t *barrier;
    int bytes, coordinates[5], turns;
};

struct thread_state : fiber {
    void *stack;
    const char *waits; /* NULL: ready, running or ended */
    const void *where;
    int detail;
    uint64_t *barrier;
    bool ended, spins;
    std::vector<piece> pieces;
    uint64_t piece_group;
    std::vector<engine_piece> engine_pieces;
    uint64_t engine_group;
};
struct meeting {
    uint32_t mask, arrived;
    const char *instruction;
    void *brought[32];
};
struct warp_state {
    uint32_t ready, alive;
    std::vector<meeting *> meetings;
    void *products;
};
struct named {
    int expected, arrived, votes, result[2];
    uint64_t generation;
    std::vector<thread_state *> waiting;
};
struct slot;
struct block;

struct cluster {
    std::vector<block *> blocks; /* NULL: has ended */
    int arrived;
    std::vector<thread_state *> waiting;
};

struct block {
    slot *at;
    cluster *in;
    int rank; /* in the cluster */
    uint3 index;
    const std::function<void()> *thread;
    int threads, live, shared_bytes, spinning;
    char *memory, *seen;
    uint32_t ready_warps;
    std::vector<thread_state> fibers;
    warp_state warps[32];
    named named_barriers[16];
    std::vector<transfer> transfers;
    std::vector<thread_state *> barrier_waiters;
};

block *running_block();
void make_ready(thread_state *t);
void wait_until_ready(const char *what, const void *where, int detail);
void thread_ended();
void barrier_zero_check();
std::string barrier_text(const uint64_t *barrier);
void engine_turn(bool now); /* delivers what is due; now: one at least */
void engine_thread_ends();
void async_read(const void *shared, int bytes); /* reports what it may not see */

} // namespace ln_emulator

#endif
