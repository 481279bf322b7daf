"""The two pictures that show what the features know: nearest neighbours, and a map of the feature space.

The map is t-SNE (van der Maaten and Hinton, 2008) of the features on the unit sphere, where squared distance is
2 - 2 cosine, started from their two principal components: near on the map is near in feature space; distances
between far groups and the sizes of groups mean nothing. Grey images (glyphs, drawings) are drawn themselves, tinted
by label, each in the free cell nearest to its place: piled on one another they could not be read. Colour images
become dots of a chart, which shows their names. Left out: more than 1,500 points (t-SNE takes about four seconds for
these on one core), so of a larger sample a seeded choice is shown.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from engine.results.charts import Chart, dots
from engine.results.page import figure, image, legend, paragraph, pictures, png_data_url

MAX_POINTS = 1500
_THUMBNAIL_PIXELS = 72
_MAP_WIDTH, _MAP_HEIGHT = 1120, 780
_CELL = 18  # CSS pixels, side of a drawn image
_DENSITY = 1.5  # pixels of the map's PNG for one CSS pixel
_LEGEND_LABELS = 12


@dataclass(frozen=True)
class NeighbourRow:
    """A query and what was nearest to it in the gallery, nearest first.

    query        uint8 [H, W] or [H, W, 3]
    neighbours   (image as above, name, whether it is right or None where that is unknown, cosine similarity)
    """

    query: np.ndarray
    query_name: str
    neighbours: list[tuple[np.ndarray, str, bool | None, float]]


@dataclass(frozen=True)
class EmbeddingSample:
    """M features with what is known of them.

    features_MD   float32, any norm
    labels_M      int64, or None
    images        M images, uint8 [H, W] or [H, W, 3], or None
    names         M names; where every point of a label has the same name, the legend uses it
    """

    features_MD: np.ndarray
    labels_M: np.ndarray | None
    images: list[np.ndarray] | None
    names: list[str]


def neighbour_pictures(rows: list[NeighbourRow]) -> list[Markup]:
    """A grid: in each row the query, then at most 8 neighbours framed green (right), red (wrong) or grey (unknown)."""
    judged = [is_right for row in rows for _, _, is_right, _ in row.neighbours[:8] if is_right is not None]
    caption = (
        "First the query, then its nearest images of the gallery, nearest first, with the cosine of their features. "
    )
    caption += (
        f"Green and ✓ mean the same label, red and ✗ another: {sum(judged):,} of {len(judged):,} shown are right."
        if judged
        else "Frames are grey because there are no labels to compare."
    )
    verdicts = {None: "", True: "right", False: "wrong"}
    return [paragraph(caption, is_muted=True)] + [
        pictures(
            [("query", "", _thumbnail(row.query), row.query_name, "query")]
            + [
                ("neighbour", verdicts[is_right], _thumbnail(near), name, f"{similarity:.2f}")
                for near, name, is_right, similarity in row.neighbours[:8]
            ]
        )
        for row in rows
    ]


def _thumbnail(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return png_data_url(picture)


def feature_map(sample: EmbeddingSample) -> list[Markup]:
    """The map of the features, or one sentence where there is nothing to map."""
    chosen = np.arange(len(sample.features_MD))
    if len(chosen) > MAX_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(chosen), MAX_POINTS, replace=False))
    features_MD = sample.features_MD[chosen].astype(np.float64)
    if len(chosen) < 5:
        return [paragraph(f"No map: it needs at least 5 points and the sample has {len(chosen)}.")]
    if not np.isfinite(features_MD).all():
        return [paragraph("No map: some features are not finite numbers, so the network has diverged.")]
    features_MD /= np.maximum(np.linalg.norm(features_MD, axis=1, keepdims=True), 1e-12)
    if np.abs(features_MD - features_MD[0]).max() < 1e-6:
        return [paragraph("No map: all features of the sample coincide, so the network has collapsed.")]

    places_M2 = map_places(features_MD)
    names = [sample.names[i] for i in chosen]
    labels_M = None if sample.labels_M is None else sample.labels_M[chosen]
    kinds_M = np.zeros(len(chosen), dtype=np.int64) if labels_M is None else np.unique(labels_M, return_inverse=True)[1]
    images = None if sample.images is None else [sample.images[i] for i in chosen]
    drawn_map: Chart | Markup
    if images is not None and all(pixels.ndim == 2 for pixels in images):
        drawn_map = image(
            _glyph_map(places_M2, kinds_M, images), "Map of the features: every image near its place by t-SNE"
        )
        drawn = "Each image is drawn in the free cell nearest to its place"
    else:
        colours = label_colours(int(kinds_M.max()) + 1)
        name = "Map of the features: every image a dot at its place by t-SNE"
        drawn_map = dots(places_M2, names, [_css(colours[kind]) for kind in kinds_M], name=name)
        drawn = "Each image is one dot"
    entries, coloured = _legend(labels_M, kinds_M, names)
    of_all = f" of {len(sample.features_MD):,}" if len(sample.features_MD) > len(chosen) else ""
    caption = (
        f"{drawn}; {len(chosen):,} images{of_all}. {coloured} Near on the map is near in feature space; "
        "distances between far groups and the sizes of groups mean nothing (t-SNE)."
    )
    return [legend(entries), figure(drawn_map, caption)]


def map_places(features_MD: np.ndarray) -> np.ndarray:
    """t-SNE of M >= 5 features (not all the same) to float64 [M, 2], each axis scaled to [0, 1]; the seed is fixed."""
    from sklearn.manifold import TSNE  # which takes a second to import

    count = len(features_MD)
    places_M2 = TSNE(
        n_components=2,
        init="pca",
        perplexity=min(30.0, (count - 1) / 3),
        max_iter=750,
        random_state=0,
    ).fit_transform(features_MD.astype(np.float32))
    low_2, high_2 = places_M2.min(axis=0), places_M2.max(axis=0)
    return ((places_M2 - low_2) / np.maximum(high_2 - low_2, 1e-12)).astype(np.float64)


def label_colours(count: int) -> list[tuple[int, int, int]]:
    """(R, G, B) for each of `count` labels, legible on light and on dark paper.

    Few labels share the circle of hues evenly; many step around it by the golden ratio, so that neighbours in number
    differ although hues repeat.
    """
    step = 1 / count if count <= _LEGEND_LABELS else 0.6180339887
    colours = []
    for kind in range(count):
        # Alternating lightness keeps apart what hue alone does not.
        rgb = colorsys.hls_to_rgb((0.58 + kind * step) % 1.0, (0.42, 0.54)[kind % 2], 0.6)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colours


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _legend(labels_M: np.ndarray | None, kinds_M: np.ndarray, names: list[str]) -> tuple[list[tuple[str, str]], str]:
    """(name, CSS colour) of each label where they can be told apart, and what the colours mean."""
    if labels_M is None:
        return [], "There are no labels to colour by."
    count = int(kinds_M.max()) + 1
    names_of: list[set[str]] = [set() for _ in range(count)]
    for name, kind in zip(names, kinds_M, strict=True):
        names_of[kind].add(name)
    if count > _LEGEND_LABELS:
        return [], f"The colour is that of the label; with {count:,} labels hues repeat."
    if any(len(own) > 1 for own in names_of):
        return [], f"The colour is that of the label, of which there are {count:,}."
    entries = [(next(iter(own)), _css(colour)) for colour, own in zip(label_colours(count), names_of, strict=True)]
    return entries, "The colour is that of the label."


def free_cells(places_M2: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """int64 [M, 2] (column, row): for each place of [0, 1] x [0, 1], in order, the nearest cell that is still free.

    columns * rows must be at least M; rows count upwards, as the places do.
    """
    cells_C2 = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1).reshape(-1, 2)
    wanted_M2 = places_M2 * [columns - 1, rows - 1]
    is_taken_C = np.zeros(len(cells_C2), dtype=bool)
    chosen_M = np.empty(len(places_M2), dtype=np.int64)
    for index, wanted_2 in enumerate(wanted_M2):
        distances_C = np.square(cells_C2 - wanted_2).sum(axis=1)
        distances_C[is_taken_C] = np.inf
        chosen_M[index] = distances_C.argmin()
        is_taken_C[chosen_M[index]] = True
    return cells_C2[chosen_M]


def _glyph_map(places_M2: np.ndarray, kinds_M: np.ndarray, images: list[np.ndarray]) -> Image.Image:
    size = round(_CELL * _DENSITY)
    colours = label_colours(int(kinds_M.max()) + 1)
    columns, rows = _MAP_WIDTH // _CELL, _MAP_HEIGHT // _CELL
    canvas = Image.new("RGBA", (columns * size, rows * size))
    for (column, row), kind, pixels in zip(free_cells(places_M2, columns, rows), kinds_M, images, strict=True):
        ink = Image.new("RGBA", (size, size), colours[kind])
        ink.putalpha(Image.fromarray(_ink(pixels)).resize((size, size), Image.Resampling.LANCZOS))
        canvas.alpha_composite(ink, (int(column) * size, (rows - 1 - int(row)) * size))
    return canvas


def _ink(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: how far each pixel is from the paper, which is the median of the border, stretched to 0..255."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = np.abs(pixels.astype(np.float64) - np.median(border))
    return (contrast * (255 / max(contrast.max(), 1))).astype(np.uint8)
