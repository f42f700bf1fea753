"""A document of sections, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.report.cells import markdown_table


@dataclass(frozen=True)
class Table:
    """Rows of text under titles; a `summary` folds them away where a page can."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: str = ""


@dataclass(frozen=True)
class Items:
    """Texts, each under a name."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A figure by its key, with a caption that says what to see."""

    key: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines to type."""

    text: str


Part = str | Table | Items | Picture | Code


@dataclass(frozen=True)
class Section:
    """A title over parts, in order."""

    title: str
    parts: Sequence[Part]
    level: int = 2


def markdown(title: str, sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """The document in Markdown. ``pictures``: key -> file name. Folded tables are left to the page."""
    lines = [f"# {plain(title)}"]
    for section in sections:
        if section.title:
            lines.append(f"{'#' * section.level} {plain(section.title)}")
        for part in section.parts:
            if isinstance(part, str):
                lines.append(plain(part))
            elif isinstance(part, Table):
                if not part.summary:
                    lines.append(markdown_table(part.titles, [[plain(cell) for cell in row] for row in part.rows]))
            elif isinstance(part, Items):
                lines.append("\n".join(f"- **{plain(name)}**: {plain(text)}" for name, text in part.pairs))
            elif isinstance(part, Picture):
                lines.append(f"![{plain(part.caption)}]({pictures[part.key]})")
            else:
                lines.append(f"```\n{part.text}\n```")
    return "\n\n".join(line for line in lines if line) + "\n"


def page(title: str, sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The document as HTML that needs no other file and no network. ``pictures``: key -> SVG."""
    body = [f"<h1>{_text(title)}</h1>"]
    for section in sections:
        tag = f"h{section.level}"
        head = f"<{tag}>{_text(section.title)}</{tag}>" if section.title else ""
        parts = "\n".join(_part(part, pictures) for part in section.parts)
        body.append(f"<section>\n{head}\n{parts}\n</section>")
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n{_ICON}'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n<main>\n{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def _part(part: Part, pictures: Mapping[str, bytes]) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, Table):
        head = "".join(f'<th scope="col">{_text(title)}</th>' for title in part.titles)
        rows = "\n".join(_row(row) for row in part.rows)
        table = f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
        return f"<details><summary>{_text(part.summary)}</summary>\n{table}</details>" if part.summary else table
    if isinstance(part, Items):
        return f"<ul>{''.join(f'<li><b>{_text(name)}</b>: {_text(text)}</li>' for name, text in part.pairs)}</ul>"
    if isinstance(part, Picture):
        data = base64.b64encode(pictures[part.key]).decode()
        caption = _text(part.caption)
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    return f"<pre>{_text(part.text)}</pre>"


def _row(row: Sequence[str]) -> str:
    first, *rest = row
    return f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'


def _text(text: str) -> str:
    return html.escape(text).replace(" %", "&nbsp;%")


def plain(text: str) -> str:
    """Text that Markdown takes as it is: no markup, no HTML, on one line."""
    return html.escape(re.sub(r"([\\`*\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split())), quote=False)


_ICON = '<link rel="icon" href="data:,">'  # or a browser asks for one

_STYLE = """
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
thead th { border-bottom: 2px solid #888; white-space: nowrap; } tbody th { font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; } td:last-child { white-space: normal; min-width: 14rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .88rem; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; } summary { cursor: pointer; }
@media print { main { max-width: none; } section { break-inside: avoid-page; } body { font-size: 10pt; }
  td, th, thead th { white-space: normal; } .wide { overflow: visible; } pre { white-space: pre-wrap; } }
"""
