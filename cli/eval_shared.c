/* Owns: several questions about one document that is read, and compressed, once: the tasks of SCBench that need no
 * data. What is asked for is random, so nothing of the document can be spared beforehand. */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

enum { ASKED = 5, KEY = 16, VALUE = 24 };

static void letters(eval_draft *draft, char *text, int count) {
    for (int i = 0; i < count; i++) text[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[eval_below(draft, 36)];
    text[count] = 0;
}

/* Which units are asked about, in a random order; fewer where there are fewer. */
static int pick_asked(eval_draft *draft, int64_t asked[ASKED]) {
    const int count = draft->size < ASKED ? (int)draft->size : ASKED;
    eval_pick(draft, draft->size, asked, count);
    return count;
}

static int place_of(const int64_t *asked, int count, int64_t i) {
    for (int k = 0; k < count; k++)
        if (asked[k] == i) return k;
    return -1;
}

/* ---- keys and values ---- */

void eval_make_pairs(eval_draft *draft) {
    char keys[ASKED][KEY + 1], values[ASKED][VALUE + 1], key[KEY + 1], value[VALUE + 1];
    int64_t asked[ASKED];
    const int count = pick_asked(draft, asked);
    cli_buffer *text = &draft->item->text;
    eval_put(draft, text, "A JSON object of keys and values:\n{");
    for (int64_t i = 0; i < draft->size; i++) {
        letters(draft, key, KEY);
        letters(draft, value, VALUE);
        eval_put(draft, text, "%s\"%s\": \"%s\"", i ? ",\n" : "", key, value);
        const int k = place_of(asked, count, i);
        if (k < 0) continue;
        memcpy(keys[k], key, sizeof key);
        memcpy(values[k], value, sizeof value);
    }
    eval_put(draft, text, "}\n");
    int64_t order[ASKED] = {0, 1, 2, 3, 4};
    eval_shuffle(draft, order, count);
    for (int i = 0; i < count; i++) {
        eval_question *question = eval_ask(draft, "\nWhich value belongs to the key \"%s\"?", keys[order[i]]);
        eval_put(draft, &question->begin, "The value of \"%s\" is", keys[order[i]]);
        eval_answer(draft, question, "%s", values[order[i]]);
    }
}

/* ---- beginnings and ends ---- */

/* Texts that are not asked for may begin or end like one that is, but not both. */
void eval_make_prefix_suffix(eval_draft *draft) {
    enum { PART = 6, WHOLE = PART + VALUE + PART };
    char wanted[ASKED][WHOLE + 1], line[WHOLE + 1];
    int64_t asked[ASKED];
    const int count = pick_asked(draft, asked);
    for (int k = 0; k < count; k++) letters(draft, wanted[k], WHOLE);
    cli_buffer *text = &draft->item->text;
    eval_put(draft, text, "A list of texts:\n");
    for (int64_t i = 0; i < draft->size; i++) {
        const int k = place_of(asked, count, i);
        letters(draft, line, WHOLE);
        const int64_t like = eval_below(draft, 4 * ASKED);
        if (like < count) memcpy(line, wanted[like], PART);
        if (like >= ASKED && like < ASKED + count)
            memcpy(line + WHOLE - PART, wanted[like - ASKED] + WHOLE - PART, PART);
        eval_put(draft, text, "%s\n", k < 0 ? line : wanted[k]);
    }
    int64_t order[ASKED] = {0, 1, 2, 3, 4};
    eval_shuffle(draft, order, count);
    for (int i = 0; i < count; i++) {
        const char *whole = wanted[order[i]];
        eval_question *question = eval_ask(draft, "\nWhich text of the list begins with \"%.*s\" and ends with \"%s\"?",
                                           PART, whole, whole + WHOLE - PART);
        eval_put(draft, &question->begin, "The text is");
        eval_answer(draft, question, "%s", whole);
    }
}

/* ---- numbers ---- */

static int ascending(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* An odd number of different numbers, so that there is one in the middle. */
void eval_make_numbers(eval_draft *draft) {
    const int64_t count = draft->size - (draft->size % 2 == 0), span = 20 * (count + 10);
    int64_t *numbers = eval_allocate(draft, count, sizeof *numbers);
    if (!numbers) return;
    for (int64_t i = 0; i < count; i++) numbers[i] = 10 + i * span / count + eval_below(draft, span / count);
    eval_shuffle(draft, numbers, count);
    cli_buffer *text = &draft->item->text;
    eval_put(draft, text, "A list of numbers:\n[");
    for (int64_t i = 0; i < count; i++) eval_put(draft, text, "%s%lld", i ? ", " : "", (long long)numbers[i]);
    eval_put(draft, text, "]\n");
    qsort(numbers, (size_t)count, sizeof *numbers, ascending);
    const struct {
        const char *name;
        int64_t place;
    } asked[ASKED] = {{"largest", count - 1},
                      {"smallest", 0},
                      {"second largest", count - 2},
                      {"second smallest", 1},
                      {"median", count / 2}};
    for (int i = 0; i < ASKED && count > 2; i++) {
        eval_question *question = eval_ask(draft, "\nWhich is the %s number of the list?", asked[i].name);
        eval_put(draft, &question->begin, "The %s number is", asked[i].name);
        eval_answer(draft, question, "%lld", (long long)numbers[asked[i].place]);
    }
    free(numbers);
}

/* ---- hops ---- */

enum { CHAIN = 6, HASH = 8 };
typedef char hash[HASH + 1];

/* Chains of CHAIN + 1 texts, their pairs shuffled; a question goes 1 to ASKED steps from the front of a chain. */
void eval_make_hops(eval_draft *draft) {
    const int64_t chains = (draft->size + CHAIN - 1) / CHAIN, pairs = draft->size;
    hash *texts = eval_allocate(draft, chains * (CHAIN + 1), sizeof *texts);
    int64_t *order = eval_allocate(draft, pairs, sizeof *order), asked[ASKED];
    if (!draft->failed) {
        for (int64_t i = 0; i < chains * (CHAIN + 1); i++) letters(draft, texts[i], HASH);
        for (int64_t i = 0; i < pairs; i++) order[i] = i;
        eval_shuffle(draft, order, pairs);
        eval_put(draft, &draft->item->text, "Each line leads from a text to another:\n");
        for (int64_t i = 0; i < pairs; i++) {
            const hash *from = &texts[order[i] / CHAIN * (CHAIN + 1) + order[i] % CHAIN];
            eval_put(draft, &draft->item->text, "%s => %s\n", from[0], from[1]);
        }
        const int64_t whole = pairs / CHAIN;
        const int count = whole < ASKED ? (int)whole : ASKED;
        eval_pick(draft, whole, asked, count);
        for (int i = 0; i < count; i++) {
            const hash *chain = &texts[asked[i] * (CHAIN + 1)];
            eval_question *question =
                eval_ask(draft, "\nWhere do you come from %s after %d step%s?", chain[0], i + 1, i ? "s" : "");
            eval_put(draft, &question->begin, "After %d step%s from %s you come to", i + 1, i ? "s" : "", chain[0]);
            eval_answer(draft, question, "%s", chain[i + 1]);
        }
    }
    free(texts);
    free(order);
}
