"""From runs to verdicts: which runs count, differences and their errors, power, and how often verdicts are right."""
