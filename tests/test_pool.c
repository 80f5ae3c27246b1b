/* Pages of several kinds in one allowance against a plain model of them: random taking, sharing, dropping, copying,
 * joining and leaving; contents survive whatever moves; exact accounting; failing allocators. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "counter.h"
#include "memory/pool.h"

enum { KINDS = 3, MEMBERS = 4, PAGES = 4000 };

/* A page that is in use. */
typedef struct held {
    ln_page page;
    int users, kind;
    uint64_t seed;
} held;

typedef struct model {
    ln_pool *pool;
    ln_pool_shape shape;
    held pages[PAGES];
    int64_t count;
    int members;
} model;

static ln_pool_shape shape_of(uint64_t bytes) {
    static const linnet_type keys[KINDS] = {LINNET_F16, LINNET_Q4, LINNET_Q2};
    ln_pool_shape shape = {.kinds = KINDS, .positions = true, .kept = 2, .weights = true, .bytes = bytes};
    for (int k = 0; k < KINDS; k++) assert_true(ln_page_layout_of(keys[k], keys[k], 40, 24, &shape.layout[k]));
    return shape;
}

/* Every byte of a page by its seed, and of what goes with it. */
static void fill(const model *m, const held *h) {
    ln_random random;
    ln_random_seed(&random, h->seed);
    unsigned char *data = ln_pool_data(m->pool, h->page);
    for (uint64_t i = 0; i < m->shape.layout[h->kind].bytes; i++) data[i] = (unsigned char)ln_random_u64(&random);
    for (int i = 0; i < LN_PAGE_TOKENS; i++) {
        ln_pool_positions(m->pool, h->page)[i] = (int32_t)ln_random_u64(&random);
        ln_pool_kept(m->pool, h->page)[i] = (float)(ln_random_u64(&random) >> 40);
        ln_pool_kept(m->pool, h->page)[LN_PAGE_TOKENS + i] = (float)i;
        ln_pool_weights(m->pool, h->page)[i] = (float)(ln_random_u64(&random) >> 40);
    }
}

static void check_page(const model *m, const held *h) {
    ln_random random;
    ln_random_seed(&random, h->seed);
    assert_int_equal(ln_pool_kind(m->pool, h->page), h->kind);
    assert_int_equal(ln_pool_shared(m->pool, h->page), h->users > 1);
    const unsigned char *data = ln_pool_data(m->pool, h->page);
    assert_int_equal((uintptr_t)data % 64, 0);
    for (uint64_t i = 0; i < m->shape.layout[h->kind].bytes; i++)
        assert_int_equal(data[i], (unsigned char)ln_random_u64(&random));
    for (int i = 0; i < LN_PAGE_TOKENS; i++) {
        assert_int_equal(ln_pool_positions(m->pool, h->page)[i], (int32_t)ln_random_u64(&random));
        assert_true(ln_pool_kept(m->pool, h->page)[i] == (float)(ln_random_u64(&random) >> 40));
        assert_true(ln_pool_kept(m->pool, h->page)[LN_PAGE_TOKENS + i] == (float)i);
        assert_true(ln_pool_weights(m->pool, h->page)[i] == (float)(ln_random_u64(&random) >> 40));
    }
}

static void check_all(const model *m) {
    uint64_t bytes[KINDS] = {0}, peak, all = 0;
    for (int64_t i = 0; i < m->count; i++) {
        check_page(m, &m->pages[i]);
        bytes[m->pages[i].kind] += ln_pool_page_bytes(&m->shape, m->pages[i].kind);
    }
    const uint64_t used = ln_pool_used(m->pool, &peak);
    for (int k = 0; k < KINDS; k++) all += bytes[k];
    assert_true(used <= peak && used <= all + ln_pool_waste(&m->shape));
    assert_true(used <= (uint64_t)m->members * ln_pool_capacity(&m->shape));
}

/* What the pages of the model would take in one allowance, at most. */
static uint64_t needed(const model *m) {
    uint64_t bytes = ln_pool_waste(&m->shape);
    for (int64_t i = 0; i < m->count; i++) bytes += ln_pool_page_bytes(&m->shape, m->pages[i].kind);
    return bytes;
}

static void add(model *m, ln_page page, int kind, uint64_t seed) {
    const uint64_t most = (uint64_t)m->members * ln_pool_capacity(&m->shape);
    if (!page) {
        assert_true(needed(m) + ln_pool_page_bytes(&m->shape, kind) > most);
        return;
    }
    assert_true(m->count < PAGES);
    m->pages[m->count++] = (held){page, 1, kind, seed};
}

static void drop(model *m, int64_t i) {
    ln_pool_drop(m->pool, m->pages[i].page);
    if (--m->pages[i].users == 0) m->pages[i] = m->pages[--m->count];
}

static void change(model *m, ln_random *random, int64_t few) {
    const uint64_t action = ln_random_below(random, 10);
    const int64_t i = m->count ? (int64_t)ln_random_below(random, (uint64_t)m->count) : 0;
    if (action < 4) {
        const int kind = (int)ln_random_below(random, KINDS);
        const ln_page page = ln_pool_take(m->pool, kind);
        if (page) {
            const unsigned char *data = ln_pool_data(m->pool, page);
            for (uint64_t b = 0; b < m->shape.layout[kind].bytes; b++) assert_int_equal(data[b], 0);
        }
        const int64_t before = m->count;
        add(m, page, kind, ln_random_u64(random));
        if (m->count > before) fill(m, &m->pages[before]);
    } else if (m->count == 0) {
        return;
    } else if (action < 5 && m->pages[i].users < 5) {
        ln_pool_share(m->pool, m->pages[i].page);
        m->pages[i].users++;
    } else if (action < 6) {
        add(m, ln_pool_copy(m->pool, m->pages[i].page), m->pages[i].kind, m->pages[i].seed);
    } else if (m->count > few || action < 7) {
        drop(m, i);
    }
}

static void test_random(void **state) {
    (void)state;
    static const uint64_t bytes[] = {40000, 300000, 2000000};
    for (int run = 0; run < 6; run++) {
        counter count = {0};
        linnet_context *context = counted_context(&count, 1);
        const uint64_t before = linnet_memory_used(context);
        static model m;
        m = (model){.shape = shape_of(bytes[run % 3]), .members = 1};
        ln_random random;
        ln_random_seed(&random, (uint64_t)run);
        assert_int_equal(ln_pool_open(context, &m.shape, &m.pool), LINNET_OK);
        assert_int_equal(linnet_memory_used(context) - before, ln_pool_bytes(&m.shape));
        for (int step = 0; step < 1500; step++) {
            /* Now it grows to the brim, now it shrinks. */
            change(&m, &random, step / 200 % 2 ? 0 : PAGES);
            const uint64_t action = ln_random_below(&random, 60);
            if (action == 0 && m.members < MEMBERS) {
                assert_int_equal(ln_pool_join(m.pool), LINNET_OK);
                m.members++;
            } else if (action == 1 && m.members > 1) {
                const uint64_t most = (uint64_t)(m.members - 1) * ln_pool_capacity(&m.shape);
                while (m.count && needed(&m) > most) drop(&m, (int64_t)ln_random_below(&random, (uint64_t)m.count));
                ln_pool_leave(m.pool);
                m.members--;
            }
            if (step % 10 == 0) check_all(&m);
            assert_true(linnet_memory_used(context) - before <= (uint64_t)MEMBERS * ln_pool_bytes(&m.shape));
        }
        while (m.count) drop(&m, (int64_t)ln_random_below(&random, (uint64_t)m.count));
        uint64_t peak;
        assert_int_equal(ln_pool_used(m.pool, &peak), 0);
        while (m.members--) ln_pool_leave(m.pool);
        assert_int_equal(linnet_memory_used(context), before);
        linnet_context_close(context);
        assert_int_equal(count.live, 0);
    }
}

/* A member more is an allowance more, and as soon as it leaves it is gone. */
static void test_accounting(void **state) {
    (void)state;
    linnet_context *context = counted_context(&(counter){0}, 1);
    const uint64_t before = linnet_memory_used(context);
    static model m;
    m = (model){.shape = shape_of(200000), .members = 3};
    assert_int_equal(ln_pool_open(context, &m.shape, &m.pool), LINNET_OK);
    assert_int_equal(ln_pool_join(m.pool), LINNET_OK);
    assert_int_equal(ln_pool_join(m.pool), LINNET_OK);
    for (int kind = 0;; kind = (kind + 1) % KINDS) {
        const int64_t was = m.count;
        add(&m, ln_pool_take(m.pool, kind), kind, (uint64_t)was);
        if (m.count == was) break;
        fill(&m, &m.pages[was]);
    }
    for (; m.members > 1; m.members--) {
        const uint64_t used = linnet_memory_used(context);
        while (m.count && needed(&m) > (uint64_t)(m.members - 1) * ln_pool_capacity(&m.shape)) drop(&m, m.count / 3);
        ln_pool_leave(m.pool);
        assert_true(used - linnet_memory_used(context) >= ln_pool_capacity(&m.shape));
        m.members--;
        check_all(&m);
        m.members++;
    }
    while (m.count) drop(&m, 0);
    ln_pool_leave(m.pool);
    assert_int_equal(linnet_memory_used(context), before);
    linnet_context_close(context);
}

static void test_refused_allocations(void **state) {
    (void)state;
    for (int64_t n = 1; n < 12; n++) {
        counter count = {0};
        linnet_context *context = counted_context(&count, 1);
        const uint64_t before = linnet_memory_used(context);
        const ln_pool_shape shape = shape_of(100000);
        ln_pool *pool;
        count.fail_at = count.calls + n;
        linnet_status status = ln_pool_open(context, &shape, &pool);
        int members = status == LINNET_OK;
        for (int i = 0; i < 2 && status == LINNET_OK; i++) {
            status = ln_pool_join(pool);
            members += status == LINNET_OK;
        }
        assert_true(status == LINNET_OK || status == LINNET_ERROR_MEMORY);
        if (members) assert_true(ln_pool_take(pool, 0) > 0);
        if (members) ln_pool_drop(pool, 1);
        while (members--) ln_pool_leave(pool);
        assert_int_equal(linnet_memory_used(context), before);
        linnet_context_close(context);
        assert_int_equal(count.live, 0);
    }
}

static void test_bad_shapes(void **state) {
    (void)state;
    linnet_context *context = counted_context(&(counter){0}, 1);
    ln_pool *pool;
    for (uint64_t bytes = 0; bytes < 20000; bytes = bytes * 2 + 1) {
        const ln_pool_shape shape = shape_of(bytes);
        const linnet_status status = ln_pool_open(context, &shape, &pool);
        assert_true(status == LINNET_ERROR_MEMORY || bytes > 10000);
        if (status != LINNET_OK) assert_null(pool);
        ln_pool_leave(pool);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_accounting),
        cmocka_unit_test(test_refused_allocations),
        cmocka_unit_test(test_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
