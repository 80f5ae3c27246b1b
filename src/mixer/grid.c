/* Owns: the order of a neighbourhood's points, and who sees whom in it.
 *
 * Points see only those of their own residues modulo the dilations, so a residue class is a run of places. A class is
 * cut along all axes but the last into strips of even width, which are walked one after the other, to and fro; a strip
 * is walked along the last axis, slice by slice. Any run of consecutive places is then a box, ragged at both ends by
 * less than a slice, whatever the extents: no alignment is needed. Of a few widths of strips the one is taken whose
 * runs meet the fewest others.
 *
 * What a place sees is a box of coordinates [low, high). Of 64 places, those with a coordinate below c are one word
 * `below[c]`, so the bits of a row are and_axes(below[high] and not below[low]) and its class: a few operations for 64
 * keys, however the places lie. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/mask.h"

enum { AXES = LINNET_AXES_MOST, WORD = 64 };

/* ---- the order ---- */

/* The neighbourhood with all three axes. */
typedef struct shape {
    int64_t extent[AXES], window[AXES], dilation[AXES];
    bool causal[AXES];
} shape;

static shape shape_of(const linnet_neighbourhood *neighbourhood) {
    const int first = AXES - neighbourhood->axes;
    shape s = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {false, false, false}};
    for (int a = first; a < AXES; a++) {
        s.extent[a] = neighbourhood->extent[a - first];
        s.window[a] = neighbourhood->window[a - first];
        s.dilation[a] = ln_max_i64(1, neighbourhood->dilation[a - first]);
        s.causal[a] = neighbourhood->causal[a - first];
    }
    return s;
}

/* Points of residue r along the axis. */
static int64_t points_of(const shape *s, int axis, int64_t residue) {
    return ln_ceil_div(s->extent[axis] - residue, s->dilation[axis]);
}

/* Strips of widths s0 x s1 (even ones), and slack times a slice at the ends of a run: an estimate of the places that a
 * run of LN_ATTEND_BLOCK visits. What a run has beyond the last axis goes on along the axis before it. */
static double estimate(const shape *s, int64_t strip0, int64_t strip1, double slack) {
    double extent[AXES], width[AXES], visited = 1;
    for (int a = 0; a < AXES; a++) extent[a] = (double)points_of(s, a, 0);
    width[0] = extent[0] / (double)ln_ceil_div(points_of(s, 0, 0), strip0);
    width[1] = extent[1] / (double)ln_ceil_div(points_of(s, 1, 0), strip1);
    width[2] = LN_ATTEND_BLOCK / (width[0] * width[1]) + slack;
    for (int a = AXES - 1; a > 0; a--) {
        if (width[a] <= extent[a]) continue;
        width[a - 1] *= width[a] / extent[a];
        width[a] = extent[a];
    }
    for (int a = 0; a < AXES; a++) {
        const double reach = 2 * width[a] + (double)s->window[a] - 1;
        visited *= reach < extent[a] ? reach : extent[a];
    }
    return visited;
}

typedef struct strips {
    int64_t width[2];
} strips;

static strips choose_strips(const shape *s, double slack) {
    strips best = {{1, 1}};
    double least = estimate(s, 1, 1, slack);
    for (int64_t i = 1; i <= ln_min_i64(points_of(s, 0, 0), LN_ATTEND_BLOCK); i++) {
        for (int64_t j = 1; j <= ln_min_i64(points_of(s, 1, 0), LN_ATTEND_BLOCK / i); j++) {
            const double visited = estimate(s, i, j, slack);
            if (visited >= least) continue;
            least = visited;
            best = (strips){{i, j}};
        }
    }
    return best;
}

/* The i-th of n cuts of `points`, from the end where `back`. */
typedef struct stretch {
    int64_t begin, end;
} stretch;
static stretch stretch_of(int64_t points, int64_t n, int64_t i, bool back) {
    const int64_t cut = back ? n - 1 - i : i;
    return (stretch){points / n * cut + ln_min_i64(cut, points % n),
                     points / n * (cut + 1) + ln_min_i64(cut + 1, points % n)};
}

/* ---- filling ---- */

static void put_place(const shape *s, ln_grid *grid, int64_t place, const int64_t residue[AXES],
                      const int64_t point[AXES]) {
    int64_t token = 0;
    for (int a = 0; a < AXES; a++) {
        const int64_t n = points_of(s, a, residue[a]), window = s->window[a], i = point[a];
        token = token * s->extent[a] + residue[a] + s->dilation[a] * i;
        const int64_t start = ln_max_i64(0, s->causal[a] ? i - window + 1 : ln_min_i64(i - window / 2, n - window));
        grid->low[a][place] = (int32_t)start;
        grid->high[a][place] = (int32_t)(s->causal[a] ? i + 1 : start + window);
    }
    grid->token[place] = token;
}

static int64_t put_strip(const shape *s, ln_grid *grid, int64_t place, const int64_t residue[AXES], stretch first,
                         stretch second, bool back) {
    const int64_t length = points_of(s, 2, residue[2]);
    for (int64_t k = 0; k < length; k++)
        for (int64_t i = first.begin; i < first.end; i++)
            for (int64_t j = second.begin; j < second.end; j++)
                put_place(s, grid, place++, residue, (int64_t[AXES]){i, j, back ? length - 1 - k : k});
    return place;
}

static int64_t put_class(const shape *s, ln_grid *grid, int64_t place, const int64_t residue[AXES], strips strip) {
    const int64_t n0 = points_of(s, 0, residue[0]), n1 = points_of(s, 1, residue[1]);
    const int64_t strips0 = ln_ceil_div(n0, strip.width[0]), strips1 = ln_ceil_div(n1, strip.width[1]);
    for (int64_t i = 0; i < strips0; i++) {
        const stretch first = stretch_of(n0, strips0, i, false);
        for (int64_t j = 0; j < strips1; j++) {
            const stretch second = stretch_of(n1, strips1, j, i % 2 != 0);
            place = put_strip(s, grid, place, residue, first, second, (i * strips1 + j) % 2 != 0);
        }
    }
    return place;
}

static void put_places(const shape *s, ln_grid *grid, strips strip) {
    int64_t place = 0;
    int32_t number = 0;
    for (int64_t i = 0; i < s->dilation[0]; i++) {
        for (int64_t j = 0; j < s->dilation[1]; j++) {
            for (int64_t k = 0; k < s->dilation[2]; k++) {
                const int64_t begin = place;
                grid->residue_offsets[number] = begin;
                place = put_class(s, grid, place, (int64_t[AXES]){i, j, k}, strip);
                for (int64_t p = begin; p < place; p++) grid->residue[p] = number;
                number++;
            }
        }
    }
    grid->residue_offsets[number] = place;
}

static int32_t coordinate_of(const shape *s, int64_t token, int axis) {
    for (int a = AXES - 1; a > axis; a--) token /= s->extent[a];
    return (int32_t)(token % s->extent[axis] / s->dilation[axis]);
}

static void widen(int32_t value, int32_t *least, int32_t *most) {
    if (value < *least) *least = value;
    if (value > *most) *most = value;
}

/* Returns the words of `below` that it needs. */
static int64_t bound_word(const shape *s, const ln_grid *grid, int64_t number, int64_t below) {
    const int64_t begin = number * WORD, end = ln_min_i64(begin + WORD, grid->points), start = below;
    ln_grid_word *word = &grid->words[number];
    for (int a = 0; a < AXES; a++) {
        word->box.least[a] = word->box.most[a] = coordinate_of(s, grid->token[begin], a);
        word->low_least[a] = word->low_most[a] = grid->low[a][begin];
        word->high_least[a] = word->high_most[a] = grid->high[a][begin];
        for (int64_t p = begin; p < end; p++) {
            widen(coordinate_of(s, grid->token[p], a), &word->box.least[a], &word->box.most[a]);
            widen(grid->low[a][p], &word->low_least[a], &word->low_most[a]);
            widen(grid->high[a][p], &word->high_least[a], &word->high_most[a]);
        }
        word->below[a] = below;
        below += word->box.most[a] - word->box.least[a] + 2;
    }
    return below - start;
}

static void bound_groups(const ln_grid *grid) {
    for (int64_t w = 0; w < ln_ceil_div(grid->points, WORD); w++) {
        ln_grid_box *group = &grid->groups[w / LN_GRID_GROUP];
        const ln_grid_box *box = &grid->words[w].box;
        if (w % LN_GRID_GROUP == 0) *group = *box;
        for (int a = 0; a < AXES; a++) {
            widen(box->least[a], &group->least[a], &group->most[a]);
            widen(box->most[a], &group->least[a], &group->most[a]);
        }
    }
}

static void fill_below(const shape *s, const ln_grid *grid, int64_t number) {
    const int64_t begin = number * WORD, end = ln_min_i64(begin + WORD, grid->points);
    const ln_grid_word *word = &grid->words[number];
    for (int a = 0; a < AXES; a++) {
        uint64_t *below = grid->below + word->below[a];
        const int32_t count = word->box.most[a] - word->box.least[a] + 2;
        memset(below, 0, (size_t)count * sizeof *below);
        for (int64_t p = begin; p < end; p++)
            below[coordinate_of(s, grid->token[p], a) - word->box.least[a] + 1] |= UINT64_C(1) << (p - begin);
        for (int32_t i = 1; i < count; i++) below[i] |= below[i - 1];
    }
}

/* ---- who sees whom ---- */

/* Over some places: the widest box that one of them sees, the box that all of them see, and their classes. */
typedef struct reach {
    int32_t low_least[AXES], low_most[AXES], high_least[AXES], high_most[AXES];
    int64_t first, end; /* places of the classes */
    bool one_class;
} reach;

static reach reach_of(const ln_grid *grid, int64_t position, int64_t tokens) {
    const int64_t last = position + tokens - 1;
    const int32_t class = grid->residue[position], last_class = grid->residue[last];
    reach r = {.first = grid->residue_offsets[class],
               .end = grid->residue_offsets[last_class + 1],
               .one_class = class == last_class};
    for (int a = grid->first_axis; a < AXES; a++) {
        r.low_least[a] = r.high_least[a] = INT32_MAX;
        r.low_most[a] = r.high_most[a] = INT32_MIN;
        for (int64_t w = position / WORD; w <= last / WORD; w++) {
            const ln_grid_word *word = &grid->words[w];
            widen(word->low_least[a], &r.low_least[a], &r.low_most[a]);
            widen(word->low_most[a], &r.low_least[a], &r.low_most[a]);
            widen(word->high_least[a], &r.high_least[a], &r.high_most[a]);
            widen(word->high_most[a], &r.high_least[a], &r.high_most[a]);
        }
    }
    return r;
}

/* Some of the `places` places from `place` on, which lie in the box, may be seen. */
static bool meets(const ln_grid *grid, const reach *r, const ln_grid_box *box, int64_t place, int64_t places) {
    for (int a = grid->first_axis; a < AXES; a++)
        if (box->most[a] < r->low_least[a] || box->least[a] >= r->high_most[a]) return false;
    return place < r->end && place + places > r->first;
}

static bool meets_word(const ln_grid *grid, const reach *r, int64_t word) {
    return meets(grid, r, &grid->words[word].box, word * WORD, WORD);
}
static bool meets_group(const ln_grid *grid, const reach *r, int64_t word) {
    const int64_t group = word / LN_GRID_GROUP;
    return meets(grid, r, &grid->groups[group], group * LN_GRID_GROUP * WORD, LN_GRID_GROUP * WORD);
}

void ln_grid_range(const ln_grid *grid, int64_t position, int64_t tokens, int64_t *first, int64_t *end) {
    const reach r = reach_of(grid, position, tokens);
    int64_t low = r.first / WORD, high = (r.end - 1) / WORD;
    while (low <= high && !meets_word(grid, &r, low))
        low = meets_group(grid, &r, low) ? low + 1 : (low / LN_GRID_GROUP + 1) * LN_GRID_GROUP;
    while (high >= low && !meets_word(grid, &r, high))
        high = meets_group(grid, &r, high) ? high - 1 : high / LN_GRID_GROUP * LN_GRID_GROUP - 1;
    *first = ln_max_i64(low * WORD, r.first);
    *end = ln_max_i64(*first, ln_min_i64((high + 1) * WORD, r.end));
}

bool ln_grid_everything(const ln_grid *grid, int64_t position, int64_t tokens, int64_t key, int64_t count) {
    const reach r = reach_of(grid, position, tokens);
    if (!r.one_class || key < r.first || key + count > r.end) return false;
    for (int64_t w = key / WORD; w <= (key + count - 1) / WORD; w++)
        for (int a = grid->first_axis; a < AXES; a++)
            if (grid->words[w].box.least[a] < r.low_most[a] || grid->words[w].box.most[a] >= r.high_least[a])
                return false;
    return true;
}

bool ln_grid_nothing(const ln_grid *grid, int64_t position, int64_t tokens, int64_t key, int64_t count) {
    const reach r = reach_of(grid, position, tokens);
    for (int64_t w = key / WORD; w <= (key + count - 1) / WORD; w++)
        if (meets_word(grid, &r, w)) return false;
    return true;
}

static int64_t clamp(int64_t value, int64_t most) {
    return ln_min_i64(ln_max_i64(value, 0), most);
}

uint64_t ln_grid_bits(const ln_grid *grid, int64_t position, int64_t word) {
    const int32_t class = grid->residue[position];
    const ln_grid_word *w = &grid->words[word];
    const int64_t begin = clamp(grid->residue_offsets[class] - word * WORD, WORD);
    const int64_t end = clamp(grid->residue_offsets[class + 1] - word * WORD, WORD);
    if (begin >= end) return 0;
    uint64_t bits = (UINT64_MAX >> (WORD - (end - begin))) << begin;
    for (int a = grid->first_axis; a < AXES; a++) {
        const uint64_t *below = grid->below + w->below[a];
        const int64_t most = w->box.most[a] - w->box.least[a] + 1;
        bits &= below[clamp(grid->high[a][position] - w->box.least[a], most)] &
                ~below[clamp(grid->low[a][position] - w->box.least[a], most)];
    }
    return bits;
}

/* ---- opening ---- */

/* Returns the words of `below`. */
static int64_t order_by(const shape *s, ln_grid *grid, strips strip) {
    int64_t below = 0;
    put_places(s, grid, strip);
    for (int64_t i = 0; i < ln_ceil_div(grid->points, WORD); i++) below += bound_word(s, grid, i, below);
    return below;
}

/* Pairs of blocks that meet, for some blocks of queries. */
static int64_t count_visits(const ln_grid *grid) {
    const int64_t blocks = ln_ceil_div(grid->points, LN_ATTEND_BLOCK), step = ln_ceil_div(blocks, 64);
    int64_t visits = 0;
    for (int64_t q = 0; q < blocks; q += step) {
        for (int64_t k = 0; k < blocks; k++) {
            const int64_t query = q * LN_ATTEND_BLOCK, key = k * LN_ATTEND_BLOCK;
            visits += !ln_grid_nothing(grid, query, ln_min_i64(LN_ATTEND_BLOCK, grid->points - query), key,
                                       ln_min_i64(LN_ATTEND_BLOCK, grid->points - key));
        }
    }
    return visits;
}

/* The estimates are rough, so their choices and lines of one point are tried. */
static int64_t order_best(const shape *s, ln_grid *grid) {
    const strips candidates[] = {{{1, 1}}, choose_strips(s, 0), choose_strips(s, 0.5)};
    int64_t least = INT64_MAX, below = 0;
    strips best = candidates[0], last = {{0, 0}};
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        if (memcmp(&candidates[i], &last, sizeof last) == 0) continue;
        last = candidates[i];
        below = order_by(s, grid, last);
        const int64_t visits = count_visits(grid);
        if (visits >= least) continue;
        least = visits;
        best = last;
    }
    return memcmp(&best, &last, sizeof last) == 0 ? below : order_by(s, grid, best);
}

linnet_status ln_grid_open(linnet_context *context, const linnet_neighbourhood *neighbourhood, ln_grid *grid) {
    const shape s = shape_of(neighbourhood);
    const uint64_t points = (uint64_t)(s.extent[0] * s.extent[1] * s.extent[2]);
    const uint64_t classes = (uint64_t)(s.dilation[0] * s.dilation[1] * s.dilation[2]);
    const char *what = "a neighbourhood's points";
    *grid = (ln_grid){.first_axis = AXES - neighbourhood->axes, .points = (int64_t)points};
    const uint64_t words = (points + WORD - 1) / WORD;
    bool got =
        (grid->token = ln_allocate(context, points, sizeof *grid->token, what)) != NULL &&
        (grid->residue = ln_allocate(context, points, sizeof *grid->residue, what)) != NULL &&
        (grid->residue_offsets = ln_allocate(context, classes + 1, sizeof *grid->residue_offsets, what)) != NULL &&
        (grid->groups = ln_allocate(context, words / LN_GRID_GROUP + 1, sizeof *grid->groups, what)) != NULL &&
        (grid->words = ln_allocate(context, words, sizeof *grid->words, what)) != NULL;
    for (int a = 0; a < AXES; a++)
        got = got && (grid->low[a] = ln_allocate(context, points, sizeof *grid->low[a], what)) != NULL &&
              (grid->high[a] = ln_allocate(context, points, sizeof *grid->high[a], what)) != NULL;
    if (got) {
        const int64_t below = order_best(&s, grid);
        got = (grid->below = ln_allocate(context, (uint64_t)below, sizeof *grid->below, what)) != NULL;
    }
    if (!got) {
        ln_grid_close(context, grid);
        return LINNET_ERROR_MEMORY;
    }
    for (int64_t i = 0; i < (int64_t)words; i++) fill_below(&s, grid, i);
    bound_groups(grid);
    return LINNET_OK;
}

void ln_grid_close(linnet_context *context, ln_grid *grid) {
    ln_release(context, grid->token);
    ln_release(context, grid->residue);
    ln_release(context, grid->residue_offsets);
    ln_release(context, grid->words);
    ln_release(context, grid->groups);
    ln_release(context, grid->below);
    for (int a = 0; a < AXES; a++) {
        ln_release(context, grid->low[a]);
        ln_release(context, grid->high[a]);
    }
    *grid = (ln_grid){0};
}
