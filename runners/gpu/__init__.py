"""The first half hour on a card: what is carried there, what is done there in which order, and what comes back.

- ``gpu-pack`` builds one folder below 64 MiB: the source of HEAD, wheels that a machine with torch and transformers may
  lack, the token shards compressed, and ``pack.json`` with a sha256 of each file. It needs no network there.
- ``bare`` makes an environment there out of these wheels, with the standard library alone, and starts ``gpu``.
- ``gpu`` carries out :func:`parts.steps`, a table of this program's own commands, each as a process of its own. It
  prints the minutes that each is predicted to take first.
- A step that is done is not repeated. One that was stopped goes on, since run folders and checkpoints are exact. When
  the minutes are over, the step in hand gets SIGINT and saves; the exit code is 3 while something is left.
- Results are in one folder without weights and checkpoints, with a sha256 of each file, whole after every step.
- ``gpu-import`` enters that folder into a checkout. It refuses, with nothing written, a file that is not what it was,
  and runs whose code computes something else here. Done twice it changes nothing more. Verdicts are computed here,
  where MLflow is.
"""
