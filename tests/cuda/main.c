/* The kernels for GPUs against float64 on the CPU, and how fast they are.
 *
 *     cuda_check [--bench] [--suite NAME] [--kernels TEXT] [--works TEXT] [--largest N] [--rounds N] [--seed N]
 *
 * Without a GPU it checks what needs none and says how many cases it skipped. CHECK_SUITES is the list of suites:
 * SUITE(attention) SUITE(...), one for each file check_NAME.c. */
#include <time.h>

#include "check.h"

#define SUITE(name) extern const suite cuda_suite_##name;
CHECK_SUITES
#undef SUITE
#define SUITE(name) &cuda_suite_##name,
static const suite *const SUITES[] = {CHECK_SUITES NULL};
#undef SUITE

#ifdef LN_CUDA_EMULATED
static const double LARGEST = 3e7;
static const char SKIPPED[] = " as too large for the emulator";
#else
static const double LARGEST = INFINITY;
static const char SKIPPED[] = " for want of a GPU";
#endif

static int usage(void) {
    fprintf(stderr, "usage: cuda_check [--bench] [--suite NAME] [--kernels TEXT] [--works TEXT] [--largest N] "
                    "[--rounds N] [--seed N]\n"
                    "  TEXT: part of a name; --largest: works of at most so many multiply-adds are checked\n");
    return 2;
}

static void run_suites(const char *wanted, bool bench, const check_options *options) {
    ln_cuda_device device;
    const ln_cuda_code found = ln_cuda_device_read(0, &device);
    if (bench && found != LN_CUDA_OK) printf("no GPU: code %d\n", found);
    if (bench && found == LN_CUDA_OK) {
        show_device("idle");
        printf("copy %.3f TB/s\n", device_bandwidth() * 1e-12);
    }
    for (int i = 0; SUITES[i]; i++) {
        const suite *s = SUITES[i];
        if (*wanted && strcmp(s->name, wanted)) continue;
        if (!bench) {
            if (s->plans) s->plans();
            if (found == LN_CUDA_OK)
                s->check(&device, options);
            else
                check_skipped += s->cases;
        } else if (found == LN_CUDA_OK && s->bench)
            s->bench(&device, options);
        fflush(stdout);
    }
}

int main(int count, char **words) {
    bool bench = false;
    const char *suites = "";
    check_options options = {"", "", LARGEST, 15};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    check_seed = (uint64_t)now.tv_nsec * 1000003u + (uint64_t)now.tv_sec + 1;
    for (int i = 1; i < count; i++) {
        if (!strcmp(words[i], "--bench")) {
            bench = true;
            continue;
        }
        if (i + 1 == count) return usage();
        const char *word = words[i], *value = words[++i];
        if (!strcmp(word, "--suite"))
            suites = value;
        else if (!strcmp(word, "--kernels"))
            options.kernels = value;
        else if (!strcmp(word, "--works"))
            options.works = value;
        else if (!strcmp(word, "--largest"))
            options.largest = atof(value);
        else if (!strcmp(word, "--rounds"))
            options.rounds = atoi(value);
        else if (!strcmp(word, "--seed"))
            check_seed = strtoull(value, NULL, 10);
        else
            return usage();
    }
    if (options.rounds < 1) options.rounds = 1;
    printf("seed %llu\n", (unsigned long long)check_seed);
    run_suites(suites, bench, &options);
    printf("%d checks, %d failed, %d GPU cases skipped%s\n", check_count, check_failures, check_skipped,
           check_skipped ? SKIPPED : "");
    return check_failures ? 1 : 0;
}
