"""Answers for the verifier's tests: honest ones as models write them, and hostile ones. All of them differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice

Sample = tuple[str, str]  # gold answer, response

HONEST: tuple[Callable[[int], Sample], ...] = (
    lambda i: (rf"\frac{{{i}}}{{{i + 1}}}", rf"so \boxed{{\frac{{{2 * i}}}{{{2 * i + 2}}}}}"),
    lambda i: (rf"\frac{{{i}}}{{{i + 1}}}", rf"so \boxed{{\dfrac{{{i + 1}}}{{{i + 2}}}}}"),
    lambda i: (rf"{i}\sqrt{{3}}", rf"\boxed{{\sqrt{{{3 * i * i}}}}}"),
    lambda i: (rf"{i}\sqrt{{3}}", rf"\boxed{{{i}\sqrt{{2}} + 1}}"),
    lambda i: (rf"({i}, {i + 2})", rf"\boxed{{({i},{i + 2}.0)}}"),
    lambda i: (rf"{i}, {-i}", rf"\boxed{{{-i}, {i}}}"),
    lambda i: (rf"x^2 - {i}", rf"\boxed{{(x-\sqrt{{{i}}})(x+\sqrt{{{i}}})}}"),
    lambda i: (rf"[-{i}, {i}]", rf"\boxed{{[-{i}, \frac{{{2 * i}}}{{2}}]}}"),
    lambda i: (rf"{i}\pi", rf"\boxed{{\frac{{{2 * i}\pi}}{{2}}}}"),
    lambda i: (f"{i}", rf"\boxed{{x = {i}}}"),
    lambda i: (rf"{i}x", rf"\boxed{{x \cdot {i}}}"),
    lambda i: (rf"{i}.5", rf"\boxed{{\frac{{{2 * i + 1}}}{{2}}}}"),
    lambda i: (rf"{i} + 2i", rf"\boxed{{2i + {i}}}"),
    lambda i: (rf"\frac{{{i}}}{{7}}", rf"\boxed{{{i} \cdot 7^{{-1}}}}"),
    lambda i: (rf"\log_2 {i + 2}", rf"\boxed{{\frac{{\ln {i + 2}}}{{\ln 2}}}}"),
    lambda i: (rf"{i}\%", rf"\boxed{{{i}.0}}"),
)

HOSTILE: tuple[Callable[[int], Sample], ...] = (
    lambda i: ("5", "x" * 1_000_000 + rf"\boxed{{{i} + \frac{{1}}{{2}}}}"),
    lambda i: ("5", r"\boxed{" + "1" * 1_000_000 + f"{i}}}"),
    lambda i: ("5", r"\boxed{" + "{" * 100_000 + str(i) + "}" * 100_000 + "}"),
    lambda i: ("5", r"\boxed{" * 100_000 + str(i)),
    lambda i: ("5", rf"\boxed{{{i + 9}^{{9^{{9^9}}}}}}"),
    lambda i: ("5", rf"\boxed{{9^{{9^{{{i + 9}}}}}}}"),
    lambda i: ("5", rf"\boxed{{(10^6 + {i})!}}"),
    lambda i: ("5", rf"\boxed{{((({i + 9})!)!)!}}"),
    lambda i: ("5", rf"\boxed{{\binom{{10^9}}{{5\cdot10^8 + {i}}}}}"),
    lambda i: ("5", rf"\boxed{{\sum_{{k=1}}^{{10^9 + {i}}} \frac{{1}}{{k^2+1}}}}"),
    lambda i: ("5", rf"\boxed{{\prod_{{k=1}}^{{10^8}} (k + {i})}}"),
    lambda i: ("5", r"\boxed{" + "(" * (40 + i) + "1" + ")" * (40 + i) + "}"),
    lambda i: ("5", r"\boxed{" + "+".join(str(k + i) for k in range(1000)) + "}"),
    lambda i: ("5", r"\boxed{" + r"\sqrt{" * 1000 + str(i) + "}" * 1000 + "}"),
    lambda i: ("5", "\\boxed{1\x002" + str(i) + "}"),
    lambda i: ("5", "\\boxed{\ud800" + str(i) + "}"),
    lambda i: ("5", rf"\boxed{{\frac{{{i}}}{{}}\left(}}"),
    lambda i: ("5", rf"\boxed{{\sqrt[1000000]{{{i + 2}^{{1000000}}}}}}"),
    lambda i: ("5", rf"\boxed{{2^{{10^{{12}} + {i}}} \mod 7}}"),
    lambda i: ("5", rf"\boxed{{{i + 2}^{{-9^{{9^9}}}}}}"),
    lambda i: (r"\frac{1}{3}", rf"\boxed{{\frac{{{i}}}{{9^{{9^9}}!}}}}"),
    lambda i: ("x+1", rf"\boxed{{x^{{9^{{9^9}}}} + {i}}}"),
)


# Slow in ways that no guard foresees: only the timers end them.
SLOW: tuple[Callable[[int], Sample], ...] = (
    lambda i: ("x^3+x=2", rf"\boxed{{x^{{100}}+{i}x+1=0}}"),
    lambda i: ("x", r"\boxed{" + r"\cdot ".join(rf"\cos({k}x+{i})" for k in range(1, 16)) + "}"),
)


def samples(makers: tuple[Callable[[int], Sample], ...], n: int) -> list[Sample]:
    """`n` samples, each kind in turn."""
    endless: Iterator[Sample] = (make(i) for i in count(1) for make in makers)
    return list(islice(endless, n))
