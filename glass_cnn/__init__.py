"""Two-dimensional glasses and liquids: simulate, render, train a CNN, measure its collapse.

    import glass_cnn
    study = glass_cnn.open_study("logs/quickstart")
    study.runs, study.curves, study.estimates, study.figure("survival")

This is the door for code of one's own; the program itself does not go through it. What it names is
loaded when it is asked for: `import glass_cnn` alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glass_cnn.report.results import StudyResults, open_study

__all__ = ["StudyResults", "open_study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glass_cnn.report import results

    return getattr(results, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
