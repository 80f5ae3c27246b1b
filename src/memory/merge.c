/* Owns: mergers.
 *
 *   ems           each evicted token into the kept one whose key is most similar by cosine (P196). All that are at
 *                 hand are compared with the keys as they were before any was merged, so the order of tokens changes
 *                 nothing but rounding; those similar to none are the zero class, and gone
 *   compensation  all into the first kept token, their mean (RazorAttention, P170)
 *
 * key += (key' - key) m / (n + m): what is the same stays the same, bit for bit. */
#include "memory/merge.h"

#include <math.h>
#include <string.h>

#include "mixer/carve.h"

enum { ROWS = 48 };

static bool finite_row(const ln_merge *m, int64_t i) {
    const ln_attend_kernels *kernels = &m->kernels->attend;
    return kernels->finite(m->evicted_keys + i * m->key_size, m->key_size) &&
           kernels->finite(m->evicted_values + i * m->value_size, m->value_size);
}

static void blend(float *to, const float *from, float part, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += (from[i] - to[i]) * part;
}

void ln_merge_add(const ln_merge *m, int64_t i, int64_t j) {
    const float count = m->evicted_counts ? m->evicted_counts[i] : 1, sum = m->counts[j] + count;
    if (!(count > 0)) return;
    const bool first = !(m->counts[j] > 0); /* then what is there means nothing */
    float *key = m->keys + j * m->key_size, *value = m->values + j * m->value_size;
    if (first) {
        memcpy(key, m->evicted_keys + i * m->key_size, (size_t)m->key_size * sizeof *key);
        memcpy(value, m->evicted_values + i * m->value_size, (size_t)m->value_size * sizeof *value);
    } else {
        blend(key, m->evicted_keys + i * m->key_size, count / sum, m->key_size);
        blend(value, m->evicted_values + i * m->value_size, count / sum, m->value_size);
    }
    m->counts[j] = first ? count : sum;
}

/* Each evicted token into the one that m->into names. */
static void merge_rows(const ln_merge *m) {
    for (int64_t i = 0; i < m->evicted; i++) {
        if (m->into[i] >= 0 && !finite_row(m, i)) m->into[i] = -1;
        if (m->into[i] >= 0) ln_merge_add(m, i, m->into[i]);
    }
}

static void compensate(const ln_merge *m) {
    for (int64_t i = 0; i < m->evicted; i++) m->into[i] = m->kept > 0 ? 0 : -1;
    merge_rows(m);
}

/* ---- the most similar ---- */

typedef struct parts {
    float *rows;    /* [panels][ROWS][LN_ATTEND_STRIDE]: evicted keys as directions */
    float *columns; /* [key_size][32]: kept keys as directions */
    float *cosines; /* [ROWS][LN_ATTEND_STRIDE] */
} parts;

static parts carve(ln_carver *carver, int64_t key_size) {
    const uint64_t rows = ROWS * LN_ATTEND_STRIDE;
    parts p = {.rows = ln_carve(carver, (uint64_t)ln_ceil_div(key_size, LN_ATTEND_DEPTH) * rows, sizeof(float))};
    p.columns = ln_carve(carver, (uint64_t)key_size, LN_PANEL * sizeof(float));
    p.cosines = ln_carve(carver, rows, sizeof(float));
    return p;
}

uint64_t ln_merge_workspace(int64_t key_size) {
    ln_carver carver = {0};
    carve(&carver, key_size);
    return carver.used;
}

/* 1 / |key|; 0 for a key of zeros or one that is not finite. */
static float inverse_length(const float *key, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)key[i] * (double)key[i];
    return sum > 0 && sum < INFINITY ? (float)(1 / sqrt(sum)) : 0;
}

static float direction(float x, float inverse) {
    return inverse > 0 ? x * inverse : 0;
}

static void load_rows(const ln_merge *m, const parts *p, int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        const float *key = m->evicted_keys + (first + r) * m->key_size, inverse = inverse_length(key, m->key_size);
        for (int64_t i = 0; i < m->key_size; i++)
            p->rows[(i / LN_ATTEND_DEPTH * ROWS + r) * LN_ATTEND_STRIDE + i % LN_ATTEND_DEPTH] =
                direction(key[i], inverse);
    }
}

static void load_columns(const ln_merge *m, const parts *p, int64_t first, int64_t columns) {
    memset(p->columns, 0, (size_t)(m->key_size * LN_PANEL) * sizeof *p->columns);
    for (int64_t c = 0; c < columns; c++) {
        const float *key = m->keys + (first + c) * m->key_size, inverse = inverse_length(key, m->key_size);
        for (int64_t i = 0; i < m->key_size; i++) p->columns[i * LN_PANEL + c] = direction(key[i], inverse);
    }
}

static void multiply(const ln_merge *m, const parts *p, int64_t rows) {
    for (int64_t i = 0; i < m->key_size; i += LN_ATTEND_DEPTH) {
        const ln_attend_part part = {.codes = (const unsigned char *)(p->columns + i * LN_PANEL)};
        const ln_attend_operand keys = {&part, 1, ln_min_i64(LN_ATTEND_DEPTH, m->key_size - i), LN_PANEL, false};
        m->kernels->attend.many(&keys, p->rows + i / LN_ATTEND_DEPTH * ROWS * LN_ATTEND_STRIDE, rows, p->cosines,
                                i > 0);
    }
}

/* Evicted tokens first .. first + rows - 1 against all of m's kept keys. */
static void find_similar(const ln_merge *m, const parts *p, const int32_t *names, int64_t first, int64_t rows) {
    load_rows(m, p, first, rows);
    for (int64_t column = 0; column < m->kept; column += LN_PANEL) {
        const int64_t columns = ln_min_i64(LN_PANEL, m->kept - column);
        load_columns(m, p, column, columns);
        multiply(m, p, rows);
        for (int64_t r = 0; r < rows; r++) {
            float *best = &m->best[first + r];
            int32_t *into = &m->into[first + r];
            for (int64_t c = 0; c < columns; c++) {
                const float cosine = p->cosines[r * LN_ATTEND_STRIDE + c];
                if (!(*into < 0 ? cosine >= *best : cosine > *best)) continue;
                *best = cosine;
                *into = names ? names[column + c] : (int32_t)(column + c);
            }
        }
    }
}

void ln_merge_begin(const ln_merge *m) {
    for (int64_t i = 0; i < m->evicted; i++) {
        m->best[i] = finite_row(m, i) ? (float)m->similar : INFINITY; /* similar to none */
        m->into[i] = -1;
    }
}

void ln_merge_find(const ln_merge *m, const int32_t *names) {
    ln_carver carver = {.base = m->workspace};
    const parts p = carve(&carver, m->key_size);
    for (int64_t i = 0; i < m->evicted; i += ROWS) find_similar(m, &p, names, i, ln_min_i64(ROWS, m->evicted - i));
}

static void merge_similar(const ln_merge *m) {
    for (int64_t i = 0; i < m->evicted; i += ROWS) {
        float best[ROWS];
        ln_merge some = *m;
        some.evicted = ln_min_i64(ROWS, m->evicted - i);
        some.evicted_keys += i * m->key_size;
        some.evicted_values += i * m->value_size;
        some.into += i;
        some.best = best;
        ln_merge_begin(&some);
        ln_merge_find(&some, NULL);
    }
    merge_rows(m);
}

/* ---- the table ---- */

static const ln_merger mergers[] = {
    {.name = "ems", .source = "P196", .rule = "evicted tokens join the most similar kept key", .merge = merge_similar},
    {.name = "compensation",
     .source = "P170",
     .rule = "evicted tokens become one, their mean",
     .summary = true,
     .merge = compensate},
};
enum { MERGERS = sizeof mergers / sizeof *mergers };

const ln_merger *ln_merger_at(int index) {
    return index >= 0 && index < MERGERS ? &mergers[index] : NULL;
}

const ln_merger *ln_merger_of(const char *name) {
    for (int i = 0; i < MERGERS; i++)
        if (strcmp(mergers[i].name, name) == 0) return &mergers[i];
    return NULL;
}
