"""Numbers, settings and outcomes in words, for captions, tables and headlines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glass_cnn.settings import RunSettings
from glass_cnn.study_file import StudySection
from hpc.config import to_tree

if TYPE_CHECKING:  # they load SciPy, and `make status` has only words to say
    from glass_cnn.analysis import statistics
    from glass_cnn.analysis.effects import Effect
    from glass_cnn.analysis.factors import Factor


def number(value: float) -> str:
    """A setting's number as people write it: 0.001, 1e-4, 250."""
    text = f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e") if "e" in text else text


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 1 in per cent; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f} %"


def level(value: float) -> str:
    """A threshold or a level of confidence in per cent, with all its digits."""
    return f"{number(100 * value)} %"


def interval(rate: statistics.Rate) -> str:
    """The interval of a rate in per cent; to a tenth where it is narrow; a dash without runs."""
    digits = 0 if rate.high - rate.low > 0.05 else 1
    return f"{100 * rate.low:.{digits}f}–{100 * rate.high:.{digits}f} %" if rate.n else "–"


def describe_rate(settings: RunSettings) -> str:
    """The learning rate in words."""
    rate = to_tree(settings.train.learning_rate)
    kind = rate.pop("kind")
    if kind == "constant":
        return f"learning rate {number(rate['initial'])}"
    levels = rate.pop("levels", [])
    parts = [f"{key.replace('_', ' ')} {_word(value)}" for key, value in rate.items()]
    parts += [f"{number(lv['rate'])} {_from(lv)}" for lv in levels]
    return f"learning rate {kind.replace('_', ' ')} ({', '.join(parts)})"


def _from(mark: Mapping[str, Any]) -> str:
    """Where a level of a threshold schedule begins."""
    if mark["at_least"] is None:
        return f"above {level(mark['above'])}"
    return f"at or above {level(mark['at_least'])}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)


def describe_optimizer(settings: RunSettings) -> str:
    """The optimizer in words; what is off is left out."""
    tree = to_tree(settings.train.optimizer)
    kind = {"adam": "Adam", "sgd": "SGD"}[tree.pop("kind")]
    words = {"beta_1": "β₁", "beta_2": "β₂", "epsilon": "ε"}
    parts = [
        f"{words.get(key, key.replace('_', ' '))} {_word(value)}"
        for key, value in tree.items()
        if value not in (None, False, 0.0)
    ]
    return f"{kind} ({', '.join(parts)})" if parts else kind


def describe_augmentation(settings: RunSettings) -> str:
    """The augmentation in words."""
    used = [key for key, on in to_tree(settings.train.augmentation).items() if on]
    return f"augmentation by {' and '.join(used)}" if used else "no augmentation"


def describe_images(settings: RunSettings) -> str:
    """The data set, and how its pictures differ from those of the log, in words."""
    render = settings.render
    told = [settings.data.form, f"{render.pixels} px"]
    told += ["discs"] if render.style == "disc" else []
    told += [f"on {render.background}"] if render.background != "white" else []
    told += [f"windows of {number(render.window)} σ"] if render.window else []
    return f"data set {settings.data.name} ({', '.join(told)})"


def describe_model(settings: RunSettings) -> str:
    """The recipe, and what is set beside it, in words."""
    model = settings.model
    names = ("input", "weights", "dense_rate")
    beside = [f"{setting(k)} {plain(v)}" for k in names if (v := getattr(model, k)) is not None]
    return f"model {model.recipe}" + (f" ({', '.join(beside)})" if beside else "")


def describe(settings: RunSettings) -> str:
    """All hyperparameters of a run in the words of the results log."""
    train = settings.train
    return ", ".join(
        [
            describe_images(settings),
            describe_model(settings),
            f"batch size {train.batch_size}",
            describe_rate(settings),
            describe_optimizer(settings),
            f"L2 {number(train.l2)}",
            f"dropout {number(train.dropout)}",
            describe_augmentation(settings),
            *(["a new shuffle for each batch"] if train.order == "batch" else []),
            *([f"{train.precision} factors"] if train.precision != "float32" else []),
        ]
    )


OUTCOME_WORDS = {
    "survived": "survived",
    "transient_collapse": "transient collapse",
    "permanent_collapse": "permanent collapse",
    "never_learned": "never learned",
    "non_finite": "loss not finite",
    "incomplete": "incomplete",
}


def describe_accuracies(row: dict[str, Any]) -> str:
    """Optimal and final accuracies of a run, in words."""
    return (
        f"Optimal validation accuracy {percent(row['optimal_validation_accuracy'], 3)} "
        f"({_at(row, row['optimal_iteration'])}; "
        f"test {percent(row['optimal_test_accuracy'], 3)}); "
        f"final {percent(row['final_validation_accuracy'], 3)} "
        f"({_at(row, row['iteration'])}; test {percent(row['final_test_accuracy'], 3)})."
    )


def _at(row: dict[str, Any], iteration: int | None) -> str:
    """An iteration of a run, and its epoch where that is known."""
    if not iteration or row["epoch"] is None:
        return f"iteration {iteration or '–'}"
    return f"iteration {iteration}, epoch {row['epoch'] * iteration / row['iteration']:.1f}"


def describe_outcome(row: dict[str, Any]) -> str:
    """Outcome of a run, with when it learned and collapsed, in words."""
    if row["state"] != "complete":
        return f"Not counted: {row['reason']}."
    text = f"Outcome: {OUTCOME_WORDS[row['outcome']]}"
    if row["learned_iteration"] is not None:
        text += f"; learned by {_at(row, row['learned_iteration'])}"
    if row["onset_before_step"] is not None:
        text += (
            f"; first collapse between steps {row['onset_after_step']} "
            f"and {row['onset_before_step']}"
        )
    units = _dead(row, "dead", "units of the dense layer")
    return text + units + _dead(row, "dead_channels", "channels of the second convolution") + "."


def _dead(row: dict[str, Any], column: str, what: str) -> str:
    """What was dead of a layer when it mattered, in words; "" where it was not measured."""
    when = {"before_onset": "before the fall", "at_onset": "at it", "at_end": "at the end"}
    shares = {text: row[f"{column}_{moment}"] for moment, text in when.items()}
    told = [f"{percent(share, 0)} {text}" for text, share in shares.items() if share is not None]
    return f"; dead {what}: {', '.join(told)}" if told else ""


def describe_seeds(section: StudySection) -> str:
    """The seeds of a study, and which of them have copies."""
    copies = f" ({section.copied.count} copies of {_in_a_row(section.copied_seeds)})"
    return _in_a_row(section.seed_list) + (copies if section.copied_seeds else "")


def _in_a_row(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def describe_seed(row: dict[str, Any]) -> str:
    """Which replicate a run is."""
    return f"seed {row['seed']}" + (f", copy {row['copy']}" if row["copy"] else "")


def caption(row: dict[str, Any], settings: RunSettings) -> str:
    """Caption of a run's figure: all hyperparameters and the optimal and final accuracies."""
    return (
        "Training and validation loss and accuracy against iterations "
        f"(of {settings.train.batches_per_iteration} steps): "
        f"{describe(settings)}, {describe_seed(row)}. "
        f"{describe_accuracies(row)} {describe_outcome(row)}"
    )


def setting(name: str) -> str:
    """A setting's dotted name for people: train.learning_rate.initial is learning rate."""
    parts = name.removeprefix("train.").split(".")
    shown = [part for part in parts if part not in ("initial", "kind")] or parts
    return " ".join(shown).replace("_", " ")


def plain(value: Any) -> str:
    """Any value of a setting on one line."""
    if isinstance(value, Mapping):
        items = (plain(v) if k == "kind" else f"{setting(k)} {plain(v)}" for k, v in value.items())
        return ", ".join(items)
    if isinstance(value, list | tuple):
        return "; ".join(plain(v) for v in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if is_number else str(value)


def factor_name(factor: Factor) -> str:
    """What people call an axis of a study."""
    return " with ".join(setting(name) for name in factor.names)


def level_name(factor: Factor, level: int) -> str:
    """What people call a level of it."""
    value = factor.levels[level]
    return ", ".join(map(plain, value)) if len(factor.names) > 1 else plain(value)


def ratio(effect: Effect | None) -> str:
    """A ratio with its interval: 12 (8.1–18)."""
    if effect is None:
        return "–"
    value, low, high = (_factor(end) for end in effect)
    return f"{value} ({low}–{high})"


def _factor(value: float) -> str:
    if math.isinf(value):
        return "∞"
    if not 0.005 <= value < 1000:
        return "0" if value == 0 else number(float(f"{value:.1e}"))
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def p_value(value: float | None) -> str:
    """A p-value with two digits that count."""
    if value is None or not math.isfinite(value):
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def p_is(value: float | None) -> str:
    """'p = 0.02' or 'p < 0.0001', for a sentence."""
    text = p_value(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:+.1f}".replace("-", "−")


def median_time(value: float | None) -> str:
    """Steps by which half of the runs have collapsed; a dash if they never do."""
    return f"{value:.0f}" if value is not None else "–"


def markdown(text: Any) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text)).replace("\n", " ")
