/* Owns: words that documents are made of. */
#include <string.h>

#include "eval.h"

const char *const eval_adjectives[EVAL_ADJECTIVES] = {
    "able",    "ancient", "angry",  "autumn",  "bitter", "black",  "blue",    "bold",   "brave",  "breezy", "bright",
    "broad",   "broken",  "calm",   "careful", "cheap",  "clean",  "clear",   "clever", "cold",   "cool",   "crimson",
    "crooked", "curious", "damp",   "dark",    "dear",   "deep",   "distant", "dusty",  "eager",  "early",  "empty",
    "faint",   "fair",    "famous", "fancy",   "fast",   "fierce", "flat",    "fresh",  "frosty", "gentle", "glad",
    "golden",  "grand",   "gray",   "green",   "happy",  "heavy",  "hidden",  "hollow", "honest", "humble", "icy",
    "idle",    "jolly",   "kind",   "large",   "late",   "lazy",   "light",   "little", "lively", "lonely", "long",
    "loud",    "lucky",   "mellow", "merry",   "mild",   "modest", "narrow",  "neat",   "noble",  "odd",    "old",
    "patient", "plain",   "pretty", "proud",   "quick",  "quiet",  "rapid",   "rare",   "rough",  "round",  "royal",
    "rusty",   "shy",     "silent", "silver",  "simple", "slow",   "small",   "smooth"};

const char *const eval_nouns[EVAL_NOUNS] = {
    "acorn",   "anchor",  "apple",  "apron",  "arrow",   "badge",   "baker",   "banjo",   "barn",     "basin",
    "basket",  "beach",   "beacon", "bean",   "bell",    "bench",   "berry",   "blanket", "boat",     "bottle",
    "bowl",    "branch",  "bread",  "brick",  "bridge",  "broom",   "brush",   "bucket",  "button",   "cabin",
    "camel",   "candle",  "canoe",  "canyon", "carpet",  "carrot",  "castle",  "cave",    "cellar",   "chain",
    "chair",   "chalk",   "cherry", "chest",  "circle",  "cliff",   "cloak",   "clock",   "cloud",    "coal",
    "coin",    "comb",    "copper", "coral",  "corner",  "cotton",  "cradle",  "crane",   "crown",    "cup",
    "curtain", "dairy",   "daisy",  "desert", "desk",    "diamond", "donkey",  "drawer",  "dream",    "drum",
    "eagle",   "earth",   "engine", "fabric", "falcon",  "farm",    "feather", "fence",   "ferry",    "fiddle",
    "field",   "flag",    "flame",  "flint",  "flower",  "flute",   "forest",  "fork",    "fountain", "fox",
    "garden",  "gate",    "giant",  "ginger", "glass",   "glove",   "grape",   "gravel",  "guitar",   "hammer",
    "harbor",  "harvest", "hawk",   "hazel",  "hedge",   "helmet",  "hill",    "honey",   "horn",     "horse",
    "house",   "island",  "ivory",  "jacket", "jewel",   "kettle",  "kitten",  "ladder",  "lake",     "lantern",
    "leaf",    "lemon",   "letter", "lily",   "linen",   "lion",    "lobster", "lodge",   "maple",    "marble",
    "market",  "meadow",  "melon",  "mill",   "mirror",  "mitten",  "monkey",  "moon",    "mountain", "needle",
    "nest",    "oak",     "ocean",  "olive",  "onion",   "orchard", "otter",   "oven",    "owl",      "oyster",
    "paddle",  "palace",  "paper",  "parrot", "pasture", "pearl",   "pebble",  "pencil",  "pepper",   "piano",
    "pillow",  "pine",    "puddle", "planet", "plate",   "plum",    "pocket",  "pond",    "poplar",   "pottery",
    "prairie", "pumpkin", "rabbit", "raft",   "rain",    "raven",   "reef",    "ribbon",  "river",    "rock",
    "rope",    "rose",    "saddle", "sail",   "salmon",  "sandal",  "scarf",   "school",  "sea",      "seed",
    "shadow",  "shell"};

/* A number past the list is written in three syllables or more, consonant and vowel; no listed word is of that form.
 * Neighbours are made to differ by a multiplication modulo the number of such words, which has no factor 7919. */
void eval_word(int64_t number, char word[16]) {
    static const char consonants[] = "bdfgklmnprstvz", vowels[] = "aeiou";
    enum { SYLLABLES = 14 * 5 };
    if (number < EVAL_NOUNS + EVAL_ADJECTIVES) {
        const char *listed = number < EVAL_NOUNS ? eval_nouns[number] : eval_adjectives[number - EVAL_NOUNS];
        snprintf(word, 16, "%s", listed);
        return;
    }
    int64_t rest = number - EVAL_NOUNS - EVAL_ADJECTIVES;
    const int64_t three = (int64_t)SYLLABLES * SYLLABLES * SYLLABLES;
    if (rest < three) rest = rest * 7919 % three;
    int at = 0;
    for (int i = 0; i < 3 || (rest && i < 7); i++, rest /= SYLLABLES) {
        word[at++] = consonants[rest % SYLLABLES / 5];
        word[at++] = vowels[rest % 5];
    }
    word[at] = 0;
}
