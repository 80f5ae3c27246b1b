/* How cuBLASLt is found and asked. Its first choice for a shape is taken and kept: nothing is tried out while a user
 * waits, and a shape always goes the same way. */
#include "kernel/cuda/product_library.h"

#include <stdio.h>
#include <stdlib.h>

#if __has_include(<cublasLt.h>) && __has_include(<dlfcn.h>) && !defined(LN_EMULATED)
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

/* The functions that are used, by their own names. */
#define LN_LIBRARY_FUNCTIONS(each)                                                                                  \
    each(cublasLtCreate) each(cublasLtDestroy) each(cublasLtMatmul) each(cublasLtMatmulAlgoGetHeuristic)            \
        each(cublasLtMatmulDescCreate) each(cublasLtMatmulDescDestroy) each(cublasLtMatmulDescSetAttribute)         \
            each(cublasLtMatrixLayoutCreate) each(cublasLtMatrixLayoutDestroy) each(cublasLtMatmulPreferenceCreate) \
                each(cublasLtMatmulPreferenceDestroy) each(cublasLtMatmulPreferenceSetAttribute)

typedef struct shape {
    int64_t rows, columns, tokens, x_stride, stride;
} shape;

/* A way that was chosen. */
typedef struct way {
    shape of;
    bool found;
    cublasLtMatrixLayout_t weight, x, y;
    cublasLtMatmulAlgo_t algorithm;
} way;

enum { WAYS = 256 };

typedef struct library {
    void *file;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
#define LN_MEMBER(name) decltype(&::name) name;
    LN_LIBRARY_FUNCTIONS(LN_MEMBER)
    int count, next; /* next: of those in use, to make room */
    way ways[WAYS];
} library;

static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
                                    "/usr/local/cuda/lib64/libcublasLt.so"};

static bool find_functions(library *made) {
#define LN_FIND(name)                                         \
    made->name = (decltype(&::name))dlsym(made->file, #name); \
    if (!made->name) return false;
    LN_LIBRARY_FUNCTIONS(LN_FIND)
    return true;
}

static void forget(const library *with, way *gone) {
    if (gone->weight) with->cublasLtMatrixLayoutDestroy(gone->weight);
    if (gone->x) with->cublasLtMatrixLayoutDestroy(gone->x);
    if (gone->y) with->cublasLtMatrixLayoutDestroy(gone->y);
    *gone = {};
}

void *ln_cuda_library_open(char why[LN_CUDA_WHY]) {
    library *made = (library *)calloc(1, sizeof *made);
    if (!made) return NULL;
    for (unsigned i = 0; i < sizeof names / sizeof *names && !made->file; i++)
        made->file = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    const cublasOperation_t turned = CUBLAS_OP_T;
    if (made->file && find_functions(made) && made->cublasLtCreate(&made->handle) == CUBLAS_STATUS_SUCCESS &&
        made->cublasLtMatmulDescCreate(&made->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
        made->cublasLtMatmulDescSetAttribute(made->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned) ==
            CUBLAS_STATUS_SUCCESS)
        return made;
    snprintf(why, LN_CUDA_WHY, "cuBLASLt is not used: %s",
             made->file ? "its functions are not all there" : "there is no libcublasLt.so.13 or .12");
    ln_cuda_library_close(made);
    return NULL;
}

void ln_cuda_library_close(void *given) {
    library *made = (library *)given;
    if (!made) return;
    for (int i = 0; i < made->count; i++) forget(made, &made->ways[i]);
    if (made->product) made->cublasLtMatmulDescDestroy(made->product);
    if (made->handle) made->cublasLtDestroy(made->handle);
    if (made->file) dlclose(made->file);
    free(made);
}

/* In its order of columns first: y' [rows, tokens] = weight' turned [columns, rows] times x' [columns, tokens]. */
static void choose(library *with, way *made) {
    const shape *of = &made->of;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t best;
    const size_t bytes = LN_CUDA_LIBRARY_BYTES;
    int count = 0;
    if (with->cublasLtMatrixLayoutCreate(&made->weight, CUDA_R_16BF, (uint64_t)of->columns, (uint64_t)of->rows,
                                         of->columns) == CUBLAS_STATUS_SUCCESS &&
        with->cublasLtMatrixLayoutCreate(&made->x, CUDA_R_16BF, (uint64_t)of->columns, (uint64_t)of->tokens,
                                         of->x_stride) == CUBLAS_STATUS_SUCCESS &&
        with->cublasLtMatrixLayoutCreate(&made->y, CUDA_R_32F, (uint64_t)of->rows, (uint64_t)of->tokens, of->stride) ==
            CUBLAS_STATUS_SUCCESS &&
        with->cublasLtMatmulPreferenceCreate(&wish) == CUBLAS_STATUS_SUCCESS &&
        with->cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                   sizeof bytes) == CUBLAS_STATUS_SUCCESS &&
        with->cublasLtMatmulAlgoGetHeuristic(with->handle, with->product, made->weight, made->x, made->y, made->y, wish,
                                             1, &best, &count) == CUBLAS_STATUS_SUCCESS &&
        count > 0 && best.state == CUBLAS_STATUS_SUCCESS) {
        made->algorithm = best.algo;
        made->found = true;
    }
    if (wish) with->cublasLtMatmulPreferenceDestroy(wish);
}

static way *way_of(library *with, const shape *of) {
    for (int i = 0; i < with->count; i++) {
        const shape *a = &with->ways[i].of;
        if (a->rows == of->rows && a->columns == of->columns && a->tokens == of->tokens &&
            a->x_stride == of->x_stride && a->stride == of->stride)
            return &with->ways[i];
    }
    if (with->count < WAYS) with->count++;
    way *made = &with->ways[with->next++ % WAYS];
    forget(with, made);
    made->of = *of;
    choose(with, made);
    return made;
}

ln_cuda_code ln_cuda_library_multiply(void *given, const void *weight, int64_t rows, int64_t columns, const void *x,
                                      int64_t x_stride, int64_t tokens, float *y, int64_t stride, void *workspace,
                                      void *stream) {
    library *with = (library *)given;
    const shape of = {rows, columns, tokens, x_stride, stride};
    const way *chosen = way_of(with, &of);
    if (!chosen->found) return LN_CUDA_UNSUPPORTED;
    const float one = 1, zero = 0;
    const cublasStatus_t status = with->cublasLtMatmul(with->handle, with->product, &one, weight, chosen->weight, x,
                                                       chosen->x, &zero, y, chosen->y, y, chosen->y, &chosen->algorithm,
                                                       workspace, LN_CUDA_LIBRARY_BYTES, (cudaStream_t)stream);
    return ln_cuda_code_of(status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown);
}

#else

void *ln_cuda_library_open(char why[LN_CUDA_WHY]) {
    snprintf(why, LN_CUDA_WHY, "cuBLASLt is not used: this was built without its header");
    return NULL;
}
void ln_cuda_library_close(void *) {}
ln_cuda_code ln_cuda_library_multiply(void *, const void *, int64_t, int64_t, const void *, int64_t, int64_t, float *,
                                      int64_t, void *, void *) {
    return LN_CUDA_UNSUPPORTED;
}

#endif
