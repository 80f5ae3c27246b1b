/* Owns: what stands between a verb and the library: opening context, model and session by the options, the memory
 * plan as people read it, and ctrl-C.
 *
 * The bound of --memory holds for the process: the context refuses to allocate more than it, and what the program holds
 * itself (the tokens of the prompt) is taken off before the session is planned. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

/* ---- ctrl-C: the first press ends the work at hand in order, a second one the program ---- */

static linnet_context *volatile interruptible;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (interrupted) _exit(CLI_INTERRUPTED);
    interrupted = 1;
    linnet_context *const context = interruptible;
    if (context) linnet_interrupt(context);
}

static void catch_interrupt(linnet_context *context) {
    interruptible = context;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool cli_interrupted(void) {
    return interrupted != 0;
}

void cli_interrupt_clear(const cli_engine *engine) {
    interrupted = 0;
    linnet_interrupt_clear(engine->context);
}

/* ---- opening ---- */

bool cli_on_device(const cli_arguments *arguments) {
    return arguments->device && *arguments->device && strcmp(arguments->device, "cpu") != 0;
}

int cli_context_open(const cli_arguments *arguments, linnet_context **context) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = (int)arguments->threads;
    /* On a device the bound is of its bytes. */
    settings.memory_limit = cli_on_device(arguments) ? 0 : arguments->memory;
    settings.log = cli_log;
    settings.progress = cli_progress;
    if (linnet_context_open(&settings, context) == LINNET_OK) {
        catch_interrupt(*context);
        return CLI_OK;
    }
    cli_error("%s", linnet_last_error(*context));
    linnet_context_close(*context);
    *context = NULL;
    return CLI_FAILED;
}

static double manner_number(const char *text, double fallback) {
    char *end;
    const double value = strtod(text, &end);
    return end != text && value >= 0 ? value : fallback;
}

static cli_manners read_manners(const linnet_file *file) {
    cli_manners manners = {.temperature = -1, .top_k = -1, .top_p = -1};
    const struct {
        const char *key;
        double *value;
    } numbers[] = {{"general.sampling.temp", &manners.temperature},
                   {"general.sampling.top_k", &manners.top_k},
                   {"general.sampling.top_p", &manners.top_p}};
    static const char document_first[] = "document-then-chat";
    size_t bytes;
    const char *form = linnet_file_text(file, "linnet.prompt_form", &bytes), *key;
    manners.document_first = form && bytes == strlen(document_first) && !memcmp(form, document_first, bytes);
    char text[64];
    for (int64_t i = 0; (key = linnet_file_key(file, i, text, sizeof text)); i++)
        for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++)
            if (!strcmp(key, numbers[n].key)) *numbers[n].value = manner_number(text, -1);
    return manners;
}

int cli_engine_open(const cli_arguments *arguments, bool text, cli_engine *engine) {
    *engine = (cli_engine){0};
    const double began = cli_seconds();
    const char *path = cli_model_path(arguments);
    if (!path || cli_context_open(arguments, &engine->context) != CLI_OK) return CLI_FAILED;
    const linnet_status status = linnet_model_open(engine->context, path, &engine->model);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    engine->info = linnet_model_describe(engine->model);
    if (arguments->draft && linnet_model_open(engine->context, arguments->draft, &engine->draft) != LINNET_OK)
        return cli_engine_fail(engine, LINNET_ERROR_FILE);
    if (arguments->predict && linnet_model_open(engine->context, arguments->predict, &engine->predict) != LINNET_OK)
        return cli_engine_fail(engine, LINNET_ERROR_FILE);
    if (text) {
        engine->manners = read_manners(linnet_model_file(engine->model));
        engine->tokenizer = linnet_model_tokenizer(engine->model);
        if (!engine->tokenizer) return cli_engine_fail(engine, LINNET_ERROR_UNSUPPORTED);
    }
    engine->open_seconds = cli_seconds() - began;
    return CLI_OK;
}

void cli_engine_close(cli_engine *engine) {
    interruptible = NULL;
    linnet_session_close(engine->session);
    linnet_session_close(engine->helper);
    linnet_model_close(engine->predict);
    linnet_model_close(engine->draft);
    linnet_model_close(engine->model);
    linnet_context_close(engine->context);
    *engine = (cli_engine){0};
}

int cli_engine_fail(const cli_engine *engine, linnet_status status) {
    if (status == LINNET_INTERRUPTED) {
        cli_error("interrupted");
        return CLI_INTERRUPTED;
    }
    return cli_error("%s", linnet_last_error(engine->context));
}

linnet_status cli_sampler_open(const cli_engine *engine, const cli_arguments *arguments, linnet_sampler **sampler) {
    linnet_sampler_settings settings = linnet_sampler_settings_default();
    const cli_manners *manners = &engine->manners;
    const struct {
        double given, said;
        float *number;
        int32_t *count;
    } rows[] = {{arguments->temperature, manners->temperature, &settings.temperature, NULL},
                {arguments->top_k, manners->top_k, NULL, &settings.top_k},
                {arguments->top_p, manners->top_p, &settings.top_p, NULL},
                {arguments->min_p, -1, &settings.min_p, NULL},
                {arguments->repeat_penalty, -1, &settings.repeat_penalty, NULL},
                {arguments->repeat_last, -1, NULL, &settings.repeat_last}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const double value = rows[i].given >= 0 ? rows[i].given : rows[i].said;
        if (value < 0) continue;
        if (rows[i].number) *rows[i].number = (float)value;
        if (rows[i].count) *rows[i].count = (int32_t)value;
    }
    settings.seed = arguments->seed;
    return linnet_sampler_open(engine->model, &settings, sampler);
}

/* ---- sessions and their plan ---- */

/* Growth that is told; a choice (docs/memory.md). */
static const double much = 4;

void cli_note_states(const cli_engine *engine, int64_t reference) {
    int64_t grown = 0, most = 0, known = 0;
    linnet_layer_states s, worst = {.size = sizeof worst};
    for (int64_t i = 0; reference && i < engine->info.layers; i++) {
        if (linnet_session_states(engine->session, i, &s, NULL) != LINNET_OK || s.growth <= 0) continue;
        known++;
        grown += s.growth > much;
        if (s.growth <= worst.growth) continue;
        worst = s;
        most = i;
    }
    if (!reference || !known) return;
    cli_note("states    %lld of %lld layers have a head whose state grew to more than %g times its norm after %lld "
             "tokens; most: layer %lld, head %lld, %.3g times",
             (long long)grown, (long long)known, much, (long long)reference, (long long)most,
             (long long)worst.growth_head, worst.growth);
}

linnet_session_settings cli_session_settings(const cli_arguments *arguments, int64_t context, uint64_t kept) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = context;
    /* A bound that is used up already must not become 0, which means none. */
    if (arguments->memory) settings.memory = arguments->memory > kept ? arguments->memory - kept : 1;
    settings.precision = arguments->precision;
    settings.piece = arguments->piece;
    settings.activations = arguments->activations;
    settings.policy = arguments->policy;
    settings.cache = arguments->cache;
    settings.folder = arguments->folder;
    settings.snapshots = arguments->snapshots;
    settings.state_reference = arguments->state_reference;
    settings.state_growth = arguments->state_growth;
    settings.state_limit = arguments->state_limit;
    settings.device = arguments->device;
    settings.compute = arguments->exact ? LINNET_COMPUTE_EXACT : LINNET_COMPUTE_FAST;
    return settings;
}

int cli_plan_session(const cli_engine *engine, const linnet_session_settings *settings, uint64_t kept,
                     linnet_plan *plan) {
    *plan = (linnet_plan){.size = sizeof *plan};
    linnet_session_settings drafted = *settings;
    drafted.draft = engine->draft;
    const linnet_status status = linnet_plan_session(engine->model, &drafted, plan);
    if (status == LINNET_OK) return CLI_OK;
    if (status != LINNET_ERROR_MEMORY || !plan->smallest) return cli_engine_fail(engine, status);
    if (settings->activations && settings->activations < plan->smallest_workspace)
        return cli_error("%s are too little for activations; the smallest that suffices is --activations %llu (%s)",
                         cli_size(settings->activations), (unsigned long long)plan->smallest_workspace,
                         cli_size(plan->smallest_workspace));
    if (settings->cache && settings->cache < plan->pages)
        return cli_error(
            "%s are too little for the keys and values of %lld tokens; the smallest that suffices is --cache "
            "%llu (%s)",
            cli_size(settings->cache), (long long)plan->context, (unsigned long long)plan->pages,
            cli_size(plan->pages));
    /* Else it is a device that has too little. */
    if (!settings->memory || settings->memory >= plan->smallest) return cli_engine_fail(engine, status);
    const uint64_t smallest = plan->smallest + kept;
    return cli_error("%s are too little for %lld tokens of context; the smallest that suffices is --memory %llu (%s)",
                     cli_size(settings->memory + kept), (long long)plan->context, (unsigned long long)smallest,
                     cli_size(smallest));
}

void cli_print_plan(const cli_engine *engine, const linnet_plan *plan, uint64_t memory, FILE *out) {
    fprintf(out, "memory plan of %s for %lld tokens\n",
            *engine->info.name ? engine->info.name : engine->info.architecture, (long long)plan->context);
    if (*plan->device) {
        fprintf(out, "  device    %s\n", plan->device);
        fprintf(out, "  weights   %10s  on the device\n", cli_size(plan->model));
    } else {
        fprintf(out, "  weights   %10s  mapped from the file, not part of the total\n", cli_size(plan->weights_mapped));
        fprintf(out, "  model     %10s  vocabulary and tables\n", cli_size(plan->model));
    }
    if (*plan->policy)
        fprintf(out, "  pages     %10s  keys and values under %s\n", cli_size(plan->pages), plan->policy);
    else if (plan->bytes_per_token == 0)
        fprintf(out, "  pages     %10s  ids of the tokens: no layer keeps keys and values\n", cli_size(plan->pages));
    else
        fprintf(out, "  pages     %10s  keys and values in %s: %llu bytes a token, %lld tokens a page\n",
                cli_size(plan->pages), linnet_type_name(plan->precision), (unsigned long long)plan->bytes_per_token,
                (long long)plan->page_tokens);
    if (plan->states) fprintf(out, "  states    %10s  recurrent, whatever the context\n", cli_size(plan->states));
    fprintf(out, "  workspace %10s  for pieces of %lld tokens", cli_size(plan->workspace), (long long)plan->piece);
    if (plan->slice < plan->feed_forward)
        fprintf(out, ", %lld of %lld feed-forward columns at a time", (long long)plan->slice,
                (long long)plan->feed_forward);
    fprintf(out, "\n");
    if (!*plan->device) fprintf(out, "  overhead  %10s  of the program itself\n", cli_size(plan->overhead));
    fprintf(out, "  total     %10s", cli_size(plan->total));
    if (memory) fprintf(out, "  of at most %s", cli_size(memory));
    fprintf(out, "\n");
    if (*plan->reason) fprintf(out, "  %s\n", plan->reason);
}

int cli_session_open(cli_engine *engine, const linnet_session_settings *settings, uint64_t kept) {
    linnet_plan plan;
    const int status = cli_plan_session(engine, settings, kept, &plan);
    if (status != CLI_OK) return status;
    /* The bound of a device holds here where the processor took its place. */
    if (settings->device && !*plan.device && settings->memory &&
        linnet_memory_limit(engine->context, settings->memory + kept) != LINNET_OK)
        return cli_engine_fail(engine, LINNET_ERROR_MEMORY);
    linnet_session_settings drafted = *settings;
    drafted.draft = engine->draft;
    const linnet_status opened = linnet_session_open(engine->model, &drafted, &engine->session);
    return opened == LINNET_OK ? CLI_OK : cli_engine_fail(engine, opened);
}

/* ---- a prompt that a smaller model reads ---- */

int cli_helper_open(cli_engine *engine, const cli_arguments *arguments, int64_t context, uint64_t *kept) {
    enum { PIECE = 256 };
    if (!engine->predict) return CLI_OK;
    linnet_session_close(engine->helper);
    engine->helper = NULL;
    linnet_session_settings settings = cli_session_settings(arguments, context, *kept);
    settings.policy = NULL;
    settings.cache = settings.activations = 0;
    settings.piece = context < PIECE ? context : PIECE;
    const linnet_status status = linnet_session_open(engine->predict, &settings, &engine->helper);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    /* Keys and values of all layers in float32, once as they are and once prepared to be multiplied, and one layer's.
     */
    *kept += (uint64_t)settings.piece * 8 * linnet_session_plan(engine->helper).bytes_per_token;
    return CLI_OK;
}

linnet_status cli_read_prompt(cli_engine *engine, const int32_t *ids, int64_t count) {
    if (!engine->helper || count < 2) return linnet_session_feed(engine->session, ids, count);
    linnet_status status = linnet_session_rewind(engine->helper, 0);
    if (status == LINNET_OK) status = linnet_session_predict(engine->session, engine->helper, ids, count - 1);
    return status == LINNET_OK ? linnet_session_feed(engine->session, ids + count - 1, 1) : status;
}
