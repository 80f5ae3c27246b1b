/* Linnet: shared types of the public interface: status codes, number formats, and how the library reports.
 *
 * Every function that can fail returns a linnet_status. The sentence that explains it, naming the place and the remedy,
 * is linnet_last_error(context) until the next call on that context. The library never exits, prints or aborts. */
#ifndef LINNET_TYPES_H
#define LINNET_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define LINNET_API __attribute__((visibility("default")))
#define LINNET_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define LINNET_API
#define LINNET_PRINTF(text, first)
#endif

#define LINNET_VERSION_MAJOR 0
#define LINNET_VERSION_MINOR 1
#define LINNET_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

typedef enum linnet_status {
    LINNET_OK = 0,
    LINNET_ERROR_ARGUMENT = -1,    /* the caller asked for something impossible */
    LINNET_ERROR_MEMORY = -2,      /* the allocator refused, or the stated budget is too small */
    LINNET_ERROR_FILE = -3,        /* the operating system refused a file */
    LINNET_ERROR_FORMAT = -4,      /* a file is damaged or contradicts itself */
    LINNET_ERROR_UNSUPPORTED = -5, /* well formed, but not something this version can do */
    LINNET_ERROR_FULL = -6,        /* more tokens than the session's context holds */
    LINNET_INTERRUPTED = -7        /* linnet_interrupt was called; what was done before it is kept */
} linnet_status;

/* Number formats of weights and of cached keys and values. The values are those of the GGUF file format, but for those
 * that no file has.
 * Block formats store `block` values in `bytes` bytes: see linnet_type_layout. */
typedef enum linnet_type {
    LINNET_F32 = 0,
    LINNET_F16 = 1,
    LINNET_Q4_0 = 2,
    LINNET_Q4_1 = 3,
    LINNET_Q5_0 = 6,
    LINNET_Q5_1 = 7,
    LINNET_Q8_0 = 8,
    LINNET_Q2_K = 10,
    LINNET_Q3_K = 11,
    LINNET_Q4_K = 12,
    LINNET_Q5_K = 13,
    LINNET_Q6_K = 14,
    LINNET_Q2 = 26, /* q2 to q5: for cached keys and values alone */
    LINNET_Q3 = 27,
    LINNET_Q4 = 28,
    LINNET_Q5 = 29,
    LINNET_BF16 = 30,
    LINNET_TYPE_AUTO = -1 /* let the planner choose */
} linnet_type;

/* Lower-case name ("q8_0") of a type, or NULL where the number is not one of linnet_type. */
LINNET_API const char *linnet_type_name(linnet_type type);
/* The type of a name in any case, or LINNET_TYPE_AUTO where no type has that name. */
LINNET_API linnet_type linnet_type_of_name(const char *name);
/* Values and bytes in one block of a type; false where the type is unknown. */
LINNET_API bool linnet_type_layout(linnet_type type, int *block, int *bytes);

typedef enum linnet_log_level { LINNET_LOG_DEBUG, LINNET_LOG_INFO, LINNET_LOG_WARNING } linnet_log_level;

/* "0.1.0", and the number 10000 * major + 100 * minor + patch, of the library that is running. */
LINNET_API const char *linnet_version(void);
LINNET_API int linnet_version_number(void);
/* The name of a status ("format"), never NULL. */
LINNET_API const char *linnet_status_name(linnet_status status);

/* [token, head, size]: an element is at token * token_stride + head * head_stride + i, in elements. Strides 0: packed
 * (head_stride = size, token_stride = heads * size). */
typedef struct linnet_tensor {
    void *data;
    int64_t token_stride, head_stride;
} linnet_tensor;

#ifdef __cplusplus
}
#endif
#endif
