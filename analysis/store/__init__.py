"""The tracking store: names and units of what is in it, and its only reader."""
