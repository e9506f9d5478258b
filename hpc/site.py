"""What a cluster is like: slurm/sites/<name>.yaml, with `launch.slurm` laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from hpc.config import Settings, to_tree, unknown_key_message, validate
from hpc.errors import ConfigError
from hpc.yaml_files import kind_of, read_tree, union

PROJECT = Path(__file__).resolve().parent.parent


def _plain(value: str) -> str:
    if not value or value.startswith("-") or not value.isprintable():
        raise ValueError("must not be empty, begin with '-' or hold control characters")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must not hold control characters")
    return value


def _time_text(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError('write it in quotes, as "hours:minutes:seconds" (YAML makes 1:30:00 5400)')
    return value


_TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
    r"|(?P<h>\d+):(?P<hm>\d+):(?P<hs>\d+)|(?P<m>\d+)(?::(?P<s>\d+))?)"
)


def seconds(time_limit: str) -> int:
    """Length of a time limit as Slurm writes it: "90", "90:00", "1:30:00", "1-12", "1-12:00:00".

    Raises ValueError for anything else.
    """
    match = _TIME.fullmatch(time_limit)
    if match is None:
        raise ValueError(
            'must look like "1:30:00" (hours:minutes:seconds) or "2-12:00:00" (days-…)'
        )
    part = {key: int(value or 0) for key, value in match.groupdict().items()}
    minutes = part["dm"] + part["hm"] + part["m"]
    hours = 24 * part["d"] + part["dh"] + part["h"]
    return 3600 * hours + 60 * minutes + part["ds"] + part["hs"] + part["s"]


def _check_time(value: str) -> str:
    if seconds(value) < 60:
        raise ValueError("must be at least a minute")
    return value


def _check_variables(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        _printable(value)
    return variables


def _check_gpus(value: Any) -> str | int:
    named = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]+:[0-9]+", value)
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not named and not number:
        raise ValueError('must be a number from 0, or "type:number" such as "a100:4"')
    return value


def _check_rank_gpus(value: Any) -> str | int:
    if isinstance(value, bool) or not re.fullmatch(r"0|1|[A-Za-z0-9_.-]+:1", str(value)):
        raise ValueError('must be 0, 1 or "type:1" such as "a100:1": a rank computes on one')
    return int(value) if str(value) in ("0", "1") else str(value)


def _check_memory(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]+[KMGT]?", value):
        raise ValueError('must be a number with a unit, in quotes, such as "16G" or "512M"')
    return value


Count = Annotated[int, pydantic.Field(ge=1)]
Word = Annotated[str, pydantic.AfterValidator(_plain)]
Text = Annotated[str, pydantic.AfterValidator(_printable)]
Time = Annotated[str, pydantic.BeforeValidator(_time_text), pydantic.AfterValidator(_check_time)]
Gpus = Annotated[int | str, pydantic.BeforeValidator(_check_gpus)]
RankGpus = Annotated[Literal[0, 1] | str, pydantic.BeforeValidator(_check_rank_gpus)]
Memory = Annotated[str, pydantic.BeforeValidator(_check_memory)]
Variables = Annotated[dict[str, str], pydantic.AfterValidator(_check_variables)]


class Site(Settings):
    """What one cluster is like: slurm/sites/<name>.yaml with `launch.slurm` laid over it."""

    launcher: Literal["srun", "mpiexec"] = "srun"
    """what starts the ranks"""
    mpi: Literal["pmi2", "pmix", "none"] = "pmi2"
    """srun's plug-in: pmi2 for MPICH and its kin, pmix for Open MPI (`srun --mpi=list`)"""
    bind: Literal["cores", "none"] = "cores"
    """keep each rank on its own cores, or leave that to the system"""
    ranks: Count | None = None
    """ranks of each task; null takes launch.ranks"""
    ranks_per_node: Count = 1
    """ranks that one node holds (as many as its GPUs, where there are some)"""
    nodes: Count | None = None
    """nodes of each job; null takes as many as the ranks need"""
    min_nodes: Count | None = None
    """start on fewer nodes, with fewer ranks, when no more are free; null waits for all"""
    cpus_per_rank: Count | None = None
    """CPUs of each rank; null takes launch.threads_per_rank"""
    gpus_per_rank: RankGpus = 0
    """whether each rank of the main stage gets a GPU: 0, 1 or "type:1"; no more are asked for"""
    gpus_per_node: Gpus = 0
    """in place of it, where whole nodes are given: GPUs of each, a number or type:number"""
    memory_per_rank: Memory | None = None
    """memory of each rank, for example 4G: asked for is the sum over those of a node"""
    memory: Memory | None = None
    """in place of it, memory of each node, for example 16G; null takes the partition's default"""
    time: Time = "1:00:00"
    """time limit of one allocation; a longer run goes on in the next one"""
    signal_lead: Annotated[int, pydantic.Field(ge=1, le=65_535)] = 120
    """seconds before the time limit at which the run is told to checkpoint"""
    partition: Word | None = None
    """partition, or several with commas"""
    account: Word | None = None
    """account that is charged"""
    qos: Word | None = None
    """quality of service"""
    constraint: Word | None = None
    """node features, for example a100|h100"""
    modules: tuple[Word, ...] = ()
    """environment modules to load, in this order"""
    container: Word | None = None
    """image in which Apptainer runs the ranks, with an environment of its own; null: none"""
    environment: Variables = pydantic.Field(default_factory=dict)
    """environment variables to set"""
    launcher_options: tuple[Text, ...] = ()
    """more options for srun or mpiexec, one word each"""
    options: tuple[Text, ...] = ()
    """more options for sbatch, one word each (--exclusive, --mail-type=END); they win"""
    throttle: Count | None = None
    """tasks of an array that may run at the same time; null leaves it to Slurm"""
    max_array_size: Annotated[int, pydantic.Field(ge=0)] | None = None
    """tasks in one array, plus 1; 0 makes a job of each task; null asks Slurm"""
    max_requeues: Annotated[int, pydantic.Field(ge=0)] = 100
    """times that a job puts itself back into the queue"""
    sections: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    """values that differ for the jobs of one stage; in a file they stand under the stage's name"""

    def of(self, name: str, main: bool = False) -> Site:
        """The profile of one stage: its section over the rest; nodes and GPUs for `main` ones only.

        Raises ConfigError.
        """
        cpus = {"nodes": None, "min_nodes": None, "gpus_per_node": 0, "gpus_per_rank": 0}
        tree = {} if main else cpus
        own = self.sections.get(name, {})
        if not tree and not own:
            return self
        whole = union(to_tree(self), {**tree, **own})
        return validate(Site, whole, f"the site profile's section '{name}'")


def load_site(name: str, over: Mapping[str, Any], sections: Sequence[str] = ()) -> Site:
    """Read a profile by its name in slurm/sites/ or its path; `over` (launch.slurm) is laid on it.

    `sections` are the names of stages that may have values of their own. Raises ConfigError.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PROJECT / "slurm" / "sites" / f"{name}.yaml"
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        if name not in known:
            raise ConfigError(
                f"launch.site = {name!r}: no such site profile. Known: {', '.join(known)}; or give "
                "the path of a YAML file of your own."
            )
    where = f"{path} with launch.slurm" if over else str(path)
    tree = union(read_tree(path), over)
    allowed = {*Site.model_fields, *sections} - {"sections"}
    for key in (str(key) for key in tree):
        if key not in allowed:
            raise ConfigError(f"{where}: {unknown_key_message(key, allowed)}")
    own = {section: tree.pop(section) for section in sections if section in tree}
    for section, values in own.items():
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{where}: {section} is {kind_of(values)}; a mapping 'key: value' is needed."
            )
    site = validate(Site, {**tree, "sections": own}, where)
    for section in own:
        site.of(section)
    return site
