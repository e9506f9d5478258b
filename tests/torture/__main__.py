"""`python -m tests.torture`: see `tests.torture.campaign`."""

import sys

from hpc.commandline import run_main
from tests.torture.campaign import main

sys.exit(run_main(main))
