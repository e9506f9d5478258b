"""The tree of settings. Each field says its unit or meaning; the defaults are the log's of 2017.

Lengths are in σ_AA, energies in ε_AA, times in τ = σ_AA·√(m/ε_AA), temperatures in ε_AA/k_B.
Everything that does not depend on the data or the machine is checked here, before anything starts.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from hpc.config import Name, Settings, digest, load, to_tree, validate
from hpc.errors import ConfigError

Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=1)]
MAX_SEED = 2**31 - 1
Seed = Annotated[int, pydantic.Field(ge=0, le=MAX_SEED)]


class Simulation(Settings):
    """Independent linear coolings of the two-dimensional 65:35 Kob–Andersen mixture."""

    trajectories: Count = 200
    """number of independent coolings"""
    particles: Annotated[int, pydantic.Field(ge=20)] = 400
    """number of particles in the periodic box"""
    fraction_a: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.65
    """share of type A; the number of A is rounded to a whole particle"""
    density: Positive = 1.2
    """number density, σ⁻²"""
    timestep: Annotated[float, pydantic.Field(gt=0, le=0.02)] = 0.005
    """integration step, τ"""
    temperature_start: Positive = 2.0
    """temperature at which the cooling starts, ε/k_B"""
    temperature_end: Positive = 0.05
    """temperature at which the cooling ends, ε/k_B"""
    equilibration_steps: Count = 10_000
    """steps at the starting temperature before the cooling"""
    cooling_steps: Count = 200_000
    """steps of the cooling ramp; more is slower cooling"""
    frames: Annotated[int, pydantic.Field(ge=2)] = 200
    """frames along the ramp, evenly spaced in temperature; frame 0 is the first after the start"""
    damping: Positive = 0.5
    """relaxation time of the Nosé–Hoover thermostat, τ"""
    seed: Seed = 1
    """seed of the first trajectory's velocities and types; the others follow from it"""
    style: Literal["auto", "plain", "opt", "intel", "omp"] = "auto"
    """LAMMPS pair style variant; auto takes the fastest that this machine offers"""

    @property
    def box(self) -> float:
        """Side of the square box, σ."""
        return math.sqrt(self.particles / self.density)

    @property
    def temperature_step(self) -> float:
        """Fall in temperature from one frame to the next, ε/k_B."""
        return (self.temperature_start - self.temperature_end) / self.frames

    def temperature(self, frame: int) -> float:
        """Temperature set at frame `frame` (0-based; the last one is at `temperature_end`)."""
        return self.temperature_start - (frame + 1) * self.temperature_step

    @pydantic.model_validator(mode="after")
    def _cools(self) -> Simulation:
        if self.temperature_end >= self.temperature_start:
            raise ValueError(
                f"temperature_end {self.temperature_end} must be below temperature_start "
                f"{self.temperature_start}: the ramp cools"
            )
        if self.cooling_steps % self.frames:
            raise ValueError(
                f"cooling_steps {self.cooling_steps} must be a multiple of frames {self.frames}, "
                "so that frames are evenly spaced"
            )
        if self.box < 2 * 2.5:
            raise ValueError(
                f"{self.particles} particles at density {self.density} make a box of side "
                f"{self.box:.2f} σ; it must be at least twice the cutoff, 5 σ: more particles "
                "or a lower density"
            )
        return self


class FrameChoice(Settings):
    """Which frame of a cooling makes one class; exactly one of the three."""

    frame: int | None = None
    """index of the frame; negative counts from the end"""
    temperature: Positive | None = None
    """the frame nearest to this temperature, ε/k_B"""
    above_transition: int | None = None
    """so many frames above the assumed glass transition; negative is below"""

    @pydantic.model_validator(mode="after")
    def _one(self) -> FrameChoice:
        given = [k for k in FrameChoice.model_fields if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of frame, temperature, above_transition; "
                f"given: {', '.join(given) or 'none'}"
            )
        return self


class Data(Settings):
    """What the two classes are and where they come from."""

    name: Name = "endpoint"
    """name of the data set, part of its directory's name"""
    source: Literal["simulation", "import"] = "simulation"
    """simulate it, or use what `make import` stored under this name"""
    liquid: FrameChoice = FrameChoice(frame=0)
    """frame of each trajectory that is labelled liquid (0)"""
    glass: FrameChoice = FrameChoice(frame=-1)
    """frame of each trajectory that is labelled glass (1)"""
    form: Literal["thermal", "inherent"] = "thermal"
    """configurations as simulated, or minimised to their inherent structures"""
    transition_temperature: Positive = 0.21
    """assumed glass transition, ε/k_B (0.21 in the results log, 0.37 in the later repository)"""
    permute_labels: bool = False
    """shuffle the labels over the images: a leakage check whose accuracy must stay at chance"""


class Render(Settings):
    """How a configuration becomes an image."""

    style: Literal["scatter2017", "disc"] = "scatter2017"
    """the log's matplotlib-like dots snapped to whole pixels, or anti-aliased discs to scale"""
    pixels: Annotated[int, pydantic.Field(ge=16, le=2048)] = 250
    """side of the square image, pixels"""
    window: Positive | None = None
    """side of the square part of the box that is shown, σ; null shows the whole box"""
    windows_per_configuration: Count = 1
    """windows at random places of each configuration (all in that trajectory's split)"""
    dot_pixels: Annotated[int, pydantic.Field(ge=1, le=64)] = 9
    """pixels a dot of scatter2017 covers"""
    seed: Seed = 1
    """seed of the places of the windows"""

    @pydantic.model_validator(mode="after")
    def _windows_differ(self) -> Render:
        if self.window is None and self.windows_per_configuration > 1:
            raise ValueError(
                f"windows_per_configuration {self.windows_per_configuration} needs a window: "
                "whole boxes would all be the same picture; set render.window, in σ"
            )
        return self


class Split(Settings):
    """Division of the trajectories; a trajectory's images never part."""

    train: Fraction = 0.70
    """share of trajectories trained on"""
    validation: Fraction = 0.15
    """share of trajectories validated on"""
    test: Fraction = 0.15
    """share of trajectories tested on"""
    seed: Seed = 1
    """seed of the division, independent of the run's seed"""

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"train {self.train} + validation {self.validation} + test {self.test} = "
                f"{total:g}; the three shares must add up to 1"
            )
        if min(self.train, self.validation, self.test) <= 0:
            raise ValueError("train, validation and test must each be greater than 0")
        return self


class Model(Settings):
    """The 2017 network: conv 10×10 3→6, conv 5×5 6→16 (VALID), dense 80, dropout, dense 2."""

    recipe: Literal["swanson2017", "modern"] = "swanson2017"
    """σ 0.1 weights and raw 0–255 input as in 2017; modern: He weights, input 0–1, background 0"""


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
    """One threshold of a threshold schedule."""

    above: Fraction
    """validation accuracy that must be exceeded"""
    rate: Positive
    """learning rate while it is"""


class Threshold(Settings):
    """Initial rate until the last validation accuracy exceeds a level, and back to it below."""

    kind: Literal["threshold"]
    """threshold"""
    initial: Positive
    """learning rate while no level is exceeded"""
    levels: Annotated[tuple[Level, ...], pydantic.Field(min_length=1)]
    """accuracies and their rates, in rising order of accuracy; the highest exceeded one counts"""

    @pydantic.model_validator(mode="after")
    def _rising(self) -> Threshold:
        marks = [level.above for level in self.levels]
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
    augmentation: Augmentation = Augmentation()
    """random symmetries of the training images"""
    evaluation_examples: Count | None = None
    """validation examples each evaluation counts (the first of them); null counts all"""
    evaluation_batch: Count = 250
    """examples per evaluation batch over all ranks; changes speed only"""
    diagnostics_every: Annotated[int, pydantic.Field(ge=0)] = 1
    """evaluations between measurements of gradients, dead units and Adam's state; 0 is never"""
    curvature_every: Annotated[int, pydantic.Field(ge=0)] = 0
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


class Checkpoint(Settings):
    """Restart files."""

    every_iterations: Count = 10
    """iterations between restart files (one more is written at the end and when stopped)"""
    keep: Annotated[int, pydantic.Field(ge=1)] = 2
    """newest restart files kept"""
    milestone_iterations: Count | None = None
    """keep every restart file whose iteration is a multiple of this for good"""
    best: bool = True
    """also keep the weights of the best validation accuracy"""
    after_end: Literal["all", "last", "best"] = "last"
    """what a complete run keeps: all its restart files, the last and the best, or only the best
    (its final weights are gone then); milestones stay in any case"""

    @pydantic.model_validator(mode="after")
    def _keeps_something(self) -> Checkpoint:
        if self.after_end == "best" and not self.best:
            raise ValueError("after_end: best keeps nothing with best: false; take last or all")
        return self


class Launch(Settings):
    """Where and how runs are started; changes no result beyond rounding."""

    ranks: Count = 2
    """MPI ranks of each training"""
    threads_per_rank: Count = 1
    """CPU threads of each rank"""
    simulation_ranks: Count | None = None
    """MPI ranks of the simulation and rendering stages; null takes all cores (local)"""
    side_by_side: Annotated[int, pydantic.Field(ge=0)] = 0
    """runs at a time on this machine; 0 takes as many as its cores hold"""
    hang_seconds: Positive = 600
    """a rank that makes no progress for so long ends the run with a message, s"""
    site: str = "dev"
    """Slurm site profile: a name in slurm/sites/ or the path of a YAML file"""
    slurm: dict[str, Any] = {}
    """values laid over the site profile (nodes, ranks_per_node, time, partition, account, …)"""


class Analysis(Settings):
    """Thresholds of the outcomes, fixed before a study starts and printed in its report."""

    learned_accuracy: Fraction = 0.95
    """validation accuracy that counts as learned (0.90 is usual for the hard data sets)"""
    learned_evaluations: Count = 3
    """evaluations in a row at or above it"""
    chance_fraction: Annotated[float, pydantic.Field(gt=0.5, le=1)] = 0.99
    """share of one predicted class from which an evaluation is at chance"""
    chance_sigmas: NotNegative = 3.0
    """an accuracy within so many binomial standard deviations of the majority rate is chance"""
    collapse_evaluations: Count = 3
    """evaluations in a row at chance, and at the end, that make a collapse permanent"""
    confidence: Annotated[float, pydantic.Field(gt=0.5, lt=1)] = 0.95
    """level of all intervals"""


class RunSettings(Settings):
    """Everything that one run is made of; a run's `config.yaml` holds exactly this."""

    seed: Seed = 0
    """seed of weights, order, augmentation and dropout masks"""
    simulation: Simulation = Simulation()
    """the coolings"""
    data: Data = Data()
    """the two classes"""
    render: Render = Render()
    """the images"""
    split: Split = Split()
    """training, validation and test"""
    model: Model = Model()
    """the network"""
    train: Train = Train()
    """the training"""
    checkpoint: Checkpoint = Checkpoint()
    """restart files"""
    launch: Launch = Launch()
    """ranks, threads, site"""
    analysis: Analysis = Analysis()
    """thresholds of the outcomes"""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> RunSettings:
        if self.train.batch_size < self.launch.ranks:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is smaller than launch.ranks "
                f"{self.launch.ranks}: every rank needs at least one example; fewer ranks or a "
                "larger batch"
            )
        if self.train.augmentation.translations and self.render.window is not None:
            raise ValueError(
                "train.augmentation.translations needs whole-box images (render.window: null): "
                "the edges of a window are not periodic"
            )
        if self.data.source == "simulation":
            self._check_simulated()
        return self

    def _check_simulated(self) -> None:
        window = self.render.window
        if window is not None and window > self.simulation.box:
            raise ValueError(
                f"render.window {window} σ is larger than the box, {self.simulation.box:.2f} σ "
                f"({self.simulation.particles} particles at density {self.simulation.density})"
            )
        liquid, glass = self.frame("liquid"), self.frame("glass")
        if liquid >= glass:
            raise ValueError(
                f"data.glass is frame {glass} at temperature "
                f"{self.simulation.temperature(glass):.4g} and data.liquid frame {liquid} at "
                f"{self.simulation.temperature(liquid):.4g}: the glass must be the colder one"
            )

    def frame(self, side: Literal["liquid", "glass"]) -> int:
        """Index (0-based) of the frame that makes a class.

        Raises ValueError where the choice points outside the ramp.
        """
        choice: FrameChoice = getattr(self.data, side)
        ramp = self.simulation
        if choice.frame is not None:
            frame = choice.frame + ramp.frames if choice.frame < 0 else choice.frame
        else:
            target = choice.temperature or self.data.transition_temperature
            frame = round((ramp.temperature_start - target) / ramp.temperature_step) - 1
            frame -= choice.above_transition or 0
            if choice.temperature == ramp.temperature_start:
                frame = 0
        if not 0 <= frame < ramp.frames:
            given = choice.model_dump(exclude_none=True)
            raise ValueError(
                f"data.{side} {given} is outside the ramp of {ramp.frames} frames from "
                f"temperature {ramp.temperature(0):.4g} to {ramp.temperature_end:.4g}"
            )
        return frame

    def simulation_digest(self) -> str:
        """Identity of the trajectories: the ramp and the frames that are kept of it."""
        kept = sorted({self.frame("liquid"), self.frame("glass")})
        tree = to_tree(self.simulation)
        tree.pop("style")
        return digest({"simulation": tree, "frames": kept, "form": self.data.form})

    def dataset_digest(self) -> str:
        """Identity of the data set: what it is made from and how it is rendered."""
        data, render = to_tree(self.data), to_tree(self.render)
        data.pop("permute_labels")
        if self.data.source == "import":
            return digest({"import": data["name"], "render": render})
        for side in ("liquid", "glass"):
            data[side] = self.frame(side)
        data.pop("transition_temperature")
        tree = {"simulation": self.simulation_digest(), "data": data, "render": render}
        return digest(tree)

    def point_digest(self) -> str:
        """Identity of a run but for its seed: everything that changes results beyond rounding."""
        tree = to_tree(self)
        for section in ("seed", "checkpoint", "launch"):
            tree.pop(section)
        if not self.train.rollback.enabled:  # a rollback is decided by these thresholds
            tree.pop("analysis")
        tree["simulation"].pop("style")
        for key in ("evaluation_batch", "diagnostics_every", "curvature_every"):
            tree["train"].pop(key)
        if self.data.source == "import":
            tree.pop("simulation")
        return digest(tree)

    def run_digest(self) -> str:
        """Identity of a run: its point of the grid and its seed."""
        return digest({"point": self.point_digest(), "seed": self.seed})


def load_run(path: Path) -> RunSettings:
    """Read a run's own `config.yaml`; raises ConfigError."""
    return load(path, RunSettings)


def build_run(tree: dict[str, Any], source: str) -> RunSettings:
    """Validate one run's tree of settings; raises ConfigError."""
    return validate(RunSettings, tree, source)


__all__ = ["ConfigError", "RunSettings", "build_run", "load_run"]
