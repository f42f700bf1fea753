"""`python -m runners VERB`: the only command line of the project."""

import gc
import sys

try:
    from runners.cli import main
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    code = main()
    gc.freeze()  # the process ends: nothing needs to be searched for garbage once more
    sys.exit(code)
