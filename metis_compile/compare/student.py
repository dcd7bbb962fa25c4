"""Student's t distribution for whole degrees of freedom, in closed form: what intervals and paired tests need."""

import math

__all__ = ["quantile", "two_sided"]


def within(t: float, freedom: int) -> float:
    """P(|T| <= t): a finite sum over powers of the cosine of atan(t / sqrt(freedom))."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {freedom}")
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def two_sided(t: float, freedom: int) -> float:
    """P(|T| > t): the p-value of a two-sided test; 0 for an infinite t."""
    return min(1.0, max(0.0, 1 - within(t, freedom)))


def quantile(inside: float, freedom: int) -> float:
    """The t with P(|T| <= t) = ``inside``, by bisection: half the width of an interval in standard errors."""
    if not 0 < inside < 1:
        raise ValueError(f"the probability must lie between 0 and 1, got {inside}")
    low, high = 0.0, 1.0
    while within(high, freedom) < inside:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < inside else (low, middle)
    return high
