"""A figure as an element of a page: text stays text, and every point of a line tells its value."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from monai_adv.foreign_text import printable

DROPPED = {"metadata", "style", "clipPath"}
"""What matplotlib writes for a file of its own: the style would be that of the whole page, and nothing is clipped."""
REACH = "11"
"""Radius around a point in which the mouse finds it, in units of the figure (points)."""
HEADROOM = 20
"""Above this a value would leave the figure: it stands below its point."""


def inline_svg(figure: Figure, name: str, title: str, places: Mapping[float, str]) -> str:
    """An ``<svg>`` for HTML; the same figure gives the same text.

    Args:
        figure: with one plot. Its lines with markers are measured values in percent.
        name: begins all ids, which have to differ in a page.
        title: what the figure shows, for readers who do not see it; they get the values after it.
        places: what the horizontal positions are called.

    Example:
        >>> figure = Figure()
        >>> _ = figure.subplots().plot([0.0, 5.0], [80.0, 50.0], marker="o", label="IMA")
        >>> "IMA, L2 5: 50.0 %" in inline_svg(figure, "curve", "Dice", {0.0: "unchanged", 5.0: "L2 5"})
        True
    """
    lines = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "", " ")]
    told = {}
    for number, line in enumerate(lines):
        line.set_gid(f"line-{number}")
        told[f"line-{number}"] = [(value, f"{_label(line)}, {text}") for value, text in _values(line, places)]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = _plain(ElementTree.fromstring(buffer.getvalue()))
    for group in [g for g in root.iter("g") if g.get("id") in told]:
        _tell(group, told[group.attrib["id"]])
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set("id", f"{name}-{value}")
            elif key == "href":
                element.set("href", f"#{name}-{value.removeprefix('#')}")
    words = "; ".join(f"{_label(line)}: {', '.join(text for _, text in _values(line, places))}" for line in lines)
    for position, (tag, text) in enumerate((("title", title), ("desc", words))):
        described = Element(tag, id=f"{name}-{tag}")
        described.text = printable(text)
        root.insert(position, described)
    root.attrib = {
        "viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc",
        "stroke-linejoin": "round",
    }  # fmt: skip
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _tell(group: Element, values: Sequence[tuple[str, str]]) -> None:
    """Around every marker a place for the mouse, with its value beside it; CSS shows that one only then."""
    if not values:  # without a point that is drawn there are no markers
        return
    (markers,) = (g for g in group.iter("g") if g.find("use") is not None)
    for position, (use, (value, text)) in enumerate(zip(list(markers), values, strict=True)):
        x, y = float(use.attrib["x"]), float(use.attrib["y"])
        point = Element("g", {"class": "point"})
        SubElement(point, "title").text = text
        SubElement(point, "circle", cx=f"{x:g}", cy=f"{y:g}", r=REACH, fill="transparent")
        point.append(use)
        side = "start" if position == 0 else "end"
        at = {"x": f"{x:g}", "y": f"{y - 7 if y > HEADROOM else y + 15:g}", "text-anchor": side}
        SubElement(point, "text", {"class": "value", **at}).text = value
        markers[position] = point


def _label(line: Line2D) -> str:
    return printable(str(line.get_label()).replace(r"\$", "$")).strip()


def _values(line: Line2D, places: Mapping[float, str]) -> list[tuple[str, str]]:
    """(value, place and value) of the points that are drawn."""
    return [
        (f"{y:.1f}", f"{places.get(x, f'{x:g}')}: {y:.1f} %")
        for x, y in zip(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float), strict=True)
        if np.isfinite(y)
    ]


def _plain(root: Element) -> Element:
    """Without namespaces, which HTML does not need, and without :data:`DROPPED`."""
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = {
            key.partition("}")[2] or key: value for key, value in element.attrib.items() if key != "clip-path"
        }
        element.text = (element.text or "").strip("\n ") or None
        element.tail = None
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in DROPPED]:
            parent.remove(child)
    return root
