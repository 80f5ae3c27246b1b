/* Owns: the steps between text and pieces: normalising and splitting, the same engine for both.
 *
 * A step turns a stretch of text into new text or cuts it; each result goes through the steps after it at once, so no
 * list of pieces is ever kept. Invariant: regular expressions see well-formed UTF-8 only; a run of bytes that is none
 * is passed on as a stretch of its own, unchanged. */
#include <string.h>

#include "model/tokenizer.h"
#include "model/utf8.h"

/* ---- finding ---- */

/* The runs of text: well-formed characters, and bytes that are none, in turn. */
static size_t next_run(const char *text, size_t bytes, bool *valid) {
    const size_t good = ln_utf8_valid(text, bytes);
    *valid = good > 0;
    if (good) return good;
    size_t bad = 1;
    while (bad < bytes && !ln_utf8_length(text + bad, bytes - bad)) bad++;
    return bad;
}

typedef struct finder {
    const ln_step *step;
    const char *text; /* well-formed */
    size_t bytes, from;
    bool matched; /* something ended at `from` */
} finder;

/* *start SIZE_MAX: no more. */
static linnet_status find_next(finder *f, size_t *start, size_t *end) {
    *start = SIZE_MAX;
    while (f->from <= f->bytes) {
        if (!f->step->regex) {
            if (!f->step->literal_bytes) return LINNET_OK;
            const char *found = memmem(f->text + f->from, f->bytes - f->from, f->step->literal, f->step->literal_bytes);
            if (!found) return LINNET_OK;
            *start = (size_t)(found - f->text);
            *end = *start + f->step->literal_bytes;
        } else {
            const linnet_status status = ln_regex_find(f->step->regex, f->text, f->bytes, f->from, start, end);
            if (status != LINNET_OK || *start == SIZE_MAX) return status;
            if (*start == *end && f->matched && *end == f->from) {
                *start = SIZE_MAX;
                if (f->from == f->bytes) return LINNET_OK;
                f->from += ln_utf8_expected((unsigned char)f->text[f->from]);
                f->matched = false;
                continue;
            }
        }
        f->from = *end;
        f->matched = true;
        return LINNET_OK;
    }
    return LINNET_OK;
}

linnet_status ln_replace(const ln_step *step, ln_buffer *buffer, const char *text, size_t bytes) {
    for (size_t at = 0, run; at < bytes; at += run) {
        bool valid;
        run = next_run(text + at, bytes - at, &valid);
        finder found_in = {.step = step, .text = text + at, .bytes = valid ? run : 0};
        size_t done = 0, start, end;
        linnet_status status = LINNET_OK;
        while (valid && (status = find_next(&found_in, &start, &end)) == LINNET_OK && start != SIZE_MAX) {
            ln_buffer_append(buffer, text + at + done, start - done);
            ln_buffer_append(buffer, step->text, step->text_bytes);
            done = end;
        }
        if (status != LINNET_OK) return status;
        ln_buffer_append(buffer, text + at + done, run - done);
    }
    return buffer->failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

/* ---- splitting ---- */

typedef struct splitter {
    ln_encoder *encoder;
    const ln_step *step;
    int next_step;
    const char *text;
    bool at_start;
    size_t start, end; /* the stretch that is still growing; empty: none */
    bool match;        /* whether its last span was a match */
} splitter;

static void flush(splitter *s) {
    if (s->end > s->start)
        ln_encode_stretch(s->encoder, s->next_step, s->text + s->start, s->end - s->start,
                          s->at_start && s->start == 0);
    s->start = s->end;
}

/* The next span of the run, a match or what lies before one. */
static void add_span(splitter *s, size_t start, size_t end, bool match) {
    if (start == end) return;
    match ^= s->step->invert;
    const bool growing = s->end > s->start;
    bool joins = false;
    switch (s->step->behaviour) {
    case LN_ISOLATED:
    case LN_REMOVED:
        break;
    case LN_MERGED_WITH_PREVIOUS:
        joins = match && !s->match;
        break;
    case LN_MERGED_WITH_NEXT:
        joins = !match && s->match;
        break;
    case LN_CONTIGUOUS:
        joins = match == s->match;
        break;
    }
    if (!(joins && growing)) {
        flush(s);
        s->start = start;
    }
    s->end = end;
    s->match = match;
    if (match && s->step->behaviour == LN_REMOVED) s->start = end;
}

static void split_run(splitter *s, size_t at, size_t run) {
    finder found_in = {.step = s->step, .text = s->text + at, .bytes = run};
    size_t done = 0, start, end;
    s->start = s->end = at;
    s->match = false;
    while (s->encoder->status == LINNET_OK) {
        const linnet_status status = find_next(&found_in, &start, &end);
        if (status != LINNET_OK) {
            s->encoder->status = status;
            return;
        }
        if (start == SIZE_MAX) break;
        add_span(s, at + done, at + start, false);
        add_span(s, at + start, at + end, true);
        done = end;
    }
    add_span(s, at + done, at + run, false);
    flush(s);
}

static void split(ln_encoder *encoder, int step, const char *text, size_t bytes, bool at_start) {
    splitter s = {.encoder = encoder,
                  .step = &encoder->tokenizer->steps[step],
                  .next_step = step + 1,
                  .text = text,
                  .at_start = at_start};
    for (size_t at = 0, run; at < bytes && encoder->status == LINNET_OK; at += run) {
        bool valid;
        run = next_run(text + at, bytes - at, &valid);
        if (valid)
            split_run(&s, at, run);
        else
            ln_encode_stretch(encoder, step + 1, text + at, run, at_start && at == 0);
    }
}

static void split_at_marks(ln_encoder *encoder, int step, const char *text, size_t bytes, bool at_start) {
    const size_t mark = sizeof LN_SPACE_MARK - 1;
    size_t start = 0;
    for (size_t at = 0; at < bytes;) {
        const char *found = memmem(text + at, bytes - at, LN_SPACE_MARK, mark);
        if (!found) break;
        const size_t cut = (size_t)(found - text);
        if (cut > at) {
            ln_encode_stretch(encoder, step + 1, text + start, cut - start, at_start && start == 0);
            start = cut;
        }
        at = cut + mark;
    }
    ln_encode_stretch(encoder, step + 1, text + start, bytes - start, at_start && start == 0);
}

/* ---- text to text ---- */

static bool wants_prefix(const ln_step *step, const char *text, size_t bytes, bool at_start) {
    if (step->when == LN_ALWAYS) return true;
    if (step->when == LN_FIRST_UNLESS_PRESENT && !at_start) return false;
    return bytes < step->text_bytes || memcmp(text, step->text, step->text_bytes) != 0;
}

static void normalise(ln_buffer *buffer, const char *text, size_t bytes) {
    for (size_t at = 0, run; at < bytes; at += run) {
        bool valid;
        run = next_run(text + at, bytes - at, &valid);
        if (valid)
            ln_nfc(buffer, text + at, run);
        else
            ln_buffer_append(buffer, text + at, run);
    }
}

static void strip(const ln_step *step, const char **text, size_t *bytes) {
    for (size_t length; step->left && *bytes; *text += length, *bytes -= length) {
        length = ln_utf8_length(*text, *bytes);
        if (!length || !ln_is_space(ln_utf8_code(*text, length))) break;
    }
    while (step->right && *bytes) {
        size_t length = 1;
        while (length < 4 && length < *bytes && ((*text)[*bytes - length] & 0xC0) == 0x80) length++;
        const char *last = *text + *bytes - length;
        if (ln_utf8_length(last, length) != length || !ln_is_space(ln_utf8_code(last, length))) break;
        *bytes -= length;
    }
}

linnet_status ln_step_rewrite(const ln_step *step, const char **text, size_t *bytes, bool at_start, ln_buffer *buffer) {
    linnet_status status = LINNET_OK;
    buffer->bytes = 0;
    switch (step->kind) {
    case LN_STEP_PREPEND:
        if (!*bytes || !wants_prefix(step, *text, *bytes, at_start)) return LINNET_OK;
        ln_buffer_append(buffer, step->text, step->text_bytes);
        ln_buffer_append(buffer, *text, *bytes);
        break;
    case LN_STEP_REPLACE:
        status = ln_replace(step, buffer, *text, *bytes);
        break;
    case LN_STEP_NFC:
        normalise(buffer, *text, *bytes);
        break;
    case LN_STEP_STRIP:
        strip(step, text, bytes);
        return LINNET_OK;
    case LN_STEP_ADDED:
    case LN_STEP_SPLIT:
    case LN_STEP_MARKS:
        return LINNET_OK;
    }
    if (buffer->failed) return LINNET_ERROR_MEMORY;
    *text = buffer->data ? buffer->data : "";
    *bytes = buffer->bytes;
    return status;
}

void ln_encode_stretch(ln_encoder *encoder, int at, const char *text, size_t bytes, bool at_start) {
    const linnet_tokenizer *tokenizer = encoder->tokenizer;
    for (; at < tokenizer->step_count && bytes && encoder->status == LINNET_OK; at++) {
        const ln_step *step = &tokenizer->steps[at];
        switch (step->kind) {
        case LN_STEP_ADDED:
            ln_encode_added(encoder, &tokenizer->normalised, at + 1, text, bytes, at_start);
            return;
        case LN_STEP_SPLIT:
            split(encoder, at, text, bytes, at_start);
            return;
        case LN_STEP_MARKS:
            split_at_marks(encoder, at, text, bytes, at_start);
            return;
        default:
            encoder->status = ln_step_rewrite(step, &text, &bytes, at_start, &encoder->buffers[at]);
        }
    }
    ln_encode_piece(encoder, text, bytes);
}
