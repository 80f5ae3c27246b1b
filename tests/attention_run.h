/* Running scenes (attention_oracle.h): contexts of every instruction set and number of threads, guarded workspaces.
 * Include after cmocka.h. */
#ifndef ATTENTION_RUN_H
#define ATTENTION_RUN_H

#include <stdlib.h>
#include <string.h>

#include "attention_oracle.h"
#include "base/checked.h"
#include "base/cpu.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOW = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
enum { SLOW = 1 };
#else
enum { SLOW = 0 };
#endif
#else
enum { SLOW = 0 };
#endif

enum { LEVELS = 4, THREADS_MOST = 3, WORKSPACE_GUARD = 64, GUARD_BYTE = 0xa5 };
static const char *const levels[LEVELS] = {"portable", "avx2", "avx512", NULL};
static linnet_context *contexts[LEVELS][THREADS_MOST + 1];

/* Levels that this processor reaches no further than the one before are that one again. */
static inline bool level_is_new(int level) {
    unsigned mask = ~0u, before = 0;
    if (levels[level]) ln_cpu_mask(levels[level], &mask);
    if (level > 0) ln_cpu_mask(levels[level - 1], &before);
    return level == 0 || (mask & ln_cpu_detect()) != (before & ln_cpu_detect());
}

/* What was not written is NaN, or a code that is not 0. */
static inline void *take_filled(void *user, size_t bytes) {
    (void)user;
    void *block = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (block) memset(block, 0xff, bytes);
    return block;
}
static inline void give_back(void *user, void *block, size_t bytes) {
    (void)user;
    (void)bytes;
    free(block);
}

static inline linnet_context *test_context(int level, int threads) {
    linnet_context **context = &contexts[level][threads];
    if (*context) return *context;
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = levels[level];
    settings.allocate = take_filled;
    settings.release = give_back;
    assert_int_equal(linnet_context_open(&settings, context), LINNET_OK);
    return *context;
}

/* All plans of them must be closed by now. */
static inline int close_contexts(void **state) {
    (void)state;
    for (int level = 0; level < LEVELS; level++)
        for (int threads = 0; threads <= THREADS_MOST; threads++) {
            linnet_context_close(contexts[level][threads]);
            contexts[level][threads] = NULL;
        }
    return 0;
}

/* Full of NaN, and a guard behind it. */
static inline unsigned char *open_workspace(uint64_t bytes) {
    unsigned char *workspace = aligned_alloc(64, (bytes + WORKSPACE_GUARD + 63) / 64 * 64);
    assert_non_null(workspace);
    memset(workspace, 0xff, bytes);
    memset(workspace + bytes, GUARD_BYTE, WORKSPACE_GUARD);
    return workspace;
}
static inline void close_workspace(unsigned char *workspace, uint64_t bytes) {
    for (int i = 0; i < WORKSPACE_GUARD; i++) assert_int_equal(workspace[bytes + (uint64_t)i], GUARD_BYTE);
    free(workspace);
}

static inline bool bf16_units(const linnet_attention_plan *plan) {
    char text[2048];
    linnet_attention_plan_text(plan, text, sizeof text);
    return !strstr(text, "refused");
}

/* One run, with guards behind the workspace. Returns what kernels may add to the tolerance: weights of matrix units are
 * bf16, off by 6e-3 at most (kernel/attend.h). */
static inline double scene_run(scene *s, linnet_context *context) {
    linnet_attention_plan *plan;
    const linnet_status status = linnet_attention_plan_open(context, &s->set, &plan);
    if (status != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    unsigned char *workspace = open_workspace(linnet_attention_workspace(plan));
    if (linnet_attention_forward(plan, &s->tensors, workspace)) fail_msg("%s", linnet_last_error(context));
    close_workspace(workspace, linnet_attention_workspace(plan));
    const double extra = bf16_units(plan) ? 2 * 6e-3 : 0;
    linnet_attention_plan_close(plan);
    return extra;
}

#endif
