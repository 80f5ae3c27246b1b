/* Owns: the verb calibrate: measuring once what policies cost a model. */
#include <limits.h>
#include <stdlib.h>

#include "cli.h"

static const cli_option calibrate_options[] = {
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE",
               "plain text like what the model will read (without it: the built-in document)"),
    CLI_OPTION('l', "length", CLI_INTEGER, context, "N",
               "tokens of the text that is compressed; 0: 4096, or half of what the model was trained for",
               .fallback = "0", .highest = 1e7),
    CLI_OPTION(0, "seed", CLI_SEED, seed, "N", "of the random numbers", .fallback = "1"),
    CLI_OPTION('o', "output", CLI_TEXT, output, "FILE", "where to write it (without it: beside the model)"),
    {0}};

static const cli_group groups[] = {
    {"calibrate", calibrate_options}, {"model", cli_model_options}, {"other", cli_common_options}, {0}};

static int read_prose(const cli_engine *engine, const char *file, cli_ids *prose) {
    char path[PATH_MAX];
    if (!file && !cli_shared_file("document.txt", path, sizeof path))
        return cli_error("share/linnet/document.txt is not installed beside this program; name a text with -f FILE");
    cli_buffer text = {0};
    int status = cli_read(file ? file : path, &text);
    if (status == CLI_OK)
        status = cli_tokenize_text(engine->context, engine->tokenizer, text.data, text.bytes, 0, prose);
    cli_buffer_free(&text);
    return status;
}

static int run(const cli_arguments *arguments) {
    cli_engine engine = {0};
    cli_ids prose = {0};
    int status = cli_engine_open(arguments, true, &engine);
    if (status == CLI_OK) status = read_prose(&engine, arguments->file, &prose);
    if (status == CLI_OK) {
        linnet_calibrate_settings settings = linnet_calibrate_settings_default();
        settings.prose = prose.id;
        settings.count = prose.count;
        settings.length = arguments->context;
        settings.path = arguments->output;
        settings.seed = arguments->seed;
        const linnet_status made = linnet_calibrate(engine.model, &settings);
        cli_progress_end();
        if (made != LINNET_OK) status = cli_engine_fail(&engine, made);
    }
    free(prose.id);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_calibrate = {
    .name = "calibrate",
    .operands = "",
    .summary = "measure once what policies of the cache cost a model",
    .details =
        "Reads a text under each policy at several budgets and compares what the model then says with what it says "
        "when everything is kept: of prose that goes on, and of facts planted in the text that come again. The "
        "figures go into a file beside the model (MODEL.calibration.json), and '--memory SIZE' chooses by them. "
        "The built-in model has its file.",
    .groups = groups,
    .run = run};
