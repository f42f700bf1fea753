"""Tidy frames, comparisons, power and reports over an MLflow store; imports nothing of the other packages."""
