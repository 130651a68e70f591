"""Compare the values of parsed answers, and bound the work that they take.

math-verify rounds to six decimals and drops what is smaller than 1e-15, so that 1/2004! would be 1/2005!. Here two
exact numbers are equal if they are the same number, of whatever size. A decimal also equals a number of which it is
the rounding to six decimals or more.

This code runs in the verifier's processes only.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DIGITS = 100_000  # decimal digits: takes some milliseconds; (10^6)! has 5.6 million and takes seconds
MAX_TERMS = 1_000  # of a sum or product that is expanded
PRECISION, AGREEMENT = 50, 40  # digits to which irrational numbers are worked out, and in which they have to agree
MAX_WHOLE_DIGITS = 3_000  # of an irrational number
ROUNDED_DECIMALS = 6  # which a rounded number has
ROUNDED_DIGITS = 4  # significant ones: 0.000001 is no rounding of 1/1500000
ROUNDING_TOLERANCE = 0.05  # relative; how coarsely people round within an equation


class TooLarge(Exception):
    """A number with too many digits, or a sum or product with too many terms, to be evaluated."""


def compare_values(a: Any, b: Any) -> bool | None:
    """Return whether two numbers are equal; False for two formulas that differ somewhere; None if it is not known.

    >>> from sympy import Float, Pow, Rational, Symbol
    >>> compare_values(Pow(2, 2024, evaluate=False), Pow(4, 1012, evaluate=False))
    True
    >>> compare_values(Rational(1, 2), Float("0.5000001")), compare_values(Rational(1, 3), Float("0.333333"))
    (False, True)
    >>> compare_values(Symbol("x") + 1, Symbol("x") + 2), compare_values(Symbol("x"), Symbol("x"))
    (False, None)
    """
    if not (_is_plain(a) and _is_plain(b)):
        return None
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    x, y = _make_exact(a), _make_exact(b)
    if letters:
        point = {letter: _choose_value(i) for i, letter in enumerate(letters)}
        return False if _compare_digits(x.xreplace(point), y.xreplace(point)) is False else None
    p, q = _find_fraction(x), _find_fraction(y)
    same = p == q if p is not None and q is not None else _compare_digits(x, y)
    return True if same is False and (_is_rounding(a, y) or _is_rounding(b, x)) else same


def contradict(a: Any, b: Any) -> bool:
    """Tell whether two sides of an equation are different numbers, not counting coarse rounding.

    The letters i and e, and pi, may be variables.

    >>> from sympy import Float, Integer, pi, Rational
    >>> contradict(Integer(8), Integer(7)), contradict(Rational(22, 7), Float("3.14")), contradict(pi, Integer(3))
    (True, False, False)
    """
    from sympy import Float, I, NumberSymbol

    if not (_is_plain(a) and _is_plain(b)) or a.free_symbols or b.free_symbols:
        return False
    if a.has(I, NumberSymbol) or b.has(I, NumberSymbol) or compare_values(a, b) is not False:
        return False
    if not (a.has(Float) or b.has(Float)):
        return True
    x, y = a.evalf(PRECISION), b.evalf(PRECISION)
    return bool(abs(x - y) > ROUNDING_TOLERANCE * max(abs(x), abs(y)))


def _is_plain(e: Any) -> bool:
    """Tell whether an expression is made of numbers, letters and known functions, so that it has a value."""
    from sympy import Derivative, Expr, Integral, Limit, Product, Sum
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    return isinstance(e, Expr) and not e.has(Sum, Product, Integral, Limit, Derivative, AppliedUndef, Relational)


def _choose_value(i: int) -> Any:
    """Return the value at which formulas are compared, for the i-th of their letters: no value is special."""
    from sympy import Rational

    return Rational(1373 + 619 * i, 997 + 40 * i)


def _make_exact(e: Any) -> Any:
    """Replace the decimals in an expression by the fractions that they are as written."""
    from sympy import Float, Rational

    decimals = e.atoms(Float)
    return e.xreplace({decimal: Rational(str(decimal)) for decimal in decimals}) if decimals else e


# ------------------------------------------------------------------------------ numbers


def _find_fraction(e: Any) -> Fraction | None:
    """Return the value of a number that passed `bound_digits` if plain arithmetic shows that it is a fraction.

    >>> from sympy import Integer, Pow, sqrt
    >>> _find_fraction(Pow(2, -3, evaluate=False) + 1), _find_fraction(sqrt(2))
    (Fraction(9, 8), None)
    """
    from sympy import UnevaluatedExpr, binomial, factorial

    if e.is_Rational:
        return Fraction(int(e.p), int(e.q))
    if not (e.is_Add or e.is_Mul or e.is_Pow or isinstance(e, (UnevaluatedExpr, binomial, factorial))):
        return None
    parts = [_find_fraction(part) for part in e.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if e.is_Add:
        return sum(known, Fraction())
    if e.is_Mul:
        return math.prod(known, start=Fraction(1))
    if isinstance(e, UnevaluatedExpr):
        return known[0]
    if known[-1].denominator > 1 or (e.is_Pow and not known[0] and known[1] < 0):
        return None
    if e.is_Pow:
        return Fraction(known[0] ** int(known[1]))
    if known[0].denominator > 1 or min(known) < 0:
        return None
    return Fraction(math.factorial(int(known[0])) if len(known) == 1 else math.comb(int(known[0]), int(known[1])))


def _compare_digits(a: Any, b: Any) -> bool | None:
    """Return whether two numbers agree in AGREEMENT digits, and as many after the point; None if it is not known."""
    whole = 0
    while True:
        values = [e.evalf(PRECISION + whole) for e in (a, b)]
        parts = [part for value in values if value.is_number and value.is_finite for part in value.as_real_imag()]
        if len(parts) < 4 or any(not part.is_Rational and (not part.is_Float or part._prec == 1) for part in parts):
            return None  # infinite, undefined, or too close to zero to be told from it
        size, distance = max(map(abs, parts)), abs(parts[0] - parts[2]) + abs(parts[1] - parts[3])
        if distance > min(size, 1 if whole else size) / 10**AGREEMENT:
            return False
        digits = math.ceil(0.30103 * (size._mpf_[2] + size._mpf_[3])) if size.is_Float else 0
        if whole or digits <= PRECISION - AGREEMENT:
            return True
        if digits > MAX_WHOLE_DIGITS:
            return None
        whole = digits


def _is_rounding(decimal: Any, number: Any) -> bool:
    """Tell whether a decimal is the rounding of an exact number, other than an integer, to ROUNDED_DECIMALS or more.

    The last decimal may be a zero, which a parsed decimal does not show any more. Of a decimal times a power of ten,
    the decimals of the first factor count.
    """
    from sympy import Float, Integer, Pow

    scale = Fraction(1)
    if decimal.is_Mul and len(decimal.args) == 2 and decimal.args[0].is_Float and isinstance(decimal.args[1], Pow):
        power = _find_fraction(decimal.args[1])
        if decimal.args[1].base != Integer(10) or power is None:
            return False
        decimal, scale = decimal.args[0], power
    if not isinstance(decimal, Float) or number.is_real is False or number.is_integer:
        return False
    _, digits, exponent = Decimal(str(decimal)).normalize().as_tuple()
    if not isinstance(exponent, int) or -exponent < ROUNDED_DECIMALS - 1 or len(digits) < ROUNDED_DIGITS:
        return False
    exact = number.evalf(PRECISION)
    if not exact.is_Float and not exact.is_Rational:
        return False
    distance = abs(Fraction(str(exact)) - Fraction(str(decimal)) * scale)
    return bool(distance <= scale / (2 * 10 ** max(-exponent, ROUNDED_DECIMALS)))


# ------------------------------------------------------------------------------ bounds


def bound_digits(e: Any) -> float:
    """Return an upper bound on the decimal digits of an evaluated number; symbols count as 0 digits.

    Raises TooLarge if that is more than MAX_DIGITS, or if a sum or product has more than MAX_TERMS terms.
    """
    from sympy import Basic, Float, Mod, Pow, Product, Rational, Sum, binomial, factorial, factorial2, gamma

    if isinstance(e, Rational):
        return 0.30103 * max(abs(int(e.p)), int(e.q)).bit_length() if e not in (0, 1, -1) else 0.0
    if isinstance(e, Float):
        return abs(float(e._mpf_[2] + e._mpf_[3])) * 0.30103 + 1
    if not isinstance(e, Basic) or not e.args:
        return 0.0
    if isinstance(e, (Sum, Product)):
        for _, *limits in e.limits:
            if len(limits) == 2 and _evaluate(limits[1] - limits[0]) > MAX_TERMS:
                raise TooLarge
    inner = [bound_digits(argument) for argument in e.args]
    if isinstance(e, Pow):
        size = inner[0] * max(1.0, abs(_evaluate(e.exp))) if inner[0] else 0.0
    elif isinstance(e, (factorial, factorial2, gamma)):
        number = max(_evaluate(e.args[0]), 1.0)
        size = number * math.log10(number)
    elif isinstance(e, binomial):
        size = 3.0 * abs(_evaluate(e.args[0]))  # ten times its digits, because sympy multiplies factor by factor
    else:
        size = max(inner) if isinstance(e, Mod) else sum(inner)
    if size > MAX_DIGITS:
        raise TooLarge
    return size


def _evaluate(e: Any) -> float:
    """Return the value of a number whose parts passed `bound_digits`; 0 if it is not a number, or is infinite.

    Raises TooLarge if a float cannot hold it.
    """
    if e.free_symbols or e.is_infinite or not e.is_comparable:
        return 0.0
    try:
        return float(e.evalf(5))
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        raise TooLarge from None
