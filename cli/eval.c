/* Owns: the verb eval: its options, the cells they ask for (task x length x policy x budget), and which run. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

static const cli_option eval_options[] = {
    CLI_OPTION('n', "questions", CLI_INTEGER, tokens, "N", "questions of each cell, rounded up to whole documents",
               .fallback = "100", .lowest = 1, .highest = 1e6),
    CLI_OPTION('l', "length", CLI_INTEGERS, lengths, "N,N",
               "tokens of a document with question and answer (without it 4096,8192; with --all 2048,4096,8192,16384)",
               .lowest = 256, .highest = 1e9),
    CLI_OPTION(0, "policy", CLI_TEXTS, policies, "NAME[:k=v,...]",
               "what is kept of the cache; the name of a number format keeps all in it; may be given several times"),
    CLI_OPTION(0, "budget", CLI_TEXT, budgets, "X,X",
               "bytes for each policy, as shares of the float16 cache of that length (with --policy and without it "
               "1,1/2,1/4,1/8,1/16)"),
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE",
               "prose to hide things in, and the text of kld (without it the built-in document)"),
    CLI_OPTION('w', "windows", CLI_INTEGER, windows, "N", "windows of kld, 0: as many as the text has, 16 at most",
               .fallback = "0", .highest = 1e6),
    CLI_OPTION(0, "seed", CLI_SEED, seed, "N", "of the random numbers", .fallback = "1"),
    CLI_OPTION(0, "aware", CLI_FLAG, aware, NULL, "let the cache see the question before the document is compressed"),
    CLI_OPTION(0, "raw", CLI_FLAG, raw, NULL, "ask without the chat template of the model"),
    CLI_OPTION(0, "results", CLI_TEXT, results, "FILE",
               "append what comes of each document; what stands there already is not asked again"),
    CLI_OPTION('o', "output", CLI_TEXT, output, "FOLDER",
               "write memory-evaluation.md and quality-against-bytes.svg, of all results of this model, to the folder"),
    CLI_OPTION(0, "all", CLI_FLAG, all, NULL,
               "the published page: recall and kld, every policy, every budget, results beside it, into -o (docs)"),
    CLI_OPTION(0, "show", CLI_FLAG, show, NULL,
               "print documents, questions and expected answers as JSON lines instead"),
    CLI_OPTION(0, "csv", CLI_FLAG, csv, NULL, "print comma-separated values"),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object"),
    {0}};

/* Bytes and policy are a cell's; what is left of the options of memory is the run's. */
static const cli_option run_options[] = {
    CLI_OPTION(0, "memory", CLI_SIZE, memory, "SIZE",
               "bytes that may be allocated beyond the mapped weights; 0: no bound", .fallback = "0"),
    CLI_OPTION(0, "predict", CLI_TEXT, predict, "MODEL",
               "small model that reads documents; maps beside its file make the keys and values of the model "
               "from its own (KV Prediction)"),
    CLI_OPTION(0, "draft", CLI_TEXT, draft, "MODEL",
               "small model of the same vocabulary, for policies that look ahead with one: speckv, specpc"),
    CLI_OPTION(0, "activations", CLI_SIZE, activations, "SIZE",
               "bytes of them that activations and workspace may take; 0: no bound of their own", .fallback = "0"),
    CLI_OPTION(0, "precision", CLI_TYPE, precision, "TYPE", "of the full cache, without --policy and beside it in kld",
               .fallback = "auto", .choices = "auto f32 bf16 f16 q8_0 q4_0"),
    CLI_OPTION(0, "piece", CLI_INTEGER, piece, "N", "tokens of the document processed at once; 0: chosen by the plan",
               .fallback = "0", .highest = 1e6),
    CLI_OPTION(0, "exact", CLI_FLAG, exact, NULL,
               "keep activations float32: slower where the processor has shorter kinds, and not on a GPU"),
    {0}};

static const cli_group groups[] = {
    {"eval", eval_options}, {"model", cli_model_options}, {"memory", run_options}, {"other", cli_common_options}, {0}};

/* ---- what is asked for ---- */

enum { MOST_TASKS = 64, MOST_BUDGETS = 16, MOST_POLICIES = 64 };

typedef struct budget {
    char text[24];
    double share; /* 0: no bound */
} budget;

typedef struct wanted {
    const eval_task *tasks[MOST_TASKS];
    budget budgets[MOST_BUDGETS];
    const char *policies[MOST_POLICIES];
    int task_count, budget_count, policy_count;
    cli_arguments arguments;
    char results[PATH_MAX];
} wanted;

/* 1, 0.25 or 1/4. */
static bool parse_share(const char *text, double *share) {
    char *end;
    *share = strtod(text, &end);
    if (end != text && *end == '/') {
        const char *below = end + 1;
        const double divisor = strtod(below, &end);
        if (end == below || !(divisor > 0)) return false;
        *share /= divisor;
    }
    return end != text && !*end && *share > 0 && *share <= 1;
}

static int parse_budgets(const char *text, wanted *w) {
    for (;;) {
        const size_t bytes = strcspn(text, ",");
        if (w->budget_count == MOST_BUDGETS)
            return cli_usage(&cli_eval, "--budget: there can be at most %d", MOST_BUDGETS);
        budget *b = &w->budgets[w->budget_count++];
        snprintf(b->text, sizeof b->text, "%.*s", (int)bytes, text);
        if (bytes >= sizeof b->text || !parse_share(b->text, &b->share))
            return cli_usage(&cli_eval,
                             "--budget %.*s: a budget is a share of the float16 cache, as 1/4 or 0.25, "
                             "above 0 and up to 1",
                             (int)bytes, text);
        if (!text[bytes]) return CLI_OK;
        text += bytes + 1;
    }
}

static bool is_format(const char *policy) {
    return linnet_type_of_name(policy) != LINNET_TYPE_AUTO;
}

static int choose_policies(wanted *w) {
    const cli_texts *given = &w->arguments.policies;
    for (int i = 0; i < given->count; i++) w->policies[w->policy_count++] = given->text[i];
    if (!given->count && w->arguments.all) {
        static const char *const whole[] = {"f16", "q8_0", "q4_0", "auto"};
        for (int i = 0; i < 4; i++) w->policies[w->policy_count++] = whole[i];
        const char *name;
        for (int i = 0; (name = linnet_policy_name(i)) && w->policy_count < MOST_POLICIES; i++)
            w->policies[w->policy_count++] = name;
    }
    const bool bounded = given->count || w->arguments.all;
    if (!w->policy_count) w->policies[w->policy_count++] = "auto";
    const char *budgets = w->arguments.budgets ? w->arguments.budgets : bounded ? "1,1/2,1/4,1/8,1/16" : NULL;
    if (budgets) return parse_budgets(budgets, w);
    w->budgets[w->budget_count++] = (budget){.text = "-"};
    return CLI_OK;
}

static void set_lengths(cli_integers *lengths, bool all) {
    static const int64_t published[] = {2048, 4096, 8192, 16384};
    if (lengths->count) return;
    lengths->count = all ? 4 : 2;
    memcpy(lengths->value, published + !all, (size_t)lengths->count * sizeof *published);
}

static int read_wanted(const cli_arguments *given, wanted *w) {
    *w = (wanted){.arguments = *given};
    cli_arguments *arguments = &w->arguments;
    if (!given->operand_count && !given->all) return cli_usage(&cli_eval, "name the tasks, or use --all");
    char wrong[64];
    const char *words = given->operand_count ? given->operands[0] : "recall,kld";
    if (!eval_choose(words, w->tasks, &w->task_count, wrong, sizeof wrong))
        return cli_usage(&cli_eval, "there is no task or group of tasks '%s'", wrong);
    set_lengths(&arguments->lengths, arguments->all);
    if (arguments->all && !arguments->output) arguments->output = "docs";
    if (arguments->output && !arguments->results) {
        snprintf(w->results, sizeof w->results, "%s/memory-evaluation.jsonl", arguments->output);
        arguments->results = w->results;
    }
    return choose_policies(w);
}

/* ---- what determines a result ---- */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * 0x100000001b3u;
    return hash;
}

/* Names and shapes of all tensors, and some bytes of each. */
static uint64_t model_hash(const linnet_file *file) {
    enum { SAMPLES = 4, SAMPLE = 64 };
    uint64_t hash = 0xcbf29ce484222325u;
    linnet_tensor_info info;
    for (int64_t i = 0; linnet_file_tensor(file, i, &info); i++) {
        hash = hash_bytes(hash, info.name, strlen(info.name));
        hash = hash_bytes(hash, &info.type, sizeof info.type);
        hash = hash_bytes(hash, info.size, (size_t)info.dimensions * sizeof *info.size);
        for (uint64_t k = 0; info.data && k < SAMPLES && info.bytes >= SAMPLE; k++)
            hash = hash_bytes(hash, (const char *)info.data + (info.bytes - SAMPLE) * k / (SAMPLES - 1), SAMPLE);
    }
    return hash;
}

static void write_base(const cli_engine *engine, const eval_source *source, const cli_arguments *arguments, char *text,
                       size_t room) {
    uint64_t prose = 0xcbf29ce484222325u;
    if (source->prose.bytes) prose = hash_bytes(prose, source->prose.data, source->prose.bytes);
    snprintf(text, room,
             "linnet %s | %s %016llx | %s | %d threads | text %016llx | seed %llu | %s piece %lld memory %llu "
             "activations %llu%s%s%s",
             linnet_version(), *engine->info.name ? engine->info.name : engine->info.architecture,
             (unsigned long long)model_hash(linnet_model_file(engine->model)), linnet_cpu(engine->context),
             linnet_threads(engine->context), (unsigned long long)prose, (unsigned long long)arguments->seed,
             arguments->precision == LINNET_TYPE_AUTO ? "auto" : linnet_type_name(arguments->precision),
             (long long)arguments->piece, (unsigned long long)arguments->memory,
             (unsigned long long)arguments->activations, arguments->exact ? " exact" : "",
             arguments->aware ? " aware" : "", arguments->raw ? " raw" : "");
    const struct {
        const char *what;
        const linnet_model *model;
    } helpers[] = {{"draft", engine->draft}, {"predict", engine->predict}};
    for (size_t i = 0; i < sizeof helpers / sizeof *helpers; i++) {
        const size_t at = strlen(text);
        if (helpers[i].model)
            snprintf(text + at, room - at, " %s %016llx", helpers[i].what,
                     (unsigned long long)model_hash(linnet_model_file(helpers[i].model)));
    }
}

/* ---- cells ---- */

static int make_cells(const cli_engine *engine, const wanted *w, eval_cell **cells, int *count) {
    const cli_integers *lengths = &w->arguments.lengths;
    *count = 0;
    *cells = calloc((size_t)(lengths->count * w->policy_count * w->budget_count * w->task_count), sizeof **cells);
    if (!*cells) return cli_error("not enough memory for the cells");
    for (int l = 0; l < lengths->count; l++) {
        linnet_session_settings settings = linnet_session_settings_default();
        settings.context = lengths->value[l];
        settings.precision = LINNET_F16;
        linnet_plan plan;
        const int status = cli_plan_session(engine, &settings, 0, &plan);
        if (status != CLI_OK) return status;
        for (int p = 0; p < w->policy_count; p++)
            for (int b = 0; b < w->budget_count && (!b || !is_format(w->policies[p])); b++)
                for (int t = 0; t < w->task_count; t++) {
                    eval_cell *cell = &(*cells)[(*count)++];
                    const bool bound = w->budgets[b].share > 0 && !is_format(w->policies[p]);
                    cell->task = w->tasks[t];
                    cell->length = lengths->value[l];
                    cell->full = plan.pages;
                    cell->cache = bound ? (uint64_t)((double)plan.pages * w->budgets[b].share) : 0;
                    snprintf(cell->name, sizeof cell->name, "%s", cell->task->name);
                    snprintf(cell->policy, sizeof cell->policy, "%s", w->policies[p]);
                    snprintf(cell->budget, sizeof cell->budget, "%s", bound ? w->budgets[b].text : "-");
                }
    }
    return CLI_OK;
}

static int64_t documents_of(const eval_run *run, const eval_cell *cell) {
    if (cell->task->form == EVAL_MEASURE) return eval_windows(run, cell->length);
    return cell->task->form == EVAL_TEXT ? run->arguments->tokens : (run->arguments->tokens + 9) / EVAL_QUESTIONS;
}

static int run_cells(eval_run *run, eval_cell *cells, int count) {
    int refused = 0;
    for (int i = 0; i < count; i++) run->total += documents_of(run, &cells[i]);
    for (int i = 0; i < count; i++) {
        const int64_t after = run->done + documents_of(run, &cells[i]);
        const int status = eval_run_cell(run, &cells[i]);
        if (status != CLI_OK && !*cells[i].refused) return status;
        refused += *cells[i].refused != 0;
        run->done = after;
        double low, high;
        if (!*cells[i].refused)
            cli_note("%s, %lld tokens, %s %s: %.3f of %lld", cells[i].name, (long long)cells[i].length, cells[i].policy,
                     cells[i].budget, eval_quality(&cells[i], &low, &high), (long long)cells[i].sum.questions);
    }
    return refused == count ? cli_error("%s", cells[0].refused) : CLI_OK;
}

static int report(const eval_run *run, const wanted *w, const eval_cell *cells, int count) {
    const cli_arguments *arguments = &w->arguments;
    if (arguments->json)
        return cli_json_print(json_pack("{ss sI so}", "eval", w->tasks[0]->name, "seed", (json_int_t)arguments->seed,
                                        "rows", eval_json(cells, count)));
    if (arguments->csv)
        eval_print_csv(cells, count);
    else
        eval_print_table(cells, count);
    (void)run;
    return fflush(stdout) ? cli_error("the results could not be written to standard output") : CLI_OK;
}

/* Of all results in the file, and what was refused in this run. */
static int publish(const eval_run *run, const wanted *w, const eval_cell *cells, int count) {
    eval_cell *all;
    int found;
    int status = eval_results_cells(run->results, &all, &found);
    eval_cell *grown = status == CLI_OK ? realloc(all, (size_t)(found + count + 1) * sizeof *all) : NULL;
    if (grown) {
        all = grown;
        for (int i = 0; i < count; i++)
            if (*cells[i].refused) all[found++] = cells[i];
        const char *command = w->arguments.all ? "linnet eval --all" : "linnet eval";
        status = eval_write_page(w->arguments.output, command, run->results->base, all, found);
    }
    free(all);
    return status;
}

static int run_wanted(cli_engine *engine, const wanted *w, const eval_source *source) {
    char base[512];
    write_base(engine, source, &w->arguments, base, sizeof base);
    eval_results results;
    eval_run run = {.engine = engine, .arguments = &w->arguments, .source = source, .results = &results};
    eval_cell *cells = NULL;
    int count = 0, status = eval_results_open(w->arguments.results, base, &results);
    if (status == CLI_OK) status = make_cells(engine, w, &cells, &count);
    if (status == CLI_OK) status = run_cells(&run, cells, count);
    cli_progress_within("", 0, 0, 0);
    if (status == CLI_OK) status = report(&run, w, cells, count);
    if (status == CLI_OK && w->arguments.output) status = publish(&run, w, cells, count);
    free(cells);
    eval_results_close(&results);
    return status;
}

static int show(cli_engine *engine, const wanted *w, const eval_source *source) {
    eval_run run = {.engine = engine, .arguments = &w->arguments, .source = source};
    int status = CLI_OK;
    for (int t = 0; t < w->task_count; t++)
        for (int l = 0; status == CLI_OK && l < w->arguments.lengths.count; l++)
            if (w->tasks[t]->form != EVAL_MEASURE) status = eval_show(&run, w->tasks[t], w->arguments.lengths.value[l]);
    return status;
}

static int run(const cli_arguments *given) {
    wanted w;
    int status = read_wanted(given, &w);
    if (status != CLI_OK) return status;
    bool text = false;
    for (int i = 0; i < w.task_count; i++) text |= w.tasks[i]->form != EVAL_SYMBOLS;
    cli_engine engine;
    eval_source source = {0};
    status = cli_engine_open(given, text, &engine);
    if (status == CLI_OK && !text) engine.tokenizer = linnet_model_tokenizer(engine.model);
    if (status == CLI_OK) status = eval_source_open(&engine, given->file, text, &source);
    if (status == CLI_OK) status = w.arguments.show ? show(&engine, &w, &source) : run_wanted(&engine, &w, &source);
    eval_source_close(&source);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_eval = {
    .name = "eval",
    .operands = "TASK[,TASK]",
    .summary = "test what a model and its cache recall from long documents",
    .details =
        "Tasks are made afresh from a seed: recall, kld, passkey, and the groups ruler, scbench, babilong, symbols, "
        "languages, state, or all. A document is read once, within the bytes of the cache, and each question is asked "
        "on a fork of it: the cache was compressed before any question was known. kld reads a text with the full cache "
        "and with the policy's beside it. The built-in model knows the form of recall and text; the other tasks are "
        "for "
        "models of yours.",
    .groups = groups,
    .run = run,
    .fewest_operands = 0,
    .most_operands = 1};
