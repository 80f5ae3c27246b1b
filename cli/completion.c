/* Owns: the verb completion: what shells need to complete a command line, from the same tables. */
#include <string.h>

#include "cli.h"

static const cli_group groups[] = {{"other", cli_common_options}, {0}};

static bool names_files(const cli_option *option) {
    return option->argument && (!strcmp(option->argument, "FILE") || !strcmp(option->argument, "MODEL"));
}

/* Text inside single quotes: every ' is closed, quoted and opened again; in `also`, a backslash goes before. */
static void print_quoted(const char *text, const char *also) {
    for (; *text; text++) {
        if (*text == '\'') {
            fputs("'\\''", stdout);
        } else {
            if (strchr(also, *text)) putchar('\\');
            putchar(*text);
        }
    }
}

static void print_bash(void) {
    printf("# bash completion of linnet, made by 'linnet completion bash'\n_linnet() {\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=\n    COMPREPLY=()\n"
           "    if ((COMP_CWORD == 1)); then\n        words='");
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++)
        if (!(*verb)->hidden) printf("%s ", (*verb)->name);
    printf("'\n    else\n        case ${COMP_WORDS[1]}:$before in\n");
    const cli_option *option;
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++)
        for (int i = 0; (option = cli_option_at(*verb, i)); i++) {
            if (option->kind == CLI_FLAG) continue;
            printf("        %s:--%s", (*verb)->name, option->name);
            if (option->letter) printf(" | %s:-%c", (*verb)->name, option->letter);
            if (option->choices)
                printf(") words='%s' ;;\n", option->choices);
            else
                printf(") %s ;;\n", names_files(option) ? "compopt -o default; return" : "return");
        }
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++) {
        printf("        %s:*) words='", (*verb)->name);
        for (int i = 0; (option = cli_option_at(*verb, i)); i++) printf("--%s ", option->name);
        printf("' ;;\n");
    }
    printf("        esac\n        [[ $word == -* || $words != --* ]] || { compopt -o default; return; }\n    fi\n"
           "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n}\ncomplete -F _linnet linnet\n");
}

static void print_zsh_option(const cli_option *option) {
    const char *star = option->kind == CLI_TEXTS ? "*" : "";
    printf("            ");
    if (option->letter)
        printf("'(-%c --%s)'{-%c,--%s}'", option->letter, option->name, option->letter, option->name);
    else
        printf("'%s--%s", star, option->name);
    printf("[");
    print_quoted(option->help, "[]:");
    printf("]");
    if (option->kind != CLI_FLAG) {
        printf(":%s:", option->argument);
        if (option->choices)
            printf("(%s)", option->choices);
        else if (names_files(option))
            printf("_files");
    }
    printf("' \\\n");
}

static void print_zsh(void) {
    printf("#compdef linnet\n# zsh completion of linnet, made by 'linnet completion zsh'\n_linnet() {\n"
           "    local -a verbs=(\n");
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++) {
        if ((*verb)->hidden) continue;
        printf("        '%s:", (*verb)->name);
        print_quoted((*verb)->summary, ":");
        printf("'\n");
    }
    printf("    )\n    if (( CURRENT == 2 )); then\n        _describe verb verbs\n        return\n    fi\n"
           "    local verb=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $verb in\n");
    const cli_option *option;
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++) {
        printf("    %s)\n        _arguments -s -S \\\n", (*verb)->name);
        for (int i = 0; (option = cli_option_at(*verb, i)); i++) print_zsh_option(option);
        printf("            '*:file:_files' ;;\n");
    }
    printf("    esac\n}\n_linnet \"$@\"\n");
}

static void print_fish(void) {
    printf("# fish completion of linnet, made by 'linnet completion fish'\n");
    const cli_option *option;
    for (const cli_verb *const *verb = cli_verbs; *verb; verb++) {
        if (!(*verb)->hidden) {
            printf("complete -c linnet -f -n __fish_use_subcommand -a %s -d '", (*verb)->name);
            print_quoted((*verb)->summary, "");
            printf("'\n");
        }
        for (int i = 0; (option = cli_option_at(*verb, i)); i++) {
            printf("complete -c linnet -n '__fish_seen_subcommand_from %s' -l %s", (*verb)->name, option->name);
            if (option->letter) printf(" -s %c", option->letter);
            if (option->kind != CLI_FLAG) printf(names_files(option) ? " -r -F" : " -x");
            if (option->choices) printf(" -a '%s'", option->choices);
            printf(" -d '");
            print_quoted(option->help, "\\");
            printf("'\n");
        }
    }
}

static int run(const cli_arguments *arguments) {
    static const struct {
        const char *name;
        void (*print)(void);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++) {
        if (strcmp(shells[i].name, arguments->operands[0]) != 0) continue;
        shells[i].print();
        return fflush(stdout) ? cli_error("the completion could not be written to standard output") : CLI_OK;
    }
    return cli_usage(&cli_completion, "there is no completion for '%s', only for bash, zsh and fish",
                     arguments->operands[0]);
}

const cli_verb cli_completion = {.name = "completion",
                                 .operands = "bash|zsh|fish",
                                 .summary = "print the completion of a shell",
                                 .groups = groups,
                                 .run = run,
                                 .fewest_operands = 1,
                                 .most_operands = 1,
                                 .hidden = true};
