"""The tree of settings. Each field says its unit or meaning; the defaults are the log's of 2017.

Lengths are in σ_AA, energies in ε_AA, times in τ = σ_AA·√(m/ε_AA), temperatures in ε_AA/k_B.
Everything that does not depend on the data or the machine is checked here, before anything starts.

A field says by `Identity` what it does not change: which trajectories (`simulation`), which data
set (`data`) or which results of a run (`run`); without a mark it changes all that it is a part of.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from glass_cnn import mixture
from glass_cnn.train_settings import Checkpointing, Model, Recipe, Rounding, Train
from hpc.config import (
    Count,
    Fraction,
    Identity,
    Name,
    NotNegative,
    Positive,
    Settings,
    digest,
    identity_tree,
    to_tree,
    up_to_date,
    validate,
)
from hpc.yaml_files import read_yaml

SPEED = Identity(without=("simulation", "data", "run"))
"""changes how fast or where, no result beyond rounding"""
LABELS = Identity(without=("data",))
"""changes what a run is shown, not what is stored"""
CLASSES = ("liquid", "glass")
"""names of the labels 0 and 1"""
MAX_SEED = 2**31 - 1
Seed = Annotated[int, pydantic.Field(ge=0, le=MAX_SEED)]


class Simulation(Settings):
    """Independent linear coolings of the two-dimensional 65:35 Kob–Andersen mixture."""

    trajectories: Count = 200
    """number of independent coolings"""
    particles: Annotated[int, pydantic.Field(ge=20)] = 400
    """number of particles in the periodic box"""
    fraction_a: Annotated[float, pydantic.Field(gt=0, lt=1)] = mixture.FRACTION_A
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
    style: Annotated[Literal["auto", "plain", "opt", "intel", "omp"], SPEED] = "auto"
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
        if self.box < 2 * mixture.CUTOFF:
            raise ValueError(
                f"{self.particles} particles at density {self.density} make a box of side "
                f"{self.box:.2f} σ; it must be at least twice the cutoff, "
                f"{2 * mixture.CUTOFF:g} σ: more particles or a lower density"
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
    types: Annotated[dict[str, Literal["A", "B"]], Identity(since=2, before={})] = {}
    """import: which particles are A and which B, by what files call them, such as {Ar: A, Ne: B}"""
    liquid: FrameChoice = FrameChoice(frame=0)
    """frame of each trajectory that is labelled liquid (0)"""
    glass: FrameChoice = FrameChoice(frame=-1)
    """frame of each trajectory that is labelled glass (1)"""
    form: Literal["thermal", "inherent"] = "thermal"
    """configurations as simulated, or minimised to their inherent structures"""
    transition_temperature: Annotated[Positive, LABELS] = 0.21
    """assumed glass transition, ε/k_B (0.21 in the results log, 0.37 in the later repository)"""
    permute_labels: Annotated[bool, LABELS] = False
    """shuffle the labels over the images: a leakage check whose accuracy must stay at chance"""


class Render(Settings):
    """How a configuration becomes an image."""

    style: Literal["scatter2017", "disc"] = "scatter2017"
    """the log's matplotlib-like dots snapped to whole pixels, or anti-aliased discs to scale"""
    pixels: Annotated[int, pydantic.Field(ge=16, le=2048)] = 250
    """side of the square image, pixels"""
    fit: Annotated[Literal["crop", "resize"] | None, Identity(since=2)] = None
    """import: take the centre of larger pictures, or scale the whole; null takes the centre where
    it is at least half of each picture"""
    window: Positive | None = None
    """side of the square part of the box that is shown, σ; null shows the whole box"""
    windows_per_configuration: Count = 1
    """windows at random places of each configuration (all in that trajectory's split)"""
    dot_pixels: Annotated[int, pydantic.Field(ge=1, le=64)] = 9
    """pixels a dot of scatter2017 covers"""
    background: Annotated[Literal["white", "black"], Identity(since=2, before="white")] = "white"
    """colour of what no particle covers"""
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


def _address(value: str) -> str:
    if not re.fullmatch(r"[\w.+][\w.+-]*@[\w.-]+\w", value):
        raise ValueError("must be one e-mail address, such as me@example.org")
    return value


Mail = Annotated[str, pydantic.AfterValidator(_address)]


class Launch(Settings):
    """Where and how runs are started; changes no result beyond rounding."""

    ranks: Literal["auto"] | Count = "auto"
    """MPI ranks of each training; auto: with which all runs of the study end soonest on the cores
    or GPUs there are, one where there are many runs; chosen when it is first submitted, and kept"""
    threads_per_rank: Literal["auto"] | Count = "auto"
    """CPU threads of each rank; auto: with which all runs of the study end soonest, under Slurm
    cpus_per_rank of the site profile; chosen and kept alike, 1 for a run that is started by hand"""
    division: Literal["auto", "data", "rows"] = "auto"
    """how ranks share a step: by examples of the batch, all gradients added (data), or by rows of
    every image, each rank with the dense weights of its rows (rows): little to send, memory
    divided; auto: as the checkpoint was made that as many ranks go on from, else rows where an
    image's rows, 13 fewer than its pixels, are at least a third of train.batch_size and no fewer
    than the ranks, and data elsewhere; other rounding at most"""
    collectives: Literal["horovod", "mpi"] | None = None
    """how ranks add their gradients: through Horovod, or MPI's own calls on the host's memory, for
    environments without it; null: Horovod where it is installed; other rounding at most"""
    onednn: bool = True
    """whether TensorFlow computes with oneDNN, several times faster; other bits"""
    max_cpu_isa: Literal["sse41", "avx", "avx2", "avx512_core"] | None = None
    """highest instruction set that oneDNN may use, for nodes of several kinds; null: the node's"""
    simulation_ranks: Count | None = None
    """MPI ranks of the simulation and rendering stages; null takes all cores (local)"""
    side_by_side: Annotated[int, pydantic.Field(ge=0)] = 0
    """runs at a time on this machine; 0 takes as many as its cores and GPUs hold"""
    runs_per_gpu: Annotated[Count, Identity(since=2, before=1)] = 1
    """runs that share a GPU: small networks leave most of one idle"""
    runs_per_job: Annotated[Literal["auto"] | Count, Identity(since=2, before=1)] = "auto"
    """runs that share a batch job of one node, side by side on its cores and GPUs; auto: as many
    as the node holds at a time by the site profile; 1: each run is a job"""
    hang_seconds: Positive = 600
    """a rank that makes no progress for so long ends the run with a message, s"""
    site: str = "dev"
    """Slurm site profile: a name in slurm/sites/ or the path of a YAML file"""
    slurm: dict[str, Any] = {}
    """values laid over the site profile (nodes, ranks_per_node, time, partition, account, …)"""
    notify: Annotated[Mail | None, Identity(since=2)] = None
    """address to which Slurm writes one mail when the study has ended, or its report failed"""

    @property
    def threads(self) -> int:
        """CPU threads of each rank, also where nobody has chosen them."""
        return 1 if self.threads_per_rank == "auto" else self.threads_per_rank


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
    rounding: Annotated[Rounding | None, Identity(since=2)] = None
    """what makes it a copy of the run of its seed; null: it is that run (study.copies sets it)"""
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
    checkpoint: Annotated[Checkpointing, SPEED] = Checkpointing()
    """checkpoints"""
    launch: Annotated[Launch, SPEED] = Launch()
    """ranks, threads, site"""
    analysis: Analysis = Analysis()
    """thresholds of the outcomes"""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> RunSettings:
        launch, batch = self.launch, self.train.batch_size
        if launch.division != "rows" and launch.ranks != "auto" and batch < launch.ranks:
            raise ValueError(
                f"train.batch_size {batch} is smaller than launch.ranks {launch.ranks}: every rank "
                "needs at least one example; fewer ranks, a larger batch, or launch.division: rows"
            )
        if self.train.augmentation.translations and self.render.window is not None:
            raise ValueError(
                "train.augmentation.translations needs whole-box images (render.window: null): "
                "the edges of a window are not periodic"
            )
        if self.rounding is not None and self.rounding.step >= self.train.steps:
            raise ValueError(
                f"study.copies.step {self.rounding.step}: the run ends after {self.train.steps} "
                "updates, so its weight would never be moved; take a smaller step"
            )
        if self.data.source == "simulation":
            self._check_simulated()
        return self

    def _check_simulated(self) -> None:
        if self.data.types or self.render.fit is not None:
            raise ValueError(
                f"{'data.types' if self.data.types else 'render.fit'} is for imported data, and "
                "data.source is simulation: leave it out"
            )
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

    @property
    def recipe(self) -> Recipe:
        """The parts of the network's recipe, for pictures of this background."""
        parts = self.model.parts
        if parts.input != "dark":
            return parts
        return parts._replace(input="inverted" if self.render.background == "white" else "unit")

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
        tree = identity_tree(self.simulation, "simulation")
        return digest({"simulation": tree, "frames": kept, "form": self.data.form})

    def dataset_digest(self) -> str:
        """Identity of the data set: what it is made from and how it is rendered."""
        render = identity_tree(self.render, "data")
        if self.data.source == "import":
            types = {"types": self.data.types} if self.data.types else {}
            return digest({"import": self.data.name, "render": render, **types})
        data = identity_tree(self.data, "data")
        for side in ("liquid", "glass"):
            data[side] = self.frame(side)  # however the frame was chosen
        return digest({"simulation": self.simulation_digest(), "data": data, "render": render})

    def point_digest(self) -> str:
        """Identity of a run but for its seed and copy: all that changes results beyond rounding."""
        tree = identity_tree(self, "run")
        del tree["seed"]
        tree.pop("rounding", None)
        if not self.train.rollback.enabled:  # a rollback is decided by these thresholds
            del tree["analysis"]
        if self.data.source == "import":
            del tree["simulation"]
        return digest(tree)

    def run_digest(self) -> str:
        """Identity of a run: its point of the grid, its seed, and which copy it is."""
        return run_identity(self.point_digest(), self.seed, self.rounding)


def run_identity(point: str, seed: int, rounding: Rounding | None) -> str:
    """Identity of the run of a point (its digest) with a seed, or of a copy of it."""
    copy = {"rounding": to_tree(rounding)} if rounding else {}
    return digest({"point": point, "seed": seed, **copy})


def load_run(path: Path) -> RunSettings:
    """Read a run's own `config.yaml`; raises ConfigError."""
    return stored_run(read_yaml(path), str(path))


def stored_run(tree: Any, source: str) -> RunSettings:
    """Settings of a run as its `config.yaml` holds them, all of them; raises ConfigError.

    Settings that were added after it was written are what was done without them.
    """
    return validate(RunSettings, _whole(tree), source)


def _whole(tree: Any) -> Any:
    return up_to_date(RunSettings, tree) if isinstance(tree, dict) else tree


def build_run(tree: dict[str, Any], source: str) -> RunSettings:
    """Validate one run's tree of settings; raises ConfigError."""
    return validate(RunSettings, tree, source)
