/* Owns: the verbs help and version: the overview, and the manual page made from the same tables. */
#include <ctype.h>
#include <string.h>

#include "cli.h"

static const cli_option help_options[] = {
    CLI_OPTION(0, "man", CLI_FLAG, man, NULL, "write the manual page, as troff, instead"), {0}};

static const cli_group help_groups[] = {{"help", help_options}, {"other", cli_common_options}, {0}};
static const cli_group version_groups[] = {{"other", cli_common_options}, {0}};

static const char *const purpose = "long-context language models in linear time and bounded memory";

/* ---- the manual page ---- */

/* Text with what troff would take for its own made harmless. */
static void print_troff(const char *text) {
    bool start = true;
    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\'')) fputs("\\&", stdout);
        if (*text == '\\') {
            fputs("\\e", stdout);
        } else if (*text == '-') {
            fputs("\\-", stdout);
        } else {
            putchar(*text);
        }
        start = *text == '\n';
    }
}

static void print_troff_option(const cli_option *option) {
    printf(".TP\n.B ");
    if (option->letter) printf("\\-%c\\fR, \\fB", option->letter);
    printf("\\-\\-");
    print_troff(option->name);
    if (option->argument) printf(" \\fI%s", option->argument);
    printf("\n");
    print_troff(option->help);
    if (option->choices) {
        printf("; one of ");
        print_troff(option->choices);
    }
    if (option->fallback) {
        printf(" (default ");
        print_troff(option->fallback);
        printf(")");
    }
    printf("\n");
}

static void print_troff_verb(const cli_verb *verb) {
    printf(".SS linnet %s%s%s\n", verb->name, *verb->operands ? " " : "", verb->operands);
    const char first[] = {(char)toupper((unsigned char)verb->summary[0]), 0};
    print_troff(first);
    print_troff(verb->summary + 1);
    printf(".\n");
    if (verb->details) {
        printf(".PP\n");
        print_troff(verb->details);
        printf("\n");
    }
    /* The options that all verbs share stand once, in a section of their own. */
    for (const cli_group *group = verb->groups; group->title; group++)
        for (const cli_option *option = group->options;
             option->name && group->options != cli_common_options && group->options != cli_model_options &&
             group->options != cli_memory_options && group->options != cli_sampling_options;
             option++)
            print_troff_option(option);
    static const struct {
        const cli_option *options;
        const char *title;
    } shared[] = {{cli_model_options, "MODEL"}, {cli_sampling_options, "ANSWER"}, {cli_memory_options, "MEMORY"}};
    const char *before = ".PP\nAlso those under ";
    for (const cli_group *group = verb->groups; group->title; group++)
        for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
            if (group->options == shared[i].options) {
                printf("%s\\fB%s OPTIONS\\fR", before, shared[i].title);
                before = ", ";
            }
    if (*before == ',') printf(".\n");
}

static void print_troff_shared(const char *title, const cli_option *options) {
    printf(".SH %s OPTIONS\n", title);
    for (; options->name; options++) print_troff_option(options);
}

static int print_manual(void) {
    printf(".TH LINNET 1 \"\" \"linnet %s\" \"User commands\"\n.SH NAME\nlinnet \\- ", linnet_version());
    print_troff(purpose);
    printf(
        "\n.SH SYNOPSIS\n.B linnet\n.I verb\n[options] ...\n.br\n.B linnet\n.I verb\n.B \\-\\-help\n.SH DESCRIPTION\n"
        "Runs language models on the processor, with any context in the bytes that are given. Results go to standard "
        "output, everything else to standard error.\n.SH VERBS\n");
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++)
        if (!(*verb)->hidden) print_troff_verb(*verb);
    print_troff_shared("MODEL", cli_model_options);
    print_troff_shared("ANSWER", cli_sampling_options);
    print_troff_shared("MEMORY", cli_memory_options);
    print_troff_shared("COMMON", cli_common_options);
    printf(
        ".SH EXIT STATUS\n0: done. 1: failed, with a sentence on standard error. 2: the command line is wrong. 130: "
        "ended by ctrl\\-C; what was made before it is kept.\n"
        ".SH ENVIRONMENT\n.TP\n.B LINNET_MODEL\nthe model of commands without \\-m\n.TP\n.B LINNET_CPU\nhighest "
        "instruction set to use: portable, avx2, avx512, amx, neon\n"
        ".SH FILES\n.TP\n.I PREFIX/share/linnet\nthe built\\-in model, and the document and the question of "
        "\\fBlinnet run\\fR without options\n"
        ".SH EXAMPLES\n.nf\nlinnet run\nlinnet run \\-m model.gguf \\-f book.txt \\-p \"Who is the doctor of Cleo?\" "
        "\\-\\-memory 64M\nlinnet convert folder \\-o model.gguf \\-\\-type q8_0\nlinnet tokenize \\-f book.txt | wc "
        "\\-w\n.fi\n");
    return CLI_OK;
}

/* ---- the overview ---- */

static int help(const cli_arguments *arguments) {
    if (arguments->man) return print_manual();
    if (arguments->operand_count) {
        const cli_verb *verb = cli_find_verb(arguments->operands[0]);
        if (!verb) return cli_usage(&cli_help, "there is no verb '%s'", arguments->operands[0]);
        cli_print_help(verb, stdout);
        return CLI_OK;
    }
    printf("linnet %s: %s\n\nusage: linnet VERB [options]\n\n", linnet_version(), purpose);
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++)
        if (!(*verb)->hidden) printf("  %-11s %s\n", (*verb)->name, (*verb)->summary);
    printf("\n'linnet VERB --help' tells the options of a verb. Begin with 'linnet run'.\n");
    return CLI_OK;
}

static int version(const cli_arguments *arguments) {
    linnet_context *context;
    printf("linnet %s\n", linnet_version());
    if (cli_context_open(arguments, &context) != CLI_OK) return CLI_FAILED;
    printf("processor: %s, %d threads\narchitectures:", linnet_cpu(context), linnet_threads(context));
    const char *name;
    for (int i = 0; (name = linnet_architecture(i)); i++) printf(" %s", name);
    printf("\n");
    linnet_context_close(context);
    return CLI_OK;
}

const cli_verb cli_help = {.name = "help",
                           .operands = "[VERB]",
                           .summary = "list the verbs, or the options of one",
                           .groups = help_groups,
                           .run = help,
                           .most_operands = 1};

const cli_verb cli_version = {.name = "version",
                              .operands = "",
                              .summary = "tell the version, the instruction sets in use and the known architectures",
                              .groups = version_groups,
                              .run = version};
