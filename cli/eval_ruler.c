/* Owns: RULER's eleven tasks that need no data: needles in haystacks, variables, common and frequent words. The needle
 * sentences, the haystacks and the numbers of everything are as published, the instructions are worded anew. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

/* ---- needles ---- */

enum { NOISE, PROSE, NEEDLES };    /* haystacks */
enum { WORD, NUMBER, IDENTIFIER }; /* kinds of keys and values */
enum { MOST_NEEDLES = 4, VALUE_BYTES = 48 };

static const struct niah {
    int haystack, key, value, keys, values, queries;
} niahs[] = {{NOISE, WORD, NUMBER, 1, 1, 1},     {PROSE, WORD, NUMBER, 1, 1, 1},
             {PROSE, WORD, IDENTIFIER, 1, 1, 1}, {PROSE, WORD, NUMBER, 4, 1, 1},
             {NEEDLES, WORD, NUMBER, 1, 1, 1},   {NEEDLES, IDENTIFIER, IDENTIFIER, 1, 1, 1},
             {PROSE, WORD, NUMBER, 1, 4, 1},     {PROSE, WORD, NUMBER, 4, 1, 4}};
static const char *const kinds[] = {"word", "number", "uuid"};

static void hexadecimal(eval_draft *draft, char *text, int digits) {
    for (int i = 0; i < digits; i++) text[i] = "0123456789abcdef"[eval_below(draft, 16)];
}

/* Version 4, as RFC 9562 writes it. */
static void identifier(eval_draft *draft, char text[VALUE_BYTES]) {
    memcpy(text, "00000000-0000-4000-8000-000000000000", 37);
    hexadecimal(draft, text, 8);
    hexadecimal(draft, text + 9, 4);
    hexadecimal(draft, text + 15, 3);
    text[19] = "89ab"[eval_below(draft, 4)];
    hexadecimal(draft, text + 20, 3);
    hexadecimal(draft, text + 24, 12);
}

static void make_value(eval_draft *draft, int kind, char text[VALUE_BYTES]) {
    if (kind == WORD)
        snprintf(text, VALUE_BYTES, "%s-%s", eval_adjectives[eval_below(draft, EVAL_ADJECTIVES)],
                 eval_nouns[eval_below(draft, EVAL_NOUNS)]);
    else if (kind == NUMBER)
        snprintf(text, VALUE_BYTES, "%ld", 1000000 + (long)eval_below(draft, 9000000));
    else
        identifier(draft, text);
}

static void put_needle(eval_draft *draft, cli_buffer *text, int kind, const char *key, const char *value) {
    eval_put(draft, text, "One of the special magic %ss for %s is: %s.", kinds[kind], key, value);
}

/* Any other needle: with the key of a real one it would be a second truth. */
static void needle_unit(eval_draft *draft, int64_t i) {
    (void)i;
    const struct niah *niah = &niahs[draft->task->variant];
    char key[VALUE_BYTES], value[VALUE_BYTES];
    const char *asked = draft->item->question[0].text.data;
    do {
        make_value(draft, niah->key, key);
    } while (asked && strstr(asked, key));
    make_value(draft, niah->value, value);
    put_needle(draft, &draft->item->text, niah->value, key, value);
    eval_put(draft, &draft->item->text, "\n");
}

static bool anywhere(const eval_draft *draft, int64_t i) {
    (void)draft, (void)i;
    return true;
}

typedef char value_text[VALUE_BYTES];

/* Keys differ from one another. */
static void make_keys(eval_draft *draft, int kind, int count, value_text *keys) {
    for (int i = 0; i < count; i++) {
        bool again = true;
        while (again) {
            make_value(draft, kind, keys[i]);
            again = false;
            for (int k = 0; k < i; k++) again |= !strcmp(keys[k], keys[i]);
        }
    }
}

static void ask_needles(eval_draft *draft, const struct niah *niah, value_text *keys, value_text *values) {
    cli_buffer list = {0};
    for (int i = 0; i < niah->queries; i++)
        eval_put(draft, &list, "%s%s", !i ? "" : i + 1 < niah->queries ? ", " : ", and ", keys[i]);
    const bool many = niah->queries * niah->values > 1;
    const char *kind = kinds[niah->value];
    eval_question *question =
        many ? eval_ask(draft, "\nWhat are all the special magic %ss for %s mentioned in the text above?", kind,
                        list.data)
             : eval_ask(draft, "\nWhat is the special magic %s for %s mentioned in the text above?", kind, list.data);
    eval_put(draft, &question->begin, "The special magic %s%s for %s mentioned in the text above %s", kind,
             many ? "s" : "", list.data, many ? "are" : "is");
    for (int i = 0; i < niah->queries * niah->values; i++) eval_answer(draft, question, "%s", values[i]);
    cli_buffer_free(&list);
}

void eval_make_niah(eval_draft *draft) {
    const struct niah *niah = &niahs[draft->task->variant];
    const int count = niah->keys * niah->values;
    value_text keys[MOST_NEEDLES], values[MOST_NEEDLES];
    cli_buffer needles[MOST_NEEDLES] = {{0}};
    make_keys(draft, niah->key, niah->keys, keys);
    make_keys(draft, niah->value, count, values);
    ask_needles(draft, niah, keys, values);
    int64_t order[MOST_NEEDLES] = {0, 1, 2, 3};
    eval_shuffle(draft, order, count);
    for (int i = 0; i < count; i++) {
        const int64_t n = order[i];
        put_needle(draft, &needles[i], niah->value, keys[n / niah->values], values[n]);
        eval_put(draft, &needles[i], niah->haystack == PROSE ? " " : "\n");
    }
    eval_put(draft, &draft->item->text,
             "Special magic %ss are hidden within the following text. Remember them: you will be asked about them "
             "afterwards.\n",
             kinds[niah->value]);
    const eval_haystack all_needles = {needle_unit, anywhere, 0, 0};
    const eval_haystack hay = niah->haystack == NOISE   ? eval_noise
                              : niah->haystack == PROSE ? eval_prose(draft)
                                                        : all_needles;
    eval_hide(draft, &hay, needles, count);
    for (int i = 0; i < count; i++) cli_buffer_free(&needles[i]);
}

/* ---- variables ---- */

enum { HOPS = 4, NAMES = HOPS + 1, MOST_CHAINS = 5 };
typedef char variable[6];

static void make_variable_names(eval_draft *draft, variable *names, int count) {
    for (int i = 0; i < count; i++) {
        bool again = true;
        while (again) {
            for (int k = 0; k < 5; k++) names[i][k] = (char)('A' + eval_below(draft, 26));
            names[i][5] = 0;
            again = false;
            for (int k = 0; k < i; k++) again |= !strcmp(names[k], names[i]);
        }
    }
}

static void ask_chain(eval_draft *draft, variable *names, long value) {
    eval_question *question =
        eval_ask(draft, "\nFind all variables that are assigned the value %ld in the text above.", value);
    eval_put(draft, &question->begin,
             "By the chains of assignments in the text above, %d variables are assigned the value %ld, they are:",
             NAMES, value);
    for (int i = 0; i < NAMES; i++) eval_answer(draft, question, "%s", names[i]);
}

/* Variant 0: one chain, after an example. Variant 1: as many chains as may be asked, one after the other. Assignments
 * of a chain stand in their order. */
void eval_make_variables(eval_draft *draft) {
    const int chains = draft->task->variant ? MOST_CHAINS : 1;
    variable names[(MOST_CHAINS + 1) * NAMES];
    make_variable_names(draft, names, (chains + 1) * NAMES);
    int64_t values[MOST_CHAINS + 1], turn[MOST_CHAINS * NAMES];
    eval_pick(draft, 90000, values, chains + 1);
    eval_shuffle(draft, values, chains + 1);
    for (int i = 0; i < chains * NAMES; i++) turn[i] = i / NAMES;
    eval_shuffle(draft, turn, chains * NAMES);
    cli_buffer needles[MOST_CHAINS * NAMES] = {{0}};
    int next[MOST_CHAINS] = {0};
    for (int i = 0; i < chains * NAMES; i++) {
        variable *chain = names + turn[i] * NAMES;
        const int n = next[turn[i]]++;
        if (n)
            eval_put(draft, &needles[i], "VAR %s = VAR %s\n", chain[n], chain[n - 1]);
        else
            eval_put(draft, &needles[i], "VAR %s = %ld\n", chain[0], 10000 + (long)values[turn[i]]);
    }
    eval_put(draft, &draft->item->text,
             "Remember the chains of variable assignments that are hidden in the following text.\n");
    if (chains == 1) {
        const long value = 10000 + (long)values[chains];
        variable *example = names + chains * NAMES;
        eval_put(draft, &draft->item->text, "An example first. VAR %s = %ld. ", example[0], value);
        for (int i = 1; i < NAMES; i++)
            eval_put(draft, &draft->item->text, "VAR %s = VAR %s. ", example[i], example[i - 1]);
        eval_put(draft, &draft->item->text, "The variables that are assigned the value %ld are:", value);
        for (int i = 0; i < NAMES; i++) eval_put(draft, &draft->item->text, " %s", example[i]);
        eval_put(draft, &draft->item->text, ". Here the text begins.\n");
    }
    eval_hide(draft, &eval_noise, needles, chains * NAMES);
    for (int i = 0; i < chains * NAMES; i++) cli_buffer_free(&needles[i]);
    for (int i = 0; i < chains; i++) ask_chain(draft, names + i * NAMES, 10000 + (long)values[i]);
}

/* ---- words ---- */

enum { COMMON = 10 };

/* `words` numbered words: ten of them `often` times, the others `seldom` times. */
static void put_list(eval_draft *draft, const int64_t *vocabulary, int64_t words, int often, int seldom) {
    int64_t *list = eval_allocate(draft, words, sizeof *list);
    if (!list) return;
    for (int64_t i = 0; i < words; i++)
        list[i] = vocabulary[i < COMMON * often ? i / often : COMMON + (i - COMMON * often) / seldom];
    eval_shuffle(draft, list, words);
    char word[16];
    for (int64_t i = 0; i < words; i++) {
        eval_word(list[i], word);
        eval_put(draft, &draft->item->text, "%lld. %s ", (long long)i + 1, word);
    }
    free(list);
}

void eval_make_common_words(eval_draft *draft) {
    const bool brief = draft->length < 4096;
    const int often = brief ? 6 : 30, seldom = brief ? 1 : 3;
    enum { EXAMPLE = 40 };
    const int64_t words = COMMON * often + draft->size * seldom;
    const int64_t count = COMMON + draft->size + EXAMPLE;
    int64_t *vocabulary = eval_allocate(draft, count, sizeof *vocabulary);
    if (!vocabulary) return;
    for (int64_t i = 0; i < count; i++) vocabulary[i] = i;
    eval_shuffle(draft, vocabulary, count);
    cli_buffer *text = &draft->item->text;
    char word[16];
    eval_put(draft, text,
             "Here are numbered lists of words. Some words of a list appear more often than the others. Remember those "
             "that appear most often.\n");
    put_list(draft, vocabulary + COMMON + draft->size, COMMON * 3 + EXAMPLE - COMMON, 3, 1);
    eval_put(draft, text, "\nThe 10 most common words of this list are:");
    for (int i = 0; i < COMMON; i++) {
        eval_word(vocabulary[COMMON + draft->size + i], word);
        eval_put(draft, text, " %d. %s", i + 1, word);
    }
    eval_put(draft, text, "\nThe next list:\n");
    put_list(draft, vocabulary, words, often, seldom);
    eval_question *question = eval_ask(draft, "\nWhat are the 10 most common words of the last list?");
    eval_put(draft, &question->begin, "The 10 most common words of this list are:");
    for (int i = 0; i < COMMON; i++) {
        eval_word(vocabulary[i], word);
        eval_answer(draft, question, "%s", word);
    }
    free(vocabulary);
}

/* Word of rank k = 1, 2, ... stands words / (k^2 zeta(2)) times; that of rank 1 is written as dots and not asked for.
 */
void eval_make_frequent_words(eval_draft *draft) {
    static const double zeta = 1.6449340668482264;
    const int64_t most = draft->length / 50 + 4;
    int64_t *list = eval_allocate(draft, draft->size + most, sizeof *list);
    char(*words)[8] = eval_allocate(draft, most, sizeof *words);
    int64_t count = 0, ranks = 0;
    for (; list && words && ranks < most; ranks++) {
        for (int i = 0; i < 6; i++) words[ranks][i] = (char)('a' + eval_below(draft, 26));
        const int64_t times = (int64_t)((double)draft->size / ((double)((ranks + 1) * (ranks + 1)) * zeta));
        if (!times && ranks > 3) break;
        for (int64_t i = 0; i < (times ? times : 1); i++) list[count++] = ranks;
    }
    if (!draft->failed) {
        eval_shuffle(draft, list, count);
        eval_put(draft, &draft->item->text,
                 "Read the following coded text and count how often each coded word appears; the dots are no word.\n");
        for (int64_t i = 0; i < count; i++)
            eval_put(draft, &draft->item->text, "%s ", list[i] ? words[list[i]] : "...");
        eval_question *question =
            eval_ask(draft, "\nWhat are the three words that appear most often in the coded text above?");
        eval_put(draft, &question->begin, "The three words that appear most often are:");
        for (int i = 1; i <= 3; i++) eval_answer(draft, question, "%s", words[i]);
    }
    free(list);
    free(words);
}
