/* Owns: the loop from logits to text: sample, decode, look for the end, feed.
 *
 * A stop text may arrive in pieces, so the longest end of the text that could still become one is held back; what was
 * written is never taken back. */
#include <string.h>

#include "cli.h"

/* The first place where a stop text begins at or after `from`; `bytes` where there is none. */
static size_t find_stop(const cli_texts *stops, const char *text, size_t bytes, size_t from) {
    size_t first = bytes;
    for (int i = 0; i < stops->count; i++) {
        const size_t length = strlen(stops->text[i]);
        const char *found = memmem(text + from, bytes - from, stops->text[i], length);
        if (found && (size_t)(found - text) < first) first = (size_t)(found - text);
    }
    return first;
}

/* Bytes at the end of the text that begin a stop text. */
static size_t held_back(const cli_texts *stops, const char *text, size_t bytes) {
    size_t most = 0;
    for (int i = 0; i < stops->count; i++) {
        const size_t length = strlen(stops->text[i]) - 1;
        for (size_t n = length < bytes ? length : bytes; n > most; n--) {
            if (!memcmp(text + bytes - n, stops->text[i], n)) {
                most = n;
                break;
            }
        }
    }
    return most;
}

typedef struct writing {
    const cli_texts *stops;
    FILE *out;
    cli_buffer *text;
    size_t written;
    bool stopped, failed;
} writing;

static void write_until(writing *w, size_t end) {
    if (w->out && end > w->written) {
        w->failed |= fwrite(w->text->data + w->written, 1, end - w->written, w->out) != end - w->written;
        w->failed |= fflush(w->out) != 0;
    }
    w->written = end > w->written ? end : w->written;
}

static void write_piece(writing *w, const char *piece, size_t bytes) {
    /* What is held back was searched in vain for whole stop texts: start there. */
    const size_t from = w->written;
    if (!bytes || w->stopped) return;
    if (!cli_append(w->text, piece, bytes)) {
        w->failed = true;
        return;
    }
    const size_t all = w->text->bytes, stop = find_stop(w->stops, w->text->data, all, from);
    w->stopped = stop < all;
    if (w->stopped) {
        w->text->bytes = stop;
        w->text->data[stop] = 0;
        write_until(w, stop);
    } else {
        write_until(w, all - held_back(w->stops, w->text->data + from, all - from));
    }
}

/* One token further: true where the text goes on. */
static bool next_token(cli_engine *engine, linnet_sampler *sampler, linnet_decoder *decoder, int64_t limit, writing *w,
                       cli_answer *answer, linnet_status *status) {
    int32_t id;
    *status = linnet_sample(sampler, engine->session, &id);
    if (*status != LINNET_OK) return false;
    const double now = cli_seconds();
    if (!answer->tokens) answer->first = now;
    answer->seconds = now - answer->first;
    if (linnet_token_is_end(engine->tokenizer, id)) {
        answer->stopped = "end";
        return false;
    }
    answer->tokens++;
    const char *text;
    size_t bytes;
    *status = linnet_decode(decoder, id, &text, &bytes);
    if (*status != LINNET_OK) return false;
    write_piece(w, text, bytes);
    if (w->stopped) answer->stopped = "stop";
    if (w->stopped || w->failed) return false;
    if (answer->tokens == limit) return false;
    if (linnet_session_position(engine->session) == linnet_session_plan(engine->session).context) {
        answer->stopped = "context";
        return false;
    }
    *status = linnet_session_feed(engine->session, &id, 1);
    return *status == LINNET_OK;
}

int cli_generate(cli_engine *engine, linnet_sampler *sampler, int64_t limit, const cli_texts *stops, FILE *out,
                 cli_answer *answer) {
    *answer = (cli_answer){.stopped = "length"};
    writing w = {.stops = stops, .out = out, .text = &answer->text};
    linnet_decoder *decoder = NULL;
    linnet_status status = linnet_decoder_open(engine->tokenizer, false, &decoder);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    while (limit && next_token(engine, sampler, decoder, limit, &w, answer, &status)) {
    }
    if (status == LINNET_INTERRUPTED) {
        answer->stopped = "interrupted";
        status = LINNET_OK;
    }
    const char *rest;
    size_t bytes;
    if (status == LINNET_OK && linnet_decode_end(decoder, &rest, &bytes) == LINNET_OK) write_piece(&w, rest, bytes);
    write_until(&w, answer->text.bytes);
    linnet_decoder_close(decoder);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    if (w.failed) return cli_error("the text could not be written to standard output");
    return CLI_OK;
}

linnet_status cli_feed(cli_engine *engine, const int32_t *ids, int64_t count) {
    const int32_t *held = linnet_session_tokens(engine->session);
    const int64_t position = linnet_session_position(engine->session);
    int64_t common = 0;
    while (common < position && common < count - 1 && held[common] == ids[common]) common++;
    if (common < position) {
        common = linnet_session_rewind_point(engine->session, common);
        const linnet_status status = linnet_session_rewind(engine->session, common);
        if (status != LINNET_OK) return status;
    }
    return linnet_session_feed(engine->session, ids + common, count - common);
}
