"""Whole numbers that a share stands for: of layers, heads, neurons, weights, rows, documents, words or steps."""

import math

DECIMALS = 9  # of a product; what is beyond them is an error of floating-point numbers


def part_of(share: float, whole: float, least: int = 0) -> int:
    """Whole number nearest to the product of `share` and `whole`, at least `least`; of two equally near the even one.

    The one rule for all methods, and that of published code: BERT's and ELECTRA's number of masked tokens, torch's
    pruning. So half of 12 is 6, half of 5 is 2, half of 7 is 4, and two thirds of 16 are 11. Products are taken as
    exact: 0.575 of 100 is 57.5 and so 58, though floating-point numbers give 57.49999999999999.
    """
    return max(least, round(round(share * whole, DECIMALS)))


def first_step(share: float, budget: int) -> int:
    """First of `budget` steps after which at least the fraction `share` of them is done."""
    return math.ceil(round(share * budget, DECIMALS))
