"""Labels from a csv file: the header `path,label`, then a line an image, paths relative to data.root.

The text is UTF-8, or UTF-16 with the mark at its start that Excel writes. Lines may end as on any system; blank ones mean nothing.
A path is compared byte by byte with the names of the files, which need not be UTF-8; an accented letter may be composed in one way here
and in the other there (NFC, NFD), as long as only one file and one line can be meant. Every mistake is a ValueError of one line that
names the file, the line and what to change.
"""

import codecs
import csv
import io
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets.regular_file import NotRegular, content_of
from datasets.shown import shown

_HEADER = ["path", "label"]
_SURROGATES = "surrogateescape"  # bytes that are not UTF-8 are kept, as Python keeps those of file names


class LabelFile:
    """label_of[path]: the label; a path is as os.fsdecode has it. Reads the whole file; see the top for what it refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label_of: dict[str, str] = {}
        self._line_of: dict[str, int] = {}
        for line, row in _rows(path, _text(path)):
            if len(row) != 2 or not all(row):
                raise ValueError(f"{_where(path, line)} is not a path, a comma and a label: {shown(str(row), 100)}")
            image, label = row
            if image in self.label_of:
                raise ValueError(
                    f"{_where(path, line)} gives {shown(image, 200)} a second label (the first is in line "
                    f"{self._line_of[image]}); keep one of them"
                )
            self.label_of[image] = label
            self._line_of[image] = line

    def labels_of(self, images: list[str], root: str, leaves_out: Callable[[str], bool] = lambda _: False) -> list[str]:
        """The label of each image, in their order. ValueError where one has none, or where a line names no image.

        leaves_out: says of a path that no image is taken from it even if there is one; a line may name it
        """
        found = [self.label_of.get(image) for image in images]
        missing = [image for image, label in zip(images, found, strict=True) if label is None]
        if not missing and len(images) == len(self.label_of):
            return found  # type: ignore[return-value]
        others = self.label_of.keys() - set(images)
        otherwise = self._composed_otherwise(missing, others)
        unlabelled = [image for image in missing if image not in otherwise]
        if unlabelled:
            self._refuse_odd_bytes(others)
            written = min(others - set(otherwise.values()), key=self._line_of.__getitem__, default=None)
            like = (
                ""
                if written is None
                else f"; line {self._line_of[written]} is for {shown(written, 100)}, which is no image's path"
            )
            raise ValueError(
                f"data.labels: {shown(self.path)} has no line for {shown(unlabelled[0], 200)} "
                f"({len(unlabelled)} of {len(images)} images have no label){like}; write paths from data.root, with / between folders"
            )
        strangers = [other for other in others - set(otherwise.values()) if not leaves_out(other)]
        strangers.sort(key=self._line_of.__getitem__)
        if strangers:
            self._refuse_odd_bytes(strangers)
            slashes = ", with / between folders" if "\\" in strangers[0] else ""
            raise ValueError(
                f"{_where(self.path, self._line_of[strangers[0]])} names {shown(strangers[0], 200)}, which is not under {root} "
                f"({len(strangers)} of {len(self.label_of)} lines name no image); take it out, or write its path from data.root{slashes}"
            )
        return [
            self.label_of[otherwise[image]] if label is None else label
            for image, label in zip(images, found, strict=True)
        ]

    def _composed_otherwise(self, missing: list[str], others: set[str]) -> dict[str, str]:
        """image -> the path of the line that means it, for images whose names the file composes in another way."""
        lines: dict[str, list[str]] = {}
        for other in others:
            lines.setdefault(unicodedata.normalize("NFC", other), []).append(other)
        meant: dict[str, str] = {}
        image_of: dict[str, str] = {}
        for image in missing:
            form = unicodedata.normalize("NFC", image)
            candidates = sorted(lines.get(form, ()), key=self._line_of.__getitem__)
            if not candidates:
                continue
            if len(candidates) > 1 or form in image_of:
                raise ValueError(
                    f"{_where(self.path, self._line_of[candidates[0]])} may mean more than one image or line: names that look like "
                    f"{shown(image, 200)} differ in how an accented letter is composed; write each as its file is named"
                )
            meant[image] = candidates[0]
            image_of[form] = image
        return meant

    def _refuse_odd_bytes(self, others: "set[str] | list[str]") -> None:
        """A path that is neither a file's bytes nor UTF-8 is most likely of another encoding."""
        odd = [other for other in others if any("\udc80" <= character <= "\udcff" for character in other)]
        if odd:
            line, name = min((self._line_of[other], other) for other in odd)
            raise ValueError(
                f"{_where(self.path, line)} is not UTF-8 ({shown(name, 200)}), and no file is named by these bytes; save the file as UTF-8"
            )


def _where(path: Path, line: int) -> str:
    return f"data.labels: {shown(path)} line {line}"


def _content(path: Path) -> bytes:
    def refusal(error: NotRegular | OSError) -> str:
        reason = error.strerror if isinstance(error, OSError) else error
        return f'data.labels: {shown(path)} is not a file; set it to a csv file, to "folders" or to null ({reason})'

    return content_of(path, refusal)


def _text(path: Path) -> str:
    content = _content(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ValueError(f"{_where(path, line)} is not UTF-16, as its mark says; save the file as UTF-8") from error
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        if content.count(b"\0") * 3 > len(content):
            raise ValueError(f"{_where(path, line)}: this is UTF-16 without a mark; save the file as UTF-8")
        raise ValueError(f"{_where(path, line)} has a zero byte, which no name has; take it out")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", _SURROGATES)


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line on which it begins, fields) of each row behind the header that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins, header = 1, None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(_not_csv(path, begins, reader.line_num, error)) from error
        if header is None:
            header = row or []
            if header != _HEADER:
                raise ValueError(
                    f"data.labels: the first line of {shown(path)} is {shown(','.join(header), 100)!r}; it must be 'path,label'"
                )
        elif row is None:
            return
        elif "".join(row).strip():
            yield begins, row
        begins = reader.line_num + 1


def _not_csv(path: Path, begins: int, ends: int, error: csv.Error) -> str:
    if "unexpected end" in str(error) or "field limit" in str(error):
        return (
            f"{_where(path, begins)}: a quote opens here and is not closed, or the field is longer than a path can be; "
            'close it, or write "" for a quote within quotes'
        )
    return f"{_where(path, ends)} is not csv ({error}); put a field with commas or quotes in quotes, and double the quotes within"
