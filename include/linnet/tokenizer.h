/* Linnet: text to tokens and back, and the chat template of a model.
 *
 * Text is bytes: invalid UTF-8 is tokenised as the bytes it is, and comes back unchanged. Token ids are int32. */
#ifndef LINNET_TOKENIZER_H
#define LINNET_TOKENIZER_H

#include "linnet/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct linnet_tokenizer linnet_tokenizer;

/* The tokenizer of an open model, owned by it; NULL where the file carries none (linnet_last_error says why). */
LINNET_API const linnet_tokenizer *linnet_model_tokenizer(const linnet_model *model);
/* A tokenizer alone, without weights being needed: from a GGUF file, a Hugging Face folder or a tokenizer.json. */
LINNET_API linnet_status linnet_tokenizer_open(linnet_context *context, const char *path, linnet_tokenizer **tokenizer);
/* Only for those of linnet_tokenizer_open. */
LINNET_API void linnet_tokenizer_close(linnet_tokenizer *tokenizer);

enum {
    LINNET_TOKENIZE_SPECIAL = 1, /* text that spells a special token becomes that token */
    LINNET_TOKENIZE_BEGIN =
        2 /* put the begin-of-text token first (and end-of-text last) where the model's own rules ask for it */
};

/* Writes at most `capacity` ids and sets *count to how many the text has; call with capacity 0 to learn it. */
LINNET_API linnet_status linnet_tokenize(const linnet_tokenizer *tokenizer, const char *text, size_t bytes, int flags,
                                         int32_t *ids, int64_t capacity, int64_t *count);

LINNET_API int64_t linnet_tokenizer_size(const linnet_tokenizer *tokenizer);
/* The bytes that a token stands for, not terminated; NULL for an id out of range. A special token has its written form.
 */
LINNET_API const char *linnet_token_bytes(const linnet_tokenizer *tokenizer, int32_t id, size_t *bytes);
LINNET_API bool linnet_token_is_special(const linnet_tokenizer *tokenizer, int32_t id);
/* Whether generation ends at this token (end of text, end of turn). */
LINNET_API bool linnet_token_is_end(const linnet_tokenizer *tokenizer, int32_t id);
/* Begin-of-text and end-of-text ids; -1 where there is none. */
LINNET_API int32_t linnet_token_begin(const linnet_tokenizer *tokenizer);
LINNET_API int32_t linnet_token_end(const linnet_tokenizer *tokenizer);

/* Text of a growing sequence of tokens: each call takes one token and yields the bytes that became complete characters.
 * Bytes of an unfinished UTF-8 character wait for the next token; bytes that can never become one are passed through.
 */
typedef struct linnet_decoder linnet_decoder;
LINNET_API linnet_status linnet_decoder_open(const linnet_tokenizer *tokenizer, bool show_special,
                                             linnet_decoder **decoder);
LINNET_API void linnet_decoder_close(linnet_decoder *decoder);
/* *text is valid until the next call; *bytes may be 0. */
LINNET_API linnet_status linnet_decode(linnet_decoder *decoder, int32_t id, const char **text, size_t *bytes);
/* The bytes still waiting at the end. */
LINNET_API linnet_status linnet_decode_end(linnet_decoder *decoder, const char **text, size_t *bytes);

typedef struct linnet_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} linnet_message;

/* The messages in the form of the model's chat template. Writes at most `capacity` bytes, no terminator; *bytes is the
 * whole length. LINNET_ERROR_UNSUPPORTED where the model has no template, or one that uses what is not understood. */
LINNET_API linnet_status linnet_chat_format(const linnet_tokenizer *tokenizer, const linnet_message *messages,
                                            int64_t count, bool add_generation_prompt, char *text, size_t capacity,
                                            size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
