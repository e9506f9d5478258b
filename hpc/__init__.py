"""Batch jobs on MPI and Slurm: settings, files, checkpoints, signals, launchers."""
