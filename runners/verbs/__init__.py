"""The verbs of the command line, one a file: its arguments, its options, examples, and what it does.

Each file is imported to print its help, so that what is slow to import is imported where it is used.
"""
