/* Chat templates: the subset of Jinja in which models write theirs, with the settings that transformers uses
 * (trim_blocks, lstrip_blocks, nothing escaped).
 *
 * Understood: text, {{ }}, {# #}, if / elif / else, for (two targets, `if`, else, break, continue), set (also of
 * namespaces, and as a block), macro, raw, generation; expressions with literals, attributes, indexes, slices, calls,
 * filters, tests, arithmetic, comparison, `in`, `and`, `or`, `not`, inline `if`. Depth, steps and memory are bounded,
 * so that a hostile template ends in an error. */
#ifndef LN_MODEL_CHAT_TEMPLATE_H
#define LN_MODEL_CHAT_TEMPLATE_H

#include "base/buffer.h"
#include "linnet/tokenizer.h"
#include "model/file.h"

typedef struct ln_template ln_template;

linnet_status ln_template_open(linnet_context *context, const char *text, size_t bytes, ln_template **compiled);
void ln_template_close(ln_template *compiled);

/* What templates are told beside the messages. */
typedef struct ln_template_input {
    const linnet_message *messages;
    int64_t count;
    bool add_generation_prompt;
    ln_text begin, end, padding, unknown; /* bos_token and so on; data NULL: undefined */
} ln_template_input;

/* Appends to out. LINNET_ERROR_ARGUMENT where the template itself refuses the messages (raise_exception). */
linnet_status ln_template_render(const ln_template *compiled, const ln_template_input *input, ln_buffer *out);

#endif
