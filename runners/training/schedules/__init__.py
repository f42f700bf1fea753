"""Schedules of the learning rate, one a file; `runners.planning.components` says which there are.

A schedule is built from its Config and the number of steps, and called with a step, from 0: the fraction of the peak
rate with which that step is made. It is positive at every step.
"""
