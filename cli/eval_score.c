/* Owns: whether an answer is right.
 *
 * Each rule gives 0 to 1 for a question. The interval about a mean p of n questions is Wilson's,
 *     (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  z = 1.96,
 * which stays inside 0 .. 1; for scores between 0 and 1 it is wider than needed. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "eval.h"

static bool exact(const char *answer, const char *expected) {
    while (isspace((unsigned char)*answer)) answer++;
    size_t bytes = strlen(answer);
    while (bytes && isspace((unsigned char)answer[bytes - 1])) bytes--;
    return bytes == strlen(expected) && !memcmp(answer, expected, bytes);
}

/* The first run of digits as a number, thousands divided by commas or not. */
static bool first_integer(const char *answer, const char *expected) {
    const char *at = answer + strcspn(answer, "0123456789");
    if (!*at) return false;
    char digits[32];
    size_t count = 0;
    for (; isdigit((unsigned char)*at) || (*at == ',' && isdigit((unsigned char)at[1])); at++)
        if (*at != ',' && count + 1 < sizeof digits) digits[count++] = *at;
    digits[count] = 0;
    return strtoll(digits, NULL, 10) == strtoll(expected, NULL, 10);
}

static double match_all(const char *answer, const cli_buffer *expected) {
    double found = 0, asked = 0;
    for (size_t at = 0; at < expected->bytes; at += strlen(expected->data + at) + 1, asked++)
        found += strcasestr(answer, expected->data + at) != NULL;
    return asked > 0 ? found / asked : 0;
}

/* Whether a word occurs, as a whole, in the first `bytes` of the text, letters in either case. */
static bool names(const char *text, size_t bytes, const char *word) {
    const size_t length = strlen(word);
    for (size_t i = 0; i + length <= bytes; i++)
        if (!strncasecmp(text + i, word, length) && (!i || !isalnum((unsigned char)text[i - 1])) &&
            (i + length == bytes || !isalnum((unsigned char)text[i + length])))
            return true;
    return false;
}

/* The expected text is one label, or several with commas between. */
static bool label(const char *const *labels, const char *question, const char *answer, const char *expected) {
    const size_t sentence = strcspn(answer, ".\n");
    for (; *labels; labels++) {
        const bool wanted = names(expected, strlen(expected), *labels);
        const bool said = names(answer, sentence, *labels);
        if (wanted && !said) return false;
        if (said && !wanted && !names(question, strlen(question), *labels)) return false;
    }
    return true;
}

double eval_score(eval_rule rule, const char *const *labels, const eval_question *question, const char *answer) {
    const char *expected = question->answers.data ? question->answers.data : "";
    switch (rule) {
    case EVAL_EXACT:
        return exact(answer, expected);
    case EVAL_INTEGER:
        return first_integer(answer, expected);
    case EVAL_MATCH_ALL:
        return match_all(answer, &question->answers);
    case EVAL_LABEL:
        return label(labels, question->text.data ? question->text.data : "", answer, expected);
    case EVAL_TOKENS:
        break;
    }
    return 0;
}

void eval_interval(double right, double asked, double *low, double *high) {
    *low = 0;
    *high = 1;
    if (asked <= 0) return;
    const double z = 1.96, p = right / asked, square = z * z / asked;
    const double middle = (p + square / 2) / (1 + square);
    const double half = z * sqrt(p * (1 - p) / asked + square / (4 * asked)) / (1 + square);
    *low = fmax(0, middle - half);
    *high = fmin(1, middle + half);
}
