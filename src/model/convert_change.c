/* Owns: the differences between a folder and GGUF that are neither names nor the order of rotary rows, each a row of a
 * table and a trait of the architecture:
 *
 *     (any)           experts that are tensors one by one become one tensor of three dimensions
 *     LN_GATES_APART  gate and up projections that lie in one tensor (of each expert) become two
 *     LN_MULTIPLIED   numbers that multiply what products give go into their weights
 *     LN_MAMBA2       vectors of a Mamba-2 mixer have one axis more */
#include "model/convert_change.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"

/* The name after "blk.N.", or the whole name; *layer: as many characters before it. */
static const char *part_of(const char *name, int *layer) {
    int number;
    *layer = 0;
    if (sscanf(name, "blk.%5d.%n", &number, layer) != 1) *layer = 0;
    return name + *layer;
}

const unsigned char *ln_change_row(const ln_change *change, const void *data, int64_t row, size_t bytes) {
    if (change->stack) {
        data = change->stack[row / change->stack_rows];
        row %= change->stack_rows;
    } else if (change->rows) {
        row = row / change->rows * change->of + change->first + row % change->rows;
    }
    return (const unsigned char *)data + (size_t)row * bytes;
}

float ln_change_factor(const ln_change *change, int64_t row) {
    for (int i = 0; i < change->factors; i++)
        if (row < change->end[i]) return change->factor[i];
    return 1;
}

/* ---- numbers that go into weights ---- */

static const struct factor_row {
    const char *part, *key;
} factor_rows[] = {{"token_embd.", "embedding_scale"},       {"output.", "logit_scale"},
                   {"attn_k.", "attention.scale"},           {"attn_output.", "attention.output_scale"},
                   {"ssm_in.", "ssm.input_scale"},           {"ssm_out.", "ssm.output_scale"},
                   {"ffn_gate.", "feed_forward.gate_scale"}, {"ffn_down.", "feed_forward.output_scale"}};

bool ln_changes_spend(const ln_changes *changes, const ln_key *key) {
    const char *dot = strchr(key->name, '.');
    for (size_t i = 0; changes->multiplied && dot && i < sizeof factor_rows / sizeof *factor_rows; i++)
        if (strcmp(dot + 1, factor_rows[i].key) == 0) return true;
    return false;
}

static void split_projection(const linnet_file *file, const ln_key *key, ln_change *change) {
    const int64_t inner = ln_key_integer(ln_file_key_of(file, "ssm.inner_size"), 0, 0),
                  shared = ln_key_integer(ln_file_key_of(file, "ssm.state_size"), 0, 0) *
                           ln_key_integer(ln_file_key_of(file, "ssm.group_count"), 0, 1);
    const int64_t ends[LN_CHANGE_FACTORS] = {inner, 2 * inner, 2 * inner + shared, 2 * (inner + shared), INT64_MAX};
    change->factors = LN_CHANGE_FACTORS;
    for (int i = 0; i < LN_CHANGE_FACTORS; i++) {
        change->end[i] = ends[i];
        change->factor[i] = (float)ln_key_number(key, (uint64_t)i, 1);
    }
}

/* Scores are scaled by attention.scale, which readers of the weights take to be 1 / sqrt(head). Logits are divided. */
static void multiply(const linnet_file *file, const char *part, ln_change *change) {
    for (size_t i = 0; i < sizeof factor_rows / sizeof *factor_rows; i++) {
        const struct factor_row *row = &factor_rows[i];
        const ln_key *key = ln_file_key_of(file, row->key);
        if (!key || strncmp(part, row->part, strlen(row->part)) != 0) continue;
        if (key->array) {
            split_projection(file, key, change);
            return;
        }
        double factor = ln_key_number(key, 0, 1);
        if (strcmp(row->key, "logit_scale") == 0) factor = 1 / factor;
        if (strcmp(row->key, "attention.scale") == 0)
            factor *= sqrt((double)ln_key_integer(ln_file_key_of(file, "attention.key_length"), 0, 1));
        change->factors = 1;
        change->end[0] = INT64_MAX;
        change->factor[0] = (float)factor;
        return;
    }
}

/* ---- gates ---- */

static const struct gate_row {
    const char *both, *gate, *up;
} gate_rows[] = {{"ffn_up.weight", "ffn_gate.weight", "ffn_up.weight"},
                 {"ffn_up_shexp.weight", "ffn_gate_shexp.weight", "ffn_up_shexp.weight"},
                 {"ffn_gate_up_exps.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"}};

static char *name_of(ln_changes *changes, const char *name, int layer, const char *part) {
    char *made = changes->names[changes->count];
    snprintf(made, sizeof *changes->names, "%.*s%s", layer, name, part);
    return made;
}

static void add_half(ln_changes *changes, const linnet_tensor_info *tensor, int layer, const char *part, int half) {
    ln_change *change = &changes->list[changes->count];
    *change = (ln_change){.tensor = *tensor, .rows = tensor->size[1] / 2, .of = tensor->size[1]};
    change->first = half * change->rows;
    change->tensor.name = name_of(changes, tensor->name, layer, part);
    change->tensor.size[1] /= 2;
    change->tensor.bytes /= 2;
    changes->count++;
}

/* Whether the tensor was two in one. */
static bool divide(const linnet_file *file, ln_changes *changes, const linnet_tensor_info *tensor) {
    int layer;
    const char *part = part_of(tensor->name, &layer);
    for (size_t i = 0; i < sizeof gate_rows / sizeof *gate_rows; i++) {
        if (strcmp(part, gate_rows[i].both) != 0 || tensor->dimensions < 2 || tensor->size[1] % 2 != 0) continue;
        if (ln_file_find(file, name_of(changes, tensor->name, layer, gate_rows[i].gate))) return false;
        add_half(changes, tensor, layer, gate_rows[i].gate, 0);
        add_half(changes, tensor, layer, gate_rows[i].up, 1);
        return true;
    }
    return false;
}

/* ---- experts ---- */

/* Of "blk.N.ffn_gate.0.weight": the characters before the last number. 0: it is no such name. */
static int stem_of(const char *name) {
    int layer, expert = -1, end = 0, used = 0;
    char what[8];
    const char *part = part_of(name, &layer);
    if (sscanf(part, "ffn_%7[a-z].%n%5d.weight%n", what, &end, &expert, &used) != 2 || part[used] || expert != 0 ||
        strncmp(part + end, "0.", 2) != 0)
        return 0;
    return layer + end;
}

/* Marks and notes all experts of the first, if they are alike. */
static void find_stack(const linnet_file *file, ln_changes *changes, const linnet_tensor_info *first) {
    const int stem = stem_of(first->name);
    if (!stem || first->dimensions != 2) return;
    char name[128];
    int64_t count = 0;
    for (;; count++) {
        snprintf(name, sizeof name, "%.*s%lld.weight", stem, first->name, (long long)count);
        const linnet_tensor_info *tensor = ln_file_find(file, name);
        if (!tensor) break;
        if (tensor->type != first->type || tensor->dimensions != 2 || tensor->size[0] != first->size[0] ||
            tensor->size[1] != first->size[1])
            return;
    }
    for (int64_t e = 0; e < count; e++) {
        snprintf(name, sizeof name, "%.*s%lld.weight", stem, first->name, (long long)e);
        changes->taken[ln_file_find(file, name) - file->tensors] = true;
    }
}

static void add_stack(const linnet_file *file, ln_changes *changes, const linnet_tensor_info *first) {
    const int stem = stem_of(first->name);
    if (!stem) return;
    char name[128], *made = changes->names[changes->count];
    ln_change *change = &changes->list[changes->count++];
    *change =
        (ln_change){.tensor = *first, .stack = changes->stacked + changes->stacked_count, .stack_rows = first->size[1]};
    int64_t count = 0;
    for (;; count++) {
        snprintf(name, sizeof name, "%.*s%lld.weight", stem, first->name, (long long)count);
        const linnet_tensor_info *tensor = ln_file_find(file, name);
        if (!tensor) break;
        changes->stacked[changes->stacked_count++] = tensor->data;
    }
    snprintf(made, sizeof *changes->names, "%.*s_exps.weight", stem - 1, first->name);
    change->tensor.name = made;
    change->tensor.dimensions = 3;
    change->tensor.size[2] = count;
    change->tensor.bytes *= (uint64_t)count;
}

/* ---- shapes ---- */

static void shape(const linnet_file *file, const char *part, linnet_tensor_info *tensor) {
    if (tensor->dimensions != 1) return;
    const int64_t n = tensor->size[0], groups = ln_key_integer(ln_file_key_of(file, "ssm.group_count"), 0, 1);
    int64_t across = 0;
    if (strcmp(part, "ssm_a") == 0 || strcmp(part, "ssm_d") == 0) across = n;
    if (strcmp(part, "ssm_norm.weight") == 0 && groups >= 1 && n % groups == 0) across = groups;
    if (across == 0) return;
    tensor->dimensions = 2;
    tensor->size[0] = n / across;
    tensor->size[1] = across;
}

/* ---- all of a file ---- */

static void add_one(const linnet_file *file, unsigned traits, ln_changes *changes, const linnet_tensor_info *tensor) {
    int layer;
    const char *part = part_of(tensor->name, &layer);
    ln_change *change = &changes->list[changes->count++];
    *change = (ln_change){.tensor = *tensor};
    if (traits & LN_MULTIPLIED) multiply(file, part, change);
    if (traits & LN_MAMBA2) shape(file, part, &change->tensor);
}

static void add(const linnet_file *file, unsigned traits, ln_changes *changes, const linnet_tensor_info *tensor) {
    if (changes->taken[tensor - file->tensors]) {
        add_stack(file, changes, tensor);
        return;
    }
    if (traits & LN_GATES_APART && divide(file, changes, tensor)) return;
    add_one(file, traits, changes, tensor);
}

/* Others ask for the first layer's maps of values of RWKV-7, which nobody uses: those of rates stand in. */
static void add_unused(const linnet_file *file, unsigned traits, ln_changes *changes) {
    for (int i = 0; i < 3; i++) {
        char name[48];
        snprintf(name, sizeof name, "blk.0.time_mix_a%d.weight", i);
        const linnet_tensor_info *rate = ln_file_find(file, name);
        snprintf(name, sizeof name, "time_mix_v%d.weight", i);
        if (!rate) return;
        linnet_tensor_info value = *rate;
        value.name = name_of(changes, rate->name, (int)strlen("blk.0."), name);
        if (!ln_file_find(file, value.name)) add_one(file, traits, changes, &value);
    }
}

linnet_status ln_changes_open(linnet_context *context, const linnet_file *file, const ln_architecture *architecture,
                              ln_changes *changes) {
    const unsigned traits = file->huggingface && architecture ? architecture->traits : 0;
    const uint64_t most = 2 * (uint64_t)file->tensor_count + 1;
    *changes = (ln_changes){.context = context, .multiplied = traits & LN_MULTIPLIED};
    changes->list = ln_allocate(context, most, sizeof *changes->list, "list of tensors");
    changes->names = ln_allocate(context, most, sizeof *changes->names, "names of tensors");
    changes->stacked = ln_allocate(context, most, sizeof *changes->stacked, "list of tensors");
    changes->taken = ln_allocate_zero(context, most, sizeof *changes->taken, "list of tensors");
    if (!changes->list || !changes->names || !changes->stacked || !changes->taken) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; file->huggingface && i < file->tensor_count; i++) find_stack(file, changes, &file->tensors[i]);
    for (int64_t i = 0; i < file->tensor_count; i++) add(file, traits, changes, &file->tensors[i]);
    if (file->huggingface) add_unused(file, traits, changes);
    /* One matrix cannot hold the embedding's factor and the head's. */
    const linnet_tensor_info *embedding = ln_file_find(file, "token_embd.weight");
    if (!changes->multiplied || !embedding || ln_file_find(file, "output.weight")) return LINNET_OK;
    linnet_tensor_info head = *embedding;
    head.name = "output.weight";
    add_one(file, traits, changes, &head);
    return LINNET_OK;
}

void ln_changes_close(ln_changes *changes) {
    ln_release(changes->context, changes->list);
    ln_release(changes->context, changes->names);
    ln_release(changes->context, changes->stacked);
    ln_release(changes->context, changes->taken);
}
