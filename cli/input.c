/* Owns: what comes in: whole files, lists of ids, text turned to tokens, and where the built-in files lie. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

bool cli_append(cli_buffer *buffer, const char *data, size_t bytes) {
    const size_t needed = buffer->bytes + bytes + 1;
    if (needed > buffer->room) {
        const size_t doubled = 2 * buffer->room, room = needed > doubled ? needed : doubled;
        char *grown = realloc(buffer->data, room);
        if (!grown) return false;
        buffer->data = grown;
        buffer->room = room;
    }
    if (bytes) memcpy(buffer->data + buffer->bytes, data, bytes);
    buffer->bytes += bytes;
    buffer->data[buffer->bytes] = 0;
    return true;
}

void cli_buffer_free(cli_buffer *buffer) {
    free(buffer->data);
    *buffer = (cli_buffer){0};
}

int cli_read(const char *path, cli_buffer *text) {
    const bool standard = !strcmp(path, "-");
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (!file) return cli_error("%s: %s", path, strerror(errno));
    struct stat about;
    if (!fstat(fileno(file), &about) && S_ISREG(about.st_mode) && about.st_size > 0) {
        text->room = text->bytes + (size_t)about.st_size + 1;
        char *grown = realloc(text->data, text->room);
        if (!grown) text->room = text->bytes;
        text->data = grown ? grown : text->data;
    }
    bool room = cli_append(text, "", 0);
    char block[16384];
    for (size_t got; room && (got = fread(block, 1, sizeof block, file)) > 0;) room = cli_append(text, block, got);
    const int problem = ferror(file) ? errno : 0;
    if (!standard) fclose(file);
    if (!room) return cli_error("%s: not enough memory to read it", path);
    if (problem) return cli_error("%s: %s", standard ? "standard input" : path, strerror(problem));
    return CLI_OK;
}

/* The program lies in PREFIX/bin, or some folders deep in a build folder of the source tree: the nearest folder above
 * it that has share/linnet/NAME is meant. */
bool cli_shared_file(const char *name, char *path, size_t room) {
    char folder[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (length <= 0) return false;
    folder[length] = 0;
    for (int level = 0; level < 6; level++) {
        char *slash = strrchr(folder, '/');
        if (!slash) return false;
        *slash = 0;
        const int written = snprintf(path, room, "%s/share/linnet/%s", folder, name);
        if (written > 0 && (size_t)written < room && access(path, R_OK) == 0) return true;
    }
    return false;
}

const char *cli_model_path(const cli_arguments *arguments) {
    static char path[PATH_MAX];
    if (arguments->model) return arguments->model;
    const char *chosen = getenv("LINNET_MODEL");
    if (chosen && *chosen) return chosen;
    if (cli_shared_file("linnet-fledgling-q8_0.gguf", path, sizeof path)) return path;
    cli_error("the built-in model share/linnet/linnet-fledgling-q8_0.gguf is not installed beside this program; name a "
              "model with -m MODEL or in LINNET_MODEL");
    return NULL;
}

static bool reserve_ids(cli_ids *ids, int64_t count) {
    int32_t *grown = realloc(ids->id, (size_t)(count > 0 ? count : 1) * sizeof *grown);
    if (grown) ids->id = grown;
    return grown != NULL;
}

int cli_tokenize_text(linnet_context *context, const linnet_tokenizer *tokenizer, const char *text, size_t bytes,
                      int flags, cli_ids *ids) {
    /* A token is a byte or more, begin, end and a prefix space apart: one pass is enough nearly always. */
    int64_t room = (int64_t)bytes + 8, count = 0;
    for (int attempt = 0; attempt < 2; attempt++) {
        if (!reserve_ids(ids, ids->count + room)) return cli_error("not enough memory for the tokens of the text");
        const linnet_status status = linnet_tokenize(tokenizer, text, bytes, flags, ids->id + ids->count, room, &count);
        if (status != LINNET_OK) return cli_error("%s", linnet_last_error(context));
        if (count <= room) break;
        room = count;
    }
    ids->count += count;
    reserve_ids(ids, ids->count);
    return CLI_OK;
}

int cli_parse_ids(const char *text, size_t bytes, cli_ids *ids) {
    int64_t room = ids->count;
    for (size_t at = 0; at < bytes;) {
        if (strchr(" \t\r\n,[]", text[at]) && text[at]) {
            at++;
            continue;
        }
        int64_t id = 0;
        size_t digits = 0;
        for (; at < bytes && text[at] >= '0' && text[at] <= '9' && id <= INT32_MAX; at++, digits++)
            id = 10 * id + (text[at] - '0');
        if (!digits || id > INT32_MAX) return cli_error("byte %zu of the ids begins no token id", at + 1);
        if (ids->count == room) {
            room = 2 * room + 64;
            if (!reserve_ids(ids, room)) return cli_error("not enough memory for the ids");
        }
        ids->id[ids->count++] = (int32_t)id;
    }
    return CLI_OK;
}
