"""How fast: this project beside what one would use instead, its blocks beside the control, and the paths around them.

Everything is measured in turn within one process, round for round, so that whatever slows the machine slows all alike;
the figures are ratios first.
"""
