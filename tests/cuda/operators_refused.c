/* What mixers on a device refuse: settings when they are opened, tensors and workspaces when they run. */
#include "operators.h"

static void refuse_mixer(const linnet_mixer_settings *settings, linnet_mixer_form form, linnet_status status,
                         const char *word) {
    linnet_cuda_mixer *mixer;
    const linnet_status got = linnet_cuda_mixer_open(cuda, settings, form, &mixer);
    EXPECT(got == status && !mixer && strstr(linnet_last_error(context), word), "%s should be refused with '%s': %d %s",
           settings->name, word, got, linnet_last_error(context));
    linnet_cuda_mixer_close(mixer);
}

/* Sizes whose bytes cannot be counted. */
static void check_too_large(void) {
    linnet_mixer_settings s = linnet_mixer_settings_default("simple_gla");
    s.type = LINNET_BF16;
    s.tokens = (1 << 30) - 1, s.heads = 65535, s.key_size = 128, s.value_size = 1 << 20, s.reverse = true;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_ARGUMENT, "too large");
    refuse_mixer(&s, LINNET_MIXER_BACKWARD, LINNET_ERROR_ARGUMENT, "too large");
    s = linnet_mixer_settings_default("short_convolution");
    s.type = s.output = LINNET_BF16;
    s.sequences = 1 << 26, s.heads = 1 << 11, s.key_size = 1, s.value_size = 1 << 20, s.slots = 64;
    refuse_mixer(&s, LINNET_MIXER_BACKWARD, LINNET_ERROR_ARGUMENT, "too large");
}

static void check_refused_settings(void) {
    linnet_mixer_settings s = linnet_mixer_settings_default("based");
    s.heads = 2, s.key_size = s.value_size = 16, s.tokens = 4, s.type = LINNET_BF16;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_UNSUPPORTED, "based has no forward form on a GPU");
    s = linnet_mixer_settings_default("gla");
    s.heads = 2, s.key_size = s.value_size = 64, s.tokens = 4;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_ARGUMENT, "bf16");
    s.type = LINNET_BF16, s.key_size = 300;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_UNSUPPORTED, "300");
    s.key_size = 64, s.value_size = 1 << 16;
    s.name = "gla_value";
    refuse_mixer(&s, LINNET_MIXER_BACKWARD, LINNET_ERROR_UNSUPPORTED, "shared memory");
    s.name = "simple_gla";
    s.key_size = 128, s.value_size = 1 << 19, s.tokens = 1024;
    refuse_mixer(&s, LINNET_MIXER_BACKWARD, LINNET_ERROR_ARGUMENT, "state of a head");
    s.name = "gla";
    s.key_size = s.value_size = 64, s.tokens = 4, s.exact = true;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_UNSUPPORTED, "exact");
    s.exact = false;
    refuse_mixer(&s, (linnet_mixer_form)3, LINNET_ERROR_ARGUMENT, "form 3");
    refuse_mixer(&s, (linnet_mixer_form)-1, LINNET_ERROR_ARGUMENT, "form -1");
    static const int64_t uneven[] = {0, 2, 2};
    s.tokens = s.sequences = 2, s.offsets = uneven;
    refuse_mixer(&s, LINNET_MIXER_STEP, LINNET_ERROR_ARGUMENT, "no offsets");
    s.tokens = 4, s.sequences = 1, s.offsets = NULL;
    s.heads = 0;
    refuse_mixer(&s, LINNET_MIXER_FORWARD, LINNET_ERROR_ARGUMENT, "heads");
    s.heads = 2, s.key_heads = 0;
    linnet_cuda_mixer *mixer;
    must(linnet_cuda_mixer_open(cuda, &s, LINNET_MIXER_FORWARD, &mixer), "gla");
    void *room = poisoned((int64_t)linnet_cuda_mixer_workspace(mixer));
    const linnet_mixer_tensors none = {.size = sizeof none};
    EXPECT(linnet_cuda_mixer_run(mixer, &none, room, NULL) == LINNET_ERROR_ARGUMENT &&
               strstr(linnet_last_error(context), "query"),
           "no tensors: %s", linnet_last_error(context));
    linnet_cuda_release(cuda, room);
    linnet_cuda_mixer_close(mixer);
}

/* ---- runs ---- */

enum { ROOM = 1 << 20 };

/* An opened mixer whose tensors all lie in one block: what is refused reads none of them. */
typedef struct opened {
    linnet_cuda_mixer *mixer;
    void *room, *workspace;
    linnet_mixer_tensors tensors;
} opened;

static linnet_mixer_settings small(const char *row) {
    linnet_mixer_settings s = linnet_mixer_settings_default(row);
    s.type = s.output = LINNET_BF16;
    s.heads = 2, s.key_size = s.value_size = 64, s.tokens = 4;
    if (strcmp(row, "selective_scan") == 0) s.slots = 16;
    return s;
}

static opened open_without_workspace(const linnet_mixer_settings *s, linnet_mixer_form form) {
    opened o = {.room = poisoned(ROOM), .tensors = {.size = sizeof o.tensors}};
    must(linnet_cuda_mixer_open(cuda, s, form, &o.mixer), s->name);
    linnet_mixer_input input;
    for (int k = 0; linnet_mixer_input_of(s, k, &input); k++) {
        o.tensors.input[k].data = o.room;
        if (form == LINNET_MIXER_BACKWARD) o.tensors.input_gradient[k].data = o.room;
    }
    o.tensors.output.data = o.tensors.output_gradient.data = o.room;
    return o;
}

static opened open_small(const linnet_mixer_settings *s, linnet_mixer_form form) {
    opened o = open_without_workspace(s, form);
    o.workspace = poisoned((int64_t)linnet_cuda_mixer_workspace(o.mixer));
    must(linnet_cuda_mixer_prepare(o.mixer, o.workspace, NULL), s->name);
    return o;
}

static void opened_close(opened *o) {
    linnet_cuda_mixer_close(o->mixer);
    linnet_cuda_release(cuda, o->workspace);
    linnet_cuda_release(cuda, o->room);
}

static void refuse_run(const opened *o, void *workspace, const char *row, const char *what, const char *word) {
    const linnet_status got = linnet_cuda_mixer_run(o->mixer, &o->tensors, workspace, NULL);
    EXPECT(got == LINNET_ERROR_ARGUMENT && strstr(linnet_last_error(context), word),
           "%s with %s should be refused with '%s': %d %s", row, what, word, got, linnet_last_error(context));
}

/* Gradients that kernels write without strides. */
static void check_gaps(void) {
    static const char *const gradients[][2] = {{"gated_delta_rule", "beta"},
                                               {"gated_delta_rule", "decay"},
                                               {"kda", "decay"},
                                               {"selective_scan", "rate"},
                                               {"selective_scan", "skip"},
                                               {"short_convolution", "weight"},
                                               {"short_convolution", "bias"},
                                               {"ssd", "skip"}};
    for (size_t i = 0; i < sizeof gradients / sizeof gradients[0]; i++) {
        const char *row = gradients[i][0], *name = gradients[i][1];
        const linnet_mixer_settings s = small(row);
        opened o = open_small(&s, LINNET_MIXER_BACKWARD);
        linnet_mixer_input input;
        const int k = linnet_mixer_input_index(row, name);
        must(linnet_mixer_input_of(&s, k, &input) ? LINNET_OK : LINNET_ERROR_ARGUMENT, name);
        o.tensors.input_gradient[k].head_stride = input.columns + 8;
        refuse_run(&o, o.workspace, row, name, "gradients have gaps");
        opened_close(&o);
    }
}

/* A workspace that is none is not written to. */
static void check_workspaces(void) {
    linnet_mixer_settings s = small("mlstm");
    s.key_size = s.value_size = 40, s.reverse = true;
    opened o = open_small(&s, LINNET_MIXER_FORWARD);
    void *const wrong[] = {NULL, (char *)o.workspace + 16};
    for (int i = 0; i < 2; i++) {
        refuse_run(&o, wrong[i], s.name, "another workspace", "not aligned to 256");
        EXPECT(linnet_cuda_mixer_prepare(o.mixer, wrong[i], NULL) == LINNET_ERROR_ARGUMENT &&
                   strstr(linnet_last_error(context), "not aligned to 256"),
               "preparing another workspace: %s", linnet_last_error(context));
    }
    opened_close(&o);
}

/* Each tensor in turn at an odd address and with negative strides, where tensors are copied to fit, which asks for no
 * alignment of rows. */
static void check_elements(const char *row, linnet_mixer_form form) {
    linnet_mixer_settings s = small(row);
    s.reverse = true;
    opened o = open_small(&s, form);
    const bool back = form == LINNET_MIXER_BACKWARD;
    linnet_mixer_tensors *const t = &o.tensors, right = o.tensors;
    linnet_tensor *given[2 * LINNET_MIXER_INPUTS + 1];
    int count = 0;
    given[count++] = back ? &t->output_gradient : &t->output;
    linnet_mixer_input input;
    for (int k = 0; linnet_mixer_input_of(&s, k, &input); k++) {
        given[count++] = &t->input[k];
        if (back) given[count++] = &t->input_gradient[k];
    }
    for (int i = 0; i < count; i++) {
        given[i]->data = (char *)o.room + 1;
        refuse_run(&o, o.workspace, row, "an odd address", "a whole element");
        *t = right;
        given[i]->token_stride = -128;
        refuse_run(&o, o.workspace, row, "a negative stride of tokens", "a negative stride");
        *t = right;
        given[i]->head_stride = -64;
        refuse_run(&o, o.workspace, row, "a negative stride of heads", "a negative stride");
        *t = right;
    }
    float *odd = (float *)(void *)((char *)o.room + 2);
    t->state_in = odd;
    refuse_run(&o, o.workspace, row, "an odd state", "a whole element");
    *t = right;
    if (back)
        t->state_in_gradient = odd;
    else
        t->state_out = odd;
    refuse_run(&o, o.workspace, row, "another odd state", "a whole element");
    *t = right;
    t->state_slots = (const int64_t *)(const void *)((const char *)o.room + 4);
    refuse_run(&o, o.workspace, row, "odd slots", "a whole element");
    opened_close(&o);
}

/* More sequences than a grid has rows are not refused; captured, so that nothing runs or touches memory. */
static void check_many_sequences(linnet_mixer_form form) {
    linnet_mixer_settings s = small("mlstm");
    s.heads = 1, s.tokens = s.sequences = 70000;
    opened o = open_without_workspace(&s, form);
    void *stream, *graph;
    must(linnet_cuda_stream_open(cuda, &stream), "stream");
    must(linnet_cuda_graph_begin(cuda, stream), "graph");
    const linnet_status got = linnet_cuda_mixer_run(o.mixer, &o.tensors, o.room, stream);
    EXPECT(got == LINNET_OK, "mlstm of 70,000 sequences: %s", linnet_last_error(context));
    must(linnet_cuda_graph_end(cuda, stream, &graph), "graph");
    linnet_cuda_graph_close(cuda, graph);
    linnet_cuda_stream_close(cuda, stream);
    opened_close(&o);
}

void check_refused_mixers(void) {
    check_refused_settings();
    check_too_large();
    check_gaps();
    check_workspaces();
    check_elements("simple_gla", LINNET_MIXER_FORWARD);
    check_elements("ssd", LINNET_MIXER_BACKWARD);
    check_many_sequences(LINNET_MIXER_FORWARD);
    check_many_sequences(LINNET_MIXER_BACKWARD);
}
