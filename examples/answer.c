/* Answers a question from a document: answer MODEL DOCUMENT QUESTION
 *
 *     cc answer.c $(pkg-config --cflags --libs linnet) -o answer */
#include <stdio.h>
#include <stdlib.h>

#include <linnet/linnet.h>

static linnet_context *context;

static void check(linnet_status status) {
    if (status == LINNET_OK) return;
    fprintf(stderr, "answer: %s\n", linnet_last_error(context));
    exit(1);
}

int main(int count, char **words) {
    if (count != 4) return fputs("usage: answer MODEL DOCUMENT QUESTION\n", stderr), 2;
    linnet_model *model;
    check(linnet_context_open(NULL, &context));
    check(linnet_model_open(context, words[1], &model));
    const linnet_tokenizer *tokenizer = linnet_model_tokenizer(model);

    /* The document, then the question in the form of the model's chat template. */
    enum { MOST = 1 << 20 };
    static char text[MOST];
    FILE *file = fopen(words[2], "rb");
    if (!file || !tokenizer) return fputs("answer: no such document, or a model without a tokenizer\n", stderr), 1;
    size_t length = fread(text, 1, MOST / 2, file), bytes;
    fclose(file);
    const linnet_message question = {"user", words[3]};
    check(linnet_chat_format(tokenizer, &question, 1, true, text + length, MOST - length, &bytes));

    static int32_t ids[MOST];
    int64_t tokens;
    check(linnet_tokenize(tokenizer, text, length + bytes, LINNET_TOKENIZE_SPECIAL, ids, MOST, &tokens));
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = tokens + 64;
    linnet_session *session;
    check(linnet_session_open(model, &settings, &session));
    check(linnet_session_feed(session, ids, tokens));

    linnet_sampler_settings greedy = linnet_sampler_settings_default();
    greedy.temperature = 0;
    linnet_sampler *sampler;
    check(linnet_sampler_open(model, &greedy, &sampler));
    for (int32_t id; linnet_session_position(session) < settings.context; check(linnet_session_feed(session, &id, 1))) {
        check(linnet_sample(sampler, session, &id));
        if (linnet_token_is_end(tokenizer, id)) break;
        const char *piece = linnet_token_bytes(tokenizer, id, &bytes);
        fwrite(piece, 1, bytes, stdout);
    }
    putchar('\n');
    linnet_sampler_close(sampler);
    linnet_session_close(session);
    linnet_model_close(model);
    linnet_context_close(context);
}
