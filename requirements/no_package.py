"""The build backend of this project, which builds nothing: an installation is a clone.

A package would take the names `hpc` and `jobs` of the environment it is installed into, and lack
what no package can bring: MPI, Horovod compiled against it, the batch templates. So pip, and what
else asks for a package, ends here with one message.
"""

from __future__ import annotations

from typing import NoReturn

MESSAGE = (
    "glass-cnn is not installed as a package: an installation is a clone of its repository. In the "
    "clone, 'make setup' makes .venv with all that it needs, and .venv/bin/glass runs it from any "
    "directory. For code of one's own, 'import glass_cnn' works with .venv/bin/python."
)


def refuse(*_: object, **__: object) -> NoReturn:
    """Every hook of a build backend (PEP 517 and 660)."""
    raise SystemExit(f"error: {MESSAGE}")


build_wheel = build_sdist = build_editable = refuse
get_requires_for_build_wheel = get_requires_for_build_sdist = refuse
get_requires_for_build_editable = refuse
