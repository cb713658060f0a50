"""A matplotlib figure as SVG inside a page: it takes the page's colours, letters and width."""

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from jaxpmi.runs.writers.pictures import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn with these, for they are the page's to choose: by day, by night, on paper.
INK, MUTED, RULE, PAPER, ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = tuple(f"#0606{i:02x}" for i in range(6))
COLOURS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}
COLOURS |= {PAPER: "var(--paper)", ACCENT: "var(--accent)"}
COLOURS |= {drawn: f"var(--series{i})" for i, drawn in enumerate(SERIES)}

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
FONT_SIZE = 12
STYLE = {
    "svg.fonttype": "none",  # letters, not their outlines
    "svg.hashsalt": "jaxpmi",  # the same figure, the same text
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
}


def style():
    """A context in which figures are drawn that `inline_svg` takes."""
    import_matplotlib()
    import matplotlib

    return matplotlib.rc_context(STYLE)


def inline_svg(figure: "Figure", name: str, label: str) -> str:
    """Returns a figure as an <svg> element.

    Args:
      figure: drawn within `style()`.
      name: no other figure's of the page; what is referred to inside is called by it.
      label: what the figure shows, to be read aloud.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    _rename(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": label}
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
    text = ElementTree.tostring(root, "unicode")
    # The family is the page's; how it is written depends on matplotlib's version.
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for drawn, shown in COLOURS.items():
        text = text.replace(drawn, shown)
    return text


def _rename(root: ElementTree.Element, name: str) -> None:
    """Drops every id that nothing refers to, and puts the figure's name before the others."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = set(re.findall(r"#([\w-]+)", " ".join(v for v in values if "#" in v)))
    for element in root.iter():
        if element.get("id") in used:
            element.set("id", f"{name}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        if (target := element.attrib.pop(f"{XLINK}href", None)) is not None:
            element.set("href", target.replace("#", f"#{name}-"))
        if (clip := element.get("clip-path")) is not None:
            element.set("clip-path", clip.replace("#", f"#{name}-"))
