"""job=knn, and job=export of a file: sizes of a training mean nothing to them, and what cannot work is refused before any work."""

import json

import pytest
import torch

from configs.schema import Config
from engine.jobs.parts import network_of
from tests.conftest import folder_config, refused

VGG = {"name": "vgg", "layers": [4, "M", 8], "grid": 1, "hidden": 8}


def with_weights(tmp_path, photos, **backbone):
    """(a config, the words that have its job look at a file of weights)."""
    config = {**folder_config(photos), "backbone": {**VGG, **backbone}}
    path = tmp_path / "weights.pth"
    torch.save(network_of(Config.model_validate_json(json.dumps(config))).backbone.state_dict(), path)
    return config, [f"evaluate.backbone={path}", "data.labels=folders"]


@pytest.mark.parametrize("job", ["knn", "export"])
def test_a_few_images_are_enough_whatever_the_sizes_of_a_training_are(run, tmp_path, photos, job):
    config, words = with_weights(tmp_path, photos)
    for path in sorted(photos.rglob("*.jpg"))[4:]:
        path.unlink()
    assert run(f"job={job}", *words, "schedule.batch=16", config=config) == 0
    if job == "knn":
        assert json.loads((run.output / "knn.json").read_text())["figures"]["knn_top1"] in (0, 1)


def test_images_that_the_network_cannot_take_are_refused_first(run, tmp_path, photos, capsys):
    config, words = with_weights(tmp_path, photos, layers=[4, "M", 8, "M", 8, "M", 8, "M", 8])
    for job, sizes in (("knn", ["data.image_size=8"]), ("export", ["data.image_size=8"])):
        refused(run, capsys, f"job={job}", *words, *sizes, config=config, expect="cannot take images of side 8 ")
    views = 'data.augment={"kind":"photos","crops":[{"size":8}]}'
    refused(run, capsys, "job=knn", *words, views, config=config, expect="cannot take images of side 8 ")
    assert run("job=knn", *words, views, "evaluate.views=0", config=config) == 0


def test_figures_of_neighbours_stay_where_views_fail(run, tmp_path, photos, monkeypatch):
    config, words = with_weights(tmp_path, photos)

    def fails(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("engine.evaluation.views.ViewEvaluator.evaluate", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        run("job=knn", *words, config=config)
    assert "knn_top1" in json.loads((run.output / "knn.json").read_text())["figures"]


@pytest.mark.parametrize("job", ["knn", "export"])
def test_threads_are_those_of_the_config(run, tmp_path, photos, monkeypatch, job):
    config, words = with_weights(tmp_path, photos)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert run(f"job={job}", *words, "threads=3", config=config) == 0
    assert asked == [3]


def test_images_that_cannot_be_decoded_are_told(run, tmp_path, photos, capsys):
    config, words = with_weights(tmp_path, photos)
    for path in sorted((photos / "cats").iterdir())[:3]:
        path.write_bytes(b"no image")
    assert run("job=knn", *words, config=config) == 0
    line = json.loads((run.output / "knn.json").read_text())
    assert sum(one["left_out"] for one in line["left_out"]) == 3
    assert all(f"images of {one['set']} are left out" in capsys.readouterr().out for one in line["left_out"][:1])
