"""Which part of a photograph a view shows."""

from collections.abc import Sequence
from dataclasses import dataclass

ATTEMPTS = 10  # tries to fit a crop into the image before the largest possible one in the middle is taken
DRAWS = 2 * ATTEMPTS + 2  # numbers that `crop_box` uses
_RATIO = (3 / 4, 4 / 3)
_TOP, _LEFT = 2 * ATTEMPTS, 2 * ATTEMPTS + 1


@dataclass(frozen=True)
class Crop:
    """One kind of crop: `count` views of side `size` pixels, each of an area uniform in `scale` times the image's.

    With `rows_grad` False the gradient of these views does not reach the rows of the classifier.
    """

    size: int
    count: int
    scale: tuple[float, float]
    rows_grad: bool = True


def crop_box(
    draws_P: Sequence[float], height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random (top, left, height, width) in an image: area uniform in `scale`, aspect log-uniform in 3/4 to 4/3.

    draws_P   numbers in [0, 1): two for each of 10 attempts, then one each for top and left
    A crop that does not fit is drawn again; after 10 attempts the largest of an allowed aspect is cut from the middle.
    """
    least, most = scale
    for attempt in range(ATTEMPTS):
        area = height * width * (least + (most - least) * draws_P[2 * attempt])
        ratio = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** draws_P[2 * attempt + 1]
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws_P[_TOP] * (height - crop_height + 1))
            left = int(draws_P[_LEFT] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
