/* Runs a fuzz target once over each file of a folder: the kept corpus as an ordinary test. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return -1;
    fseek(file, 0, SEEK_END);
    const long bytes = ftell(file);
    rewind(file);
    uint8_t *data = bytes >= 0 ? malloc((size_t)bytes + 1) : NULL;
    const int status = data && fread(data, 1, (size_t)bytes, file) == (size_t)bytes ? 0 : -1;
    if (status == 0) LLVMFuzzerTestOneInput(data, (size_t)bytes);
    free(data);
    fclose(file);
    return status;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    DIR *folder = opendir(arguments[1]);
    if (!folder) return 1;
    int files = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", arguments[1], entry->d_name);
        if (run_file(path) != 0) {
            fprintf(stderr, "cannot read %s\n", path);
            return 1;
        }
        files++;
    }
    closedir(folder);
    printf("%d inputs\n", files);
    return files > 0 ? 0 : 1;
}
