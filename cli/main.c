/* Owns: the table of verbs, and choosing one. */
#include <signal.h>
#include <string.h>

#include "cli.h"

const cli_verb *const cli_verbs[] = {&cli_run,       &cli_chat,    &cli_plan,       &cli_inspect,    &cli_convert,
                                     &cli_tokenize,  &cli_logits,  &cli_perplexity, &cli_bench,      &cli_eval,
                                     &cli_calibrate, &cli_version, &cli_help,       &cli_completion, NULL};

int main(int count, char **words) {
    /* A reader that left ends the output with a failed write, not with a signal. */
    signal(SIGPIPE, SIG_IGN);
    const char *name = count > 1 ? words[1] : "help";
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) name = "help";
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) name = "version";
    const cli_verb *verb = cli_find_verb(name);
    if (!verb) {
        fprintf(stderr, "linnet: there is no verb '%s'; 'linnet help' lists them\n", name);
        return CLI_USAGE;
    }
    cli_arguments arguments;
    const int skip = count > 1 ? 1 : 0;
    const int status = cli_parse(verb, count - skip, words + skip, &arguments);
    if (status != CLI_OK) return status;
    if (arguments.help) {
        cli_print_help(verb, stdout);
        return CLI_OK;
    }
    cli_console_open(arguments.quiet, arguments.verbose);
    return verb->run(&arguments);
}
