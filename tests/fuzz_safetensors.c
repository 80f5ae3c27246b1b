/* A safetensors file of any bytes; or, where the input holds a line "----", a folder: config.json before it,
 * model.safetensors after it. */
#include <sys/stat.h>

#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char folder[] = "/dev/shm/linnet-fuzz-XXXXXX", names[2][80];

static void remove_folder(void) {
    unlink(names[0]);
    unlink(names[1]);
    rmdir(folder);
}

static void write_file(const char *name, const void *data, size_t bytes) {
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char cut[] = "\n----\n";
    if (!*names[0]) {
        if (!mkdtemp(folder)) abort();
        snprintf(names[0], sizeof names[0], "%s/model.safetensors", folder);
        snprintf(names[1], sizeof names[1], "%s/config.json", folder);
        atexit(remove_folder);
    }
    const uint8_t *middle = bytes ? memmem(data, bytes, cut, strlen(cut)) : NULL;
    if (middle) {
        const uint8_t *rest = middle + strlen(cut);
        write_file(names[1], data, (size_t)(middle - data));
        write_file(names[0], rest, (size_t)(data + bytes - rest));
        fuzz_open(folder);
    } else {
        write_file(names[0], data, bytes);
        fuzz_open(names[0]);
    }
    return 0;
}
