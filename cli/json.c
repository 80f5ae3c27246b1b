/* Owns: what --json prints (jansson writes it). */
#include "cli.h"

#include <jansson.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at the start of text; 0 where there is none. */
static size_t character_bytes(const unsigned char *text, size_t bytes) {
    const unsigned char lead = text[0];
    const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (!length || length > bytes) return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if ((lead == 0xe0 && text[1] < 0xa0) || (lead == 0xed && text[1] > 0x9f)) return 0;
    if ((lead == 0xf0 && text[1] < 0x90) || (lead == 0xf4 && text[1] > 0x8f)) return 0;
    return length;
}

json_t *cli_json_text(const char *text, size_t bytes) {
    cli_buffer clean = {0};
    if (!cli_append(&clean, "", 0)) return json_null();
    for (size_t at = 0, length; at < bytes; at += length) {
        length = character_bytes((const unsigned char *)text + at, bytes - at);
        const bool good = length > 0;
        if (!good) length = 1;
        if (!cli_append(&clean, good ? text + at : "\xef\xbf\xbd", good ? length : 3)) break;
    }
    json_t *string = json_stringn(clean.data, clean.bytes);
    cli_buffer_free(&clean);
    return string ? string : json_null();
}

json_t *cli_json_plan(const linnet_plan *plan) {
    return json_pack("{sI sI sI sI sI sI ss sI sI sI sI sI sI sI sI sI ss ss}", "context", (json_int_t)plan->context,
                     "piece", (json_int_t)plan->piece, "page_tokens", (json_int_t)plan->page_tokens, "feed_forward",
                     (json_int_t)plan->feed_forward, "slice", (json_int_t)plan->slice, "step", (json_int_t)plan->step,
                     "precision", linnet_type_name(plan->precision), "weights_mapped", (json_int_t)plan->weights_mapped,
                     "model", (json_int_t)plan->model, "pages", (json_int_t)plan->pages, "states",
                     (json_int_t)plan->states, "workspace", (json_int_t)plan->workspace, "overhead",
                     (json_int_t)plan->overhead, "total", (json_int_t)plan->total, "smallest_workspace",
                     (json_int_t)plan->smallest_workspace, "bytes_per_token", (json_int_t)plan->bytes_per_token,
                     "reason", plan->reason, "device", *plan->device ? plan->device : "cpu");
}

static int print(json_t *object, size_t flags) {
    if (!object) return cli_error("not enough memory for the JSON object");
    const int failed =
        json_dumpf(object, stdout, flags | JSON_REAL_PRECISION(9)) | (putchar('\n') == EOF) | fflush(stdout);
    json_decref(object);
    return failed ? cli_error("the JSON object could not be written to standard output") : CLI_OK;
}

int cli_json_print(json_t *object) {
    return print(object, JSON_INDENT(2));
}

int cli_json_line(json_t *object) {
    return print(object, 0);
}
