/* Owns: finding, checking and running the gates of a model (equation in gate.h).
 *
 * Invariant: an open gate has in every layer matrices of the model's sizes that lie whole in a mapped file; running
 * checks nothing. */
#include "model/gate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "model/file.h"

static const char *const parts[] = {"attn_keep_up.weight", "attn_keep_up.bias", "attn_keep_down.weight",
                                    "attn_keep_down.bias"};
enum { UP, UP_BIAS, DOWN, DOWN_BIAS, PARTS };

bool ln_gate_owns(const char *name) {
    for (int i = 0; i < PARTS; i++)
        if (!strcmp(name, parts[i])) return true;
    return false;
}

/* ---- opening ---- */

static const linnet_tensor_info *find(const linnet_file *file, int64_t layer, int part) {
    char name[64];
    snprintf(name, sizeof name, "blk.%lld.%s", (long long)layer, parts[part]);
    return ln_file_find(file, name);
}

static linnet_status wrong(const ln_gate *gate, const linnet_file *file, int64_t layer, int part, const char *what) {
    return ln_fail(gate->context, LINNET_ERROR_FORMAT, "%s: the gate's tensor blk.%lld.%s %s", file->path,
                   (long long)layer, parts[part], what);
}

static linnet_status check(const ln_gate *gate, const linnet_file *file, int64_t layer, int part, int64_t rows,
                           int64_t columns, const linnet_tensor_info **tensor) {
    const linnet_tensor_info *found = *tensor = find(file, layer, part);
    if (!found) return wrong(gate, file, layer, part, "is missing");
    const int64_t found_rows = found->dimensions > 1 ? found->size[1] : 1;
    if (found->dimensions > 2 || found->size[0] != columns || found_rows != rows)
        return wrong(gate, file, layer, part, "has not the size that the model asks for");
    if (ln_format_bytes(found->type, columns) == 0)
        return wrong(gate, file, layer, part, "has rows that are no whole blocks of its type");
    if ((uintptr_t)found->data % (found->type == LINNET_F32 ? 4 : 2) != 0)
        return wrong(gate, file, layer, part, "starts at an odd byte");
    return LINNET_OK;
}

/* As float32, finite: a score that is no number would have no order. */
static linnet_status take_vector(ln_gate *gate, linnet_file *file, int64_t layer, int part, int64_t rows,
                                 int64_t columns, const float **vector) {
    const linnet_tensor_info *tensor;
    const linnet_status status = check(gate, file, layer, part, rows, columns, &tensor);
    if (status != LINNET_OK) return status;
    const int64_t values = rows * columns;
    float *copy = ln_file_own(file, (uint64_t)values, sizeof *copy, "gate");
    if (!copy) return LINNET_ERROR_MEMORY;
    ln_format_of(tensor->type)->decode(tensor->data, copy, values);
    for (int64_t i = 0; i < values; i++)
        if (!isfinite(copy[i])) return wrong(gate, file, layer, part, "holds what is no finite number");
    *vector = copy;
    return LINNET_OK;
}

static linnet_status take_layer(ln_gate *gate, linnet_file *file, int64_t i) {
    ln_gate_layer *layer = &gate->layer[i];
    const linnet_tensor_info *up;
    linnet_status status = check(gate, file, i, UP, gate->hidden, gate->width, &up);
    if (status != LINNET_OK) return status;
    layer->up = (ln_matrix){up->type, gate->hidden, gate->width, up->data};
    status = take_vector(gate, file, i, UP_BIAS, 1, gate->hidden, &layer->up_bias);
    if (status == LINNET_OK) status = take_vector(gate, file, i, DOWN, gate->heads, gate->hidden, &layer->down);
    if (status == LINNET_OK) status = take_vector(gate, file, i, DOWN_BIAS, 1, gate->heads, &layer->down_bias);
    return status;
}

/* A table [layers][heads]; NULL where the file has none. */
static linnet_status take_table(const ln_gate *gate, const linnet_file *file, const char *name, float **table) {
    const ln_key *key = ln_file_key(file, name);
    if (!key) return LINNET_OK;
    const uint64_t count = (uint64_t)(gate->layers * gate->heads);
    if (!key->array || key->count != count)
        return ln_fail(gate->context, LINNET_ERROR_FORMAT, "%s: %s must hold a number for each of %llu heads",
                       file->path, name, (unsigned long long)count);
    *table = ln_allocate(gate->context, count, sizeof **table, "gate");
    if (!*table) return LINNET_ERROR_MEMORY;
    for (uint64_t i = 0; i < count; i++) {
        const float value = (*table)[i] = (float)ln_key_number(key, i, -1);
        if (!(value >= 0) || isinf(value))
            return ln_fail(gate->context, LINNET_ERROR_FORMAT, "%s: %s must hold finite numbers that are not negative",
                           file->path, name);
    }
    return LINNET_OK;
}

static linnet_status take_gate(ln_gate *gate, linnet_file *file) {
    const linnet_tensor_info *first = find(file, 0, UP);
    gate->hidden = first && first->dimensions == 2 ? first->size[1] : 0;
    if (gate->hidden < 1 || gate->hidden > LN_GATE_HIDDEN_MOST)
        return wrong(gate, file, 0, UP, "is missing or has not from 1 to 1024 rows");
    gate->layer = ln_allocate_zero(gate->context, (uint64_t)gate->layers, sizeof *gate->layer, "gate");
    if (!gate->layer) return LINNET_ERROR_MEMORY;
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; status == LINNET_OK && i < gate->layers; i++) status = take_layer(gate, file, i);
    if (status == LINNET_OK) status = take_table(gate, file, "linnet.gate.share", &gate->share);
    if (status == LINNET_OK) status = take_table(gate, file, "linnet.gate.importance", &gate->importance);
    return status;
}

linnet_status ln_gate_open(linnet_context *context, linnet_file *file, int64_t layers, int64_t width, int64_t heads,
                           ln_gate **gate) {
    *gate = NULL;
    linnet_file *beside = NULL;
    const bool own = find(file, 0, UP) != NULL;
    linnet_status status = own ? LINNET_OK : ln_file_open_beside(context, file->path, "gate", &beside);
    if (status != LINNET_OK || (!own && !beside)) return status;
    ln_gate *made = ln_allocate_zero(context, 1, sizeof *made, "gate");
    if (!made) {
        linnet_file_close(beside);
        return LINNET_ERROR_MEMORY;
    }
    *made = (ln_gate){.context = context, .beside = beside, .layers = layers, .width = width, .heads = heads};
    status = take_gate(made, own ? file : beside);
    if (status == LINNET_OK)
        *gate = made;
    else
        ln_gate_close(made);
    return status;
}

void ln_gate_close(ln_gate *gate) {
    if (!gate) return;
    linnet_context *context = gate->context;
    linnet_file_close(gate->beside);
    ln_release(context, gate->share);
    ln_release(context, gate->importance);
    ln_release(context, gate->layer);
    ln_release(context, gate);
}

/* ---- running ---- */

typedef struct gate_rows {
    const ln_gate *gate;
    const ln_gate_layer *layer;
    const ln_kernels *kernels;
    float *hidden, *score;
    const float *ones;
} gate_rows;

static void run_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const gate_rows *r = argument;
    const int64_t n = r->gate->hidden, heads = r->gate->heads;
    float *hidden = r->hidden + token * n;
    r->kernels->vector.add(hidden, r->layer->up_bias, n);
    r->kernels->vector.silu_multiply(hidden, hidden, r->ones, n);
    for (int64_t head = 0; head < heads; head++) {
        const float *down = r->layer->down + head * n;
        double sum = (double)r->layer->down_bias[head];
        for (int64_t i = 0; i < n; i++) sum += (double)down[i] * (double)hidden[i];
        r->score[token * heads + head] = (float)sum;
    }
}

static uint64_t hidden_bytes(const ln_gate *gate, int64_t tokens) {
    return ln_round_up((uint64_t)(tokens + 1) * (uint64_t)gate->hidden * sizeof(float), 64);
}

uint64_t ln_gate_workspace(const ln_gate *gate, const ln_kernels *kernels, int threads, int64_t tokens) {
    return hidden_bytes(gate, tokens) + ln_matmul_workspace(kernels, threads, tokens, gate->width);
}

void ln_gate_run(const ln_gate *gate, const ln_kernels *kernels, ln_team *team, int64_t layer, const float *h,
                 int64_t tokens, float *score, void *workspace) {
    const ln_gate_layer *l = &gate->layer[layer];
    float *ones = workspace, *hidden = ones + gate->hidden;
    for (int64_t i = 0; i < gate->hidden; i++) ones[i] = 1;
    void *scratch = (unsigned char *)workspace + hidden_bytes(gate, tokens);
    const ln_product product = {&l->up, hidden, gate->hidden};
    ln_matmul(kernels, team, &product, 1, h, gate->width, tokens, true, scratch);
    gate_rows rows = {.gate = gate, .layer = l, .kernels = kernels, .hidden = hidden, .score = score, .ones = ones};
    ln_parallel(team, tokens, run_row, &rows);
}
