"""Settings of a training: network, schedules of the rate, update rules, augmentation, rollback."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from hpc.config import Count, Fraction, Identity, NotNegative, Positive, Settings

MEASURED = Identity(without=("run",))
"""changes what is looked at and how fast, no result beyond rounding"""


Precision = Literal["float32", "tf32", "bfloat16"]


class Recipe(NamedTuple):
    """What a recipe stands for, part by part."""

    input: Literal["raw", "unit", "inverted", "dark"]
    weights: Literal["sigma_0.1", "he"]
    dense_rate: float


RECIPES = {
    "swanson2017": Recipe("raw", "sigma_0.1", 1.0),
    "modern": Recipe("dark", "he", 1.0),
}


MARGIN = 9 + 4
"""pixels of a side that the network's two convolutions take away"""


class Model(Settings):
    """The 2017 network: conv 10×10 3→6, conv 5×5 6→16 (VALID), dense 80, dropout, dense 2."""

    recipe: Literal["swanson2017", "modern"] = "swanson2017"
    """modern: He weights, input 0–1, background 0; swanson2017: σ 0.1 weights, raw 0–255 input, as
    published, with which the network is dead within ten steps at 250 px (docs/studies.md)"""
    input: Annotated[Literal["raw", "unit", "dark"] | None, Identity(since=2)] = None
    """what the network is fed: colours 0–255, 0–1, or 0–1 with the background at 0; null: the
    recipe's"""
    weights: Annotated[Literal["sigma_0.1", "he"] | None, Identity(since=2)] = None
    """initial weights: truncated normal of σ 0.1, or He; null: the recipe's"""
    dense_rate: Annotated[Positive | None, Identity(since=2)] = None
    """factor on the learning rate of the dense layer's weights; null: the recipe's"""

    @property
    def parts(self) -> Recipe:
        """The recipe with what is set beside it."""
        given = {k: getattr(self, k) for k in Recipe._fields if getattr(self, k) is not None}
        return RECIPES[self.recipe]._replace(**given)


class Constant(Settings):
    """The same rate at every step."""

    kind: Literal["constant"] = "constant"
    """constant, linear, threshold, exponential, warmup_exponential or cosine"""
    initial: Positive = 1e-3
    """learning rate"""


class Linear(Settings):
    """From initial to final in a straight line over the schedule length, then final."""

    kind: Literal["linear"]
    """linear"""
    initial: Positive
    """learning rate of the first step"""
    final: Positive
    """learning rate once the schedule length is over"""
    schedule_length: Count
    """iterations over which the rate changes"""


class Level(Settings):
    """One threshold of a threshold schedule: exactly one of at_least and above."""

    above: Fraction | None = None
    """validation accuracy that must be exceeded"""
    at_least: Annotated[Fraction | None, Identity(since=2)] = None
    """validation accuracy that must be reached"""
    rate: Positive
    """learning rate while it is"""

    @property
    def accuracy(self) -> float:
        """Where the level begins, itself in it or not."""
        found = self.above if self.at_least is None else self.at_least
        assert found is not None, "one of the two is given"
        return found

    def holds(self, accuracy: float) -> bool:
        """Whether a validation accuracy is in it."""
        return accuracy > self.accuracy if self.at_least is None else accuracy >= self.accuracy

    @pydantic.model_validator(mode="after")
    def _one(self) -> Level:
        if (self.above is None) == (self.at_least is None):
            raise ValueError(
                "give exactly one of at_least (an accuracy that is reached) and above (one that is "
                "exceeded)"
            )
        return self


class Threshold(Settings):
    """Initial rate until the last validation accuracy is at a level, and back to it below."""

    kind: Literal["threshold"]
    """threshold"""
    initial: Positive
    """learning rate below all levels"""
    levels: Annotated[tuple[Level, ...], pydantic.Field(min_length=1)]
    """accuracies and their rates, in rising order of accuracy; the highest that holds counts"""

    @pydantic.model_validator(mode="after")
    def _rising(self) -> Threshold:
        marks = [level.accuracy for level in self.levels]
        if any(b <= a for a, b in itertools.pairwise(marks)):
            raise ValueError(f"levels must rise in accuracy; they are {marks}")
        return self


class Exponential(Settings):
    """initial · decay^(iteration / decay_iterations), continuous or in stairs, not below final."""

    kind: Literal["exponential"]
    """exponential"""
    initial: Positive
    """learning rate of the first step"""
    decay: Annotated[float, pydantic.Field(gt=0, lt=1)]
    """factor over each decay_iterations"""
    decay_iterations: Count
    """iterations over which the rate falls by the factor"""
    staircase: bool = False
    """fall once each decay_iterations instead of a little each step"""
    final: NotNegative = 0.0
    """lowest learning rate"""


class WarmupExponential(Settings):
    """Straight up from 0 to peak over the warm-up, then exponential decay."""

    kind: Literal["warmup_exponential"]
    """warmup_exponential"""
    peak: Positive
    """learning rate at the end of the warm-up"""
    warmup_iterations: Count
    """iterations of the warm-up"""
    decay: Annotated[float, pydantic.Field(gt=0, lt=1)]
    """factor over each decay_iterations"""
    decay_iterations: Count
    """iterations over which the rate falls by the factor"""
    final: NotNegative = 0.0
    """lowest learning rate after the warm-up"""


class Cosine(Settings):
    """Half a cosine from initial to final over the schedule length, after a linear warm-up."""

    kind: Literal["cosine"]
    """cosine"""
    initial: Positive
    """learning rate at the top"""
    final: NotNegative = 0.0
    """learning rate once the schedule length is over"""
    schedule_length: Count
    """iterations of the half cosine"""
    warmup_iterations: Annotated[int, pydantic.Field(ge=0)] = 0
    """iterations of linear warm-up before it"""


def _kind_or(default: str) -> pydantic.BeforeValidator:
    """Let a mapping without `kind` mean the default kind."""

    def complete(tree: Any) -> Any:
        return {"kind": default, **tree} if isinstance(tree, dict) else tree

    return pydantic.BeforeValidator(complete)


LearningRate = Annotated[
    Constant | Linear | Threshold | Exponential | WarmupExponential | Cosine,
    pydantic.Field(discriminator="kind"),
    _kind_or("constant"),
]


class Adam(Settings):
    """Adam (Kingma and Ba 2014) with TensorFlow's ε̂ placement; AdamW with weight_decay."""

    kind: Literal["adam"] = "adam"
    """adam or sgd"""
    beta_1: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
    """decay of the mean of gradients"""
    beta_2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
    """decay of the mean of squared gradients"""
    epsilon: Positive = 1e-8
    """added to the root of the second moment"""
    weight_decay: NotNegative = 0.0
    """decoupled weight decay of the four weight tensors, times the learning rate (AdamW)"""
    clip_norm: Positive | None = None
    """largest global gradient norm; null does not clip"""


class Sgd(Settings):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    """sgd"""
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """decay of the velocity"""
    nesterov: bool = False
    """look ahead along the velocity"""
    weight_decay: NotNegative = 0.0
    """decoupled weight decay of the four weight tensors, times the learning rate"""
    clip_norm: Positive | None = None
    """largest global gradient norm; null does not clip"""


Optimizer = Annotated[Adam | Sgd, pydantic.Field(discriminator="kind"), _kind_or("adam")]


class Augmentation(Settings):
    """Random symmetries of each training image, a pure function of seed and step."""

    rotations: bool = False
    """rotate by 0, 90, 180 or 270 degrees"""
    flips: bool = False
    """mirror left-right or not"""
    translations: bool = False
    """shift by whole pixels over the periodic edge; whole-box images only"""


class RestartFrom(Settings):
    """Start a new run from another run's weights (a branch; the lineage is recorded)."""

    run: str
    """run directory, or one checkpoint inside it"""
    which: Literal["latest", "best"] = "latest"
    """the newest checkpoint, or the one of the best validation accuracy"""
    optimizer_state: bool = False
    """take the optimizer's state along (a best checkpoint has none)"""

    @pydantic.model_validator(mode="after")
    def _best_has_no_state(self) -> RestartFrom:
        if self.which == "best" and self.optimizer_state:
            raise ValueError("optimizer_state needs which: latest; best checkpoints hold weights")
        return self


class Rollback(Settings):
    """Going back when a run collapses or its loss is not finite. Off by default: studies want to
    see collapses."""

    enabled: bool = False
    """roll back at all"""
    action: Literal["skip", "lower_rate", "fresh_optimizer"] = "skip"
    """after going back: skip batches, lower the rate, or reset the optimizer's state"""
    back_iterations: Count = 10
    """go back at least so many iterations before the onset"""
    skip_steps: Count = 200
    """skip: steps whose batches are left out"""
    rate_factor: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1
    """lower_rate: factor on the learning rate from then on"""
    at_most: Count = 3
    """rollbacks before the run goes on without"""
    chance_evaluations: Count = 3
    """evaluations in a row at chance, after the run had learned, that count as a collapse"""


class Rounding(Settings):
    """What makes a run a copy of the run of its seed: one weight is moved by one unit in the last
    place, up or down, as other rounding would. Which one follows from the seed and the copy."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    number: Count = pydantic.Field(alias="copy")
    """number of the copy, from 1; copy 0 is the run itself"""
    step: Annotated[int, pydantic.Field(ge=0)] = 0
    """updates before the weight is moved"""


class Train(Settings):
    """One training."""

    batch_size: Count = 80
    """global batch, the same at any number of ranks"""
    iterations: Count = 600
    """iterations; the run's length"""
    batches_per_iteration: Count = 10
    """steps before each evaluation"""
    learning_rate: LearningRate = Constant()
    """schedule of the learning rate"""
    optimizer: Optimizer = Adam()
    """update rule"""
    l2: NotNegative = 0.01
    """coefficient of Σ ½‖W‖² over the four weight tensors, biases free (Keras' l2 is twice it)"""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    """share of the dense layer's units dropped at each training step"""
    order: Annotated[Literal["epoch", "batch"], Identity(since=2, before="epoch")] = "epoch"
    """epoch: every training image once before any comes again; batch: all are shuffled anew for
    each batch, and its images are the first (as in the code that was published for the network)"""
    precision: Annotated[Precision, Identity(since=2, before="float32")] = "float32"
    """of the factors in convolutions and in the dense layer, forward and backward: float32, tf32
    (NVIDIA GPUs; 10 of 23 bits) or bfloat16 (7); all else is float32. Refused where it would be
    emulated"""
    gradients: Annotated[Literal["float32", "bfloat16"], Identity(since=2, before="float32")] = (
        "float32"
    )
    """what ranks that share a batch send each other of a large gradient: bfloat16 is half as much,
    each rank's part and the sum rounded to 7 bits; on one rank, and where launch.division is rows,
    none is sent and none rounded"""
    augmentation: Augmentation = Augmentation()
    """random symmetries of the training images"""
    evaluation_examples: Count | None = None
    """validation examples each evaluation counts (the first of them); null counts all"""
    evaluation_batch: Annotated[Count, MEASURED] = 250
    """examples per evaluation batch over all ranks; changes speed only"""
    diagnostics_every: Annotated[int, pydantic.Field(ge=0), MEASURED] = 1
    """evaluations between measurements of gradients, dead units and Adam's state; 0 is never"""
    curvature_every: Annotated[int, pydantic.Field(ge=0), MEASURED] = 0
    """evaluations between measurements of Adam's preconditioned curvature; 0 is never"""
    restart_from: RestartFrom | None = None
    """start from another run's weights"""
    rollback: Rollback = Rollback()
    """going back after a collapse"""

    @property
    def steps(self) -> int:
        """Optimizer updates in the whole run."""
        return self.iterations * self.batches_per_iteration

    @pydantic.model_validator(mode="after")
    def _curvature_is_adams(self) -> Train:
        if self.curvature_every and self.optimizer.kind != "adam":
            raise ValueError(
                f"curvature_every {self.curvature_every} needs optimizer.kind adam: it measures "
                f"what Adam's moments do to the curvature; set it to 0 for {self.optimizer.kind}"
            )
        return self


class Checkpointing(Settings):
    """Checkpoints."""

    every_iterations: Count = 10
    """iterations between regular checkpoints (one more is written at the end and when stopped)"""
    hours_between_failures: Annotated[Positive | None, Identity(since=2)] = None
    """expected time between failures that come without notice; with it there are checkpoints
    between the regular ones, as often as loses the least time (docs/restart.md). null: none"""
    keep: Annotated[int, pydantic.Field(ge=1)] = 2
    """newest checkpoints kept"""
    milestone_iterations: Count | None = None
    """keep every checkpoint whose iteration is a multiple of this for good"""
    best: bool = True
    """also keep the weights of the best validation accuracy"""
    after_end: Literal["all", "last", "best"] = "last"
    """what a complete run keeps: all its checkpoints, the last and the best, or only the best
    (its final weights are gone then); milestones stay in any case"""

    @pydantic.model_validator(mode="after")
    def _keeps_something(self) -> Checkpointing:
        if self.after_end == "best" and not self.best:
            raise ValueError("after_end: best keeps nothing with best: false; take last or all")
        return self
