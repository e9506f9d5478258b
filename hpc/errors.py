"""What ends a job: errors whose text is all that people need, and the exit codes."""

from __future__ import annotations

EXIT_COMPLETE = 0
EXIT_DATA = 65
EXIT_INTERNAL = 70
EXIT_AGAIN = 75
EXIT_CONFIG = 78


class UserError(Exception):
    """Something the user can mend; its text is all they need to see."""

    exit_code = EXIT_INTERNAL
    told = False
    """whether another rank prints it"""


class ConfigError(UserError):
    """A setting, a settings file or a command line that is wrong (exit code 78)."""

    exit_code = EXIT_CONFIG


class DataError(UserError):
    """Input data that is missing, damaged or unusable (exit code 65)."""

    exit_code = EXIT_DATA


class StorageError(UserError):
    """Files cannot be written: no permission, no space (exit code 70)."""


class Stopped(UserError):
    """Ended on request with everything finished kept; run it again (exit code 75)."""

    exit_code = EXIT_AGAIN
