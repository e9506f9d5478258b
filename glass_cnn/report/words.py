"""Numbers, settings, outcomes and estimates in words, for captions and headlines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.analysis.spread import Spread
from glass_cnn.settings import RunSettings
from glass_cnn.study_file import StudySection
from hpc.config import to_tree
from hpc.words import plural


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


def describe(settings: RunSettings) -> str:
    """All hyperparameters of a run in the words of the results log."""
    train = settings.train
    return ", ".join(
        [
            f"data set {settings.data.name} ({settings.data.form}, {settings.render.pixels} px)",
            f"model {settings.model.recipe}",
            f"batch size {train.batch_size}",
            describe_rate(settings),
            describe_optimizer(settings),
            f"L2 {number(train.l2)}",
            f"dropout {number(train.dropout)}",
            describe_augmentation(settings),
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
    return text + "."


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


def answers(estimates: Estimates) -> list[tuple[str, str]]:
    """The headline: what each arm did, what differs, and what the seeds can show."""
    if not estimates.complete:
        return [("", f"No run is complete yet; the study asks for {estimates.wanted}.")]
    arms = [arm for arm in estimates.arms if arm.complete]
    shown = arms if len(arms) <= 8 else _extremes(arms)
    if len(estimates.arms) == 1:  # nothing to compare: what the runs reached comes first
        (arm,) = arms
        said = [(arm.label, f"{_learning_answer(arm)} {_medians(arm)}")]
        said.append((arm.label, _collapse_answer(arm)))
    else:
        said = [(arm.label, f"{_collapse_answer(arm)} {_medians(arm)}") for arm in shown]
    if len(shown) < len(arms):
        said.append(("", f"These are the {len(shown)} extremes of {len(arms)} arms; all below."))
    said += [(arm.label, rounding_answer(arm)) for arm in shown if arm.copies]
    said += _difference_answers(estimates)
    said.append(("", seeds_show(estimates)))
    if estimates.complete < estimates.wanted:
        missing = estimates.wanted - estimates.complete
        are = "is" if missing == 1 else "are"
        said.append(("", f"{missing} of {plural(estimates.wanted, 'run')} {are} not complete."))
    return said


def seeds_show(estimates: Estimates) -> str:
    """What the number of seeds can and cannot show, for the arm with the fewest that learned."""
    counts = [arm.learned.k for arm in estimates.arms if arm.complete]
    confidence = estimates.arms[0].analysis.confidence
    return statistics.what_seeds_show(min(counts, default=0), confidence, len(estimates.arms))


def _extremes(arms: Sequence[Arm]) -> list[Arm]:
    """The three arms that collapse most and the three that collapse least."""
    tried = sorted((a for a in arms if a.collapsed.n), key=lambda a: a.collapsed.value)
    return [*reversed(tried[-3:]), *reversed(tried[:3])] if len(tried) >= 6 else tried[::-1]


def _learning_answer(arm: Arm) -> str:
    rate, analysis = arm.learned, arm.analysis
    text = f"learned in {rate.k or 'none'} of its {_runs(rate.n)}"
    if rate.n == 1:
        text = f"{'learned' if rate.k else 'did not learn'} in its only complete run"
    return (
        f"{text} (a validation accuracy of at least {level(analysis.learned_accuracy)} in "
        f"{plural(analysis.learned_evaluations, 'evaluation')} in a row)."
    )


def _medians(arm: Arm) -> str:
    optimal, final = (percent(statistics.median(v), 2) for v in (arm.optimal, arm.final))
    return f"Median validation accuracy: optimal {optimal}, final {final}."


def _collapse_answer(arm: Arm) -> str:
    rate, count = arm.collapsed, arm.outcomes
    if rate.n == 0:
        return f"never learned in any of its {_runs(arm.complete)}; nothing could collapse."
    of = f"{plural(rate.n, 'run')} that learned"
    did = f"collapsed in {rate.k or 'none'} of the {of}"
    if rate.n == 1:
        did = f"{'collapsed' if rate.k else 'did not collapse'} in the only run that learned"
    text = (
        f"{did} ({percent(rate.value, 0)}, "
        f"{level(arm.analysis.confidence)} interval {interval(rate)})"
    )
    if rate.k:
        permanent, transient = (
            count.get("permanent_collapse", 0),
            count.get("transient_collapse", 0),
        )
        text += f": {permanent} permanently, {transient} transiently"
    others = [
        (count.get("never_learned", 0), "never learned"),
        (count.get("non_finite", 0), "ended with a loss that is not finite"),
    ]
    text += "".join(f"; {plural(n, 'run')} {what}" for n, what in others if n)
    if arm.rollbacks:
        text += f"; runs were rolled back {plural(arm.rollbacks, 'time')}, which hides collapses"
    return f"{text}."


def rounding_answer(arm: Arm) -> str:
    """How much of the spread of an arm's runs is rounding's and how much the seed's."""
    copies = arm.copies
    assert copies is not None, "asked of arms with copies"
    told = (
        f"{copies.complete} of {plural(copies.wanted, 'copy')} are complete, which differ from the "
        "run of their seed by rounding alone"
    )
    if math.isnan(copies.outcome.within):
        return f"{told}: too few to tell the seed's part from rounding's."
    outcome, accuracy = copies.outcome, copies.accuracy
    said = (
        f"{told}. Of two copies of a seed {percent(outcome.within, 0)} end with different "
        f"outcomes, of two runs of different seeds {percent(outcome.total, 0)}: "
        f"{_share(outcome, arm)}. Final validation accuracy: standard deviation "
        f"{points(math.sqrt(accuracy.within)).lstrip('+')} points among copies of a seed, "
        f"{points(math.sqrt(accuracy.total)).lstrip('+')} over seeds and copies: "
        f"{_share(accuracy, arm)}."
    )
    if copies.courses < copies.curves:
        same = plural(copies.curves - copies.courses, "copy")
        said += f" {same} took the course of another run bit for bit: the weight had no part in it."
    if outcome.copied == 1:
        said += " One seed has copies; how much rounding does to others is not known."
    return said


def _share(spread: Spread, arm: Arm) -> str:
    """Parts of a spread in words."""
    if math.isnan(spread.share):
        return "there is no spread to divide"
    ends = f"{100 * spread.low:.0f}–{100 * spread.high:.0f} %"
    return (
        f"{percent(spread.share, 0)} of the spread is rounding's "
        f"({level(arm.analysis.confidence)} interval {ends}), the rest the seed's"
    )


def _runs(count: int) -> str:
    return plural(count, "complete run")


def _difference_answers(estimates: Estimates) -> list[tuple[str, str]]:
    tests = sorted(estimates.comparisons, key=lambda t: t.p)
    found = [t for t in tests if t.adjusted <= statistics.ALPHA]
    if not tests:
        return []
    if not found:
        least = p_is(min(t.adjusted for t in tests))
        text = "No two arms differ significantly in how often they collapse"
        if tests[0].b == statistics.REST:
            text = "No arm collapses significantly more or less often than all others together"
        return [("", f"{text} (smallest adjusted {least}).")]
    said = [_difference_answer(test) for test in found[:4]]
    if len(found) > 4:
        are = "is" if len(found) == 5 else "are"
        more = plural(len(found) - 4, "further difference")
        said.append(("", f"{more} {are} significant; see below."))
    return said


def _difference_answer(test: statistics.Comparison) -> tuple[str, str]:
    """The arm that collapses more often is the subject; all others together never are."""
    sign = -1 if test.difference < 0 else 1
    subject, other, how = test.a, test.b, "more"
    if test.b == statistics.REST:
        other, how = "all others together", "less" if sign < 0 else "more"
    elif sign < 0:
        subject, other = other, subject
    ends = sorted((sign * test.low, sign * test.high))
    span = " to ".join(f"{100 * end:.0f}" for end in ends).replace("-", "−")
    return subject, (
        f"collapses {how} often than {other}: by {100 * abs(test.difference):.0f} percentage "
        f"points ({span}; Fisher's exact test, adjusted {p_is(test.adjusted)})."
    )


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


def median_time(curve: statistics.Survival) -> str:
    """Steps by which half of the runs have collapsed; a dash if they never do."""
    value = statistics.median_time(curve)
    return f"{value:.0f}" if value is not None else "–"


def markdown(text: Any) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text)).replace("\n", " ")
