/* Owns: the verb logits: the raw output of a model for given tokens. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const cli_option logits_options[] = {
    CLI_OPTION('i', "ids", CLI_TEXT, ids, "IDS",
               "token ids divided by commas or blanks, a file of them, or - for standard input"),
    CLI_OPTION('o', "output", CLI_TEXT, output, "FILE", "file to write: float32 little-endian [tokens, vocabulary]"),
    {0}};

static const cli_group groups[] = {{"logits", logits_options},
                                   {"model", cli_model_options},
                                   {"memory", cli_memory_options},
                                   {"other", cli_common_options},
                                   {0}};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "floats are written as they lie in memory");

typedef struct writer {
    FILE *file;
    size_t vocabulary;
} writer;

static linnet_status take(void *user, int64_t first, int64_t count, const float *logits) {
    (void)first;
    const writer *w = user;
    const size_t values = (size_t)count * w->vocabulary;
    return fwrite(logits, sizeof *logits, values, w->file) == values ? LINNET_OK : LINNET_ERROR_FILE;
}

static int read_ids(const char *text, cli_ids *ids) {
    if (strspn(text, "0123456789, \t\n[]") == strlen(text)) return cli_parse_ids(text, strlen(text), ids);
    cli_buffer file = {0};
    int status = cli_read(text, &file);
    if (status == CLI_OK) status = cli_parse_ids(file.data, file.bytes, ids);
    cli_buffer_free(&file);
    return status;
}

static int write_logits(cli_engine *engine, const cli_arguments *arguments, const cli_ids *ids) {
    const uint64_t kept = (uint64_t)ids->count * sizeof *ids->id;
    const int64_t context = arguments->context ? arguments->context : ids->count;
    const linnet_session_settings settings = cli_session_settings(arguments, context, kept);
    const int status = cli_session_open(engine, &settings, kept);
    if (status != CLI_OK) return status;
    writer w = {fopen(arguments->output, "wb"), (size_t)engine->info.vocabulary};
    if (!w.file) return cli_error("%s: %s", arguments->output, strerror(errno));
    const linnet_status fed = linnet_session_feed_logits(engine->session, ids->id, ids->count, take, &w);
    const int problem = errno;
    cli_progress_end();
    const bool closed = fclose(w.file) == 0;
    if (fed == LINNET_OK && closed) return CLI_OK;
    unlink(arguments->output);
    if (fed == LINNET_ERROR_FILE || fed == LINNET_OK)
        return cli_error("%s: %s", arguments->output, strerror(closed ? problem : errno));
    return cli_engine_fail(engine, fed);
}

static int run(const cli_arguments *arguments) {
    if (!arguments->ids || !arguments->output)
        return cli_usage(&cli_logits, "name the ids with -i and the file to write with -o");
    cli_engine engine = {0};
    cli_ids ids = {0};
    int status = read_ids(arguments->ids, &ids);
    if (status == CLI_OK && !ids.count) status = cli_error("there are no ids");
    if (status == CLI_OK) status = cli_engine_open(arguments, false, &engine);
    if (status == CLI_OK) status = write_logits(&engine, arguments, &ids);
    if (status == CLI_OK)
        cli_note("wrote %lld x %lld logits to %s", (long long)ids.count, (long long)engine.info.vocabulary,
                 arguments->output);
    free(ids.id);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_logits = {
    .name = "logits",
    .operands = "",
    .summary = "write the logits after each of some tokens",
    .details = "Row i of the output has the logits of what follows token i. With --exact the activations stay float32, "
               "as references are made.",
    .groups = groups,
    .run = run};
