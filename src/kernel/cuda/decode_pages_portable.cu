/* The host's side of writing keys and values into pages on the device, and of reading them back. */
#include "kernel/cuda/decode_pages.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

static bool shape_right(const ln_cuda_decode *d) {
    const int64_t page = d->page_tokens;
    return d->sequences >= 1 && d->key_value_heads >= 1 && d->key_size >= 32 && d->key_size % 32 == 0 &&
           d->key_size <= 65536 && d->value_size >= 32 && d->value_size % 32 == 0 && d->value_size <= 65536 &&
           (unsigned)d->format < LN_CUDA_PAGE_FORMATS && page >= 0 && page <= 1 << 30 && (page & (page - 1)) == 0 &&
           (page == 0 || page >= LN_CUDA_TILE);
}
static bool part_right(const ln_cuda_page_part *part) {
    return part->data && (uintptr_t)part->data % 16 == 0 && part->page_stride % 16 == 0 &&
           part->head_stride % 16 == 0 && part->token_stride % 16 == 0;
}

static page_side side_of(const ln_cuda_page_part *pages, const ln_cuda_tensor *rows, int64_t size,
                         ln_cuda_element element, bool values) {
    return {*pages, *rows, (int)size, (int)element, values};
}

/* Both sides, or the keys alone where values are in them. */
static page_run run_of(const ln_cuda_decode *d, const ln_cuda_decode_tensors *tensors, const page_side &key,
                       const page_side &value) {
    page_run run = {};
    run.side[0] = key, run.side[1] = value;
    if (d->value_in_key) run.side[1].size = 0;
    run.page_table = d->page_tokens ? tensors->page_table : NULL;
    run.lengths = tensors->lengths;
    run.table_stride = tensors->table_stride;
    for (run.page_shift = d->page_tokens ? 0 : 30; d->page_tokens && 1 << run.page_shift < d->page_tokens;)
        run.page_shift++;
    run.heads = (int)d->key_value_heads;
    run.sequences = (int)d->sequences;
    return run;
}

typedef void page_kernel(page_run run);

static ln_cuda_code start(page_kernel *kernel, const page_run &run, int64_t threads, void *stream) {
    const int64_t blocks = (threads + PAGE_THREADS - 1) / PAGE_THREADS;
    if (blocks == 0) return LN_CUDA_OK;
    if (blocks > INT32_MAX) return LN_CUDA_ARGUMENT;
    return launch(kernel, dim3((unsigned)blocks), dim3(PAGE_THREADS), 0, stream, run);
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_decode_append(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors,
                                   const ln_cuda_decode_rows *rows, void *stream) {
    static page_kernel *const kernels[LN_CUDA_PAGE_FORMATS] = {
        append_rows<LN_CUDA_PAGE_BF16>, append_rows<LN_CUDA_PAGE_F16>, append_rows<LN_CUDA_PAGE_Q8_0>,
        append_rows<LN_CUDA_PAGE_Q4_0>, append_rows<LN_CUDA_PAGE_Q4>,  append_rows<LN_CUDA_PAGE_Q2>};
    if (!shape_right(decode) || !tensors->lengths || (decode->page_tokens && !tensors->page_table))
        return LN_CUDA_ARGUMENT;
    if ((unsigned)rows->element > LN_CUDA_ELEMENT_FLOAT32 || rows->tokens < 0 || rows->tokens > 1 << 30)
        return LN_CUDA_ARGUMENT;
    const int bytes = rows->element == LN_CUDA_ELEMENT_FLOAT32 ? 4 : 2;
    if (!part_right(&tensors->key) || !ln_cuda_tensor_right(&rows->key, bytes)) return LN_CUDA_ARGUMENT;
    if (!decode->value_in_key && (!part_right(&tensors->value) || !ln_cuda_tensor_right(&rows->value, bytes)))
        return LN_CUDA_ARGUMENT;
    page_run run = run_of(decode, tensors, side_of(&tensors->key, &rows->key, decode->key_size, rows->element, false),
                          side_of(&tensors->value, &rows->value, decode->value_size, rows->element, true));
    run.tokens = (int)rows->tokens;
    const int64_t blocks = (run.side[0].size + run.side[1].size) / 32;
    return start(kernels[decode->format], run, decode->sequences * rows->tokens * decode->key_value_heads * blocks * 4,
                 stream);
}

ln_cuda_code ln_cuda_decode_unpack(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors,
                                   int64_t sequence, int64_t first, int64_t tokens, const ln_cuda_tensor *keys,
                                   const ln_cuda_tensor *values, void *stream) {
    static page_kernel *const kernels[LN_CUDA_PAGE_FORMATS] = {
        unpack_rows<LN_CUDA_PAGE_BF16>, unpack_rows<LN_CUDA_PAGE_F16>, unpack_rows<LN_CUDA_PAGE_Q8_0>,
        unpack_rows<LN_CUDA_PAGE_Q4_0>, unpack_rows<LN_CUDA_PAGE_Q4>,  unpack_rows<LN_CUDA_PAGE_Q2>};
    if (!shape_right(decode) || (decode->page_tokens && !tensors->page_table)) return LN_CUDA_ARGUMENT;
    if (sequence < 0 || sequence >= decode->sequences || first < 0 || tokens < 0 || tokens > (1 << 30) - first)
        return LN_CUDA_ARGUMENT;
    if (!part_right(&tensors->key) || !ln_cuda_tensor_right(keys, 2)) return LN_CUDA_ARGUMENT;
    if (!decode->value_in_key && (!part_right(&tensors->value) || !ln_cuda_tensor_right(values, 2)))
        return LN_CUDA_ARGUMENT;
    page_run run = run_of(
        decode, tensors, side_of(&tensors->key, keys, decode->key_size, LN_CUDA_ELEMENT_BF16, false),
        side_of(&tensors->value, decode->value_in_key ? keys : values, decode->value_size, LN_CUDA_ELEMENT_BF16, true));
    run.sequences = (int)sequence, run.first = (int)first, run.tokens = (int)tokens;
    const int64_t pieces = (run.side[0].size + run.side[1].size) / 8;
    return start(kernels[decode->format], run, tokens * decode->key_value_heads * pieces, stream);
}
