"""One training run on all its ranks."""
