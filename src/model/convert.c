/* Owns: linnet_convert: any model file to GGUF v3.
 *
 * Each tensor is cut into pieces of at most PIECE values, whole rows where they are shorter: a team of threads decodes
 * pieces to float32 and encodes them, a batch at a time, and the batch is written. So memory is some 512 KiB for each
 * thread and piece of a batch, whatever the model's size, and the bytes do not depend on the number of threads. What
 * has the wanted type already is copied bit for bit.
 *
 * Types: vectors become F32, as what recurrences and routers read; matrices the type asked for, except that Q4_0 keeps
 * the embedding and the output matrix at Q8_0 (a small part of the bytes, where errors cost most), and that rows no
 * multiple of the block become F16.
 *
 * Rotary order: Hugging Face pairs value i of a head with value i + n/2; llama-like architectures in GGUF pair
 * neighbours. So in each head row 2i + j of the output is row j n/2 + i of the source, for the n rows that rotate. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/architecture.h"
#include "model/convert_change.h"
#include "model/convert_heads.h"
#include "model/gguf_write.h"
#include "number/format.h"

enum {
    PIECE = 65536,           /* values; a multiple of every block */
    PIECES_PER_THREAD = 2,   /* in a batch */
    QUANTIZATION_VERSION = 2 /* of GGUF's block formats */
};

/* What each type is called in general.file_type. */
static const struct target_row {
    linnet_type type;
    int file_type;
    linnet_type ends; /* of the embedding and the output matrix */
} targets[] = {{LINNET_F32, 0, LINNET_F32},
               {LINNET_F16, 1, LINNET_F16},
               {LINNET_Q4_0, 2, LINNET_Q8_0},
               {LINNET_Q8_0, 7, LINNET_Q8_0},
               {LINNET_BF16, 32, LINNET_BF16}};

static const char key_value_heads_key[] = "attention.head_count_kv";

/* Weights whose rows are in rotary order, and the key that tells how many heads they have; NULL: one. */
static const struct rotary_row {
    const char *part, *heads;
} rotary_rows[] = {{".attn_q.", "attention.head_count"},
                   {".attn_k.", key_value_heads_key},
                   {".attn_q_norm.", NULL},
                   {".attn_k_norm.", NULL}};

typedef struct job {
    linnet_context *context;
    const linnet_file *file;
    const ln_architecture *architecture; /* NULL: not known */
    ln_heads *heads;                     /* where key-value heads are merged */
    ln_changes changes;                  /* what is written */
    const struct target_row *target;
    linnet_convert_settings settings;
    ln_gguf_writer writer;
    ln_output output;
    float *values;         /* [threads, PIECE] */
    unsigned char *blocks; /* [batch, PIECE * 4] */
    uint64_t done, total;  /* bytes of source tensors */
    bool interleaves;
} job;

/* One tensor on its way. */
typedef struct plan {
    job *work;
    const linnet_tensor_info *source;
    const ln_change *change;
    const ln_format *from, *to;
    int64_t row, rows;     /* values of a row */
    int64_t head, rotated; /* rows of a head, rows of it in rotary order; head 0: none */
    int64_t piece_rows;    /* rows of a piece; 1 where a row is cut */
    int64_t cuts;          /* pieces of a row */
    int64_t pieces, first; /* first piece of this batch */
    _Atomic bool overflow; /* a value that F16 cannot hold */
} plan;

#define FAIL(context, status, ...) ln_fail(context, LINNET_ERROR_##status, __VA_ARGS__)

/* ---- which type, which order ---- */

static const struct target_row *find_target(linnet_type type) {
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        if (targets[i].type == type) return &targets[i];
    return NULL;
}

/* In the names of what is no matrix of a large product, or decides which of them are made. */
static const char *const kept[] = {"_norm.",         "ffn_gate_inp.", "conv1d.",     "conv.weight",
                                   "time_mix_first", "time_mix_lerp", "time_mix_w",  "time_mix_a",
                                   "time_mix_v",     "time_mix_g",    "time_mix_r_k"};

static bool stays_f32(const linnet_tensor_info *tensor) {
    const char *dot = strrchr(tensor->name, '.');
    if (tensor->dimensions == 1 || !dot || strcmp(dot, ".weight") != 0) return true;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (strncmp(tensor->name, "blk.", 4) == 0 && strstr(tensor->name, kept[i])) return true;
    return false;
}

static linnet_type target_type(const job *work, const linnet_tensor_info *tensor) {
    if (stays_f32(tensor)) return LINNET_F32;
    const bool end = strcmp(tensor->name, "token_embd.weight") == 0 || strcmp(tensor->name, "output.weight") == 0;
    const linnet_type type = end ? work->target->ends : work->target->type;
    return ln_format_bytes(type, tensor->size[0]) ? type : LINNET_F16;
}

static uint64_t target_bytes(linnet_type type, const linnet_tensor_info *tensor) {
    return ln_format_bytes(type, tensor->size[0]) * (uint64_t)(tensor->size[1] * tensor->size[2] * tensor->size[3]);
}

static linnet_status plan_rotary(plan *p) {
    const job *work = p->work;
    const char *name = p->source->name;
    for (size_t i = 0; i < sizeof rotary_rows / sizeof *rotary_rows && work->interleaves; i++) {
        if (strncmp(name, "blk.", 4) != 0 || !strstr(name, rotary_rows[i].part)) continue;
        if (p->source->dimensions == 1) {
            p->rows = p->row;
            p->row = 1;
        }
        const char *key = rotary_rows[i].heads;
        const ln_key *said = key ? ln_file_key_of(work->file, key) : NULL;
        const long layer = said && said->array ? strtol(name + 4, NULL, 10) : 0;
        int64_t heads = key ? ln_key_integer(said, (uint64_t)layer, 0) : 1;
        if (work->heads && key && strcmp(key, key_value_heads_key) == 0) heads = work->settings.key_value_heads;
        if (heads < 1 || p->rows % heads != 0)
            return FAIL(work->context, FORMAT, "%s: the weight '%s' has %lld rows, no multiple of its %lld heads",
                        work->file->path, name, (long long)p->rows, (long long)heads);
        p->head = p->rows / heads;
        p->rotated = ln_key_integer(ln_file_key_of(work->file, "rope.dimension_count"), 0, p->head);
        if (p->rotated < 0 || p->rotated > p->head || p->rotated % 2 != 0)
            return FAIL(work->context, FORMAT, "%s: %lld of the %lld rows of a head of '%s' would rotate",
                        work->file->path, (long long)p->rotated, (long long)p->head, name);
        return LINNET_OK;
    }
    return LINNET_OK;
}

/* Where row `row` lies in the source, whose rows are of `bytes` bytes. */
static const unsigned char *source_row(const plan *p, int64_t row, size_t bytes) {
    if (p->head == 0) return ln_change_row(p->change, p->source->data, row, bytes);
    const int64_t in_head = row % p->head;
    if (in_head < p->rotated) row += in_head % 2 * (p->rotated / 2) + in_head / 2 - in_head;
    return (const unsigned char *)p->source->data + (size_t)row * bytes;
}

/* ---- pieces ---- */

/* Rows and values of a row that piece `index` covers. */
typedef struct piece {
    int64_t row, rows, column, columns;
} piece;

static piece piece_at(const plan *p, int64_t index) {
    const int64_t row = index / p->cuts * p->piece_rows, column = index % p->cuts * PIECE;
    return (piece){row, ln_min_i64(p->piece_rows, p->rows - row), column, ln_min_i64(p->row - column, PIECE)};
}

static size_t piece_bytes(const plan *p, piece part) {
    return (size_t)(part.rows * part.columns / p->to->block * p->to->bytes);
}

static void convert_piece(void *argument, int64_t task, int worker) {
    plan *p = argument;
    const piece part = piece_at(p, p->first + task);
    const size_t from_row = (size_t)(p->row / p->from->block * p->from->bytes);
    const size_t from_column = (size_t)(part.column / p->from->block * p->from->bytes);
    const size_t to_row = (size_t)(part.columns / p->to->block * p->to->bytes);
    unsigned char *blocks = p->work->blocks + (size_t)task * PIECE * 4;
    float *values = p->work->values + (size_t)worker * PIECE;
    for (int64_t i = 0; i < part.rows; i++) {
        const unsigned char *from = source_row(p, part.row + i, from_row) + from_column;
        const float factor = ln_change_factor(p->change, part.row + i);
        if (p->from == p->to && factor == 1) {
            memcpy(blocks + (size_t)i * to_row, from, to_row);
            continue;
        }
        p->from->decode(from, values, part.columns);
        for (int64_t k = 0; k < part.columns && factor != 1; k++) values[k] *= factor;
        p->to->encode(values, blocks + (size_t)i * to_row, part.columns);
        if (p->to == ln_format_of(LINNET_F16))
            for (int64_t k = 0; k < part.columns; k++) {
                uint16_t half;
                memcpy(&half, blocks + (size_t)i * to_row + 2 * k, sizeof half);
                if ((half & 0x7fff) == 0x7c00 && isfinite(values[k])) p->overflow = true;
            }
    }
}

static linnet_status plan_tensor(job *work, const linnet_tensor_info *tensor, const ln_change *change, plan *p) {
    memset(p, 0, sizeof *p);
    p->work = work;
    p->source = tensor;
    p->change = change;
    p->from = ln_format_of(tensor->type);
    p->to = ln_format_of(target_type(work, tensor));
    p->row = tensor->size[0];
    p->rows = tensor->size[1] * tensor->size[2] * tensor->size[3];
    const linnet_status status = plan_rotary(p);
    p->piece_rows = ln_max_i64(1, PIECE / p->row);
    p->cuts = ln_ceil_div(p->row, PIECE);
    p->pieces = ln_ceil_div(p->rows, p->piece_rows) * p->cuts;
    return status;
}

static linnet_status write_tensor(job *work, const linnet_tensor_info *tensor, const ln_change *change) {
    plan p;
    linnet_status status = plan_tensor(work, tensor, change, &p);
    if (status != LINNET_OK) return status;
    const int64_t batch = (int64_t)ln_team_size(work->context->team) * PIECES_PER_THREAD;
    for (p.first = 0; p.first < p.pieces; p.first += batch) {
        if (ln_interrupted(work->context))
            return ln_fail(work->context, LINNET_INTERRUPTED, "converting %s was interrupted; nothing was written",
                           work->file->path);
        const int64_t tasks = ln_min_i64(batch, p.pieces - p.first);
        ln_parallel(work->context->team, tasks, convert_piece, &p);
        if (p.overflow)
            return FAIL(work->context, UNSUPPORTED,
                        "%s: the weight '%s' holds values beyond 65504, which f16 cannot store; convert to bf16 or f32",
                        work->file->path, tensor->name);
        for (int64_t i = 0; i < tasks; i++)
            ln_output_write(&work->output, work->blocks + (size_t)i * PIECE * 4,
                            piece_bytes(&p, piece_at(&p, p.first + i)));
        if (work->output.error) return LINNET_OK; /* told by closing */
        ln_progress(work->context, "converting",
                    (int64_t)(work->done + tensor->bytes / (uint64_t)p.pieces * (uint64_t)(p.first + tasks)),
                    (int64_t)work->total);
    }
    ln_gguf_pad(&work->output);
    work->done += tensor->bytes;
    return LINNET_OK;
}

/* ---- the file ---- */

/* The caller's texts come first, because the first value of a name stands; a key that is no text is not theirs. */
static linnet_status write_given_keys(job *work, ln_key_writer *keys) {
    static const char *const ours[] = {"general.architecture", "general.file_type", "general.quantization_version",
                                       "general.alignment"};
    for (int64_t i = 0; i < work->settings.key_count; i++) {
        const linnet_text_key *given = &work->settings.keys[i];
        const ln_key *held = ln_file_key(work->file, given->name);
        bool refused = !*given->name || !ln_printable(given->name, strlen(given->name)) ||
                       (held && (held->array || held->kind != LN_TEXT));
        for (size_t k = 0; k < sizeof ours / sizeof *ours; k++) refused |= strcmp(given->name, ours[k]) == 0;
        if (refused)
            return FAIL(work->context, ARGUMENT,
                        "the key '%.64s' cannot be set: only texts can, and not those that say how to read the file",
                        given->name);
        ln_write_text(keys, given->name, given->value, strlen(given->value));
    }
    return LINNET_OK;
}

static linnet_status collect_keys(job *work) {
    const linnet_file *file = work->file;
    ln_key_writer *keys = &work->writer.keys;
    const linnet_status given = write_given_keys(work, keys);
    if (given != LINNET_OK) return given;
    const ln_key *architecture = ln_file_key(file, "general.architecture");
    if (architecture) ln_write_key(keys, architecture);
    if (work->heads) {
        const ln_text name = ln_key_text(architecture, 0);
        char key[128];
        snprintf(key, sizeof key, "%.*s.%s", (int)ln_min_i64((int64_t)name.bytes, 64), name.data, key_value_heads_key);
        ln_write_integer(keys, key, LN_U32, work->settings.key_value_heads);
    }
    ln_write_integer(keys, "general.file_type", LN_U32, work->target->file_type);
    ln_write_integer(keys, "general.quantization_version", LN_U32, QUANTIZATION_VERSION);
    ln_write_integer(keys, "general.alignment", LN_U32, LN_GGUF_ALIGNMENT);
    bool tokenizer_said = false;
    if (file->huggingface && ln_file_key(file, "tokenizer.huggingface.json")) {
        const linnet_status status = ln_tokenizer_keys(work->context, file, keys);
        if (status == LINNET_ERROR_UNSUPPORTED)
            ln_log(work->context, LINNET_LOG_WARNING,
                   "the tokenizer has no form in GGUF, so that only Linnet will read it from the output: %s",
                   linnet_last_error(work->context));
        else if (status != LINNET_OK)
            return status;
        tokenizer_said = status == LINNET_OK;
    }
    /* ln_tokenizer_keys carries the files of the tokenizer itself where GGUF's keys are not enough. */
    for (int64_t i = 0; i < file->key_count; i++)
        if ((!tokenizer_said || strncmp(file->keys[i].name, "tokenizer.huggingface.", 22) != 0) &&
            !ln_changes_spend(&work->changes, &file->keys[i]))
            ln_write_key(keys, &file->keys[i]);
    return ln_key_writer_status(keys);
}

static linnet_status check_source(job *work) {
    const ln_text name = ln_key_text(ln_file_key(work->file, "general.architecture"), 0);
    const ln_architecture *architecture = name.data ? ln_architecture_find(name.data, name.bytes) : NULL;
    work->architecture = architecture;
    work->interleaves = work->file->huggingface && architecture && architecture->traits & LN_ROPE_INTERLEAVED;
    if (!name.data)
        return FAIL(work->context, UNSUPPORTED,
                    "%s does not say what architecture it is for; give the folder of the model", work->file->path);
    if (work->file->huggingface && !architecture) {
        char known[256];
        ln_architecture_names(known, sizeof known);
        return FAIL(work->context, UNSUPPORTED, "%s: the architecture '%.*s' is not known; these are: %s",
                    work->file->path, (int)ln_min_i64((int64_t)name.bytes, 64), name.data, known);
    }
    return LINNET_OK;
}

static linnet_status write_file(job *work, const char *path) {
    const uint64_t threads = (uint64_t)ln_team_size(work->context->team);
    linnet_status status = collect_keys(work);
    if (status != LINNET_OK) return status;
    for (int64_t i = 0; i < work->changes.count; i++) {
        linnet_tensor_info tensor = work->changes.list[i].tensor;
        if (work->heads) ln_heads_changes(work->heads, &work->changes.list[i].tensor, &tensor);
        const linnet_type type = target_type(work, &tensor);
        ln_gguf_add_tensor(&work->writer, tensor.name, type, tensor.dimensions, tensor.size,
                           target_bytes(type, &tensor));
        work->total += tensor.bytes;
    }
    work->values = ln_allocate(work->context, threads * PIECE, sizeof *work->values, "values being converted");
    work->blocks = ln_allocate(work->context, threads * PIECES_PER_THREAD * PIECE, 4, "values being converted");
    if (!work->values || !work->blocks) return LINNET_ERROR_MEMORY;
    status = ln_output_open(work->context, path, &work->output);
    if (status != LINNET_OK) return status;
    status = ln_gguf_write_head(&work->writer, &work->output);
    for (int64_t i = 0; i < work->changes.count && status == LINNET_OK && !work->output.error; i++) {
        const ln_change *change = &work->changes.list[i];
        linnet_tensor_info tensor = change->tensor;
        if (work->heads && ln_heads_changes(work->heads, &change->tensor, &tensor))
            status = ln_heads_make(work->heads, &tensor);
        if (status == LINNET_OK) status = write_tensor(work, &tensor, change);
    }
    const linnet_status closed = ln_output_close(&work->output, status == LINNET_OK);
    return status == LINNET_OK ? closed : status;
}

linnet_convert_settings linnet_convert_settings_default(void) {
    return (linnet_convert_settings){.size = sizeof(linnet_convert_settings), .type = LINNET_Q8_0};
}

linnet_status linnet_convert(linnet_context *context, const char *source, const char *output,
                             const linnet_convert_settings *settings) {
    job work = {.context = context, .settings = linnet_convert_settings_default(), .changes = {.context = context}};
    if (settings)
        memcpy(&work.settings, settings, settings->size < sizeof work.settings ? settings->size : sizeof work.settings);
    const linnet_type type = work.settings.type;
    work.target = find_target(type);
    if (!work.target)
        return FAIL(context, ARGUMENT, "models are converted to f32, f16, bf16, q8_0 or q4_0, not to %s",
                    linnet_type_name(type) ? linnet_type_name(type) : "an unknown type");
    linnet_file *file;
    linnet_status status = linnet_file_open(context, source, &file);
    if (status != LINNET_OK) return status;
    work.file = file;
    work.writer = ln_gguf_writer_open(context);
    status = check_source(&work);
    if (status == LINNET_OK) status = ln_changes_open(context, file, work.architecture, &work.changes);
    if (status == LINNET_OK && work.settings.key_value_heads != 0)
        status = ln_heads_open(context, source, &work.settings, &work.heads);
    if (status == LINNET_OK) status = write_file(&work, output);
    ln_heads_close(work.heads);
    ln_changes_close(&work.changes);
    ln_release(context, work.values);
    ln_release(context, work.blocks);
    ln_gguf_writer_close(&work.writer);
    linnet_file_close(file);
    return status;
}
