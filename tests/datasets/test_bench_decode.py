"""The bench of decoders measures what it says."""

import io

import numpy as np
import pytest
from PIL import Image

from tests import bench_decode


def test_every_way_of_the_bench_gives_the_same_pixels() -> None:
    for options in ({}, {"subsampling": 0}, {"progressive": True}):
        for content in bench_decode.files(3, **options):
            for name, way in bench_decode.ways().items():
                np.testing.assert_array_equal(way(content), way_of_pillow(content), err_msg=name)


def way_of_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_the_bench_has_a_line_for_every_way_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    bench_decode.main(["--images", "1", "--rounds", "1"])
    out = capsys.readouterr().out
    for name in bench_decode.ways():
        assert out.count(f"\n  {name:18} ") == 4
    assert "decode_by_pillow" in out and "1.00 times" in out
    assert "warnings.catch_warnings" in out
