/* Owns: what was found, as people and programs read it: table, CSV, JSON, and the published page. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

double eval_quality(const eval_cell *cell, double *low, double *high) {
    const double asked = (double)cell->sum.questions;
    eval_interval(cell->sum.score, asked, low, high);
    return asked > 0 ? cell->sum.score / asked : 0;
}

static double rate(int64_t tokens, double seconds) {
    return tokens > 0 && seconds > 0 ? (double)tokens / seconds : 0;
}

static bool is_measure(const eval_cell *cell) {
    return cell->task->form == EVAL_MEASURE;
}

/* What one number does not tell. */
static void write_note(const eval_cell *cell, char *text, size_t room) {
    const eval_outcome *sum = &cell->sum;
    const double n = sum->questions > 0 ? (double)sum->questions : 1;
    *text = 0;
    if (*cell->refused)
        snprintf(text, room, "refused: %s", cell->refused);
    else if (is_measure(cell))
        snprintf(text, room, "divergence %.5f +- %.5f nats, perplexity %.3f, full cache %.3f", sum->divergence / n,
                 1.96 * sqrt(fmax(0, sum->squares / n - sum->divergence / n * (sum->divergence / n)) / n),
                 exp(sum->loss / n), exp(sum->full_loss / n));
    else if (sum->ceiling > 0)
        snprintf(text, room, "known law %.3f, guess by frequency %.3f", sum->ceiling / n, sum->baseline / n);
    const size_t used = strlen(text);
    if (!*cell->refused && *cell->chosen && !strcmp(cell->policy, "auto"))
        snprintf(text + used, room - used, "%schosen: %s", used ? ", " : "", cell->chosen);
}

/* ---- table ---- */

static const char *share_of(uint64_t bytes, uint64_t full) {
    static char texts[4][24];
    static int next;
    char *text = texts[next++ % 4];
    if (full && bytes)
        snprintf(text, sizeof texts[0], "%.3f", (double)bytes / (double)full);
    else
        snprintf(text, sizeof texts[0], "-");
    return text;
}

void eval_print_table(const eval_cell *cells, int count) {
    printf("%-16s %7s %-24s %-6s %7s  %-13s %10s %6s %10s %10s %9s %8s\n", "task", "tokens", "policy", "budget",
           "quality", "95 %", "peak", "of f16", "end", "resident", "prompt/s", "decode/s");
    for (int i = 0; i < count; i++) {
        const eval_cell *cell = &cells[i];
        const eval_outcome *sum = &cell->sum;
        char note[1024];
        write_note(cell, note, sizeof note);
        if (*cell->refused) {
            printf("%-16s %7lld %-24s %-6s %s\n", cell->name, (long long)cell->length, cell->policy, cell->budget,
                   note);
            continue;
        }
        double low, high;
        const double quality = eval_quality(cell, &low, &high);
        printf("%-16s %7lld %-24s %-6s %7.3f  %.3f - %.3f %10s %6s %10s %10s %9.0f %8.0f%s%s\n", cell->name,
               (long long)cell->length, cell->policy, cell->budget, quality, low, high, cli_size(sum->peak),
               share_of(sum->peak, cell->full), cli_size(sum->end), sum->resident ? cli_size(sum->resident) : "-",
               rate(sum->tokens, sum->seconds), rate(sum->answer_tokens, sum->answer_seconds), *note ? "  " : "", note);
    }
}

void eval_print_csv(const eval_cell *cells, int count) {
    printf(
        "task,length,policy,budget,cache,full,questions,score,quality,low,high,peak,end,file,resident,"
        "prompt_tokens_per_second,decode_tokens_per_second,divergence,perplexity,full_perplexity,ceiling,baseline\n");
    for (int i = 0; i < count; i++) {
        const eval_cell *cell = &cells[i];
        const eval_outcome *sum = &cell->sum;
        if (*cell->refused) continue;
        double low, high;
        const double quality = eval_quality(cell, &low, &high), n = (double)sum->questions;
        printf("%s,%lld,\"%s\",%s,%llu,%llu,%lld,%g,%.6f,%.6f,%.6f,%llu,%llu,%llu,%llu,%.1f,%.1f", cell->name,
               (long long)cell->length, cell->policy, cell->budget, (unsigned long long)cell->cache,
               (unsigned long long)cell->full, (long long)sum->questions, sum->score, quality, low, high,
               (unsigned long long)sum->peak, (unsigned long long)sum->end, (unsigned long long)sum->file,
               (unsigned long long)sum->resident, rate(sum->tokens, sum->seconds),
               rate(sum->answer_tokens, sum->answer_seconds));
        if (is_measure(cell))
            printf(",%.6f,%.5f,%.5f", sum->divergence / n, exp(sum->loss / n), exp(sum->full_loss / n));
        else
            printf(",,,");
        if (sum->ceiling > 0)
            printf(",%.5f,%.5f\n", sum->ceiling / n, sum->baseline / n);
        else
            printf(",,\n");
    }
}

/* ---- JSON ---- */

static json_t *json_of(const eval_cell *cell) {
    const eval_outcome *sum = &cell->sum;
    if (*cell->refused)
        return json_pack("{ss sI ss ss ss}", "task", cell->name, "length", (json_int_t)cell->length, "policy",
                         cell->policy, "budget", cell->budget, "refused", cell->refused);
    double low, high;
    const double quality = eval_quality(cell, &low, &high), n = (double)sum->questions;
    json_t *row = json_pack(
        "{ss sI ss ss sI sI sI sf sf sf sf sI sf sI sI sI sI sf sf}", "task", cell->name, "length",
        (json_int_t)cell->length, "policy", cell->policy, "budget", cell->budget, "cache", (json_int_t)cell->cache,
        "full", (json_int_t)cell->full, "questions", (json_int_t)sum->questions, "right", sum->score, "accuracy",
        quality, "low", low, "high", high, "document_tokens", (json_int_t)sum->tokens, "seconds",
        sum->seconds + sum->answer_seconds, "bytes_peak", (json_int_t)sum->peak, "bytes_end", (json_int_t)sum->end,
        "bytes_file", (json_int_t)sum->file, "resident_peak", (json_int_t)sum->resident, "prompt_tokens_per_second",
        rate(sum->tokens, sum->seconds), "decode_tokens_per_second", rate(sum->answer_tokens, sum->answer_seconds));
    if (row && is_measure(cell)) {
        json_object_set_new(row, "divergence", json_real(sum->divergence / n));
        json_object_set_new(row, "perplexity", json_real(exp(sum->loss / n)));
        json_object_set_new(row, "full_perplexity", json_real(exp(sum->full_loss / n)));
    }
    if (row && *cell->chosen) json_object_set_new(row, "chosen", json_string(cell->chosen));
    if (row && sum->ceiling > 0) {
        json_object_set_new(row, "ceiling", json_real(sum->ceiling / n));
        json_object_set_new(row, "baseline", json_real(sum->baseline / n));
    }
    return row;
}

json_t *eval_json(const eval_cell *cells, int count) {
    json_t *rows = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(rows, json_of(&cells[i]));
    return rows;
}

/* ---- the page ---- */

static bool same_panel(const eval_cell *a, const eval_cell *b) {
    return a->task == b->task && a->length == b->length;
}

bool eval_on_frontier(const eval_cell *cells, int count, int at) {
    double low, high;
    const double quality = eval_quality(&cells[at], &low, &high);
    const uint64_t peak = cells[at].sum.peak;
    for (int i = 0; i < count; i++) {
        if (i == at || *cells[i].refused || !same_panel(&cells[i], &cells[at])) continue;
        const double other = eval_quality(&cells[i], &low, &high);
        const uint64_t bytes = cells[i].sum.peak;
        if ((bytes < peak && other >= quality) || (bytes == peak && (other > quality || (other >= quality && i < at))))
            return false;
    }
    return !*cells[at].refused;
}

/* Rows: policies; columns: budgets; both in the order of their first appearance. */
static void write_matrix(FILE *page, const eval_cell *cells, int count, int first) {
    const char *policies[256], *budgets[32];
    int rows = 0, columns = 0;
    for (int i = first; i < count; i++) {
        if (!same_panel(&cells[i], &cells[first])) continue;
        int r = 0, c = 0;
        while (r < rows && strcmp(policies[r], cells[i].policy) != 0) r++;
        if (r == rows && rows < 256) policies[rows++] = cells[i].policy;
        while (c < columns && strcmp(budgets[c], cells[i].budget) != 0) c++;
        if (c == columns && columns < 32) budgets[columns++] = cells[i].budget;
    }
    fprintf(page, "\n| policy |");
    for (int c = 0; c < columns; c++) fprintf(page, " %s |", *budgets[c] == '-' ? "whole" : budgets[c]);
    fprintf(page, "\n|---|");
    for (int c = 0; c < columns; c++) fprintf(page, "---:|");
    for (int r = 0; r < rows; r++) {
        fprintf(page, "\n| %s |", policies[r]);
        for (int c = 0; c < columns; c++) {
            int i = first;
            while (i < count && (!same_panel(&cells[i], &cells[first]) || strcmp(cells[i].policy, policies[r]) != 0 ||
                                 strcmp(cells[i].budget, budgets[c]) != 0))
                i++;
            double low, high;
            if (i < count && !*cells[i].refused)
                fprintf(page, eval_on_frontier(cells, count, i) ? " **%.3f** |" : " %.3f |",
                        eval_quality(&cells[i], &low, &high));
            else
                fprintf(page, " |");
        }
    }
    fprintf(page, "\n");
}

static void write_figures(FILE *page, const eval_cell *cells, int count, int first) {
    const bool measure = is_measure(&cells[first]);
    fprintf(
        page,
        "\n<details><summary>all figures</summary>\n\n| policy | budget | quality | 95 %% | bytes at peak | of f16 | "
        "bytes at end | in a file | resident at peak | prompt, tokens/s | %s |\n"
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|%s\n",
        measure ? "divergence, nats | perplexity" : "decode, tokens/s", measure ? "---:|---:|" : "---:|");
    for (int i = first; i < count; i++) {
        if (!same_panel(&cells[i], &cells[first]) || *cells[i].refused) continue;
        const eval_outcome *sum = &cells[i].sum;
        double low, high;
        const double quality = eval_quality(&cells[i], &low, &high), n = (double)sum->questions;
        fprintf(page, "| %s | %s | %.3f | %.3f - %.3f | %s | %s | %s | %s | %s | %.0f |", cells[i].policy,
                cells[i].budget, quality, low, high, cli_size(sum->peak), share_of(sum->peak, cells[i].full),
                cli_size(sum->end), sum->file ? cli_size(sum->file) : "-",
                sum->resident ? cli_size(sum->resident) : "-", rate(sum->tokens, sum->seconds));
        if (measure)
            fprintf(page, " %.5f | %.3f |\n", sum->divergence / n, exp(sum->loss / n));
        else
            fprintf(page, " %.0f |\n", rate(sum->answer_tokens, sum->answer_seconds));
    }
    fprintf(page, "\n</details>\n");
}

static void write_page(FILE *page, const char *command, const char *about, const eval_cell *cells, int count) {
    fprintf(
        page,
        "# Quality against bytes\n\nMade by `%s`; %s. How it is measured: [evaluation.md](evaluation.md). Documents "
        "are compressed before any question is known. A budget is a share of the bytes that float16 keys and values "
        "of the same length take; bold stands on the frontier: nothing measured is as good with fewer bytes at "
        "peak.\n\n![Quality against bytes](quality-against-bytes.svg)\n",
        command, about);
    for (int i = 0; i < count; i++) {
        bool told = false;
        for (int k = 0; k < i; k++) told |= same_panel(&cells[k], &cells[i]);
        if (told) continue;
        const eval_cell *cell = &cells[i];
        fprintf(page, "\n## %s, %lld tokens\n\n%c%s; %s: %lld a cell.\n", cell->name, (long long)cell->length,
                cell->task->summary[0] & ~0x20, cell->task->summary + 1,
                is_measure(cell) ? "quality is the share of tokens whose most likely next token agrees"
                                 : "quality is the mean score of questions",
                (long long)cell->sum.questions);
        write_matrix(page, cells, count, i);
        write_figures(page, cells, count, i);
    }
    int refused = 0;
    for (int i = 0; i < count; i++) {
        if (!*cells[i].refused) continue;
        if (!refused++) fprintf(page, "\n## What was refused\n\n");
        fprintf(page, "- %s, %lld tokens, %s %s: %s\n", cells[i].name, (long long)cells[i].length, cells[i].policy,
                cells[i].budget, cells[i].refused);
    }
}

int eval_write_page(const char *folder, const char *command, const char *about, const eval_cell *cells, int count) {
    char path[PATH_MAX], beside[PATH_MAX + 8];
    if (snprintf(path, sizeof path, "%s/memory-evaluation.md", folder) >= (int)sizeof path)
        return cli_error("the name of the folder is too long");
    snprintf(beside, sizeof beside, "%s.part", path);
    FILE *page = fopen(beside, "w");
    if (!page) return cli_error("%s: %s", beside, strerror(errno));
    write_page(page, command, about, cells, count);
    if (fclose(page) || rename(beside, path)) return cli_error("%s: %s", path, strerror(errno));
    snprintf(path, sizeof path, "%s/quality-against-bytes.svg", folder);
    return eval_write_svg(path, cells, count);
}
