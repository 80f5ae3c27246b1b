/* Barriers that count bytes, cp.async, and the tensor copy engine. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"

namespace ln_emulator {

/* ---- barriers ---- */

/* What lies in the eight bytes of a barrier. */
struct barrier_bits {
    uint64_t phase : 1, pending : 20, expected : 20, mark : 3;
    int64_t bytes : 20;
};
enum { MARK = 5 };

static barrier_bits *bits_of(uint64_t *barrier) {
    barrier_bits *b = (barrier_bits *)barrier;
    shared_address(barrier);
    if (b->mark != MARK || b->expected == 0) fail("the barrier at %#x was not opened", shared_address(barrier));
    return b;
}

std::string barrier_text(const uint64_t *barrier) {
    const barrier_bits *b = (const barrier_bits *)barrier;
    char text[120];
    snprintf(text, sizeof text, "is in phase %d, lacks %d of %d arrivals and %lld bytes", (int)b->phase,
             (int)b->pending, (int)b->expected, (long long)b->bytes);
    return text;
}

void barrier_open(uint64_t *barrier, int arrivals) {
    if (arrivals < 1 || arrivals >= 1 << 20) fail("a barrier for %d arrivals", arrivals);
    barrier_bits b = {};
    b.pending = b.expected = (unsigned)arrivals;
    b.mark = MARK;
    memcpy(barrier, &b, 8);
}

static void barrier_check(uint64_t *barrier) {
    barrier_bits *b = bits_of(barrier);
    if (b->pending || b->bytes) return;
    b->phase ^= 1;
    b->pending = b->expected;
    std::vector<thread_state *> &waiters = running_block()->barrier_waiters;
    for (size_t i = 0; i < waiters.size();)
        if (waiters[i]->barrier == barrier && barrier_passed(barrier, waiters[i]->detail)) {
            waiters[i]->barrier = NULL;
            make_ready(waiters[i]);
            waiters[i] = waiters.back();
            waiters.pop_back();
        } else
            i++;
}

void barrier_arrive(uint64_t *barrier, int arrivals, int bytes) {
    barrier_bits *b = bits_of(barrier);
    if ((int)b->pending < arrivals)
        fail("more arrivals at the barrier at %#x than it was opened for: %s", shared_address(barrier),
             barrier_text(barrier).c_str());
    b->bytes += bytes;
    b->pending -= (unsigned)arrivals;
    barrier_check(barrier);
}

void barrier_arrive_at(uint64_t *barrier, int rank) {
    in_block(rank, "barrier_arrive_at", barrier, [](char *there) { barrier_arrive((uint64_t *)there, 1, 0); });
}

static void barrier_bytes(uint64_t *barrier, int bytes) {
    barrier_bits *b = bits_of(barrier);
    b->bytes -= bytes;
    barrier_check(barrier);
}

bool barrier_passed(uint64_t *barrier, int phase) {
    return (int)bits_of(barrier)->phase != (phase & 1);
}

void barrier_wait(uint64_t *barrier, int phase) {
    while (!barrier_passed(barrier, phase)) {
        thread_state *t = (thread_state *)running;
        t->barrier = barrier;
        running_block()->barrier_waiters.push_back(t);
        wait_until_ready("barrier", barrier, phase & 1);
    }
}

/* ---- what the copy engine and the products see ---- */

/* `seen` is the memory as they see it: with what they wrote themselves, and what ordinary stores wrote before the last
 * fence of any thread. */
void stores_to_async() {
    block *b = running_block();
    memcpy(b->seen, b->memory, (size_t)b->shared_bytes);
}

static char *seen_at(const void *shared) {
    block *b = running_block();
    const ptrdiff_t at = (const char *)shared - b->memory;
    return at >= 0 && at < b->shared_bytes ? b->seen + at : NULL;
}

void async_read(const void *shared, int bytes) {
    const char *seen = seen_at(shared);
    if (seen && memcmp(seen, shared, (size_t)bytes))
        fail("ordinary stores at %#x are read by the copy engine or a product without stores_to_async() between",
             shared_address(shared));
}

static void async_write(char *to, const char *from, int valid, int bytes) {
    char *const both[2] = {to, seen_at(to)};
    for (char *each : both) {
        if (!each) continue;
        if (valid) memcpy(each, from, (size_t)valid);
        memset(each + valid, 0, (size_t)(bytes - valid));
    }
}

static void async_fill(char *to, int bytes) {
    memset(to, 0xff, (size_t)bytes);
    if (seen_at(to)) memset(seen_at(to), 0xff, (size_t)bytes);
}

/* ---- cp.async ---- */

void copy_piece(void *to, const void *from, int bytes, int valid) {
    thread_state *t = (thread_state *)running;
    if ((uintptr_t)to % (unsigned)bytes || (uintptr_t)from % (unsigned)bytes)
        fail("cp.async of %d bytes between %p and %p: not aligned", bytes, to, from);
    shared_address(to);
    memset(to, 0xff, (size_t)bytes);
    t->pieces.push_back({(char *)to, (const char *)from, bytes, valid, t->piece_group});
}

void copies_commit() {
    ((thread_state *)running)->piece_group++;
}

static void pieces_end(thread_state *t, uint64_t end) {
    size_t done = 0;
    for (; done < t->pieces.size() && t->pieces[done].group < end; done++) {
        const piece &p = t->pieces[done];
        memcpy(p.to, p.from, (size_t)p.valid);
        memset(p.to + p.valid, 0, (size_t)(p.bytes - p.valid));
    }
    t->pieces.erase(t->pieces.begin(), t->pieces.begin() + (ptrdiff_t)done);
}

void copies_wait(int left) {
    thread_state *t = (thread_state *)running;
    if (t->piece_group > (uint64_t)left) pieces_end(t, t->piece_group - (uint64_t)left);
}

/* The barrier's arrival is part of what was waited for: it comes when all earlier copies of this thread are there. */
void copies_arrive(uint64_t *barrier) {
    pieces_end((thread_state *)running, UINT64_MAX);
    barrier_arrive(barrier, 1, 0);
}

/* ---- descriptions of tensors ---- */

struct description {
    uint32_t mark;
    uint8_t rank, element, swizzle, type;
    char *data;
    uint64_t extents[5], strides[4]; /* strides in bytes */
    uint16_t box[5];
};
static_assert(sizeof(description) <= sizeof(CUtensorMap), "fits");
static const uint32_t DESCRIBED = 0x4c4e4d50;

static const description &read_map(const CUtensorMap *map) {
    const description &d = *(const description *)map;
    if (d.mark != DESCRIBED) fail("%p is no description of a tensor", (const void *)map);
    return d;
}

static int element_bytes(CUtensorMapDataType type) {
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
        return 8;
    default:
        return 4;
    }
}

/* Refuses what the driver refuses. */
CUresult encode_tiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data,
                      const cuuint64_t *extents, const cuuint64_t *strides, const cuuint32_t *box,
                      const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    description d = {};
    const uint64_t element = (uint64_t)element_bytes(type);
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
        printf("the emulated copy engine has no interleaving and fills with zeros alone\n");
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (rank < 1 || rank > 5 || (uintptr_t)map % 64 || (uintptr_t)data % 16 || !data) return CUDA_ERROR_INVALID_VALUE;
    for (cuuint32_t i = 0; i < rank; i++) {
        if (extents[i] < 1 || extents[i] > UINT64_C(1) << 32 || box[i] < 1 || box[i] > 256 || steps[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
        if (i + 1 < rank && (strides[i] % 16 || strides[i] >= UINT64_C(1) << 40)) return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t row = box[0] * element, span = swizzle ? 16u << swizzle : 0;
    if (row % 16 || (span && row > span)) return CUDA_ERROR_INVALID_VALUE;
    d.mark = DESCRIBED;
    d.rank = (uint8_t)rank;
    d.element = (uint8_t)element;
    d.swizzle = (uint8_t)swizzle;
    d.type = (uint8_t)type;
    d.data = (char *)data;
    for (cuuint32_t i = 0; i < 5; i++) {
        d.extents[i] = i < rank ? extents[i] : 1;
        d.box[i] = (uint16_t)(i < rank ? box[i] : 1);
        if (i + 1 < rank) d.strides[i] = strides[i];
    }
    memcpy(map, &d, sizeof d);
    return CUDA_SUCCESS;
}

/* Where the 16 bytes at this address of a box lie: their place among eight depends on bits above. */
static uint32_t swizzled(uint32_t address, int swizzle) {
    const uint32_t mask = (1u << swizzle) - 1; /* 32, 64, 128 bytes: 1, 2, 3 bits */
    return address ^ (address >> 7 & mask) << 4;
}

static int box_bytes(const description &d) {
    int bytes = d.element;
    for (int i = 0; i < 5; i++) bytes *= d.box[i];
    return bytes;
}

/* Calls with each run of 16 bytes of the box: its place in shared memory, and in the tensor (NULL: outside), how many
 * of the bytes are inside. */
template <class VISIT> static void walk_box(const description &d, char *shared, const int *coordinates, VISIT visit) {
    const int row = d.box[0] * d.element, rows = box_bytes(d) / row;
    const uint32_t base = shared_address(shared);
    if (d.swizzle && row != 16 << d.swizzle) fail("boxes narrower than their swizzle are not emulated");
    if (base % 128) fail("a box at %#x in shared memory is not aligned to 128 bytes", base);
    for (int r = 0; r < rows; r++) {
        int rest = r;
        bool inside = true;
        char *line = d.data;
        for (int i = 1; i < 5; i++) {
            const int64_t at = (int64_t)coordinates[i] + rest % d.box[i];
            rest /= d.box[i];
            inside &= at >= 0 && (uint64_t)at < d.extents[i];
            if (inside) line += at * (int64_t)d.strides[i - 1];
        }
        for (int byte = 0; byte < row; byte += 16) {
            const int64_t first = (int64_t)coordinates[0] * d.element + byte,
                          extent = (int64_t)d.extents[0] * d.element;
            char *to = (char *)shared_pointer(swizzled(base + (uint32_t)(r * row + byte), d.swizzle));
            if (first < 0 && first > -16 && inside) fail("a box that begins within 16 bytes is not emulated");
            const bool any = inside && first >= 0 && first < extent;
            visit(to, any ? line + first : NULL, any ? (int)(extent - first < 16 ? extent - first : 16) : 0);
        }
    }
}

/* ---- loads ---- */

static void begin_here(transfer &&t) {
    static const int LATEST[4] = {64, 64, 4096, INT_MAX}; /* the last: when nothing else can run */
    const int latest = LATEST[random_next() % 4];
    bits_of(t.barrier);
    t.turns = latest == INT_MAX ? latest : (int)(random_next() % (unsigned)latest);
    async_fill(t.to, t.bytes);
    running_block()->transfers.push_back(t);
}

/* Each of the blocks gets a copy of its own, in its own time. */
static void begin_load(transfer &&t, uint32_t blocks) {
    if (!blocks) begin_here(std::move(t));
    for (; blocks; blocks &= blocks - 1) {
        const int rank = __builtin_ctz(blocks);
        transfer other = t;
        in_block(rank, "a copy to several blocks", t.barrier, [&](char *at) { other.barrier = (uint64_t *)at; });
        in_block(rank, "a copy to several blocks", t.to, [&](char *at) {
            other.to = at;
            begin_here(std::move(other));
        });
    }
}

void engine_load(void *to, const CUtensorMap *map, uint64_t *barrier, const int *coordinates, int rank,
                 uint32_t blocks) {
    const description &d = read_map(map);
    if (d.rank != rank) fail("a box of rank %d of a tensor of rank %d", rank, d.rank);
    transfer t = {*map, (char *)to, NULL, barrier, box_bytes(d), {}, 0};
    if (d.swizzle && shared_address(to) % 128) fail("a swizzled box at %#x", shared_address(to));
    for (int i = 0; i < rank; i++) t.coordinates[i] = coordinates[i];
    begin_load(std::move(t), blocks);
}

void engine_load_bytes(void *to, const void *from, int bytes, uint64_t *barrier, uint32_t blocks) {
    if (bytes % 16 || (uintptr_t)from % 16 || shared_address(to) % 16)
        fail("a copy of %d bytes from %p to %#x is not aligned to 16", bytes, from, shared_address(to));
    begin_load({{}, (char *)to, (const char *)from, barrier, bytes, {}, 0}, blocks);
}

static void end_load(const transfer &t) {
    if (t.from)
        async_write(t.to, t.from, t.bytes, t.bytes);
    else
        walk_box(read_map(&t.map), t.to, t.coordinates,
                 [](char *to, const char *from, int valid) { async_write(to, from, valid, 16); });
    barrier_bytes(t.barrier, t.bytes);
}

void engine_turn(bool now) {
    std::vector<transfer> &all = running_block()->transfers;
    const size_t forced = now ? random_next() % all.size() : SIZE_MAX;
    for (size_t i = all.size(); i-- > 0;) {
        if (all[i].turns-- > 0 && i != forced) continue;
        const transfer t = all[i];
        all[i] = all.back();
        all.pop_back();
        end_load(t);
    }
}

/* ---- stores ---- */

static void snapshot(const engine_piece &p, std::vector<char> *content) {
    async_read(p.from, p.bytes);
    content->resize((size_t)p.bytes);
    memcpy(content->data(), p.from, (size_t)p.bytes);
}

static void read_piece(engine_piece *p) {
    if (p->read) return;
    if (memcmp(p->content.data(), p->from, (size_t)p->bytes))
        fail("shared memory at %#x changed while the copy engine read it (or was not there yet)",
             shared_address(p->from));
    p->read = true;
}

static void add_elements(char *to, const char *from, int bytes, engine_store how) {
    if (how == STORE)
        memcpy(to, from, (size_t)bytes);
    else if (how == ADD_FLOAT32)
        for (int i = 0; i < bytes / 4; i++) ((float *)to)[i] += ((const float *)from)[i];
    else
        for (int i = 0; i < bytes / 2; i++) {
            uint16_t *sum = (uint16_t *)to + i;
            const uint16_t more = ((const uint16_t *)from)[i];
            *sum = how == ADD_BF16 ? bf16_of(of_bf16(*sum) + of_bf16(more)) : f16_of(of_f16(*sum) + of_f16(more));
        }
}

static void write_piece(const engine_piece &p) {
    if (p.to) {
        add_elements(p.to, p.content.data(), p.bytes, p.how);
        return;
    }
    const char *shared = p.from;
    walk_box(read_map(&p.map), (char *)p.from, p.coordinates, [&](char *at, char *to, int valid) {
        if (valid) add_elements(to, p.content.data() + (at - shared), valid, p.how);
    });
}

static void begin_store(engine_piece &&p) {
    thread_state *t = (thread_state *)running;
    p.group = t->engine_group;
    snapshot(p, &p.content);
    t->engine_pieces.push_back(p);
}

void engine_store_box(const CUtensorMap *map, const void *from, const int *coordinates, int rank, engine_store how) {
    const description &d = read_map(map);
    if (d.rank != rank) fail("a box of rank %d of a tensor of rank %d", rank, d.rank);
    engine_piece p = {*map, NULL, (const char *)from, box_bytes(d), {}, how, 0, false, {}};
    for (int i = 0; i < rank; i++) p.coordinates[i] = coordinates[i];
    begin_store(std::move(p));
}

void engine_store_bytes(void *to, const void *from, int bytes, engine_store how) {
    if (bytes % 16 || (uintptr_t)to % 16 || shared_address(from) % 16)
        fail("a copy of %d bytes from %#x to %p is not aligned to 16", bytes, shared_address(from), to);
    begin_store({{}, (char *)to, (const char *)from, bytes, {}, how, 0, false, {}});
}

void engine_commit() {
    ((thread_state *)running)->engine_group++;
}

void engine_wait(int left, bool read_only) {
    thread_state *t = (thread_state *)running;
    const uint64_t end = t->engine_group > (uint64_t)left ? t->engine_group - (uint64_t)left : 0;
    size_t done = 0;
    for (engine_piece &p : t->engine_pieces) {
        if (p.group >= end) break;
        read_piece(&p);
        if (!read_only) write_piece(p);
        done++;
    }
    if (!read_only) t->engine_pieces.erase(t->engine_pieces.begin(), t->engine_pieces.begin() + (ptrdiff_t)done);
}

/* What was written need not be waited for before a kernel's end, what is read must be. */
void engine_thread_ends() {
    thread_state *t = (thread_state *)running;
    for (engine_piece &p : t->engine_pieces) {
        if (!p.read) fail("a thread ends while the copy engine may still read what it stored from shared memory");
        write_piece(p);
    }
    t->engine_pieces.clear();
    if (!t->pieces.empty() && t->pieces.back().group < t->piece_group) pieces_end(t, t->piece_group);
}

} // namespace ln_emulator
