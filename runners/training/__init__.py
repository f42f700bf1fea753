"""The numerics: everything that can change a bit of a run's losses, and nothing else."""
