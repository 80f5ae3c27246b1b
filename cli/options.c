/* Owns: the command line: the tables that verbs share, parsing by them (getopt_long does the reading), and --help.
 *
 * A row names the member of cli_arguments that its value goes to; the default is a text parsed as the user's would be,
 * so that what --help says is what happens. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli.h"

const cli_option cli_model_options[] = {
    CLI_OPTION('m', "model", CLI_TEXT, model, "MODEL",
               "GGUF file or Hugging Face folder (without it: $LINNET_MODEL, then the built-in model)"),
    CLI_OPTION('t', "threads", CLI_INTEGER, threads, "N", "threads; 0: as many as the process may use", .fallback = "0",
               .highest = 1024),
    {0}};

const cli_option cli_memory_options[] = {
    CLI_OPTION('c', "context", CLI_INTEGER, context, "N", "tokens to make room for; 0: what the work at hand needs",
               .fallback = "0", .highest = 1e12),
    CLI_OPTION(0, "memory", CLI_SIZE, memory, "SIZE",
               "bytes that may be allocated beyond the mapped weights: 64M, 1.5G or plain bytes; 0: no bound",
               .fallback = "0"),
    CLI_OPTION(0, "cache", CLI_SIZE, cache, "SIZE",
               "bytes of them that keys and values may take; 0: what --memory leaves", .fallback = "0"),
    CLI_OPTION(
        0, "policy", CLI_TEXT, policy, "NAME[:k=v,...]",
        "what is kept of keys and values, how exactly and where; auto: the best that fits. 'linnet plan --policies' "
        "lists them"),
    CLI_OPTION(0, "draft", CLI_TEXT, draft, "MODEL",
               "small model of the same vocabulary, for policies that look ahead with one: speckv, specpc"),
    CLI_OPTION(0, "folder", CLI_TEXT, folder, "FOLDER",
               "where a policy with tier=file keeps its file, which has no name (without it: $TMPDIR, or /tmp)"),
    CLI_OPTION(
        0, "activations", CLI_SIZE, activations, "SIZE",
        "bytes of them that activations and workspace may take, however long the prompt; 0: no bound of their own",
        .fallback = "0"),
    CLI_OPTION(0, "precision", CLI_TYPE, precision, "TYPE", "of cached keys and values; auto: the most exact that fits",
               .fallback = "auto", .choices = "auto f32 bf16 f16 q8_0 q4_0"),
    CLI_OPTION(0, "snapshots", CLI_INTEGER, snapshots, "N",
               "earlier recurrent states to keep, so that a text that changes near its end is not read anew",
               .fallback = "0", .highest = 4096),
    CLI_OPTION(0, "state-reference", CLI_INTEGER, state_reference, "N",
               "of models with matrix states: remember their norms after N tokens, and tell at the end where they grew "
               "to more than 4 times that",
               .fallback = "0", .highest = 1e12),
    CLI_OPTION(0, "state-growth", CLI_NUMBER, state_growth, "X",
               "with it: scale a head's state down to X times that norm after each piece; 0: no limit", .fallback = "0",
               .highest = 1e9),
    CLI_OPTION(0, "state-limit", CLI_NUMBER, state_limit, "P",
               "scale a head's state down to norm P after each piece; 0: no limit", .fallback = "0", .highest = 1e30),
    CLI_OPTION(0, "piece", CLI_INTEGER, piece, "N", "tokens of the prompt processed at once; 0: chosen by the plan",
               .fallback = "0", .highest = 1e6),
    CLI_OPTION(0, "exact", CLI_FLAG, exact, NULL,
               "keep activations float32: slower where the processor has shorter kinds, and not on a GPU"),
    CLI_OPTION(0, "device", CLI_TEXT, device, "NAME",
               "what runs the model: cpu; cuda, an NVIDIA GPU, whose bytes --memory, --cache and --activations then "
               "bound; auto or cuda,cpu: the GPU where there is one that runs it",
               .choices = "cpu cuda auto cuda,cpu"),
    {0}};

const cli_option cli_sampling_options[] = {
    CLI_OPTION('n', "tokens", CLI_INTEGER, tokens, "N", "tokens to generate at most; -1: until the context is full",
               .fallback = "512", .lowest = -1, .highest = 1e12),
    CLI_OPTION(0, "temp", CLI_NUMBER, temperature, "X",
               "temperature; 0: always the most likely token (without it: what the model's file says, then 0.8)",
               .highest = 100),
    CLI_OPTION(0, "top-k", CLI_NUMBER, top_k, "N",
               "keep the N most likely tokens; 0: all (without it: the model's file, then 40)", .highest = 1e9),
    CLI_OPTION(0, "top-p", CLI_NUMBER, top_p, "X",
               "keep the most likely tokens of together X; 1: all (without it: the model's file, then 0.95)",
               .highest = 1),
    CLI_OPTION(0, "min-p", CLI_NUMBER, min_p, "X",
               "keep tokens at least X times as likely as the first; 0: all (without it: 0.05)", .highest = 1),
    CLI_OPTION(0, "repeat-penalty", CLI_NUMBER, repeat_penalty, "X",
               "divide the logits of recent tokens by X; 1: off (without it: 1)", .lowest = 1e-3, .highest = 1e3),
    CLI_OPTION(0, "repeat-last", CLI_NUMBER, repeat_last, "N",
               "tokens that --repeat-penalty looks back (without it: 64)", .highest = 1e9),
    CLI_OPTION(0, "seed", CLI_SEED, seed, "N", "of the random numbers; the same seed gives the same text",
               .fallback = "0"),
    CLI_OPTION(0, "stop", CLI_TEXTS, stops, "TEXT", "end the answer before this text; may be given several times"),
    CLI_OPTION(0, "system", CLI_TEXT, system, "TEXT", "system message, where the model's chat template has one"),
    {0}};

const cli_option cli_common_options[] = {
    CLI_OPTION('q', "quiet", CLI_FLAG, quiet, NULL, "nothing on standard error but errors"),
    CLI_OPTION('v', "verbose", CLI_FLAG, verbose, NULL, "tell what the library logs"),
    CLI_OPTION('h', "help", CLI_FLAG, help, NULL, "print this and exit"),
    {0}};

const cli_verb *cli_find_verb(const char *name) {
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++)
        if (!strcmp((*verb)->name, name)) return *verb;
    return NULL;
}

const cli_option *cli_option_at(const cli_verb *verb, int index) {
    for (const cli_group *group = verb->groups; group->title; group++)
        for (const cli_option *option = group->options; option->name; option++)
            if (index-- == 0) return option;
    return NULL;
}

int cli_usage(const cli_verb *verb, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "linnet %s: %s; see 'linnet %s --help'\n", verb->name, text, verb->name);
    return CLI_USAGE;
}

/* ---- values ---- */

static bool parse_integer(const char *text, double lowest, double highest, int64_t *value) {
    char *end;
    errno = 0;
    const long long read = strtoll(text, &end, 10);
    if (end == text || *end || errno || (double)read < lowest || (highest > 0 && (double)read > highest)) return false;
    *value = read;
    return true;
}

static bool parse_number(const char *text, double lowest, double highest, double *value) {
    char *end;
    *value = strtod(text, &end);
    return end != text && !*end && isfinite(*value) && *value >= lowest && *value <= highest;
}

/* 64M is 64 x 2^20; K, M, G, T with nothing, B or iB after them. */
static bool parse_size(const char *text, uint64_t *value) {
    char *end;
    const double number = strtod(text, &end);
    if (end == text || !isfinite(number) || number < 0) return false;
    static const char letters[] = "KMGT";
    const char *letter = *end ? strchr(letters, *end & ~0x20) : NULL;
    const int shift = letter ? 10 * (int)(letter - letters + 1) : 0;
    if (letter) end++;
    if (*end && strcasecmp(end, "B") != 0 && (!letter || strcasecmp(end, "iB") != 0)) return false;
    const double bytes = ldexp(number, shift);
    if (bytes >= 0x1p63) return false;
    *value = (uint64_t)bytes;
    return true;
}

static bool parse_integers(const char *text, double lowest, double highest, cli_integers *list) {
    list->count = 0;
    while (list->count < CLI_MOST) {
        const size_t bytes = strcspn(text, ",");
        char word[32];
        if (bytes >= sizeof word) return false;
        memcpy(word, text, bytes);
        word[bytes] = 0;
        if (!parse_integer(word, lowest, highest, &list->value[list->count++])) return false;
        if (!text[bytes]) return true;
        text += bytes + 1;
    }
    return false;
}

static bool parse_type(const char *text, const char *choices, linnet_type *type) {
    const size_t bytes = strlen(text);
    for (const char *word = choices; *word; word += strspn(word, " ")) {
        const size_t length = strcspn(word, " ");
        if (length == bytes && !strncasecmp(word, text, bytes)) {
            *type = linnet_type_of_name(text);
            return true;
        }
        word += length;
    }
    return false;
}

static bool parse_value(const cli_option *option, const char *text, cli_arguments *arguments) {
    void *member = (char *)arguments + option->member;
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)member = true;
        return true;
    case CLI_TEXT:
        *(const char **)member = text;
        return true;
    case CLI_TEXTS: {
        cli_texts *list = member;
        if (list->count == CLI_MOST || !*text) return false;
        list->text[list->count++] = text;
        return true;
    }
    case CLI_INTEGER:
        return parse_integer(text, option->lowest, option->highest, member);
    case CLI_INTEGERS:
        return parse_integers(text, option->lowest, option->highest, member);
    case CLI_NUMBER:
        return parse_number(text, option->lowest, option->highest, member);
    case CLI_SIZE:
        return parse_size(text, member);
    case CLI_SEED: {
        char *end;
        errno = 0;
        *(uint64_t *)member = strtoull(text, &end, 0);
        return end != text && !*end && !errno && *text != '-';
    }
    case CLI_TYPE:
        return parse_type(text, option->choices, member);
    }
    return false;
}

static int refuse(const cli_verb *verb, const cli_option *option, const char *text) {
    switch (option->kind) {
    case CLI_TYPE:
        return cli_usage(verb, "--%s %s: must be one of %s", option->name, text, option->choices);
    case CLI_SIZE:
        return cli_usage(verb, "--%s %s: a size is written as 64M, 1.5G or plain bytes", option->name, text);
    case CLI_TEXTS:
        return cli_usage(verb, "--%s may not be empty, nor given more than %d times", option->name, CLI_MOST);
    default:
        if (option->highest > 0)
            return cli_usage(verb, "--%s %s: must be a number from %g to %g", option->name, text, option->lowest,
                             option->highest);
        return cli_usage(verb, "--%s %s: must be a number", option->name, text);
    }
}

/* ---- reading ---- */

enum { MOST_OPTIONS = 64, FIRST_CODE = 256 };

int cli_parse(const cli_verb *verb, int count, char **words, cli_arguments *arguments) {
    struct option longs[MOST_OPTIONS + 1] = {{0}};
    char letters[3 * MOST_OPTIONS + 2] = ":", *letter = letters + 1;
    *arguments = (cli_arguments){.precision = LINNET_TYPE_AUTO, .type = LINNET_TYPE_AUTO};
    arguments->temperature = arguments->top_k = arguments->top_p = -1;
    arguments->min_p = arguments->repeat_penalty = arguments->repeat_last = -1;
    const cli_option *option;
    for (int i = 0; i < MOST_OPTIONS && (option = cli_option_at(verb, i)); i++) {
        const bool flag = option->kind == CLI_FLAG;
        longs[i] = (struct option){option->name, flag ? no_argument : required_argument, NULL, FIRST_CODE + i};
        if (option->letter) {
            *letter++ = option->letter;
            if (!flag) *letter++ = ':';
        }
        if (option->fallback && !parse_value(option, option->fallback, arguments))
            return refuse(verb, option, option->fallback);
    }
    opterr = 0;
    optind = 1;
    for (int code; (code = getopt_long(count, words, letters, longs, NULL)) != -1;) {
        option = NULL;
        const char *word = words[optind - 1];
        if (code == ':') return cli_usage(verb, "%s needs a value", word);
        if (code == '?')
            return optopt && optopt < FIRST_CODE ? cli_usage(verb, "there is no option -%c", optopt)
                                                 : cli_usage(verb, "%s is no option, or not the whole of one", word);
        for (int i = 0; (option = cli_option_at(verb, i)); i++)
            if (code == FIRST_CODE + i || code == option->letter) break;
        if (!option || !parse_value(option, optarg, arguments)) return refuse(verb, option, optarg);
    }
    if (arguments->help) return CLI_OK;
    for (int i = optind; i < count; i++) {
        if (arguments->operand_count == verb->most_operands)
            return cli_usage(verb, "'%s' is one word too many (quote what belongs together)", words[i]);
        arguments->operands[arguments->operand_count++] = words[i];
    }
    if (arguments->operand_count < verb->fewest_operands) return cli_usage(verb, "%s is missing", verb->operands);
    return CLI_OK;
}

/* ---- help ---- */

enum { HELP_COLUMN = 26, HELP_WIDTH = 100 };

/* Prints text from `column` on, broken between words, later lines indented to `indent`; ends the line. */
static void print_wrapped(FILE *out, const char *text, int column, int indent) {
    while (*text) {
        const int bytes = (int)strcspn(text, " \n");
        if (column > indent && column + 1 + bytes > HELP_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        if (column > indent) column += fprintf(out, " ");
        column += fprintf(out, "%.*s", bytes, text);
        text += bytes;
        if (*text == '\n') {
            fprintf(out, "\n%*s", text[1] ? indent : 0, "");
            column = indent;
        }
        if (*text) text++;
    }
    fprintf(out, "\n");
}

static void print_option(FILE *out, const cli_option *option) {
    int column = option->letter ? fprintf(out, "  -%c, --%s", option->letter, option->name)
                                : fprintf(out, "      --%s", option->name);
    if (option->argument) column += fprintf(out, " %s", option->argument);
    if (column >= HELP_COLUMN) {
        fprintf(out, "\n");
        column = 0;
    }
    fprintf(out, "%*s", HELP_COLUMN - column, "");
    char text[512];
    int length = snprintf(text, sizeof text, "%s", option->help);
    const size_t room = sizeof text - (size_t)length;
    if (option->choices) length += snprintf(text + length, room, "; one of %s", option->choices);
    if (option->fallback) snprintf(text + length, sizeof text - (size_t)length, " (default %s)", option->fallback);
    print_wrapped(out, text, HELP_COLUMN, HELP_COLUMN);
}

void cli_print_help(const cli_verb *verb, FILE *out) {
    fprintf(out, "linnet %s: %s\n\nusage: linnet %s [options]%s%s\n\n", verb->name, verb->summary, verb->name,
            *verb->operands ? " " : "", verb->operands);
    if (verb->details) {
        print_wrapped(out, verb->details, 0, 0);
        fprintf(out, "\n");
    }
    for (const cli_group *group = verb->groups; group->title; group++) {
        fprintf(out, "%s:\n", group->title);
        for (const cli_option *option = group->options; option->name; option++) print_option(out, option);
        fprintf(out, "\n");
    }
}
