"""A run's log as text, and whether the run made again gives the same."""
