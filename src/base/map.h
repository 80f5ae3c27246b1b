/* Files: mapped for reading, and written so that they appear whole or not at all. */
#ifndef LN_BASE_MAP_H
#define LN_BASE_MAP_H

#include <stdio.h>

#include "base/context.h"

/* A file mapped read-only. data is NULL for an empty file. */
typedef struct ln_map {
    const unsigned char *data;
    uint64_t bytes;
} ln_map;

linnet_status ln_map_open(linnet_context *context, const char *path, ln_map *map);
void ln_map_close(ln_map *map);

/* Writing beside `path` and renaming at the end. A failed write is remembered: only ln_output_close reports it, naming
 * the path and the system's reason, and then the old file is still there and the new one is gone. */
typedef struct ln_output {
    linnet_context *context;
    char *path, *temporary;
    FILE *file;
    uint64_t bytes;
    int error; /* errno of the first failure */
} ln_output;

linnet_status ln_output_open(linnet_context *context, const char *path, ln_output *output);
void ln_output_write(ln_output *output, const void *data, size_t bytes);
/* keep false: throw away what was written. Always releases. */
linnet_status ln_output_close(ln_output *output, bool keep);

#endif
