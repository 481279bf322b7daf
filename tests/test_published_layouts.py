"""configs/imagenet_resnet50.json trains on both published layouts as they stand, asks the val split, and goes on; indexed or not."""

import json

import numpy as np
import pytest

from datasets.folder import ImageFolder
from datasets.loader import StepDataset
from datasets.photos import Crop, PhotoAugment
from datasets.schedule import Schedule
from datasets.zip_images import ZipImages
from tests.conftest import REPOSITORY, TINY
from tests.datasets.published import as_folders, as_zips

LAYOUTS = {"folder": as_folders, "zip": as_zips}


@pytest.fixture
def config():
    """The shipped one with a tiny network, small crops and few rows."""
    tree = json.loads((REPOSITORY / "configs" / "imagenet_resnet50.json").read_text())
    tree["data"] |= {"image_size": 16, "workers": 0}
    tree["data"]["augment"]["crops"] = [
        {**crop, "size": size} for crop, size in zip(tree["data"]["augment"]["crops"], (16, 12), strict=True)
    ]
    tree["schedule"] = {"batch": 8, "window": 16, "stride": 8, "block": 2, "lanes": 2}
    tree["backbone"] = TINY["backbone"]
    tree["method"] = {**tree["method"], "active": 8, "dim": 8}
    return {**tree, "epochs": 3, "threads": 1, "log_every": 2, "deepspeed": TINY["deepspeed"]}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("is_indexed", [False, True])
def test_the_shipped_config_trains_on_train_asks_val_and_goes_on(run, config, tmp_path, capsys, kind, is_indexed):
    root = LAYOUTS[kind](tmp_path / "images")
    config["data"] |= {"source": {"kind": kind, "root": str(root)}}
    del config["data"]["root"]
    if is_indexed:
        config["data"]["index"] = str(tmp_path / "index")
        assert run("job=index", config=config) == 0
        said = capsys.readouterr().out
        assert "36 images, 36 of them new, with 3 labels" in said and "12 images, 12 of them new" in said
    assert run("steps=4", config=config) == 0
    said = capsys.readouterr().out
    assert f"36 images of {kind}" in said and "trained on train, never on val, whose images are the queries" in said
    assert ("listing the images" in said) == (kind == "folder" and not is_indexed)
    assert run("steps=8", config=config) == 0
    assert "going on after step 4" in capsys.readouterr().out
    summary = run.summary()
    assert (summary["steps"], summary["instances"]) == (8, 36)
    assert summary["knn_top1"] is not None
    assert "queries: 12 others that training did not see" in (run.output / "report.html").read_text()


def test_a_folder_and_a_zip_of_the_same_images_give_the_same_batches(tmp_path):
    """The bits of every view of one window, and which image each is."""
    sources = [ImageFolder(as_folders(tmp_path / "folder"), "folders"), ZipImages(as_zips(tmp_path / "zip"))]
    schedule = Schedule(seed=3, size=36, window=16, stride=8, batch=8, block=2, lanes=2)
    augment = PhotoAugment(crops=(Crop(16, 1, (0.2, 1.0)), Crop(12, 2, (0.1, 0.3))))
    for step in range(schedule.steps_per_window):
        one, other = (StepDataset(source, schedule, augment, 3)[step] for source in sources)
        assert (one.ids_G == other.ids_G).all() and one.filled_G.all()
        for view, same in zip(one.views, other.views, strict=True):
            assert view.numpy().tobytes() == same.numpy().tobytes()
    assert np.isin(np.arange(36), [schedule.instances(schedule.positions(step)) for step in range(18)]).all()
