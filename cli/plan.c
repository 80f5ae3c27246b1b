/* Owns: the verb plan: what a context would take, and nothing else done. */

#include <stdio.h>

#include "cli.h"

static const cli_option plan_options[] = {
    CLI_OPTION(0, "policies", CLI_FLAG, list, NULL, "list the policies that --policy takes, and nothing else"),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object"),
    {0}};

static const cli_group groups[] = {{"plan", plan_options},
                                   {"model", cli_model_options},
                                   {"memory", cli_memory_options},
                                   {"other", cli_common_options},
                                   {0}};

static int print_plan(const cli_engine *engine, const cli_arguments *arguments) {
    const linnet_session_settings settings = cli_session_settings(arguments, arguments->context, 0);
    linnet_plan plan;
    const int status = cli_plan_session(engine, &settings, 0, &plan);
    if (status != CLI_OK) return status;
    if (arguments->json) return cli_json_print(cli_json_plan(&plan));
    cli_print_plan(engine, &plan, arguments->memory, stdout);
    return CLI_OK;
}

static int run(const cli_arguments *arguments) {
    const char *name;
    for (int i = 0; arguments->list && (name = linnet_policy_name(i)); i++)
        printf("%-14s %s\n", name, linnet_policy_about(i));
    if (arguments->list) return CLI_OK;
    cli_engine engine;
    int status = cli_engine_open(arguments, false, &engine);
    if (status == CLI_OK) status = print_plan(&engine, arguments);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_plan = {
    .name = "plan",
    .operands = "",
    .summary = "print the memory plan of a context without running it",
    .details = "Tells how the bytes beyond the mapped weights divide into model, pages of keys and values, workspace "
               "and overhead, which precision was chosen and why. -c 0 is the length that the model was trained for. "
               "--policies lists what can be done with keys and values; docs/memory.md describes it. "
               "Where nothing fits into --memory, the smallest sufficient figure is named and the exit status is 1.",
    .groups = groups,
    .run = run};
