/* A team of threads that runs the same function over numbered tasks. */
#ifndef LN_BASE_THREADS_H
#define LN_BASE_THREADS_H

#include "linnet/context.h"

typedef struct ln_team ln_team;

/* One task of a parallel loop. worker is 0 .. team size - 1: index of scratch that no other running task uses. */
typedef void (*ln_task)(void *argument, int64_t task, int worker);

/* threads 0: as many as the process may use. */
linnet_status ln_team_open(linnet_context *context, int threads, ln_team **team);
void ln_team_close(linnet_context *context, ln_team *team);
int ln_team_size(const ln_team *team);
/* Runs tasks 0 .. tasks - 1, each once, in any order, on all threads, and returns when all are done. Writes made by
 * tasks are visible after it. Not to be nested. Which thread runs a task must not change its result. */
void ln_parallel(ln_team *team, int64_t tasks, ln_task run, void *argument);

#endif
