/* Fibers, the order in which they run, and where they wait for each other. */
#include "emulator.h"

#include <condition_variable>
#include <link.h>
#include <mutex>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <sys/time.h>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <vector>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#define LN_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LN_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(LN_ADDRESS_SANITIZER) || defined(__SANITIZE_THREAD__)
#define LN_SANITIZED 1
#endif
#ifdef LN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ln_emulator {

__thread fiber *running;
__thread uint3 block_index;
dim3 block_size, grid_size;

/* ---- chance ---- */

static uint64_t seed;

uint64_t random_next() {
    if (!seed) {
        const char *given = getenv("LN_EMULATOR_SEED");
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        seed = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec * 1000003u + (uint64_t)now.tv_sec;
        if (!seed) seed = 1;
        printf("emulated GPU, LN_EMULATOR_SEED=%llu\n", (unsigned long long)seed);
    }
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

/* ---- switching ---- */

#if defined(__x86_64__)
extern "C" void ln_emulator_switch(void **save, void *to);
asm(R"(
.text
.globl ln_emulator_switch
.type ln_emulator_switch, @function
ln_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ln_emulator_switch, .-ln_emulator_switch
)");
static void *first_frame(char *top, void (*entry)()) {
    void **at = (void **)top;
    *--at = NULL; /* where entry would return to: keeps its stack aligned */
    *--at = (void *)entry;
    for (int i = 0; i < 6; i++) *--at = NULL;
    return at;
}
#elif defined(__aarch64__)
extern "C" void ln_emulator_switch(void **save, void *to);
asm(R"(
.text
.globl ln_emulator_switch
.type ln_emulator_switch, %function
ln_emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size ln_emulator_switch, .-ln_emulator_switch
)");
static void *first_frame(char *top, void (*entry)()) {
    void **at = (void **)(top - 160);
    memset(at, 0, 160);
    at[11] = (void *)entry;
    return at;
}
#else
#error "the emulator switches stacks on x86-64 and 64-bit ARM alone"
#endif

#ifdef LN_ADDRESS_SANITIZER
enum { STACK = 512 << 10 };
#else
enum { STACK = 128 << 10 };
#endif
enum { GUARD = 4096 * 16 };

/* A block's stacks and memory, kept from launch to launch. */
struct slot {
    char *stacks;
    int stack_count;
    char *memory, *seen; /* MEMORY_MOST bytes and a page */
    std::thread thread;
    std::condition_variable turn;
    bool finished;
};

static std::vector<slot *> &slots = *new std::vector<slot *>(); /* never destroyed: reachable at the end */
static __thread block *here;
static __thread slot *own_slot;
static uint64_t polls; /* of all blocks, since anything else happened */
static __thread void *scheduler_stack;
#ifdef LN_ADDRESS_SANITIZER
static __thread void *scheduler_fake;
static __thread const void *scheduler_bottom;
static __thread size_t scheduler_size;
#endif
static volatile uint64_t switches; /* the watchdog looks at it */

static char *stack_of(slot *s, int index) {
    return s->stacks + (size_t)index * (STACK + GUARD) + GUARD;
}

static void slot_fit(slot *s, int threads) {
    if (!s->memory) {
        s->memory = (char *)mmap(NULL, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        s->seen = (char *)malloc(256 << 10);
        if (s->memory == MAP_FAILED || !s->seen) fail("no memory for a block");
    }
    if (s->stack_count >= threads) return;
    if (s->stacks) {
#ifdef LN_ADDRESS_SANITIZER
        __asan_unpoison_memory_region(s->stacks, (size_t)s->stack_count * (STACK + GUARD));
#endif
        munmap(s->stacks, (size_t)s->stack_count * (STACK + GUARD));
    }
    s->stack_count = threads;
    s->stacks = (char *)mmap(NULL, (size_t)threads * (STACK + GUARD), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->stacks == MAP_FAILED) fail("no memory for stacks");
    for (int i = 0; i < threads; i++) mprotect(stack_of(s, i) - GUARD, GUARD, PROT_NONE);
}

/* From a fiber to its scheduler. */
static void leave(bool for_ever) {
#ifdef LN_ADDRESS_SANITIZER
    void *fake;
    __sanitizer_start_switch_fiber(for_ever ? NULL : &fake, scheduler_bottom, scheduler_size);
    ln_emulator_switch(&((thread_state *)running)->stack, scheduler_stack);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    (void)for_ever;
    ln_emulator_switch(&((thread_state *)running)->stack, scheduler_stack);
#endif
}

static void fiber_main() {
#ifdef LN_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(NULL, &scheduler_bottom, &scheduler_size);
#endif
    (*here->thread)();
    thread_ended();
    leave(true);
}

static void enter(thread_state *t) {
    running = t;
    switches = switches + 1;
#ifdef LN_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&scheduler_fake, stack_of(here->at, t->index), STACK);
#endif
    ln_emulator_switch(&scheduler_stack, t->stack);
#ifdef LN_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(scheduler_fake, NULL, NULL);
#endif
}

/* ---- states ---- */

void make_ready(thread_state *t) {
    t->waits = NULL;
    t->of->warps[t->warp].ready |= 1u << t->lane;
    t->of->ready_warps |= 1u << t->warp;
}

void wait_until_ready(const char *what, const void *where, int detail) {
    thread_state *t = (thread_state *)running;
    t->waits = what;
    t->where = where;
    t->detail = detail;
    if (!t->spins) polls = 0;
    leave(false);
}

static void unready(thread_state *t) {
    warp_state *w = &here->warps[t->warp];
    w->ready &= ~(1u << t->lane);
    if (!w->ready) here->ready_warps &= ~(1u << t->warp);
}

void spin() {
    thread_state *t = (thread_state *)running;
    t->spins = true;
    here->spinning++;
    polls++;
    wait_until_ready("memory that another writes", NULL, 0);
}

void maybe_yield() {
    if (random_next() % 8) return;
    make_ready((thread_state *)running);
    leave(false);
}

static bool cluster_release();

void thread_ended() {
    thread_state *t = (thread_state *)running;
    engine_thread_ends();
    t->ended = true;
    polls = 0;
    here->live--;
    here->warps[t->warp].alive &= ~(1u << t->lane);
    barrier_zero_check();
    cluster_release();
}

/* ---- reports ---- */

static std::string wait_text(const thread_state *t) {
    char text[200];
    if (!t->waits)
        snprintf(text, sizeof text, "ready");
    else if (t->barrier)
        snprintf(text, sizeof text, "barrier at %#x, phase %d: %s", shared_address(t->barrier), t->detail,
                 barrier_text(t->barrier).c_str());
    else
        snprintf(text, sizeof text, "%s %#x", t->waits, (unsigned)t->detail);
    return text;
}

static void show_block() {
    printf("  block %u, %u, %u of %u, %u, %u:\n", here->index.x, here->index.y, here->index.z, grid_size.x, grid_size.y,
           grid_size.z);
    for (int i = 0; i < here->threads;) {
        const thread_state *t = &here->fibers[i];
        if (t->ended) {
            i++;
            continue;
        }
        const std::string text = wait_text(t);
        int end = i + 1;
        while (end < here->threads && !here->fibers[end].ended && wait_text(&here->fibers[end]) == text) end++;
        printf("    threads %d to %d: %s\n", i, end - 1, text.c_str());
        i = end;
    }
    if (running && running->of == here) printf("    thread %d ran last\n", running->index);
    printf("    %zu copies are under way\n", here->transfers.size());
}

void fail(const char *format, ...) {
    va_list words;
    va_start(words, format);
    printf("FAILED in the emulated GPU: ");
    vprintf(format, words);
    printf("\n");
    va_end(words);
    if (here && here->in)
        for (block *each : here->in->blocks) {
            here = each;
            if (here) show_block();
        }
    fflush(stdout);
    _exit(1);
}

static void watch(int) {
    static uint64_t before;
    if (before == switches) {
        static const char text[] = "FAILED in the emulated GPU: a thread has run for half a minute without waiting for "
                                   "another; if it polls memory, it needs ln::spin_pause()\n";
        if (write(1, text, sizeof text - 1) < 0) _exit(2);
        _exit(1);
    }
    before = switches;
}

static void watchdog(bool on) {
    struct itimerval time = {};
    time.it_interval.tv_sec = time.it_value.tv_sec = on ? 30 : 0;
    signal(SIGALRM, watch);
    setitimer(ITIMER_REAL, &time, NULL);
}

/* ---- meetings of lanes ---- */

void warp_meet(uint32_t mask, const char *instruction, void *brought, meeting_act *act) {
    thread_state *t = (thread_state *)running;
    warp_state *w = &here->warps[t->warp];
    if (!(mask >> t->lane & 1)) fail("%s: lane %d is not in its own mask %#x", instruction, t->lane, mask);
    meeting *m = NULL;
    for (size_t i = 0; i < w->meetings.size() && !m; i++)
        if (w->meetings[i]->mask == mask) m = w->meetings[i];
    if (!m) {
        w->meetings.push_back(m = new meeting());
        m->mask = mask;
    }
    if (!m->arrived)
        m->instruction = instruction;
    else if (m->instruction != instruction && strcmp(m->instruction, instruction))
        fail("lanes of a warp meet in different instructions, %s and %s", m->instruction, instruction);
    m->brought[t->lane] = brought;
    m->arrived |= 1u << t->lane;
    if (m->arrived != mask) {
        wait_until_ready(instruction, NULL, (int)mask);
        return;
    }
    m->arrived = 0;
    if (act) act(m->brought, mask);
    for (uint32_t others = mask & ~(1u << t->lane); others; others &= others - 1)
        make_ready(&here->fibers[t->warp * 32 + __builtin_ctz(others)]);
}

uint32_t warp_alive() {
    return here->warps[running->warp].alive;
}

/* ---- named barriers ---- */

static void barrier_release(named *n) {
    for (thread_state *t : n->waiting) make_ready(t);
    n->waiting.clear();
    n->arrived = n->expected = 0;
    n->result[n->generation & 1] = n->votes;
    n->votes = 0;
    n->generation++;
}

void barrier_zero_check() {
    named *n = &here->named_barriers[0];
    if (n->arrived && n->expected == 0 && n->arrived == here->live) barrier_release(n);
}

static void named_arrive(int barrier, int threads, bool wait, bool vote) {
    thread_state *t = (thread_state *)running;
    if (barrier < 0 || barrier > 15) fail("there is no named barrier %d", barrier);
    named *n = &here->named_barriers[barrier];
    if (threads % 32 || threads > (here->threads + 31) / 32 * 32)
        fail("named barrier %d for %d threads of %d", barrier, threads, here->threads);
    if (n->arrived && n->expected != threads)
        fail("named barrier %d: %d threads expected by some, %d by thread %d", barrier, n->expected, threads, t->index);
    n->expected = threads;
    n->arrived++;
    n->votes += vote;
    if (n->arrived == (threads ? threads : here->live)) {
        barrier_release(n);
        return;
    }
    if (!wait) return;
    n->waiting.push_back(t);
    wait_until_ready("named barrier", NULL, barrier);
}

void named_barrier(int barrier, int threads, bool wait) {
    named_arrive(barrier, threads, wait, false);
}

int block_vote(bool vote) {
    const uint64_t generation = here->named_barriers[0].generation;
    named_arrive(0, 0, true, vote);
    return here->named_barriers[0].result[generation & 1];
}

/* ---- clusters ---- */

int cluster_rank() {
    return here->rank;
}

/* Threads that ended are not waited for. */
static bool cluster_release() {
    cluster *c = here->in;
    int live = 0;
    for (const block *b : c->blocks)
        if (b) live += b->live;
    if (!c->arrived || c->arrived < live) return false;
    for (thread_state *t : c->waiting) make_ready(t);
    c->waiting.clear();
    c->arrived = 0;
    return true;
}

void cluster_meet() {
    here->in->arrived++;
    if (cluster_release()) return;
    here->in->waiting.push_back((thread_state *)running);
    wait_until_ready("cluster_meet", NULL, here->rank);
}

void in_block(int rank, const char *instruction, const void *mine, const std::function<void(char *there)> &act) {
    block *const own = here;
    const ptrdiff_t at = (const char *)mine - own->memory;
    if (rank < 0 || rank >= (int)own->in->blocks.size())
        fail("%s: block %d of a cluster of %d", instruction, rank, (int)own->in->blocks.size());
    if (at < 0 || at >= own->shared_bytes) fail("%s: %p is not in the memory that blocks share", instruction, mine);
    block *const other = own->in->blocks[(size_t)rank];
    if (!other) fail("%s: block %d of the cluster has ended", instruction, rank);
    here = other;
    act(other->memory + at);
    here = own;
}

/* ---- memory of the block ---- */

static __thread char shared_anchor;

char *block_memory() {
    return here->memory;
}

uint32_t shared_address(const void *pointer) {
    const ptrdiff_t inside = (const char *)pointer - here->memory;
    if (inside >= 0 && inside < MEMORY_MOST + 4096) return (uint32_t)(MEMORY_FIRST + inside);
    const ptrdiff_t variable = (const char *)pointer - &shared_anchor;
    if (variable > -(1 << 19) && variable < 1 << 19) return (uint32_t)((1 << 20) + variable);
    fail("%p is no address of shared memory", pointer);
}

void *shared_pointer(uint32_t address) {
    if (address >= 1 << 19) return &shared_anchor + ((ptrdiff_t)address - (1 << 20));
    return here->memory + ((ptrdiff_t)address - MEMORY_FIRST);
}

void *warp_products() {
    void *&state = here->warps[running->warp].products;
    if (!state) state = products_new();
    return state;
}

block *running_block() {
    return here;
}

/* ---- a block ---- */

#ifdef LN_SANITIZED
static void poison_variables() {}
#else
/* __shared__ variables are thread-local ones of this program, which the emulator's own lie among. */
static int poison_module(struct dl_phdr_info *module, size_t, void *) {
    bool alone = false; /* without an interpreter the C library is in the program, and its variables too */
    for (int i = 0; i < module->dlpi_phnum; i++) alone |= module->dlpi_phdr[i].p_type == PT_INTERP;
    for (int i = 0; i < module->dlpi_phnum && alone; i++)
        if (module->dlpi_phdr[i].p_type == PT_TLS && module->dlpi_tls_data)
            memset(module->dlpi_tls_data, 0xff, module->dlpi_phdr[i].p_memsz);
    return 1; /* the first module is the program */
}
static void poison_variables() {
    const uint3 index = block_index;
    block *const b = here;
    slot *const s = own_slot;
    dl_iterate_phdr(poison_module, NULL);
    block_index = index;
    here = b;
    own_slot = s;
    running = NULL;
}
#endif

static void block_open(block *b, slot *s, const std::function<void()> *thread, int shared_bytes) {
    b->index = block_index;
    const int threads = (int)(block_size.x * block_size.y * block_size.z);
    slot_fit(s, threads);
    b->at = s;
    b->thread = thread;
    b->threads = b->live = threads;
    b->memory = s->memory;
    b->seen = s->seen;
    b->shared_bytes = shared_bytes;
#ifdef LN_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(s->memory, MEMORY_MOST + 4096);
#endif
    memset(b->memory, 0xff, MEMORY_MOST + 4096);
    memset(b->seen, 0xff, MEMORY_MOST + 4096);
#ifdef LN_ADDRESS_SANITIZER
    __asan_poison_memory_region(s->memory + shared_bytes, (size_t)(MEMORY_MOST + 4096 - shared_bytes));
#endif
    poison_variables();
    b->fibers.resize((size_t)threads);
    for (int i = 0; i < threads; i++) {
        thread_state *t = &b->fibers[(size_t)i];
        const unsigned x = block_size.x, y = block_size.y;
        t->thread_index = {(unsigned)i % x, (unsigned)i / x % y, (unsigned)i / x / y};
        t->index = i;
        t->warp = i / 32;
        t->lane = i % 32;
        t->of = b;
#ifdef LN_ADDRESS_SANITIZER
        __asan_unpoison_memory_region(stack_of(s, i), STACK); /* frames of threads that ended lay there */
#endif
        t->stack = first_frame(stack_of(s, i) + STACK, fiber_main);
        b->warps[t->warp].alive |= 1u << t->lane;
        make_ready(t);
    }
}

static void block_close(block *b) {
    if (!b->transfers.empty()) fail("a block ends while the copy engine writes its memory");
#ifdef LN_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(b->memory, MEMORY_MOST + 4096);
#endif
    for (int i = b->shared_bytes; i < MEMORY_MOST + 4096; i++)
        if (b->memory[i] != (char)0xff)
            fail("shared memory was written at byte %d, of the block's %d", i, b->shared_bytes);
    for (int w = 0; w < 32; w++) {
        if (b->warps[w].products) products_delete(b->warps[w].products);
        for (meeting *m : b->warps[w].meetings) delete m;
    }
}

static int random_bit(uint32_t set) {
    int skip = (int)(random_next() % (unsigned)__builtin_popcount(set));
    while (skip--) set &= set - 1;
    return __builtin_ctz(set);
}

/* Of one warp until it waits, mostly: then of another. */
static thread_state *choose(int *warp, int *turn) {
    if (!(here->ready_warps >> *warp & 1) || random_next() % 64 == 0) {
        *warp = random_bit(here->ready_warps);
        *turn = (int)(random_next() % 32);
    }
    const uint32_t ready = here->warps[*warp].ready, turned = ready >> *turn | (*turn ? ready << (32 - *turn) : 0);
    return &here->fibers[(size_t)(*warp * 32 + (__builtin_ctz(turned) + *turn) % 32)];
}

static bool pass_turn(slot *s = NULL); /* to another block; false: there is none */

/* To a block of the cluster in which something can happen. */
static bool pass_turn_in_cluster() {
    std::vector<slot *> able;
    for (const block *b : here->in->blocks)
        if (b && b != here && b->live && (b->ready_warps || b->spinning || !b->transfers.empty()))
            able.push_back(b->at);
    return !able.empty() && pass_turn(able[random_next() % able.size()]);
}

static void run_block() {
    int warp = random_bit(here->ready_warps), turn = (int)(random_next() % 32);
    while (here->live) {
        if (!here->transfers.empty()) engine_turn(false);
        if (here->ready_warps) {
            thread_state *t = choose(&warp, &turn);
            unready(t);
            enter(t);
            running = NULL;
            if (random_next() % 2048 == 0) pass_turn();
            continue;
        }
        if (!here->transfers.empty()) {
            engine_turn(true);
            continue;
        }
        if (!here->spinning) {
            if (!pass_turn_in_cluster()) fail("no thread of a block can run");
            continue;
        }
        here->spinning = 0;
        for (thread_state &t : here->fibers)
            if (t.spins) {
                t.spins = false;
                make_ready(&t);
            }
        if (polls > 300000) fail("threads poll memory that no other thread writes");
        pass_turn();
    }
}

/* ---- a grid ---- */

struct grid_state {
    std::mutex mutex;
    std::condition_variable done;
    const std::function<void()> *thread;
    int shared_bytes, cluster_blocks;
    cluster *opening;
    uint64_t next, blocks, ended;
    std::vector<slot *> active;
    size_t resident;
    slot *holder;
};
static grid_state grid;

static void slot_main(slot *s);

/* With the lock: somebody else's turn. False: nobody else is there. */
static slot *another() {
    const bool fresh = grid.next < grid.blocks && grid.active.size() < grid.resident;
    std::vector<slot *> others;
    for (slot *s : grid.active)
        if (s != own_slot) others.push_back(s);
    const size_t choices = others.size() + (fresh ? 1 : 0);
    if (!choices) return NULL;
    const size_t choice = random_next() % choices;
    if (choice < others.size()) return others[choice];
    slot *s = NULL;
    for (slot *known : slots)
        if (!known->thread.joinable()) s = known;
    if (!s) slots.push_back(s = new slot());
    s->finished = false;
    grid.active.push_back(s);
    s->thread = std::thread(slot_main, s);
    return s;
}

static void hand_to(slot *s) {
    grid.holder = s;
    s->turn.notify_one();
}

static bool pass_turn(slot *s) {
    std::unique_lock<std::mutex> lock(grid.mutex);
    if (!s) s = another();
    if (!s) return false;
    hand_to(s);
    own_slot->turn.wait(lock, [] { return grid.holder == own_slot; });
    return true;
}

/* Into the cluster that is being opened, and on when it is whole. */
static void cluster_enter(block *b) {
    if (!grid.opening) grid.opening = new cluster();
    cluster *c = b->in = grid.opening;
    b->rank = (int)c->blocks.size();
    c->blocks.push_back(b);
    if ((int)c->blocks.size() == grid.cluster_blocks) grid.opening = NULL;
}

static void cluster_leave(block *b) {
    cluster *c = b->in;
    c->blocks[(size_t)b->rank] = NULL;
    for (const block *other : c->blocks)
        if (other) return;
    delete c;
}

static void slot_main(slot *s) {
    own_slot = s;
    {
        std::unique_lock<std::mutex> lock(grid.mutex);
        s->turn.wait(lock, [s] { return grid.holder == s; });
    }
    while (grid.next < grid.blocks) {
        const uint64_t index = grid.next++;
        block_index = {(unsigned)(index % grid_size.x), (unsigned)(index / grid_size.x % grid_size.y),
                       (unsigned)(index / grid_size.x / grid_size.y)};
        block *b = here = new block();
        block_open(b, s, grid.thread, grid.shared_bytes);
        cluster_enter(b);
        while ((int)b->in->blocks.size() < grid.cluster_blocks)
            if (!pass_turn()) fail("a cluster does not fit on the device");
        run_block();
        block_close(b);
        cluster_leave(b);
        delete b;
        here = NULL;
        grid.ended++;
    }
    std::unique_lock<std::mutex> lock(grid.mutex);
    for (size_t i = 0; i < grid.active.size(); i++)
        if (grid.active[i] == s) grid.active.erase(grid.active.begin() + (ptrdiff_t)i);
    s->finished = true;
    if (slot *next = another())
        hand_to(next);
    else {
        grid.holder = NULL;
        grid.done.notify_one();
    }
}

void run_grid(const std::function<void()> &thread, dim3 size, dim3 block, int shared_bytes, int cluster_blocks) {
    grid_size = size;
    block_size = block;
    const int threads = (int)(block.x * block.y * block.z);
    size_t resident = (size_t)(2048 / ((threads + 31) / 32 * 32));
    const size_t by_memory = (size_t)(233472 / (shared_bytes + 1024));
    if (by_memory < resident) resident = by_memory;
    if (resident > 32) resident = 32;
    resident *= (size_t)device().multiprocessors;
    if (resident > 128) resident = 128;
    grid.thread = &thread;
    grid.shared_bytes = shared_bytes;
    grid.next = grid.ended = 0;
    grid.blocks = (uint64_t)size.x * size.y * size.z;
    if (resident < (size_t)cluster_blocks) resident = (size_t)cluster_blocks;
    grid.resident = resident;
    grid.cluster_blocks = cluster_blocks;
    grid.active.clear();
    own_slot = NULL;
    watchdog(true);
    {
        std::unique_lock<std::mutex> lock(grid.mutex);
        hand_to(another());
        grid.done.wait(lock, [] { return grid.holder == NULL && grid.ended == grid.blocks; });
    }
    watchdog(false);
    for (slot *s : slots)
        if (s->thread.joinable()) s->thread.join();
}

} // namespace ln_emulator
