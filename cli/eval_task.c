/* Owns: the table of tasks, and how an item is drafted: from a seed, fitted to a length.
 *
 * The numbers of a draft come from POSIX's nrand48, seeded by a mix of seed, task, length and document number, so the
 * same command asks the same on every machine. A document of text is fitted by its number of units: drafting starts
 * over with the same numbers at each size, and the largest size whose document, longest question and answer fit is
 * kept. */
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

static const char *const rooms[] = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office", NULL};
static const char *const given[] = {"Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk", NULL};
static const char *const yes_no[] = {"yes", "no", NULL};
static const char *const counts[] = {"none", "one", "two", "three", NULL};
static const char *const carried[] = {"apple", "football", "milk", "nothing", NULL};
static const char *const yes_no_maybe[] = {"yes", "no", "maybe", NULL};

#define RULER "RULER (arXiv 2404.06654)"
#define SCBENCH "SCBench (arXiv 2412.10319)"
#define BABILONG "BABILong (arXiv 2406.10149)"

#define NIAH(name_, summary_, variant_)                                                                               \
    {                                                                                                                 \
        .name = name_, .group = "ruler", .summary = summary_, .origin = RULER, .rule = EVAL_MATCH_ALL, .answer = 128, \
        .make = eval_make_niah, .variant = variant_                                                                   \
    }
#define FACTS(number_, summary_, labels_)                                                                        \
    {                                                                                                            \
        .name = "qa" #number_, .group = "babilong", .summary = summary_, .origin = BABILONG, .rule = EVAL_LABEL, \
        .answer = 15, .make = eval_make_facts, .variant = number_, .labels = labels_                             \
    }
#define SYMBOLS(name_, group_, summary_, origin_, make_, variant_, symbols_)                          \
    {                                                                                                 \
        .name = name_, .group = group_, .summary = summary_, .origin = origin_, .form = EVAL_SYMBOLS, \
        .rule = EVAL_TOKENS, .make = make_, .variant = variant_, .symbols = symbols_                  \
    }

const eval_task eval_tasks[] = {
    {.name = "recall",
     .group = "recall",
     .summary = "ten facts planted in prose, a question about each",
     .origin = "the form that the built-in model was trained with",
     .form = EVAL_IDS,
     .rule = EVAL_EXACT,
     .answer = 16,
     .make = eval_make_recall},
    {.name = "kld",
     .group = "fidelity",
     .summary = "divergence, most likely token and perplexity against the full float16 cache, on any text",
     .origin = "llama.cpp's perplexity --kl-divergence",
     .form = EVAL_MEASURE},
    {.name = "passkey",
     .group = "passkey",
     .summary = "a number in repeated sentences",
     .origin = "Landmark Attention (arXiv 2305.16300)",
     .rule = EVAL_INTEGER,
     .answer = 16,
     .make = eval_make_passkey},
    NIAH("niah_single_1", "a number for a word, in repeated sentences", 0),
    NIAH("niah_single_2", "a number for a word, in prose", 1),
    NIAH("niah_single_3", "an identifier for a word, in prose", 2),
    NIAH("niah_multikey_1", "a number for one of four words, in prose", 3),
    NIAH("niah_multikey_2", "a number for one of many words", 4),
    NIAH("niah_multikey_3", "an identifier for one of many identifiers", 5),
    NIAH("niah_multivalue", "four numbers for a word, in prose", 6),
    NIAH("niah_multiquery", "numbers for four words, in prose", 7),
    {.name = "vt",
     .group = "ruler",
     .summary = "variables that were assigned from one another",
     .origin = RULER,
     .rule = EVAL_MATCH_ALL,
     .answer = 30,
     .make = eval_make_variables},
    {.name = "cwe",
     .group = "ruler",
     .summary = "the ten most common words of a list",
     .origin = RULER,
     .rule = EVAL_MATCH_ALL,
     .answer = 120,
     .make = eval_make_common_words},
    {.name = "fwe",
     .group = "ruler",
     .summary = "the three most frequent words of coded text",
     .origin = RULER,
     .rule = EVAL_MATCH_ALL,
     .answer = 50,
     .make = eval_make_frequent_words},
    {.name = "sc_kv",
     .group = "scbench",
     .summary = "random keys and values, five asked",
     .origin = SCBENCH,
     .rule = EVAL_MATCH_ALL,
     .answer = 80,
     .make = eval_make_pairs},
    {.name = "sc_prefix_suffix",
     .group = "scbench",
     .summary = "random texts, five asked by beginning and end",
     .origin = SCBENCH,
     .rule = EVAL_MATCH_ALL,
     .answer = 80,
     .make = eval_make_prefix_suffix},
    {.name = "sc_vt",
     .group = "scbench",
     .summary = "several chains of variables, all asked",
     .origin = SCBENCH,
     .rule = EVAL_MATCH_ALL,
     .answer = 40,
     .make = eval_make_variables,
     .variant = 1},
    {.name = "sc_mf",
     .group = "scbench",
     .summary = "largest, smallest and middle number of a list",
     .origin = SCBENCH,
     .rule = EVAL_INTEGER,
     .answer = 16,
     .make = eval_make_numbers},
    {.name = "sc_hashhop",
     .group = "scbench",
     .summary = "chains of random texts, followed some steps",
     .origin = SCBENCH,
     .rule = EVAL_MATCH_ALL,
     .answer = 60,
     .make = eval_make_hops},
    FACTS(1, "where a person is, from one fact", rooms),
    FACTS(2, "where a thing is, from two facts", rooms),
    FACTS(3, "where a thing was before, from three facts", rooms),
    FACTS(4, "what lies in which direction", rooms),
    FACTS(5, "who gave what to whom", given),
    FACTS(6, "whether a person is in a room", yes_no),
    FACTS(7, "how many things a person carries", counts),
    FACTS(8, "what a person carries", carried),
    FACTS(9, "whether a person is in a room, with negations", yes_no),
    FACTS(10, "whether a person is in a room, with either and or", yes_no_maybe),
    SYMBOLS("mqar", "symbols", "values for keys, each seen once as a pair", "Zoology (arXiv 2312.04927)",
            eval_make_associative, 0, 64),
    SYMBOLS("copy", "symbols", "the whole document once more", "Repeat After Me (arXiv 2402.01032)", eval_make_copy, 0,
            33),
    SYMBOLS("reverse_copy", "symbols", "the whole document backwards", "Long Range Arena's kin; own form",
            eval_make_copy, 1, 33),
    SYMBOLS("induction", "symbols", "what followed a symbol where it stood once",
            "In-context Learning and Induction Heads (arXiv 2209.11895)", eval_make_induction, 0, 64),
    SYMBOLS("selective_copy", "symbols", "sixteen symbols among many blanks", "Mamba (arXiv 2312.00752)",
            eval_make_selective, 0, 18),
    SYMBOLS("icl", "languages", "strings of a random automaton, the next symbol each",
            "In-Context Language Learning (arXiv 2401.12973)", eval_make_language, 0, 19),
    SYMBOLS("s5", "state", "the product of permutations of five", "The Illusion of State (arXiv 2404.08819)",
            eval_make_permutations, 0, 121),
    SYMBOLS("a5", "state", "the product of even permutations of five", "The Illusion of State (arXiv 2404.08819)",
            eval_make_permutations, 1, 61),
    SYMBOLS("parity", "state", "the sum of bits modulo 2", "The Illusion of State (arXiv 2404.08819)",
            eval_make_modular, 2, 3),
    SYMBOLS("modular", "state", "the sum of numbers modulo 7", "own form", eval_make_modular, 7, 8),
    SYMBOLS("dyck", "state", "the brackets that are still to be closed, of two kinds",
            "Hewitt et al. (arXiv 2010.07515)", eval_make_brackets, 2, 4),
    {0}};

/* ---- choosing ---- */

static bool choose_word(const char *word, const eval_task **chosen, int *count) {
    bool found = false;
    for (const eval_task *task = eval_tasks; task->name; task++) {
        const bool meant = !strcmp(word, "all") || !strcmp(word, task->name) || !strcmp(word, task->group);
        bool there = false;
        for (int i = 0; i < *count; i++) there |= chosen[i] == task;
        found |= meant;
        if (meant && !there) chosen[(*count)++] = task;
    }
    return found;
}

bool eval_choose(const char *words, const eval_task **chosen, int *count, char *wrong, size_t room) {
    *count = 0;
    for (;;) {
        const size_t bytes = strcspn(words, ",");
        snprintf(wrong, room, "%.*s", (int)bytes, words);
        if (bytes >= room || !choose_word(wrong, chosen, count)) return false;
        if (!words[bytes]) return true;
        words += bytes + 1;
    }
}

/* ---- helps for generators ---- */

int64_t eval_below(eval_draft *draft, int64_t n) {
    return n > 0 ? nrand48(draft->state) % n : 0;
}

double eval_unit(eval_draft *draft) {
    return (double)nrand48(draft->state) / 2147483648.0;
}

void eval_shuffle(eval_draft *draft, int64_t *values, int64_t count) {
    for (int64_t i = 0; i + 1 < count; i++) {
        const int64_t j = i + eval_below(draft, count - i), value = values[i];
        values[i] = values[j];
        values[j] = value;
    }
}

static int ascending(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Floyd's choice: value j of the last `count`, or j itself where that was taken. */
void eval_pick(eval_draft *draft, int64_t n, int64_t *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t j = n - count + i;
        values[i] = eval_below(draft, j + 1);
        for (int64_t k = 0; k < i; k++)
            if (values[k] == values[i]) {
                values[i] = j;
                break;
            }
    }
    qsort(values, (size_t)count, sizeof *values, ascending);
}

void *eval_allocate(eval_draft *draft, int64_t count, size_t bytes) {
    void *block = calloc((size_t)(count > 0 ? count : 1), bytes);
    if (!block) draft->failed = true;
    return block;
}

static void put(eval_draft *draft, cli_buffer *text, const char *format, va_list arguments) {
    char line[2048];
    const int bytes = vsnprintf(line, sizeof line, format, arguments);
    if (bytes < 0 || (size_t)bytes >= sizeof line || !cli_append(text, line, (size_t)bytes)) draft->failed = true;
}

void eval_put(eval_draft *draft, cli_buffer *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    put(draft, text, format, arguments);
    va_end(arguments);
}

/* Room doubles where the count is a power of two. */
void eval_push(eval_draft *draft, cli_ids *ids, int64_t id) {
    if (!(ids->count & (ids->count - 1))) {
        int32_t *grown = realloc(ids->id, (size_t)(ids->count ? 2 * ids->count : 1) * sizeof *grown);
        if (!grown) {
            draft->failed = true;
            return;
        }
        ids->id = grown;
    }
    ids->id[ids->count++] = (int32_t)id;
}

eval_question *eval_ask(eval_draft *draft, const char *format, ...) {
    eval_item *item = draft->item;
    eval_question *question = &item->question[item->questions++];
    question->baseline = question->ceiling = -1;
    va_list arguments;
    va_start(arguments, format);
    put(draft, &question->text, format, arguments);
    va_end(arguments);
    return question;
}

void eval_answer(eval_draft *draft, eval_question *question, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    put(draft, &question->answers, format, arguments);
    va_end(arguments);
    if (!cli_append(&question->answers, "", 1)) draft->failed = true;
}

/* ---- haystacks ---- */

void eval_hide(eval_draft *draft, const eval_haystack *hay, const cli_buffer *needles, int count) {
    cli_buffer *text = &draft->item->text;
    int64_t place[64];
    if (hay->depths >= count && hay->depths <= 64) {
        eval_pick(draft, hay->depths, place, count);
        for (int i = 0; i < count; i++) place[i] = place[i] * draft->size / (hay->depths - 1);
    } else {
        for (int i = 0; i < count; i++) place[i] = eval_below(draft, draft->size + 1);
        qsort(place, (size_t)count, sizeof *place, ascending);
    }
    int next = 0;
    for (int64_t i = 0; i < draft->size; i++) {
        while (next < count && place[next] <= i && hay->cut(draft, hay->first + i))
            eval_put(draft, text, "%s", needles[next++].data);
        hay->unit(draft, hay->first + i);
    }
    while (next < count) eval_put(draft, text, "%s", needles[next++].data);
}

static void word_unit(eval_draft *draft, int64_t i) {
    const eval_source *source = draft->source;
    const char *word = source->prose.data + source->word[i % source->words];
    eval_put(draft, &draft->item->text, "%.*s ", (int)strcspn(word, " \n\t\r"), word);
}

static bool after_sentence(const eval_draft *draft, int64_t i) {
    (void)i;
    const cli_buffer *text = &draft->item->text;
    return text->bytes < 2 || strchr(".!?", text->data[text->bytes - 2]);
}

eval_haystack eval_prose(eval_draft *draft) {
    return (eval_haystack){word_unit, after_sentence, eval_below(draft, draft->source->words), 40};
}

static void noise_unit(eval_draft *draft, int64_t i) {
    static const char *const noise[] = {"The grass is green. ", "The sky is blue. ", "The sun is yellow. ",
                                        "Here we go. ", "There and back again.\n"};
    eval_put(draft, &draft->item->text, "%s", noise[i % 5]);
}

static bool after_line(const eval_draft *draft, int64_t i) {
    (void)draft;
    return i % 5 == 0;
}

const eval_haystack eval_noise = {noise_unit, after_line, 0, 0};

/* ---- sources ---- */

static int read_prose(const char *file, eval_source *source) {
    char path[PATH_MAX];
    if (!file && !cli_shared_file("document.txt", path, sizeof path))
        return cli_error("share/linnet/document.txt is not installed beside this program; name a text with -f FILE");
    int status = cli_read(file ? file : path, &source->prose);
    if (status != CLI_OK) return status;
    if (strlen(source->prose.data) < source->prose.bytes) return cli_error("%s holds a zero byte: it is no text", file);
    const cli_engine *engine = source->engine;
    status = cli_tokenize_text(engine->context, engine->tokenizer, source->prose.data, source->prose.bytes, 0,
                               &source->text_ids);
    if (status != CLI_OK) return status;
    eval_keep_prose(&source->prose);
    const char *text = source->prose.data;
    source->word = malloc((source->prose.bytes / 2 + 2) * sizeof *source->word);
    if (!source->word) return cli_error("not enough memory for the words of the prose");
    for (size_t at = strspn(text, " \n\t\r"); text[at]; at += strspn(text + at, " \n\t\r")) {
        source->word[source->words++] = at;
        at += strcspn(text + at, " \n\t\r");
    }
    return CLI_OK;
}

/* A word of the language that is one token, a blank before it: what symbols look like in text. */
static bool is_word(const linnet_tokenizer *tokenizer, int32_t id) {
    size_t bytes = 0;
    const char *text = linnet_token_bytes(tokenizer, id, &bytes);
    if (!text || bytes < 4 || bytes > 10 || text[0] != ' ' || linnet_token_is_special(tokenizer, id)) return false;
    for (size_t i = 1; i < bytes; i++)
        if (text[i] < 'a' || text[i] > 'z') return false;
    return true;
}

static int choose_symbols(const cli_engine *engine, eval_source *source) {
    enum { ENOUGH = 256 };
    source->symbols = engine->info.vocabulary;
    if (!source->engine->tokenizer) return CLI_OK;
    const int64_t size = linnet_tokenizer_size(engine->tokenizer);
    source->symbol = malloc((size_t)(size > 0 ? size : 1) * sizeof *source->symbol);
    if (!source->symbol) return cli_error("not enough memory for the symbols");
    for (int words = 1; words >= 0; words--) {
        source->symbols = 0;
        for (int32_t id = 0; id < size && id < engine->info.vocabulary; id++)
            if (words ? is_word(engine->tokenizer, id) : !linnet_token_is_special(engine->tokenizer, id))
                source->symbol[source->symbols++] = id;
        if (source->symbols >= ENOUGH) break;
    }
    return CLI_OK;
}

int eval_source_open(const cli_engine *engine, const char *file, bool text, eval_source *source) {
    *source = (eval_source){.engine = engine, .begin = -1};
    int status = choose_symbols(engine, source);
    cli_ids begin = {0};
    if (status == CLI_OK && engine->tokenizer)
        status = cli_tokenize_text(engine->context, engine->tokenizer, "", 0, LINNET_TOKENIZE_BEGIN, &begin);
    if (begin.count) source->begin = begin.id[0];
    free(begin.id);
    if (status != CLI_OK || !text) return status;
    status = read_prose(file, source);
    if (status == CLI_OK)
        status = cli_tokenize_text(engine->context, engine->tokenizer, source->prose.data, source->prose.bytes, 0,
                                   &source->prose_ids);
    if (status == CLI_OK && source->prose_ids.count < 256)
        return cli_error("there is too little prose without the names used here");
    return status;
}

void eval_source_close(eval_source *source) {
    cli_buffer_free(&source->prose);
    free(source->prose_ids.id);
    free(source->text_ids.id);
    free(source->word);
    free(source->symbol);
    *source = (eval_source){0};
}

void eval_item_free(eval_item *item) {
    for (int i = 0; i < item->questions; i++) {
        eval_question *question = &item->question[i];
        cli_buffer_free(&question->text);
        cli_buffer_free(&question->begin);
        cli_buffer_free(&question->answers);
        free(question->ids.id);
        free(question->expected.id);
    }
    cli_buffer_free(&item->text);
    free(item->ids.id);
    *item = (eval_item){0};
}

/* ---- drafting ---- */

/* The finisher of splitmix64. */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static int draft_at(eval_draft *draft, uint64_t seed, int64_t number, int64_t size) {
    uint64_t x = mix(seed + 0x9e3779b97f4a7c15u);
    for (const char *c = draft->task->name; *c; c++) x = mix(x + (unsigned char)*c);
    x = mix(mix(x + (uint64_t)draft->length) + (uint64_t)number);
    for (int i = 0; i < 3; i++) draft->state[i] = (unsigned short)(x >> (16 * i));
    eval_item_free(draft->item);
    draft->size = size;
    draft->task->make(draft);
    return draft->failed ? cli_error("not enough memory for a document of %lld tokens", (long long)draft->length)
                         : CLI_OK;
}

static int count_tokens(const eval_draft *draft, const cli_buffer *text, int64_t *tokens) {
    const cli_engine *engine = draft->source->engine;
    if (linnet_tokenize(engine->tokenizer, text->data, text->bytes, 0, NULL, 0, tokens) == LINNET_OK) return CLI_OK;
    return cli_engine_fail(engine, LINNET_ERROR_ARGUMENT);
}

/* Tokens that the drafted item needs at most, the chat's own included in `form`. */
static int needed_tokens(const eval_draft *draft, int64_t form, int64_t *tokens) {
    int64_t document = 0, longest = 0;
    int status = count_tokens(draft, &draft->item->text, &document);
    for (int i = 0; status == CLI_OK && i < draft->item->questions; i++) {
        const eval_question *question = &draft->item->question[i];
        int64_t text = 0, begin = 0;
        status = count_tokens(draft, &question->text, &text);
        if (status == CLI_OK && question->begin.bytes) status = count_tokens(draft, &question->begin, &begin);
        if (text + begin > longest) longest = text + begin;
    }
    *tokens = document + longest + draft->task->answer + form;
    return status;
}

/* The largest size that fits: the next guess lies on the line through the two that bracket it. */
static int fit(eval_draft *draft, uint64_t seed, int64_t number) {
    const cli_engine *engine = draft->source->engine;
    cli_ids before = {0}, after = {0};
    int status = cli_has_template(engine) ? cli_message_parts(engine, &before, &after) : CLI_OK;
    const int64_t form = before.count + after.count + 4;
    free(before.id);
    free(after.id);
    int64_t low = 0, high = draft->length, low_tokens = 0, high_tokens = 0, tokens = 0;
    for (int64_t size = 8; status == CLI_OK && high - low > 1;) {
        status = draft_at(draft, seed, number, size);
        if (status == CLI_OK) status = needed_tokens(draft, form, &tokens);
        if (tokens <= draft->length) {
            low = size;
            low_tokens = tokens;
        } else {
            high = size;
            high_tokens = tokens;
        }
        const int64_t left = draft->length - low_tokens;
        if (!low) {
            size = high / 2;
        } else if (!high_tokens) {
            const double each = (double)low_tokens / (double)low;
            size = low + 1 + (int64_t)((double)left / each * 1.02);
        } else {
            size = low + (int64_t)((double)(high - low) * (double)left / (double)(high_tokens - low_tokens));
        }
        if (size >= high) size = high - 1;
        if (size <= low) size = low + 1;
    }
    if (status == CLI_OK && !low)
        return cli_error("%s does not fit into %lld tokens; ask for a greater length", draft->task->name,
                         (long long)draft->length);
    return status == CLI_OK ? draft_at(draft, seed, number, low) : status;
}

static void name_symbols(const eval_source *source, cli_ids *ids) {
    for (int64_t i = 0; source->symbol && i < ids->count; i++) ids->id[i] = source->symbol[ids->id[i]];
}

int eval_make(const eval_task *task, const eval_source *source, uint64_t seed, int64_t length, int64_t number,
              eval_item *item) {
    eval_draft draft = {.task = task, .source = source, .length = length, .item = item};
    if (task->form == EVAL_TEXT) return fit(&draft, seed, number);
    /* The token that begins a text. */
    if (task->form == EVAL_SYMBOLS) draft.length--;
    if (task->symbols > source->symbols)
        return cli_error("%s needs %lld symbols, and the vocabulary of the model gives %lld", task->name,
                         (long long)task->symbols, (long long)source->symbols);
    const int status = draft_at(&draft, seed, number, draft.length);
    if (status != CLI_OK || task->form != EVAL_SYMBOLS) return status;
    name_symbols(source, &item->ids);
    for (int i = 0; i < item->questions; i++) {
        name_symbols(source, &item->question[i].ids);
        name_symbols(source, &item->question[i].expected);
    }
    return status;
}
