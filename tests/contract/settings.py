"""For every method, settings under which a run of eight steps meets all it does; a new method adds a line."""

from itertools import combinations

from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import METHODS, build_methods
from tests import tiny

SETTINGS: dict[str, dict] = {
    "layerdrop": {"p": 0.4},
    "stacking": {"depth": 1, "at": [0.3, 0.7]},
    "tnf": {"k": 2, "min_count": 5, "max_count": 7},
}


def ledgers() -> list[dict[str, dict]]:
    """Each method alone, and each pair that is allowed."""
    return [
        {name: SETTINGS[name] for name in names}
        for size in (1, 2)
        for names in combinations(METHODS, size)
        if allowed({name: SETTINGS[name] for name in names})
    ]


def allowed(ledger: dict[str, dict]) -> bool:
    try:
        build_methods(ledger, tiny.config())
    except EffptError:
        return False
    return True


def name_of(ledger: dict[str, dict]) -> str:
    return "+".join(ledger) or "none"
