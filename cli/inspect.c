/* Owns: the verb inspect: what a model file says. */
#include <jansson.h>
#include <string.h>

#include "cli.h"

static const cli_option inspect_options[] = {CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object"), {0}};

static const cli_group groups[] = {{"inspect", inspect_options}, {"other", cli_common_options}, {0}};

static const linnet_type precisions[] = {LINNET_F32, LINNET_BF16, LINNET_F16, LINNET_Q8_0, LINNET_Q4_0};
enum { PRECISIONS = sizeof precisions / sizeof *precisions };

static uint64_t values_of(const linnet_tensor_info *info) {
    uint64_t values = 1;
    for (int i = 0; i < info->dimensions; i++) values *= (uint64_t)info->size[i];
    return values;
}

static void shape_text(const linnet_tensor_info *info, char *text, size_t room) {
    int length = 0;
    for (int i = 0; i < info->dimensions && length >= 0 && (size_t)length < room; i++)
        length += snprintf(text + length, room - (size_t)length, i ? " x %lld" : "%lld", (long long)info->size[i]);
}

/* Bytes a token of context takes at each precision; false where Linnet does not run the architecture. */
static bool bytes_per_token(linnet_context *context, const char *path, uint64_t bytes[PRECISIONS]) {
    linnet_model *model = NULL;
    bool known = linnet_model_open(context, path, &model) == LINNET_OK;
    for (int i = 0; known && i < PRECISIONS; i++) {
        linnet_session_settings settings = linnet_session_settings_default();
        linnet_plan plan = {.size = sizeof plan};
        settings.precision = precisions[i];
        known = linnet_plan_session(model, &settings, &plan) == LINNET_OK;
        bytes[i] = plan.bytes_per_token;
    }
    linnet_model_close(model);
    return known;
}

static int print_text(linnet_context *context, const linnet_file *file, const char *path) {
    char text[256];
    const char *key;
    uint64_t parameters = 0, bytes = 0, token[PRECISIONS];
    linnet_tensor_info info;
    printf("%s: %s, %lld keys, %lld tensors\n\n", path, linnet_file_kind(file), (long long)linnet_file_keys(file),
           (long long)linnet_file_tensors(file));
    for (int64_t i = 0; (key = linnet_file_key(file, i, text, sizeof text)); i++) printf("%-44s %s\n", key, text);
    printf("\n%-40s %-6s %-24s %s\n", "tensor", "type", "shape", "bytes");
    for (int64_t i = 0; linnet_file_tensor(file, i, &info); i++) {
        shape_text(&info, text, sizeof text);
        printf("%-40s %-6s %-24s %llu\n", info.name, linnet_type_name(info.type), text, (unsigned long long)info.bytes);
        parameters += values_of(&info);
        bytes += info.bytes;
    }
    printf("\nparameters %llu (%.1f M), %s, %.2f bits each\n", (unsigned long long)parameters,
           1e-6 * (double)parameters, cli_size(bytes), parameters ? 8.0 * (double)bytes / (double)parameters : 0);
    if (!bytes_per_token(context, path, token)) {
        printf("a token of context takes: unknown, as this model cannot be run: %s\n", linnet_last_error(context));
        return CLI_OK;
    }
    printf("a token of context takes");
    for (int i = 0; i < PRECISIONS; i++)
        printf("%s %llu bytes in %s", i ? "," : "", (unsigned long long)token[i], linnet_type_name(precisions[i]));
    printf("\n");
    return CLI_OK;
}

static int print_json(linnet_context *context, const linnet_file *file, const char *path) {
    json_t *keys = json_object(), *tensors = json_array(), *per_token = json_object();
    char text[4096];
    const char *key;
    uint64_t parameters = 0, token[PRECISIONS];
    linnet_tensor_info info;
    for (int64_t i = 0; (key = linnet_file_key(file, i, text, sizeof text)); i++)
        json_object_set_new(keys, key, cli_json_text(text, strnlen(text, sizeof text)));
    for (int64_t i = 0; linnet_file_tensor(file, i, &info); i++) {
        json_t *shape = json_array();
        for (int n = 0; n < info.dimensions; n++) json_array_append_new(shape, json_integer(info.size[n]));
        json_array_append_new(tensors,
                              json_pack("{so ss so sI}", "name", cli_json_text(info.name, strlen(info.name)), "type",
                                        linnet_type_name(info.type), "size", shape, "bytes", (json_int_t)info.bytes));
        parameters += values_of(&info);
    }
    if (bytes_per_token(context, path, token))
        for (int i = 0; i < PRECISIONS; i++)
            json_object_set_new(per_token, linnet_type_name(precisions[i]), json_integer((json_int_t)token[i]));
    return cli_json_print(json_pack("{ss so so sI so}", "kind", linnet_file_kind(file), "keys", keys, "tensors",
                                    tensors, "parameters", (json_int_t)parameters, "bytes_per_token", per_token));
}

static int run(const cli_arguments *arguments) {
    const char *path = arguments->operands[0];
    linnet_context *context;
    linnet_file *file = NULL;
    if (cli_context_open(arguments, &context) != CLI_OK) return CLI_FAILED;
    int status = CLI_OK;
    if (linnet_file_open(context, path, &file) != LINNET_OK)
        status = cli_error("%s", linnet_last_error(context));
    else
        status = arguments->json ? print_json(context, file, path) : print_text(context, file, path);
    linnet_file_close(file);
    linnet_context_close(context);
    return status;
}

const cli_verb cli_inspect = {
    .name = "inspect",
    .operands = "FILE",
    .summary = "tell what a model file holds",
    .details = "FILE is a GGUF file, a .safetensors file or a Hugging Face folder. Prints the metadata, the table of "
               "tensors, the parameter count, and the bytes that a token of context takes at each precision.",
    .groups = groups,
    .run = run,
    .fewest_operands = 1,
    .most_operands = 1};
