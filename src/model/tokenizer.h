/* Tokenizers, inside. One structure serves all kinds, whether read from GGUF keys or from a tokenizer.json:
 *
 *   text -> added tokens are cut out -> steps (normalise, split) -> pieces -> merges of the vocabulary -> ids
 *
 * A tokenizer of byte-level BPE keeps its pieces as the raw bytes they stand for, not in the alphabet in which its
 * files write bytes, so that text needs no translation. */
#ifndef LN_MODEL_TOKENIZER_H
#define LN_MODEL_TOKENIZER_H

#include "linnet/tokenizer.h"
#include "model/file.h"
#include "model/gguf_write.h"

enum { LN_NO_TOKEN = -1 };

/* The numbers of GGUF's tokenizer.ggml.token_type. */
typedef enum ln_token_kind {
    LN_TOKEN_NORMAL = 1,
    LN_TOKEN_UNKNOWN = 2,
    LN_TOKEN_CONTROL = 3,
    LN_TOKEN_USER = 4, /* added, matched in all text, but text itself */
    LN_TOKEN_UNUSED = 5,
    LN_TOKEN_BYTE = 6 /* "<0x0A>" */
} ln_token_kind;

/* ---- vocabulary ---- */

/* Bytes of entry i: bytes + offsets[i] up to bytes + offsets[i + 1]. */
typedef struct ln_text_table {
    uint32_t *offsets;
    char *bytes;
} ln_text_table;

typedef struct ln_piece_slot {
    uint32_t hash;
    int32_t id; /* LN_NO_TOKEN: empty */
} ln_piece_slot;

typedef struct ln_merge {
    int32_t left, right; /* left LN_NO_TOKEN: empty */
    uint32_t rank;       /* lower merges first */
    int32_t merged;
} ln_merge;

typedef struct ln_vocabulary {
    linnet_context *context;
    int64_t size;
    ln_text_table pieces;  /* what merging matches */
    ln_text_table written; /* what a token stands for in text; bytes NULL: its piece */
    uint8_t *kinds;        /* ln_token_kind */
    uint8_t *whole;        /* whether merging the piece of a token gives that token: 0 not tried, 1 yes, 2 no */
    float *scores;         /* of SentencePiece; NULL where merges have ranks */
    ln_piece_slot *slots;  /* pieces by hash, a power of two of slots */
    uint32_t slot_mask;
    ln_merge *merges; /* by pair */
    uint32_t merge_mask;
    int32_t guess;      /* while reading: what the last merge made */
    size_t longest;     /* bytes of the longest piece */
    int32_t bytes[256]; /* token of a lone byte */
    int32_t unknown;    /* for what has no token; LN_NO_TOKEN: dropped */
    bool byte_level;    /* pieces begin as bytes, otherwise as characters */
    bool ignore_merges; /* a piece that is a token is that token, whatever merging says */
    bool greedy;        /* no merges: from left to right always the longest piece that fits */
    bool fuse_unknown;  /* neighbouring unknown characters are one token */
} ln_vocabulary;

/* Builds pieces and their hash. texts: as written in files; an entry of NULL data is an unused id. kinds: taken over.
 */
linnet_status ln_vocabulary_build(ln_vocabulary *vocabulary, const ln_text *texts, int64_t count, bool byte_level);
void ln_vocabulary_close(ln_vocabulary *vocabulary);
/* The token of a piece in its raw form; any kind. */
int32_t ln_vocabulary_find(const ln_vocabulary *vocabulary, const char *bytes, size_t count);
/* The same in the form of files; for a piece of byte-level BPE that is in the alphabet of bytes. */
int32_t ln_vocabulary_find_written(const ln_vocabulary *vocabulary, ln_text text);
linnet_status ln_vocabulary_reserve_merges(ln_vocabulary *vocabulary, uint64_t count);
enum { LN_MERGE_BATCH = 64 };
/* At most a batch of merges, left and right texts in turn, of ranks `rank` and up, into the room that was reserved.
 * Returns of how many one of the two, or both together, are no token; *first is the first of these. */
int ln_vocabulary_add_merges(ln_vocabulary *vocabulary, const ln_text *pairs, int count, uint32_t rank, int *first);
const ln_merge *ln_vocabulary_merge(const ln_vocabulary *vocabulary, int32_t left, int32_t right);
/* Fills bytes[], by "<0x0A>" pieces or, byte-level, by pieces of one byte; how many of the 256 there are. */
int ln_vocabulary_find_bytes(ln_vocabulary *vocabulary);
/* Whether no token has a space mark (U+2581) after anything but space marks: text may then be cut before each mark that
 * follows something else, and every piece merges as it would have inside the whole. */
bool ln_vocabulary_cuts_at_marks(const ln_vocabulary *vocabulary);

static inline const char *ln_table_bytes(const ln_text_table *table, int64_t index, size_t *bytes) {
    *bytes = table->offsets[index + 1] - table->offsets[index];
    return table->bytes + table->offsets[index];
}

/* The character (at most 2 bytes, terminated) by which GPT-2's alphabet writes a byte. */
void ln_byte_character(unsigned char byte, char text[3]);

/* ---- patterns and steps ---- */

typedef struct ln_regex ln_regex;
linnet_status ln_regex_open(linnet_context *context, const char *pattern, size_t bytes, ln_regex **regex);
void ln_regex_close(ln_regex *regex);
/* The first match at or after `from` in well-formed text; *start SIZE_MAX: none. LINNET_ERROR_UNSUPPORTED where it
 * takes too long. */
linnet_status ln_regex_find(ln_regex *regex, const char *text, size_t bytes, size_t from, size_t *start, size_t *end);

typedef enum ln_step_kind {
    LN_STEP_PREPEND, /* text before the piece */
    LN_STEP_REPLACE, /* matches by text */
    LN_STEP_NFC,
    LN_STEP_STRIP, /* white space at the ends */
    LN_STEP_ADDED, /* cut out the added tokens that are looked for in normalised text */
    LN_STEP_SPLIT, /* cut at matches */
    LN_STEP_MARKS  /* cut before each space mark that follows something else */
} ln_step_kind;

typedef enum ln_behaviour {
    LN_ISOLATED,
    LN_REMOVED,
    LN_MERGED_WITH_PREVIOUS,
    LN_MERGED_WITH_NEXT,
    LN_CONTIGUOUS
} ln_behaviour;

typedef enum ln_when { LN_ALWAYS, LN_UNLESS_PRESENT, LN_FIRST_UNLESS_PRESENT } ln_when;

typedef struct ln_step {
    ln_step_kind kind;
    ln_regex *regex; /* what SPLIT and REPLACE look for; NULL: the literal */
    char *literal;   /* with a regex: its source */
    size_t literal_bytes;
    char *text; /* what PREPEND and REPLACE put */
    size_t text_bytes;
    ln_behaviour behaviour;
    ln_when when;
    bool invert;      /* SPLIT: what lies between matches is the match */
    bool left, right; /* STRIP */
} ln_step;

/* ---- added tokens ---- */

typedef struct ln_added {
    const char *text;
    size_t bytes;
    int32_t id;
    bool special, left_strip, right_strip, single_word, normalised;
} ln_added;

/* Sorted by text, so that the tokens that begin with some bytes are neighbours. */
typedef struct ln_added_set {
    ln_added *tokens;
    int64_t count;
    uint32_t first[257]; /* tokens whose first byte is b: first[b] up to first[b + 1] */
} ln_added_set;

/* The set of those tokens that are, or are not, looked for in normalised text. */
linnet_status ln_added_open(linnet_context *context, const ln_added *tokens, int64_t count, bool normalised,
                            ln_added_set *set);

/* ---- the tokenizer ---- */

typedef struct ln_template ln_template;

struct linnet_tokenizer {
    linnet_context *context;
    ln_vocabulary vocabulary;
    ln_added_set raw, normalised; /* looked for in the text as it came; after normalisation */
    char *added_text;             /* the texts of both */
    ln_regex *word;               /* a character of a word, where an added token asks for single words */
    ln_step *steps;
    int step_count;
    int32_t *prefix, *suffix; /* what LINNET_TOKENIZE_BEGIN puts around the text */
    int prefix_count, suffix_count;
    int32_t begin, end, padding;
    int32_t *ends; /* where generation ends */
    int64_t end_count;
    /* Decoding: bytes at the very start that are taken away, at most `strip_count` times; or, of the first token, all
     * that came from space marks. */
    char *strip;
    size_t strip_bytes, strip_count;
    bool first_without_marks;
    char *chat_template;
    size_t chat_template_bytes;
    ln_template *compiled_template; /* NULL until first used */
};

/* ---- one call of linnet_tokenize ---- */

typedef struct ln_symbol {
    uint32_t start, bytes; /* of the piece; bytes 0: merged into the one before */
    int32_t previous, next;
    int32_t id;     /* LN_NO_TOKEN: not one yet */
    int32_t merged; /* the token that it and the next would become, LN_NO_TOKEN: none */
} ln_symbol;

typedef struct ln_candidate {
    uint64_t order; /* rank above, position below: the least merges first */
    int32_t merged;
} ln_candidate;

typedef struct ln_encoder {
    const linnet_tokenizer *tokenizer;
    int32_t *ids;
    int64_t capacity, count;
    int32_t last; /* emitted; LN_NO_TOKEN: none */
    int flags;
    linnet_status status;
    ln_symbol *symbols;
    ln_candidate *heap; /* three for each symbol */
    int64_t symbol_capacity, heap_count;
    ln_buffer *buffers; /* the text that each step made */
} ln_encoder;

void ln_encoder_emit(ln_encoder *encoder, int32_t id);
/* The ids of one piece, by merging. */
void ln_encode_piece(ln_encoder *encoder, const char *piece, size_t bytes);
/* A stretch of text between added tokens: steps from `step` on, then pieces. at_start: it begins the whole text. */
void ln_encode_stretch(ln_encoder *encoder, int step, const char *text, size_t bytes, bool at_start);
/* Cuts out the added tokens of a set; what lies between goes to ln_encode_stretch. */
void ln_encode_added(ln_encoder *encoder, const ln_added_set *set, int step, const char *text, size_t bytes,
                     bool at_start);
/* Text with every occurrence of the step's pattern replaced, appended. */
linnet_status ln_replace(const ln_step *step, ln_buffer *buffer, const char *text, size_t bytes);
/* What a step that changes text makes of it: *text, *bytes move to the buffer, which is emptied first, or stay. */
linnet_status ln_step_rewrite(const ln_step *step, const char **text, size_t *bytes, bool at_start, ln_buffer *buffer);

/* From the keys of a file: tokenizer.huggingface.json where it has that, tokenizer.ggml.* otherwise. NULL, with
 * LINNET_ERROR_UNSUPPORTED, where the file carries no tokenizer or one that is not understood. */
linnet_status ln_tokenizer_make(linnet_context *context, const linnet_file *file, linnet_tokenizer **tokenizer);

/* Parts of ln_tokenizer_make. */
linnet_status ln_tokenizer_read_gguf(linnet_tokenizer *tokenizer, const linnet_file *file);
linnet_status ln_tokenizer_read_json(linnet_tokenizer *tokenizer, const linnet_file *file, ln_text json);
linnet_status ln_step_set_literal(linnet_context *context, ln_step *step, const char *text, size_t bytes);
linnet_status ln_step_set_regex(linnet_context *context, ln_step *step, const char *regex, size_t bytes);
linnet_status ln_step_set_text(linnet_context *context, ln_step *step, const char *text, size_t bytes);
void ln_step_close(linnet_context *context, ln_step *step);
/* A cleared step at the end; step NULL: nothing more is to be set. */
linnet_status ln_tokenizer_add_step(linnet_tokenizer *tokenizer, ln_step_kind kind, ln_step **step);
linnet_status ln_tokenizer_add_split(linnet_tokenizer *tokenizer, const char *regex, size_t bytes);
linnet_status ln_tokenizer_add_replace(linnet_tokenizer *tokenizer, const char *literal, const char *text);
linnet_status ln_tokenizer_add_prepend(linnet_tokenizer *tokenizer, const char *text, ln_when when);
linnet_status ln_tokenizer_set_added(linnet_tokenizer *tokenizer, const ln_added *tokens, int64_t count);
/* Makes vocabulary.written: pieces after the replacements, and where `bytes` is set "<0x0A>" as the byte. */
linnet_status ln_tokenizer_set_written(linnet_tokenizer *tokenizer, const ln_step *replacements, int count, bool bytes);

/* The splitting rules that have names: tokenizer.ggml.pre. */
typedef struct ln_split_rule {
    const char *names; /* "llama-bpe llama3 ..." */
    const char *regex[5];
    bool ignore_merges, add_begin;
} ln_split_rule;
/* NULL where no rule has that name. */
const ln_split_rule *ln_split_rule_of_name(const char *name, size_t bytes);
const ln_split_rule *ln_split_rule_at(int index);
extern const char ln_gpt2_split[];

/* NFC of well-formed text, appended. */
void ln_nfc(ln_buffer *buffer, const char *text, size_t bytes);

#define LN_SPACE_MARK "\xE2\x96\x81"

#endif
