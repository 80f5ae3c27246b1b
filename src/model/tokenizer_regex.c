/* Owns: regular expressions, by PCRE2, with the meaning that they have in tokenizer.json: Oniguruma's.
 *
 * Where the two differ the pattern is rewritten (\s, \w and the like, whose sets differ in a few characters), the
 * option is set
 * (^ and $ match at lines), or the pattern is refused (sets within sets). A match that goes on for too long ends in an
 * error instead of hanging: patterns come from files. */
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/tokenizer.h"

enum { MOST_PATTERN_BYTES = 1 << 16, MATCH_LIMIT = 20000000, HEAP_LIMIT_KIB = 64 * 1024 };

struct ln_regex {
    linnet_context *context;
    pcre2_general_context *general;
    pcre2_compile_context *compiling;
    pcre2_match_context *matching;
    pcre2_match_data *data;
    pcre2_code *code;
    bool compiled_to_machine_code;
};

static void *regex_allocate(PCRE2_SIZE bytes, void *context) {
    return ln_allocate(context, bytes, 1, "regular expressions");
}

static void regex_release(void *block, void *context) {
    ln_release(context, block);
}

/* ---- Oniguruma's meaning ---- */

#define SPACES "\\t-\\r\\x{85}\\p{Z}"
#define WORDS                                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{" \
    "1F189}"
/* What Oniguruma counts among words outside of sets only. */
#define MORE_WORDS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

typedef struct rewriting {
    const char *written, *in_set, *alone; /* in_set NULL: not understood there */
} rewriting;

static const rewriting rewritings[] = {
    {"\\s", SPACES, "[" SPACES "]"},
    {"\\S", NULL, "[^" SPACES "]"},
    {"\\w", WORDS, "[" WORDS MORE_WORDS "]"},
    {"\\W", NULL, "[^" WORDS MORE_WORDS "]"},
    {"\\h", "0-9A-Fa-f", "[0-9A-Fa-f]"},
    {"\\H", NULL, "[^0-9A-Fa-f]"},
    {"[:space:]", SPACES, NULL},
    {"[:alpha:]", "\\p{Alphabetic}", NULL},
    {"[:punct:]", "\\p{P}\\p{S}", NULL},
    {"\\p{Letter}", "\\p{L}", "\\p{L}"},
    {"\\p{Mark}", "\\p{M}", "\\p{M}"},
    {"\\p{Number}", "\\p{N}", "\\p{N}"},
    {"\\p{Punctuation}", "\\p{P}", "\\p{P}"},
    {"\\p{Symbol}", "\\p{S}", "\\p{S}"},
    {"\\p{Separator}", "\\p{Z}", "\\p{Z}"},
    /* PCRE2 takes a script's name alone for all characters that the script uses. */
    {"\\p{Han}", "\\p{sc:Han}", "\\p{sc:Han}"},
    {"\\p{Hiragana}", "\\p{sc:Hiragana}", "\\p{sc:Hiragana}"},
    {"\\p{Katakana}", "\\p{sc:Katakana}", "\\p{sc:Katakana}"},
    {"\\p{Hangul}", "\\p{sc:Hangul}", "\\p{sc:Hangul}"},
    {"\\p{Thai}", "\\p{sc:Thai}", "\\p{sc:Thai}"},
    {"\\p{Latin}", "\\p{sc:Latin}", "\\p{sc:Latin}"},
    {"\\p{Greek}", "\\p{sc:Greek}", "\\p{sc:Greek}"},
    {"\\p{Cyrillic}", "\\p{sc:Cyrillic}", "\\p{sc:Cyrillic}"},
    {"\\p{Arabic}", "\\p{sc:Arabic}", "\\p{sc:Arabic}"},
    {"\\p{Hebrew}", "\\p{sc:Hebrew}", "\\p{sc:Hebrew}"},
    {"\\p{Devanagari}", "\\p{sc:Devanagari}", "\\p{sc:Devanagari}"},
};

/* Appends what stands at the start of text in PCRE2's form; returns the bytes of text that it was, 0 where it means the
 * same in both. *understood is cleared where it cannot be said. */
static size_t rewrite_one(ln_buffer *out, const char *text, size_t bytes, bool in_set, bool *understood) {
    for (size_t i = 0; i < sizeof rewritings / sizeof *rewritings; i++) {
        const rewriting *row = &rewritings[i];
        const size_t length = strlen(row->written);
        if (length > bytes || memcmp(row->written, text, length) != 0) continue;
        const char *form = in_set ? row->in_set : row->alone;
        if (!form && !in_set) return 0;
        if (form) ln_buffer_text(out, form);
        *understood &= form != NULL;
        return length;
    }
    return 0;
}

/* The pattern as PCRE2 should read it; false where it uses what only Oniguruma has: sets within sets, \S in a set. */
static bool translate(ln_buffer *out, const char *pattern, size_t bytes) {
    size_t set_start = 0; /* the first byte inside of the '[' that is open; 0: none */
    bool understood = true;
    for (size_t i = 0, length; i < bytes && understood; i += length) {
        const char c = pattern[i];
        const size_t left = bytes - i;
        length = rewrite_one(out, pattern + i, left, set_start != 0, &understood);
        if (length) continue;
        length = c == '\\' && left > 1 ? 2 : 1;
        if (set_start && c == '[') {
            const char *close = left > 1 && pattern[i + 1] == ':' ? memmem(pattern + i, left, ":]", 2) : NULL;
            if (!close) return false;
            length = (size_t)(close - (pattern + i)) + 2;
        } else if (set_start && c == '&' && left > 1 && pattern[i + 1] == '&') {
            return false;
        } else if (!set_start && c == '[') {
            length = left > 1 && pattern[i + 1] == '^' ? 2 : 1;
            set_start = i + length;
        } else if (set_start && c == ']' && i != set_start) {
            set_start = 0;
        }
        ln_buffer_append(out, pattern + i, length);
    }
    return understood;
}

/* ---- compiling ---- */

static linnet_status compile(ln_regex *regex, const ln_buffer *pattern, const char *written, int written_bytes) {
    int code;
    PCRE2_SIZE offset;
    regex->general = pcre2_general_context_create(regex_allocate, regex_release, regex->context);
    if (!regex->general) return LINNET_ERROR_MEMORY;
    regex->compiling = pcre2_compile_context_create(regex->general);
    regex->matching = pcre2_match_context_create(regex->general);
    if (!regex->compiling || !regex->matching) return LINNET_ERROR_MEMORY;
    pcre2_set_newline(regex->compiling, PCRE2_NEWLINE_LF);
    pcre2_set_match_limit(regex->matching, MATCH_LIMIT);
    pcre2_set_heap_limit(regex->matching, HEAP_LIMIT_KIB);
    regex->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->bytes,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset,
                                regex->compiling);
    if (!regex->code && code == PCRE2_ERROR_HEAP_FAILED) return LINNET_ERROR_MEMORY;
    if (!regex->code) {
        char reason[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        return ln_fail(regex->context, LINNET_ERROR_UNSUPPORTED,
                       "the tokenizer's regular expression '%.*s' is not understood: %s", written_bytes, written,
                       reason);
    }
    regex->data = pcre2_match_data_create(1, regex->general);
    if (!regex->data) return LINNET_ERROR_MEMORY;
    regex->compiled_to_machine_code = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0;
    return LINNET_OK;
}

linnet_status ln_regex_open(linnet_context *context, const char *pattern, size_t bytes, ln_regex **regex) {
    *regex = NULL;
    const int shown = bytes < 200 ? (int)bytes : 200;
    if (bytes > MOST_PATTERN_BYTES)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "a regular expression of the tokenizer has %zu bytes", bytes);
    ln_buffer translated = {.context = context};
    ln_buffer_append(&translated, "", 0);
    const bool understood = translate(&translated, pattern, bytes);
    linnet_status status = translated.failed ? LINNET_ERROR_MEMORY : LINNET_OK;
    if (status == LINNET_OK && !understood)
        status = ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                         "the tokenizer's regular expression '%.*s' uses sets within sets, or a negated class in a "
                         "set, which are not understood",
                         shown, pattern);
    ln_regex *made = status == LINNET_OK ? ln_allocate_zero(context, 1, sizeof *made, "regular expressions") : NULL;
    if (status == LINNET_OK && !made) status = LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) {
        made->context = context;
        status = compile(made, &translated, pattern, shown);
    }
    ln_buffer_release(&translated);
    if (status == LINNET_OK)
        *regex = made;
    else
        ln_regex_close(made);
    return status;
}

void ln_regex_close(ln_regex *regex) {
    if (!regex) return;
    pcre2_match_data_free(regex->data);
    pcre2_code_free(regex->code);
    pcre2_match_context_free(regex->matching);
    pcre2_compile_context_free(regex->compiling);
    pcre2_general_context_free(regex->general);
    ln_release(regex->context, regex);
}

/* ---- matching ---- */

linnet_status ln_regex_find(ln_regex *regex, const char *text, size_t bytes, size_t from, size_t *start, size_t *end) {
    *start = *end = SIZE_MAX;
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (regex->compiled_to_machine_code)
        found = pcre2_jit_match(regex->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK, regex->data,
                                regex->matching);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, regex->data,
                            regex->matching);
    if (found == PCRE2_ERROR_NOMATCH) return LINNET_OK;
    if (found == PCRE2_ERROR_NOMEMORY) return LINNET_ERROR_MEMORY;
    if (found < 0) {
        char reason[160];
        pcre2_get_error_message(found, (PCRE2_UCHAR *)reason, sizeof reason);
        return ln_fail(regex->context, LINNET_ERROR_UNSUPPORTED,
                       "a regular expression of the tokenizer gave up on this text: %s", reason);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(regex->data);
    *start = ends[0];
    *end = ends[1];
    return LINNET_OK;
}
