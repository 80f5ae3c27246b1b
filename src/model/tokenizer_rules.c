/* Owns: the splitting rules that GGUF files call by name (tokenizer.ggml.pre).
 *
 * A rule is a sequence of regular expressions; each cuts what the one before left, at its matches. */
#include <string.h>

#include "model/tokenizer.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LINES_AND_SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3(digits) \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" LINES_AND_SPACES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(contractions, digits)                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" contractions "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER \
    "*" contractions "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" LINES_AND_SPACES
#define DEEPSEEK3                                                                                         \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| " \
    "?[\\p{P}\\p{S}]+"                                                                                    \
    "[\\r\\n]*" LINES_AND_SPACES

const char ln_gpt2_split[] = GPT2;

static const ln_split_rule rules[] = {
    {.names =
         "gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v1-en jina-v2-code jina-v2-es jina-v2-de roberta-bpe gigachat "
         "exaone4 trillion granite-docling mellum a.x-4.0 modern-bert",
     .regex = {GPT2}},
    {.names = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
     .regex = {LLAMA3("\\p{N}{1,3}")},
     .ignore_merges = true,
     .add_begin = true},
    {.names = "dbrx smaug-bpe chatglm-bpe", .regex = {LLAMA3("\\p{N}{1,3}")}},
    {.names = "glm4 glm5", .regex = {LLAMA3("\\p{N}{1,3}")}, .ignore_merges = true},
    {.names = "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
     .regex = {LLAMA3("\\p{N}")}},
    {.names = "qwen35",
     .regex = {CONTRACTIONS
               "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" LINES_AND_SPACES}},
    {.names = "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", .regex = {"\\p{N}", GPT2}},
    {.names = "falcon", .regex = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
     .regex = {"\\p{N}{1,3}", "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-\xE3\x83\xBF]+",
               DEEPSEEK3}},
    {.names = "deepseek-coder",
     .regex = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
               "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80\xEA\xB0\x80-\xED\x9F\xBF]+", "\\p{N}"}},
    {.names = "tekken", .regex = {CASED("", "\\p{N}")}, .ignore_merges = true, .add_begin = true},
    {.names = "gpt-4o llama4 kanana2 talkie minimax-m2", .regex = {CASED(CONTRACTIONS "?", "\\p{N}{1,3}")}},
    {.names = "seed-coder",
     .regex = {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+" LINES_AND_SPACES}},
    {.names = "bailingmoe bailingmoe2 llada-moe",
     .regex = {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| "
               "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+"
               "(?!\\S)|\\s+"}},
    {.names = "poro-chat bloom gpt3-finnish",
     .regex = {" ?[^(\\s|.,!?\xE2\x80\xA6\xE3\x80\x82\xEF\xBC\x8C\xE3\x80\x81\xE0\xA5\xA4\xDB\x94\xD8\x8C)]+"}},
    {.names = "viking",
     .regex = {" ?[^(\\s|.,!?\xE2\x80\xA6\xE3\x80\x82\xEF\xBC\x8C\xE3\x80\x81\xE0\xA5\xA4\xDB\x94\xD8\x8C)]+",
               "\\p{N}"}},
    {.names = "default", .regex = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

const ln_split_rule *ln_split_rule_at(int index) {
    return index >= 0 && index < (int)(sizeof rules / sizeof *rules) ? &rules[index] : NULL;
}

static bool has_name(const char *names, const char *name, size_t bytes) {
    for (const char *at = names; *at;) {
        const size_t length = strcspn(at, " ");
        if (length == bytes && memcmp(at, name, bytes) == 0) return true;
        at += length + strspn(at + length, " ");
    }
    return false;
}

const ln_split_rule *ln_split_rule_of_name(const char *name, size_t bytes) {
    const ln_split_rule *rule = rules;
    for (int i = 0; (rule = ln_split_rule_at(i)); i++)
        if (has_name(rule->names, name, bytes)) return rule;
    return NULL;
}
