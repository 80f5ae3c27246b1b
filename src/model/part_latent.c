/* Owns: latent attention as a part of a layer (equation in part_latent.h).
 *
 * On the stage lie the absorbed queries and what attention gives, which alone count while it runs, then the queries
 * and keys as the products give them. What V gives has the place of the absorbed queries. */
#include "model/part_latent.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/attention.h"
#include "model/forward.h"
#include "model/take.h"

enum { RANK_MOST = 1 << 12, SIZE_MOST = 1 << 12 };

typedef struct sizes {
    int64_t rank, shared, plain, value; /* columns of c, of r, of p, of a head's value */
} sizes;

typedef struct weights {
    const sizes *size;
    ln_matrix query, query_in, query_out; /* query.rows 0: by a low rank */
    const float *query_norm, *norm;
    ln_matrix latent, output;
    ln_matrix *key, *value; /* [heads]: K^T [rank, plain], V [value, rank] */
} weights;

static const float norm_epsilon = 1e-6F; /* of c and of low ranks, whatever the model's other norms have */
static const ln_part_kind latent_part;

/* ---- taking ---- */

linnet_status ln_latent_open(linnet_model *model) {
    ln_hyperparameters *h = &model->hyper;
    sizes *s = ln_file_own(model->file, 1, sizeof *s, "layers");
    if (!s) return LINNET_ERROR_MEMORY;
    *s = (sizes){0};
    int64_t whole = 0;
    LN_TRY(ln_take_count(model, "attention.kv_lora_rank", 0, 8, RANK_MOST, &s->rank));
    LN_TRY(ln_take_count(model, "rope.dimension_count", 0, 0, SIZE_MOST, &s->shared));
    LN_TRY(ln_take_count(model, "attention.key_length_mla", 0, 1, SIZE_MOST, &whole));
    LN_TRY(ln_take_count(model, "attention.value_length_mla", 0, 1, SIZE_MOST, &s->value));
    s->plain = whole - s->shared;
    h->key_value_heads = 1;
    h->key_size = s->rank + s->shared;
    h->value_size = s->rank;
    h->value_in_key = true;
    h->score_scale = (float)(1 / sqrt((double)whole));
    ln_page_layout page;
    if (s->plain < 1 || !ln_page_layout_of(LINNET_F32, LINNET_F32, h->key_size, h->value_size, &page))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: latents of %lld and %lld columns are not supported; multiples of 8 up to %d are",
                       model->file->path, (long long)s->rank, (long long)s->shared, LN_HEAD_MOST);
    model->own = s;
    return LINNET_OK;
}

/* K and V of each head in turn in one matrix: K is transposed into a copy. */
static linnet_status take_together(linnet_model *model, int64_t i, weights *w) {
    const sizes *s = w->size;
    const int64_t heads = model->hyper.heads, each = s->plain + s->value;
    ln_matrix all;
    LN_TRY(ln_take_matrix(model, i, "attn_kv_b.weight", heads * each, s->rank, &all));
    float *turned = ln_file_own(model->file, (uint64_t)(heads * s->rank * s->plain), sizeof *turned, "layers");
    float *row = ln_file_own(model->file, (uint64_t)s->rank, sizeof *row, "layers");
    if (!turned || !row) return LINNET_ERROR_MEMORY;
    for (int64_t head = 0; head < heads; head++, turned += s->rank * s->plain) {
        for (int64_t k = 0; k < s->plain; k++) {
            const ln_matrix one = ln_matrix_rows(&all, head * each + k, 1);
            ln_format_of(all.type)->decode(one.data, row, s->rank);
            for (int64_t j = 0; j < s->rank; j++) turned[j * s->plain + k] = row[j];
        }
        w->key[head] = (ln_matrix){LINNET_F32, s->rank, s->plain, turned};
        w->value[head] = ln_matrix_rows(&all, head * each + s->plain, s->value);
    }
    return LINNET_OK;
}

linnet_status ln_latent_take(linnet_model *model, int64_t i, ln_part *part) {
    const ln_hyperparameters *h = &model->hyper;
    const sizes *s = model->own;
    const int64_t queries = h->heads * (s->plain + s->shared);
    weights *w = ln_file_own(model->file, 1, sizeof *w, "layers");
    if (!w) return LINNET_ERROR_MEMORY;
    *w = (weights){.size = s};
    *part = (ln_part){.kind = &latent_part, .weights = w, .layer = i};
    w->key = ln_file_own(model->file, 2 * (uint64_t)h->heads, sizeof *w->key, "layers");
    if (!w->key) return LINNET_ERROR_MEMORY;
    w->value = w->key + h->heads;
    const linnet_tensor_info *low = ln_take_find(model, i, "attn_q_a.weight");
    if (low) {
        const int64_t rank = low->size[1];
        if (rank < 1 || rank > RANK_MOST) return ln_take_wrong(model, low, rank, h->width);
        LN_TRY(ln_take_matrix(model, i, "attn_q_a.weight", rank, h->width, &w->query_in));
        LN_TRY(ln_take_vector(model, i, "attn_q_a_norm.weight", rank, true, &w->query_norm));
        LN_TRY(ln_take_matrix(model, i, "attn_q_b.weight", queries, rank, &w->query_out));
    } else {
        LN_TRY(ln_take_matrix(model, i, "attn_q.weight", queries, h->width, &w->query));
    }
    LN_TRY(ln_take_matrix(model, i, "attn_kv_a_mqa.weight", s->rank + s->shared, h->width, &w->latent));
    LN_TRY(ln_take_vector(model, i, "attn_kv_a_norm.weight", s->rank, true, &w->norm));
    LN_TRY(ln_take_matrix(model, i, "attn_output.weight", h->width, h->heads * s->value, &w->output));
    if (ln_take_find(model, i, "attn_kv_b.weight")) return take_together(model, i, w);
    LN_TRY(ln_take_stack(model, i, "attn_k_b.weight", h->heads, 0, s->rank, s->rank, s->plain, w->key));
    return ln_take_stack(model, i, "attn_v_b.weight", h->heads, 0, s->value, s->value, s->rank, w->value);
}

/* ---- room and cost ---- */

static ln_attention describe(const linnet_model *model, bool exact) {
    const ln_hyperparameters *h = &model->hyper;
    return (ln_attention){.heads = h->heads,
                          .key_value_heads = 1,
                          .key_size = h->key_size,
                          .value_size = h->value_size,
                          .scale = h->score_scale,
                          .exact = exact,
                          .bf16 = !exact,
                          .mask = {.causal = true}};
}

/* Places on the stage. */
typedef struct places {
    float *absorbed, *output, *query, *low, *key;
    int64_t kept, floats;
} places;

static places place(const linnet_model *model, const weights *w, float *stage, int64_t tokens) {
    const ln_hyperparameters *h = &model->hyper;
    const sizes *s = w->size;
    places p = {0};
    float **const all[] = {&p.absorbed, &p.output, &p.query, &p.low, &p.key};
    const int64_t columns[] = {ln_max_i64(h->heads * h->key_size, h->heads * s->value), h->heads * s->rank,
                               h->heads * (s->plain + s->shared), w->query_in.rows, h->key_size};
    for (int k = 0; k < 5; k++) {
        *all[k] = stage ? stage + p.floats : NULL;
        p.floats += ln_stage(tokens, columns[k]);
        if (k == 1) p.kept = p.floats;
    }
    return p;
}

/* The products of a token; NULL-ended, without those of heads. */
static void list(const weights *w, const ln_matrix *products[8]) {
    const ln_matrix *const all[] = {&w->query, &w->query_in, &w->query_out, &w->latent, &w->output};
    int count = 0;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (all[k]->rows) products[count++] = all[k];
    products[count] = NULL;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    const int threads = ln_team_size(model->context->team);
    const places p = place(model, w, NULL, shape->piece);
    const ln_matrix *products[8];
    list(w, products);
    for (int k = 0; products[k]; k++) ln_room_product(model, shape, products[k], products[k]->columns, room);
    ln_room_product(model, shape, &w->key[0], w->key[0].columns, room);
    ln_room_product(model, shape, &w->value[0], w->value[0].columns, room);
    ln_room_stage(room, p.floats);
    room->kept = ln_max_i64(room->kept, p.kept);
    const ln_attention attention = describe(model, shape->exact);
    const uint64_t over = ln_attention_workspace(&model->kernels, threads, &attention, 1, shape->piece);
    if (over > room->over) room->over = over;
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    const ln_matrix *products[8];
    list(w, products);
    for (int k = 0; products[k]; k++) ln_cost_product(model, shape, products[k], cost);
    for (int64_t head = 0; head < model->hyper.heads; head++) {
        ln_cost_product(model, shape, &w->key[head], cost);
        ln_cost_product(model, shape, &w->value[head], cost);
    }
    cost->prepared += (double)(model->hyper.width + 2 * model->hyper.heads * w->size->rank);
    cost->meetings += 6 + 2 * (double)model->hyper.heads;
}

/* ---- running ---- */

typedef struct rows {
    const linnet_model *model;
    const weights *w;
    places at;
} rows;

static void norm_low_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t rank = r->w->query_in.rows;
    float *low = r->at.low + token * rank;
    r->model->kernels.vector.rms_norm(low, low, r->w->query_norm, rank, norm_epsilon);
}

/* c is normed, s is copied behind the absorbed queries. */
static void prepare_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_hyperparameters *h = &r->model->hyper;
    const sizes *s = r->w->size;
    float *key = r->at.key + token * h->key_size;
    r->model->kernels.vector.rms_norm(key, key, r->w->norm, s->rank, norm_epsilon);
    for (int64_t head = 0; head < h->heads; head++) {
        const float *query = r->at.query + (token * h->heads + head) * (s->plain + s->shared);
        float *absorbed = r->at.absorbed + (token * h->heads + head) * h->key_size;
        memcpy(absorbed + s->rank, query + s->plain, (size_t)s->shared * sizeof *query);
    }
}

/* One product a head: columns of x and of y lie `from` and `to` apart. */
static void multiply_heads(ln_forward *forward, const ln_matrix *matrices, const float *x, int64_t from, float *y,
                           int64_t to, int64_t tokens) {
    const int64_t heads = forward->model->hyper.heads;
    const ln_matmul_part all = {0};
    for (int64_t head = 0; head < heads; head++) {
        const ln_product product = {&matrices[head], y + head * to, heads * to};
        ln_part_multiply_part(forward, &product, 1, x + head * from, heads * from, tokens, &all);
    }
}

static void project(ln_forward *forward, const weights *w, const rows *r, int64_t tokens) {
    const ln_hyperparameters *h = &forward->model->hyper;
    const sizes *s = w->size;
    ln_team *team = forward->model->context->team;
    void *argument = (void *)(uintptr_t)r;
    const int64_t each = s->plain + s->shared, queries = h->heads * each;
    const bool low = w->query_in.rows > 0;
    const ln_product products[] = {
        {&w->latent, r->at.key, h->key_size},
        {low ? &w->query_in : &w->query, low ? r->at.low : r->at.query, low ? w->query_in.rows : queries}};
    const ln_product query = {&w->query_out, r->at.query, queries};
    ln_part_multiply(forward, products, 2, forward->h, tokens);
    if (low) {
        ln_parallel(team, tokens, norm_low_row, argument);
        ln_part_multiply(forward, &query, 1, r->at.low, tokens);
    }
    multiply_heads(forward, w->key, r->at.query, each, r->at.absorbed, h->key_size, tokens);
    ln_parallel(team, tokens, prepare_row, argument);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *h = &model->hyper;
    const weights *w = part->weights;
    const sizes *s = w->size;
    const int64_t tokens = call->tokens;
    const rows r = {.model = model, .w = w, .at = place(model, w, forward->stage, tokens)};
    project(forward, w, &r, tokens);
    ln_memory_append(call->memory, model->context->team, part->layer, tokens, r.at.key, h->key_size, r.at.key,
                     h->key_size);
    const ln_attention attention = describe(model, forward->shape.exact);
    const ln_ragged_call attend = {.kernels = &model->kernels,
                                   .team = model->context->team,
                                   .attention = &attention,
                                   .tokens = tokens,
                                   .query = r.at.absorbed,
                                   .query_stride = h->heads * h->key_size,
                                   .query_head_stride = h->key_size,
                                   .output = r.at.output,
                                   .output_stride = h->heads * s->rank,
                                   .output_head_stride = s->rank,
                                   .workspace = forward->over};
    LN_TRY(ln_memory_attend(call->memory, part->layer, &attend));
    multiply_heads(forward, w->value, r.at.output, s->rank, r.at.absorbed, s->value, tokens);
    const ln_product output = {&w->output, forward->h, h->width};
    ln_part_multiply(forward, &output, 1, r.at.absorbed, tokens);
    *given = forward->h;
    return LINNET_OK;
}

static const ln_part_kind latent_part = {
    .name = "latent attention", .attends = true, .room = find_room, .weigh = weigh, .run = run};
