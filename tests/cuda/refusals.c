/* What can be wrong with a device, on an emulated one: none, too old a driver, too little memory, a device that fails
 * while it works. Each gives a status and a sentence that names it, the process goes on, and a session takes the
 * processor where `auto` allows it and nowhere else.
 *
 *     cuda_refusals MODEL          a golden model
 *     cuda_refusals MODEL 7.5      a device without kernels */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linnet/cuda.h"
#include "linnet/linnet.h"

static linnet_context *context;
static linnet_model *model;
static int checks, failures;

static void expect(bool right, const char *what) {
    checks++;
    if (right) return;
    failures++;
    printf("FAILED: %s: %s\n", what, linnet_last_error(context));
}
static bool told(const char *words) {
    return strstr(linnet_last_error(context), words) != NULL;
}
static void set(const char *name, const char *value) {
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static linnet_status open_session(const char *device, linnet_session **session) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 32;
    settings.device = device;
    return linnet_session_open(model, &settings, session);
}

/* One prompt; where it ran is in *where: "" is the processor. */
static linnet_status read_prompt(const char *device, char where[8]) {
    static const int32_t ids[] = {1, 5, 9, 2, 7};
    linnet_session *session = NULL;
    linnet_status status = open_session(device, &session);
    where[0] = '\0';
    if (status != LINNET_OK) return status;
    snprintf(where, 8, "%.4s", linnet_session_plan(session).device);
    status = linnet_session_feed(session, ids, 5);
    if (status == LINNET_OK && !linnet_session_logits(session)) status = LINNET_ERROR_UNSUPPORTED;
    linnet_session_close(session);
    return status;
}

/* No session on the device, with `words` in the sentence; `auto` reads on the processor. */
static void check_session(linnet_status refused, const char *words, const char *what) {
    char where[8];
    expect(read_prompt("cuda", where) == refused && told(words), what);
    expect(read_prompt("auto", where) == LINNET_OK && !*where, what);
    expect(read_prompt("cpu", where) == LINNET_OK && !*where, what);
}

static void check_no_device(void) {
    linnet_cuda *cuda = NULL;
    set("LN_EMULATOR_DEVICE", "none");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("no CUDA device"), "none");
    check_session(LINNET_ERROR_UNSUPPORTED, "device", "a session without a device");
    set("LN_EMULATOR_DEVICE", "old");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("CUDA 11.0") &&
               told("update the driver"),
           "an old driver");
    check_session(LINNET_ERROR_UNSUPPORTED, "driver", "a session with an old driver");
    set("LN_EMULATOR_DEVICE", NULL);
}

static void check_memory(void) {
    linnet_cuda *cuda = NULL;
    void *memory = NULL;
    linnet_peaks peaks = {.size = sizeof peaks};
    set("LN_EMULATOR_MEMORY", "10000");
    expect(linnet_cuda_open(context, 0, &cuda) == LINNET_OK, "a small device");
    expect(linnet_cuda_allocate(cuda, 8000, &memory) == LINNET_OK && memory, "what fits");
    void *more = memory;
    expect(linnet_cuda_allocate(cuda, 8000, &more) == LINNET_ERROR_MEMORY && !more && told("free memory"), "too much");
    expect(linnet_cuda_measure_peaks(cuda, &peaks) == LINNET_ERROR_MEMORY && told("free memory"), "peaks");
    linnet_cuda_release(cuda, memory);
    expect(linnet_cuda_allocate(cuda, 8000, &memory) == LINNET_OK, "what fits again");
    linnet_cuda_release(cuda, memory);
    linnet_cuda_close(cuda);
    check_session(LINNET_ERROR_MEMORY, "10000 bytes left", "a session on a small device");
    set("LN_EMULATOR_MEMORY", NULL);
}

/* The device fails in launch n, for every n until a prompt is read without reaching it. */
static void check_lost(void) {
    char where[8], number[16];
    int failed = 0;
    linnet_status status = LINNET_ERROR_UNSUPPORTED;
    for (int n = 1; n < 4000 && status != LINNET_OK; n = n < 8 ? n + 1 : n * 2) {
        snprintf(number, sizeof number, "%d", n);
        set("LN_EMULATOR_LOST", number);
        status = read_prompt("cuda", where);
        if (status == LINNET_OK) break;
        failed++;
        expect(told("reported an error"), "a device that fails");
    }
    expect(failed > 3 && status == LINNET_OK && !strcmp(where, "cuda"), "the last launch");
    set("LN_EMULATOR_LOST", NULL);
    expect(read_prompt("cuda", where) == LINNET_OK && !strcmp(where, "cuda"), "a device that works again");
}

int main(int count, char **words) {
    if (count < 2 || count > 3) {
        fprintf(stderr, "usage: %s MODEL [7.5]\n", words[0]);
        return 2;
    }
    if (count == 3) set("LN_EMULATOR_DEVICE", words[2]);
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1; /* the emulator's threads leave little of a small stack */
    if (linnet_context_open(&settings, &context) != LINNET_OK ||
        linnet_model_open(context, words[1], &model) != LINNET_OK) {
        printf("FAILED: %s\n", context ? linnet_last_error(context) : "no context");
        return 1;
    }
    if (count == 3) {
        linnet_cuda *cuda = NULL;
        expect(linnet_cuda_open(context, 0, &cuda) == LINNET_ERROR_UNSUPPORTED && !cuda && told("compute capability"),
               "a device without kernels");
        check_session(LINNET_ERROR_UNSUPPORTED, "compute capability", "a session on a device without kernels");
    } else {
        check_no_device();
        check_memory();
        check_lost();
    }
    linnet_model_close(model);
    linnet_context_close(context);
    printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
