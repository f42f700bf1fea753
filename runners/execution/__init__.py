"""Carrying runs out: one run, several at once on this machine, a whole plan."""
