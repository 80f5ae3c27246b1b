/* Owns: mapped input files and atomic output files.
 *
 * Output goes to "PATH.part", is flushed to the disk, then renamed over PATH: rename replaces in one step, so a reader
 * (or a crash, or a full disk) sees the old file or the new one, never half. Who writes holds a lock on it, so that two
 * never write into one, and what somebody killed has left, without a lock, is used again. */
#include "base/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

linnet_status ln_map_open(linnet_context *context, const char *path, ln_map *map) {
    *map = (ln_map){0};
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would block */
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

enum { TAKEN = -2 };

/* Opens a file to write, empty, with a lock on it; TAKEN: another has it; -1: errno tells. */
static int open_alone(const char *name) {
    for (;;) {
        struct stat mine, there;
        const int file = open(name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (file < 0) return -1;
        if (flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(file);
            return TAKEN;
        }
        if (fstat(file, &mine) == 0 && lstat(name, &there) == 0 && mine.st_dev == there.st_dev &&
            mine.st_ino == there.st_ino) {
            if (S_ISREG(mine.st_mode) && ftruncate(file, 0) == 0) return file;
            const int error = S_ISREG(mine.st_mode) ? errno : EEXIST;
            close(file);
            errno = error;
            return -1;
        }
        close(file); /* who had it has renamed or removed it meanwhile */
    }
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
    snprintf(output->temporary, bytes + 32, "%s.part", path);
    const int file = open_alone(output->temporary);
    if (file >= 0) output->file = fdopen(file, "wb");
    if (!output->file) {
        const linnet_status status =
            file == TAKEN ? ln_fail(context, LINNET_ERROR_FILE,
                                    "%s is being written by another process (%s); try again", path, output->temporary)
                          : ln_fail(context, LINNET_ERROR_FILE, "cannot write %s: %s", path, strerror(errno));
        if (file >= 0) close(file);
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
        if (keep && !output->error && rename(output->temporary, output->path) != 0) output->error = errno;
        if (!keep || output->error) unlink(output->temporary);
        fclose(output->file); /* last: it ends the lock */
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
