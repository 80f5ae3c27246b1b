/* Owns: messages to tokens by the chat template of the model. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

bool cli_has_template(const cli_engine *engine) {
    const linnet_message message = {"user", ""};
    size_t bytes;
    return linnet_chat_format(engine->tokenizer, &message, 1, true, NULL, 0, &bytes) == LINNET_OK;
}

/* A template that spells the begin token itself must not get a second one. */
static int first_flags(const cli_engine *engine, const char *text, size_t length) {
    size_t bytes = 0;
    const int32_t begin = linnet_token_begin(engine->tokenizer);
    const char *spelled = begin >= 0 ? linnet_token_bytes(engine->tokenizer, begin, &bytes) : NULL;
    const bool has = spelled && bytes && length >= bytes && !memcmp(text, spelled, bytes);
    return LINNET_TOKENIZE_SPECIAL | (has ? 0 : LINNET_TOKENIZE_BEGIN);
}

int cli_chat_tokens(const cli_engine *engine, const linnet_message *messages, int64_t count, bool first, cli_ids *ids) {
    size_t bytes = 0;
    linnet_status status = linnet_chat_format(engine->tokenizer, messages, count, true, NULL, 0, &bytes);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    char *text = malloc(bytes + 1);
    if (!text) return cli_error("not enough memory for the prompt");
    status = linnet_chat_format(engine->tokenizer, messages, count, true, text, bytes, &bytes);
    const int flags = first ? first_flags(engine, text, bytes) : LINNET_TOKENIZE_SPECIAL;
    const int result = status == LINNET_OK
                           ? cli_tokenize_text(engine->context, engine->tokenizer, text, bytes, flags, ids)
                           : cli_engine_fail(engine, status);
    free(text);
    return result;
}

int cli_question_tokens(const cli_engine *engine, const char *system, const char *content, bool first, cli_ids *ids) {
    linnet_message messages[2];
    int64_t count = 0;
    if (system) messages[count++] = (linnet_message){"system", system};
    messages[count++] = (linnet_message){"user", content};
    return cli_chat_tokens(engine, messages, count, first, ids);
}

int cli_message_parts(const cli_engine *engine, cli_ids *before, cli_ids *after) {
    static const char mark[] = "LINNETMESSAGE";
    char text[8192];
    const linnet_message message = {"user", mark};
    size_t bytes = 0;
    const linnet_status status = linnet_chat_format(engine->tokenizer, &message, 1, true, text, sizeof text, &bytes);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    const char *found = bytes <= sizeof text ? memmem(text, bytes, mark, sizeof mark - 1) : NULL;
    if (!found) return cli_error("the chat template of the model does not show the user's message as it is");
    const size_t lead = (size_t)(found - text), rest = lead + sizeof mark - 1;
    const int first =
        cli_tokenize_text(engine->context, engine->tokenizer, text, lead, first_flags(engine, text, lead), before);
    return first == CLI_OK ? cli_tokenize_text(engine->context, engine->tokenizer, text + rest, bytes - rest,
                                               LINNET_TOKENIZE_SPECIAL, after)
                           : first;
}
