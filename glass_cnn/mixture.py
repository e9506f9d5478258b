"""The two-dimensional Kob–Andersen mixture: its species and how they interact, written once.

Lennard-Jones units of AA: lengths in σ_AA, energies in ε_AA, every mass is 1. Each pair of species
interacts by 4ε[(σ/r)¹² − (σ/r)⁶] up to CUTOFF · σ, where the potential is cut and not shifted.
"""

from __future__ import annotations

TYPE_A, TYPE_B = 1, 2
"""numbers of the species, in LAMMPS, in every file and in every array"""
SPECIES = {TYPE_A: "A", TYPE_B: "B"}
"""number -> name"""
FRACTION_A = 0.65
"""share of A: 65:35, which does not crystallise as readily as the 80:20 of three dimensions"""
EPSILON = {(TYPE_A, TYPE_A): 1.0, (TYPE_A, TYPE_B): 1.5, (TYPE_B, TYPE_B): 0.5}
"""depth of the potential of each pair, ε_AA"""
SIGMA = {(TYPE_A, TYPE_A): 1.0, (TYPE_A, TYPE_B): 0.8, (TYPE_B, TYPE_B): 0.88}
"""distance at which the potential of each pair is zero, σ_AA"""
CUTOFF = 2.5
"""cutoff of each pair over its own σ"""
MASS = 1.0
