/* Owns: the memory plan: which precision and piece fit into a budget.
 *
 *   total(precision, piece) = model + pages(context, precision, piece) + workspace(piece) + overhead
 *
 * Candidates are tried from the most exact and fastest to the smallest; the first with total <= memory is taken.
 * Everything a session ever allocates is in the total, so a plan that fits is a promise: feeding allocates nothing. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"

/* What the process takes beside the library's allocations: stack, C library, file buffers (measured by
 * tests/cli/test_memory.py). */
enum { OVERHEAD_BYTES = 6 << 20, LARGEST_PIECE = 512, SMALLEST_PIECE = 8, MOST_CONTEXT = 1 << 30 };

linnet_session_settings linnet_session_settings_default(void) {
    return (linnet_session_settings){.size = sizeof(linnet_session_settings), .precision = LINNET_TYPE_AUTO};
}

linnet_status ln_session_settle(const linnet_model *model, const linnet_session_settings *settings,
                                linnet_session_settings *settled) {
    linnet_context *context = model->context;
    *settled = linnet_session_settings_default();
    if (settings) memcpy(settled, settings, settings->size < sizeof *settled ? settings->size : sizeof *settled);
    if (settled->context == 0) settled->context = model->hyper.context_length;
    if (settled->context < 1 || settled->context > MOST_CONTEXT)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a context of %lld tokens is outside 1 to %d",
                       (long long)settled->context, MOST_CONTEXT);
    if (settled->piece < 0 || settled->piece > 1 << 20)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a piece of %lld tokens is outside 1 to %d",
                       (long long)settled->piece, 1 << 20);
    switch (settled->precision) {
    case LINNET_TYPE_AUTO:
    case LINNET_F32:
    case LINNET_F16:
    case LINNET_BF16:
    case LINNET_Q8_0:
        break;
    default:
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "keys and values can be kept as f32, bf16, f16 or q8_0, not as %s",
                       linnet_type_name(settled->precision) ? linnet_type_name(settled->precision) : "that");
    }
    return LINNET_OK;
}

ln_memory_shape ln_session_shape(const linnet_model *model, int64_t context, int64_t piece, linnet_type precision) {
    const ln_hyperparameters *hyper = &model->hyper;
    return (ln_memory_shape){.layers = hyper->layers,
                             .key_value_heads = hyper->key_value_heads,
                             .key_size = hyper->key_size,
                             .value_size = hyper->value_size,
                             .window = model->windows,
                             .precision = precision,
                             .capacity = context,
                             .piece = piece};
}

/* Fills the sizes of one candidate. */
static void weigh(linnet_model *model, const linnet_session_settings *settings, linnet_type precision, int64_t piece,
                  linnet_plan *plan) {
    const ln_hyperparameters *hyper = &model->hyper;
    const ln_memory_shape shape = ln_session_shape(model, settings->context, piece, precision);
    const uint64_t tokens = (uint64_t)settings->context;
    ln_page_layout page = {0};
    ln_page_layout_of(precision, hyper->key_size, hyper->value_size, &page);
    *plan = (linnet_plan){.size = sizeof *plan, .context = settings->context, .piece = piece, .precision = precision};
    plan->page_tokens = LN_PAGE_TOKENS;
    plan->weights_mapped = model->weight_bytes;
    plan->model = linnet_memory_used(model->context);
    plan->pages = ln_memory_bytes(&shape);
    plan->workspace = ln_forward_bytes(model, piece) + ln_allocated_bytes(tokens * sizeof(int32_t)) +
                      ln_allocated_bytes((uint64_t)hyper->vocabulary * sizeof(float)) +
                      ln_allocated_bytes(sizeof(ln_workspace)) + ln_allocated_bytes(sizeof(linnet_session));
    plan->overhead = OVERHEAD_BYTES;
    plan->total = plan->model + plan->pages + plan->workspace + plan->overhead;
    plan->bytes_per_token = (uint64_t)(hyper->layers * hyper->key_value_heads) * page.bytes / LN_PAGE_TOKENS;
}

/* The candidates in order of preference: half precision in large pieces, then 8 bits in large pieces, then small
 * pieces. */
static int list_candidates(const linnet_session_settings *settings, linnet_type types[2]) {
    if (settings->precision != LINNET_TYPE_AUTO) {
        types[0] = settings->precision;
        return 1;
    }
    types[0] = LINNET_F16;
    types[1] = LINNET_Q8_0;
    return 2;
}

static bool try_pieces(linnet_model *model, const linnet_session_settings *settings, linnet_type type, int64_t most,
                       int64_t least, linnet_plan *plan) {
    for (int64_t piece = most; piece >= least; piece /= 2) {
        weigh(model, settings, type, piece, plan);
        if (settings->memory == 0 || plan->total <= settings->memory) return true;
    }
    return false;
}

static void explain(linnet_plan *plan, const linnet_session_settings *settings, int64_t most) {
    if (settings->memory == 0) {
        snprintf(plan->reason, sizeof plan->reason, "no budget given: %s keys and values",
                 linnet_type_name(plan->precision));
        return;
    }
    snprintf(plan->reason, sizeof plan->reason, "%s keys and values %s%s", linnet_type_name(plan->precision),
             settings->precision == LINNET_TYPE_AUTO ? "are the most exact that fit" : "as asked for",
             plan->piece < most ? ", the prompt in smaller pieces to make room" : "");
}

linnet_status linnet_plan_session(const linnet_model *constant, const linnet_session_settings *settings,
                                  linnet_plan *plan) {
    linnet_model *model = (linnet_model *)(uintptr_t)constant; /* sizes are only read */
    linnet_session_settings settled;
    const linnet_status status = ln_session_settle(model, settings, &settled);
    *plan = (linnet_plan){.size = sizeof *plan};
    if (status != LINNET_OK) return status;
    int64_t most = settled.piece ? settled.piece : LARGEST_PIECE,
            least = settled.piece ? settled.piece : SMALLEST_PIECE;
    most = ln_max_i64(1, ln_min_i64(most, settled.context));
    least = ln_min_i64(least, most);
    linnet_type types[2];
    const int count = list_candidates(&settled, types);
    weigh(model, &settled, types[count - 1], least, plan);
    const uint64_t smallest = plan->total;
    bool found = false;
    for (int i = 0; i < count && !found; i++) /* pieces below 64 cost more speed than 8 bits cost exactness */
        found = try_pieces(model, &settled, types[i], most, ln_max_i64(least, ln_min_i64(64, most)), plan);
    if (!found) found = try_pieces(model, &settled, types[count - 1], most, least, plan);
    plan->smallest = smallest;
    if (!found) {
        weigh(model, &settled, types[count - 1], least, plan);
        plan->smallest = smallest;
        return ln_fail(
            model->context, LINNET_ERROR_MEMORY,
            "a budget of %llu bytes is too small for %lld tokens: at least %llu are needed (%s keys and values take "
            "%llu, tables of the model %llu, workspace %llu, the program %llu)",
            (unsigned long long)settled.memory, (long long)settled.context, (unsigned long long)smallest,
            linnet_type_name(plan->precision), (unsigned long long)plan->pages, (unsigned long long)plan->model,
            (unsigned long long)plan->workspace, (unsigned long long)plan->overhead);
    }
    explain(plan, &settled, most);
    return LINNET_OK;
}
