/* Memory under a policy in session files: what is resumed goes on bit for bit, wherever it was saved; another policy,
 * too few bytes, another shape are refused with a sentence and change nothing, as is damage and every number that lies;
 * saving while others save, being killed, a full disk, files that shrink while they are read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ragged.h"

static char folder[64], path[96];

static void save(world *w, const ln_memory *memory) {
    ln_state_writer writer;
    assert_int_equal(ln_state_create(w->context, path, &writer), LINNET_OK);
    ln_memory_write(memory, &writer);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
}

static linnet_status load(world *w, ln_memory *memory) {
    ln_state_reader reader;
    linnet_status status = ln_state_open(w->context, path, &reader);
    if (status != LINNET_OK) return status;
    status = ln_memory_read(memory, &reader, -1);
    if (status == LINNET_OK) assert_int_equal(ln_state_left(&reader), 0);
    ln_state_close(&reader);
    return status;
}

/* Feeds `tokens` tokens from number `at` of a fixed text in pieces of `piece`; a sum over all output. */
static uint64_t feed_text(world *w, ln_memory *memory, int64_t tokens, int64_t piece) {
    static float output[OUTPUT];
    uint64_t sum = 0;
    for (int64_t end = ln_memory_position(memory) + tokens; ln_memory_position(memory) < end;) {
        const int64_t at = ln_memory_position(memory), n = ln_min_i64(piece, end - at);
        static uint32_t seeds[PIECE];
        for (int64_t t = 0; t < n; t++) seeds[t] = (uint32_t)(1000 + at + t);
        assert_int_equal(feed_seeds(w, memory, seeds, n, output, NULL, NULL), LINNET_OK);
        for (int64_t i = 0; i < LAYERS * n * HEADS * VALUE; i++) {
            uint32_t bits;
            memcpy(&bits, &output[i], sizeof bits);
            sum = (sum ^ bits) * 0x100000001b3u;
        }
    }
    return sum;
}

static unsigned char *read_all(size_t *bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*bytes + 8);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

static void write_all(const unsigned char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* The part between head and tail, with both made anew. */
static void write_body(world *w, const unsigned char *body, size_t bytes) {
    ln_state_writer writer;
    assert_int_equal(ln_state_create(w->context, path, &writer), LINNET_OK);
    ln_state_put(&writer, body, bytes);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
}

/* ---- resuming ---- */

static const char *const policies[] = {
    "full",      "quantized",
    "kivi",      "window",
    "h2o",       "scissorhands",
    "snapkv",    "keyformer",
    "tova",      "expected",
    "lagkv",     "zipcache",
    "adakv",     "random:seed=5,keys=q4,values=q3,rotate=1",
    "keydiff",   "fixed,window:sinks=33,recent=40",
    "pyramidkv", "flipping,zipcache:sinks=0,recent=0,salient=0.3",
    "think",     "bfp",
};
enum { POLICIES = sizeof policies / sizeof *policies };

static void test_resume(void **state) {
    (void)state;
    for (int i = 0; i < POLICIES; i++) {
        world w;
        open_world(&w, 2);
        const ln_policy policy = test_policy(w.context, policies[i]);
        ln_memory_shape shape = test_shape(&w, &policy, 1500, 0);
        if (policy.scorer) shape.lane_bytes += 30000;
        static const int64_t at[] = {0, 20, 140, 700, 737};
        for (int k = 0; k < 5; k++) {
            ln_memory *first, *second, *fork;
            assert_int_equal(open_memory(&w, &shape, &first), LINNET_OK);
            assert_int_equal(open_memory(&w, &shape, &second), LINNET_OK);
            feed_text(&w, first, ln_min_i64(at[k], 700), PIECE);
            feed_text(&w, first, at[k] - ln_memory_position(first), 1);
            save(&w, first);
            feed_text(&w, second, 190, 33);
            assert_int_equal(ln_memory_fork(second, &fork), LINNET_OK);
            if (k % 2) {
                ln_memory *const other = second; /* into a fork, or with a fork beside it */
                second = fork;
                fork = other;
            }
            if (load(&w, second) != LINNET_OK) fail_msg("%s: %s", policies[i], linnet_last_error(w.context));
            assert_int_equal(ln_memory_position(second), at[k]);
            assert_int_equal(ln_memory_rewind_limit(second), ln_memory_rewind_limit(first));
            const ln_ragged_usage a = ln_memory_measure(first), b = ln_memory_measure(second);
            assert_int_equal(a.kept, b.kept);
            assert_int_equal(a.evicted, b.evicted);
            if (feed_text(&w, first, 200, PIECE) != feed_text(&w, second, 200, PIECE) ||
                feed_text(&w, first, 40, 1) != feed_text(&w, second, 40, 1))
                fail_msg("%s goes on differently from %d on", policies[i], (int)at[k]);
            size_t bytes, more;
            save(&w, first);
            unsigned char *data = read_all(&bytes);
            save(&w, second);
            unsigned char *other = read_all(&more);
            assert_int_equal(bytes, more);
            assert_memory_equal(data, other, bytes);
            free(data);
            free(other);
            feed_text(&w, fork, 100, PIECE);
            ln_memory_close(first);
            ln_memory_close(k < 3 ? second : fork);
            ln_memory_close(k < 3 ? fork : second);
        }
        assert_int_equal(linnet_memory_used(w.context), w.before);
        close_world(&w);
    }
}

/* ---- what does not fit ---- */

static void expect_refused(world *w, ln_memory *memory, int64_t position, const char *word) {
    const linnet_status status = load(w, memory);
    assert_true(status == LINNET_ERROR_FORMAT || status == LINNET_ERROR_MEMORY);
    if (!strstr(linnet_last_error(w->context), word) || !strstr(linnet_last_error(w->context), path))
        fail_msg("'%s' in: %s", word, linnet_last_error(w->context));
    assert_int_equal(ln_memory_position(memory), position);
}

static void test_other_sessions(void **state) {
    (void)state;
    world w;
    open_world(&w, 1);
    const ln_policy policy = test_policy(w.context, "snapkv"), other = test_policy(w.context, "snapkv:window=33"),
                    low = test_policy(w.context, "zipcache");
    ln_memory_shape shape = test_shape(&w, &policy, 1500, 0);
    shape.lane_bytes += 200000;
    ln_memory *memory, *there;
    assert_int_equal(open_memory(&w, &shape, &memory), LINNET_OK);
    feed_text(&w, memory, 1400, PIECE);
    save(&w, memory);
    const struct {
        const ln_policy *policy;
        int64_t capacity, more;
        const char *word;
    } rows[] = {{&other, 1500, 200000, "window=33"}, {&low, 1500, 200000, "zipcache"}, {NULL, 1500, 0, "snapkv"},
                {&policy, 1500, 100, "room"},        {&policy, 1399, 200000, "1400"},  {&policy, 1500, 200000, NULL},
                {&policy, 1600, 220000, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ln_memory_shape here = test_shape(&w, rows[i].policy, rows[i].capacity, 0);
        here.lane_bytes += (uint64_t)rows[i].more;
        assert_int_equal(open_memory(&w, &here, &there), LINNET_OK);
        feed_text(&w, there, 500, PIECE);
        if (rows[i].word) {
            ln_memory *same;
            assert_int_equal(open_memory(&w, &here, &same), LINNET_OK);
            feed_text(&w, same, 500, PIECE);
            expect_refused(&w, there, 500, rows[i].word);
            assert_true(feed_text(&w, there, 100, PIECE) == feed_text(&w, same, 100, PIECE));
            ln_memory_close(same);
        } else {
            assert_int_equal(load(&w, there), LINNET_OK);
            assert_int_equal(ln_memory_position(there), 1400);
            feed_text(&w, there, 100, PIECE);
        }
        ln_memory_close(there);
    }
    /* From a plain memory: only into one. */
    const ln_memory_shape plain = test_shape(&w, NULL, 1500, 0);
    assert_int_equal(open_memory(&w, &plain, &there), LINNET_OK);
    feed_text(&w, there, 300, PIECE);
    save(&w, there);
    expect_refused(&w, memory, 1400, "without a policy");
    assert_int_equal(ln_memory_rewind(there, 0), LINNET_OK);
    assert_int_equal(load(&w, there), LINNET_OK);
    assert_int_equal(ln_memory_position(there), 300);
    ln_memory_close(there);
    ln_memory_close(memory);
    close_world(&w);
}

/* Every number of the table replaced by what cannot be, with a right checksum; every length. */
static void test_lying_files(void **state) {
    (void)state;
    static const int64_t lies[] = {0, 1, -1, 31, 33, 1 << 20, INT64_MAX, INT64_MIN, INT64_MAX / 32};
    world w;
    open_world(&w, 1);
    const ln_policy policy = test_policy(w.context, "flipping,zipcache:sinks=32,recent=40");
    ln_memory_shape shape = test_shape(&w, &policy, 800, 0);
    shape.lane_bytes += 20000;
    ln_memory *memory;
    assert_int_equal(open_memory(&w, &shape, &memory), LINNET_OK);
    feed_text(&w, memory, 600, PIECE);
    save(&w, memory);
    size_t bytes;
    unsigned char *data = read_all(&bytes);
    const size_t body = bytes - 32;
    int64_t refused = 0;
    int64_t text;
    memcpy(&text, data + 32, sizeof text);
    for (size_t at = 0; at + 8 <= body; at += at == 16 ? 8 + (size_t)text : at < 2000 ? 8 : 1028) {
        for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
            unsigned char truth[8];
            memcpy(truth, data + 16 + at, 8);
            memcpy(data + 16 + at, &lies[i], 8);
            write_body(&w, data + 16, body);
            memcpy(data + 16 + at, truth, 8);
            const linnet_status status = load(&w, memory);
            refused += status != LINNET_OK;
            if (status != LINNET_OK) {
                assert_non_null(strstr(linnet_last_error(w.context), path));
                assert_int_equal(ln_memory_position(memory), 600);
            } else { /* a number that means nothing to anybody: it must go on all the same */
                feed_text(&w, memory, 40, PIECE);
            }
            if (i % 4 == 3 || status == LINNET_OK) {
                write_all(data, bytes);
                assert_int_equal(load(&w, memory), LINNET_OK);
            }
        }
    }
    if (refused < 150) fail_msg("only %d files were refused", (int)refused);
    for (size_t n = 0; n < body; n += n < 3000 ? 97 : 9973) {
        write_body(&w, data + 16, n);
        assert_true(load(&w, memory) != LINNET_OK);
        assert_int_equal(ln_memory_position(memory), 600);
    }
    free(data);
    ln_memory_close(memory);
    assert_int_equal(linnet_memory_used(w.context), w.before);
    close_world(&w);
}

/* ---- faults ---- */

static int files_in_folder(void) {
    DIR *opened = opendir(folder);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(opened));) files += entry->d_name[0] != '.';
    closedir(opened);
    return files;
}

typedef struct two_texts {
    world w;
    ln_memory_shape shape;
    ln_policy policy;
    ln_memory *memory[2], *there; /* of 500 and of 900 tokens */
} two_texts;

static void open_two(two_texts *two) {
    open_world(&two->w, 1);
    two->policy = test_policy(two->w.context, "h2o");
    two->shape = test_shape(&two->w, &two->policy, 1000, 0);
    two->shape.lane_bytes += 400000;
    for (int i = 0; i < 3; i++) {
        ln_memory **memory = i < 2 ? &two->memory[i] : &two->there;
        assert_int_equal(open_memory(&two->w, &two->shape, memory), LINNET_OK);
        if (i < 2) feed_text(&two->w, *memory, i ? 900 : 500, PIECE);
    }
}

static void close_two(two_texts *two) {
    for (int i = 0; i < 2; i++) ln_memory_close(two->memory[i]);
    ln_memory_close(two->there);
    close_world(&two->w);
}

static void check_whole(two_texts *two) {
    if (load(&two->w, two->there) != LINNET_OK) fail_msg("%s", linnet_last_error(two->w.context));
    const int64_t position = ln_memory_position(two->there);
    assert_true(position == 500 || position == 900);
}

/* And what was loaded is what was saved, where nobody saves just now. */
static void check_old_or_new(two_texts *two) {
    check_whole(two);
    size_t bytes, more;
    unsigned char *data = read_all(&bytes);
    ln_state_writer writer;
    char again[128];
    snprintf(again, sizeof again, "%s-again", path);
    assert_int_equal(ln_state_create(two->w.context, again, &writer), LINNET_OK);
    ln_memory_write(two->there, &writer);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
    FILE *file = fopen(again, "rb");
    unsigned char *other = malloc(bytes + 1);
    more = fread(other, 1, bytes + 1, file);
    fclose(file);
    unlink(again);
    assert_int_equal(more, bytes);
    assert_memory_equal(data, other, bytes);
    free(data);
    free(other);
}

/* Whoever is killed in the middle leaves the old session or the new one, and nothing that the next one minds. */
static void test_killed(void **state) {
    (void)state;
    two_texts two;
    open_two(&two);
    save(&two.w, two.memory[0]);
    ln_random random;
    ln_random_seed(&random, (uint64_t)time(NULL));
    for (int round = 0; round < 40; round++) {
        const pid_t child = fork();
        if (child == 0) {
            for (int i = 0;; i++) {
                ln_state_writer writer;
                if (ln_state_create(two.w.context, path, &writer) != LINNET_OK) _exit(1);
                ln_memory_write(two.memory[i % 2], &writer);
                if (ln_state_finish(&writer, true) != LINNET_OK) _exit(1);
            }
        }
        assert_true(child > 0);
        const struct timespec pause = {0, (long)ln_random_below(&random, 20000000)};
        nanosleep(&pause, NULL);
        check_whole(&two);
        kill(child, SIGKILL);
        int how;
        waitpid(child, &how, 0);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        check_old_or_new(&two);
        assert_true(files_in_folder() <= 2);
    }
    save(&two.w, two.memory[1]);
    assert_int_equal(files_in_folder(), 1);
    close_two(&two);
}

/* Two that save into one file: each saves all or is told that another one does; who loads meanwhile gets one of them.
 */
static void test_two_processes(void **state) {
    (void)state;
    two_texts two;
    open_two(&two);
    save(&two.w, two.memory[0]);
    pid_t children[2];
    for (int c = 0; c < 2; c++) {
        children[c] = fork();
        if (children[c] == 0) {
            for (int i = 0, saved = 0; saved < 30; i++) {
                ln_state_writer writer;
                linnet_status status = ln_state_create(two.w.context, path, &writer);
                if (status == LINNET_OK) {
                    ln_memory_write(two.memory[c], &writer);
                    status = ln_state_finish(&writer, true);
                    saved++;
                } else if (strstr(linnet_last_error(two.w.context), "another")) {
                    const struct timespec pause = {0, 1000000};
                    nanosleep(&pause, NULL);
                    status = LINNET_OK;
                }
                if (status != LINNET_OK || i > 20000) _exit(1);
            }
            _exit(0);
        }
    }
    for (int left = 2; left > 0;) {
        check_whole(&two);
        for (int c = 0; c < 2; c++) {
            int how;
            if (children[c] && waitpid(children[c], &how, WNOHANG) == children[c]) {
                assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
                children[c] = 0;
                left--;
            }
        }
    }
    check_old_or_new(&two);
    assert_int_equal(files_in_folder(), 1);
    close_two(&two);
}

/* The disk is full: a sentence, the old file stays, nothing is left behind. */
static void test_full_disk(void **state) {
    (void)state;
    two_texts two;
    open_two(&two);
    save(&two.w, two.memory[0]);
    struct stat saved;
    assert_int_equal(stat(path, &saved), 0);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t bytes = 0; bytes < (rlim_t)saved.st_size; bytes += (rlim_t)saved.st_size / 5) {
        limit = before;
        limit.rlim_cur = bytes;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        ln_state_writer writer;
        linnet_status status = ln_state_create(two.w.context, path, &writer);
        if (status == LINNET_OK) {
            ln_memory_write(two.memory[1], &writer);
            status = ln_state_finish(&writer, true);
        }
        setrlimit(RLIMIT_FSIZE, &before);
        assert_int_equal(status, LINNET_ERROR_FILE);
        assert_non_null(strstr(linnet_last_error(two.w.context), path));
        assert_int_equal(files_in_folder(), 1);
        assert_int_equal(load(&two.w, two.there), LINNET_OK);
        assert_int_equal(ln_memory_position(two.there), 500);
    }
    signal(SIGXFSZ, handler);
    close_two(&two);
}

/* A file that shrinks, grows or goes away while it is read. */
static void test_unsteady_file(void **state) {
    (void)state;
    two_texts two;
    open_two(&two);
    save(&two.w, two.memory[1]);
    size_t bytes;
    unsigned char *data = read_all(&bytes);
    for (int i = 0; i < 4; i++) {
        write_all(data, bytes);
        ln_state_reader reader;
        assert_int_equal(ln_state_open(two.w.context, path, &reader), LINNET_OK);
        if (i == 0) assert_int_equal(truncate(path, (off_t)(bytes / 2)), 0);
        if (i == 1) assert_int_equal(truncate(path, 0), 0);
        if (i == 2) assert_int_equal(truncate(path, (off_t)(2 * bytes)), 0);
        if (i == 3) assert_int_equal(unlink(path), 0);
        assert_int_equal(ln_state_changed(&reader), i < 3);
        const linnet_status status = ln_memory_read(two.there, &reader, -1);
        if (i < 2)
            assert_int_equal(status, LINNET_ERROR_FORMAT);
        else
            assert_int_equal(status, LINNET_OK);
        assert_int_equal(ln_memory_position(two.there), i < 2 ? 0 : 900);
        ln_state_close(&reader);
    }
    free(data);
    ln_state_reader reader;
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(ln_state_open(two.w.context, path, &reader), LINNET_ERROR_FILE);
    assert_int_equal(ln_state_open(two.w.context, folder, &reader), LINNET_ERROR_FILE);
    close_two(&two);
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/dev/shm/linnet-test-XXXXXX"); /* where flushing costs nothing */
    if (!mkdtemp(folder)) strcpy(folder, "/tmp/linnet-test-XXXXXX");
    if (!strstr(folder, "shm") && !mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/session", folder);
    return 0;
}

/* ---- pages elsewhere ---- */

static void move_nothing(void *user, int64_t head, int step, const ln_ragged_move *move) {
    (void)user, (void)head, (void)step, (void)move;
}
static linnet_status fetch_zeros(void *user, ln_page page, const ln_page_layout *layout, unsigned char *to) {
    (void)user, (void)page;
    memset(to, 0, layout->bytes);
    return LINNET_OK;
}
static linnet_status store_nothing(void *user, ln_page page, const ln_page_layout *layout, const unsigned char *from) {
    (void)user, (void)page, (void)layout, (void)from;
    return LINNET_OK;
}

static void feed_elsewhere(world *w, ln_ragged *ragged, int64_t tokens, void *workspace) {
    const ln_attention attention = {.scale = 0.6f};
    while (tokens > 0) {
        const int64_t n = ln_min_i64(tokens, PIECE);
        const ln_ragged_call call = {.kernels = &w->kernels,
                                     .team = w->context->team,
                                     .attention = &attention,
                                     .tokens = n,
                                     .workspace = workspace};
        ln_ragged_append(ragged, w->context->team, 0, n, NULL, 0, NULL, 0);
        assert_int_equal(ln_ragged_attended(ragged, 0, &call), LINNET_OK);
        ln_ragged_commit(ragged, n);
        tokens -= n;
    }
}

/* Counts of far tokens of both lanes changed, and pages that the second lies about moved to the first. */
static linnet_status read_with(world *w, ln_ragged *ragged, const unsigned char *data, size_t bytes,
                               const int64_t *more) {
    const size_t lane = 16 + 7 * 8 + 4 * 8 + sizeof((ln_statistics *)NULL)->mass, pages = lane + 2 * 40;
    unsigned char *changed = malloc(bytes);
    int64_t numbers[2][4], count = 0; /* far, low, near, given up */
    ln_state_reader reader;
    memcpy(changed, data, bytes);
    for (int i = 0; i < 2; i++) {
        memcpy(numbers[i], data + lane + i * 40 + 8, sizeof numbers[i]);
        count += numbers[i][0] / 32 + ln_ceil_div(numbers[i][2], 32);
        assert_true(numbers[i][0] >= 800 && numbers[i][3] >= 800);
        numbers[i][0] += more[i];
        numbers[i][3] -= more[i];
        memcpy(changed + lane + i * 40 + 8, numbers[i], sizeof numbers[i]);
    }
    if (more[0] > 0) {
        const size_t page = (bytes - 16 - pages) / (size_t)count, moved = (size_t)(more[0] / 32) * page,
                     near = (size_t)ln_ceil_div(numbers[0][2], 32) * page,
                     at = pages + (size_t)(numbers[0][0] - more[0]) / 32 * page;
        memcpy(changed + at, data + at + near, moved);
        memcpy(changed + at + moved, data + at, near);
    }
    write_body(w, changed + 16, bytes - 32);
    free(changed);
    assert_int_equal(ln_state_open(w->context, path, &reader), LINNET_OK);
    const linnet_status status = ln_ragged_read(ragged, &reader, ragged->position, false);
    ln_state_close(&reader);
    return status;
}

/* A lane there is one sequence: its far pages are full, and its table holds them and a piece. */
static void test_elsewhere(void **state) {
    (void)state;
    static const ln_ragged_elsewhere there = {NULL, move_nothing, fetch_zeros, store_nothing};
    world w;
    open_world(&w, 1);
    const ln_policy policy = test_policy(w.context, "window:recent=32");
    ln_ragged_shape shape = {.layers = 1,
                             .heads = HEADS,
                             .key_value_heads = KV,
                             .key_size = KEY,
                             .value_size = KEY,
                             .scale = 0.6f,
                             .policy = &policy,
                             .capacity = CAPACITY,
                             .piece = PIECE,
                             .elsewhere = &there};
    assert_int_equal(ln_ragged_least(w.context, &shape, &shape.bytes), LINNET_OK);
    shape.bytes += 250000;
    ln_ragged *ragged;
    ln_state_writer writer;
    size_t bytes;
    assert_int_equal(ln_ragged_open(w.context, &shape, &ragged), LINNET_OK);
    void *workspace = aligned_alloc(64, ln_round_up(ln_ragged_attended_workspace(&w.kernels, 1, &shape), 64));
    feed_elsewhere(&w, ragged, 4000, workspace);
    assert_int_equal(ln_state_create(w.context, path, &writer), LINNET_OK);
    assert_int_equal(ln_ragged_write(ragged, &writer), LINNET_OK);
    assert_int_equal(ln_state_finish(&writer, true), LINNET_OK);
    unsigned char *data = read_all(&bytes);
    static const int64_t truth[2] = {0, 0}, lies[][2] = {{-1, 0}, {0, -31}, {800, -800}};
    assert_int_equal(read_with(&w, ragged, data, bytes, truth), LINNET_OK);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        assert_int_equal(read_with(&w, ragged, data, bytes, lies[i]), LINNET_ERROR_FORMAT);
        if (!strstr(linnet_last_error(w.context), "the numbers of tokens"))
            fail_msg("lie %d: %s", (int)i, linnet_last_error(w.context));
    }
    free(data);
    free(workspace);
    ln_ragged_close(ragged);
    close_world(&w);
}

static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resume, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_other_sessions, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_lying_files, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_elsewhere, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_unsteady_file, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_full_disk, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_killed, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_two_processes, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
