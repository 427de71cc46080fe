"""Values that a setting may be given by mistake, and such as it should take, by its declared type."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

SCHEDULE = {0: 0.4, 0.5: 0.2}
# Of another type, at an edge, or not a number; a wrong one is refused whatever the setting.
ANYTHING = [
    None, True, False, 0, 1, 2, 3, 7, -1, 64, 10**9, 10**30, 0.0, 0.5, 1.0, 1.5, -0.5, 1e-9, 1e300,
    float("inf"), float("-inf"), float("nan"), "", " ",
    "none", "nan", "1e-3", "0.5", "2", "10min", "5steps", "1e4tokens",
    "ä", "--budget", "../..", "a\nb", "{0: 1}", [], [1], [0.2, 0.6], [2, 1], ["a"], [None], [[1]],
    {}, {"a": 1}, {0: 1}, {0: 8, 0.5: 32}, SCHEDULE, {0.5: 0.2}, {"0": 16, "0.5": 32}, {0: 0.2, 1.5: 0.4}, {-1: 2},
]  # fmt: skip


def of_type(hint: Any) -> st.SearchStrategy:
    """Values of a declared type, most of them likely to be accepted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return of_type(arguments[0])
    if origin in (Union, UnionType):
        return st.one_of([of_type(one) for one in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(of_type(arguments[0]) if arguments else st.integers(), max_size=4)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.one_of(st.integers(0, 16), st.sampled_from([32, 64, 128, 256]))
    if hint is float:
        return st.one_of(st.floats(0, 1), st.sampled_from([1e-3, 0.1, 0.15, 0.5, 0.9]))
    return st.sampled_from(ANYTHING)


def setting(hint: Any) -> st.SearchStrategy:
    """Values of a type, and once in a while any other."""
    return st.one_of(of_type(hint), of_type(hint), st.sampled_from(ANYTHING))
