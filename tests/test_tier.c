/* The disk tier: the same outcome as in RAM, from few pages in RAM, by either way of reading; forks, rewinds; a full
 * disk, a file cut off or altered behind our back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include "far.h"

#define KEPT "keys=q8_0,values=q8_0,rotate=0,sinks=32,recent=64"

static void open_far(far *f, int threads, const char *policy, uint64_t more) {
    assert_int_equal(far_try(f, threads, policy, 0, more, NULL), LINNET_OK);
}

/* ---- the same as in RAM ---- */

static void test_selected_pages_give_the_same_bits(void **state) {
    (void)state;
    static far ram, file;
    for (int s = 0; ln_selector_at(s); s++) {
        char policy[2][160];
        for (int i = 0; i < 2; i++)
            snprintf(policy[i], sizeof policy[i], "quantized:" KEPT ",selector=%s,read=256,tier=%s",
                     ln_selector_at(s)->name, i ? "file" : "ram");
        open_far(&ram, 2, policy[0], 4 << 20);
        open_far(&file, 1 + s % 3, policy[1], 400 << 10);
        assert_true(file.ragged->tier->file && !ram.ragged->tier->file);
        assert_true(file.ragged->tier->shape.resident < 30 && file.ragged->tier->shape.resident > 10);
        while (ram.ragged->position < 1200) {
            assert_int_equal(far_feed(&ram, ram.ragged, 80), LINNET_OK);
            assert_int_equal(far_feed(&file, file.ragged, 80), LINNET_OK);
            assert_true(far_difference(&ram, &file, 80) < 2e-5F); /* a prompt reads all, in runs */
        }
        for (int step = 0; step < 40; step++) {
            assert_int_equal(far_feed(&ram, ram.ragged, 1 + step % 2), LINNET_OK);
            assert_int_equal(far_feed(&file, file.ragged, 1 + step % 2), LINNET_OK);
            assert_true(far_difference(&ram, &file, 1 + step % 2) == 0);
        }
        const ln_ragged_usage usage = ln_ragged_measure(file.ragged);
        assert_true(usage.peak <= file.shape.bytes && usage.bytes <= usage.peak);
        assert_true(usage.file >= (uint64_t)(file.ragged->tier->lane[0].pages * file.ragged->lanes) * 3000);
        assert_int_equal(usage.kept, ln_ragged_measure(ram.ragged).kept);
        far_close(&ram);
        far_close(&file);
    }
}

static void test_reading_all_in_runs(void **state) {
    (void)state;
    static far ram, file, threads;
    open_far(&ram, 2, "quantized:" KEPT, 0);
    open_far(&file, 2, "quantized:tier=file," KEPT, 20 << 10);
    open_far(&threads, 3, "quantized:tier=file," KEPT, 20 << 10);
    assert_true(file.shape.bytes * 2 < ram.shape.bytes);
    for (int64_t position = 0; position < 1500; position = ram.ragged->position) {
        const int64_t tokens = position < 1440 ? 96 : 1 + position % 3;
        assert_int_equal(far_feed(&ram, ram.ragged, tokens), LINNET_OK);
        assert_int_equal(far_feed(&file, file.ragged, tokens), LINNET_OK);
        assert_int_equal(far_feed(&threads, threads.ragged, tokens), LINNET_OK);
        assert_true(far_difference(&ram, &file, tokens) < 2e-5F);
        assert_true(far_difference(&threads, &file, tokens) == 0);
    }
    assert_true(linnet_memory_peak(file.context) < linnet_memory_peak(ram.context));
    far_close(&ram);
    far_close(&file);
    far_close(&threads);
}

/* A prompt after steps, steps after a prompt, a budget that cannot hold what a step reads. */
static void test_any_order(void **state) {
    (void)state;
    static far ram, file;
    open_far(&ram, 2, "quantized:" KEPT ",selector=quest,read=512", 4 << 20);
    open_far(&file, 2, "quantized:" KEPT ",selector=quest,read=512,tier=file", 30 << 10);
    assert_true(file.ragged->tier->shape.resident < 16);
    ln_random random;
    ln_random_seed(&random, 1);
    while (ram.ragged->position < 1800) {
        const int64_t tokens = 1 + (int64_t)ln_random_below(&random, ln_random_below(&random, 2) ? 3 : FAR_PIECE);
        assert_int_equal(far_feed(&ram, ram.ragged, tokens), LINNET_OK);
        assert_int_equal(far_feed(&file, file.ragged, tokens), LINNET_OK);
        assert_true(far_difference(&ram, &file, tokens) < 2e-5F);
    }
    far_close(&ram);
    far_close(&file);
}

static void test_forks_and_rewinds(void **state) {
    (void)state;
    static far alone, family;
    static const char policy[] = "quantized:" KEPT ",selector=quest,read=256,tier=file";
    open_far(&alone, 2, policy, 300 << 10);
    open_far(&family, 2, policy, 300 << 10);
    const uint64_t before = linnet_memory_used(family.context);
    assert_int_equal(far_read(&alone, alone.ragged, 1000), LINNET_OK);
    assert_int_equal(far_read(&family, family.ragged, 1000), LINNET_OK);
    const uint64_t size = ln_ragged_measure(family.ragged).file;
    ln_ragged *forks[3];
    for (int i = 0; i < 3; i++) assert_int_equal(ln_ragged_fork(family.ragged, &forks[i]), LINNET_OK);
    assert_true(ln_ragged_measure(family.ragged).file == size);
    for (int step = 0; step < 70; step++) {
        for (int i = step % 2; i < 3; i++) assert_int_equal(far_feed(&family, forks[i], 2), LINNET_OK);
        if (step == 30) ln_ragged_close(family.ragged), family.ragged = forks[1];
        if (step == 30) forks[1] = forks[2];
        assert_int_equal(far_feed(&family, family.ragged, step < 30 ? 1 : 2), LINNET_OK);
    }
    /* What a fork says is what one says that was alone. */
    const int64_t position = forks[0]->position;
    while (alone.ragged->position < position - 2) assert_int_equal(far_feed(&alone, alone.ragged, 2), LINNET_OK);
    assert_int_equal(far_feed(&alone, alone.ragged, 2), LINNET_OK);
    assert_int_equal(far_feed(&alone, alone.ragged, 1), LINNET_OK);
    assert_int_equal(far_feed(&family, forks[0], 1), LINNET_OK);
    assert_true(far_difference(&alone, &family, 1) < 2e-5F);
    ln_ragged_close(forks[0]);
    ln_ragged_close(forks[1]);
    ln_ragged_rewind(family.ragged, 0);
    assert_int_equal(ln_ragged_measure(family.ragged).file, 0);
    assert_int_equal(far_read(&family, family.ragged, 700), LINNET_OK);
    ln_ragged_rewind(alone.ragged, 0);
    assert_int_equal(far_read(&alone, alone.ragged, 700), LINNET_OK);
    assert_true(far_difference(&alone, &family, 1) == 0);
    ln_ragged_close(family.ragged);
    family.ragged = NULL;
    assert_true(linnet_memory_used(family.context) < before);
    far_close(&alone);
    far_close(&family);
}

/* ---- ways of reading ---- */

#if defined(__linux__)

/* The system refuses io_uring from here on. */
static bool refuse_ring(int error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum { SKIPPED = 77 };

/* A checksum of what steps give. */
static uint64_t outcome_of(far *f) {
    uint64_t sum = 0;
    if (far_read(f, f->ragged, 900) != LINNET_OK) return 0;
    for (int step = 0; step < 20; step++) {
        if (far_feed(f, f->ragged, 1) != LINNET_OK) return 0;
        for (int l = 0; l < FAR_LAYERS; l++)
            for (int i = 0; i < FAR_HEADS * FAR_VALUE; i++)
                sum = sum * 0x9fb21c651e98df25u + ln_float_bits(f->output[l][0][i]);
    }
    return sum;
}

static void test_ring_and_plain_reads_agree(void **state) {
    (void)state;
    static far f;
    static const char policy[] = "quantized:" KEPT ",selector=quest,read=256,tier=file";
    static const int errors[] = {ENOSYS, EPERM};
    open_far(&f, 2, policy, 300 << 10);
    const uint64_t expected = outcome_of(&f);
    far_close(&f);
    assert_true(expected != 0);
    for (int i = 0; i < 2; i++) {
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            static far plain;
            if (!refuse_ring(errors[i])) _exit(SKIPPED);
            if (far_try(&plain, 2, policy, 0, 300 << 10, NULL) != LINNET_OK) _exit(1);
            if (ln_store_queue(plain.ragged->tier->store)->ring >= 0) _exit(2);
            _exit(outcome_of(&plain) == expected ? 0 : 3);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip();
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

/* ---- faults ---- */

/* The open file without a name. */
static int find_file(void) {
    for (int file = 3; file < 64; file++) {
        struct stat about;
        char path[64], target[256];
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
        const ssize_t bytes = readlink(path, target, sizeof target - 1);
        if (bytes <= 0 || fstat(file, &about) != 0 || !S_ISREG(about.st_mode) || about.st_nlink) continue;
        return file;
    }
    return -1;
}

static void test_a_damaged_file_is_refused(void **state) {
    (void)state;
    static far f;
    for (int kind = 0; kind < 3; kind++) {
        open_far(&f, 2, "quantized:" KEPT ",selector=quest,read=256,tier=file", 300 << 10);
        assert_int_equal(far_read(&f, f.ragged, 1500), LINNET_OK);
        const int file = find_file();
        assert_true(file >= 0);
        struct stat about;
        fstat(file, &about);
        if (kind == 0) assert_int_equal(ftruncate(file, 0), 0);
        if (kind == 1) assert_int_equal(ftruncate(file, about.st_size / 2 + 100), 0);
        for (off_t at = 2000; kind == 2 && at < about.st_size; at += 3000)
            assert_int_equal(pwrite(file, "x", 1, at), 1);
        linnet_status status = LINNET_OK;
        const int64_t kept = ln_ragged_measure(f.ragged).kept;
        int64_t position = 0;
        for (int step = 0; step < 300 && status == LINNET_OK; step++) {
            position = f.ragged->position;
            status = far_feed(&f, f.ragged, step % 5 ? 1 : 70);
        }
        assert_int_equal(status, LINNET_ERROR_FILE);
        assert_non_null(strstr(linnet_last_error(f.context), kind == 2 ? "altered" : "cut off"));
        assert_int_equal(f.ragged->position, position);
        assert_true(ln_ragged_measure(f.ragged).kept >= kept);
        ln_ragged_rewind(f.ragged, 0);
        assert_int_equal(far_read(&f, f.ragged, 1000), LINNET_OK);
        far_close(&f);
    }
}

/* Feeds until the file cannot grow; after room was made everything goes on as if nothing had been. */
static void fill(const char *folder, void (*make_room)(const char *folder)) {
    static far f, same;
    static const char policy[] = "quantized:" KEPT ",selector=quest,read=256,tier=file";
    assert_int_equal(far_try(&f, 2, policy, 0, 300 << 10, folder), LINNET_OK);
    linnet_status status = LINNET_OK;
    int64_t pieces = 0;
    for (; status == LINNET_OK && f.ragged->position < 2300; pieces++) status = far_feed(&f, f.ragged, FAR_PIECE);
    assert_int_equal(status, LINNET_ERROR_FILE);
    assert_non_null(strstr(linnet_last_error(f.context), "cannot grow"));
    assert_int_equal(f.ragged->position, (pieces - 1) * FAR_PIECE);
    for (int i = 0; i < 3; i++) assert_int_equal(far_feed(&f, f.ragged, FAR_PIECE), LINNET_ERROR_FILE);
    make_room(folder);
    open_far(&same, 2, policy, 300 << 10);
    assert_int_equal(far_read(&same, same.ragged, f.ragged->position), LINNET_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(far_feed(&f, f.ragged, i ? 1 : FAR_PIECE), LINNET_OK);
        assert_int_equal(far_feed(&same, same.ragged, i ? 1 : FAR_PIECE), LINNET_OK);
        assert_true(far_difference(&f, &same, i ? 1 : FAR_PIECE) == 0);
    }
    far_close(&f);
    far_close(&same);
}

static struct rlimit limit_before;

static void lift_limit(const char *folder) {
    (void)folder;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit_before), 0);
}

static void test_a_limit_of_file_sizes(void **state) {
    (void)state;
    getrlimit(RLIMIT_FSIZE, &limit_before);
    struct rlimit low = limit_before;
    low.rlim_cur = 1 << 20;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    fill(NULL, lift_limit);
}

static void enlarge(const char *folder) {
    assert_int_equal(mount("tmpfs", folder, "tmpfs", MS_REMOUNT, "size=64m"), 0);
}

/* In a child with a small file system of its own, where the system lets. */
static void test_a_full_disk(void **state) {
    (void)state;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char folder[] = "/tmp/linnet-full-XXXXXX";
        if (!mkdtemp(folder)) _exit(SKIPPED);
        if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) _exit(SKIPPED);
        if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("tmpfs", folder, "tmpfs", 0, "size=1m") != 0)
            _exit(SKIPPED);
        fill(folder, enlarge);
        umount(folder);
        rmdir(folder);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip();
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

#endif

static void test_no_folder(void **state) {
    (void)state;
    static far f;
    assert_int_equal(far_try(&f, 1, "quantized:tier=file", 0, 0, "/nowhere/at/all"), LINNET_ERROR_FILE);
    assert_non_null(strstr(linnet_last_error(f.context), "/nowhere/at/all"));
    assert_int_equal(linnet_memory_used(f.context) > (1 << 20), 0);
    linnet_context_close(f.context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selected_pages_give_the_same_bits),
        cmocka_unit_test(test_reading_all_in_runs),
        cmocka_unit_test(test_any_order),
        cmocka_unit_test(test_forks_and_rewinds),
        cmocka_unit_test(test_no_folder),
#if defined(__linux__)
        cmocka_unit_test(test_ring_and_plain_reads_agree),
        cmocka_unit_test(test_a_damaged_file_is_refused),
        cmocka_unit_test(test_a_limit_of_file_sizes),
        cmocka_unit_test(test_a_full_disk),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
