/* Stands in for the tokenizer until it lands. */
#include "base/context.h"
#include "linnet/tokenizer.h"
#include "model/file.h"

linnet_status ln_tokenizer_make(linnet_context *context, const linnet_file *file, linnet_tokenizer **tokenizer);

__attribute__((weak)) linnet_status ln_tokenizer_make(linnet_context *context, const linnet_file *file,
                                                      linnet_tokenizer **tokenizer) {
    (void)file;
    *tokenizer = NULL;
    return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "tokenizers have not landed");
}

__attribute__((weak)) void linnet_tokenizer_close(linnet_tokenizer *tokenizer) { (void)tokenizer; }
