"""One thin entry point per stage (`python -m jobs.<stage> --help`), and the study files."""
