/* The parts of reading a tokenizer.json. The vocabulary and the merges, nearly all of the file, are cut out and read
 * where they lie; the small rest goes through jansson. */
#ifndef LN_MODEL_TOKENIZER_JSON_H
#define LN_MODEL_TOKENIZER_JSON_H

#include <jansson.h>

#include "model/tokenizer.h"

/* Reads JSON from the front: each call skips white space, takes what it is named for, and returns false where something
 * else stands there. */
typedef struct ln_json_reader {
    const char *at, *end;
    char *arena; /* where strings with escapes are written; as many bytes as the text has are enough */
} ln_json_reader;

bool ln_json_take(ln_json_reader *reader, char punctuation);
bool ln_json_take_text(ln_json_reader *reader, ln_text *text);
bool ln_json_take_integer(ln_json_reader *reader, int64_t *value);

/* The values of "vocab" and "merges" in "model" (data NULL: not there), and in `rest` the text with 0 in their place.
 */
linnet_status ln_json_cut(linnet_context *context, ln_text json, ln_text *vocab, ln_text *merges, ln_buffer *rest);

/* Members of an object, with fallbacks; `object` may be NULL or no object. */
const char *ln_json_name(const json_t *object, const char *name); /* "" where it is no text */
bool ln_json_flag(const json_t *object, const char *name, bool fallback);

linnet_status ln_json_normalizer(linnet_tokenizer *tokenizer, const json_t *json);
/* *byte_level is set where a ByteLevel step says so. */
linnet_status ln_json_pre_tokenizer(linnet_tokenizer *tokenizer, const json_t *json, bool *byte_level);
linnet_status ln_json_decoder(linnet_tokenizer *tokenizer, const json_t *json);
linnet_status ln_json_post_processor(linnet_tokenizer *tokenizer, const json_t *json);

#endif
