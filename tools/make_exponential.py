#!/usr/bin/env python3
"""Derives the polynomials of src/kernel/exponential.h and writes that header.

    tools/make_exponential.py            # write the header, print the table of errors
    tools/make_exponential.py --check    # exit status 1 where the header is not what this script writes

p(f) = 1 + c1 f + ... + cd f^d has the smallest largest relative error |p(f) / 2^f - 1| on its interval among the polynomials
with p(0) = 1, by Remez' exchange in decimal arithmetic. Coefficients are rounded to float32 one after the other, from c1 up,
and those after it are derived anew each time, so that they make up for the rounding. Only Python's own library is used; the
same bytes come out everywhere."""
import decimal
import pathlib
import struct
import sys
from decimal import Decimal as D

decimal.getcontext().prec = 50
LN2 = D(2).ln()
INTERVALS = {"NEAR": (D("-0.5"), D("0.5"), "-1/2 <= f <= 1/2"), "FLOOR": (D(0), D(1), "0 <= f < 1")}
DEGREES = range(2, 8)
HEADER = pathlib.Path(__file__).resolve().parent.parent / "src/kernel/exponential.h"


def solve(matrix, right):
    """Gauss with pivots."""
    n = len(right)
    rows = [list(matrix[i]) + [right[i]] for i in range(n)]
    for i in range(n):
        best = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[best] = rows[best], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    x = [D(0)] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][k] * x[k] for k in range(i + 1, n))) / rows[i][i]
    return x


def value(coefficients, f):
    result = D(0)
    for c in reversed(coefficients):
        result = result * f + c
    return result


class Grid:
    """The Chebyshev points of an interval, without 0, and 2^-f there."""

    def __init__(self, low, high, count=400):
        turns = [D(i) / count * D("3.14159265358979323846264338327950288") for i in range(count + 1)]
        self.points = [p for p in ((low + high) / 2 - (high - low) / 2 * cosine(t) for t in turns) if abs(p) > D("1e-9")]
        self.inverse = [(-f * LN2).exp() for f in self.points]


def cosine(x):
    term, total, n = D(1), D(1), 0
    while abs(term) > D("1e-48"):
        n += 2
        term = -term * x * x / (n * (n - 1))
        total += term
    return total


def errors(grid, coefficients):
    return [value(coefficients, f) * inverse - 1 for f, inverse in zip(grid.points, grid.inverse)]


def extremes(values, count):
    """The largest |value| of each run of one sign; of these, `count` that follow each other and are largest."""
    runs = []
    for i, v in enumerate(values):
        if runs and (v > 0) == (values[runs[-1]] > 0):
            if abs(v) > abs(values[runs[-1]]):
                runs[-1] = i
        else:
            runs.append(i)
    while len(runs) > count:
        runs.pop(0 if abs(values[runs[0]]) < abs(values[runs[-1]]) else -1)
    return runs


def best(grid, fixed, degree):
    """The coefficients after `fixed` of the best polynomial."""
    k, free = len(fixed), degree + 1 - len(fixed)
    if free == 0:
        return fixed
    n = len(grid.points)
    at = [round((n - 1) * (1 - float(cosine(D(i) * D("3.14159265358979") / free))) / 2) for i in range(free + 1)]
    for _ in range(60):
        matrix, right = [], []
        for j, i in enumerate(at):
            f, inverse = grid.points[i], grid.inverse[i]
            # The error is f^k times that of the coefficients sought: where f^k turns, so does the alternation.
            turn = -1 if k % 2 == 1 and f < 0 else 1
            matrix.append([f ** (k + m) * inverse for m in range(free)] + [D(turn * (-1) ** j)])
            right.append(1 - value(fixed, f) * inverse)
        found = solve(matrix, right)
        coefficients, level = fixed + found[:free], abs(found[free])
        values = errors(grid, coefficients)
        worst = max(range(n), key=lambda i: abs(values[i]))
        if abs(values[worst]) <= level * D("1.0001"):
            break
        at = exchange(at, values, worst, k, grid.points)
    return coefficients


def exchange(at, values, new, k, points):
    """One point of the reference gives way to the new one, so that signs of error times sign of f^k still turn."""
    def sign(i):
        return (values[i] > 0) != (k % 2 == 1 and points[i] < 0)

    at = sorted(at)
    if new < at[0]:
        return [new] + (at[1:] if sign(new) == sign(at[0]) else at[:-1])
    if new > at[-1]:
        return (at[:-1] if sign(new) == sign(at[-1]) else at[1:]) + [new]
    right = next(j for j, i in enumerate(at) if i >= new)
    at[right if sign(at[right]) == sign(new) else right - 1] = new
    return at


def single(x):
    return D(struct.unpack("f", struct.pack("f", float(x)))[0])


def derive(interval, degree):
    grid = Grid(*INTERVALS[interval][:2])
    coefficients = [D(1)]
    ideal = max(map(abs, errors(grid, best(grid, coefficients, degree))))
    while len(coefficients) <= degree:
        coefficients.append(single(best(grid, coefficients, degree)[len(coefficients)]))
    return coefficients, ideal, max(map(abs, errors(grid, coefficients)))


def upward(x):
    """Two digits, rounded up."""
    exponent = x.adjusted() - 1
    return f"{(x.scaleb(-exponent)).to_integral_value(decimal.ROUND_CEILING)}e{exponent}"


def macro(interval, degree, coefficients, error):
    program = f"splat({float(coefficients[-1]).hex()}f)"
    lines = [f"#define LN_POWER_{interval}_{degree}_ERROR {upward(error)}", f"#define LN_POWER_{interval}_{degree}(f) \\"]
    opening = "    " + "multiply_add(" * degree
    lines.append(f"{opening}{program}, f, \\")
    for c in reversed(coefficients[1:-1]):
        lines.append(f"        splat({float(c).hex()}f)), f, \\")
    lines.append("        splat(1.0f))")
    return "\n".join(lines)


TOP = """/* Written by tools/make_exponential.py: the polynomials p(f) for 2^f of all kernels.
 *
 *     2^x = 2^n p(x - n),   n = round(x): LN_POWER_NEAR_d,   n = floor(x): LN_POWER_FLOOR_d,   d the degree
 *
 * p has the smallest largest relative error of its degree under p(0) = 1, which keeps 2^0 exact; the _ERROR is that of
 * the polynomial with these coefficients, to which float32 arithmetic adds less than 2^-23 (tests/test_exponential.c:
 * all floats of the interval). Take degree 3 where bf16 follows (half an ulp: 2^-9; degree 2 just misses it), 5 for
 * float32; 6 and 7 gain nothing that float32 could hold.
 *
 * The file that includes this has multiply_add (a, b, c) = a b + c and splat (x). */
#ifndef LN_KERNEL_EXPONENTIAL_H
#define LN_KERNEL_EXPONENTIAL_H

/* clang-format off */
"""


def main():
    text = TOP
    print("interval degree   smallest error  with float32 coefficients")
    for interval in INTERVALS:
        text += f"\n/* {INTERVALS[interval][2]} */\n"
        for degree in DEGREES:
            coefficients, ideal, error = derive(interval, degree)
            print(f"{interval:8} {degree:6}   {float(ideal):14.3e}  {float(error):10.3e}")
            text += macro(interval, degree, coefficients, error * D("1.001")) + "\n"
    text += "/* clang-format on */\n\n#endif\n"
    if "--check" in sys.argv:
        return 0 if HEADER.read_text(encoding="utf-8") == text else 1
    HEADER.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
