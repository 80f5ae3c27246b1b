/* Owns: the picture: quality against bytes at peak, a panel for each task and length, one line a policy.
 *
 * x = log2(bytes), y linear from the lowest tenth below all points to 1. The frontier of a panel, the points that no
 * other has at least the quality of with fewer bytes, is a broad grey line under the others. Names stand beside points
 * of the frontier where they overlap no name before them; the legend has all. What the planner chooses, "auto", is
 * drawn stronger. Colours are of middling lightness, there
 * is no ground: it reads on light and dark pages. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

enum { WIDTH = 460, HEIGHT = 300, LEFT = 58, RIGHT = 18, TOP = 26, PAD = 14, BOTTOM = 46 };
enum { POLICIES = 64, LABELS = 64, LETTER = 7 };

typedef struct box {
    double x, y, width, height;
} box;

typedef struct drawing {
    FILE *out;
    const eval_cell *cells;
    int count;
    const char *policies[POLICIES];
    int policy_count;
} drawing;

typedef struct panel {
    const drawing *picture;
    int first;          /* a cell of it */
    double x, y;        /* its corner */
    double least, most; /* log2 of bytes */
    double lowest;      /* quality */
    box labels[LABELS];
    int label_count;
} panel;

static double clamp(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

static bool in_panel(const panel *p, const eval_cell *cell) {
    const eval_cell *first = &p->picture->cells[p->first];
    return cell->task == first->task && cell->length == first->length && !*cell->refused && cell->sum.peak > 0 &&
           cell->sum.questions > 0;
}

static double quality_of(const eval_cell *cell) {
    double low, high;
    return eval_quality(cell, &low, &high);
}

static double x_of(const panel *p, double bytes) {
    return p->x + LEFT + (log2(bytes) - p->least) / (p->most - p->least) * (WIDTH - LEFT - RIGHT);
}

static double y_of(const panel *p, double quality) {
    return p->y + TOP + PAD + (1 - quality) / (1 - p->lowest) * (HEIGHT - TOP - PAD - BOTTOM);
}

static void put_escaped(FILE *out, const char *text) {
    for (; *text; text++) {
        if (*text == '&' || *text == '<' || *text == '>')
            fprintf(out, "&#%d;", *text);
        else
            fputc(*text, out);
    }
}

static void put_text(FILE *out, double x, double y, const char *attributes, const char *text) {
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, attributes);
    put_escaped(out, text);
    fprintf(out, "</text>\n");
}

/* ---- looks of policies: colours first, then dashes with other marks ---- */

static const char *const colours[] = {"#3b82c4", "#e07b39", "#3f9e5a", "#c75d9c",
                                      "#8a6fd1", "#b8912f", "#2fa7a0", "#d2554f"};
static const char *const dashes[] = {"", " stroke-dasharray=\"6 3\"", " stroke-dasharray=\"2 3\"",
                                     " stroke-dasharray=\"8 3 2 3\""};
enum { COLOURS = sizeof colours / sizeof *colours, DASHES = sizeof dashes / sizeof *dashes };

static void put_mark(FILE *out, int policy, double x, double y) {
    const char *colour = colours[policy % COLOURS];
    switch (policy / COLOURS % DASHES) {
    case 0:
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x, y, colour);
        break;
    case 1:
        fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"6\" height=\"6\" fill=\"%s\"/>\n", x - 3, y - 3, colour);
        break;
    case 2:
        fprintf(out, "<path d=\"M%.1f %.1fl4 7h-8z\" fill=\"%s\"/>\n", x, y - 4, colour);
        break;
    default:
        fprintf(out, "<path d=\"M%.1f %.1fl4 4l-4 4l-4 -4z\" fill=\"%s\"/>\n", x, y - 4, colour);
    }
}

static int policy_of(drawing *picture, const char *name) {
    int i = 0;
    while (i < picture->policy_count && strcmp(picture->policies[i], name) != 0) i++;
    if (i == picture->policy_count && i < POLICIES) picture->policies[picture->policy_count++] = name;
    return i < POLICIES ? i : POLICIES - 1;
}

/* ---- axes ---- */

static void find_ranges(panel *p) {
    double least = INFINITY, most = 0, lowest = 1;
    for (int i = 0; i < p->picture->count; i++) {
        const eval_cell *cell = &p->picture->cells[i];
        if (!in_panel(p, cell)) continue;
        const double bytes = log2((double)cell->sum.peak);
        least = fmin(least, bytes);
        most = fmax(most, bytes);
        lowest = fmin(lowest, quality_of(cell));
    }
    /* Names of the frontier stand left of it. */
    p->least = least - fmax(0.4, 0.3 * (most - least));
    p->most = fmax(most + 0.2, p->least + 1);
    p->lowest = clamp(floor(lowest * 10 - 0.2) / 10, 0, 0.9);
}

static void put_axes(const panel *p) {
    FILE *out = p->picture->out;
    const eval_cell *cell = &p->picture->cells[p->first];
    char text[96];
    snprintf(text, sizeof text, "%s, %lld tokens", cell->name, (long long)cell->length);
    put_text(out, p->x + LEFT, p->y + 20, " class=\"title\"", text);
    const double right = p->x + WIDTH - RIGHT, bottom = p->y + HEIGHT - BOTTOM;
    const double tick = p->lowest < 0.5 ? 0.2 : p->lowest < 0.8 ? 0.1 : p->lowest < 0.9 ? 0.05 : 0.02;
    for (double q = 1; q > p->lowest - 1e-9; q -= tick) {
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", p->x + LEFT, y_of(p, q), right);
        snprintf(text, sizeof text, "%.2f", q);
        put_text(out, p->x + LEFT - 6, y_of(p, q) + 4, " text-anchor=\"end\"", text);
    }
    const int step = p->most - p->least > 7 ? 2 : 1;
    for (int e = (int)ceil(p->least); e <= p->most; e += step) {
        const double x = x_of(p, ldexp(1, e));
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", x, p->y + TOP, bottom);
        static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
        const int unit = e / 10 < 4 ? e / 10 : 4;
        snprintf(text, sizeof text, "%.0f %s", ldexp(1, e - 10 * unit), units[unit]);
        put_text(out, x, bottom + 16, " text-anchor=\"middle\"", text);
    }
    put_text(out, p->x + LEFT + (WIDTH - LEFT - RIGHT) / 2.0, bottom + 34, " text-anchor=\"middle\"",
             "bytes of keys and values at peak");
    fprintf(out,
            "<text class=\"side\" transform=\"translate(%.1f %.1f) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
            p->x + 14, p->y + TOP + (HEIGHT - TOP - BOTTOM) / 2.0,
            cell->task->form == EVAL_MEASURE ? "most likely token agrees" : "quality");
}

/* ---- lines ---- */

static const drawing *sorting;

static int by_bytes(const void *a, const void *b) {
    const uint64_t x = sorting->cells[*(const int *)a].sum.peak, y = sorting->cells[*(const int *)b].sum.peak;
    return (x > y) - (x < y);
}

/* Cells of the panel that pass, by bytes. */
static int collect(const panel *p, const char *policy, bool frontier, int *list) {
    int count = 0;
    for (int i = 0; i < p->picture->count; i++) {
        const eval_cell *cell = &p->picture->cells[i];
        if (!in_panel(p, cell) || (policy && strcmp(cell->policy, policy) != 0)) continue;
        if (!frontier || eval_on_frontier(p->picture->cells, p->picture->count, i)) list[count++] = i;
    }
    sorting = p->picture;
    qsort(list, (size_t)count, sizeof *list, by_bytes);
    return count;
}

static void put_path(const panel *p, const char *attributes, const int *list, int count) {
    FILE *out = p->picture->out;
    fprintf(out, "<path fill=\"none\"%s d=\"", attributes);
    for (int i = 0; i < count; i++) {
        const eval_cell *cell = &p->picture->cells[list[i]];
        fprintf(out, "%s%.1f %.1f", i ? "L" : "M", x_of(p, (double)cell->sum.peak), y_of(p, quality_of(cell)));
    }
    fprintf(out, "\"/>\n");
}

static bool overlap(const box *a, const box *b) {
    return a->x < b->x + b->width && b->x < a->x + a->width && a->y < b->y + b->height && b->y < a->y + a->height;
}

/* Left of a point and above it nothing is as good: there the name stands, a little higher where another stands. */
static void put_name(panel *p, double x, double y, const char *name) {
    enum { HIGH = 12 };
    const double width = LETTER * (double)strlen(name), left = fmax(x - 8 - width, p->x + LEFT + 2);
    for (double up = 2; up < 30; up += HIGH / 2.0) {
        const box wanted = {left, y - up - HIGH, width, HIGH};
        bool taken = wanted.y < p->y + TOP - 2 || p->label_count == LABELS;
        for (int k = 0; k < p->label_count; k++) taken |= overlap(&wanted, &p->labels[k]);
        if (taken) continue;
        p->labels[p->label_count++] = wanted;
        put_text(p->picture->out, left + width, y - up - 2, " class=\"name\" text-anchor=\"end\"", name);
        return;
    }
}

static void put_panel(panel *p, int *list) {
    drawing *picture = (drawing *)p->picture;
    find_ranges(p);
    put_axes(p);
    int count = collect(p, NULL, true, list);
    put_path(p, " class=\"frontier\"", list, count);
    for (int n = 0; n < picture->policy_count; n++) {
        count = collect(p, picture->policies[n], false, list);
        char look[96];
        snprintf(look, sizeof look, " stroke=\"%s\" stroke-width=\"%s\"%s", colours[n % COLOURS],
                 strcmp(picture->policies[n], "auto") ? "1.3" : "2.6", dashes[n / COLOURS % DASHES]);
        if (count > 1) put_path(p, look, list, count);
        for (int i = 0; i < count; i++) {
            const eval_cell *cell = &picture->cells[list[i]];
            put_mark(picture->out, n, x_of(p, (double)cell->sum.peak), y_of(p, quality_of(cell)));
        }
    }
    count = collect(p, NULL, true, list);
    const char *last = "";
    for (int i = count - 1; i >= 0; i--) {
        const eval_cell *cell = &picture->cells[list[i]];
        if (!strcmp(last, cell->policy)) continue;
        last = cell->policy;
        put_name(p, x_of(p, (double)cell->sum.peak), y_of(p, quality_of(cell)), cell->policy);
    }
}

/* ---- the whole ---- */

static void put_legend(const drawing *picture, double top, int width, int columns) {
    FILE *out = picture->out;
    for (int n = 0; n < picture->policy_count; n++) {
        const double x = LEFT + n % columns * width, y = top + n / columns * 18;
        fprintf(out, "<path d=\"M%.1f %.1fh24\" stroke=\"%s\" stroke-width=\"1.5\"%s/>\n", x, y - 4,
                colours[n % COLOURS], dashes[n / COLOURS % DASHES]);
        put_mark(out, n, x + 12, y - 4);
        put_text(out, x + 30, y, "", picture->policies[n]);
    }
    const int n = picture->policy_count;
    const double x = LEFT + n % columns * width, y = top + n / columns * 18;
    fprintf(out, "<path d=\"M%.1f %.1fh24\" class=\"frontier\"/>\n", x, y - 4);
    put_text(out, x + 30, y, "", "frontier");
}

static void put_picture(drawing *picture, int *list) {
    int *first = list + picture->count, panels = 0;
    size_t longest = 8;
    for (int i = 0; i < picture->count; i++) {
        const panel probe = {.picture = picture, .first = i};
        if (!in_panel(&probe, &picture->cells[i])) continue;
        const int n = policy_of(picture, picture->cells[i].policy);
        if (strlen(picture->policies[n]) > longest) longest = strlen(picture->policies[n]);
        bool told = false;
        for (int k = 0; k < panels; k++)
            told |= in_panel(&(panel){.picture = picture, .first = first[k]}, &picture->cells[i]);
        if (!told) first[panels++] = i;
    }
    const int columns = panels > 1 ? 2 : 1, rows = (panels + columns - 1) / columns;
    const int wide = columns * WIDTH, entry = (int)longest * LETTER + 44;
    const int across = wide - LEFT > entry ? (wide - LEFT) / entry : 1;
    const int lines = picture->policy_count / across + 1;
    const int high = rows * HEIGHT + 18 * lines + 24;
    fprintf(picture->out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\">\n"
            "<title>Quality against bytes of keys and values</title>\n"
            "<style>text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600}.name{font-size:11px}"
            ".grid{stroke:#8c959f;stroke-opacity:.25;fill:none}"
            ".frontier{stroke:#8c959f;stroke-opacity:.45;stroke-width:7;stroke-linecap:round;stroke-linejoin:round}"
            "@media(prefers-color-scheme:dark){text{fill:#b1bac4}}</style>\n",
            wide, high, wide, high);
    for (int i = 0; i < panels; i++) {
        panel p = {.picture = picture, .first = first[i], .x = i % columns * WIDTH, .y = i / columns * HEIGHT};
        put_panel(&p, list);
    }
    put_legend(picture, rows * HEIGHT + 18, entry, across);
    fprintf(picture->out, "</svg>\n");
}

int eval_write_svg(const char *path, const eval_cell *cells, int count) {
    char beside[PATH_MAX + 8];
    snprintf(beside, sizeof beside, "%s.part", path);
    int *list = calloc(2 * (size_t)count + 1, sizeof *list);
    drawing picture = {.out = list ? fopen(beside, "w") : NULL, .cells = cells, .count = count};
    if (picture.out) put_picture(&picture, list);
    free(list);
    if (!picture.out || fclose(picture.out) || rename(beside, path)) return cli_error("%s: %s", path, strerror(errno));
    return CLI_OK;
}
