"""`python -m runners VERB`: the only command line of the project."""

import gc
import locale
import os
import sys

if __name__ == "__main__" and not sys.flags.utf8_mode and locale.getencoding().upper() != "UTF-8":
    # Files are UTF-8 whatever the locale, those of libraries too; the terminal keeps its encoding.
    spoken = {"PYTHONIOENCODING": sys.stdout.encoding} if sys.stdout and "PYTHONIOENCODING" not in os.environ else {}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **spoken, "PYTHONUTF8": "1"})

try:
    from runners.cli import main
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    code = main()
    gc.freeze()  # the process ends: nothing needs to be searched for garbage once more
    sys.exit(code)
