"""Runs to a table, and what it says."""
