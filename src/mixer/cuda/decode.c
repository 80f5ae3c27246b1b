/* Owns: the public decode operator on a device: settings and tensors checked with sentences, settled and handed to the
 * family of kernels (kernel/cuda/decode_cuda.h), whose pages are the public ones.
 *
 * Invariant: what reaches the family is a problem whose plan was made, so that a run can fail by its tensors alone. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernel/cuda/decode_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/cuda.h"
#include "mixer/pack.h"

struct linnet_cuda_decode {
    linnet_cuda *cuda;
    ln_cuda_decode problem;
    ln_cuda_decode_plan plan;
    bool sinks;
};

static const char WHAT[] = "decoding on a GPU";

/* ---- settings ---- */

linnet_cuda_decode_settings linnet_cuda_decode_settings_default(void) {
    return (linnet_cuda_decode_settings){.size = sizeof(linnet_cuda_decode_settings),
                                         .type = LINNET_BF16,
                                         .output = LINNET_F32,
                                         .precision = LINNET_BF16};
}

static bool element_of(linnet_type type, ln_cuda_element *element) {
    static const struct {
        linnet_type type;
        ln_cuda_element element;
    } rows[] = {
        {LINNET_BF16, LN_CUDA_ELEMENT_BF16}, {LINNET_F16, LN_CUDA_ELEMENT_F16}, {LINNET_F32, LN_CUDA_ELEMENT_FLOAT32}};
    for (int i = 0; i < 3; i++)
        if (rows[i].type == type) {
            *element = rows[i].element;
            return true;
        }
    return false;
}

static bool format_of(linnet_type type, ln_cuda_page_format *format) {
    static const struct {
        linnet_type type;
        ln_cuda_page_format format;
    } rows[] = {{LINNET_BF16, LN_CUDA_PAGE_BF16}, {LINNET_F16, LN_CUDA_PAGE_F16}, {LINNET_Q8_0, LN_CUDA_PAGE_Q8_0},
                {LINNET_Q4_0, LN_CUDA_PAGE_Q4_0}, {LINNET_Q4, LN_CUDA_PAGE_Q4},   {LINNET_Q2, LN_CUDA_PAGE_Q2}};
    for (int i = 0; i < LN_CUDA_PAGE_FORMATS; i++)
        if (rows[i].type == type) {
            *format = rows[i].format;
            return true;
        }
    return false;
}

static const char *name_of(linnet_type type) {
    return linnet_type_name(type) ? linnet_type_name(type) : "an unknown type";
}

static linnet_status check_types(linnet_context *context, const linnet_cuda_decode_settings *s, ln_cuda_decode *d) {
    if (!element_of(s->type, &d->query_element))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "decoding on a GPU takes bf16, f16 or f32 queries, not %s",
                       name_of(s->type));
    if (!element_of(s->output, &d->output_element) || d->output_element == LN_CUDA_ELEMENT_F16)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the output of decoding on a GPU is f32 or bf16, not %s",
                       name_of(s->output));
    if (!format_of(s->precision, &d->format))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "pages on a GPU are bf16, f16, q8_0, q4_0, q4 or q2, not %s: settings.precision",
                       name_of(s->precision));
    return LINNET_OK;
}

/* NULL, or what is wrong with the settled sizes. */
static const char *wrong_sizes(const ln_cuda_decode *d) {
    if (d->sequences < 1) return "sequences are less than 1";
    if (d->queries < 1 || d->queries > LN_CUDA_QUERIES) return "a sequence has 1 to 8 queries";
    if (d->heads < 1 || d->heads > 65535) return "heads are not from 1 to 65535";
    if (d->key_value_heads < 1 || d->heads % d->key_value_heads) return "key_value_heads do not divide heads";
    if (d->key_size < 1 || d->value_size < 1) return "key_size and value_size must be positive";
    if (d->value_in_key && d->key_value_heads != 1) return "value_in_key needs key_value_heads of 1";
    if (d->value_in_key && d->value_size > d->key_size) return "with value_in_key value_size is at most key_size";
    if (d->capacity < 0 || d->capacity > 1 << 30) return "capacity is not from 0 to 2^30";
    if (d->page_tokens &&
        (d->page_tokens < LN_CUDA_TILE || d->page_tokens > 1 << 30 || (d->page_tokens & (d->page_tokens - 1))))
        return "page_tokens are a power of two from 16 to 2^30, or 0";
    if (d->window < 0 || d->window > INT_MAX / 2) return "window is not from 0 to 2^30";
    if (!(d->scale > 0) || isinf(d->scale)) return "scale must be positive";
    if (!(d->soft_cap >= 0) || isinf(d->soft_cap)) return "soft_cap must be positive, or 0";
    return NULL;
}

static linnet_status describe(linnet_context *context, const linnet_cuda_decode_settings *s, ln_cuda_decode *d) {
    *d = (ln_cuda_decode){.sequences = s->sequences ? s->sequences : 1,
                          .queries = s->queries ? s->queries : 1,
                          .heads = s->heads,
                          .key_value_heads = s->key_value_heads ? s->key_value_heads : s->heads,
                          .key_size = s->key_size,
                          .value_size = s->value_size ? s->value_size : s->key_size,
                          .capacity = s->capacity,
                          .page_tokens = s->page_tokens,
                          .scale = s->scale != 0 || s->key_size < 1 ? s->scale : 1 / sqrtf((float)s->key_size),
                          .soft_cap = s->soft_cap,
                          .window = s->window,
                          .value_in_key = s->value_in_key};
    const linnet_status status = check_types(context, s, d);
    if (status != LINNET_OK) return status;
    const char *wrong = wrong_sizes(d);
    return wrong ? ln_fail(context, LINNET_ERROR_ARGUMENT, "%s: %s", WHAT, wrong) : LINNET_OK;
}

linnet_status linnet_cuda_decode_open(linnet_cuda *cuda, const linnet_cuda_decode_settings *settings,
                                      linnet_cuda_decode **decode) {
    *decode = NULL;
    if (!settings) return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "decoding needs settings");
    linnet_cuda_decode_settings s = linnet_cuda_decode_settings_default();
    memcpy(&s, settings, settings->size < sizeof s ? settings->size : sizeof s);
    linnet_cuda_decode made = {.cuda = cuda, .sinks = s.sinks};
    linnet_status status = describe(cuda->context, &s, &made.problem);
    if (status != LINNET_OK) return status;
    const ln_cuda_code code = ln_cuda_decode_plan_make(&made.problem, &cuda->device, NULL, &made.plan);
    status = ln_cuda_tell(cuda, code, WHAT, made.plan.why);
    if (status != LINNET_OK) return status;
    linnet_cuda_decode *kept = ln_allocate_zero(cuda->context, 1, sizeof *kept, "decode plan");
    if (!kept) return LINNET_ERROR_MEMORY;
    *kept = made;
    *decode = kept;
    return LINNET_OK;
}

void linnet_cuda_decode_close(linnet_cuda_decode *decode) {
    if (decode) ln_release(decode->cuda->context, decode);
}

uint64_t linnet_cuda_decode_workspace(const linnet_cuda_decode *decode) {
    return (uint64_t)decode->plan.workspace;
}

size_t linnet_cuda_decode_text(const linnet_cuda_decode *decode, char *text, size_t bytes) {
    const int written = snprintf(text, bytes, "%s", decode->plan.why);
    return (size_t)(written > 0 ? written : 0) + 1;
}

linnet_status linnet_cuda_decode_prepare(const linnet_cuda_decode *decode, void *workspace, void *stream) {
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(decode->cuda->device.index);
    if (!code) code = ln_cuda_decode_prepare(&decode->plan, workspace, stream);
    return ln_cuda_tell(decode->cuda, code, "preparing decoding on a GPU", wrong);
}

/* ---- pages ---- */

static int64_t tokens_bytes(const ln_cuda_decode *d, int64_t tokens) {
    return (tokens + LN_CUDA_TILE - 1) / LN_CUDA_TILE * ln_cuda_tile_bytes(d->format, d->key_size);
}
static int64_t page_tokens(const ln_cuda_decode *d) {
    return d->page_tokens ? d->page_tokens : d->capacity;
}

uint64_t linnet_cuda_decode_page_bytes(const linnet_cuda_decode *decode) {
    const ln_cuda_decode *d = &decode->problem;
    return (uint64_t)(tokens_bytes(d, page_tokens(d)) * d->key_value_heads);
}

/* Strides of 0 become those of packed pages; tokens in tiles have none. */
static ln_cuda_page_part settle_pages(const ln_cuda_decode *d, const linnet_cuda_pages *pages) {
    ln_cuda_page_part part = {pages->data, pages->page_stride, pages->head_stride, pages->token_stride};
    if (d->format > LN_CUDA_PAGE_F16)
        part.token_stride = 0;
    else if (!part.token_stride)
        part.token_stride = d->key_size * 2;
    if (!part.head_stride) part.head_stride = tokens_bytes(d, page_tokens(d));
    if (!part.page_stride) part.page_stride = part.head_stride * d->key_value_heads;
    return part;
}

/* NULL, or what is wrong. */
static const char *wrong_pages(const ln_cuda_page_part *part) {
    const int64_t token = part->token_stride; /* 0: tiles */
    if (!part->data) return "there are no pages of keys or values";
    if ((uintptr_t)part->data % 16) return "pages of keys or values are not aligned to 16 bytes";
    if (part->page_stride < 0 || part->head_stride < 0 || token < 0 || part->page_stride % 16 ||
        part->head_stride % 16 || token % 16)
        return "strides of pages are multiples of 16 bytes";
    if (token && (part->page_stride % token || (part->head_stride % token && part->head_stride % 128)))
        return "of bf16 and f16 pages page_stride is a multiple of token_stride, and head_stride is, or of 128 bytes";
    return NULL;
}

/* NULL, or what is wrong with pages, table and lengths; `own` gets them. */
static const char *take_pages(const ln_cuda_decode *d, const linnet_cuda_decode_tensors *t,
                              ln_cuda_decode_tensors *own) {
    own->key = settle_pages(d, &t->key);
    own->value = settle_pages(d, &t->value);
    own->page_table = t->page_table;
    own->lengths = t->lengths;
    const int64_t pages = d->page_tokens ? (d->capacity + d->page_tokens - 1) / d->page_tokens : 0;
    own->table_stride = t->table_stride ? t->table_stride : pages;
    if (!t->lengths || (uintptr_t)t->lengths % 4) return "lengths are missing";
    if (d->page_tokens && (!t->page_table || (uintptr_t)t->page_table % 4)) return "the page_table is missing";
    if (own->table_stride < pages) return "table_stride is less than the pages of capacity tokens";
    if (d->capacity == 0) return NULL;
    const char *wrong = wrong_pages(&own->key);
    return wrong || d->value_in_key ? wrong : wrong_pages(&own->value);
}

/* Rows of the caller as the kernels take them. NULL, or what is wrong with them. */
static const char *take_rows(linnet_tensor given, int64_t heads, int64_t size, ln_cuda_element element,
                             const char *wrong, ln_cuda_tensor *own) {
    given = ln_tensor_settle(given, heads, size);
    *own = (ln_cuda_tensor){given.data, given.token_stride, given.head_stride};
    return ln_cuda_tensor_right(own, element == LN_CUDA_ELEMENT_FLOAT32 ? 4 : 2) ? NULL : wrong;
}

static linnet_cuda_decode_tensors take(const linnet_cuda_decode_tensors *tensors) {
    linnet_cuda_decode_tensors t = {0};
    memcpy(&t, tensors, tensors->size < sizeof t ? tensors->size : sizeof t);
    return t;
}

/* ---- running ---- */

linnet_status linnet_cuda_decode_run(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                     void *workspace, void *stream) {
    const ln_cuda_decode *d = &decode->problem;
    const linnet_cuda_decode_tensors t = take(tensors);
    ln_cuda_decode_tensors own = {.sinks = decode->sinks ? t.sinks : NULL, .log_sum_exp = t.log_sum_exp};
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    if (!wrong && decode->sinks && !t.sinks) wrong = "sinks are missing";
    if (!wrong)
        wrong = take_rows(t.query, d->heads, d->key_size, d->query_element,
                          "queries are missing, not aligned to 16 bytes, or their strides no multiples of 8 elements",
                          &own.query);
    if (!wrong)
        wrong = take_rows(t.output, d->heads, d->value_size, d->output_element,
                          "the output is missing, not aligned to 16 bytes, or its strides no multiples of 8 elements",
                          &own.output);
    if (!wrong) wrong = take_pages(d, &t, &own);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(decode->cuda->device.index);
    if (!code) code = ln_cuda_decode_run(d, &decode->plan, &own, workspace, stream);
    return ln_cuda_tell(decode->cuda, code, WHAT, wrong);
}

static const char WRONG_KEYS[] =
    "keys are missing, not aligned to 16 bytes, or their strides no multiples of 8 elements",
                  WRONG_VALUES[] =
                      "values are missing, not aligned to 16 bytes, or their strides no multiples of 8 elements";

linnet_status linnet_cuda_decode_append(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                        int64_t tokens, linnet_tensor key, linnet_tensor value, void *stream) {
    const ln_cuda_decode *d = &decode->problem;
    const linnet_cuda_decode_tensors t = take(tensors);
    ln_cuda_decode_tensors own = {0};
    ln_cuda_decode_rows rows = {.tokens = tokens, .element = d->query_element};
    const char *wrong = tokens < 0 || tokens > d->capacity ? "tokens to append are not from 0 to capacity" : NULL;
    if (!wrong && tokens == 0) return LINNET_OK;
    if (!wrong) wrong = take_rows(key, d->key_value_heads, d->key_size, rows.element, WRONG_KEYS, &rows.key);
    if (!wrong && !d->value_in_key)
        wrong = take_rows(value, d->key_value_heads, d->value_size, rows.element, WRONG_VALUES, &rows.value);
    if (!wrong) wrong = take_pages(d, &t, &own);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(decode->cuda->device.index);
    if (!code) code = ln_cuda_decode_append(d, &own, &rows, stream);
    return ln_cuda_tell(decode->cuda, code, "appending to pages on a GPU", wrong);
}

linnet_status linnet_cuda_decode_unpack(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                        int64_t sequence, int64_t first, int64_t tokens, linnet_tensor key,
                                        linnet_tensor value, void *stream) {
    const ln_cuda_decode *d = &decode->problem;
    const linnet_cuda_decode_tensors t = take(tensors);
    ln_cuda_decode_tensors own = {0};
    ln_cuda_tensor keys = {0}, values = {0};
    const char *wrong = sequence < 0 || sequence >= d->sequences ? "there is no such sequence"
                        : first < 0 || tokens < 0 || tokens > d->capacity - first
                            ? "tokens to unpack are not within capacity"
                            : NULL;
    if (!wrong && tokens == 0) return LINNET_OK;
    if (!wrong) wrong = take_rows(key, d->key_value_heads, d->key_size, LN_CUDA_ELEMENT_BF16, WRONG_KEYS, &keys);
    if (!wrong && !d->value_in_key)
        wrong = take_rows(value, d->key_value_heads, d->value_size, LN_CUDA_ELEMENT_BF16, WRONG_VALUES, &values);
    if (!wrong) wrong = take_pages(d, &t, &own);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(decode->cuda->device.index);
    if (!code) code = ln_cuda_decode_unpack(d, &own, sequence, first, tokens, &keys, &values, stream);
    return ln_cuda_tell(decode->cuda, code, "unpacking pages on a GPU", wrong);
}
