/* Owns: the pass of a model on an NVIDIA GPU (equation in model/part.h), its pages, and the table ln_device_cuda.
 *
 *     enter: x = embedding, h = norm(x)
 *     attention:    query, key, value = products of h; heads: bias, norm, rotation; append to the pages; attend; output
 *     feed-forward: gated unit of two products of h; product
 *     finish: x = keep x + add norm'(given), h = norm(x) of what follows
 *
 * A prompt's piece gathers the keys and values that it sees from the pages as bf16 and runs the attention kernels of
 * prompts. One token runs the kernels of decode, all of whose arguments are the same at any position: what changes is
 * in `step` on the device. So the second token is captured as one graph, from the copy of `step` to the copy of the
 * most likely id, and every later token is one launch of it.
 *
 * Invariant: between `run` and `take` the host touches neither step_host nor best_host (`running`). */
#include "model/cuda/engine.h"

#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "model/take.h"

/* Keys (0) and values (1) of a layer, at the same place in each sequence. */
struct ln_device_sequence {
    ln_cuda_room *room;
    ln_cuda_lanes *lanes; /* of layers under a policy; NULL: there is none */
    char *pages;
    uint64_t bytes;
    int64_t *offset; /* [layers] of its keys; the values follow */
    int64_t alone;   /* tokens that came alone so far: the first is run as it is */
    void *graph;
};

/* ---- pages ---- */

static int64_t count_pages(const ln_cuda_room *room, int64_t layer) {
    const linnet_model *model = room->model;
    if (!model->attends[layer] || (room->shape.policy && !model->windows[layer])) return 0;
    return room->classes[model->windows[layer] > 0].slots;
}

/* Bytes of all layers; offset NULL: not wanted. */
static uint64_t place_pages(const ln_cuda_room *room, int64_t *offset) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < room->model->hyper.layers; i++) {
        const int class = room->model->windows[i] > 0;
        if (offset) offset[i] = bytes;
        bytes += count_pages(room, i) * (ln_cuda_page_bytes(room, class, 0) + ln_cuda_page_bytes(room, class, 1));
    }
    return (uint64_t)bytes;
}

static linnet_status weigh(linnet_model *model, const ln_device_shape *shape, ln_device_bytes *bytes) {
    ln_cuda_device device;
    ln_cuda_room room;
    ln_ragged_shape lanes;
    uint64_t all, lane_pages, lane_tables, least = 0, most = 0;
    LN_TRY(ln_cuda_find_device(model->context, &device));
    LN_TRY(ln_cuda_room_plan(model, &device, shape, &room));
    ln_cuda_lanes_bytes(&room, &lane_pages, &lane_tables);
    if (shape->policy && ln_cuda_lanes_shape(model, shape, &lanes)) {
        ln_policy everything = *shape->policy;
        LN_TRY(ln_ragged_least(model->context, &lanes, &least));
        everything.scorer = NULL; /* and so keeps all tokens, without what scorers keep of them */
        everything.allocator = NULL;
        lanes.policy = &everything;
        LN_TRY(ln_ragged_least(model->context, &lanes, &most));
        most = least + most + most / 4;
    }
    *bytes = (ln_device_bytes){.weights = ln_cuda_weights_bytes(model),
                               .pages = place_pages(&room, NULL) + lane_pages,
                               .workspace = room.bytes + lane_tables,
                               .lanes_least = least,
                               .lanes_most = most};
    for (int64_t i = 0; i < model->hyper.layers; i++)
        if (model->attends[i] && !model->windows[i])
            bytes->token +=
                (uint64_t)(ln_cuda_page_bytes(&room, 0, 0) + ln_cuda_page_bytes(&room, 0, 1)) / LN_CUDA_PAGE_TOKENS;
    LN_CUDA_TRY(model->context, ln_cuda_use(device.index), "choosing the GPU");
    LN_CUDA_TRY(model->context, ln_cuda_memory(&bytes->available, &all), "asking the GPU for its memory");
    if (model->on_device) bytes->available += ((const ln_cuda_model *)model->on_device)->bytes;
    return LINNET_OK;
}

static ln_cuda_page_part part_of(const ln_device_sequence *sequence, const ln_cuda_block *block, int part) {
    const ln_cuda_room *room = sequence->room;
    const ln_hyperparameters *h = &room->model->hyper;
    const ln_cuda_class *class = &room->classes[block->class];
    const int64_t size = part ? h->value_size : h->key_size, page = ln_cuda_page_bytes(room, (int)block->class, part);
    const int64_t before = part ? class->slots * ln_cuda_page_bytes(room, (int)block->class, 0) : 0;
    const int64_t head = ln_cuda_head_bytes(&class->decode, size);
    return (ln_cuda_page_part){sequence->pages + sequence->offset[block->layer] + before, page, head,
                               ln_cuda_plain(class->decode.format) ? 2 * size : 0};
}

/* ---- the pass ---- */

typedef struct pass {
    ln_device_sequence *sequence;
    ln_cuda_room *room;
    ln_cuda_model *on;
    int64_t tokens, position;
    bool alone;        /* one token, by the kernels of decode */
    bool few;          /* rows make digits of h, for products with codes */
    float *x, *x_next; /* the stream, and where a product that finishes rows leaves it */
    ln_cuda_rows rows; /* what the next product of h finishes, if waiting */
    bool waiting;
} pass;

static linnet_status finish_now(pass *p) {
    if (!p->waiting) return LINNET_OK;
    p->waiting = false;
    LN_CUDA_TRY(p->room->model->context, ln_cuda_rows_finish(&p->rows, p->on->stream), "adding a part");
    return LINNET_OK;
}

/* A product of h alone finishes rows that wait for it, if it can. digits: rows_of asked for them. */
static linnet_status take_h(pass *p, ln_cuda_product *product, bool digits, bool only) {
    if (!p->waiting || !only || !ln_cuda_product_finishes(product, &p->on->device, &p->rows)) {
        if (p->few && digits) product->digits = p->room->digits;
        return finish_now(p);
    }
    float *const x = p->x;
    p->waiting = false;
    p->rows.finished = p->x_next;
    if (product->weight[0].codes != p->on->head.codes) p->rows.h = NULL; /* only logits may be asked for again */
    product->rows = &p->rows;
    p->x = p->x_next;
    p->x_next = x;
    return LINNET_OK;
}

/* Matrices of one kind go together. */
static linnet_status multiply(pass *p, const ln_cuda_weight *weights, float *const *y, int count, const void *x,
                              int64_t tokens) {
    linnet_context *context = p->room->model->context;
    for (int i = 0; i < count;) {
        ln_cuda_product product = {.x = x, .x_stride = ln_cuda_padded(weights[i].columns), .tokens = tokens};
        ln_cuda_product_plan plan;
        const ln_cuda_weight_kind kind = weights[i].kind;
        const int first = i;
        for (; i < count && weights[i].kind == kind; i++) {
            product.weight[product.count] = weights[i];
            product.stride[product.count] = weights[i].rows;
            product.y[product.count++] = y[i];
        }
        if (x == p->room->h && tokens == p->tokens)
            LN_TRY(take_h(p, &product, weights[0].kind != LN_CUDA_WEIGHT_BF16, first == 0 && i == count));
        LN_CUDA_TRY(context, ln_cuda_product_plan_make(&product, &p->on->device, p->on->library, &plan),
                    "planning a product");
        LN_CUDA_TRY(context, ln_cuda_product_run(&product, &plan, p->on->library, p->room->products, p->on->stream),
                    "a product");
    }
    return LINNET_OK;
}

static ln_cuda_rows rows_of(const pass *p, const ln_cuda_block *next) {
    const ln_hyperparameters *h = &p->room->model->hyper;
    /* What is multiplied with codes next is wanted in digits. */
    const ln_cuda_weight *weight = next ? &next->weight[0] : &p->on->head;
    const bool digits = p->few && weight->kind != LN_CUDA_WEIGHT_BF16;
    return (ln_cuda_rows){.tokens = p->tokens,
                          .width = h->width,
                          .epsilon = h->norm_epsilon,
                          .x = p->x,
                          .h = p->room->h,
                          .h_stride = ln_cuda_padded(h->width),
                          .digits = digits ? p->room->digits : (ln_cuda_digits){NULL, NULL},
                          .next = next ? next->norm : p->on->output_norm,
                          .from_norm = next && next->of->from_norm,
                          .scale = 1,
                          .keep = 1,
                          .add = 1};
}

static linnet_status enter(const pass *p) {
    const linnet_model *model = p->room->model;
    ln_cuda_room *room = p->room;
    const int64_t pairs = model->rope.size / 2;
    ln_cuda_rows rows = rows_of(p, &p->on->blocks[0]);
    rows.ids = room->step + 2;
    rows.embedding_scale = model->hyper.embedding_scale;
    rows.embedding_norm = p->on->embedding_norm;
    LN_CUDA_TRY(model->context, ln_cuda_rows_enter(&rows, &p->on->embedding, p->on->stream), "embedding tokens");
    for (int local = 0; local < (model->rope.base_local > 0 ? 2 : 1); local++)
        LN_CUDA_TRY(model->context,
                    ln_cuda_angles(room->step, room->inverse[local], room->magnitude[local], pairs, p->tokens,
                                   room->cosine[local], room->sine[local], p->on->stream),
                    "turning");
    return LINNET_OK;
}

static float or_one(float factor) {
    return factor == 0 ? 1 : factor;
}

/* One token's row waits for the product that follows. */
static linnet_status finish(pass *p, const ln_cuda_block *block, const ln_cuda_block *next) {
    p->rows = rows_of(p, next);
    p->rows.given = p->room->given;
    p->rows.bias = block->bias;
    p->rows.scale = or_one(block->of->part[0].scale);
    p->rows.keep = or_one(block->of->keep);
    p->rows.add = or_one(block->of->add);
    p->rows.post = block->post;
    p->waiting = true;
    return p->alone ? LINNET_OK : finish_now(p);
}

/* ---- attention ---- */

static ln_cuda_decode_tensors tensors_of(const pass *p, const ln_cuda_block *block) {
    const ln_hyperparameters *h = &p->room->model->hyper;
    const ln_cuda_room *room = p->room;
    return (ln_cuda_decode_tensors){.query = {room->query, h->heads * h->key_size, h->key_size},
                                    .output = {room->mixed, ln_cuda_padded(h->heads * h->value_size), h->value_size},
                                    .key = part_of(p->sequence, block, 0),
                                    .value = part_of(p->sequence, block, 1),
                                    .page_table = room->classes[block->class].table,
                                    .table_stride = ln_ceil_div(room->shape.context, LN_CUDA_PAGE_TOKENS),
                                    .lengths = room->step + 1};
}

static bool has_lanes(const pass *p, const ln_cuda_block *block) {
    return p->sequence->lanes && block->class == 0;
}

/* Plain pages take keys and values straight; the others as rows, which `append` rounds. */
static linnet_status prepare_heads(const pass *p, const ln_cuda_block *block, const ln_cuda_decode_tensors *tensors,
                                   float *const *from) {
    const linnet_model *model = p->room->model;
    const ln_hyperparameters *h = &model->hyper;
    ln_cuda_room *room = p->room;
    const ln_cuda_class *class = &room->classes[block->class];
    const ln_rotation rotation = block->attention->rotation;
    const bool turns = rotation != LN_ROTATE_NOT;
    const int local = rotation == LN_ROTATE_LOCAL;
    ln_cuda_heads heads = {.tokens = p->tokens,
                           .part = {{.heads = h->heads,
                                     .size = h->key_size,
                                     .from = from[0],
                                     .to = room->query,
                                     .bias = block->query_bias,
                                     .norm = block->query_norm,
                                     .rotated = turns},
                                    {.heads = h->key_value_heads,
                                     .size = h->key_size,
                                     .from = from[1],
                                     .to = room->key,
                                     .float32 = true,
                                     .bias = block->key_bias,
                                     .norm = block->key_norm,
                                     .rotated = turns},
                                    {.heads = h->key_value_heads,
                                     .size = h->value_size,
                                     .from = from[2],
                                     .to = room->value,
                                     .float32 = true,
                                     .bias = block->value_bias}},
                           .epsilon = h->norm_epsilon,
                           .cosine = room->cosine[local],
                           .sine = room->sine[local],
                           .rotary_size = model->rope.size,
                           .half = model->rope.half};
    for (int i = 1; i < 3 && ln_cuda_plain(class->decode.format); i++)
        heads.part[i].pages = (ln_cuda_head_pages){i == 1 ? tensors->key : tensors->value,
                                                   class->decode.format,
                                                   LN_CUDA_PAGE_TOKENS,
                                                   tensors->page_table,
                                                   tensors->lengths,
                                                   has_lanes(p, block) ? tensors->table_stride : 0};
    LN_CUDA_TRY(model->context, ln_cuda_heads_run(&heads, p->on->stream), "preparing heads");
    return LINNET_OK;
}

static linnet_status append(const pass *p, const ln_cuda_class *class, const ln_cuda_decode_tensors *tensors) {
    const ln_hyperparameters *h = &p->room->model->hyper;
    const ln_cuda_decode_rows rows = {.tokens = p->tokens,
                                      .element = LN_CUDA_ELEMENT_FLOAT32,
                                      .key = {p->room->key, h->key_value_heads * h->key_size, h->key_size},
                                      .value = {p->room->value, h->key_value_heads * h->value_size, h->value_size}};
    if (ln_cuda_plain(class->decode.format)) return LINNET_OK;
    LN_CUDA_TRY(p->room->model->context, ln_cuda_decode_append(&class->decode, tensors, &rows, p->on->stream),
                "keeping keys and values");
    return LINNET_OK;
}

static linnet_status attend_prompt(const pass *p, ln_cuda_class *class, const ln_cuda_decode_tensors *tensors) {
    linnet_context *context = p->room->model->context;
    const ln_hyperparameters *h = &p->room->model->hyper;
    const int64_t count = class->key_offsets[1];
    const ln_cuda_attention_tensors of = {
        .query = tensors->query,
        .key = {p->room->gathered[0], h->key_value_heads * h->key_size, h->key_size},
        .value = {p->room->gathered[1], h->key_value_heads * h->value_size, h->value_size},
        .output = tensors->output};
    LN_CUDA_TRY(
        context,
        ln_cuda_plain(class->decode.format)
            ? ln_cuda_gather_any(&class->decode, tensors, class->first, count, &of.key, &of.value, p->on->stream)
            : ln_cuda_decode_unpack(&class->decode, tensors, 0, class->first, count, &of.key, &of.value, p->on->stream),
        "gathering keys and values");
    LN_CUDA_TRY(context,
                ln_cuda_attention_forward(&class->attention, &class->attention_plan, &of, class->tasks, p->on->stream),
                "attention");
    return LINNET_OK;
}

static linnet_status attend_lanes(const pass *p, const ln_cuda_block *block, float *const *from) {
    ln_cuda_decode_tensors tensors = tensors_of(p, block);
    LN_TRY(ln_cuda_lanes_enter(p->sequence->lanes, block->layer, p->tokens, &tensors));
    LN_TRY(prepare_heads(p, block, &tensors, from));
    LN_TRY(ln_cuda_lanes_attend(p->sequence->lanes, block->layer, p->tokens, &tensors));
    return ln_cuda_lanes_leave(p->sequence->lanes, block->layer, p->tokens);
}

static linnet_status attend(const pass *p, const ln_cuda_block *block, float *const *from) {
    if (has_lanes(p, block)) return attend_lanes(p, block, from);
    linnet_context *context = p->room->model->context;
    ln_cuda_class *class = &p->room->classes[block->class];
    const ln_cuda_decode_tensors tensors = tensors_of(p, block);
    LN_TRY(prepare_heads(p, block, &tensors, from));
    ln_cuda_decode any = class->decode;
    any.queries = p->tokens;
    LN_TRY(append(p, class, &tensors));
    if (!p->alone && !class->any_prompt) return attend_prompt(p, class, &tensors);
    LN_CUDA_TRY(context,
                p->alone && !class->any ? ln_cuda_decode_run(&class->decode, &class->decode_plan, &tensors,
                                                             class->decode_workspace, p->on->stream)
                                        : ln_cuda_attend_any(&any, &tensors, p->on->stream),
                "attention");
    return LINNET_OK;
}

static linnet_status run_attention(pass *p, const ln_cuda_block *block) {
    const ln_hyperparameters *h = &p->room->model->hyper;
    float *stage = p->room->stage, *given[] = {p->room->given};
    float *from[3] = {stage, stage + p->tokens * h->heads * h->key_size};
    from[2] = from[1] + p->tokens * h->key_value_heads * h->key_size;
    LN_TRY(multiply(p, block->weight, from, 3, p->room->h, p->tokens));
    LN_TRY(attend(p, block, from));
    return multiply(p, &block->weight[3], given, 1, p->room->mixed, p->tokens);
}

static linnet_status run_feed_forward(pass *p, const ln_cuda_block *block) {
    linnet_context *context = p->room->model->context;
    const ln_feed_forward_weights *of = block->feed_forward;
    float *given[] = {p->room->given};
    ln_cuda_product product = {.count = 2,
                               .weight = {block->weight[0], block->weight[1]},
                               .y = {p->room->stage, p->room->stage + p->tokens * of->columns},
                               .stride = {of->columns, of->columns},
                               .x = p->room->h,
                               .x_stride = ln_cuda_padded(p->room->model->hyper.width),
                               .tokens = p->tokens,
                               .gated = true,
                               .activation = of->activation == LN_GELU_TANH ? LN_CUDA_GELU_TANH : LN_CUDA_SILU,
                               .gate_scale = of->gate_scale,
                               .given = p->room->gated,
                               .given_stride = ln_cuda_padded(of->columns)};
    ln_cuda_product_plan plan;
    LN_TRY(take_h(p, &product, block->weight[0].kind != LN_CUDA_WEIGHT_BF16, true));
    LN_CUDA_TRY(context, ln_cuda_product_plan_make(&product, &p->on->device, p->on->library, &plan),
                "planning a gated unit");
    LN_CUDA_TRY(context, ln_cuda_product_run(&product, &plan, p->on->library, p->room->products, p->on->stream),
                "a gated unit");
    return multiply(p, &block->weight[2], given, 1, p->room->gated, p->tokens);
}

/* ---- what follows ---- */

/* Logits [count, vocabulary] of tokens of the piece, and the best of the last; best NULL: not wanted. */
static linnet_status head(pass *p, int64_t first, int64_t count, int32_t *best) {
    const linnet_model *model = p->room->model;
    const ln_hyperparameters *h = &model->hyper;
    float *logits[] = {p->room->logits};
    const char *x = (const char *)p->room->h + 2 * first * ln_cuda_padded(h->width);
    const int64_t named =
        model->tokenizer ? ln_min_i64(h->vocabulary, linnet_tokenizer_size(model->tokenizer)) : h->vocabulary;
    LN_TRY(multiply(p, &p->on->head, logits, 1, x, count));
    LN_CUDA_TRY(model->context,
                ln_cuda_logits(logits[0], count, h->vocabulary, named, or_one(h->logit_scale), h->logit_cap, best,
                               p->room->best_workspace, p->on->stream),
                "logits");
    return LINNET_OK;
}

static linnet_status run_pass(pass *p, bool last) {
    linnet_context *context = p->room->model->context;
    p->x = p->room->x, p->x_next = p->room->finished;
    LN_CUDA_TRY(context,
                ln_cuda_copy_to_device(p->room->step, p->room->step_host,
                                       (uint64_t)(p->tokens + 2) * sizeof *p->room->step, p->on->stream),
                "sending tokens");
    LN_TRY(enter(p));
    for (int64_t i = 0; i < p->on->count; i++) {
        const ln_cuda_block *block = &p->on->blocks[i];
        LN_TRY((block->attention ? run_attention : run_feed_forward)(p, block));
        LN_TRY(finish(p, block, i + 1 < p->on->count ? block + 1 : NULL));
    }
    if (!last) return finish_now(p);
    LN_TRY(head(p, p->tokens - 1, 1, p->room->best));
    LN_CUDA_TRY(context, ln_cuda_copy_to_host(p->room->best_host, p->room->best, sizeof *p->room->best, p->on->stream),
                "fetching a token");
    return LINNET_OK;
}

/* Everything that a piece of a prompt sees, in tasks. */
static linnet_status plan_prompt(const pass *p, ln_cuda_class *class) {
    linnet_context *context = p->room->model->context;
    const int64_t end = p->position + p->tokens;
    class->first = class->window ? ln_max_i64(0, p->position - class->window + 1) : 0;
    class->query_offsets[1] = p->tokens;
    class->key_offsets[1] = end - class->first;
    LN_CUDA_TRY(context, ln_cuda_attention_plan_make(&class->attention, &p->on->device, NULL, &class->attention_plan),
                "planning attention");
    if (class->attention_plan.workspace > (int64_t)p->room->task_bytes)
        return ln_cuda_fail(context, LN_CUDA_ARGUMENT, "planning attention");
    ln_cuda_attention_tasks(&class->attention, &class->attention_plan, p->room->tasks_host);
    LN_CUDA_TRY(context,
                ln_cuda_attention_prepare(&class->attention_plan, p->room->tasks_host, class->tasks, p->on->stream),
                "preparing attention");
    return LINNET_OK;
}

static linnet_status run_graph(pass *p) {
    linnet_context *context = p->room->model->context;
    ln_device_sequence *sequence = p->sequence;
    if (!sequence->graph) {
        LN_CUDA_TRY(context, ln_cuda_graph_begin(p->on->stream), "capturing a step");
        const linnet_status status = run_pass(p, true);
        const ln_cuda_code code = ln_cuda_graph_end(p->on->stream, &sequence->graph);
        if (status != LINNET_OK || code != LN_CUDA_OK) { /* of a step that broke off there may be a part */
            ln_cuda_graph_close(sequence->graph);
            sequence->graph = NULL;
        }
        LN_TRY(status);
        LN_CUDA_TRY(context, code, "capturing a step");
    }
    LN_CUDA_TRY(context, ln_cuda_graph_run(sequence->graph, p->on->stream), "a step");
    return LINNET_OK;
}

/* Before all else that the table does: whoever else is on this thread may have chosen another GPU. */
static linnet_status meet(ln_cuda_room *room) {
    const ln_cuda_model *on = room->model->on_device;
    LN_CUDA_TRY(room->model->context, ln_cuda_use(on->device.index), "choosing the GPU");
    if (!room->running) return LINNET_OK;
    room->running = false;
    LN_CUDA_TRY(room->model->context, ln_cuda_wait(on->stream), "running the model");
    return LINNET_OK;
}

static linnet_status start(ln_device_sequence *sequence, const int32_t *ids, int64_t tokens, int64_t position,
                           bool last) {
    ln_cuda_room *room = sequence->room;
    pass p = {.sequence = sequence,
              .room = room,
              .on = room->model->on_device,
              .tokens = tokens,
              .position = position,
              .alone = tokens == 1,
              .few = tokens <= LN_CUDA_PRODUCT_FEW};
    LN_TRY(meet(room));
    room->step_host[0] = (int32_t)position;
    room->step_host[1] = (int32_t)(position + tokens);
    memcpy(room->step_host + 2, ids, (size_t)tokens * sizeof *ids);
    for (int c = 0; c < LN_CUDA_CLASSES && !p.alone; c++)
        if (room->classes[c].layers && !room->classes[c].any_prompt && (c > 0 || !sequence->lanes))
            LN_TRY(plan_prompt(&p, &room->classes[c]));
    if (sequence->lanes) LN_TRY(ln_cuda_lanes_begin(sequence->lanes, tokens, position));
    room->running = true;
    LN_TRY(p.alone && last && sequence->alone++ > 0 ? run_graph(&p) : run_pass(&p, last));
    return sequence->lanes ? ln_cuda_lanes_end(sequence->lanes, tokens) : LINNET_OK;
}

static linnet_status run(ln_device_sequence *sequence, const int32_t *ids, int64_t tokens, int64_t position,
                         bool last) {
    ln_cuda_room *room = sequence->room;
    const linnet_status status = start(sequence, ids, tokens, position, last);
    if (status == LINNET_OK || !room->running) return status;
    ln_cuda_wait(((const ln_cuda_model *)room->model->on_device)->stream); /* a fork is not to find this error */
    room->running = false;
    return status;
}

static linnet_status fetch(ln_cuda_room *room, float *logits, int64_t count) {
    const ln_cuda_model *on = room->model->on_device;
    const uint64_t bytes = (uint64_t)(count * room->model->hyper.vocabulary) * sizeof *logits;
    LN_CUDA_TRY(room->model->context, ln_cuda_copy_to_host(logits, room->logits, bytes, on->stream), "fetching logits");
    room->running = true;
    return meet(room);
}

static linnet_status take(ln_device_sequence *sequence, float *logits, int32_t *best) {
    ln_cuda_room *room = sequence->room;
    LN_TRY(meet(room));
    if (logits) LN_TRY(fetch(room, logits, 1));
    if (best) *best = *room->best_host;
    return LINNET_OK;
}

static linnet_status rows(ln_device_sequence *sequence, int64_t first, int64_t count, float *logits) {
    ln_cuda_room *room = sequence->room;
    pass p = {.sequence = sequence, .room = room, .on = room->model->on_device, .tokens = count};
    LN_TRY(meet(room));
    for (int64_t done = 0; done < count; done += room->rows) {
        const int64_t some = ln_min_i64(room->rows, count - done);
        LN_TRY(head(&p, first + done, some, NULL));
        LN_TRY(fetch(room, logits + done * room->model->hyper.vocabulary, some));
    }
    return LINNET_OK;
}

/* ---- sequences ---- */

static void close_sequence(ln_device_sequence *sequence) {
    if (!sequence) return;
    linnet_context *context = sequence->room ? sequence->room->model->context : NULL;
    if (!context) return;
    meet(sequence->room);
    ln_cuda_graph_close(sequence->graph);
    ln_cuda_lanes_close(sequence->lanes);
    ln_cuda_release(sequence->pages);
    ln_release(context, sequence->offset);
    ln_cuda_room_close(sequence->room);
    ln_release(context, sequence);
}

static linnet_status open_pages(ln_cuda_room *room, const ln_device_sequence *from, ln_device_sequence **sequence) {
    linnet_context *context = room->model->context;
    ln_cuda_model *on = room->model->on_device;
    ln_device_sequence *made = ln_allocate_zero(context, 1, sizeof *made, "sequence on the device");
    if (!made) return LINNET_ERROR_MEMORY;
    *sequence = made;
    made->room = room;
    made->offset =
        ln_allocate(context, (uint64_t)room->model->hyper.layers, sizeof *made->offset, "pages on the device");
    if (!made->offset) return LINNET_ERROR_MEMORY;
    made->bytes = place_pages(room, made->offset);
    if (room->shape.policy) LN_TRY(ln_cuda_lanes_open(room, from ? from->lanes : NULL, &made->lanes));
    if (!made->bytes) return LINNET_OK;
    LN_CUDA_TRY(context, ln_cuda_allocate(made->bytes, (void **)&made->pages), "making room for keys and values");
    /* Tiles are read whole: what is not written yet must be numbers. */
    LN_CUDA_TRY(context, ln_cuda_zero(made->pages, made->bytes, on->stream), "clearing keys and values");
    return LINNET_OK;
}

static linnet_status open_sequence(linnet_model *model, const ln_device_shape *shape, ln_device_sequence **sequence) {
    ln_cuda_device device;
    ln_cuda_room *room;
    *sequence = NULL;
    const bool first = !model->on_device;
    LN_TRY(ln_cuda_find_device(model->context, &device));
    LN_TRY(ln_cuda_weights_open(model, &device));
    linnet_status status = ln_cuda_room_open(model, shape, &room);
    if (status == LINNET_OK) {
        status = open_pages(room, NULL, sequence);
        if (status == LINNET_OK) return LINNET_OK;
        if (*sequence)
            close_sequence(*sequence);
        else
            ln_cuda_room_close(room);
    }
    *sequence = NULL;
    if (first) ln_cuda_weights_close(model); /* no sequence is there to use them */
    return status;
}

static linnet_status fork_sequence(ln_device_sequence *sequence, int64_t position, ln_device_sequence **fork) {
    ln_cuda_room *room = sequence->room;
    ln_cuda_model *on = room->model->on_device;
    (void)position; /* pages lie layer by layer: copying all of them is one copy */
    *fork = NULL;
    LN_TRY(meet(room));
    room->users++;
    linnet_status status = open_pages(room, sequence, fork);
    if (status == LINNET_OK && sequence->bytes)
        status = ln_cuda_fail(room->model->context,
                              ln_cuda_copy_on_device((*fork)->pages, sequence->pages, sequence->bytes, on->stream),
                              "forking");
    if (status == LINNET_OK) return LINNET_OK;
    if (*fork)
        close_sequence(*fork);
    else
        room->users--;
    *fork = NULL;
    return status;
}

/* A slot that was written again has lost what was there before: as ln_memory_rewind_limit. */
static int64_t rewind_limit(const ln_device_sequence *sequence, int64_t most) {
    const ln_cuda_class *class = &sequence->room->classes[1];
    const int64_t lanes = sequence->lanes ? ln_ragged_rewind_limit(ln_cuda_lanes_ragged(sequence->lanes)) : 0;
    if (most == 0) return 0;
    if (!class->window) return lanes;
    const int64_t last = (most - 1) / LN_CUDA_PAGE_TOKENS, kept = (last - class->slots + 1) * LN_CUDA_PAGE_TOKENS;
    return ln_max_i64(lanes, kept > 0 ? kept + class->window - 1 : 0);
}

/* A head of a layer that has no lanes. */
static linnet_status transfer_of(ln_device_sequence *sequence, int64_t layer, int64_t head,
                                 ln_cuda_transfer *transfer) {
    ln_cuda_room *room = sequence->room;
    const ln_hyperparameters *h = &room->model->hyper;
    const ln_cuda_model *on = room->model->on_device;
    const int class = room->model->windows[layer] > 0;
    const ln_cuda_block *block = on->blocks;
    while (!block->attention || block->layer != layer) block++;
    transfer->pages = (ln_cuda_lane_pages){.format = room->classes[class].decode.format,
                                           .page_tokens = LN_CUDA_PAGE_TOKENS,
                                           .key_size = h->key_size,
                                           .value_size = h->value_size,
                                           .key = part_of(sequence, block, 0),
                                           .value = part_of(sequence, block, 1)};
    transfer->pages.key.data = (char *)transfer->pages.key.data + head * transfer->pages.key.head_stride;
    transfer->pages.value.data = (char *)transfer->pages.value.data + head * transfer->pages.value.head_stride;
    transfer->page_table = room->classes[class].table;
    return meet(room);
}

static linnet_status fetch_pages(ln_device_sequence *sequence, int64_t layer, int64_t head, int64_t first,
                                 int64_t count, const ln_page_layout *layout, unsigned char *pages) {
    ln_cuda_transfer transfer = {.first = first, .count = count, .layout = layout};
    LN_TRY(transfer_of(sequence, layer, head, &transfer));
    return ln_cuda_fetch_pages(sequence->room, &transfer, pages);
}

static linnet_status store_pages(ln_device_sequence *sequence, int64_t layer, int64_t head, int64_t first,
                                 int64_t count, const ln_page_layout *layout, const unsigned char *pages) {
    ln_cuda_transfer transfer = {.first = first, .count = count, .layout = layout};
    LN_TRY(transfer_of(sequence, layer, head, &transfer));
    return ln_cuda_store_pages(sequence->room, &transfer, pages);
}

static linnet_status lanes_at(ln_device_sequence *sequence, int64_t position, ln_ragged **lanes) {
    *lanes = NULL;
    if (!sequence->lanes) return LINNET_OK;
    if (position > 0) LN_TRY(meet(sequence->room)); /* emptying never fails */
    *lanes = ln_cuda_lanes_ragged(sequence->lanes);
    return ln_cuda_lanes_settle_at(sequence->lanes, position);
}

static const ln_ragged *lanes_of(const ln_device_sequence *sequence) {
    return sequence->lanes ? ln_cuda_lanes_ragged(sequence->lanes) : NULL;
}

const ln_device *ln_device_cuda(void) {
    static const ln_device cuda = {.name = "cuda",
                                   .check = ln_cuda_check,
                                   .allows = ln_cuda_lanes_allow,
                                   .weigh = weigh,
                                   .open = open_sequence,
                                   .fork = fork_sequence,
                                   .close = close_sequence,
                                   .run = run,
                                   .take = take,
                                   .rows = rows,
                                   .rewind_limit = rewind_limit,
                                   .fetch = fetch_pages,
                                   .store = store_pages,
                                   .lanes_at = lanes_at,
                                   .lanes = lanes_of,
                                   .release = ln_cuda_weights_close};
    return &cuda;
}
