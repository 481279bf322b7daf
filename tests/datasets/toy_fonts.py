"""Fonts of a few rectangles: what their characters are, and which of them become instances."""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

EM = 1000
# name -> rectangles (left, bottom, right, top) in units of 1/1000 em
OUTLINES: dict[str, list[tuple[int, int, int, int]]] = {
    ".notdef": [(100, 0, 700, 700)],
    "blank": [],
    "tall": [(50, 0, 250, 800)],
    "small": [(600, 500, 700, 600)],
    "posts": [(0, 0, 100, 300), (2900, 0, 3000, 300)],
    "bar": [(0, 200, 800, 300)],
    "box": [(100, 0, 700, 700)],
}
CHARACTERS = {
    0x20: "blank",
    0x2B: "blank",
    0xAD: "bar",
    0x41: "tall",
    0x391: "tall",
    0x42: "small",
    0x43: "posts",
    0x25A1: "box",
}
DRAWN = [0x41, 0x42, 0x43]


def build_font(path: Path, family: str, cmap: dict[int, str], style: str = "Regular") -> Path:
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(list(OUTLINES))
    builder.setupCharacterMap(cmap)
    outlines = {}
    for name, rectangles in OUTLINES.items():
        pen = TTGlyphPen(None)
        for left, bottom, right, top in rectangles:
            pen.moveTo((left, bottom))
            for corner in [(left, top), (right, top), (right, bottom)]:
                pen.lineTo(corner)
            pen.closePath()
        outlines[name] = pen.glyph()
    builder.setupGlyf(outlines)
    left_edges = {name: min((r[0] for r in rectangles), default=0) for name, rectangles in OUTLINES.items()}
    builder.setupHorizontalMetrics({name: (EM, left) for name, left in left_edges.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupPost()
    builder.save(path)
    return path
