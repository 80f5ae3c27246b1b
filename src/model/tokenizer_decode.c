/* Owns: decoding: the text of a growing sequence of tokens, in whole characters.
 *
 * held = what came and was not given out. After each token all of it is given out but the bytes at its end that begin a
 * UTF-8 character whose rest may still come (at most 3). Invariant: what was given out and what is held, one after the
 * other, are the bytes of the tokens, less what is stripped at the very start. */
#include <string.h>

#include "model/tokenizer.h"
#include "model/utf8.h"

struct linnet_decoder {
    const linnet_tokenizer *tokenizer;
    bool show_special;
    bool started; /* a token was shown */
    size_t stripped;
    ln_buffer held;
    size_t given; /* bytes of held that the last call gave out */
};

linnet_status linnet_decoder_open(const linnet_tokenizer *tokenizer, bool show_special, linnet_decoder **decoder) {
    *decoder = ln_allocate_zero(tokenizer->context, 1, sizeof **decoder, "decoder");
    if (!*decoder) return LINNET_ERROR_MEMORY;
    **decoder =
        (linnet_decoder){.tokenizer = tokenizer, .show_special = show_special, .held = {.context = tokenizer->context}};
    return LINNET_OK;
}

void linnet_decoder_close(linnet_decoder *decoder) {
    if (!decoder) return;
    linnet_context *context = decoder->tokenizer->context;
    ln_buffer_release(&decoder->held);
    ln_release(context, decoder);
}

/* The first token without what came from space marks. */
static void append_without_marks(linnet_decoder *decoder, int32_t id) {
    const size_t mark = sizeof LN_SPACE_MARK - 1;
    size_t bytes;
    const char *piece = ln_table_bytes(&decoder->tokenizer->vocabulary.pieces, id, &bytes);
    for (size_t at = 0; at < bytes;) {
        const bool is_mark = bytes - at >= mark && memcmp(piece + at, LN_SPACE_MARK, mark) == 0;
        if (!is_mark) ln_buffer_append(&decoder->held, piece + at, 1);
        at += is_mark ? mark : 1;
    }
}

static void append_token(linnet_decoder *decoder, int32_t id) {
    const linnet_tokenizer *tokenizer = decoder->tokenizer;
    const bool special = linnet_token_is_special(tokenizer, id);
    if (special && !decoder->show_special) return;
    const bool first = !decoder->started;
    decoder->started = true;
    size_t bytes;
    const char *text = linnet_token_bytes(tokenizer, id, &bytes);
    if (first && tokenizer->first_without_marks && tokenizer->vocabulary.kinds[id] != LN_TOKEN_BYTE) {
        append_without_marks(decoder, id);
        return;
    }
    while (tokenizer->strip_bytes && decoder->stripped < tokenizer->strip_count) {
        if (bytes < tokenizer->strip_bytes || memcmp(text, tokenizer->strip, tokenizer->strip_bytes) != 0) {
            if (bytes) decoder->stripped = tokenizer->strip_count;
            break;
        }
        text += tokenizer->strip_bytes;
        bytes -= tokenizer->strip_bytes;
        decoder->stripped++;
    }
    ln_buffer_append(&decoder->held, text, bytes);
}

static linnet_status give(linnet_decoder *decoder, size_t kept, const char **text, size_t *bytes) {
    if (decoder->held.failed) return LINNET_ERROR_MEMORY;
    decoder->given = decoder->held.bytes - kept;
    *text = decoder->held.data ? decoder->held.data : "";
    *bytes = decoder->given;
    return LINNET_OK;
}

static void forget_given(linnet_decoder *decoder) {
    if (!decoder->given) return;
    decoder->held.bytes -= decoder->given;
    memmove(decoder->held.data, decoder->held.data + decoder->given, decoder->held.bytes);
    decoder->given = 0;
}

linnet_status linnet_decode(linnet_decoder *decoder, int32_t id, const char **text, size_t *bytes) {
    *text = "";
    *bytes = 0;
    const linnet_tokenizer *tokenizer = decoder->tokenizer;
    if (id < 0 || id >= tokenizer->vocabulary.size)
        return ln_fail(tokenizer->context, LINNET_ERROR_ARGUMENT, "token %d is not one of the tokenizer's %lld", id,
                       (long long)tokenizer->vocabulary.size);
    forget_given(decoder);
    append_token(decoder, id);
    return give(decoder, ln_utf8_unfinished(decoder->held.data ? decoder->held.data : "", decoder->held.bytes), text,
                bytes);
}

linnet_status linnet_decode_end(linnet_decoder *decoder, const char **text, size_t *bytes) {
    forget_given(decoder);
    return give(decoder, 0, text, bytes);
}
