/* Owns: tasks in symbols, each of which is one token: association, copies, induction, and states that must be tracked.
 * What is expected is scored symbol by symbol, each after the right ones before it. */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

enum { END = 0 }; /* ends the document where a task needs an end; the other symbols are counted from 1 */

static eval_question *ask(eval_draft *draft) {
    return eval_ask(draft, "%s", "");
}

/* ---- association ---- */

/* Places of `count` units of two symbols in a document of `length`, each `2 * values[i] + i`... at least one apart. */
static void pick_pairs(eval_draft *draft, int64_t length, int64_t *places, int64_t count) {
    eval_pick(draft, length - count, places, count);
    for (int64_t i = 0; i < count; i++) places[i] += i;
}

/* Keys are symbols of the lower half, each once; values and what stands between the pairs, of the upper half. */
void eval_make_associative(eval_draft *draft) {
    const int64_t half = draft->source->symbols / 2, length = draft->length - 2;
    int64_t pairs = length / 16 < 256 ? length / 16 : 256;
    if (pairs > half - 1) pairs = half - 1;
    int64_t *keys = eval_allocate(draft, pairs, sizeof *keys), *values = eval_allocate(draft, pairs, sizeof *values);
    int64_t *places = eval_allocate(draft, pairs, sizeof *places);
    if (!draft->failed) {
        eval_pick(draft, half - 1, keys, pairs);
        eval_pick(draft, half, values, pairs);
        eval_shuffle(draft, keys, pairs);
        eval_shuffle(draft, values, pairs);
        pick_pairs(draft, length, places, pairs);
        cli_ids *ids = &draft->item->ids;
        for (int64_t i = 0, next = 0; i < length; i++) {
            const bool pair = next < pairs && places[next] == i;
            if (pair) {
                eval_push(draft, ids, 1 + keys[next]);
                eval_push(draft, ids, half + values[next++]);
                i++;
            } else {
                eval_push(draft, ids, half + eval_below(draft, half));
            }
        }
        int64_t asked[EVAL_QUESTIONS];
        const int64_t count = pairs < EVAL_QUESTIONS ? pairs : EVAL_QUESTIONS;
        eval_pick(draft, pairs, asked, count);
        for (int64_t i = 0; i < count; i++) {
            eval_question *question = ask(draft);
            eval_push(draft, &question->ids, 1 + keys[asked[i]]);
            eval_push(draft, &question->expected, half + values[asked[i]]);
        }
    }
    free(keys);
    free(values);
    free(places);
}

/* Symbols of the lower half at random; ten of the upper half once each, and what followed them is asked. */
void eval_make_induction(eval_draft *draft) {
    const int64_t half = draft->source->symbols / 2, length = draft->length - 2;
    int64_t places[EVAL_QUESTIONS], keys[EVAL_QUESTIONS];
    pick_pairs(draft, length, places, EVAL_QUESTIONS);
    eval_pick(draft, half, keys, EVAL_QUESTIONS);
    eval_shuffle(draft, keys, EVAL_QUESTIONS);
    for (int64_t i = 0, next = 0; i < length; i++) {
        const bool key = next < EVAL_QUESTIONS && places[next] == i;
        eval_push(draft, &draft->item->ids, key ? half + keys[next++] : 1 + eval_below(draft, half - 1));
    }
    for (int i = 0; i < EVAL_QUESTIONS && !draft->failed; i++) {
        eval_question *question = ask(draft);
        eval_push(draft, &question->ids, half + keys[i]);
        eval_push(draft, &question->expected, draft->item->ids.id[places[i] + 1]);
    }
}

/* ---- copies ---- */

/* Variant 1: backwards. */
void eval_make_copy(eval_draft *draft) {
    const int64_t length = (draft->length - 1) / 2;
    cli_ids *ids = &draft->item->ids;
    for (int64_t i = 0; i < length; i++) eval_push(draft, ids, 1 + eval_below(draft, 32));
    eval_question *question = ask(draft);
    eval_push(draft, &question->ids, END);
    for (int64_t i = 0; i < length && !draft->failed; i++)
        eval_push(draft, &question->expected, ids->id[draft->task->variant ? length - 1 - i : i]);
}

void eval_make_selective(eval_draft *draft) {
    enum { DATA = 16, BLANK = DATA + 1 };
    const int64_t length = draft->length - DATA - 1;
    int64_t places[DATA];
    eval_pick(draft, length, places, DATA);
    eval_question *question = ask(draft);
    eval_push(draft, &question->ids, END);
    for (int64_t i = 0, next = 0; i < length; i++) {
        const bool data = next < DATA && places[next] == i;
        const int64_t symbol = data ? 1 + eval_below(draft, DATA) : BLANK;
        eval_push(draft, &draft->item->ids, symbol);
        if (data) eval_push(draft, &question->expected, symbol);
        next += data;
    }
}

/* ---- states ---- */

enum { MORE = 8 }; /* a question goes on by fewer symbols than this before it asks */

typedef struct permutation {
    int8_t to[5];
} permutation;

static bool is_even(const permutation *p) {
    int inversions = 0;
    for (int i = 0; i < 5; i++)
        for (int k = i + 1; k < 5; k++) inversions += p->to[i] > p->to[k];
    return inversions % 2 == 0;
}

/* All, or the even ones, in lexicographic order. */
static int list_permutations(bool even, permutation list[120]) {
    int count = 0;
    for (int rank = 0; rank < 120; rank++) {
        int8_t left[5] = {0, 1, 2, 3, 4};
        permutation p;
        for (int i = 0, rest = rank, block = 24; i < 5; i++) {
            const int k = rest / block;
            rest %= block;
            if (i < 4) block /= 4 - i;
            p.to[i] = left[k];
            memmove(left + k, left + k + 1, (size_t)(4 - k));
        }
        if (!even || is_even(&p)) list[count++] = p;
    }
    return count;
}

static int rank_of(const permutation *list, int count, const permutation *p) {
    int rank = 0;
    while (rank < count && memcmp(list[rank].to, p->to, 5) != 0) rank++;
    return rank;
}

/* The first symbol is applied first. */
static void apply(permutation *product, const permutation *p) {
    for (int i = 0; i < 5; i++) product->to[i] = p->to[product->to[i]];
}

/* Variant 1: even permutations alone. */
void eval_make_permutations(eval_draft *draft) {
    permutation list[120], product = {{0, 1, 2, 3, 4}};
    const int count = list_permutations(draft->task->variant == 1, list);
    for (int64_t i = 0; i < draft->length - MORE - 1; i++) {
        const int64_t symbol = eval_below(draft, count);
        apply(&product, &list[symbol]);
        eval_push(draft, &draft->item->ids, 1 + symbol);
    }
    for (int i = 0; i < EVAL_QUESTIONS; i++) {
        eval_question *question = ask(draft);
        permutation last = product;
        for (int64_t more = eval_below(draft, MORE); more > 0; more--) {
            const int64_t symbol = eval_below(draft, count);
            apply(&last, &list[symbol]);
            eval_push(draft, &question->ids, 1 + symbol);
        }
        eval_push(draft, &question->ids, END);
        eval_push(draft, &question->expected, 1 + rank_of(list, count, &last));
    }
}

/* Variant: the modulus. */
void eval_make_modular(eval_draft *draft) {
    const int modulus = draft->task->variant;
    int64_t sum = 0;
    for (int64_t i = 0; i < draft->length - MORE - 1; i++) {
        const int64_t value = eval_below(draft, modulus);
        sum += value;
        eval_push(draft, &draft->item->ids, 1 + value);
    }
    for (int i = 0; i < EVAL_QUESTIONS; i++) {
        eval_question *question = ask(draft);
        int64_t last = sum;
        for (int64_t more = eval_below(draft, MORE); more > 0; more--) {
            const int64_t value = eval_below(draft, modulus);
            last += value;
            eval_push(draft, &question->ids, 1 + value);
        }
        eval_push(draft, &question->ids, END);
        eval_push(draft, &question->expected, 1 + last % modulus);
    }
}

/* Variant: kinds of brackets; symbol n opens kind n, symbol kinds + n closes it. A question opens one to three more,
 * and all that are open must be closed. */
void eval_make_brackets(eval_draft *draft) {
    enum { DEEPEST = 16, FURTHER = 3 };
    const int kinds = draft->task->variant;
    int64_t open[DEEPEST + FURTHER];
    int depth = 0;
    for (int64_t i = 0; i < draft->length - DEEPEST - 2 * FURTHER; i++) {
        const bool opens = !depth || (depth < DEEPEST && eval_below(draft, 2));
        if (opens) open[depth++] = eval_below(draft, kinds);
        eval_push(draft, &draft->item->ids, opens ? open[depth - 1] : kinds + open[depth - 1]);
        depth -= !opens;
    }
    for (int i = 0; i < EVAL_QUESTIONS; i++) {
        eval_question *question = ask(draft);
        const int further = 1 + (int)eval_below(draft, FURTHER);
        for (int k = 0; k < further; k++) {
            open[depth + k] = eval_below(draft, kinds);
            eval_push(draft, &question->ids, open[depth + k]);
        }
        for (int k = depth + further - 1; k >= 0; k--) eval_push(draft, &question->expected, kinds + open[k]);
    }
}
