/* Hugging Face folders in GGUF's terms: keys of both styles of config.json, names, vectors, shards, and bad folders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "model/file.h"
#include "stored.h"

static char folder[64];
static linnet_context *context;

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/linnet-folder-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    return linnet_context_open(&settings, &context) == LINNET_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    remove_stored(folder);
    linnet_context_close(context);
    return 0;
}

static linnet_file *open_folder(void) {
    linnet_file *file;
    if (linnet_file_open(context, folder, &file) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    return file;
}

#define SIZES                                                                                       \
    "\"hidden_size\":8,\"num_hidden_layers\":4,\"num_attention_heads\":2,\"intermediate_size\":16," \
    "\"num_key_value_heads\":1,\"vocab_size\":10,\"max_position_embeddings\":1024,"

/* ---- keys ---- */

/* A config (after SIZES), and KEY=VALUE lines that must follow from it; KEY without "=": must be missing. */
static const struct config_row {
    const char *config, *keys;
} configs[] = {
    {"\"model_type\":\"llama\",\"rope_theta\":500000.0,\"rms_norm_eps\":1e-05,\"rope_scaling\":null,"
     "\"_name_or_path\":\"somebody/Toy-1\"",
     "general.architecture=llama\ngeneral.name=Toy-1\nllama.context_length=1024\nllama.embedding_length=8\n"
     "llama.block_count=4\nllama.feed_forward_length=16\nllama.attention.head_count=2\n"
     "llama.attention.head_count_kv=1\nllama.attention.key_length=4\nllama.attention.value_length=4\n"
     "llama.attention.layer_norm_rms_epsilon=1e-05\nllama.rope.freq_base=500000\nllama.rope.dimension_count=4\n"
     "llama.vocab_size=10\nllama.attention.sliding_window\nllama.rope.scaling.type\nllama.attention.scale"},
    {"\"model_type\":\"mistral\",\"head_dim\":6,\"sliding_window\":300",
     "general.architecture=llama\nllama.attention.key_length=6\nllama.attention.sliding_window=300\n"
     "llama.attention.sliding_window_pattern=[true, true, true, true]\nllama.rope.freq_base=10000"},
    {"\"model_type\":\"mistral\",\"sliding_window\":null", "llama.attention.sliding_window"},
    {"\"model_type\":\"mistral\"", "llama.attention.sliding_window=4096"},
    {"\"model_type\":\"qwen2\",\"use_sliding_window\":false,\"sliding_window\":300,\"max_window_layers\":2",
     "qwen2.attention.sliding_window\nqwen2.attention.sliding_window_pattern"},
    {"\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"sliding_window\":300,\"max_window_layers\":2",
     "qwen2.attention.sliding_window=300\nqwen2.attention.sliding_window_pattern=[false, false, true, true]"},
    {"\"model_type\":\"qwen3\",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
     "\"original_max_position_embeddings\":256}",
     "qwen3.attention.key_length=128\nqwen3.rope.scaling.type=yarn\nqwen3.rope.scaling.factor=4\n"
     "qwen3.rope.scaling.original_context_length=256\nqwen3.rope.scaling.attn_factor"},
    {"\"model_type\":\"llama\",\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":20000.0,\"factor\":4.0,"
     "\"original_max_position_embeddings\":256,\"beta_fast\":24,\"beta_slow\":2,\"attention_factor\":1.0,\"truncate\":"
     "false}",
     "llama.rope.freq_base=20000\nllama.rope.scaling.attn_factor=0.8782489\nllama.rope.scaling.yarn_beta_fast=24\n"
     "llama.rope.scaling.yarn_beta_slow=2\nllama.rope.scaling.yarn_truncate=false"},
    {"\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}",
     "llama.rope.scaling.type=linear\nllama.rope.scaling.factor=2.5"},
    {"\"model_type\":\"llama\",\"partial_rotary_factor\":0.5,\"rope_parameters\":{\"rope_theta\":1e6}",
     "llama.rope.dimension_count=2\nllama.rope.freq_base=1000000"},
    {"\"model_type\":\"gemma2\",\"head_dim\":4,\"query_pre_attn_scalar\":16,\"sliding_window\":300",
     "gemma2.attention.scale=0.25\ngemma2.attn_logit_softcapping=50\ngemma2.final_logit_softcapping=30\n"
     "gemma2.attention.sliding_window=300\ngemma2.attention.sliding_window_pattern=[true, false, true, false]"},
    {"\"model_type\":\"gemma2\",\"head_dim\":4,\"query_pre_attn_scalar\":4,\"attn_logit_softcapping\":null",
     "gemma2.attention.scale\ngemma2.attn_logit_softcapping"},
    {"\"model_type\":\"gemma3_text\",\"sliding_window\":300,\"sliding_window_pattern\":2,\"rope_local_base_freq\":5000,"
     "\"rope_theta\":2e6,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}",
     "general.architecture=gemma3\ngemma3.attention.key_length=256\ngemma3.rope.freq_base=2000000\n"
     "gemma3.rope.freq_base_swa=5000\ngemma3.rope.scaling.factor=8\n"
     "gemma3.attention.sliding_window_pattern=[true, false, true, false]\ngemma3.final_logit_softcapping"},
    {"\"model_type\":\"gemma3_text\",\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\","
     "\"sliding_attention\"],\"sliding_window\":300,\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\","
     "\"factor\":8,\"rope_theta\":3e6},\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":7000}}",
     "gemma3.rope.freq_base=3000000\ngemma3.rope.freq_base_swa=7000\ngemma3.rope.scaling.type=linear\n"
     "gemma3.attention.sliding_window_pattern=[false, true, false, true]"},
    {"\"model_type\":\"gemma3\",\"text_config\":{\"model_type\":\"gemma3_text\",\"hidden_size\":16,"
     "\"num_hidden_layers\":2,\"intermediate_size\":8,\"sliding_window\":300}",
     "general.architecture=gemma3\ngemma3.embedding_length=16\ngemma3.attention.head_count=8\n"
     "gemma3.attention.head_count_kv=4\ngemma3.context_length=131072\ngemma3.vocab_size=262208\n"
     "gemma3.rope.freq_base=1000000\ngemma3.rope.freq_base_swa=10000\n"
     "gemma3.attention.sliding_window_pattern=[true, true]"},
    {"\"model_type\":\"phi3\",\"original_max_position_embeddings\":256,\"rope_scaling\":{\"type\":\"su\","
     "\"long_factor\":[2,3.5],\"short_factor\":[1,1.5]}",
     "phi3.rope.scaling.type=longrope\nphi3.rope.scaling.original_context_length=256\n"
     "phi3.rope.scaling.attn_factor=1.118034\nphi3.attention.layer_norm_rms_epsilon=1e-05"},
    {"\"model_type\":\"smollm3\"", "smollm3.rope.freq_base=2000000\nsmollm3.attention.rope_pattern"},
    {"\"model_type\":\"smollm3\",\"no_rope_layers\":[1,0,1,0]",
     "smollm3.attention.rope_pattern=[true, false, true, false]"},
    {"\"model_type\":\"mamba-9\"", "general.architecture=mamba-9\nmamba-9.block_count=4"},
    {"\"model_type\":\"llama\",\"bos_token_id\":1,\"eos_token_id\":2,\"pad_token_id\":null",
     "tokenizer.ggml.bos_token_id=1\ntokenizer.ggml.eos_token_id=2\ntokenizer.linnet.end_token_ids=[2]\n"
     "tokenizer.ggml.padding_token_id\ntokenizer.ggml.eot_token_id"},
    {"\"model_type\":\"llama\",\"eos_token_id\":[7,2,7]",
     "tokenizer.ggml.eos_token_id=7\ntokenizer.ggml.eot_token_id=2\ntokenizer.linnet.end_token_ids=[7, 2]"},
};

static void check_key(const linnet_file *file, const char *line, size_t row) {
    const char *equals = strchr(line, '=');
    char name[128], text[256];
    snprintf(name, sizeof name, "%.*s", (int)(equals ? (size_t)(equals - line) : strlen(line)), line);
    const ln_key *key = ln_file_key(file, name);
    if (!equals) {
        if (key) fail_msg("row %zu: %s is there", row, name);
        return;
    }
    if (!key) fail_msg("row %zu: %s is missing", row, name);
    linnet_file_key(file, key - file->keys, text, sizeof text);
    if (strcmp(text, equals + 1) != 0) fail_msg("row %zu: %s is %s, not %s", row, name, text, equals + 1);
}

static void test_configs(void **state) {
    (void)state;
    write_stored(folder, "model.safetensors", NULL, 0);
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        char text[2048];
        snprintf(text, sizeof text, "{" SIZES "%s}", configs[i].config);
        write_text_file(folder, "config.json", text);
        linnet_file *file = open_folder();
        assert_string_equal(linnet_file_kind(file), "safetensors folder");
        snprintf(text, sizeof text, "%s", configs[i].keys);
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) check_key(file, line, i);
        linnet_file_close(file);
    }
}

static void test_rope_tensors(void **state) {
    (void)state;
    write_stored(folder, "model.safetensors", NULL, 0);
    write_text_file(folder, "config.json",
                    "{" SIZES "\"model_type\":\"llama\",\"head_dim\":64,\"rope_theta\":500000,\"rope_scaling\":{"
                    "\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                    "\"original_max_position_embeddings\":8192}}");
    linnet_file *file = open_folder();
    const linnet_tensor_info *tensor = ln_file_find(file, "rope_freqs.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->size[0], 32);
    const float *divisors = tensor->data;
    for (int i = 0; i < 32; i++) { /* as transformers writes it: what the frequency becomes */
        const double frequency = pow(500000, -i / 32.0), length = 2 * 3.14159265358979323846 / frequency;
        const double smooth = fmin(fmax((8192 / length - 1) / 3, 0), 1);
        const double wanted = (1 - smooth) * frequency / 8 + smooth * frequency;
        assert_true(fabs(frequency / (double)divisors[i] - wanted) < 1e-6 * frequency);
    }
    assert_true(divisors[0] == 1 && divisors[31] == 8);
    linnet_file_close(file);
    write_text_file(folder, "config.json",
                    "{" SIZES "\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"yarn\",\"long_factor\":[2,3.5],"
                    "\"short_factor\":[1,1.5]}}");
    file = open_folder();
    assert_true(((const float *)ln_file_find(file, "rope_factors_long.weight")->data)[1] == 3.5f);
    assert_true(((const float *)ln_file_find(file, "rope_factors_short.weight")->data)[1] == 1.5f);
    linnet_file_close(file);
}

static void test_tokenizer_texts(void **state) {
    (void)state;
    write_stored(folder, "model.safetensors", NULL, 0);
    write_text_file(folder, "config.json", "{" SIZES "\"model_type\":\"llama\",\"eos_token_id\":1}");
    write_text_file(folder, "generation_config.json", "{\"eos_token_id\":[9,1],\"bos_token_id\":3}");
    write_text_file(folder, "tokenizer.json", "{\"model\":1}");
    write_text_file(folder, "tokenizer_config.json",
                    "{\"model_max_length\":1000000000000000019884624838656,\"chat_template\":["
                    "{\"name\":\"tool\",\"template\":\"t\"},{\"name\":\"default\",\"template\":\"the one\"}]}");
    linnet_file *file = open_folder();
    check_key(file, "tokenizer.huggingface.json={\"model\":1}", 0);
    check_key(file, "tokenizer.chat_template=the one", 0);
    check_key(file, "tokenizer.linnet.end_token_ids=[9, 1]", 0);
    check_key(file, "tokenizer.ggml.bos_token_id=3", 0);
    assert_non_null(ln_file_key(file, "tokenizer.huggingface.config"));
    linnet_file_close(file);
    write_text_file(folder, "chat_template.jinja", "own file");
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    assert_int_equal(linnet_file_open(context, folder, &file), LINNET_ERROR_FILE);
    assert_int_equal(ln_file_open_tokenizer(context, folder, &file), LINNET_OK);
    check_key(file, "tokenizer.chat_template=own file", 0);
    linnet_file_close(file);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    assert_int_equal(ln_file_open_tokenizer(context, path, &file), LINNET_OK);
    check_key(file, "tokenizer.huggingface.json={\"model\":1}", 0);
    linnet_file_close(file);
}

/* ---- weights ---- */

static const struct name_row {
    const char *model, *huggingface, *gguf;
    float shift;
} names[] = {
    {"llama", "model.embed_tokens.weight", "token_embd.weight", 0},
    {"llama", "lm_head.weight", "output.weight", 0},
    {"llama", "model.norm.weight", "output_norm.weight", 0},
    {"llama", "model.layers.3.input_layernorm.weight", "blk.3.attn_norm.weight", 0},
    {"llama", "model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight", 0},
    {"qwen2", "layers.11.self_attn.k_proj.bias", "blk.11.attn_k.bias", 0},
    {"llama", "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", 0},
    {"qwen3", "model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight", 0},
    {"phi3", "model.layers.0.self_attn.qkv_proj.weight", "blk.0.attn_qkv.weight", 0},
    {"phi3", "model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight", 0},
    {"gemma2", "model.layers.0.post_attention_layernorm.weight", "blk.0.post_attention_norm.weight", 1},
    {"gemma2", "model.layers.0.pre_feedforward_layernorm.weight", "blk.0.ffn_norm.weight", 1},
    {"gemma2", "model.layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight", 1},
    {"gemma3", "model.language_model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight", 1},
    {"gemma3", "language_model.model.norm.weight", "output_norm.weight", 1},
    {"gemma2", "lm_head.weight", NULL, 0},
    {"llama", "model.layers.0.self_attn.rotary_emb.inv_freq", NULL, 0},
    {"gemma3", "vision_tower.vision_model.head.weight", NULL, 0},
};

static void test_names(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char config[512];
        snprintf(config, sizeof config, "{" SIZES "\"model_type\":\"%s\"}", names[i].model);
        write_text_file(folder, "config.json", config);
        const bool vector = strstr(names[i].huggingface, "norm") || strstr(names[i].huggingface, "bias");
        const stored tensor = {names[i].huggingface, i % 2 ? "BF16" : "F16", 6, vector ? 0 : 8};
        write_stored(folder, "model.safetensors", &tensor, 1);
        linnet_file *file = open_folder();
        assert_true(file->huggingface);
        assert_int_equal(linnet_file_tensors(file), names[i].gguf != NULL);
        linnet_tensor_info info;
        if (linnet_file_tensor(file, 0, &info)) {
            assert_string_equal(info.name, names[i].gguf);
            assert_int_equal(info.type, vector ? LINNET_F32 : i % 2 ? LINNET_BF16 : LINNET_F16);
            assert_int_equal(info.size[0], vector ? 6 : 8);
            assert_int_equal(info.size[1], vector ? 1 : 6);
            for (int64_t k = 0; k < 6 && vector; k++)
                assert_true(((const float *)info.data)[k] == stored_value(&tensor, k) + names[i].shift);
        }
        linnet_file_close(file);
    }
}

/* The header's length decides where the data begins: it may begin anywhere. */
static void test_unaligned(void **state) {
    (void)state;
    char name[32] = "w";
    for (int i = 0; i < 4; i++) {
        const stored tensors[2] = {{name, "F32", 3, 2}, {"v", "BF16", 3, 0}};
        write_stored(folder, "model.safetensors", tensors, 2);
        char path[128];
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        linnet_file *file;
        assert_int_equal(linnet_file_open(context, path, &file), LINNET_OK);
        assert_string_equal(linnet_file_kind(file), "safetensors file");
        const linnet_tensor_info *info = ln_file_find(file, name);
        assert_int_equal((uintptr_t)info->data % 4, 0);
        for (int64_t k = 0; k < 6; k++) assert_true(((const float *)info->data)[k] == stored_value(&tensors[0], k));
        assert_int_equal(ln_file_find(file, "v")->type, LINNET_BF16);
        linnet_file_close(file);
        strcat(name, "w");
    }
}

static void test_shards(void **state) {
    (void)state;
    static const stored first[] = {{"model.embed_tokens.weight", "F32", 10, 8}};
    static const stored second[] = {{"model.norm.weight", "F32", 8, 0}, {"lm_head.weight", "BF16", 10, 8}};
    write_text_file(folder, "config.json", "{" SIZES "\"model_type\":\"llama\"}");
    write_stored(folder, "a.safetensors", first, 1);
    write_stored(folder, "b.safetensors", second, 2);
    linnet_file *file = open_folder(); /* without an index: all of them */
    assert_int_equal(linnet_file_tensors(file), 3);
    linnet_file_close(file);
    write_text_file(folder, "model.safetensors.index.json",
                    "{\"weight_map\":{\"lm_head.weight\":\"b.safetensors\",\"model.norm.weight\":\"b.safetensors\","
                    "\"model.embed_tokens.weight\":\"a.safetensors\"}}");
    file = open_folder();
    assert_int_equal(linnet_file_tensors(file), 3);
    assert_non_null(ln_file_find(file, "output.weight"));
    linnet_file_close(file);
    static const char *const bad[][2] = {
        {"{\"weight_map\":{\"model.norm.weight\":\"a.safetensors\"}}", "'model.norm.weight' of the index"},
        {"{\"weight_map\":{\"model.norm.weight\":\"../a.safetensors\"}}", "not in a plain file"},
        {"{\"weight_map\":{\"model.norm.weight\":\"c.safetensors\"}}", "c.safetensors"},
        {"{\"weight_map\":{}}", "no \"weight_map\""},
        {"{\"weight_map\":[]}", "no \"weight_map\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text_file(folder, "model.safetensors.index.json", bad[i][0]);
        assert_int_not_equal(linnet_file_open(context, folder, &file), LINNET_OK);
        if (!strstr(linnet_last_error(context), bad[i][1])) fail_msg("%s", linnet_last_error(context));
    }
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    unlink(path);
    write_stored(folder, "b.safetensors", first, 1);
    assert_int_equal(linnet_file_open(context, folder, &file), LINNET_ERROR_FORMAT);
    assert_non_null(strstr(linnet_last_error(context), "'token_embd.weight' twice"));
}

/* ---- bad folders and files ---- */

static const struct bad_config {
    const char *config;
    linnet_status status;
    const char *says;
} bad_configs[] = {
    {"{", LINNET_ERROR_FORMAT, "config.json: the JSON is damaged in line 1"},
    {"[]", LINNET_ERROR_FORMAT, "no object"},
    {"", LINNET_ERROR_FORMAT, "damaged"},
    {"{}", LINNET_ERROR_FORMAT, "no \"model_type\""},
    {"{\"model_type\":\"llama\",\"model_type\":\"llama\"}", LINNET_ERROR_FORMAT, "duplicate"},
    {"{\"model_type\":\"a\\u001bb\"}", LINNET_ERROR_FORMAT, "no \"model_type\""},
    {"{\"model_type\":\"llama\"}", LINNET_ERROR_FORMAT, "lacks \"hidden_size\""},
    {"{" SIZES "\"model_type\":\"llama\",\"head_dim\":3}", LINNET_ERROR_FORMAT, "3 values of a head"},
    {"{\"hidden_size\":8.5,\"model_type\":\"llama\"}", LINNET_ERROR_FORMAT, "\"hidden_size\" is 8.5"},
    {"{\"hidden_size\":-8,\"model_type\":\"llama\"}", LINNET_ERROR_FORMAT, "\"hidden_size\" is -8"},
    {"{\"hidden_size\":1e18,\"model_type\":\"llama\"}", LINNET_ERROR_FORMAT, "\"hidden_size\" is 1e+18"},
    {"{" SIZES "\"model_type\":\"llama\",\"hidden_act\":\"relu\"}", LINNET_ERROR_UNSUPPORTED, "'relu'"},
    {"{" SIZES "\"model_type\":\"llama\",\"quantization_config\":{}}", LINNET_ERROR_UNSUPPORTED, "quantised"},
    {"{" SIZES "\"model_type\":\"llama\",\"rope_theta\":-1}", LINNET_ERROR_FORMAT, "\"rope_theta\" is -1"},
    {"{" SIZES "\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"dynamic\"}}", LINNET_ERROR_UNSUPPORTED,
     "'dynamic'"},
    {"{" SIZES "\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\"}}", LINNET_ERROR_FORMAT, "\"factor\""},
    {"{" SIZES "\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"llama3\",\"low_freq_factor\":4}}",
     LINNET_ERROR_FORMAT, "high_freq_factor"},
    {"{" SIZES "\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"su\",\"long_factor\":[1]}}", LINNET_ERROR_FORMAT,
     "\"long_factor\" is no list of 2"},
    {"{" SIZES "\"model_type\":\"gemma2\",\"layer_types\":[\"full_attention\"]}", LINNET_ERROR_FORMAT, "1 of 4 layers"},
    {"{" SIZES "\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\",\"linear_attention\",1,1]}",
     LINNET_ERROR_UNSUPPORTED, "layer 1 is of the type 'linear_attention'"},
};

static void test_bad_configs(void **state) {
    (void)state;
    write_stored(folder, "model.safetensors", NULL, 0);
    const uint64_t before = linnet_memory_used(context);
    linnet_file *file;
    assert_int_equal(linnet_file_open(context, folder, &file), LINNET_ERROR_FILE);
    assert_non_null(strstr(linnet_last_error(context), "no config.json"));
    for (size_t i = 0; i < sizeof bad_configs / sizeof *bad_configs; i++) {
        write_text_file(folder, "config.json", bad_configs[i].config);
        const linnet_status status = linnet_file_open(context, folder, &file);
        const char *error = linnet_last_error(context);
        if (status != bad_configs[i].status || !strstr(error, bad_configs[i].says) || !strstr(error, folder))
            fail_msg("row %zu: %s, '%s' instead of '%s'", i, linnet_status_name(status), error, bad_configs[i].says);
        assert_int_equal(linnet_memory_used(context), before);
    }
}

/* A header, and 32 bytes of data after it. */
static const struct bad_header {
    const char *header;
    linnet_status status;
    const char *says;
} bad_headers[] = {
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[4,36]}}", LINNET_ERROR_FORMAT, "the 32 bytes of data"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[-4,28]}}", LINNET_ERROR_FORMAT, "data_offsets"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[32,0]}}", LINNET_ERROR_FORMAT, "data_offsets"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32.0]}}", LINNET_ERROR_FORMAT, "data_offsets"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,16]}}", LINNET_ERROR_FORMAT, "its shape needs 32"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT,
     "dimension 1"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT, "dimension 0"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":8,\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT, "no shape"},
    {"{\"w\":{\"dtype\":\"Q7\",\"shape\":[8],\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT, "dtype 'Q7'"},
    {"{\"w\":{\"shape\":[8],\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT, "dtype ''"},
    {"{\"w\":7}", LINNET_ERROR_FORMAT, "'w' has the dtype ''"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
     "\"v\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[12,28]}}",
     LINNET_ERROR_FORMAT, "share the bytes at 12"},
    {"{\"w\":{},\"w\":{}}", LINNET_ERROR_FORMAT, "duplicate"},
    {"{\"w\\u0007\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]}}", LINNET_ERROR_FORMAT, "control"},
    {"{\"w\":", LINNET_ERROR_FORMAT, "damaged in line 1"},
};

static void test_bad_headers(void **state) {
    (void)state;
    const uint64_t before = linnet_memory_used(context);
    char path[128], text[1024];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    linnet_file *file;
    for (size_t i = 0; i < sizeof bad_headers / sizeof *bad_headers; i++) {
        const uint64_t length = strlen(bad_headers[i].header);
        memset(text, 0, sizeof text);
        memcpy(text, &length, 8);
        memcpy(text + 8, bad_headers[i].header, (size_t)length);
        FILE *out = fopen(path, "wb");
        fwrite(text, 1, (size_t)length + 8 + 32, out);
        fclose(out);
        const linnet_status status = linnet_file_open(context, path, &file);
        const char *error = linnet_last_error(context);
        if (status != bad_headers[i].status || !strstr(error, bad_headers[i].says) || !strstr(error, path))
            fail_msg("row %zu: %s, '%s' instead of '%s'", i, linnet_status_name(status), error, bad_headers[i].says);
        assert_int_equal(linnet_memory_used(context), before);
    }
    FILE *out = fopen(path, "wb");
    fwrite("\xff\xff\xff\xff\xff\xff\xff\xff{}", 1, 10, out);
    fclose(out);
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_ERROR_FORMAT);
    assert_non_null(strstr(linnet_last_error(context), "runs past the end"));
}

static void test_strange_weights(void **state) {
    (void)state;
    linnet_file *file;
    write_text_file(folder, "config.json", "{" SIZES "\"model_type\":\"llama\"}");
    const stored tensor = {"model.layers.0.mlp.experts.0.w1.weight", "F32", 2, 2};
    write_stored(folder, "model.safetensors", &tensor, 1);
    assert_int_equal(linnet_file_open(context, folder, &file), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(context), tensor.name));
    write_text_file(folder, "config.json", "{" SIZES "\"model_type\":\"mamba-9\"}");
    file = open_folder(); /* an unknown architecture can be looked at */
    assert_non_null(ln_file_find(file, tensor.name));
    linnet_file_close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_configs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rope_tensors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_tokenizer_texts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unaligned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_shards, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_configs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_headers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_strange_weights, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
