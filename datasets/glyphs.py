"""Glyphs: every character of every font face is an instance, rendered when asked for. The images that need no download.

An instance is a pair (face, character). The face's em square is rendered at image_size pixels, so characters keep their
relative size, and the ink is centred; ink larger than the image (stacked accents, wide ligatures, tall brackets) is
reduced until it fits. White (255) on black (0).

    characters of a face = its Unicode cmap
                           - separators, controls and format characters
                           - those that draw nothing, or the same pixels as the face's .notdef
                           - in training, those whose outline an earlier character of the same font file has drawn

The last line matters for the regional faces of a CJK collection, which share most outlines: one outline, one
instance. Outlines are compared by identity (table and glyph number), not by pixels: Latin A and Greek Alpha are two
glyphs of most fonts and stay two instances although they look alike. Of matplotlib's 57,056 glyphs at 32 pixels 42,936
are distinct to the pixel; that is the price of one row a glyph. A label is the code point of the first character that
had the outline; fonts that misuse code points (TeX's cmmi10 draws Gamma at U+00A1) carry labels that mean nothing.

Left out: kerning, ligatures, variable axes (the default instance is drawn), bitmap-only fonts, symbol fonts without a
Unicode cmap, unhinted rendering (Pillow has no switch for it, so pixels depend on the FreeType build).
"""

import difflib
import hashlib
import io
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import fontTools
import numpy as np
import PIL
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont, features

from datasets.batch import ImagesUnavailable
from datasets.disk_cache import cached_bytes
from datasets.regular_file import NotRegular, content_of
from datasets.shown import shown

_SUFFIXES = {".ttf", ".otf", ".ttc"}
# Fonts of this family draw one placeholder for a whole script: a million characters, a few hundred pictures.
_PLACEHOLDER_FONTS = "lastresort"
_WITHOUT_INK = {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"}
# A noncharacter: no font maps it, so FreeType draws glyph 0, the .notdef.
_UNMAPPED = 0x10FFFF


@dataclass(frozen=True)
class Face:
    """One face of a font file. `index` is its number inside the file (0 unless the file is a collection)."""

    path: Path
    index: int
    family: str
    style: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}"


def matplotlib_fonts_dir() -> Path:
    """The directory of fonts inside the matplotlib package, found without importing it."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ValueError(
            "data.root: matplotlib, whose fonts are the default, is not installed; name a directory of fonts"
        )
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def find_faces(fonts_dir: Path | None) -> list[Face]:
    """Every face of the .ttf, .otf and .ttc files under `fonts_dir` (None: matplotlib's), sorted by path and number.

    ValueError where the directory is missing, holds no font, or holds one that cannot be parsed.
    """
    root = matplotlib_fonts_dir() if fonts_dir is None else fonts_dir
    if not root.is_dir():
        raise ValueError(
            f"data.root: {shown(root)} is not a directory; set it to a directory of .ttf, .otf or .ttc files"
        )
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.lower().startswith(_PLACEHOLDER_FONTS)
    )
    if not paths:
        raise ValueError(f"data.root: no .ttf, .otf or .ttc file under {shown(root)}")
    return [face for path in paths for face in _faces_of_file(path)]


def _faces_of_file(path: Path) -> list[Face]:
    with _damage_refused(path), _opened(path) as file:
        fonts = TTCollection(file, lazy=True).fonts if path.suffix.lower() == ".ttc" else [TTFont(file, lazy=True)]
        return [_named(path, index, font) for index, font in enumerate(fonts)]


@contextmanager
def _damage_refused(path: Path) -> Iterator[None]:
    """What fontTools and FreeType raise over a damaged file, as one ValueError that names it."""
    try:
        yield
    except ImagesUnavailable:
        raise
    except (TTLibError, struct.error, KeyError, IndexError, AssertionError, OSError, NotRegular, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data.root: {shown(path)} cannot be read as a font ({reason}); move it away") from error


def _opened(path: Path) -> io.BytesIO:
    """A font file in memory. ImagesUnavailable where the machine fails, ValueError where there is no such file."""
    return io.BytesIO(
        content_of(path, lambda why: f"data.root: {shown(path)} cannot be read as a font ({why}); move it away")
    )


def _named(path: Path, index: int, font: TTFont) -> Face:
    names = font["name"]
    return Face(path, index, names.getBestFamilyName() or path.stem, names.getBestSubFamilyName() or "Regular")


def families(faces: Iterable[Face]) -> list[str]:
    return sorted({face.family for face in faces})


def check_families(wanted: Iterable[str], faces: Sequence[Face], key: str) -> None:
    """ValueError, with the nearest known names, where a wanted family has no face. `key` is the config's key."""
    known = families(faces)
    for family in wanted:
        if family not in known:
            nearest = difflib.get_close_matches(family, known, n=3, cutoff=0.0)
            raise ValueError(f"{key}: no font family {family!r}; the nearest are {', '.join(map(repr, nearest))}")


def characters(face: Face, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The characters of a face that draw something at this size.

    Returns (code points int32 [n], ascending; outlines int64 [n]). Two characters of one file, be it in two faces of a
    collection, have equal outlines exactly if they are drawn by the same glyph of the same outline table.
    """
    with _damage_refused(face.path):
        content = _opened(face.path).getvalue()
        # All that the answer depends on. It takes a picture of each character, so it is kept for the next start.
        versions = (
            "characters 1",
            PIL.__version__,
            features.version("freetype2"),
            fontTools.version,
            unicodedata.unidata_version,
        )
        key = hashlib.sha256(f"{versions} {face.index} {image_size}\n".encode() + content).hexdigest()
        found = cached_bytes(
            key, lambda: np.stack(_find_characters(content, face.index, image_size)).astype("<i8").tobytes()
        )
    codes, outlines = np.frombuffer(found, "<i8").reshape(2, -1)
    return codes.astype(np.int32), outlines.astype(np.int64)


def _find_characters(content: bytes, index: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """`characters` of a face of a font file's content, both int64."""
    font = TTFont(io.BytesIO(content), fontNumber=index, lazy=True)
    cmap = font.getBestCmap() if "cmap" in font else None
    tables = [font.reader.tables[tag].offset for tag in ("glyf", "CFF ", "CFF2") if tag in font.reader.tables]
    if not cmap or not tables:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    mapped = sorted(code for code in cmap if unicodedata.category(chr(code)) not in _WITHOUT_INK)
    glyphs = np.array([font.getGlyphID(cmap[code]) for code in mapped], np.int64)
    drawing = _drawing_font(content, index, image_size)
    notdef = _draw(drawing, _UNMAPPED, image_size)
    images = (_draw(drawing, code, image_size) for code in mapped)
    drawn = np.array([image.any() and not np.array_equal(image, notdef) for image in images], bool)
    # Glyph numbers have 16 bits.
    return np.array(mapped, np.int64)[drawn], (tables[0] << 16) + glyphs[drawn]


@lru_cache(maxsize=4)
def _font_file(path: Path) -> bytes:
    """What the faces of a collection share: it is kept as long as a font that was made of it is."""
    return _opened(path).getvalue()


@lru_cache(maxsize=256)
def _font(path: Path, index: int, size_pixels: int) -> ImageFont.FreeTypeFont:
    return _drawing_font(_font_file(path), index, size_pixels)


def _drawing_font(content: bytes, index: int, size_pixels: int) -> ImageFont.FreeTypeFont:
    # From memory: FreeType would wait at a FIFO, does not say why it fails, and shares an open file with forked children.
    return ImageFont.truetype(io.BytesIO(content), size_pixels, index=index, layout_engine=ImageFont.Layout.BASIC)


def render(face: Face, codepoint: int, image_size: int) -> np.ndarray:
    """One character, uint8 [image_size, image_size]; all zero where it has no ink."""
    return _draw(_font(face.path, face.index, image_size), codepoint, image_size)


def _draw(font: ImageFont.FreeTypeFont, codepoint: int, image_size: int) -> np.ndarray:
    character = chr(codepoint)
    # This box covers the advance too: where the ink lies in it is seen only when it has been drawn.
    left, top, right, bottom = font.getbbox(character)
    layout = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(layout).text((-left, -top), character, fill=255, font=font)
    ink_box = layout.getbbox()
    image = np.zeros((image_size, image_size), np.uint8)
    if ink_box is None:
        return image
    ink = layout.crop(ink_box)
    longer = max(ink.size)
    if longer > image_size:
        width, height = (max(1, round(side * image_size / longer)) for side in ink.size)
        ink = ink.resize((width, height), Image.Resampling.BILINEAR)
    row, column = (image_size - ink.height) // 2, (image_size - ink.width) // 2
    image[row : row + ink.height, column : column + ink.width] = np.asarray(ink)
    return image


class Glyphs:
    """Source of grey images [image_size, image_size]; families named in `held_out` take no part in it.

    Instances are ordered by face (path, number in the file), then by code point. Memory: 8 bytes an instance. Font files
    whose paths sort behind all others append their glyphs; any other change of the fonts makes another source.
    ValueError where a held-out family does not exist or no glyph is left.
    """

    name = "glyphs"
    channels = 1
    notes: tuple[str, ...] = ()

    def __init__(self, fonts_dir: Path | None, image_size: int, held_out: Sequence[str] = ()) -> None:
        every_face = find_faces(fonts_dir)
        check_families(held_out, every_face, "data.held_out")
        self.image_size = image_size
        self.faces = [face for face in every_face if face.family not in held_out]
        codes_of_face: list[np.ndarray] = []
        seen_of_file: dict[Path, np.ndarray] = {}
        for face in self.faces:
            codes, outlines = characters(face, image_size)
            # Code points ascend, so the first character of an outline is the one with the lowest.
            firsts = np.zeros(len(codes), bool)
            firsts[np.unique(outlines, return_index=True)[1]] = True
            seen = seen_of_file.get(face.path, np.empty(0, np.int64))
            codes_of_face.append(codes[firsts & ~np.isin(outlines, seen)])
            seen_of_file[face.path] = np.union1d(seen, outlines)
        counts = [len(codes) for codes in codes_of_face]
        if sum(counts) == 0:
            raise ValueError("data.root: no glyph is left; hold out fewer families or add fonts")
        self._codepoint_N = np.concatenate(codes_of_face)
        self._face_N = np.repeat(np.arange(len(self.faces), dtype=np.int32), counts)

    def __len__(self) -> int:
        return len(self._codepoint_N)

    def image(self, instance: int) -> np.ndarray:
        assert 0 <= instance < len(self), instance
        return render(self.faces[self._face_N[instance]], int(self._codepoint_N[instance]), self.image_size)

    def labels(self) -> np.ndarray:
        """The code point, int64 [N]: the same character in two faces is the same label."""
        return self._codepoint_N.astype(np.int64)

    def instance_name(self, instance: int) -> str:
        codepoint = int(self._codepoint_N[instance])
        face = self.faces[self._face_N[instance]]
        return shown(f"{face.name} U+{codepoint:04X} {unicodedata.name(chr(codepoint), '')}".rstrip())

    def file_bytes(self, instance: int) -> int:
        """0: images have no files of their own here."""
        return 0

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        """Over the size, the bytes of the font files in use, and the list of (face, character); not over paths."""
        digest = hashlib.sha256(f"glyphs {self.image_size}\n".encode())
        face_N, codepoint_N = self._face_N[:count], self._codepoint_N[:count]
        # Not the faces behind these instances: a source that has no more than these may lack them.
        faces = self.faces[: face_N.max(initial=-1) + 1]
        file_digests = {path: hashlib.sha256(_opened(path).getvalue()).hexdigest() for path in {f.path for f in faces}}
        for face in faces:
            digest.update(f"{file_digests[face.path]} {face.index}\n".encode())
        digest.update(face_N.astype("<i4").tobytes())
        digest.update(codepoint_N.astype("<i4").tobytes())
        return digest.hexdigest()

    def save_index(self, path: Path) -> None:
        """Nothing to save: the order is that of the fonts' paths, and no index could keep it if a font came between."""
