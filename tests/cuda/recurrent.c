/* Runs of operators with a state, checked: see recurrent.h. */
#include "recurrent.h"

static void state_begin(const recurrent *r) {
    if (r->state == IN_PLACE)
        device_send(r->state_out->device.data, r->state_in->host,
                    r->state_in->elements * element_bytes(ELEMENT_FLOAT32));
}

static void forward_begin(const recurrent *r) {
    tensor_poison(r->output);
    tensor_poison(r->state_out);
    state_begin(r);
}

void recurrent_forward(const recurrent *r, const double *output, const double *state, double most, double state_most) {
    forward_begin(r);
    run_now(r->run, r->context, r->work, r->kernel);
    tensor_fetch(r->output);
    tensor_fetch(r->state_out);
    if (!r->left_out) tensor_expect_written(r->output, r->work, r->kernel);
    const double error = tensor_error(r->output, output),
                 kept = r->state == NO_STATE ? 0 : tensor_error(r->state_out, state);
    EXPECT(error < most, "%s, %s: relative error %.2e", r->work, r->kernel, error);
    EXPECT(kept <= state_most, "%s, %s: relative error of the state %.2e", r->work, r->kernel, kept);
    cudaGraphExec_t graph = run_capture(r->run, r->context, r->work, r->kernel);
    forward_begin(r);
    run_graph(graph, r->work, r->kernel);
    tensor_expect_same(r->output, r->work, r->kernel, "output");
    tensor_expect_same(r->state_out, r->work, r->kernel, "state");
    cudaGraphExecDestroy(graph);
    printf("  %-22s %-24s %.2e, state %.2e\n", r->work, r->kernel, error, kept);
}

void recurrent_backward(const recurrent *r, const recurrent_gradient *gradients, int count) {
    state_begin(r);
    for (int i = 0; i < count; i++)
        if (gradients[i].made) tensor_poison(gradients[i].made);
    run_now(r->run, r->context, r->work, r->kernel);
    printf("  %-22s %-24s", r->work, r->kernel);
    for (int i = 0; i < count; i++) {
        const recurrent_gradient *g = &gradients[i];
        if (!g->made) continue;
        tensor_fetch(g->made);
        tensor_expect_written(g->made, r->work, g->name);
        const double error = tensor_error(g->made, g->want);
        EXPECT(error < g->most, "%s: gradient of %s: relative error %.2e", r->work, g->name, error);
        printf(" %s %.1e", g->name, error);
    }
    printf("\n");
    cudaGraphExec_t graph = run_capture(r->run, r->context, r->work, r->kernel);
    for (int i = 0; i < count; i++)
        if (gradients[i].made) tensor_poison(gradients[i].made);
    run_graph(graph, r->work, r->kernel);
    for (int i = 0; i < count; i++)
        if (gradients[i].made) tensor_expect_same(gradients[i].made, r->work, r->kernel, gradients[i].name);
    cudaGraphExecDestroy(graph);
}
