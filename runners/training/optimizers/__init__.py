"""Optimizers, one a file; `runners.planning.components` says which there are."""
