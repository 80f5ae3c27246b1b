/* Owns: the verb convert: any readable model to a GGUF file. */

#include <string.h>

#include "cli.h"

static const cli_option convert_options[] = {
    CLI_OPTION('o', "output", CLI_TEXT, output, "FILE", "GGUF file to write"),
    CLI_OPTION(0, "type", CLI_TYPE, type, "TYPE", "number format of the weights", .fallback = "q8_0",
               .choices = "f32 f16 bf16 q8_0 q4_0"),
    CLI_OPTION(0, "kv-heads", CLI_INTEGER, key_heads, "N",
               "merge key-value heads until N are left, which must divide those of the model; 0: leave them",
               .fallback = "0", .highest = 65536),
    CLI_OPTION(0, "calibrate", CLI_TEXT, file, "FILE",
               "text by which heads are merged, some thousand tokens (without it: the built-in document)"),
    CLI_OPTION(0, "mean", CLI_FLAG, mean, NULL, "merge neighbouring heads into their mean, without a text"),
    CLI_OPTION(0, "set", CLI_TEXTS, keys, "KEY=TEXT", "write this text key; may be given several times"),
    {0}};

static const cli_group groups[] = {{"convert", convert_options}, {"other", cli_common_options}, {0}};

/* Cuts KEY=TEXT in two; names is room for the keys. */
static int read_keys(const cli_texts *given, char names[CLI_MOST][128], linnet_text_key keys[CLI_MOST]) {
    for (int i = 0; i < given->count; i++) {
        const char *sign = strchr(given->text[i], '=');
        const size_t bytes = sign ? (size_t)(sign - given->text[i]) : 0;
        if (bytes == 0 || bytes >= sizeof names[i])
            return cli_usage(&cli_convert, "--set %s: a key and its text are written as KEY=TEXT", given->text[i]);
        memcpy(names[i], given->text[i], bytes);
        names[i][bytes] = 0;
        keys[i] = (linnet_text_key){names[i], sign + 1};
    }
    return CLI_OK;
}

/* The text that heads are merged by; nothing where none is needed. */
static int read_calibration(const cli_arguments *arguments, cli_buffer *text) {
    char path[4096];
    if (!arguments->key_heads || arguments->mean) return CLI_OK;
    if (arguments->file) return cli_read(arguments->file, text);
    if (!cli_shared_file("document.txt", path, sizeof path))
        return cli_usage(&cli_convert, "the built-in document is not there; name a text with --calibrate");
    return cli_read(path, text);
}

static int run(const cli_arguments *arguments) {
    linnet_context *context;
    cli_buffer text = {0};
    char names[CLI_MOST][128];
    linnet_text_key keys[CLI_MOST];
    if (!arguments->output) return cli_usage(&cli_convert, "name the file to write with -o");
    if (!arguments->key_heads && (arguments->file || arguments->mean))
        return cli_usage(&cli_convert, "--calibrate and --mean say how heads are merged; --kv-heads says to how many");
    if (arguments->file && arguments->mean)
        return cli_usage(&cli_convert, "--mean needs no text; leave out --calibrate or --mean");
    if (read_keys(&arguments->keys, names, keys) != CLI_OK) return CLI_USAGE;
    if (read_calibration(arguments, &text) != CLI_OK) return CLI_FAILED;
    if (cli_context_open(arguments, &context) != CLI_OK) {
        cli_buffer_free(&text);
        return CLI_FAILED;
    }
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.type = arguments->type;
    settings.keys = keys;
    settings.key_count = (int64_t)arguments->keys.count;
    settings.key_value_heads = arguments->key_heads;
    settings.mean_heads = arguments->mean;
    settings.calibration_text = text.data;
    const linnet_status converted = linnet_convert(context, arguments->operands[0], arguments->output, &settings);
    cli_progress_end();
    int status = converted == LINNET_INTERRUPTED ? CLI_INTERRUPTED : CLI_OK;
    if (converted != LINNET_OK) cli_error("%s", linnet_last_error(context));
    if (converted != LINNET_OK && status == CLI_OK) status = CLI_FAILED;
    if (converted == LINNET_OK) cli_note("wrote %s in %s", arguments->output, linnet_type_name(arguments->type));
    linnet_context_close(context);
    cli_buffer_free(&text);
    return status;
}

const cli_verb cli_convert = {
    .name = "convert",
    .operands = "SOURCE",
    .summary = "write a model as a GGUF file",
    .details = "SOURCE is a Hugging Face folder, a .safetensors file or a GGUF file. Vectors stay float32; a matrix "
               "whose rows are no multiple of the block of the type is written as f16. The file appears whole or not "
               "at all: where the disk is full, an older file of that name stays as it was. With --kv-heads the model "
               "runs over a text, heads that are alike become one, and every cache of the model is smaller by as much; "
               "docs/convert.md says what that costs.",
    .groups = groups,
    .run = run,
    .fewest_operands = 1,
    .most_operands = 1};
