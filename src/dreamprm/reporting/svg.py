"""A matplotlib figure as SVG inside a page: its text is text, its colours are the page's.

Colours are drawn with stand-ins that CSS variables replace, so that light and dark need one file.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

SERIES = 8  # colours of the page's palette
FOREGROUND, MUTED, RULE = "#5eedf0", "#5eedf1", "#5eedf2"
_VARIABLES = {
    FOREGROUND: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{f"#5eed0{i}": f"var(--series-{i + 1})" for i in range(SERIES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dreamprm",  # ids are a function of what is drawn
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 11,
    "text.color": FOREGROUND,
    "axes.labelcolor": FOREGROUND,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": FOREGROUND,
    "ytick.labelcolor": FOREGROUND,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.7,
    "path.simplify": True,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def series_colour(index: int) -> str:
    """The stand-in of the palette's colour ``index``, which starts anew after the last."""
    return f"#5eed0{index % SERIES}"


def inline_svg(
    name: str, label: str, draw: Callable[[Figure], None], size: tuple[float, float] = (6.2, 3.9)
) -> Markup:
    """Draws a figure and gives it as an ``<svg>`` element.

    Args:
        name: unique in the page; what the figure's ids start with.
        label: what a reader who does not see it is told.
        draw: fills the figure.
        size: in inches of 72 units.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the letters of names that the font which measures them lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", dpi=72, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    for tag in ("metadata", "defs"):
        for element in root.findall(f"{{{_SVG}}}{tag}"):
            # The first <defs> is a style sheet, which would hold for the whole page.
            if tag == "metadata" or element.find(f"{{{_SVG}}}style") is not None:
                root.remove(element)
    for element in root.iter():
        _adapt(element, name)
    for size_attribute in ("width", "height"):
        del root.attrib[size_attribute]
    root.set("role", "img")
    root.set("aria-label", label)
    text = ET.tostring(root, encoding="unicode")
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return Markup(text)  # ElementTree has escaped what names and labels hold


def _adapt(element: ET.Element, name: str) -> None:
    """Ids that no other figure of the page has, and the font of the page."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif key == "style":
            element.set(key, re.sub(r"font: (\S+) [^;]*", r"font-size: \1", value))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
