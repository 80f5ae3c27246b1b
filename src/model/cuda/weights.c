/* Owns: the weights of a model on a GPU: one block of memory, filled from the mapped file in chunks that pass through a
 * staging buffer and are laid out as products read them (product_cuda.h) by the device itself.
 *
 * Q8_0 and Q4_0 stay what they are, bit for bit; F32, F16 and BF16 become bf16; any other format is decoded on the host
 * and becomes bf16 too. Vectors stay float32. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "model/cuda/engine.h"

enum { STAGE_BYTES = 32 << 20 };

typedef struct placing {
    linnet_model *model;
    ln_cuda_model *on;
    ln_cuda_carver memory; /* base NULL: nothing is there yet */
    char *stage, *decoded; /* on the device; on the host, made when needed */
    linnet_status status;
} placing;

static void try_code(placing *p, ln_cuda_code code) {
    if (code && p->status == LINNET_OK) p->status = ln_cuda_fail(p->model->context, code, "putting weights there");
}

static ln_cuda_weight_kind kind_of(linnet_type type) {
    return type == LINNET_Q8_0 ? LN_CUDA_WEIGHT_Q8_0 : type == LINNET_Q4_0 ? LN_CUDA_WEIGHT_Q4_0 : LN_CUDA_WEIGHT_BF16;
}

static bool raw_kind_of(linnet_type type, ln_cuda_weight_kind kind, ln_cuda_raw_kind *raw) {
    switch (type) {
    case LINNET_F32:
        *raw = LN_CUDA_RAW_F32;
        return true;
    case LINNET_F16:
        *raw = LN_CUDA_RAW_F16;
        return true;
    case LINNET_BF16:
        *raw = LN_CUDA_RAW_BF16;
        return true;
    case LINNET_Q8_0:
        *raw = LN_CUDA_RAW_Q8_0;
        return kind == LN_CUDA_WEIGHT_Q8_0;
    case LINNET_Q4_0:
        *raw = LN_CUDA_RAW_Q4_0;
        return kind == LN_CUDA_WEIGHT_Q4_0;
    default:
        return false;
    }
}

/* A chunk of rows through the stage; what the device cannot read is decoded first. */
static void upload(placing *p, const ln_matrix *from, const ln_cuda_weight *to) {
    ln_cuda_raw_kind raw = LN_CUDA_RAW_F32;
    const bool direct = raw_kind_of(from->type, to->kind, &raw);
    const uint64_t file_row = ln_format_bytes(from->type, from->columns),
                   row = direct ? file_row : (uint64_t)from->columns * sizeof(float);
    const int64_t fitting = (int64_t)(STAGE_BYTES / row) / LN_CUDA_TILE_ROWS * LN_CUDA_TILE_ROWS;
    if (!direct) raw = LN_CUDA_RAW_F32;
    if (!direct && !p->decoded) {
        p->decoded = ln_allocate(p->model->context, STAGE_BYTES, 1, "decoded weights");
        if (!p->decoded) p->status = LINNET_ERROR_MEMORY;
    }
    if (fitting == 0 && p->status == LINNET_OK)
        p->status = ln_fail(p->model->context, LINNET_ERROR_UNSUPPORTED, "rows of %lld weights are too long for a GPU",
                            (long long)from->columns);
    for (int64_t first = 0; first < from->rows && p->status == LINNET_OK; first += fitting) {
        const int64_t rows = ln_min_i64(fitting, from->rows - first);
        const char *source = (const char *)from->data + (uint64_t)first * file_row;
        if (!direct) {
            /* The stage is free only when what was there has been read. */
            try_code(p, ln_cuda_wait(p->on->stream));
            ln_format_of(from->type)->decode(source, (float *)(void *)p->decoded, rows * from->columns);
            source = p->decoded;
        }
        try_code(p, ln_cuda_copy_to_device(p->stage, source, (uint64_t)rows * row, p->on->stream));
        try_code(p, ln_cuda_weight_place(to, raw, p->stage, first, rows, p->on->stream));
    }
}

static ln_cuda_weight place_matrix(placing *p, const ln_matrix *from, ln_cuda_weight_kind kind) {
    int64_t scales;
    const int64_t bytes = ln_cuda_weight_bytes(kind, from->rows, from->columns, &scales);
    char *at = ln_cuda_carve(&p->memory, (uint64_t)bytes, 1);
    const ln_cuda_weight to = {kind, from->rows, from->columns, at,
                               at && kind != LN_CUDA_WEIGHT_BF16 ? at + scales : NULL};
    if (p->memory.base) upload(p, from, &to);
    return to;
}

static const float *place_vector(placing *p, const float *from, int64_t count) {
    if (!from) return NULL;
    const uint64_t bytes = (uint64_t)count * sizeof *from;
    char *to = ln_cuda_carve(&p->memory, bytes, 1);
    if (to) try_code(p, ln_cuda_copy_to_device(to, from, bytes, p->on->stream));
    return (const float *)(const void *)to;
}

static ln_cuda_norm place_norm(placing *p, const ln_norm *from) {
    const int64_t width = p->model->hyper.width;
    const float *weight = place_vector(p, from->weight, width);
    return (ln_cuda_norm){weight, from->weight ? place_vector(p, from->bias, width) : NULL};
}

static void place_attention(placing *p, const ln_attention_weights *from, ln_cuda_block *to) {
    const ln_hyperparameters *h = &p->model->hyper;
    const ln_matrix *const matrices[] = {&from->query, &from->key, &from->value, &from->output};
    for (int i = 0; i < 4; i++) to->weight[i] = place_matrix(p, matrices[i], kind_of(matrices[i]->type));
    to->query_bias = place_vector(p, from->query_bias, h->heads * h->key_size);
    to->key_bias = place_vector(p, from->key_bias, h->key_value_heads * h->key_size);
    to->value_bias = place_vector(p, from->value_bias, h->key_value_heads * h->value_size);
    to->query_norm = place_vector(p, from->query_norm, h->key_size);
    to->key_norm = place_vector(p, from->key_norm, h->key_size);
}

/* Gate and up are multiplied together, so they are of one kind. */
static void place_feed_forward(placing *p, const ln_feed_forward_weights *from, ln_cuda_block *to) {
    const ln_cuda_weight_kind gate = kind_of(from->gate.type),
                              both = gate == kind_of(from->up.type) ? gate : LN_CUDA_WEIGHT_BF16;
    to->weight[0] = place_matrix(p, &from->gate, both);
    to->weight[1] = place_matrix(p, &from->up, both);
    to->weight[2] = place_matrix(p, &from->down, kind_of(from->down.type));
}

static void place_block(placing *p, const ln_block *from, int64_t layer, ln_cuda_block *to) {
    const ln_part *part = &from->part[0];
    *to = (ln_cuda_block){.of = from, .layer = layer};
    to->norm = place_norm(p, &from->norm);
    to->post = place_norm(p, &from->post_norm);
    to->bias = place_vector(p, part->bias, p->model->hyper.width);
    if (part->kind == &ln_attention_part) {
        to->attention = part->weights;
        to->class = to->attention->window > 0;
        place_attention(p, to->attention, to);
    } else {
        to->feed_forward = part->weights;
        place_feed_forward(p, to->feed_forward, to);
    }
}

static bool same_matrix(const ln_matrix *a, const ln_matrix *b) {
    return a->data == b->data && a->type == b->type && a->rows == b->rows && a->columns == b->columns;
}

static void place_all(placing *p) {
    const linnet_model *model = p->model;
    ln_cuda_model *on = p->on;
    int64_t block = 0;
    ln_cuda_block counted;
    on->embedding = place_matrix(p, &model->embedding, kind_of(model->embedding.type));
    on->head = same_matrix(&model->head, &model->embedding) ? on->embedding
                                                            : place_matrix(p, &model->head, kind_of(model->head.type));
    on->embedding_norm = place_norm(p, &model->embedding_norm);
    on->output_norm = place_norm(p, &model->output_norm);
    for (int64_t i = 0; i < model->hyper.layers && p->status == LINNET_OK; i++) {
        if (p->memory.base) ln_progress(model->context, "putting weights on the device", i, model->hyper.layers);
        for (int b = 0; b < model->layers[i].count; b++, block++)
            place_block(p, &model->layers[i].block[b], i, p->memory.base ? &on->blocks[block] : &counted);
    }
    on->count = block;
}

uint64_t ln_cuda_weights_bytes(const linnet_model *model) {
    ln_cuda_model on = {0};
    placing p = {.model = (linnet_model *)(uintptr_t)model, .on = &on};
    place_all(&p);
    return p.memory.used + STAGE_BYTES;
}

static linnet_status fill(linnet_model *model, ln_cuda_model *on) {
    char *stage = on->memory + on->bytes - STAGE_BYTES;
    placing p = {.model = model, .on = on, .memory = {.base = on->memory}, .stage = stage};
    place_all(&p);
    try_code(&p, ln_cuda_wait(on->stream));
    ln_release(model->context, p.decoded);
    ln_progress(model->context, "putting weights on the device", model->hyper.layers, model->hyper.layers);
    return p.status;
}

static linnet_status open_on(linnet_model *model, const ln_cuda_device *device) {
    linnet_context *context = model->context;
    ln_cuda_model *on = model->on_device;
    ln_cuda_model counted = {0};
    placing p = {.model = model, .on = &counted};
    char why[LN_CUDA_WHY] = "";
    place_all(&p);
    on->device = *device;
    on->bytes = ln_cuda_weights_bytes(model);
    on->blocks = ln_allocate_zero(context, (uint64_t)counted.count, sizeof *on->blocks, "blocks on the device");
    if (!on->blocks) return LINNET_ERROR_MEMORY;
    LN_CUDA_TRY(context, ln_cuda_use(device->index), "choosing the GPU");
    LN_CUDA_TRY(context, ln_cuda_stream_open(&on->stream), "opening a stream");
    LN_CUDA_TRY(context, ln_cuda_allocate(on->bytes, (void **)&on->memory), "making room for the weights");
    on->library = ln_cuda_library_open(why);
    if (!on->library) ln_log(context, LINNET_LOG_INFO, "%s", why);
    return fill(model, on);
}

linnet_status ln_cuda_weights_open(linnet_model *model, const ln_cuda_device *device) {
    if (model->on_device) return LINNET_OK;
    model->on_device = ln_allocate_zero(model->context, 1, sizeof(ln_cuda_model), "model on the device");
    if (!model->on_device) return LINNET_ERROR_MEMORY;
    const linnet_status status = open_on(model, device);
    if (status != LINNET_OK) ln_cuda_weights_close(model);
    return status;
}

void ln_cuda_weights_close(linnet_model *model) {
    ln_cuda_model *on = model->on_device;
    if (!on) return;
    ln_cuda_library_close(on->library);
    ln_cuda_release(on->memory);
    ln_cuda_stream_close(on->stream);
    ln_release(model->context, on->blocks);
    ln_release(model->context, on);
    model->on_device = NULL;
}
