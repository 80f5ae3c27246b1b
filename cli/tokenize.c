/* Owns: the verb tokenize: text to token ids and back. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option tokenize_options[] = {
    CLI_OPTION('m', "model", CLI_TEXT, model, "MODEL",
               "GGUF file, Hugging Face folder or tokenizer.json (without it: $LINNET_MODEL, then the built-in model)"),
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE",
               "read the text, or with --decode the ids, from FILE; - is standard input"),
    CLI_OPTION('p', "prompt", CLI_TEXT, prompt, "TEXT", "the text, or with --decode the ids"),
    CLI_OPTION(0, "decode", CLI_FLAG, decode, NULL, "turn ids, divided by blanks or commas, into text"),
    CLI_OPTION(
        0, "special", CLI_FLAG, special, NULL,
        "text that spells a special token becomes it, begin and end tokens are added as the model asks; with --decode: "
        "special tokens are written out"),
    {0}};

static const cli_group groups[] = {{"tokenize", tokenize_options}, {"other", cli_common_options}, {0}};

static int print_ids(linnet_context *context, const linnet_tokenizer *tokenizer, const cli_buffer *text, bool special) {
    cli_ids ids = {0};
    const int flags = special ? LINNET_TOKENIZE_SPECIAL | LINNET_TOKENIZE_BEGIN : 0;
    int status = cli_tokenize_text(context, tokenizer, text->data, text->bytes, flags, &ids);
    for (int64_t i = 0; status == CLI_OK && i < ids.count; i++)
        printf(i + 1 < ids.count ? "%" PRId32 " " : "%" PRId32, ids.id[i]);
    if (status == CLI_OK && (putchar('\n') == EOF || fflush(stdout)))
        status = cli_error("the ids could not be written to standard output");
    free(ids.id);
    return status;
}

static linnet_status write_text(linnet_decoder *decoder, const cli_ids *ids, bool *failed) {
    const char *text;
    size_t bytes;
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; status == LINNET_OK && i < ids->count && !*failed; i++) {
        status = linnet_decode(decoder, ids->id[i], &text, &bytes);
        if (status == LINNET_OK) *failed = fwrite(text, 1, bytes, stdout) != bytes;
    }
    if (status != LINNET_OK) return status;
    status = linnet_decode_end(decoder, &text, &bytes);
    if (status == LINNET_OK) *failed |= fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout);
    return status;
}

static int print_text(linnet_context *context, const linnet_tokenizer *tokenizer, const cli_buffer *text,
                      bool special) {
    cli_ids ids = {0};
    linnet_decoder *decoder = NULL;
    bool failed = false;
    int status = cli_parse_ids(text->data, text->bytes, &ids);
    if (status == CLI_OK) {
        if (linnet_decoder_open(tokenizer, special, &decoder) != LINNET_OK ||
            write_text(decoder, &ids, &failed) != LINNET_OK)
            status = cli_error("%s", linnet_last_error(context));
        if (failed) status = cli_error("the text could not be written to standard output");
    }
    linnet_decoder_close(decoder);
    free(ids.id);
    return status;
}

static int run(const cli_arguments *arguments) {
    if (!arguments->file == !arguments->prompt)
        return cli_usage(&cli_tokenize, "give the text with -p or with -f, one of them");
    const char *path = cli_model_path(arguments);
    linnet_context *context;
    if (!path || cli_context_open(arguments, &context) != CLI_OK) return CLI_FAILED;
    cli_buffer text = {0};
    linnet_tokenizer *tokenizer = NULL;
    int status = CLI_OK;
    if (arguments->file)
        status = cli_read(arguments->file, &text);
    else if (!cli_append(&text, arguments->prompt, strlen(arguments->prompt)))
        status = cli_error("not enough memory for the text");
    if (status == CLI_OK && linnet_tokenizer_open(context, path, &tokenizer) != LINNET_OK)
        status = cli_error("%s", linnet_last_error(context));
    if (status == CLI_OK)
        status = (arguments->decode ? print_text : print_ids)(context, tokenizer, &text, arguments->special);
    cli_buffer_free(&text);
    linnet_tokenizer_close(tokenizer);
    linnet_context_close(context);
    return status;
}

const cli_verb cli_tokenize = {
    .name = "tokenize",
    .operands = "",
    .summary = "turn text into token ids, or ids into text",
    .details = "Prints the ids on one line. Text is bytes: what is no UTF-8 is tokenised as the bytes it is and comes "
               "back unchanged.",
    .groups = groups,
    .run = run};
