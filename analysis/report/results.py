"""Results that are kept: an experiment's declaration and its runs in one file, and the table made of such files.

What is kept is what the tracking store holds, so that every verdict can be computed from the file alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.report.cells import cells, count, known, markdown_table, number, rows_of, titles
from analysis.stats.compare import compare
from analysis.store.load import RUN_COLUMNS, require
from analysis.store.schema import MEASURED, Design
from analysis.store.stratum import Stratum

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_TIMES = ("started", "ended")
_MEASURED = ("final/", *MEASURED)
_UNPAIRED = 3  # the column after the difference: what its interval would be without shared seeds


def keep(design: Design, runs: pd.DataFrame, folder: Path) -> Path:
    """Write ``folder``/EXPERIMENT.json; equal results give equal bytes.

    Args:
        design: what was declared.
        runs: the frame of :func:`analysis.store.load.load_runs`.
        folder: made where it is not there.
    """
    records = []
    for row in runs.drop(columns="mlflow_run_id").to_dict("records"):
        row |= {name: row[name].isoformat() if pd.notna(row[name]) else None for name in _TIMES}
        records.append({str(key): None if _absent(value) else value for key, value in row.items()})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{design.experiment}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"design": design.to_tags(), "runs": records}, indent=1) + "\n")
    partial.replace(file)  # whole or not at all
    return file


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def read(file: Path) -> tuple[Design, pd.DataFrame]:
    """The declaration and the runs that :func:`keep` wrote. Raises ValueError for any other file."""
    try:
        record = json.loads(file.read_text())
        design, runs = Design.from_tags(record["design"]), pd.DataFrame(record["runs"])
        require(runs, [name for name in RUN_COLUMNS if name != "mlflow_run_id"])
    except ValueError as error:
        raise ValueError(f"{file} holds no results that can be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no results: {type(error).__name__}: {error}") from None
    runs.insert(0, "mlflow_run_id", "")
    runs = runs.astype(dict.fromkeys(_TIMES, "datetime64[ns, UTC]"))
    for name in ("invalid", "reason"):  # None stays None, also where no run has any
        runs[name] = runs[name].astype(object).where(runs[name].notna(), None)
    return design, runs.astype({name: float for name in runs.columns.astype(str) if name.startswith(_MEASURED)})


def results_markdown(files: Sequence[Path]) -> str:
    """One table of every arm in ``files``: the verdicts, computed anew, under the question of each experiment, by name.

    Raises:
        ValueError: for a file without results, and for results on different bases, which no table holds.
    """
    kept = sorted((read(file) for file in files), key=lambda pair: (pair[0].name, pair[0].confirms))
    experiments = [design.experiment for design, _ in kept]
    if len(set(experiments)) < len(experiments):
        raise ValueError(f"results of one experiment twice: {', '.join(sorted(experiments))}")
    bases = sorted({(design.base, design.tokens_per_run, design.metric, design.margin) for design, _ in kept})
    if len(bases) != 1:
        raise ValueError(
            f"results on {len(bases)} bases: {', '.join(base for base, *_ in bases) or 'none'}; one a table"
        )
    base, tokens, metric, margin = bases[0]
    codes: dict[str, set[str]] = {}  # of one place several: each arm's blocks are part of its code
    for stratum in {str(Stratum.parse(text)) for _, runs in kept for text in runs["stratum"]}:
        place, _, code = stratum.partition(" code=")
        codes.setdefault(place, set()).add(code)
    strata = [f"{place} code={', '.join(sorted(found))}" for place, found in sorted(codes.items())]
    lines = [
        f"`{base}`, {count(tokens)} tokens a run, `{metric}`, margin {margin:g}. Made on: {'; '.join(strata)}.",
        "",
    ]
    body: list[list[str]] = []
    head: tuple[str, ...] = ()
    shared: set[tuple[str, ...]] = set()  # the control and the checks, which read the same in every experiment
    tables = [compare(runs, design) for design, runs in kept]
    worth = all(table["worth"].notna().any() for table in tables)
    programme = any(design.order > 1 for design, _ in kept)
    for (design, _), table in zip(kept, tables, strict=True):
        if not worth:
            table["worth"] = math.nan
        names = titles(table, design, programme=programme)
        speed = names.index("tok/s")  # which kept runs need not have in common
        head = (*names[:_UNPAIRED], "as independent seeds", *names[_UNPAIRED:speed], *names[speed + 1 :])
        asked = []
        for row in rows_of(table):
            line = [cell.replace("<", "&lt;") for cell in cells(row, table, design, programme=programme)]
            del line[speed]
            half = number(row["independent_half"])
            line.insert(_UNPAIRED, f"±{half}" if known(row["independent_half"]) else half)
            if row["role"] == "variant":
                asked.append(line)
            elif row["role"] == "check" and tuple(line) not in shared:
                shared.add(tuple(line))
                body.insert(len(shared) - 1, line)
        mean = cells(rows_of(table)[0], table, design)[2]
        question = f"*{design.question}*{' Once more, on fresh seeds:' if design.confirms else ''}"
        body.append([question, str(table.iloc[0]["n"]), mean, *[""] * (len(head) - 3)])
        body += asked
    return "\n".join([*lines, markdown_table(head, body)])


def insert(text: str, table: str) -> str:
    """``text`` with ``table`` between its marks. Raises ValueError where it has none."""
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"no {BEGIN} … {END} in it")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
