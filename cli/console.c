/* Owns: what people see on standard error: notes, errors, the progress bar, sizes and times. */
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

static struct {
    bool quiet, verbose, terminal;
    bool bar; /* a bar stands on the last line */
    char what[64];
    double began, shown;
    int64_t first;               /* `done` of the first report: what was done before is not our speed */
    char whole[64];              /* of cli_progress_within */
    int64_t behind, part, total; /* likewise; total 0: none */
} console;

double cli_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void cli_console_open(bool quiet, bool verbose) {
    console.quiet = quiet;
    console.verbose = verbose;
    console.terminal = isatty(STDERR_FILENO) != 0;
}

void cli_progress_end(void) {
    if (console.bar) fputs("\r\033[K", stderr);
    console.bar = false;
    console.what[0] = 0;
}

static void print_line(const char *before, const char *format, va_list arguments) {
    if (console.bar) fputs("\r\033[K", stderr);
    console.bar = false;
    fputs(before, stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void cli_note(const char *format, ...) {
    if (console.quiet) return;
    va_list arguments;
    va_start(arguments, format);
    print_line("", format, arguments);
    va_end(arguments);
}

int cli_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("linnet: ", format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

void cli_log(void *user, linnet_log_level level, const char *text) {
    (void)user;
    if (level == LINNET_LOG_WARNING || console.verbose)
        cli_note("%s%s", level == LINNET_LOG_WARNING ? "note: " : "", text);
}

/* [#########...........]  45 %  prompt 7400/16384  1234/s  8 s left */
static void draw_bar(const char *what, int64_t done, int64_t total, double speed) {
    enum { WIDTH = 30 };
    char cells[WIDTH + 1];
    const int filled = total > 0 ? (int)(WIDTH * done / total) : 0;
    for (int i = 0; i < WIDTH; i++) cells[i] = i < filled ? '#' : '.';
    cells[WIDTH] = 0;
    fprintf(stderr, "\r[%s] %3d %%  %s", cells, total > 0 ? (int)(100 * done / total) : 0, what);
    if (!console.total) fprintf(stderr, " %lld/%lld", (long long)done, (long long)total);
    if (speed > 0 && !console.total) fprintf(stderr, "  %.0f/s", speed);
    if (speed > 0) fprintf(stderr, ", %.0f s left", ceil((double)(total - done) / speed));
    fputs("\033[K", stderr);
    console.bar = true;
}

static void show_progress(const char *name, const char *what, int64_t done, int64_t total) {
    if (console.quiet) return;
    const double now = cli_seconds();
    if (strncmp(name, console.what, sizeof console.what - 1) != 0 || done < console.first) {
        snprintf(console.what, sizeof console.what, "%s", name);
        console.began = console.shown = now;
        console.first = done;
    }
    const bool last = done >= total;
    const double speed = now > console.began ? (double)(done - console.first) / (now - console.began) : 0;
    const double pause = console.terminal ? 0.1 : 10;
    /* Work that is over at once needs no bar. */
    if (now - console.shown >= pause || (last && console.bar)) {
        console.shown = now;
        if (console.terminal) {
            draw_bar(what, done, total, speed);
        } else if (console.total) {
            fprintf(stderr, "%s: %lld %% of the whole\n", what, (long long)(100 * done / total));
        } else {
            fprintf(stderr, "%s %lld/%lld, %.0f/s\n", what, (long long)done, (long long)total, speed);
        }
    }
    if (last) cli_progress_end();
}

void cli_progress(void *user, const char *what, int64_t done, int64_t total) {
    (void)user;
    if (!console.total)
        show_progress(what, what, done, total);
    else if (console.part && total > 0)
        show_progress("whole", console.whole, console.behind + console.part * done / total, console.total);
}

void cli_progress_within(const char *what, int64_t behind, int64_t part, int64_t total) {
    snprintf(console.whole, sizeof console.whole, "%s", what);
    console.behind = behind;
    console.part = part;
    console.total = total;
    if (total)
        show_progress("whole", what, behind, total);
    else
        cli_progress_end();
}

const char *cli_size(uint64_t bytes) {
    static char texts[8][24];
    static int next;
    char *text = texts[next++ % 8];
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(text, sizeof texts[0], unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

cli_resident cli_resident_now(void) {
    cli_resident resident = {0};
    FILE *status = fopen("/proc/self/status", "r");
    if (!status) return resident;
    char line[160];
    unsigned long long kilobytes;
    while (fgets(line, sizeof line, status)) {
        if (sscanf(line, "VmHWM: %llu", &kilobytes) == 1) resident.peak = 1024 * kilobytes;
        if (sscanf(line, "RssAnon: %llu", &kilobytes) == 1) resident.anonymous = 1024 * kilobytes;
        if (sscanf(line, "RssFile: %llu", &kilobytes) == 1) resident.file = 1024 * kilobytes;
    }
    fclose(status);
    return resident;
}
