/* Owns: the thread team.
 *
 * Tasks are handed out by one atomic counter, so that a slow core takes fewer. A generation number starts a loop:
 * helpers spin on it for a short time (a decode step starts hundreds of loops), then sleep on a condition variable. A
 * loop ends when every helper has left it: `busy` counts those that have not, so no helper can see the fields of the
 * next loop half written. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/context.h"

enum { MOST_THREADS = 256, STACK_BYTES = 256 * 1024, SPINS = 4000 };

struct ln_team {
    int size;
    int started; /* helper threads running */
    ln_task run;
    void *argument;
    int64_t tasks;
    _Alignas(64) _Atomic int64_t next;
    _Alignas(64) _Atomic unsigned generation;
    _Alignas(64) _Atomic int busy;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    pthread_t helpers[MOST_THREADS];
    struct member {
        ln_team *team;
        int worker;
    } members[MOST_THREADS];
};

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_tasks(ln_team *team, int worker) {
    const int64_t tasks = team->tasks;
    for (;;) {
        const int64_t task = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (task >= tasks) return;
        team->run(team->argument, task, worker);
    }
}

static void wait_for_start(ln_team *team, unsigned seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&team->generation, memory_order_acquire) != seen) return;
        pause_briefly();
    }
    pthread_mutex_lock(&team->lock);
    while (atomic_load_explicit(&team->generation, memory_order_acquire) == seen)
        pthread_cond_wait(&team->start, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

static void *help(void *argument) {
    const struct member *member = argument;
    ln_team *team = member->team;
    for (unsigned seen = 0;;) {
        wait_for_start(team, seen);
        seen++;
        if (atomic_load(&team->stop)) return NULL;
        take_tasks(team, member->worker);
        if (atomic_fetch_sub_explicit(&team->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&team->lock);
            pthread_cond_signal(&team->done);
            pthread_mutex_unlock(&team->lock);
        }
    }
}

static void start_generation(ln_team *team) {
    pthread_mutex_lock(&team->lock);
    atomic_fetch_add_explicit(&team->generation, 1, memory_order_release);
    pthread_cond_broadcast(&team->start);
    pthread_mutex_unlock(&team->lock);
}

static void wait_for_end(ln_team *team) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&team->busy, memory_order_acquire) == 0) return;
        pause_briefly();
    }
    pthread_mutex_lock(&team->lock);
    while (atomic_load_explicit(&team->busy, memory_order_acquire) != 0) pthread_cond_wait(&team->done, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

void ln_parallel(ln_team *team, int64_t tasks, ln_task run, void *argument) {
    if (team->started == 0 || tasks <= 1) {
        for (int64_t task = 0; task < tasks; task++) run(argument, task, 0);
        return;
    }
    team->run = run;
    team->argument = argument;
    team->tasks = tasks;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_store_explicit(&team->busy, team->started, memory_order_relaxed);
    start_generation(team);
    take_tasks(team, 0);
    wait_for_end(team);
}

static int available_processors(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    const int count = CPU_COUNT(&set);
    return count > 0 ? count : 1;
}

static linnet_status start_helpers(linnet_context *context, ln_team *team) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    /* Signals go to the caller's thread, whose handler knows what to do. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    linnet_status status = LINNET_OK;
    for (int worker = 1; worker < team->size && status == LINNET_OK; worker++) {
        team->members[worker] = (struct member){team, worker};
        if (!ln_account(context, STACK_BYTES, "thread stacks")) {
            status = LINNET_ERROR_MEMORY;
        } else if (pthread_create(&team->helpers[team->started], &attributes, help, &team->members[worker]) != 0) {
            ln_account_release(context, STACK_BYTES);
            status =
                ln_fail(context, LINNET_ERROR_MEMORY,
                        "the system refused to start thread %d of %d; ask for fewer threads", worker + 1, team->size);
        } else {
            team->started++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return status;
}

linnet_status ln_team_open(linnet_context *context, int threads, ln_team **team) {
    *team = NULL;
    if (threads < 0 || threads > MOST_THREADS)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%d threads are outside 1 to %d", threads, MOST_THREADS);
    ln_team *made = ln_allocate_zero(context, 1, sizeof *made, "thread team");
    if (!made) return LINNET_ERROR_MEMORY;
    made->size = threads ? threads : available_processors();
    if (made->size > MOST_THREADS) made->size = MOST_THREADS;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->start, NULL);
    pthread_cond_init(&made->done, NULL);
    *team = made;
    return start_helpers(context, made);
}

void ln_team_close(linnet_context *context, ln_team *team) {
    if (!team) return;
    atomic_store(&team->stop, true);
    start_generation(team);
    for (int i = 0; i < team->started; i++) {
        pthread_join(team->helpers[i], NULL);
        ln_account_release(context, STACK_BYTES);
    }
    pthread_cond_destroy(&team->done);
    pthread_cond_destroy(&team->start);
    pthread_mutex_destroy(&team->lock);
    ln_release(context, team);
}

int ln_team_size(const ln_team *team) {
    return team->size;
}
