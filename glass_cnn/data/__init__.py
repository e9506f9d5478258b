"""Data sets: simulate, draw, store, import, read."""
