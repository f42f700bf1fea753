"""The verbs: plan, run, train, report. `python -m runners VERB` is the command line."""
