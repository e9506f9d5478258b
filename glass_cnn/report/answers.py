"""The answers of a report: what each arm did, what each factor decides, what differs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.analysis.factors import FactorEffect
from glass_cnn.analysis.spread import Spread
from glass_cnn.report import words
from hpc.words import plural


def answers(estimates: Estimates) -> list[tuple[str, str]]:
    """The headline: what each arm did, what differs, and what the seeds can show."""
    if not estimates.complete:
        return [("", f"No run is complete yet; the study asks for {estimates.wanted}.")]
    arms = [arm for arm in estimates.arms if arm.complete]
    if estimates.factors:
        said = [("", _all_together(arms)), *map(factor_answer, estimates.factors)]
    elif len(estimates.arms) == 1:  # nothing to compare: what the runs reached comes first
        (arm,) = arms
        said = [(arm.label, f"{_learning_answer(arm)} {_medians(arm)}")]
        said.append((arm.label, _collapse_answer(arm)))
    else:
        said = [(arm.label, f"{_collapse_answer(arm)} {_medians(arm)}") for arm in arms]
    if not estimates.factors or len(arms) <= 8:
        said += [(arm.label, rounding_answer(arm)) for arm in arms if arm.copies]
    if not estimates.factors:
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


def _all_together(arms: Sequence[Arm]) -> str:
    """Runs of all arms: how many learned, and how many of these collapsed."""
    learned, complete = (sum(getattr(arm.learned, name) for arm in arms) for name in ("k", "n"))
    collapsed = sum(arm.collapsed.k for arm in arms)
    share = f" ({words.percent(collapsed / learned, 0)})" if learned else ""
    return (
        f"{learned:,d} of {_runs(complete)} of {plural(len(arms), 'arm')} learned; "
        f"{collapsed:,d} of these collapsed{share}."
    )


def factor_answer(effect: FactorEffect) -> tuple[str, str]:
    """Whether and how collapses depend on one axis, others being equal."""
    name = words.factor_name(effect.factor)
    if effect.p is None:
        return name, "decides nothing that these runs could tell."
    does = "decides" if (effect.adjusted or 0) <= statistics.ALPHA else "does not clearly decide"
    text = (
        f"{does} how often runs collapse, the rest being equal (Cochran–Mantel–Haenszel test, "
        f"{words.p_is(effect.adjusted)}): {_level_rates(effect)}."
    )
    return name, text + _ends_answer(effect)


def _level_rates(effect: FactorEffect) -> str:
    rates = [
        f"{words.percent(rate.value, 0)} at {words.level_name(effect.factor, level)}"
        for level, rate in enumerate(effect.rates)
    ]
    return "; ".join(rates) if len(rates) <= 8 else "; ".join([*rates[:3], "…", *rates[-3:]])


def _ends_answer(effect: FactorEffect) -> str:
    """The last level against the first."""
    ends = effect.ends
    if ends is None or ends.difference is None:
        return ""
    value, low, high = ends.difference
    last, first = (words.level_name(effect.factor, level) for level in (ends.level, 0))
    how = "less" if value < 0 else "more"
    sign = -1 if value < 0 else 1
    span = " to ".join(f"{100 * end:.0f}" for end in sorted((sign * low, sign * high)))
    text = (
        f" {last} collapses {how} often than {first}: by {100 * abs(value):.0f} percentage points "
        f"({span.replace('-', '−')})"
    )
    if ends.hazard is not None:
        text += f", at {words.ratio(ends.hazard)} times the hazard"
    if ends.heterogeneity is not None and ends.heterogeneity <= statistics.ALPHA:
        text += (
            "; by how much depends on the rest (Woolf's test of the odds ratio, "
            f"{words.p_is(ends.heterogeneity)})"
        )
    return f"{text}."


def _learning_answer(arm: Arm) -> str:
    rate, analysis = arm.learned, arm.analysis
    text = f"learned in {rate.k or 'none'} of its {_runs(rate.n)}"
    if rate.n == 1:
        text = f"{'learned' if rate.k else 'did not learn'} in its only complete run"
    return (
        f"{text} (a validation accuracy of at least {words.level(analysis.learned_accuracy)} in "
        f"{plural(analysis.learned_evaluations, 'evaluation')} in a row)."
    )


def _medians(arm: Arm) -> str:
    optimal, final = (words.percent(statistics.median(v), 2) for v in (arm.optimal, arm.final))
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
        f"{did} ({words.percent(rate.value, 0)}, "
        f"{words.level(arm.analysis.confidence)} interval {words.interval(rate)})"
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
        f"{told}. Of two copies of a seed {words.percent(outcome.within, 0)} end with different "
        f"outcomes, of two runs of different seeds {words.percent(outcome.total, 0)}: "
        f"{_share(outcome, arm)}. Final validation accuracy: standard deviation "
        f"{words.points(math.sqrt(accuracy.within)).lstrip('+')} points among copies of a seed, "
        f"{words.points(math.sqrt(accuracy.total)).lstrip('+')} over seeds and copies: "
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
    level = words.level(arm.analysis.confidence)
    alike = "copies of a seed never differed, so how much it may be is not known"
    return (
        f"{words.percent(spread.share, 0)} of the spread is rounding's "
        f"({alike if math.isnan(spread.low) else f'{level} interval {ends}'}), the rest the seed's"
    )


def _runs(count: int) -> str:
    return plural(count, "complete run")


def _difference_answers(estimates: Estimates) -> list[tuple[str, str]]:
    tests = sorted(estimates.comparisons, key=lambda t: t.p)
    found = [t for t in tests if t.adjusted <= statistics.ALPHA]
    if not tests:
        return []
    if not found:
        least = words.p_is(min(t.adjusted for t in tests))
        text = "No two arms differ significantly in how often they collapse"
        return [("", f"{text} (smallest adjusted {least}).")]
    said = [_difference_answer(test) for test in found[:4]]
    if len(found) > 4:
        are = "is" if len(found) == 5 else "are"
        more = plural(len(found) - 4, "further difference")
        said.append(("", f"{more} {are} significant; see below."))
    return said


def _difference_answer(test: statistics.Comparison) -> tuple[str, str]:
    """The arm that collapses more often is the subject."""
    sign = -1 if test.difference < 0 else 1
    subject, other = (test.b, test.a) if sign < 0 else (test.a, test.b)
    ends = sorted((sign * test.low, sign * test.high))
    span = " to ".join(f"{100 * end:.0f}" for end in ends).replace("-", "−")
    return subject, (
        f"collapses more often than {other}: by {100 * abs(test.difference):.0f} percentage "
        f"points ({span}; Fisher's exact test, adjusted {words.p_is(test.adjusted)})."
    )
