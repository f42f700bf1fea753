"""`python -m runners VERB`: the only command line of the project."""

import sys

try:
    from runners.cli import main
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
