/* What memory under a policy asks of a GPU: tokens that move, sums of attention's weights, pages for the host. Sums
 * against float64; the others bit for bit. */
#include "kernel/cuda/lanes_cuda.h"
#include "oracle_decode.h"

typedef struct work {
    const char *name;
    ln_cuda_page_format format;
    int lanes, group, key_size, value_size;
    int length, tokens; /* length: of lane 0; every other has 13 more */
    float cap;
    bool each, most;
    int first, rows; /* of the queries */
} work;

static const work WORKS[] = {
    {"a piece of 9", LN_CUDA_PAGE_F16, 2, 2, 64, 64, 70, 9, 0, false, false, 3, 12},
    {"1 token, cap", LN_CUDA_PAGE_BF16, 3, 4, 24, 40, 33, 1, 5, false, false, 0, 1},
    {"all keys new, the most", LN_CUDA_PAGE_Q8_0, 1, 1, 96, 32, 21, 21, 0, false, true, 0, 21},
    {"11 tokens apart, round the end", LN_CUDA_PAGE_Q4_0, 2, 3, 64, 128, 130, 11, 0, true, false, 25, 32},
    {"5 tokens apart", LN_CUDA_PAGE_BF16, 2, 2, 128, 128, 300, 5, 0, true, false, 31, 32},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0], PAGE = 32, FURTHER = 13, MOVES = 12 };

typedef struct setting {
    const work *of;
    int64_t slots, stride; /* stride: of the table */
    pages side[2];         /* keys, values */
    int32_t *table, *lengths;
    ln_cuda_lane_pages there;
    int32_t *table_there, *lengths_there;
} setting;

static int64_t length_of(const work *w, int64_t lane) {
    return w->length + FURTHER * lane;
}

static pages open_side(const work *w, bool values, int64_t slots) {
    const int size = values ? w->value_size : w->key_size;
    const int64_t page = bytes_of_tokens(w->format, size, PAGE);
    pages p = {.format = w->format, .values = values, .size = size, .bytes = slots * page};
    p.host = malloc((size_t)p.bytes);
    p.device = (ln_cuda_page_part){device_open(p.bytes), page, page, w->format <= LN_CUDA_PAGE_F16 ? 2 * size : 0};
    for (int64_t i = 0; i < slots * PAGE; i++) token_fill(&p, i / PAGE, 0, i % PAGE);
    device_send(p.device.data, p.host, p.bytes);
    return p;
}

static setting open_setting(const work *w) {
    setting s = {.of = w, .stride = (length_of(w, w->lanes - 1) + PAGE - 1) / PAGE};
    s.slots = s.stride * w->lanes;
    s.table = malloc((size_t)s.slots * sizeof *s.table);
    s.lengths = malloc((size_t)w->lanes * sizeof *s.lengths);
    for (int64_t i = 0; i < s.slots; i++) { /* any order */
        const int64_t other = (int64_t)(random_next() % (uint64_t)(i + 1));
        s.table[i] = s.table[other];
        s.table[other] = (int32_t)i;
    }
    for (int64_t i = 0; i < w->lanes; i++) s.lengths[i] = (int32_t)length_of(w, i);
    for (int i = 0; i < 2; i++) s.side[i] = open_side(w, i, s.slots);
    s.there = (ln_cuda_lane_pages){w->format, PAGE, w->key_size, w->value_size, s.side[0].device, s.side[1].device};
    s.table_there = device_open(s.slots * 4);
    s.lengths_there = device_open(w->lanes * 4);
    device_send(s.table_there, s.table, s.slots * 4);
    device_send(s.lengths_there, s.lengths, w->lanes * 4);
    return s;
}

static void close_setting(setting *s) {
    for (int i = 0; i < 2; i++) {
        device_close(s->side[i].device.data);
        free(s->side[i].host);
    }
    device_close(s->table_there);
    device_close(s->lengths_there);
    free(s->table);
    free(s->lengths);
}

static double key_at(const setting *s, int64_t lane, int64_t token, int i) {
    return value_at(&s->side[0], s->table[lane * s->stride + token / PAGE], 0, token % PAGE, i);
}

/* ---- sums ---- */

/* What token t of a lane gives to its keys: added to, or the most of it in, to[stride]. */
static void give(const setting *s, const uint16_t *query, int64_t lane, int64_t t, double *to) {
    const work *w = s->of;
    const int64_t seen = s->lengths[lane] - w->tokens + t + 1, row = (int64_t)w->lanes * w->group * w->key_size;
    double *score = malloc((size_t)seen * sizeof *score);
    for (int g = 0; g < w->group; g++) {
        const uint16_t *q = query + (w->first + t) % w->rows * row + (lane * w->group + g) * w->key_size;
        double largest = -INFINITY, sum = 0;
        for (int64_t k = 0; k < seen; k++) {
            double x = 0;
            for (int i = 0; i < w->key_size; i++) x += (double)of_bf16(q[i]) * key_at(s, lane, k, i);
            x *= 0.125;
            score[k] = w->cap > 0 ? (double)w->cap * tanh(x / (double)w->cap) : x;
            largest = fmax(largest, score[k]);
        }
        for (int64_t k = 0; k < seen; k++) sum += exp(score[k] - largest);
        for (int64_t k = 0; k < seen; k++) {
            const double weight = exp(score[k] - largest) / sum;
            to[k] = w->most ? fmax(to[k], weight) : to[k] + weight;
        }
    }
    free(score);
}

static ln_cuda_code start_sums(void *context, void *stream) {
    return ln_cuda_lanes_sums(context, stream);
}

static void check_sums(const setting *s) {
    const work *w = s->of;
    const int64_t elements = (int64_t)w->lanes * w->group * w->key_size, stride = s->stride * PAGE;
    const int64_t rows = w->each ? w->tokens : 1, count = rows * w->lanes * stride;
    uint16_t *query = calloc((size_t)(w->rows * elements), sizeof *query), *one = malloc((size_t)elements * 2);
    float *fetched = malloc((size_t)count * sizeof *fetched), *again = malloc((size_t)count * sizeof *again);
    double *want = calloc((size_t)count, sizeof *want), *got = malloc((size_t)count * sizeof *got);
    void *kept = device_open(w->rows * elements * 2), *single = device_open(elements * 2), *at = device_open(4);
    device_send(kept, query, w->rows * elements * 2);
    /* Query by query, as steps keep them. */
    for (int t = 0; t < w->tokens; t++) {
        const int32_t position = w->first + t;
        for (int64_t i = 0; i < elements; i++) one[i] = bf16_of(random_normal());
        memcpy(query + position % w->rows * elements, one, (size_t)elements * 2);
        device_send(single, one, elements * 2);
        device_send(at, &position, 4);
        EXPECT(ln_cuda_lanes_keep(kept, w->rows, elements, single, at, NULL) == LN_CUDA_OK, "%s: keeping", w->name);
        must(cudaDeviceSynchronize(), "keeping");
    }
    ln_cuda_lane_sums of = {.pages = s->there,
                            .page_table = s->table_there,
                            .table_stride = s->stride,
                            .lengths = s->lengths_there,
                            .lanes = w->lanes,
                            .group = w->group,
                            .tokens = w->tokens,
                            .query = kept,
                            .row_stride = elements,
                            .first = w->first,
                            .rows = w->rows,
                            .scale = 0.125f,
                            .soft_cap = w->cap,
                            .each = w->each,
                            .most = w->most,
                            .log_sum_exp = device_open((int64_t)w->lanes * w->tokens * w->group * 4),
                            .sums = device_open(count * 4),
                            .stride = stride};
    run_now(start_sums, &of, w->name, "sums");
    device_fetch(fetched, of.sums, count * 4);
    for (int64_t t = 0; t < w->tokens; t++)
        for (int64_t lane = 0; lane < w->lanes; lane++)
            give(s, query, lane, t, want + ((w->each ? t : 0) * w->lanes + lane) * stride);
    for (int64_t i = 0; i < count; i++) got[i] = (double)fetched[i];
    const double error = relative_error(got, want, count);
    EXPECT(error <= 1e-5, "%s: sums are off by %.3g", w->name, error);
    cudaGraphExec_t graph = run_capture(start_sums, &of, w->name, "sums");
    device_poison(of.sums, count * 4);
    run_graph(graph, w->name, "sums");
    device_fetch(again, of.sums, count * 4);
    expect_same_bits(fetched, again, count * 4, w->name, "sums", "a second run");
    must(cudaGraphExecDestroy(graph), "letting a graph go");
    void *const devices[] = {kept, single, at, of.log_sum_exp, of.sums};
    for (unsigned i = 0; i < sizeof devices / sizeof devices[0]; i++) device_close(devices[i]);
    void *const blocks[] = {query, one, fetched, again, want, got};
    for (unsigned i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

/* ---- pages for the host ---- */

/* Random codes need not use their whole range, so that they may be rounded anew, by less than half a step. */
static void expect_stored(const setting *s, int64_t lane) {
    double worst = 0;
    for (int side = 0; side < 2; side++) {
        pages now = s->side[side];
        now.host = malloc((size_t)now.bytes);
        device_fetch(now.host, now.device.data, now.bytes);
        for (int64_t t = 0; t < s->stride * PAGE; t++) {
            const int64_t page = s->table[lane * s->stride + t / PAGE];
            double largest = 1e-30, off = 0;
            for (int i = 0; i < now.size; i++) {
                const double want = value_at(&s->side[side], page, 0, t % PAGE, i);
                largest = fmax(largest, fabs(want));
                off = fmax(off, fabs(value_at(&now, page, 0, t % PAGE, i) - want));
            }
            worst = fmax(worst, off / largest);
        }
        free(now.host);
    }
    const double bound = s->of->format <= LN_CUDA_PAGE_F16 ? 0 : s->of->format == LN_CUDA_PAGE_Q8_0 ? 5e-3 : 0.13;
    EXPECT(worst <= bound, "%s: pages that were stored are off by %.3g", s->of->name, worst);
}

static void check_fetch(const setting *s) {
    const work *w = s->of;
    const int64_t bytes = w->format <= LN_CUDA_PAGE_F16 ? 2 : 4, at = PAGE * w->key_size * bytes,
                  page = at + PAGE * w->value_size * bytes, lane = w->lanes - 1;
    unsigned char *got = malloc((size_t)(s->stride * page));
    const ln_cuda_lane_fetch fetch = {.pages = s->there,
                                      .page_table = s->table_there + lane * s->stride,
                                      .count = s->stride,
                                      .keys = true,
                                      .values = true,
                                      .page_bytes = page,
                                      .values_at = at,
                                      .to = device_open(s->stride * page)};
    EXPECT(ln_cuda_lanes_fetch(&fetch, NULL) == LN_CUDA_OK, "%s: fetching failed", w->name);
    must(cudaDeviceSynchronize(), "fetching");
    device_fetch(got, fetch.to, s->stride * page);
    bool same = true;
    for (int side = 0; side < 2; side++) {
        const int size = s->side[side].size;
        for (int64_t i = 0; i < s->stride * PAGE * size; i++) {
            const int64_t token = i / size, column = i % size, inside = token % PAGE, panel = column / 32;
            const int64_t columns = size - 32 * panel < 32 ? size - 32 * panel : 32;
            const int64_t place = side ? panel * 32 * PAGE + inside * columns + column % 32 : column * PAGE + inside;
            const unsigned char *from = got + token / PAGE * page + side * at + place * bytes;
            const double want =
                value_at(&s->side[side], s->table[lane * s->stride + token / PAGE], 0, inside, (int)column);
            double x;
            if (bytes == 4)
                x = (double)*(const float *)(const void *)from;
            else
                x = (double)(w->format == LN_CUDA_PAGE_F16 ? of_f16(*(const uint16_t *)(const void *)from)
                                                           : of_bf16(*(const uint16_t *)(const void *)from));
            same = same && x == want;
        }
    }
    EXPECT(same, "%s: pages that were fetched differ", w->name);
    /* Back to where they were: the same values. */
    for (int64_t i = 0; i < w->lanes; i++) {
        ln_cuda_lane_fetch all = fetch;
        all.page_table = s->table_there + i * s->stride;
        for (int side = 0; side < 2; side++)
            device_send(s->side[side].device.data, s->side[side].host, s->side[side].bytes);
        EXPECT(ln_cuda_lanes_fetch(&all, NULL) == LN_CUDA_OK, "%s: fetching failed", w->name);
        must(cudaDeviceSynchronize(), "fetching");
        for (int side = 0; side < 2; side++) device_poison(s->side[side].device.data, s->side[side].bytes);
        EXPECT(ln_cuda_lanes_store(&all, NULL) == LN_CUDA_OK, "%s: storing failed", w->name);
        must(cudaDeviceSynchronize(), "storing");
        expect_stored(s, i);
        for (int side = 0; side < 2; side++)
            device_send(s->side[side].device.data, s->side[side].host, s->side[side].bytes);
    }
    device_close(fetch.to);
    free(got);
}

/* ---- moves ---- */

static void check_moves(const setting *s) {
    const work *w = s->of;
    ln_cuda_lane_move moves[MOVES];
    int32_t moved[256]; /* which token of the first pages a token came from */
    const int64_t tokens = s->slots * PAGE < 256 ? s->slots * PAGE : 256;
    for (int32_t i = 0; i < tokens; i++) moved[i] = i;
    for (int32_t i = 0; i < MOVES; i++) { /* from the front to the end, in any order there */
        const int32_t to = (int32_t)tokens - 1 - (i * 5 + 3) % MOVES;
        moves[i] = (ln_cuda_lane_move){to / PAGE, to % PAGE, i / PAGE, i % PAGE};
        moved[to] = i;
    }
    void *there = device_open(sizeof moves);
    device_send(there, moves, sizeof moves);
    EXPECT(ln_cuda_lanes_move(&s->there, there, MOVES, NULL) == LN_CUDA_OK, "%s: moving failed", w->name);
    must(cudaDeviceSynchronize(), "moving");
    for (int side = 0; side < 2; side++) {
        pages now = s->side[side];
        bool same = true;
        now.host = malloc((size_t)now.bytes);
        device_fetch(now.host, now.device.data, now.bytes);
        for (int64_t t = 0; t < s->slots * PAGE; t++)
            for (int i = 0; i < now.size; i++) {
                const int64_t from = t < tokens ? moved[t] : t;
                same = same && value_at(&now, t / PAGE, 0, t % PAGE, i) ==
                                   value_at(&s->side[side], from / PAGE, 0, from % PAGE, i);
            }
        EXPECT(same, "%s: tokens that moved, or others, differ", w->name);
        free(now.host);
    }
    device_close(there);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    (void)device;
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        if (!work_wanted(options, w->name, (double)w->lanes * w->group * w->tokens * w->length * w->key_size)) continue;
        setting s = open_setting(w);
        check_sums(&s);
        check_fetch(&s);
        check_moves(&s);
        close_setting(&s);
    }
}

static void plans(void) {
    const ln_cuda_lane_pages none = {.format = LN_CUDA_PAGE_F16};
    EXPECT(ln_cuda_lanes_move(&none, NULL, 0, NULL) == LN_CUDA_ARGUMENT, "no pages are taken");
    const ln_cuda_lane_sums sums = {.pages = none};
    EXPECT(ln_cuda_lanes_sums(&sums, NULL) == LN_CUDA_ARGUMENT, "sums of nothing are taken");
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    (void)device, (void)options;
}

const suite cuda_suite_lanes = {"lanes", WORK_COUNT, plans, check, bench};
