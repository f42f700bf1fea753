"""From an experiment's YAML to its verdict. `python -m runners VERB` is the command line."""
