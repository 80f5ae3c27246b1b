/* Policies: what a memory keeps within its bytes, at what precision, and where. A policy is a composition
 *
 *     scorer x allocator x selector x merger x precisions x tier,
 *
 * each a table; a named one is a row of the table in policy.c with its published defaults. As text, on the command line
 * and in the library alike: NAME[:key=value,...]; every part can be swapped by its key. What does not fit together is
 * refused with a sentence. */
#ifndef LN_MEMORY_POLICY_H
#define LN_MEMORY_POLICY_H

#include "base/context.h"

enum { LN_POLICY_PARAMETERS = 8, LN_POLICY_NAME = 32 };

/* Tokens that are run after a piece for their queries alone, by which the piece is settled (session.h). */
typedef enum ln_probe {
    LN_PROBE_NONE,   /* a piece is settled by its own queries */
    LN_PROBE_REPEAT, /* the piece once more: its own queries do not count */
    LN_PROBE_DRAFT   /* what a draft model expects to follow: after its own queries */
} ln_probe;

typedef struct ln_scorer ln_scorer;       /* score.h: what a token is worth */
typedef struct ln_allocator ln_allocator; /* allocate.h: how bytes are divided over layers and heads */
typedef struct ln_selector ln_selector;   /* select.h: which pages a query reads */
typedef struct ln_merger ln_merger;       /* merge.h: what becomes of evicted tokens */

typedef struct ln_policy_row ln_policy_row;

typedef struct ln_policy {
    const ln_policy_row *row;
    const ln_scorer *scorer;          /* NULL: nothing is evicted */
    const ln_allocator *allocator;    /* NULL: even shares */
    const ln_selector *selector;      /* NULL: a query reads all pages */
    const ln_merger *merger;          /* NULL: what is evicted is gone */
    bool draft_prompt;                /* of a prompt only what a draft model attends to is read */
    bool file;                        /* pages beyond the budget lie in a file */
    linnet_type near;                 /* precision of sinks, recent tokens and the piece */
    linnet_type keys, values;         /* of the rest */
    linnet_type low_keys, low_values; /* of its less salient part; LINNET_TYPE_AUTO: there is none */
    double salient;                   /* share of the rest's tokens that get keys and values instead of the low ones */
    bool channels;                    /* keys of the rest are scaled by channel, else by token */
    bool group;                       /* key channels of a lane are ordered by magnitude: blocks hold alike ones */
    double key_share;                 /* of the channels, that keys of the rest keep; 1: all */
    bool rotate;                      /* queries, keys and values go through a Hadamard rotation */
    int64_t sinks, recent;            /* tokens kept whatever they score: the first, the last */
    int64_t window;                   /* queries of a piece that scores are taken from */
    ln_probe probe;
    int64_t pooling; /* neighbours that share a score: width of the kernel, 1: none */
    struct {
        const char *name;
        double value;
    } parameter[LN_POLICY_PARAMETERS]; /* given by name, for the parts that know them */
    int parameters;
} ln_policy;

struct ln_policy_row {
    const char *name, *source; /* "snapkv", "P205" */
    const char *about;         /* one line for people */
    const char *parts;         /* its defaults, in the text form: "scorer=snapkv,recent=64" */
};

/* Rows, index 0 and up; NULL past the end. */
const ln_policy_row *ln_policy_row_at(int index);
/* Reads "NAME[:key=value,...]". LINNET_ERROR_ARGUMENT names the word that is wrong and what is known. */
linnet_status ln_policy_parse(linnet_context *context, const char *text, ln_policy *policy);
/* Where the policy leaves it open (row p117; else false, and nothing is done): how many tokens to keep and how exactly,
 * for a lane of `bytes` and a text of `tokens` tokens, so that least of the attention is lost or rounded away. 0 bytes:
 * as coarse as there is. */
bool ln_policy_settle(ln_policy *policy, double bytes, int64_t tokens, int64_t key_size, int64_t value_size);
/* Whether lanes have an order of their key channels. */
bool ln_policy_orders(const ln_policy *policy);
/* What keys of the rest keep of so many channels: a multiple of 8. */
int64_t ln_policy_key_size(const ln_policy *policy, int64_t key_size);
/* The policy as text that ln_policy_parse reads as the same policy; at most `room` bytes with the zero. */
void ln_policy_text(const ln_policy *policy, char *text, size_t room);
/* What a name of a row, and one of a parameter, mean to people; NULL past the end. */
const char *ln_policy_parameter_at(int index, const char **about);
/* A parameter by name; `fallback` where it was not given. */
double ln_policy_parameter_of(const ln_policy *policy, const char *name, double fallback);

#endif
