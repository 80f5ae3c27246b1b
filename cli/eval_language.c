/* Owns: languages that must be learned from the document: strings of one random automaton, and more of them to predict.
 *
 * An automaton has 4 to 12 states, an alphabet of 4 to 18 symbols, and from each state 2 to 4 edges to random states,
 * each with a symbol and a probability of its own. A string walks along the edges from state 0, 1 to 50 symbols long;
 * strings are divided by symbol 0. Scored is the share of symbols of a new string that are the most likely ones for the
 * model. The ceiling is the same for who knows the automaton and takes the likeliest edge of the true state; the
 * baseline for who takes what followed most often, in the document, the longest of the last 3, 2, 1, 0 symbols that
 * stood there. */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

enum { STATES = 12, SYMBOLS = 19, EDGES = 4, STRING = 50, ORDER = 3, DIVIDER = 0 };

typedef struct automaton {
    int states, symbols, edges[STATES];
    int symbol[STATES][EDGES], next[STATES][EDGES];
    double probability[STATES][EDGES];
} automaton;

static void make_automaton(eval_draft *draft, automaton *a) {
    a->states = 4 + (int)eval_below(draft, 9);
    a->symbols = 4 + (int)eval_below(draft, 15);
    for (int s = 0; s < a->states; s++) {
        a->edges[s] = 2 + (int)eval_below(draft, EDGES - 1);
        int64_t symbols[EDGES];
        eval_pick(draft, a->symbols, symbols, a->edges[s]);
        double sum = 0;
        for (int e = 0; e < a->edges[s]; e++) {
            a->symbol[s][e] = 1 + (int)symbols[e];
            a->next[s][e] = (int)eval_below(draft, a->states);
            sum += a->probability[s][e] = 0.05 + eval_unit(draft);
        }
        for (int e = 0; e < a->edges[s]; e++) a->probability[s][e] /= sum;
    }
}

static int step(eval_draft *draft, const automaton *a, int *state) {
    double left = eval_unit(draft);
    int e = 0;
    while (e + 1 < a->edges[*state] && (left -= a->probability[*state][e]) >= 0) e++;
    const int symbol = a->symbol[*state][e];
    *state = a->next[*state][e];
    return symbol;
}

static int likeliest(const automaton *a, int state) {
    int best = 0;
    for (int e = 1; e < a->edges[state]; e++)
        if (a->probability[state][e] > a->probability[state][best]) best = e;
    return a->symbol[state][best];
}

/* ---- the baseline ---- */

/* counts[n][context of n symbols in base SYMBOLS][next] */
typedef struct grams {
    int32_t *count[ORDER + 1];
} grams;

static size_t context_of(const int32_t *ids, int64_t at, int n) {
    size_t context = 0;
    for (int i = n; i > 0; i--) context = context * SYMBOLS + (size_t)ids[at - i];
    return context;
}

static void count_grams(eval_draft *draft, const cli_ids *ids, grams *g) {
    int64_t contexts = 1;
    for (int n = 0; n <= ORDER; n++, contexts *= SYMBOLS) {
        g->count[n] = eval_allocate(draft, contexts * SYMBOLS, sizeof *g->count[n]);
        for (int64_t i = n; g->count[n] && i < ids->count; i++)
            g->count[n][context_of(ids->id, i, n) * SYMBOLS + (size_t)ids->id[i]]++;
    }
}

/* What most often followed the longest context that was seen. */
static int guess(const grams *g, const int32_t *ids, int64_t at) {
    for (int n = at < ORDER ? (int)at : ORDER; n >= 0; n--) {
        const int32_t *row = g->count[n] + context_of(ids, at, n) * SYMBOLS;
        int best = 0;
        for (int s = 1; s < SYMBOLS; s++)
            if (row[s] > row[best]) best = s;
        if (row[best]) return best;
    }
    return 0;
}

/* ---- the task ---- */

static void ask_string(eval_draft *draft, const automaton *a, const grams *g) {
    eval_question *question = eval_ask(draft, "%s", "");
    int32_t walk[STRING + 1] = {DIVIDER};
    const int64_t count = 2 + eval_below(draft, STRING - 1);
    double known = 0, guessed = 0;
    int state = 0;
    eval_push(draft, &question->ids, DIVIDER);
    for (int64_t i = 1; i <= count; i++) {
        const int best = likeliest(a, state);
        walk[i] = step(draft, a, &state);
        known += walk[i] == best;
        guessed += walk[i] == guess(g, walk, i);
        eval_push(draft, &question->expected, walk[i]);
    }
    question->ceiling = known / (double)count;
    question->baseline = guessed / (double)count;
}

void eval_make_language(eval_draft *draft) {
    automaton a;
    grams g = {{NULL}};
    make_automaton(draft, &a);
    cli_ids *ids = &draft->item->ids;
    const int64_t length = draft->length - STRING - 1;
    while (ids->count < length && !draft->failed) {
        int64_t left = 1 + eval_below(draft, STRING);
        if (left > length - ids->count - 1) left = length - ids->count - 1;
        eval_push(draft, ids, DIVIDER);
        for (int state = 0; left > 0; left--) eval_push(draft, ids, step(draft, &a, &state));
    }
    if (!draft->failed) count_grams(draft, ids, &g);
    for (int i = 0; i < EVAL_QUESTIONS && !draft->failed; i++) ask_string(draft, &a, &g);
    for (int n = 0; n <= ORDER; n++) free(g.count[n]);
}
