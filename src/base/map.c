/* Owns: mapped input files and atomic output files.
 *
 * Output goes to "PATH.part-PID", is flushed to the disk, then renamed over PATH: rename replaces in one step, so a
 * reader (or a crash, or a full disk) sees the old file or the new one, never half. */
#include "base/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

linnet_status ln_map_open(linnet_context *context, const char *path, ln_map *map) {
    *map = (ln_map){0};
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return ln_fail(context, LINNET_ERROR_FILE, "cannot open %s: %s", path, strerror(errno));
    struct stat state;
    linnet_status status = LINNET_OK;
    if (fstat(file, &state) != 0) {
        status = ln_fail(context, LINNET_ERROR_FILE, "cannot read %s: %s", path, strerror(errno));
    } else if (!S_ISREG(state.st_mode)) {
        status = ln_fail(context, LINNET_ERROR_FILE, "%s is not a regular file", path);
    } else if (state.st_size > 0) {
        void *data = mmap(NULL, (size_t)state.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (data == MAP_FAILED) {
            status = ln_fail(context, LINNET_ERROR_FILE, "cannot map %s: %s", path, strerror(errno));
        } else {
            map->data = data;
            map->bytes = (uint64_t)state.st_size;
        }
    }
    close(file);
    return status;
}

void ln_map_close(ln_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (ln_map){0};
}

linnet_status ln_output_open(linnet_context *context, const char *path, ln_output *output) {
    *output = (ln_output){.context = context};
    struct stat there;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) /* renaming would replace a device by a file */
        return ln_fail(context, LINNET_ERROR_FILE, "%s is not a regular file; name a file to write", path);
    const size_t bytes = strlen(path);
    output->path = ln_copy_text(context, path, bytes);
    output->temporary = ln_allocate(context, bytes + 32, 1, "file name");
    if (!output->path || !output->temporary) {
        ln_output_close(output, false);
        return LINNET_ERROR_MEMORY;
    }
    snprintf(output->temporary, bytes + 32, "%s.part-%ld", path, (long)getpid());
    output->file = fopen(output->temporary, "wbe");
    if (!output->file) {
        const linnet_status status = ln_fail(context, LINNET_ERROR_FILE, "cannot write %s: %s", path, strerror(errno));
        ln_output_close(output, false);
        return status;
    }
    return LINNET_OK;
}

void ln_output_write(ln_output *output, const void *data, size_t bytes) {
    if (output->error || !output->file || bytes == 0) return;
    if (fwrite(data, 1, bytes, output->file) != bytes) output->error = errno ? errno : EIO;
    output->bytes += bytes;
}

linnet_status ln_output_close(ln_output *output, bool keep) {
    linnet_status status = LINNET_OK;
    if (output->file) {
        if (keep && !output->error && (fflush(output->file) != 0 || fsync(fileno(output->file)) != 0))
            output->error = errno;
        if (fclose(output->file) != 0 && !output->error) output->error = errno;
        if (keep && !output->error && rename(output->temporary, output->path) != 0) output->error = errno;
        if (!keep || output->error) unlink(output->temporary);
        if (keep && output->error)
            status =
                ln_fail(output->context, LINNET_ERROR_FILE, "cannot write %s: %s; what was there before is unchanged",
                        output->path, strerror(output->error));
    }
    ln_release(output->context, output->path);
    ln_release(output->context, output->temporary);
    *output = (ln_output){.context = output->context};
    return status;
}
