"""`python -m runners VERB`: the only command line of the project."""

import sys

from runners.cli import main

if __name__ == "__main__":
    sys.exit(main())
