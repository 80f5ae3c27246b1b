/* Owns: approximate attention (linnet/approximate.h): plans, the run of a row of the table in select.c, and the
 * comparison with exact attention.
 *
 * A row that marks tiles runs so: float32 copies of what it reads, its own pass over tokens (prepare), one task for
 * each (head, tile of queries) that marks key tiles and writes them as an ascending list, the exact tile loop under
 * these lists, and what the row adds to its output (finish). Tasks write to places of their own, fixed by the plan's
 * shapes: so threads change nothing. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/attention_gradient.h"
#include "mixer/select.h"

static const uint64_t WORKSPACE_MOST = (uint64_t)1 << 56;

/* ---- settings ---- */

linnet_approximate_settings linnet_approximate_settings_default(linnet_approximation method) {
    return (linnet_approximate_settings){
        .size = sizeof(linnet_approximate_settings),
        .method = method,
        .type = LINNET_F32,
        .causal = true,
        .seed = 1,
        .key_tile = 128,
        .sinks = 128,
        .recent = 512,
        .budget = 1024,
        .query_stride = 16,
        .group_choice = true,
        .bucket = 256,
        .samples = 256,
        .leaf = 2048,
        .hash_bits = 8,
        .group = 16,
        .window = 1024,
        .width = 256,
        .features = 64,
        .mix = -1,
        .critical = 0.05f,
        .skipped = 0.1f,
        .page = 16,
    };
}

const char *linnet_approximate_name(linnet_approximation method) {
    const ln_select_row *row = ln_select_row_of(method);
    return row ? row->name : NULL;
}
const char *linnet_approximate_source(linnet_approximation method) {
    const ln_select_row *row = ln_select_row_of(method);
    return row ? row->source : NULL;
}

static bool is_size(int64_t size) {
    return size >= 8 && size <= LN_SELECT_SIZE_MOST && size % 8 == 0;
}
static bool is_tile(int64_t tile) {
    return tile >= 32 && tile <= 1024 && tile % 32 == 0;
}

/* The sentence of what is wrong, or NULL; fills in the defaults. */
static const char *complete(linnet_approximate_settings *s) {
    if (!s->key_value_heads) s->key_value_heads = s->heads;
    if (!s->value_size) s->value_size = s->key_size;
    const ln_select_row *row = ln_select_row_of(s->method);
    if (!row) return "method must be one of linnet_approximation";
    const char *wrong = row->check ? row->check(s) : NULL;
    if (wrong) return wrong;
    if (s->type != LINNET_F32 && s->type != LINNET_BF16) return "type must be LINNET_F32 or LINNET_BF16";
    if (s->heads < 1 || s->key_value_heads < 1 || s->heads % s->key_value_heads != 0 || s->heads > 65536)
        return "heads must be a multiple of key_value_heads, both from 1 to 65536";
    if (!is_size(s->key_size) || !is_size(s->value_size))
        return "key_size and value_size must be multiples of 8 from 8 to 256";
    if (s->tokens < 0 || s->tokens > INT32_MAX / 2) return "tokens must be from 0 to 2^30";
    if (s->scale == 0) s->scale = 1 / sqrtf((float)s->key_size);
    if (!(s->scale > 0) || !isfinite(s->scale)) return "scale must be above 0";
    if ((s->query_tile != 0 && !is_tile(s->query_tile)) || !is_tile(s->key_tile))
        return "query_tile and key_tile must be multiples of 32 from 32 to 1024";
    if (s->sinks < 0 || s->recent < 0 || s->budget < 0) return "sinks, recent and budget must not be negative";
    if (s->query_stride < 1) return "query_stride must be at least 1";
    if (s->backward && !(row->needs & LN_SELECT_BACKWARD)) return "this method has no backward pass";
    return NULL;
}

/* ---- workspace ---- */

static ln_attention attention_of(const linnet_approximate_settings *s) {
    return (ln_attention){.heads = s->heads,
                          .key_value_heads = s->key_value_heads,
                          .key_size = s->key_size,
                          .value_size = s->value_size,
                          .scale = s->scale,
                          .bf16 = s->type == LINNET_BF16 && !s->exact,
                          .exact = s->exact};
}

static uint64_t attention_bytes(const linnet_approximate_plan *plan) {
    const ln_attention attention = attention_of(&plan->s);
    /* No method makes more sequences than groups or buckets of tokens. */
    return ln_attention_workspace(&plan->kernels, ln_team_size(plan->context->team), &attention, plan->s.tokens + 1,
                                  plan->s.tokens);
}

static uint64_t gradient_bytes(const linnet_approximate_plan *plan) {
    const ln_attention attention = attention_of(&plan->s);
    const ln_gradient_sequence sequence = {.tokens = plan->s.tokens, .keys = plan->s.tokens, .type = plan->s.type};
    return ln_attention_gradient_workspace(&plan->kernels, ln_team_size(plan->context->team), &attention, &sequence, 1);
}

static void carve_call(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_plan *plan = call->plan;
    const linnet_approximate_settings *s = call->s;
    const uint64_t tokens = (uint64_t)s->tokens, heads = (uint64_t)s->heads, shared = (uint64_t)s->key_value_heads;
    if (plan->row->needs & LN_SELECT_QUERY)
        call->query = ln_carve(carver, tokens * heads, (uint64_t)s->key_size * sizeof(float));
    if (plan->row->needs & LN_SELECT_KEY)
        call->key = ln_carve(carver, tokens * shared, (uint64_t)s->key_size * sizeof(float));
    if (plan->row->needs & LN_SELECT_VALUE)
        call->value = ln_carve(carver, tokens * shared, (uint64_t)s->value_size * sizeof(float));
    call->all = ln_paged_carve(call, carver, &plan->layout, s->tokens);
    call->visited = ln_carve(carver, tokens * heads, sizeof(float));
    uint64_t scratch = 0;
    if (plan->row->tile) {
        const uint64_t lists = heads * (uint64_t)plan->query_tiles;
        call->list_stride = plan->key_tiles;
        call->offsets = ln_carve(carver, lists + 1, sizeof *call->offsets);
        call->tiles = ln_carve(carver, lists, (uint64_t)call->list_stride * sizeof *call->tiles);
        scratch = ln_round_up((uint64_t)plan->key_tiles, 64);
    }
    if (plan->row->scratch) scratch += ln_round_up(plan->row->scratch(plan), 64);
    call->worker_stride = scratch;
    call->worker_bytes = ln_carve(carver, (uint64_t)ln_team_size(plan->context->team), scratch);
    call->attention_workspace = ln_carve(carver, 1, attention_bytes(plan));
    if (s->backward) {
        call->sparse = ln_carve(carver, tokens * heads, (uint64_t)s->value_size * sizeof(float));
        call->gradient_workspace = ln_carve(carver, 1, gradient_bytes(plan));
    }
    if (plan->row->carve) plan->row->carve(call, carver);
}

static ln_select_call make_call(const linnet_approximate_plan *plan, ln_carver *carver) {
    ln_select_call call = {.plan = plan, .s = &plan->s, .kernels = &plan->kernels, .team = plan->context->team};
    carve_call(&call, carver);
    return call;
}

/* ---- plans ---- */

/* Pages as the tile loop likes them, and tiles of queries that its own tiles fall into without remainder. */
static void settle_tiles(linnet_approximate_plan *plan) {
    linnet_approximate_settings *s = &plan->s;
    const ln_attention attention = attention_of(s);
    const ln_attention_choice choice = ln_attention_choose(&plan->kernels, &attention, s->tokens);
    ln_page_layout_of(choice.packed, choice.packed, s->key_size, s->value_size, &plan->layout);
    const int64_t tokens = ln_max_i64(1, choice.tile_rows / plan->group);
    for (int64_t tile = 64; tile <= 512 && !s->query_tile; tile += 32)
        if (tile % tokens == 0) s->query_tile = tile;
    if (!s->query_tile) s->query_tile = 128;
}

linnet_status linnet_approximate_plan_open(linnet_context *context, const linnet_approximate_settings *settings,
                                           linnet_approximate_plan **plan) {
    *plan = NULL;
    linnet_approximate_settings s = linnet_approximate_settings_default(settings->method);
    memcpy(&s, settings, settings->size < sizeof s ? settings->size : sizeof s);
    const char *wrong = complete(&s);
    if (wrong) return ln_fail(context, LINNET_ERROR_ARGUMENT, "approximate attention: %s", wrong);
    linnet_approximate_plan *made = ln_allocate_zero(context, 1, sizeof *made, "approximate attention's plan");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->s = s;
    made->row = ln_select_row_of(s.method);
    made->group = s.heads / s.key_value_heads;
    ln_kernels_choose(context->cpu, &made->kernels);
    settle_tiles(made);
    made->query_tiles = ln_ceil_div(s.tokens, made->s.query_tile);
    made->key_tiles = ln_ceil_div(s.tokens, s.key_tile);
    linnet_status status = made->row->open ? made->row->open(made) : LINNET_OK;
    if (status == LINNET_OK) {
        ln_carver carver = {0};
        make_call(made, &carver);
        made->workspace = carver.used;
        if (carver.overflow || carver.used > WORKSPACE_MOST)
            status = ln_fail(context, LINNET_ERROR_ARGUMENT, "approximate attention: tokens and heads are too many");
    }
    if (status != LINNET_OK)
        linnet_approximate_plan_close(made);
    else
        *plan = made;
    return status;
}

void linnet_approximate_plan_close(linnet_approximate_plan *plan) {
    if (!plan) return;
    linnet_context *context = plan->context;
    ln_release(context, plan->own);
    ln_release(context, plan);
}

uint64_t linnet_approximate_workspace(const linnet_approximate_plan *plan) {
    return plan->workspace;
}

/* ---- copies ---- */

enum { COPY_TOKENS = 64 };

typedef struct copy {
    const ln_rows *rows;
    int64_t tokens, heads;
    float *to;
} copy;

static void copy_rows(void *argument, int64_t task, int worker) {
    (void)worker;
    const copy *c = argument;
    const int64_t head = task % c->heads, begin = task / c->heads * COPY_TOKENS;
    for (int64_t t = begin; t < ln_min_i64(begin + COPY_TOKENS, c->tokens); t++)
        ln_row_read(c->rows, t, head, c->to + (head * c->tokens + t) * c->rows->size);
}

static void copy_floats(const ln_select_call *call, const ln_rows *rows, int64_t heads, float *to) {
    copy c = {rows, call->s->tokens, heads, to};
    if (to) ln_parallel(call->team, ln_ceil_div(c.tokens, COPY_TOKENS) * heads, copy_rows, &c);
}

/* ---- lists ---- */

/* Marks tiles that meet the keys from .. to - 1. */
static void mark_keys(const ln_select_tile *tile, int64_t key_tile, int64_t from, int64_t to) {
    const int64_t first = ln_max_i64(0, from) / key_tile;
    for (int64_t j = first; j < tile->limit && j * key_tile < to; j++) tile->marks[j] = 1;
}

static int64_t pairs_in(const linnet_approximate_settings *s, const ln_select_tile *tile, int64_t key, int64_t end) {
    if (!s->causal || end <= tile->begin + 1) return (tile->end - tile->begin) * (end - key);
    int64_t pairs = 0;
    for (int64_t t = tile->begin; t < tile->end; t++) pairs += ln_max_i64(0, ln_min_i64(end, t + 1) - key);
    return pairs;
}

/* Heads that choose together. */
static int64_t heads_of_choice(const linnet_approximate_plan *plan) {
    return plan->s.group_choice && (plan->row->needs & LN_SELECT_GROUPS) ? plan->group : 1;
}

static void write_list(ln_select_call *call, const ln_select_tile *tile, int64_t head) {
    const linnet_approximate_settings *s = call->s;
    const int64_t list = head * call->plan->query_tiles + tile->tile;
    int32_t *tiles = call->tiles + list * call->list_stride;
    int64_t count = 0, pairs = 0;
    for (int64_t j = 0; j < tile->limit; j++) {
        if (!tile->marks[j]) continue;
        tiles[count++] = (int32_t)j;
        pairs += pairs_in(s, tile, j * s->key_tile, ln_min_i64((j + 1) * s->key_tile, s->tokens));
    }
    call->offsets[list + 1] = count;
    atomic_fetch_add(&call->pairs, pairs);
}

static void make_list(void *argument, int64_t task, int worker) {
    ln_select_call *call = argument;
    const linnet_approximate_settings *s = call->s;
    const linnet_approximate_plan *plan = call->plan;
    /* The last tiles see the most keys: first. */
    const int64_t together = heads_of_choice(plan), choices = s->heads / together,
                  index = plan->query_tiles - 1 - task / choices, head = task % choices * together;
    unsigned char *own = ln_select_scratch(call, worker);
    ln_select_tile tile = {.head = head,
                           .heads = together,
                           .shared = head / plan->group,
                           .tile = index,
                           .begin = index * s->query_tile,
                           .end = ln_min_i64((index + 1) * s->query_tile, s->tokens),
                           .marks = own,
                           .scratch = own + ln_round_up((uint64_t)plan->key_tiles, 64)};
    tile.limit = s->causal ? ln_ceil_div(tile.end, s->key_tile) : plan->key_tiles;
    memset(tile.marks, 0, (size_t)plan->key_tiles);
    if (plan->row->needs & LN_SELECT_SPAN) {
        mark_keys(&tile, s->key_tile, 0, s->sinks);
        mark_keys(&tile, s->key_tile, tile.begin - s->recent + 1, s->causal ? tile.end : tile.end + s->recent - 1);
    }
    if (s->causal && (plan->row->needs & (LN_SELECT_SPAN | LN_SELECT_DIAGONAL)))
        mark_keys(&tile, s->key_tile, tile.begin, tile.end);
    plan->row->tile(call, &tile);
    for (int64_t h = head; h < head + together; h++) write_list(call, &tile, h);
}

/* Lists of fixed stride become lists one behind the other. */
static void close_lists(ln_select_call *call) {
    const int64_t lists = call->s->heads * call->plan->query_tiles;
    call->offsets[0] = 0;
    for (int64_t l = 0; l < lists; l++) {
        const int64_t count = call->offsets[l + 1];
        memmove(call->tiles + call->offsets[l], call->tiles + l * call->list_stride, (size_t)count * sizeof(int32_t));
        call->offsets[l + 1] = call->offsets[l] + count;
    }
}

static ln_mask lists_mask(const ln_select_call *call) {
    const linnet_approximate_settings *s = call->s;
    return (ln_mask){.causal = s->causal,
                     .blocks = {s->query_tile, s->key_tile, true, call->offsets, call->tiles},
                     .query_tiles = call->plan->query_tiles};
}

/* All queries over the pages of all tokens. */
static void attend_all(const ln_select_call *call, const ln_mask *mask, const ln_rows *output, float *lse) {
    const linnet_approximate_settings *s = call->s;
    const ln_attention_sequence sequence = {
        .view = ln_select_view(call, &call->all, 0, s->tokens),
        .keys = s->tokens,
        .tokens = s->tokens,
        .query_type = s->type,
        .query = call->query_rows.data,
        .output = (float *)(void *)output->data,
        .query_stride = call->query_rows.token_stride,
        .query_head_stride = call->query_rows.head_stride,
        .output_stride = output->token_stride,
        .output_head_stride = output->head_stride,
        .log_sum_exp = lse,
        .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
    };
    ln_select_attend(call, mask, &sequence, 1);
}

static void run_lists(ln_select_call *call, const ln_rows *output) {
    if (call->plan->row->prepare) call->plan->row->prepare(call);
    ln_parallel(call->team, call->s->heads / heads_of_choice(call->plan) * call->plan->query_tiles, make_list, call);
    close_lists(call);
    const ln_mask mask = lists_mask(call);
    attend_all(call, &mask, output, call->visited);
}

/* ---- running ---- */

static linnet_status check_tensors(const linnet_approximate_plan *plan, const linnet_approximate_tensors *tensors,
                                   linnet_approximate_tensors *settled) {
    *settled = (linnet_approximate_tensors){.size = sizeof *settled};
    memcpy(settled, tensors, tensors->size < sizeof *settled ? tensors->size : sizeof *settled);
    if (plan->s.tokens > 0 &&
        (!settled->query.data || !settled->key.data || !settled->value.data || !settled->output.data))
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT,
                       "approximate attention: query, key, value and output must be given");
    return LINNET_OK;
}

/* Rows, copies and pages of the inputs. */
static void load(ln_select_call *call, const linnet_approximate_tensors *tensors) {
    const linnet_approximate_settings *s = call->s;
    call->tensors = tensors;
    call->query_rows = ln_rows_of(&tensors->query, s->type, s->heads, s->key_size);
    call->key_rows = ln_rows_of(&tensors->key, s->type, s->key_value_heads, s->key_size);
    call->value_rows = ln_rows_of(&tensors->value, s->type, s->key_value_heads, s->value_size);
    call->output_rows = ln_rows_of(&tensors->output, LINNET_F32, s->heads, s->value_size);
    if (s->tokens == 0) return;
    copy_floats(call, &call->query_rows, s->heads, call->query);
    copy_floats(call, &call->key_rows, s->key_value_heads, call->key);
    copy_floats(call, &call->value_rows, s->key_value_heads, call->value);
    ln_select_pack(call, &call->all, 0, &call->key_rows, &call->value_rows, s->tokens, NULL, 0);
}

static void run(ln_select_call *call, const linnet_approximate_tensors *tensors) {
    load(call, tensors);
    if (call->s->tokens == 0) return;
    if (call->plan->row->run) {
        call->plan->row->run(call);
        return;
    }
    run_lists(call, &call->output_rows);
    if (call->plan->row->finish) call->plan->row->finish(call);
}

linnet_status linnet_approximate_forward(const linnet_approximate_plan *plan, const linnet_approximate_tensors *tensors,
                                         void *workspace) {
    linnet_approximate_tensors settled;
    const linnet_status status = check_tensors(plan, tensors, &settled);
    if (status != LINNET_OK) return status;
    ln_carver carver = {.base = workspace};
    ln_select_call call = make_call(plan, &carver);
    run(&call, &settled);
    return LINNET_OK;
}

/* ---- gradients ---- */

static linnet_tensor tensor_of(const ln_rows *rows) {
    return (linnet_tensor){rows->data, rows->token_stride, rows->head_stride};
}

/* Those of the softmax part, under the lists. */
static void run_gradient(const ln_select_call *call, const ln_rows *output) {
    const linnet_approximate_settings *s = call->s;
    const ln_gradient_sequence sequence = {
        .tokens = s->tokens,
        .keys = s->tokens,
        .type = s->type,
        .query = tensor_of(&call->query_rows),
        .key = tensor_of(&call->key_rows),
        .value = tensor_of(&call->value_rows),
        .output = tensor_of(output),
        .output_gradient = tensor_of(&call->output_gradient),
        .log_sum_exp = call->visited,
        .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
        .query_gradient = tensor_of(&call->query_gradient),
        .key_gradient = tensor_of(&call->key_gradient),
        .value_gradient = tensor_of(&call->value_gradient),
    };
    ln_attention attention = attention_of(s);
    attention.mask = lists_mask(call);
    ln_attention_gradient(call->kernels, call->team, &attention, &sequence, 1, NULL, call->gradient_workspace);
}

linnet_status linnet_approximate_backward(const linnet_approximate_plan *plan,
                                          const linnet_approximate_tensors *tensors, void *workspace) {
    const linnet_approximate_settings *s = &plan->s;
    linnet_approximate_tensors settled = {.size = sizeof settled};
    memcpy(&settled, tensors, tensors->size < sizeof settled ? tensors->size : sizeof settled);
    if (!s->backward)
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT, "approximate attention's plan was made without backward");
    if (s->tokens > 0 &&
        (!settled.query.data || !settled.key.data || !settled.value.data || !settled.output_gradient.data))
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT,
                       "approximate attention: query, key, value and output_gradient must be given");
    ln_carver carver = {.base = workspace};
    ln_select_call call = make_call(plan, &carver);
    load(&call, &settled);
    call.output_gradient = ln_rows_of(&settled.output_gradient, LINNET_F32, s->heads, s->value_size);
    call.query_gradient = ln_rows_of(&settled.query_gradient, LINNET_F32, s->heads, s->key_size);
    call.key_gradient = ln_rows_of(&settled.key_gradient, LINNET_F32, s->key_value_heads, s->key_size);
    call.value_gradient = ln_rows_of(&settled.value_gradient, LINNET_F32, s->key_value_heads, s->value_size);
    if (s->tokens == 0) return LINNET_OK;
    const ln_rows sparse = ln_rows_of(&(linnet_tensor){.data = call.sparse}, LINNET_F32, s->heads, s->value_size);
    run_lists(&call, &sparse);
    run_gradient(&call, &sparse);
    if (plan->row->backward) plan->row->backward(&call);
    return LINNET_OK;
}

/* ---- the comparison ---- */

static void compare(const ln_select_call *call, const float *exact, const float *lse,
                    linnet_approximate_report *report) {
    const linnet_approximate_settings *s = call->s;
    double wrong = 0, right = 0, worst = 0, mass = 0, least = 1;
    for (int64_t t = 0; t < s->tokens; t++) {
        for (int64_t h = 0; h < s->heads; h++) {
            const float *e = exact + (t * s->heads + h) * s->value_size, *o = ln_row_to(&call->output_rows, t, h);
            double row = 0;
            for (int64_t i = 0; i < s->value_size; i++) {
                const double difference = (double)o[i] - (double)e[i];
                row += difference * difference;
                right += (double)e[i] * (double)e[i];
            }
            wrong += row;
            worst = fmax(worst, row);
            const double share = fmin(1, exp((double)call->visited[t * s->heads + h] - (double)lse[t * s->heads + h]));
            mass += share;
            least = fmin(least, share);
        }
    }
    const double rows = (double)(s->tokens * s->heads), n = (double)s->tokens;
    report->error = right > 0 ? sqrt(wrong / right) : 0;
    report->row_error = right > 0 ? sqrt(worst * rows / right) : 0;
    report->mass = rows > 0 ? mass / rows : 1;
    report->least_mass = least;
    report->pairs = (double)s->heads * (s->causal ? n * (n + 1) / 2 : n * n);
    report->visited = (double)call->pairs;
    report->scored = (double)call->scored;
}

linnet_status linnet_approximate_error(const linnet_approximate_plan *plan, const linnet_approximate_tensors *tensors,
                                       void *workspace, linnet_approximate_report *report) {
    linnet_approximate_tensors settled;
    linnet_status status = check_tensors(plan, tensors, &settled);
    if (status != LINNET_OK) return status;
    const linnet_approximate_settings *s = &plan->s;
    const uint64_t rows = (uint64_t)(s->tokens * s->heads);
    float *exact = ln_allocate(plan->context, rows + 1, (uint64_t)s->value_size * sizeof *exact, "exact attention");
    float *lse = exact ? ln_allocate(plan->context, rows + 1, sizeof *lse, "exact attention") : NULL;
    if (lse) {
        ln_carver carver = {.base = workspace};
        ln_select_call call = make_call(plan, &carver);
        run(&call, &settled);
        const ln_rows rows_of_exact = ln_rows_of(&(linnet_tensor){.data = exact}, LINNET_F32, s->heads, s->value_size);
        if (s->tokens > 0) attend_all(&call, &(ln_mask){.causal = s->causal}, &rows_of_exact, lse);
        *report = (linnet_approximate_report){.size = sizeof *report};
        compare(&call, exact, lse, report);
    }
    status = lse ? LINNET_OK : LINNET_ERROR_MEMORY;
    ln_release(plan->context, lse);
    ln_release(plan->context, exact);
    return status;
}
