/* Owns: a second opinion on the tables of the gradients of attention: what a task visits and when its turn is, written
 * down anew, and a simulation of blocks that wait for each other. */
#include "oracle_attention_tables.h"

/* The tile of queries that a task visits as its n-th of one head, without lists. */
static int visited(const ln_cuda_backward_task *task, int n) {
    const int count = task->end - task->first;
    if (task->order == LN_CUDA_DOWN) return task->end - 1 - n;
    if (task->order == LN_CUDA_UP) return task->first + n;
    return task->start + n < task->end ? task->start + n : task->start + n - count;
}

/* As turn_of of the kernels. */
static int turn(const ln_cuda_backward_task *task, const ln_cuda_backward_rows *rows, int tile) {
    if (task->order == LN_CUDA_UP) return rows->end_tile - 1 - task->tile;
    if (task->order == LN_CUDA_DOWN) return task->tile - rows->first_tile;
    int before = task->before;
    for (int k = 0; k < task->members; k++) {
        const int start = (int)((int64_t)k * (task->end - task->first) / task->members), at = tile - task->first,
                  own = task->start - task->first;
        const bool later = start <= at ? own > at || k > task->member : own > at && k > task->member;
        before += k != task->member && later;
    }
    return before;
}

/* The n-th visit of a task, as the kernels make it; *steps: how many it has. */
static ln_cuda_backward_visit visit_of(const ln_cuda_backward_tables *t, const ln_cuda_backward_task *task,
                                       int64_t group, int n, int64_t *steps) {
    const int visits = task->end - task->first;
    *steps = t->visits ? visits : visits * group;
    if (n >= *steps) return (ln_cuda_backward_visit){-1, -1, -1, 0};
    if (t->visits) return t->visits[task->first + n];
    const int tile = visited(task, n % visits);
    return (ln_cuda_backward_visit){(int32_t)(task->head * group + n / visits), tile, turn(task, &t->tiles[tile], tile),
                                    LN_CUDA_SEEN};
}

static int64_t claim_next(const ln_cuda_backward_plan *plan, const ln_cuda_backward_task *tasks, int64_t task,
                          int64_t *next) {
    const int64_t claimed = tasks[task].order == LN_CUDA_ROUND ? task + plan->blocks : (*next)++;
    return claimed < plan->tasks ? claimed : -1;
}

/* Blocks that each visit one tile at a time and wait for their turns: all tasks end, though a block takes its next task
 * as early as it can. count: tiles of keys that came to each place. Returns the rounds that it took, -1 if they do not
 * end. */
static int64_t simulate(const attention_work *w, const ln_cuda_backward_plan *plan, const ln_cuda_backward_tables *t,
                        int *count) {
    const int64_t group = w->heads / w->key_value_heads;
    int64_t *task = malloc(2 * (size_t)(plan->blocks + 1) * sizeof *task), *claim = task + plan->blocks + 1;
    int64_t next = plan->blocks, rounds = 0, live = plan->blocks;
    int *step = calloc((size_t)(plan->blocks + 1), sizeof *step);
    int **add = malloc((size_t)(plan->blocks + 1) * sizeof *add);
    for (int64_t b = 0; b < plan->blocks; b++) {
        task[b] = b;
        claim[b] = claim_next(plan, t->tasks, b, &next);
    }
    while (live) {
        bool moved = false;
        int64_t adds = 0, steps;
        live = 0;
        for (int64_t b = 0; b < plan->blocks; b++) {
            ln_cuda_backward_visit visit;
            while (task[b] >= 0 && (visit = visit_of(t, &t->tasks[task[b]], group, step[b], &steps)).head < 0) {
                task[b] = claim[b];
                claim[b] = task[b] < 0 ? -1 : claim_next(plan, t->tasks, task[b], &next);
                step[b] = 0;
                moved = true;
            }
            if (task[b] < 0) continue;
            live++;
            int *at = &count[visit.head * plan->tiles + visit.tile];
            if (*at != visit.turn) continue;
            add[adds++] = at;
            step[b]++;
            moved = true;
        }
        for (int64_t i = 0; i < adds; i++) ++*add[i];
        rounds++;
        if (!moved && live) rounds = -1, live = 0;
    }
    free(task);
    free(step);
    free(add);
    return rounds;
}

/* Pairs of the tiles that are seen: whether all of them are in blocks of 64 x 64 that the visit lets see, and whether
 * what it lets see is no more than the lists do. */
static bool visit_right(const attention_case *c, const ln_cuda_backward_kernel *kernel,
                        const ln_cuda_backward_task *task, const ln_cuda_backward_rows *rows, int sequence, int head,
                        int seen) {
    const int64_t row = rows->query - c->query_offsets[sequence], key = (int64_t)task->tile * kernel->keys;
    attention_case lists = *c; /* without the other masks */
    attention_work all = *c->of;
    all.causal = false, all.window = 0;
    lists.of = &all;
    for (int i = 0; i < rows->rows; i++)
        for (int k = 0; k < kernel->keys && key + k < task->keys; k++) {
            const bool lets = seen >> (k / 64 + 2 * (i / 64)) & 1;
            if (attention_sees(c, sequence, row + i, head, key + k) && !lets) return false;
            if (lets && c->of->query_tile && !attention_sees(&lists, sequence, row + i, head, key + k)) return false;
        }
    return true;
}

/* Each task: visits of every head and tile, or none, let see what is to be seen. */
static bool visits_right(const attention_case *c, const ln_cuda_backward_plan *plan, const ln_cuda_backward_tables *t,
                         const ln_cuda_backward_task *task, int sequence, int first, int end) {
    const int64_t group = c->of->heads / c->of->key_value_heads;
    int *seen = calloc((size_t)(group * plan->tiles + 1), sizeof *seen);
    int64_t steps = 1;
    bool right = true;
    for (int n = 0; n < steps; n++) {
        const ln_cuda_backward_visit visit = visit_of(t, task, group, n, &steps);
        if (n >= steps) break;
        int *at = &seen[(visit.head - task->head * group) * plan->tiles + visit.tile];
        right = right && first <= visit.tile && visit.tile < end && !*at;
        *at = visit.seen;
    }
    for (int64_t head = 0; head < group; head++)
        for (int tile = first; tile < end && right; tile++)
            right = visit_right(c, plan->kernel, task, &t->tiles[tile], sequence, (int)(task->head * group + head),
                                seen[head * plan->tiles + tile]);
    free(seen);
    return right;
}

void backward_tables_check(const attention_work *w, const ln_cuda_backward_kernel *kernel,
                           const ln_cuda_device *device) {
    attention_case c;
    attention_case_describe(&c, w);
    const ln_cuda_backward backward = {.attention = c.attention};
    ln_cuda_backward_plan plan;
    if (ln_cuda_backward_plan_make(&backward, device, kernel, &plan) == LN_CUDA_OK) {
        void *tables = malloc((size_t)plan.tables + 1);
        ln_cuda_backward_tables_make(&backward, &plan, tables);
        const ln_cuda_backward_tables t = ln_cuda_backward_tables_at(&plan, tables);
        int64_t keys = 0;
        bool right = true;
        for (int64_t i = 0; i < plan.tasks; i++) {
            const int64_t left = t.tasks[i].keys - (int64_t)t.tasks[i].tile * kernel->keys;
            int sequence = 0, first = 0, end = 0;
            while (c.key_offsets[sequence + 1] <= t.tasks[i].key) sequence++;
            while (first < plan.tiles && t.tiles[first].query < c.query_offsets[sequence]) first++;
            for (end = first; end < plan.tiles && t.tiles[end].query < c.query_offsets[sequence + 1];) end++;
            keys += left < kernel->keys ? left : kernel->keys;
            right = right && visits_right(&c, &plan, &t, &t.tasks[i], sequence, first, end);
        }
        int *count = calloc((size_t)(plan.tiles * w->heads + 1), sizeof *count);
        const bool ends = simulate(w, &plan, &t, count) >= 0;
        for (int64_t i = 0; i < plan.tiles * w->heads && right && ends; i++)
            right = count[i] == (t.starts ? t.starts[i + 1] - t.starts[i]
                                          : t.tiles[i % plan.tiles].end_tile - t.tiles[i % plan.tiles].first_tile);
        EXPECT(right, "%s, %s: tiles that see each other do not meet", w->name, kernel->name);
        EXPECT(keys == c.key_offsets[attention_sequences(w)] * w->key_value_heads, "%s, %s: %lld keys in tasks",
               w->name, kernel->name, (long long)keys);
        EXPECT(ends, "%s, %s: tasks wait for each other for ever", w->name, kernel->name);
        free(count);
        free(tables);
    }
    free(c.list_offsets);
    free(c.listed);
}
