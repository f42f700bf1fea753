"""What a report says of its statistics: the numbers behind each verdict, and what its words mean."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.report.cells import Row, counted, interval, known, number, p_value, place
from analysis.report.render import Part, Table
from analysis.stats.estimate import shares
from analysis.store.schema import Design, difference_unit

WORDS = {
    "better, worse": "the simultaneous interval of the difference excludes 0; lower loss is better. "
    "“within margin” is added where the interval is also inside the margin",
    "equivalent": "two one-sided tests place the difference inside the margin",
    "undecided": "neither is shown, or declared runs are missing: no evidence of no difference",
    "invalid": "a validity gate failed or the runs are not comparable; the numbers mean nothing",
    "screen": "one block: a number to plan with, no verdict",
    "block": "one seed, run by every arm. Runs of a block share their batches, step by step, and the initial values of "
    "every tensor that has the same name and shape. An arm is compared with the control within blocks",
    "twin: as expected, differs": "the control with its initial values moved in their last bits. The sd of its "
    "differences is what rounding alone does, and a shared seed cannot take an arm below it. A twin that differs is a "
    "false alarm; honest ones differ as often as alpha says, and are kept",
    "look": "a number of blocks, declared before the first run, after which arms are judged, each time at a share of "
    "alpha. An arm that is decided runs no more blocks",
    "programme": "all experiments that one control has served. Their results share its runs and their chances of a "
    "false alarm add up, so the m-th experiment has the share 1/(m(m+1)) of alpha: p (programme)",
    "prior": "what earlier experiments on the base say of the sd of a difference. An arm's own sd is drawn towards it, "
    "the more the fewer blocks there are (Smyth 2004, doi:10.2202/1544-6115.1027)",
    "per second": "the same question after equal training time: the arm's loss against what the control reaches, by "
    "its runs on other numbers of tokens, in the time that the arm took; speeds are those of the runs themselves",
}


def statistics(rows: Sequence[Row], design: Design) -> list[Part]:
    """How arms are compared, what each difference is, and the spread that its interval rests on."""
    return [_how(rows, design), _prior(design), _differences(rows, design), _spreads(rows, design), place(design)]


def _how(rows: Sequence[Row], design: Design) -> str:
    family = sum(row["role"] == "variant" for row in rows)
    pairs = "between the means of independent seeds" if design.independent else "within blocks"
    looks = ""
    if design.looks:
        spent = ", ".join(f"{design.alpha * share:.3g}" for share in shares(design.looks))
        looks = f" Alpha is spent over looks after {', '.join(map(str, design.looks))} blocks: {spent}."
    return (
        f"Differences {pairs}; alpha {design.alpha:g}, margin ±{design.margin:g}; Bonferroni's intervals and Holm's p "
        f"over a family of {family}. Checks are compared one at a time.{looks}"
    )


def _prior(design: Design) -> str:
    what = "an arm's runs" if design.independent else "a difference within a block"
    if design.prior is None:
        return f"No prior: the base knows no sd of {what}, so each arm has its own alone."
    source = design.prior.source.rstrip(".")
    return (
        f"Prior of the sd of {what}: {number(design.prior.sd)} {difference_unit(design.metric)}, with the weight of "
        f"{design.prior.df:.3g} degrees of freedom. Source: {source}."
    )


def _differences(rows: Sequence[Row], design: Design) -> Table:
    tost = f"{100 * (1 - 2 * design.alpha):.0f} % interval (TOST)"
    heads = ("arm", "n", "mean", "delta", "simultaneous interval", tost, "p", "p (adj.)", "p (programme)")
    lines = [
        (
            row["arm"],
            counted(row),
            number(row["mean"]),
            number(row["delta"], "+"),
            interval(row["ci_low"], row["ci_high"]),
            interval(row["tost_low"], row["tost_high"]),
            *(p_value(row[p]) or "–" for p in ("p", "p_adj", "p_programme")),
            number(row["mde"]),
            f"{row['look']:.0f}" if known(row["look"]) else "–",
            row["flags"],
        )
        for row in rows
    ]
    return Table((*heads, "smallest effect", "look", "flags"), lines)


def _spreads(rows: Sequence[Row], design: Design) -> Table:
    """Of what each interval is made; for the control, its sd between seeds."""
    heads = ("arm", f"own sd {'of runs' if design.independent else 'within blocks'}", "moderated sd (df)", "half width")
    lines = []
    for row in rows:
        control = row["role"] == "control"
        line: tuple[str, ...] = (
            row["arm"],
            f"{number(row['sigma'])} between seeds" if control else number(row["own_sd"]),
            f"{number(row['sigma'])} ({row['df']:.3g})" if known(row["sigma"]) and not control else "–",
            number((row["ci_high"] - row["ci_low"]) / 2),
        )
        if not design.independent:
            shared = f"{row['correlation']:+.2f}" if known(row["correlation"]) else "–"
            line = (*line, number(row["independent_half"]), shared)
        lines.append(line)
    return Table(heads if design.independent else (*heads, "as independent seeds", "seed correlation"), lines)
