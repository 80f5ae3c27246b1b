/* Owns: BABILong's form of the first ten bAbI tasks: persons move, take, drop and give in a small world that is played
 * here, what happens is told in sentences hidden in prose, and questions are asked about the state at the end.
 *
 * A question is asked only where the sentences determine its answer. */
#include <string.h>

#include "eval.h"

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

enum { PERSONS = 4, ROOMS = 6, OBJECTS = 3, SENTENCES = 16, HISTORY = 64, NOWHERE = -1, NOBODY = -1 };

static const char *const rooms[ROOMS] = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"};
static const char *const persons[PERSONS] = {"Mary", "John", "Daniel", "Sandra"};
static const char *const givers[PERSONS] = {"Bill", "Fred", "Jeff", "Mary"};
static const char *const objects[OBJECTS] = {"apple", "football", "milk"};
static const char *const moves[] = {"moved", "went", "travelled", "journeyed", "went back"};
static const char *const takes[] = {"got", "took", "grabbed", "picked up"};
static const char *const drops[] = {"dropped", "discarded", "left", "put down"};
static const char *const gives[] = {"gave", "handed", "passed"};
static const char *const numbers[] = {"none", "one", "two", "three"};

typedef struct world {
    int at[PERSONS];                             /* the room of a person; NOWHERE: not told */
    int lies[OBJECTS];                           /* the room of an object that nobody carries */
    int carrier[OBJECTS];                        /* NOBODY: it lies */
    int seen[OBJECTS][HISTORY], places[OBJECTS]; /* rooms that an object is known to have been in, in order */
    bool not_at[PERSONS][ROOMS], maybe_at[PERSONS][ROOMS];
    cli_buffer told[SENTENCES];
    int sentences;
} world;

static cli_buffer *tell(world *w) {
    return &w->told[w->sentences++];
}

/* ---- what happens ---- */

static void note_place(world *w, int object, int room) {
    if (w->places[object] && w->seen[object][w->places[object] - 1] == room) return;
    if (w->places[object] < HISTORY) w->seen[object][w->places[object]++] = room;
}

static void forget_place(world *w, int person) {
    w->at[person] = NOWHERE;
    memset(w->not_at[person], 0, sizeof w->not_at[person]);
    memset(w->maybe_at[person], 0, sizeof w->maybe_at[person]);
}

static void move(eval_draft *draft, world *w, int person, int room) {
    forget_place(w, person);
    w->at[person] = room;
    for (int o = 0; o < OBJECTS; o++)
        if (w->carrier[o] == person) note_place(w, o, room);
    eval_put(draft, tell(w), "%s %s to the %s. ", persons[person], moves[eval_below(draft, COUNT(moves))], rooms[room]);
}

static int carried(const world *w, int person) {
    int count = 0;
    for (int o = 0; o < OBJECTS; o++) count += w->carrier[o] == person;
    return count;
}

/* A person takes what lies in the room; the object was there. */
static bool take(eval_draft *draft, world *w, int person) {
    const int first = (int)eval_below(draft, OBJECTS);
    for (int i = 0; i < OBJECTS; i++) {
        const int o = (first + i) % OBJECTS;
        if (w->carrier[o] != NOBODY || w->at[person] == NOWHERE || w->lies[o] != w->at[person]) continue;
        w->carrier[o] = person;
        note_place(w, o, w->at[person]);
        eval_put(draft, tell(w), "%s %s the %s there. ", persons[person], takes[eval_below(draft, COUNT(takes))],
                 objects[o]);
        return true;
    }
    return false;
}

static bool drop(eval_draft *draft, world *w, int person) {
    for (int o = 0; o < OBJECTS; o++) {
        if (w->carrier[o] != person) continue;
        w->carrier[o] = NOBODY;
        w->lies[o] = w->at[person];
        eval_put(draft, tell(w), "%s %s the %s. ", persons[person], drops[eval_below(draft, COUNT(drops))], objects[o]);
        return true;
    }
    return false;
}

/* Moves, and with them takes and drops. Objects lie where a person will soon come by. */
static void play(eval_draft *draft, world *w, bool things) {
    while (w->sentences < SENTENCES) {
        const int person = (int)eval_below(draft, PERSONS);
        const int64_t kind = things ? eval_below(draft, 4) : 0;
        if (kind == 1 && take(draft, w, person)) continue;
        if (kind == 2 && drop(draft, w, person)) continue;
        int room = (int)eval_below(draft, ROOMS);
        const int o = (int)eval_below(draft, OBJECTS);
        if (kind == 3 && w->carrier[o] == NOBODY) room = w->lies[o];
        if (room == w->at[person]) continue;
        move(draft, w, person, room);
        if (kind == 3 && w->sentences < SENTENCES) take(draft, w, person);
    }
}

/* ---- questions about persons and things ---- */

static void ask_places(eval_draft *draft, const world *w) {
    for (int p = 0; p < PERSONS; p++)
        if (w->at[p] != NOWHERE)
            eval_answer(draft, eval_ask(draft, "\nWhere is %s?", persons[p]), "%s", rooms[w->at[p]]);
}

static void ask_things(eval_draft *draft, const world *w) {
    for (int o = 0; o < OBJECTS; o++)
        if (w->places[o])
            eval_answer(draft, eval_ask(draft, "\nWhere is the %s?", objects[o]), "%s",
                        rooms[w->seen[o][w->places[o] - 1]]);
}

/* About a room that the object was in once only. */
static void ask_before(eval_draft *draft, const world *w) {
    for (int o = 0; o < OBJECTS; o++)
        for (int i = w->places[o] - 1; i > 0; i--) {
            int times = 0;
            for (int k = 0; k < w->places[o]; k++) times += w->seen[o][k] == w->seen[o][i];
            if (times > 1) continue;
            eval_answer(draft, eval_ask(draft, "\nWhere was the %s before the %s?", objects[o], rooms[w->seen[o][i]]),
                        "%s", rooms[w->seen[o][i - 1]]);
            break;
        }
}

static void ask_whether(eval_draft *draft, const world *w) {
    for (int p = 0; p < PERSONS; p++) {
        const int64_t yes = eval_below(draft, 2);
        int room = (int)eval_below(draft, ROOMS);
        if (yes && w->at[p] != NOWHERE) room = w->at[p];
        const char *answer = w->maybe_at[p][room]                        ? "maybe"
                             : w->at[p] == room                          ? "yes"
                             : w->at[p] != NOWHERE || w->not_at[p][room] ? "no"
                                                                         : NULL;
        if (answer) eval_answer(draft, eval_ask(draft, "\nIs %s in the %s?", persons[p], rooms[room]), "%s", answer);
    }
}

static void ask_number(eval_draft *draft, const world *w) {
    for (int p = 0; p < PERSONS; p++)
        eval_answer(draft, eval_ask(draft, "\nHow many objects is %s carrying?", persons[p]), "%s",
                    numbers[carried(w, p)]);
}

static void ask_carried(eval_draft *draft, const world *w) {
    for (int p = 0; p < PERSONS; p++) {
        cli_buffer list = {0};
        for (int o = 0; o < OBJECTS; o++)
            if (w->carrier[o] == p) eval_put(draft, &list, "%s%s", list.bytes ? "," : "", objects[o]);
        eval_answer(draft, eval_ask(draft, "\nWhat is %s carrying?", persons[p]), "%s",
                    list.bytes ? list.data : "nothing");
        cli_buffer_free(&list);
    }
}

/* ---- directions ---- */

/* Two rooms beside a third; the second direction is not the first one seen from the other side, or a question would
 * have two answers. */
static void make_directions(eval_draft *draft, world *w) {
    static const char *const directions[] = {"north", "south", "east", "west"};
    int64_t place[ROOMS] = {0, 1, 2, 3, 4, 5};
    eval_shuffle(draft, place, ROOMS);
    const int first = (int)eval_below(draft, 4);
    int second = first ^ 1;
    while (second == (first ^ 1)) second = (int)eval_below(draft, 4);
    const char *a = rooms[place[0]], *b = rooms[place[1]], *c = rooms[place[2]];
    const char *d = directions[first], *e = directions[second];
    const int64_t swap = eval_below(draft, 2);
    if (swap) eval_put(draft, tell(w), "The %s is %s of the %s. ", b, e, c);
    eval_put(draft, tell(w), "The %s is %s of the %s. ", a, d, b);
    if (!swap) eval_put(draft, tell(w), "The %s is %s of the %s. ", b, e, c);
    eval_answer(draft, eval_ask(draft, "\nWhat is %s of the %s?", d, b), "%s", a);
    eval_answer(draft, eval_ask(draft, "\nWhat is the %s %s of?", a, d), "%s", b);
    eval_answer(draft, eval_ask(draft, "\nWhat is %s of the %s?", e, c), "%s", b);
    eval_answer(draft, eval_ask(draft, "\nWhat is the %s %s of?", b, e), "%s", c);
}

/* ---- giving ---- */

typedef struct gift {
    int from, to, object;
} gift;

/* Questions about the first gift that each of them means alone. */
static void ask_gifts(eval_draft *draft, const gift *gifts, int count) {
    bool done[4] = {false};
    for (int i = 0; i < count; i++) {
        const gift g = gifts[i];
        int from_to = 0, from_object = 0, object_to = 0, object = 0;
        for (int k = 0; k < count; k++) {
            from_to += gifts[k].from == g.from && gifts[k].to == g.to;
            from_object += gifts[k].from == g.from && gifts[k].object == g.object;
            object_to += gifts[k].object == g.object && gifts[k].to == g.to;
            object += gifts[k].object == g.object;
        }
        const char *from = givers[g.from], *to = givers[g.to], *thing = objects[g.object];
        if (from_to == 1 && !done[0])
            eval_answer(draft, eval_ask(draft, "\nWhat did %s give to %s?", from, to), "%s", thing);
        if (from_object == 1 && !done[1])
            eval_answer(draft, eval_ask(draft, "\nWho did %s give the %s to?", from, thing), "%s", to);
        if (object_to == 1 && !done[2])
            eval_answer(draft, eval_ask(draft, "\nWho gave the %s to %s?", thing, to), "%s", from);
        if (object == 1 && !done[3]) eval_answer(draft, eval_ask(draft, "\nWho received the %s?", thing), "%s", to);
        done[0] |= from_to == 1;
        done[1] |= from_object == 1;
        done[2] |= object_to == 1;
        done[3] |= object == 1;
    }
}

static void make_gifts(eval_draft *draft, world *w) {
    enum { GIFTS = 5 };
    gift gifts[GIFTS];
    int owner[OBJECTS], room = (int)eval_below(draft, ROOMS);
    for (int o = 0; o < OBJECTS; o++) owner[o] = (int)eval_below(draft, PERSONS);
    for (int p = 0; p < PERSONS; p++)
        eval_put(draft, tell(w), "%s %s to the %s. ", givers[p], moves[eval_below(draft, COUNT(moves))], rooms[room]);
    for (int i = 0; i < GIFTS; i++) {
        const int o = (int)eval_below(draft, OBJECTS), from = owner[o];
        const int to = (from + 1 + (int)eval_below(draft, PERSONS - 1)) % PERSONS;
        gifts[i] = (gift){from, to, o};
        owner[o] = to;
        eval_put(draft, tell(w), "%s %s the %s to %s. ", givers[from], gives[eval_below(draft, COUNT(gives))],
                 objects[o], givers[to]);
    }
    ask_gifts(draft, gifts, GIFTS);
}

/* ---- negations, either and or ---- */

static void play_unsure(eval_draft *draft, world *w, bool either) {
    while (w->sentences < SENTENCES) {
        const int p = (int)eval_below(draft, PERSONS), room = (int)eval_below(draft, ROOMS);
        const int64_t kind = eval_below(draft, 3);
        const int other = (room + 1 + (int)eval_below(draft, ROOMS - 1)) % ROOMS;
        if (kind == 0) {
            if (room != w->at[p]) move(draft, w, p, room);
        } else if (kind == 1) {
            forget_place(w, p);
            w->at[p] = room;
            eval_put(draft, tell(w), "%s is in the %s. ", persons[p], rooms[room]);
        } else if (either) {
            forget_place(w, p);
            for (int r = 0; r < ROOMS; r++) w->not_at[p][r] = r != room && r != other;
            w->maybe_at[p][room] = w->maybe_at[p][other] = true;
            eval_put(draft, tell(w), "%s is either in the %s or the %s. ", persons[p], rooms[room], rooms[other]);
        } else {
            const bool known = w->at[p] != NOWHERE;
            const int left = known ? w->at[p] : room;
            forget_place(w, p);
            w->not_at[p][left] = true;
            eval_put(draft, tell(w), known ? "%s is no longer in the %s. " : "%s is not in the %s. ", persons[p],
                     rooms[left]);
        }
    }
}

/* ---- the tasks ---- */

static void tell_story(eval_draft *draft, world *w) {
    static void (*const asks[])(eval_draft *, const world *) = {NULL,        ask_places,  ask_things,  ask_before,
                                                                NULL,        NULL,        ask_whether, ask_number,
                                                                ask_carried, ask_whether, ask_whether};
    const int variant = draft->task->variant;
    memset(w, 0, sizeof *w);
    for (int p = 0; p < PERSONS; p++) w->at[p] = NOWHERE;
    for (int o = 0; o < OBJECTS; o++) {
        w->lies[o] = (int)eval_below(draft, ROOMS);
        w->carrier[o] = NOBODY;
    }
    if (variant == 4)
        make_directions(draft, w);
    else if (variant == 5)
        make_gifts(draft, w);
    else if (variant >= 9)
        play_unsure(draft, w, variant == 10);
    else
        play(draft, w, variant != 1 && variant != 6);
    if (asks[variant]) asks[variant](draft, w);
}

static void forget_story(world *w) {
    for (int i = 0; i < w->sentences; i++) cli_buffer_free(&w->told[i]);
}

/* A story that determines no answer is told anew. */
void eval_make_facts(eval_draft *draft) {
    world w;
    tell_story(draft, &w);
    while (!draft->item->questions && !draft->failed) {
        forget_story(&w);
        tell_story(draft, &w);
    }
    eval_put(draft, &draft->item->text,
             "In the following text some sentences tell of persons, rooms and things. Remember them: you will be asked "
             "about them. Answer with one word.\n");
    const eval_haystack hay = eval_prose(draft);
    eval_hide(draft, &hay, w.told, w.sentences);
    forget_story(&w);
    for (int i = 0; i < draft->item->questions; i++) eval_put(draft, &draft->item->question[i].begin, "Answer:");
}
