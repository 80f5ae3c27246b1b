/* Owns: the file of results: one JSON object a line and document, appended as soon as the document was asked.
 *
 * A record is found again by its key, which holds everything that determines it: the base (model, program, processor,
 * settings), task, length, policy, budget, bytes and document. So a run that was killed goes on where it was, and one
 * file holds many runs. A line is written in one piece; what a killed run left of a line has no
 * newline and is cut off. The file is locked while it is open. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eval.h"

/* ---- records ---- */

typedef struct field {
    const char *name;
    size_t at;
    enum { COUNT, BYTES, REAL } kind;
    enum { SUM, MOST } adding;
} field;

#define FIELD(member, kind, adding) \
    { #member, offsetof(eval_outcome, member), kind, adding }

static const field fields[] = {
    FIELD(documents, COUNT, SUM), FIELD(questions, COUNT, SUM),     FIELD(score, REAL, SUM),
    FIELD(baseline, REAL, SUM),   FIELD(ceiling, REAL, SUM),        FIELD(tokens, COUNT, SUM),
    FIELD(seconds, REAL, SUM),    FIELD(answer_tokens, COUNT, SUM), FIELD(answer_seconds, REAL, SUM),
    FIELD(peak, BYTES, MOST),     FIELD(end, BYTES, MOST),          FIELD(file, BYTES, MOST),
    FIELD(resident, BYTES, MOST), FIELD(divergence, REAL, SUM),     FIELD(squares, REAL, SUM),
    FIELD(loss, REAL, SUM),       FIELD(full_loss, REAL, SUM)};
enum { FIELDS = sizeof fields / sizeof *fields };

void eval_add(eval_outcome *sum, const eval_outcome *outcome) {
    for (int i = 0; i < FIELDS; i++) {
        char *to = (char *)sum + fields[i].at;
        const char *from = (const char *)outcome + fields[i].at;
        if (fields[i].kind == REAL) {
            double more;
            memcpy(&more, from, sizeof more);
            *(double *)to += more;
        } else {
            int64_t more;
            memcpy(&more, from, sizeof more);
            int64_t *value = (int64_t *)to;
            *value = fields[i].adding == SUM ? *value + more : more > *value ? more : *value;
        }
    }
}

static void read_outcome(const json_t *record, eval_outcome *outcome) {
    *outcome = (eval_outcome){0};
    for (int i = 0; i < FIELDS; i++) {
        const json_t *value = json_object_get(record, fields[i].name);
        char *to = (char *)outcome + fields[i].at;
        if (fields[i].kind == REAL)
            *(double *)to = json_number_value(value);
        else
            *(int64_t *)to = json_integer_value(value);
    }
}

static void read_chosen(const json_t *record, eval_cell *cell) {
    const char *chosen = json_string_value(json_object_get(record, "chosen"));
    snprintf(cell->chosen, sizeof cell->chosen, "%s", chosen ? chosen : "");
}

static json_t *make_record(const eval_results *results, const eval_cell *cell, const char *key,
                           const eval_outcome *outcome) {
    json_t *record = json_pack("{ss ss ss sI ss ss sI sI}", "key", key, "base", results->base, "task", cell->name,
                               "length", (json_int_t)cell->length, "policy", cell->policy, "budget", cell->budget,
                               "cache", (json_int_t)cell->cache, "full", (json_int_t)cell->full);
    for (int i = 0; record && i < FIELDS; i++) {
        const char *from = (const char *)outcome + fields[i].at;
        json_t *value = fields[i].kind == REAL ? json_real(*(const double *)from)
                                               : json_integer((json_int_t) * (const int64_t *)from);
        json_object_set_new(record, fields[i].name, value);
    }
    return record;
}

static void make_key(const eval_results *results, const eval_cell *cell, int64_t number, char key[1024]) {
    snprintf(key, 1024, "%s | %s %lld | %s %s %llu | %lld", results->base, cell->name, (long long)cell->length,
             cell->policy, cell->budget, (unsigned long long)cell->cache, (long long)number);
}

/* ---- the file ---- */

static int read_lines(eval_results *results, off_t *whole) {
    cli_buffer text = {0};
    int status = cli_read(results->path, &text);
    *whole = 0;
    for (size_t at = 0; status == CLI_OK && at < text.bytes;) {
        const char *stop = memchr(text.data + at, '\n', text.bytes - at);
        if (!stop) break;
        const size_t bytes = (size_t)(stop - text.data) - at;
        json_t *record = json_loadb(text.data + at, bytes, 0, NULL);
        const char *key = json_string_value(json_object_get(record, "key"));
        if (key)
            json_object_set(results->lines, key, record);
        else
            status = cli_error("%s: byte %zu begins no result; name another file with --results", results->path, at);
        json_decref(record);
        at += bytes + 1;
        *whole = (off_t)at;
    }
    cli_buffer_free(&text);
    return status;
}

int eval_results_open(const char *path, const char *base, eval_results *results) {
    *results = (eval_results){.lines = json_object(), .base = strdup(base), .path = path, .file = -1};
    if (!results->lines || !results->base) return cli_error("not enough memory for the results");
    if (!path) return CLI_OK;
    results->file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (results->file < 0) return cli_error("%s: %s", path, strerror(errno));
    struct stat about;
    if (fstat(results->file, &about) || !S_ISREG(about.st_mode))
        return cli_error("%s is no regular file; name another with --results", path);
    if (flock(results->file, LOCK_EX | LOCK_NB))
        return cli_error("%s is in use by another run; name another file with --results", path);
    off_t whole;
    const int status = read_lines(results, &whole);
    if (status == CLI_OK && ftruncate(results->file, whole)) return cli_error("%s: %s", path, strerror(errno));
    return status;
}

void eval_results_close(eval_results *results) {
    json_decref(results->lines);
    free(results->base);
    if (results->file >= 0) close(results->file);
    *results = (eval_results){.file = -1};
}

bool eval_results_find(const eval_results *results, eval_cell *cell, int64_t number, eval_outcome *outcome) {
    char key[1024];
    make_key(results, cell, number, key);
    const json_t *record = json_object_get(results->lines, key);
    if (!record) return false;
    read_outcome(record, outcome);
    read_chosen(record, cell);
    return true;
}

static int append(const eval_results *results, const json_t *record) {
    char *text = json_dumps(record, JSON_REAL_PRECISION(12));
    cli_buffer line = {0};
    const bool made = text && cli_append(&line, text, strlen(text)) && cli_append(&line, "\n", 1);
    free(text);
    const ssize_t written = made ? write(results->file, line.data, line.bytes) : -1;
    const bool whole = made && written == (ssize_t)line.bytes;
    const int problem = written < 0 ? errno : ENOSPC;
    cli_buffer_free(&line);
    if (!made) return cli_error("not enough memory for a result");
    return whole ? CLI_OK : cli_error("%s: %s", results->path, strerror(problem));
}

int eval_results_add(eval_results *results, const eval_cell *cell, int64_t number, const eval_outcome *outcome) {
    char key[1024];
    make_key(results, cell, number, key);
    json_t *record = make_record(results, cell, key, outcome);
    if (!record) return cli_error("not enough memory for a result");
    const int status = results->file >= 0 ? append(results, record) : CLI_OK;
    json_object_set_new(results->lines, key, record);
    return status;
}

/* ---- cells of a whole file ---- */

static const eval_task *task_of(const char *name) {
    const eval_task *task = eval_tasks;
    while (task->name && strcmp(task->name, name) != 0) task++;
    return task->name ? task : NULL;
}

static bool read_cell(const json_t *record, eval_cell *cell) {
    const char *task, *policy, *budget;
    json_int_t length, cache, full;
    *cell = (eval_cell){0};
    if (json_unpack((json_t *)record, "{ss sI ss ss sI sI}", "task", &task, "length", &length, "policy", &policy,
                    "budget", &budget, "cache", &cache, "full", &full))
        return false;
    cell->task = task_of(task);
    read_chosen(record, cell);
    cell->length = length;
    cell->cache = (uint64_t)cache;
    cell->full = (uint64_t)full;
    snprintf(cell->name, sizeof cell->name, "%s", task);
    snprintf(cell->policy, sizeof cell->policy, "%s", policy);
    snprintf(cell->budget, sizeof cell->budget, "%s", budget);
    return cell->task != NULL;
}

static bool same_cell(const eval_cell *a, const eval_cell *b) {
    return a->task == b->task && a->length == b->length && !strcmp(a->policy, b->policy) &&
           !strcmp(a->budget, b->budget);
}

int eval_results_cells(const eval_results *results, eval_cell **cells, int *count) {
    *cells = calloc(json_object_size(results->lines) + 1, sizeof **cells);
    *count = 0;
    if (!*cells) return cli_error("not enough memory for the results");
    const char *key;
    json_t *record;
    json_object_foreach(results->lines, key, record) {
        const char *base = json_string_value(json_object_get(record, "base"));
        const bool other = json_object_get(record, "program") != NULL;
        eval_cell cell;
        eval_outcome outcome;
        if (!other && (!base || strcmp(base, results->base) != 0)) continue;
        if (!read_cell(record, &cell)) continue;
        int i = 0;
        while (i < *count && !same_cell(&(*cells)[i], &cell)) i++;
        if (i == *count) (*cells)[(*count)++] = cell;
        read_outcome(record, &outcome);
        eval_add(&(*cells)[i].sum, &outcome);
    }
    return CLI_OK;
}
