/* Owns: the softmax of rows: cutting them into tasks, and the merging of their sums.
 *
 * A row is cut into chunks of a length that depends on its own alone, a chunk into pieces; the pairs of pieces are
 * merged in ascending order in float64, so that bits know nothing of threads. The second pass takes the chunks in the
 * opposite order, because the last ones are still in the caches. A row that the pairs do not reach (NaN, infinities, or
 * exponents of more than LN_SOFTMAX_REACH) is done once more, in three passes. */
#include "linnet/softmax.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "kernel/kernel.h"

enum {
    CHUNK = 8 * LN_SOFTMAX_PIECE,
    CHUNKS_MOST = 512,          /* of a row */
    STREAM_BYTES = 16 * 1 << 20 /* results that no cache would keep */
};

/* m 2^n; m is NaN where the pairs do not reach. */
typedef struct total {
    double m, n;
} total;

typedef struct softmax_call {
    const ln_kernels *kernels;
    int64_t rows, columns, x_stride, y_stride;
    const float *x;
    float *y, *log_sum_exp;
    bool logarithm, stream;
    int64_t chunk, chunks; /* entries of a chunk, chunks of a row */
    int64_t first;         /* the long row that is being done */
    int64_t task_rows;     /* short rows of a task */
    total totals[CHUNKS_MOST];
} softmax_call;

static const float *row_of(const softmax_call *call, int64_t row) {
    return call->x + row * call->x_stride;
}

static float *result_of(const softmax_call *call, int64_t row) {
    return call->y ? call->y + row * call->y_stride : NULL;
}

/* ---- sums ---- */

static total merge(total a, total b) {
    const double n = fmax(a.n, b.n), lost = -2000;
    return (total){ldexp(a.m, (int)fmax(a.n - n, lost)) + ldexp(b.m, (int)fmax(b.n - n, lost)), n};
}

static total sum_of(const softmax_call *call, const float *x, int64_t n) {
    total sum = {0, -4.0 * LN_SOFTMAX_REACH};
    for (int64_t i = 0; i < n; i += LN_SOFTMAX_PIECE) {
        const ln_pair piece = call->kernels->softmax.sum(x + i, ln_min_i64(LN_SOFTMAX_PIECE, n - i));
        sum = merge(sum, (total){(double)piece.m, (double)piece.n});
    }
    return sum;
}

static bool reached(total sum) {
    return isfinite(sum.m) && fabs(sum.n) < LN_SOFTMAX_REACH;
}

/* ---- results ---- */

static void write_chunk(const softmax_call *call, int64_t row, int64_t from, int64_t n, total sum) {
    const float *x = row_of(call, row) + from;
    float *y = result_of(call, row) + from;
    if (call->logarithm) {
        const double lse = log(sum.m) + sum.n * M_LN2;
        const float high = (float)lse;
        call->kernels->softmax.shift(y, x, n, high, (float)(lse - (double)high), call->stream);
    } else {
        int exponent;
        const double mantissa = frexp(sum.m, &exponent);
        call->kernels->softmax.write(y, x, n, (float)(1 / mantissa), (float)(sum.n + exponent), call->stream);
    }
}

static void fill(float *y, int64_t n, float value) {
    for (int64_t i = 0; y && i < n; i++) y[i] = value;
}

/* The whole row, whatever is in it; returns its log-sum-exp. */
static float run_safely(const softmax_call *call, int64_t row) {
    const ln_softmax_kernels *kernels = &call->kernels->softmax;
    const int64_t n = call->columns;
    const float *x = row_of(call, row);
    float *y = result_of(call, row);
    const float most = call->kernels->vector.maximum(x, n);
    if (!isfinite(most)) {
        fill(y, n, most != -INFINITY ? NAN : call->logarithm ? -INFINITY : 0);
        return most;
    }
    double sum = 0;
    for (int64_t i = 0; i < n; i += LN_SOFTMAX_PIECE)
        sum += (double)kernels->sum_below(x + i, ln_min_i64(LN_SOFTMAX_PIECE, n - i), most);
    if (y && call->logarithm)
        kernels->shift(y, x, n, most, (float)log(sum), call->stream);
    else if (y)
        kernels->write_below(y, x, n, most, (float)(1 / sum), call->stream);
    return (float)((double)most + log(sum));
}

/* After the sum of a row: true where its results are still to be written. */
static bool finish_sum(const softmax_call *call, int64_t row, total sum) {
    const bool right = reached(sum);
    const float lse = right ? (float)(log(sum.m) + sum.n * M_LN2) : run_safely(call, row);
    if (call->log_sum_exp) call->log_sum_exp[row] = lse;
    return right && call->y;
}

/* ---- tasks ---- */

static void run_rows(void *argument, int64_t task, int worker) {
    (void)worker;
    const softmax_call *call = argument;
    const int64_t end = ln_min_i64(call->rows, (task + 1) * call->task_rows);
    for (int64_t row = task * call->task_rows; row < end; row++) {
        const total sum = sum_of(call, row_of(call, row), call->columns);
        if (finish_sum(call, row, sum)) write_chunk(call, row, 0, call->columns, sum);
    }
}

static void sum_task(void *argument, int64_t task, int worker) {
    (void)worker;
    softmax_call *call = argument;
    const int64_t from = task * call->chunk, n = ln_min_i64(call->chunk, call->columns - from);
    call->totals[task] = sum_of(call, row_of(call, call->first) + from, n);
}

/* The first total is the row's by then. */
static void write_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const softmax_call *call = argument;
    const int64_t chunk = call->chunks - 1 - task, from = chunk * call->chunk;
    write_chunk(call, call->first, from, ln_min_i64(call->chunk, call->columns - from), call->totals[0]);
}

static void run_long_row(softmax_call *call, ln_team *team) {
    ln_parallel(team, call->chunks, sum_task, call);
    total sum = call->totals[0];
    for (int64_t i = 1; i < call->chunks; i++) sum = merge(sum, call->totals[i]);
    call->totals[0] = sum;
    if (finish_sum(call, call->first, sum)) ln_parallel(team, call->chunks, write_task, call);
}

/* ---- calls ---- */

static linnet_status run(linnet_context *context, softmax_call *call) {
    const int64_t n = call->columns;
    if (call->x_stride == 0) call->x_stride = n;
    if (call->y_stride == 0) call->y_stride = n;
    if (call->rows < 0 || n < 0 || call->x_stride < n || call->y_stride < n)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "softmax: rows and columns must be 0 or more and strides at least the columns (or 0)");
    if (call->rows == 0) return LINNET_OK;
    ln_kernels kernels;
    ln_kernels_choose(context->cpu, &kernels);
    call->kernels = &kernels;
    const double bytes = (double)sizeof(float) * (double)call->rows * (double)n;
    call->stream = call->y && call->y != call->x && bytes >= STREAM_BYTES;
    if (n <= CHUNK) {
        call->task_rows = ln_max_i64(1, CHUNK / ln_max_i64(1, n));
        ln_parallel(context->team, ln_ceil_div(call->rows, call->task_rows), run_rows, call);
        return LINNET_OK;
    }
    call->chunk = ln_max_i64(CHUNK, ln_ceil_div(ln_ceil_div(n, CHUNKS_MOST), LN_SOFTMAX_PIECE) * LN_SOFTMAX_PIECE);
    call->chunks = ln_ceil_div(n, call->chunk);
    for (; call->first < call->rows; call->first++) run_long_row(call, context->team);
    return LINNET_OK;
}

linnet_status linnet_softmax(linnet_context *context, int64_t rows, int64_t columns, const float *x, int64_t x_stride,
                             float *y, int64_t y_stride, float *log_sum_exp) {
    softmax_call call = {.rows = rows,
                         .columns = columns,
                         .x = x,
                         .x_stride = x_stride,
                         .y = y,
                         .y_stride = y_stride,
                         .log_sum_exp = log_sum_exp};
    return run(context, &call);
}

linnet_status linnet_log_softmax(linnet_context *context, int64_t rows, int64_t columns, const float *x,
                                 int64_t x_stride, float *y, int64_t y_stride, float *log_sum_exp) {
    softmax_call call = {.rows = rows,
                         .columns = columns,
                         .x = x,
                         .x_stride = x_stride,
                         .y = y,
                         .y_stride = y_stride,
                         .log_sum_exp = log_sum_exp,
                         .logarithm = true};
    return run(context, &call);
}
