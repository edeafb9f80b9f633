"""Drawings are well-formed, and what they draw is where it should be."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from dynamo_sdk.bench.panels import COLOURS, bars, curves, document, dots, lines


def drawn(*panels: str) -> ET.Element:
    return ET.fromstring(document("<title>", panels))


def tags(root: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in root.iter() if one.tag.endswith(name)]


def test_each_series_has_a_line_a_colour_and_a_name() -> None:
    for panel in (
        curves("c", {"<a>": [1.0, 2.0], "b": [3.0]}),
        lines("l", {"<a>": [(0, 1), (1, 2)], "b": [(0, 2)]}),
    ):
        root = drawn(panel)
        assert [line.attrib["stroke"] for line in tags(root, "polyline")] == list(COLOURS[:2])
        assert {"<a>", "b"} <= {text.text for text in tags(root, "text")}


def test_one_series_needs_no_name() -> None:
    root = drawn(curves("c", {"alone": [1.0]}))
    assert "alone" not in {text.text for text in tags(root, "text")}


def test_bars_stand_in_groups_and_are_as_high_as_their_values() -> None:
    root = drawn(bars("b", {"one": [1.0, 2.0], "two": [4.0, 0.0]}))
    rects = [rect for rect in tags(root, "rect") if "x" in rect.attrib and float(rect.attrib["width"]) > 20]
    heights = [float(rect.attrib["height"]) for rect in rects]
    assert heights == [heights[0], 2 * heights[0], 4 * heights[0], 0.0]
    left = [float(rect.attrib["x"]) for rect in rects]
    assert left[0] < left[2] < left[1] < left[3], "the first values side by side, then the second ones"


def test_nothing_to_draw_is_said() -> None:
    for panel in (curves("c", {"a": []}), lines("l", {}), dots("d", []), bars("b", {"a": []}), bars("b", {})):
        assert "no values" in {text.text for text in tags(drawn(panel), "text")}


def test_two_panels_to_a_row() -> None:
    one, three = (drawn(*[curves("c", {})] * number) for number in (1, 3))
    assert float(three.attrib["height"]) > float(one.attrib["height"])
    assert three.attrib["width"] == one.attrib["width"]
