"""Features are computed once, whatever ends the job and on however many ranks."""

import json

import numpy as np
import pytest

from datasets.loader import StepDataset, batches
from datasets.passes import AsTheyAre, Passes
from engine.probing import feature_cache
from engine.probing.feature_cache import FeatureCache
from engine.ranks.ranks import Channel
from engine.results.output import Output
from tests.engine.probing.given import UNREADABLE, Images, small_trunk
from tests.on_ranks import on_ranks

COUNT, BATCH = 43, 8


class Killed(Exception):
    pass


def filled(path, ranks, key="one", most_batches=None):
    """(the cache, the batches that this rank embedded)."""
    trunk, seen = small_trunk(), []

    def embed(images):
        if len(seen) == most_batches:
            raise Killed
        seen.append(len(images))
        return trunk(images)

    output = None
    if ranks.is_first:
        output = Output(path)
        output.make()
    cache = FeatureCache(output, "train", key, COUNT, ranks)
    passes = Passes(np.arange(COUNT), BATCH * ranks.size, ranks.size)
    dataset = StepDataset(Images(), passes, AsTheyAre(9, 1), 0, ranks.rank, ranks.size)
    cache.fill(batches(dataset, cache.first_step, cache.steps, 0, pin=False), embed, print)
    return cache, seen


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCH", BATCH)
    monkeypatch.setattr(feature_cache, "_SYNC_ROUNDS", 2)


def on_a_rank(ranks, path):
    feature_cache.BATCH, feature_cache._SYNC_ROUNDS = BATCH, 2
    cache, seen = filled(path, ranks)
    return np.array(cache.features_MD), len(seen), cache.filled


def slow_features():
    trunk, rows = small_trunk(), np.full((COUNT, 24), np.nan, np.float32)
    for instance in range(COUNT):
        if instance != UNREADABLE:
            image = Images().image(instance)
            rows[instance] = trunk(feature_cache.torch.from_numpy(image[None, None]))[0]
    return rows


def test_features_are_those_of_one_image_after_the_other_and_what_cannot_be_read_is_nan(tmp_path):
    cache, seen = filled(tmp_path, Channel())
    np.testing.assert_allclose(cache.features_MD, slow_features(), rtol=1e-4, atol=1e-5)
    assert len(seen) == 6 and cache.filled == COUNT
    again, seen = filled(tmp_path, Channel())
    assert not seen and np.array_equal(again.features_MD, cache.features_MD, equal_nan=True)
    assert isinstance(again.features_MD, np.memmap)
    assert np.array_equal(np.load(tmp_path / "linear" / "train.npy"), cache.features_MD, equal_nan=True)


def test_a_killed_job_goes_on_behind_what_is_on_the_disk(tmp_path):
    with pytest.raises(Killed):
        filled(tmp_path, Channel(), most_batches=5)
    record = json.loads((tmp_path / "linear" / "train.json").read_text())
    assert record == {"key": "one", "shape": [COUNT, 24], "filled": 32}
    cache, seen = filled(tmp_path, Channel())
    assert len(seen) == 2
    assert np.array_equal(cache.features_MD, filled(tmp_path / "other", Channel())[0].features_MD, equal_nan=True)


@pytest.mark.parametrize("damage", ["key", "record", "array", "no array", "words", "width"])
def test_features_of_other_images_and_damaged_files_are_computed_again(tmp_path, damage):
    filled(tmp_path, Channel())
    directory = tmp_path / "linear"
    if damage == "record":
        (directory / "train.json").write_text('{"key": "one", "shape"')
    elif damage == "array":
        (directory / "train.npy").write_bytes((directory / "train.npy").read_bytes()[:1000])
    elif damage == "no array":
        (directory / "train.npy").unlink()
    elif damage == "words":
        (directory / "train.json").write_text('{"key": "one", "shape": [], "filled": "x"}')
    elif damage == "width":
        (directory / "train.json").write_text(json.dumps({"key": "one", "shape": [COUNT, 23], "filled": COUNT}))
    cache, seen = filled(tmp_path, Channel(), key="another" if damage == "key" else "one")
    assert len(seen) == 6 and np.isfinite(cache.features_MD).all(axis=1).sum() == COUNT - 1


def test_a_link_in_the_place_of_the_features_is_not_followed(tmp_path):
    filled(tmp_path, Channel())
    path, elsewhere = tmp_path / "linear" / "train.npy", tmp_path / "elsewhere.npy"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(ValueError, match="link"):
        filled(tmp_path, Channel(), key="another")
    assert elsewhere.read_bytes() == before


def test_two_ranks_share_the_images_and_write_the_same_features(tmp_path):
    alone, *_ = on_a_rank(Channel(), tmp_path / "one")
    (both, first, filled_first), (nothing, second, filled_second) = on_ranks(2, on_a_rank, tmp_path / "two")
    assert np.array_equal(both, alone, equal_nan=True)
    assert (first, second) == (3, 3) and not nothing.size and filled_first == filled_second == COUNT
