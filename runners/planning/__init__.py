"""From an experiment's YAML to the list of runs that answers its question."""
