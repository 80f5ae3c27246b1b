/* Owns: the normal distribution by the polar method of Marsaglia. */
#include "base/random.h"

#include <math.h>

double ln_random_normal(ln_random *random) {
    for (;;) {
        const double x = 2 * ln_random_unit(random) - 1, y = 2 * ln_random_unit(random) - 1, s = x * x + y * y;
        if (s > 0 && s < 1) return x * sqrt(-2 * log(s) / s);
    }
}
