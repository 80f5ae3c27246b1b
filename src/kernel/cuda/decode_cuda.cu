/* The host's side of decode attention on a GPU: which kernel, how many blocks, how large a workspace, and the launch.
 * What depends on lengths is left to the device. */
#include "kernel/cuda/decode_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>

#include "kernel/cuda/boxes_cuda.h"
#include "kernel/cuda/decode_layout.h"
#include "kernel/cuda/decode_table.h"
#include "kernel/cuda/decode_work.cuh"

const ln_cuda_decode_kernel *ln_cuda_decode_kernels(int row) {
    static const ln_cuda_decode_kernel none = {};
    const struct {
        const ln_cuda_decode_kernel *rows;
        int count;
    } tables[] = {{ln_cuda_decode_hopper_kernels, ln_cuda_decode_hopper_count},
                  {ln_cuda_decode_portable_kernels, ln_cuda_decode_portable_count},
                  {ln_cuda_decode_codes_portable_kernels, ln_cuda_decode_codes_portable_count},
                  {ln_cuda_decode_latent_portable_kernels, ln_cuda_decode_latent_portable_count}};
    for (int i = 0; i < (int)(sizeof tables / sizeof tables[0]) && row >= 0; row -= tables[i++].count)
        if (row < tables[i].count) return &tables[i].rows[row];
    return &none;
}

int64_t ln_cuda_tile_bytes(ln_cuda_page_format format, int64_t size) {
    return ln_cuda_tile_size(format, (int)size);
}

/* ---- plan ---- */

static bool arguments_right(const ln_cuda_decode *d) {
    if (d->heads < 1 || d->key_value_heads < 1 || d->heads % d->key_value_heads || d->heads > 65535) return false;
    if (d->sequences < 1 || d->queries < 1 || d->queries > LN_CUDA_QUERIES || d->capacity < 0) return false;
    if (d->page_tokens && (d->page_tokens < LN_CUDA_TILE || (d->page_tokens & (d->page_tokens - 1)))) return false;
    if (d->page_tokens > 1 << 30 || d->capacity > 1 << 30 || d->window < 0 || d->window > INT_MAX / 2) return false;
    if ((unsigned)d->format >= LN_CUDA_PAGE_FORMATS || (unsigned)d->query_element > LN_CUDA_ELEMENT_FLOAT32)
        return false;
    if (d->output_element != LN_CUDA_ELEMENT_BF16 && d->output_element != LN_CUDA_ELEMENT_FLOAT32) return false;
    if (d->value_in_key && (d->key_value_heads != 1 || d->value_size > d->key_size)) return false;
    return d->scale > 0 && d->soft_cap >= 0 && !isinf(d->scale) && !isinf(d->soft_cap);
}

static int64_t rows_of(const ln_cuda_decode *d) {
    return d->heads / d->key_value_heads * d->queries;
}

/* Of short contexts: blocks of a sequence and head, and units that one of their warps may have to take. */
static int64_t splits_of(const ln_cuda_decode *d, const ln_cuda_device *device, const ln_cuda_decode_kernel *kernel,
                         int64_t *each) {
    const int64_t tiles = (rows_of(d) + kernel->rows - 1) / kernel->rows, warps = kernel->threads / 32;
    const int64_t blocks = (int64_t)device->multiprocessors * kernel->blocks;
    const int64_t sight = d->window && d->window + d->queries < d->capacity ? d->window + d->queries + 14 : d->capacity;
    const int64_t units = (sight + LN_CUDA_TILE - 1) / LN_CUDA_TILE, wanted = (units + warps - 1) / warps;
    int64_t splits = blocks / (d->sequences * d->key_value_heads * tiles);
    if (splits > wanted) splits = wanted;
    if (splits < 1) splits = 1;
    const int64_t waves = (d->sequences * d->key_value_heads * tiles * splits + blocks - 1) / blocks;
    *each = (units + splits * warps - 1) / (splits * warps) * waves;
    return splits;
}

enum { BRIEF = 4 }; /* units that a warp takes at most in what is a short context */

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_decode *d, const ln_cuda_device *device, const ln_cuda_decode_kernel *kernel) {
    if (d->key_size != kernel->key_size || d->value_size != kernel->value_size) return "made for another size of heads";
    if (d->value_in_key != kernel->value_in_key) return "made for values elsewhere";
    if (d->format != kernel->format) return "made for another format of pages";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    int64_t each = 0;
    if (kernel->brief) splits_of(d, device, kernel, &each);
    return each > BRIEF ? "made for shorter contexts" : NULL;
}

/* Of two kernels that can: the first whose tile holds all rows, else the one with the larger tile. */
static bool better(const ln_cuda_decode *d, const ln_cuda_decode_kernel *next, const ln_cuda_decode_kernel *best) {
    return !best || (best->rows < rows_of(d) && next->rows > best->rows);
}

/* The block with the end of a segment reads what the others of a segment left: about what it could have read of keys
 * meanwhile, a second kernel costs a few microseconds. */
static bool joined(const ln_cuda_decode *d, const ln_cuda_decode_kernel *kernel, int64_t shares) {
    const int64_t rows = rows_of(d) < kernel->rows ? rows_of(d) : kernel->rows;
    return kernel->value_in_key ||
           shares / (d->sequences * d->key_value_heads) * rows * kernel->value_size * 4 > 256 << 10;
}

ln_cuda_code ln_cuda_decode_plan_make(const ln_cuda_decode *decode, const ln_cuda_device *device,
                                      const ln_cuda_decode_kernel *kernel, ln_cuda_decode_plan *plan) {
    *plan = {};
    plan->device = *device;
    if (!arguments_right(decode)) {
        snprintf(plan->why, sizeof plan->why,
                 "heads, sequences, queries, capacity, pages, format, window, scale or cap are out of range");
        return LN_CUDA_ARGUMENT;
    }
    const int64_t tokens = (decode->capacity + LN_CUDA_TILE - 1) / LN_CUDA_TILE + 1;
    if (tokens * decode->key_value_heads > INT_MAX / 4 / decode->sequences) {
        snprintf(plan->why, sizeof plan->why, "more than 2^29 tiles of keys");
        return LN_CUDA_ARGUMENT;
    }
    const ln_cuda_decode_kernel *best = NULL;
    const char *why = "none made for this size of heads and format";
    for (int row = 0; ln_cuda_decode_kernels(row)->start; row++) {
        const ln_cuda_decode_kernel *next = ln_cuda_decode_kernels(row);
        if (kernel && next != kernel) continue;
        const char *no = refusal(decode, device, next);
        if (!no && better(decode, next, best)) best = next;
        if (no && next->key_size == decode->key_size && next->format == decode->format) why = no;
    }
    if (!best) {
        snprintf(plan->why, sizeof plan->why,
                 "no kernel for keys of %lld and values of %lld elements on compute capability %d.%d: %s",
                 (long long)decode->key_size, (long long)decode->value_size, device->major, device->minor, why);
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t blocks = (int64_t)device->multiprocessors * best->blocks;
    plan->tiles = (rows_of(decode) + best->rows - 1) / best->rows;
    plan->kernel = best;
    plan->shares = blocks > plan->tiles ? blocks / plan->tiles : 1;
    int64_t each;
    if (best->brief)
        plan->shares = decode->sequences * decode->key_value_heads * splits_of(decode, device, best, &each);
    plan->joined = !best->brief && joined(decode, best, plan->shares);
    plan->workspace = plan->tiles * plan->shares * 2 * best->rows * (best->value_size + 2) * (int64_t)sizeof(float);
    plan->workspace = (plan->workspace + 255) / 256 * 256;
    snprintf(plan->why, sizeof plan->why, "%s: %lld blocks for %lld tiles of %d rows%s", best->name,
             (long long)plan->shares, (long long)plan->tiles, best->rows, plan->joined ? ", joined" : "");
    return LN_CUDA_OK;
}

ln_cuda_code ln_cuda_decode_prepare(const ln_cuda_decode_plan *plan, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;
    cudaError_t error =
        cudaMemsetAsync(workspace, LN_CUDA_NOT_YET & 0xff, (size_t)plan->workspace, (cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize((cudaStream_t)stream);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

static bool part_right(const ln_cuda_page_part *part) {
    return part->data && (uintptr_t)part->data % 16 == 0 && part->page_stride % 16 == 0 &&
           part->head_stride % 16 == 0 && part->token_stride % 16 == 0 && part->page_stride >= 0 &&
           part->head_stride >= 0 && part->token_stride >= 0;
}
static bool pages_right(const ln_cuda_decode *d, const ln_cuda_decode_tensors *tensors) {
    if (!tensors->lengths || (d->page_tokens && (!tensors->page_table || tensors->table_stride < 0))) return false;
    return d->capacity == 0 || (part_right(&tensors->key) && (d->value_in_key || part_right(&tensors->value)));
}
static int element_bytes(ln_cuda_element element) {
    return element == LN_CUDA_ELEMENT_FLOAT32 ? 4 : 2;
}

static ln::decode_run run_of(const ln_cuda_decode *d, const ln_cuda_decode_plan *plan,
                             const ln_cuda_decode_tensors *tensors, void *workspace) {
    const double log2_e = 1.4426950408889634;
    ln::decode_run run = {};
    run.of = *tensors;
    run.sequences = (int)d->sequences, run.queries = (int)d->queries;
    run.heads = (int)d->heads, run.key_value_heads = (int)d->key_value_heads;
    run.group = (int)(d->heads / d->key_value_heads), run.rows = (int)rows_of(d);
    run.tiles = (int)plan->tiles, run.shares = (int)plan->shares;
    run.unit_shift = plan->kernel->unit_shift;
    run.page_shift = 30;
    if (d->page_tokens)
        for (run.page_shift = 0; 1 << run.page_shift < d->page_tokens;) run.page_shift++;
    else
        run.of.page_table = NULL;
    run.window = (int)d->window;
    run.least = 64 >> plan->kernel->unit_shift;
    run.scale = (float)((d->soft_cap > 0 ? d->soft_cap : d->scale) * log2_e);
    run.cap_scale = d->soft_cap > 0 ? (float)(2 * log2_e * d->scale / d->soft_cap) : 0;
    run.query_element = d->query_element;
    run.output_float32 = d->output_element == LN_CUDA_ELEMENT_FLOAT32;
    run.joined = plan->joined;
    const int64_t segments = d->sequences * d->key_value_heads, parts = plan->shares / segments;
    run.parts = !d->value_in_key && parts * segments * 16 >= plan->shares * 15 ? (int)parts : 0;
    run.partial = (float *)workspace;
    run.splits = parts ? (int)parts : 1;
    run.tiles_most = (int)((d->capacity + LN_CUDA_TILE - 1) / LN_CUDA_TILE);
    return run;
}

/* The tensor [row][line of 128 bytes][64 elements], and boxes of some of them. How many pages there are is not known
 * here. */
static ln_cuda_code describe(CUtensorMap *map, const ln_cuda_decode *d, const ln_cuda_page_part *part,
                             const ln::page_steps *steps, int64_t lines, int64_t box_lines, int64_t box_rows) {
    const int64_t heads = d->key_value_heads - 1,
                  tokens = (d->sequences - 1) * steps->page + heads * steps->head + d->capacity;
    const ln_cuda_boxes boxes = {part->data,
                                 2,
                                 {64, lines + heads * steps->lines, d->page_tokens ? (int64_t)INT_MAX : tokens},
                                 {128, part->token_stride},
                                 {64, (int)box_lines, (int)box_rows},
                                 true};
    return ln_cuda_boxes_describe(&boxes, map);
}

/* Of heads that are rows apart, or lines of a row. */
static bool page_steps_of(const ln_cuda_page_part *part, ln::page_steps *steps) {
    const int64_t row = part->token_stride;
    if (row == 0 || part->page_stride % row) return false;
    const bool lines = part->head_stride % row != 0;
    if (lines && part->head_stride % 128) return false;
    if (part->page_stride / row > INT_MAX || part->head_stride / (lines ? 128 : row) > INT_MAX) return false;
    *steps = {(int)(part->page_stride / row), lines ? 0 : (int)(part->head_stride / row),
              lines ? (int)(part->head_stride / 128) : 0};
    return true;
}

/* What kernels for compute capability 9.0 are told of plain pages. */
static ln_cuda_code describe_pages(CUtensorMap *maps, ln::decode_run *run, const ln_cuda_decode *d,
                                   const ln_cuda_decode_plan *plan) {
    const int64_t unit = 1 << plan->kernel->unit_shift,
                  rows = d->page_tokens && d->page_tokens < unit ? d->page_tokens : unit, lines = d->key_size / 64;
    if (d->format > LN_CUDA_PAGE_F16) {
        if (run->of.key.page_stride / 16 > INT_MAX || run->of.value.page_stride / 16 > INT_MAX) return LN_CUDA_ARGUMENT;
        run->key.page = (int)(run->of.key.page_stride / 16), run->value.page = (int)(run->of.value.page_stride / 16);
    }
    if (plan->kernel->major != 9 || d->format > LN_CUDA_PAGE_F16 || d->capacity == 0) return LN_CUDA_OK;
    if (!page_steps_of(&run->of.key, &run->key)) return LN_CUDA_ARGUMENT;
    const ln_cuda_code code = describe(&maps[0], d, &run->of.key, &run->key, lines, d->value_in_key ? 1 : lines, rows);
    if (code || d->value_in_key) return code;
    if (!page_steps_of(&run->of.value, &run->value)) return LN_CUDA_ARGUMENT;
    return describe(&maps[1], d, &run->of.value, &run->value, lines, lines, rows);
}

ln_cuda_code ln_cuda_decode_run(const ln_cuda_decode *decode, const ln_cuda_decode_plan *plan,
                                const ln_cuda_decode_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!ln_cuda_tensor_right(&tensors->query, element_bytes(decode->query_element)) ||
        !ln_cuda_tensor_right(&tensors->output, element_bytes(decode->output_element)))
        return LN_CUDA_ARGUMENT;
    if (!pages_right(decode, tensors) || !workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;
    ln::decode_run run = run_of(decode, plan, tensors, workspace);
    CUtensorMap maps[2] = {};
    void *const arguments[] = {&run, &maps[0], &maps[1]};
    const ln_cuda_code code = describe_pages(maps, &run, decode, plan);
    if (code) return code;
    return plan->kernel->start(arguments, (int)(plan->tiles * plan->shares), stream);
}
