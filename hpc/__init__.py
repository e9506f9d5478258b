"""Batch jobs on MPI and Slurm: settings, run directories, restart files, signals, launchers."""
