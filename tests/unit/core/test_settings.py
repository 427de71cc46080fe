import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import Count, CountOrZero, Fraction, In, Inside, Positive, Share, check_settings


@dataclass
class Settings:
    name: ClassVar[str] = "made"

    share: Share = 1.0
    after: Fraction | None = None
    inside: Inside = 0.5
    rate: Positive | None = None
    slope: Annotated[float, In("(-inf, 0)", "the loss falls")] = -1.0
    free: float = -3.5
    count: Count = 1
    steps: CountOrZero | None = 0
    word: Literal["one", "two"] | None = "one"
    flag: bool = False
    path: str | None = None
    several: int | list[int] = 1

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("key", "value"),
    [("share", 1), ("after", 0.0), ("rate", 1e9), ("slope", -1e-9), ("free", 7), ("count", 10**9), ("steps", None),
     ("word", None), ("flag", True), ("path", "a"), ("path", Path("a")), ("several", [1])],
)  # fmt: skip
def test_values_within_are_kept_as_they_are(key, value):
    assert getattr(Settings(**{key: value}), key) == value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("share", 0.0, "in (0, 1], not 0.0."),
        ("share", math.nan, "in (0, 1], not nan."),
        ("share", True, "in (0, 1], not True."),
        ("share", "0.5", "in (0, 1], not '0.5'."),
        ("after", 1, "in [0, 1), not 1."),
        ("inside", 0.0, "in (0, 1), not 0.0."),
        ("inside", None, "in (0, 1), not None."),
        ("rate", 0, "above 0 and finite, not 0."),
        ("rate", math.inf, "above 0 and finite, not inf."),
        ("slope", 0.0, "below 0 and finite, not 0.0: the loss falls."),
        ("free", -math.inf, "a finite number, not -inf."),
        ("count", 0, "a whole number of at least 1, not 0."),
        ("count", 2.0, "a whole number of at least 1, not 2.0."),
        ("steps", False, "a whole number of at least 0, not False."),
        ("word", "three", "one of one, two, not 'three'."),
        ("flag", 1, "true or false, not 1."),
        ("path", 3, "a text, not 3."),
        ("several", 2.5, "a whole number or a list, not 2.5."),
    ],
)
def test_others_are_refused_by_name(key, value, said):
    with pytest.raises(EffptError) as error:
        Settings(**{key: value})
    assert str(error.value) == f"`made.{key}` must be {said}"
