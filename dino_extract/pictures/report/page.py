"""The page itself: one HTML file that contains everything, runs its own script alone, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fill_page(*, title: str, summary: str, notes: Sequence[str], sections: Sequence[str], data: dict[str, Any]) -> str:
    """The finished page.

    Its content security policy allows its one script and its one style sheet by their hashes, so that the name of a file cannot bring in
    another, and forbids every connection.

    Args:
        title: plain text.
        summary: plain text.
        notes: plain text, one paragraph each.
        sections: HTML from the functions below.
        data: JSON for the script.
    """
    template, style, script = (
        resources.files(__package__).joinpath(f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js")
    )
    return Template(template).substitute(
        title=html.escape(title),
        summary=html.escape(summary),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        sections="\n".join(sections),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no `</script>` in a name ends the block
    )


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def base64_array(array: NDArray[Any], dtype: str) -> str:
    """An array as base64 text of little-endian numbers of a type such as `f4`."""
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def section(heading: str, *content: str, is_wide: bool = False) -> str:
    """A box with a heading around HTML."""
    opening = '<section class="wide">' if is_wide else "<section>"
    return f"{opening}<h2>{html.escape(heading)}</h2>{''.join(content)}</section>"


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f'<p class="note">{html.escape(text)}</p>'


def figures(values: Sequence[tuple[str, str]]) -> str:
    """(figure, label) as large numbers in a row."""
    return '<div class="figures">' + "".join(f"<div><b>{html.escape(v)}</b>{html.escape(label)}</div>" for v, label in values) + "</div>"


def fact_table(rows: Sequence[tuple[str, str]]) -> str:
    """(label, value) as a table."""
    return "<table>" + "".join(f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>" for label, value in rows) + "</table>"


def failure_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """(path, kind, reason) as a table that scrolls."""
    body = "".join(
        f'<tr><td class="path">{html.escape(path)}</td><td>{html.escape(kind)}</td><td>{html.escape(reason)}</td></tr>'
        for path, kind, reason in rows
    )
    return f'<div class="scroll"><table><tr><th>Path</th><th>Kind</th><th>Reason</th></tr>{body}</table></div>'


def gallery(name: str) -> str:
    """A place that the script fills with thumbnails when it is scrolled into view."""
    return f'<div data-gallery="{html.escape(name)}"></div>'


def histogram_svg(values: NDArray[np.float32], label: str) -> str:
    """A histogram, with both ends of the range and the label below it."""
    low, high = float(values.min()), float(values.max())
    # In float32 there may be no numbers between neighbouring values for the edges of the bins.
    counts, _ = np.histogram(values.astype(np.float64), bins=48, range=(low, high if high > low else low + 1))
    bars = "".join(
        f'<rect x="{10 + 12 * i}" y="{110 - 100 * count / counts.max():.1f}" width="10" height="{100 * count / counts.max():.1f}"/>'
        for i, count in enumerate(counts.tolist())
    )
    return _chart(bars, f"{low:.4g}", label, f"{high:.4g}")


def curve_svg(values: NDArray[np.float64], label: str) -> str:
    """A rising curve of shares 0..1, with its ends below it."""
    steps = np.linspace(0, len(values) - 1, min(len(values), 200)).round().astype(int)
    points = " L".join(f"{10 + 576 * i / max(len(values) - 1, 1):.1f} {110 - 100 * values[i]:.1f}" for i in steps.tolist())
    return _chart(f'<path d="M{points}"/>', "1", label, str(len(values)))


def _chart(marks: str, left: str, middle: str, right: str) -> str:
    return (
        f'<svg viewBox="0 0 596 130" role="img" aria-label="{html.escape(middle)}">{marks}<line x1="10" y1="110.5" x2="586" y2="110.5"/>'
        f'<text x="10" y="125">{html.escape(left)}</text><text x="298" y="125" text-anchor="middle">{html.escape(middle)}</text>'
        f'<text x="586" y="125" text-anchor="end">{html.escape(right)}</text></svg>'
    )
