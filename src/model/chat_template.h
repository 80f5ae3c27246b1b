/* Chat templates: the subset of Jinja in which models write theirs. */
#ifndef LN_MODEL_CHAT_TEMPLATE_H
#define LN_MODEL_CHAT_TEMPLATE_H

#include "base/buffer.h"
#include "linnet/tokenizer.h"

typedef struct ln_template ln_template;

linnet_status ln_template_open(linnet_context *context, const char *text, size_t bytes, ln_template **compiled);
void ln_template_close(ln_template *compiled);

#endif
