"""job=linear for a second time in the same directory, with something else: nothing that was kept is taken for what is asked now."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.schema import Config
from datasets.folder import ImageFolder
from datasets.labelled import name_hashes
from engine.jobs.parts import network_of
from tests.conftest import folder_config

CLASSES = ("bear", "cat", "dog")
LINEAR = {"epochs": 60, "rates": [0.1], "C": [0.1], "few": [2], "least_images": 2, "held_out": 0.2, "batch": 16}


def picture(place, number):
    """Dark in one part, by the class; with some noise."""
    random = np.random.default_rng([place, number])
    pixels = random.integers(100, 255, (16, 16, 3), dtype=np.uint8)
    pixels[:, 5 * place : 5 * place + 5] //= 8
    return Image.fromarray(pixels)


def folder(root, classes=CLASSES, each=12):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            picture(CLASSES.index(name), number).save(root / name / f"{number:03}.png")
    return root


@pytest.fixture
def of_folder(run, tmp_path):
    """(root, words) -> what linear.json has then; words of another output are the caller's."""

    def go(root, *words, code=0, output="run"):
        config = {**folder_config(root), "job": "linear", "linear": LINEAR}
        path = tmp_path / "weights.safetensors"
        if not path.exists():
            network = network_of(Config.model_validate_json(json.dumps(config)))
            save_file(network.backbone.state_dict(), path)
        place = run.output.parent / output
        assert run(f"evaluate.backbone={path}", f"output={place}", *words, config=config) == code
        return json.loads((place / "linear.json").read_text()) if code == 0 else {}

    return go


def table(path, root, names):
    """A file of labels by which the folders are called otherwise."""
    lines = [f"{one.relative_to(root)},{names[one.parent.name]}" for one in sorted(root.rglob("*.png"))]
    path.write_text("path,label\n" + "\n".join(lines))
    return f"data.labels={path}"


def shares(record):
    return [one["top1"] for one in record["heads"]] + [one["top1"] for one in record.get("few_labels", [])]


@pytest.mark.parametrize("protocol", ["features", "published"])
def test_other_labels_of_the_same_images_are_trained_on_anew(of_folder, tmp_path, protocol):
    root = folder(tmp_path / "images")
    words = ["linear.lr=1", "linear.crop=[0.9,1]", f"linear.protocol={protocol}"]
    swapped = table(tmp_path / "swapped.csv", root, {"bear": "dog", "cat": "bear", "dog": "cat"})
    fewer = table(tmp_path / "fewer.csv", root, {"bear": "a", "cat": "a", "dog": "b"})
    first = of_folder(root, "data.labels=folders", *words)[protocol]
    assert min(shares(first)) > 0.8
    for number, labels in enumerate((swapped, fewer)):
        again = of_folder(root, labels, *words)[protocol]
        fresh = of_folder(root, labels, *words, output=f"fresh-{number}")[protocol]
        assert shares(again) == shares(fresh) and min(shares(again)) > 0.6


def test_classes_of_a_saved_probe_are_known_by_their_names(run, of_folder, tmp_path):
    """With bear beside cat and dog, cat is the class of another number."""
    of_folder(folder(tmp_path / "two", ("cat", "dog")), "data.labels=folders", "linear.few=[]")
    heads = f"linear.probe={run.output / 'linear' / 'heads-features.safetensors'}"
    again = of_folder(folder(tmp_path / "three", CLASSES, each=20), "data.labels=folders", heads, output="again")
    record = again["tested_again"]
    assert min(shares(record)) > 0.8
    assert [one["example"].partition("/")[0] for one in record["per_class"]] == ["cat", "dog"]
    assert record["protocol"].startswith("tested on ") and "of other labels left out" in record["protocol"]


def test_a_saved_probe_is_not_tested_on_images_that_it_was_trained_on(run, of_folder, tmp_path, capsys):
    root = folder(tmp_path / "images")
    first = of_folder(root, "data.labels=folders", "linear.few=[]")["features"]
    heads = f"linear.probe={run.output / 'linear' / 'heads-features.safetensors'}"
    same = of_folder(root, "data.labels=folders", heads)["tested_again"]
    assert same["tested_images"] == first["tested_images"] == 6 and shares(same) == shares(first)
    more = of_folder(root, "data.labels=folders", heads, "linear.test_share=0.9")["tested_again"]
    assert (
        more["tested_images"] == 6 and "90% of each label but 27 that the classifier was trained on" in more["protocol"]
    )
    picture(0, 99).save(root / "bear" / "0000.png")  # by which all numbers change
    grown = of_folder(root, "data.labels=folders", heads, "linear.test_share=0.9")["tested_again"]
    assert grown["tested_images"] in (6, 7)
    trained = load_file(run.output / "linear" / "heads-features.safetensors")["trained"]
    source = ImageFolder(root)
    for instance, seen in enumerate(np.isin(name_hashes(source, np.arange(len(source))), trained)):
        if not seen:
            (root / source.instance_name(instance)).unlink()
    capsys.readouterr()
    of_folder(root, "data.labels=folders", heads, code=2)
    assert "the classifier was trained on all" in capsys.readouterr().err


def test_a_part_that_was_trained_on_is_not_tested_when_it_is_a_set_of_its_own(run, of_folder, tmp_path, capsys):
    folder(tmp_path / "images" / "train")
    folder(tmp_path / "images" / "val", each=3)
    of_folder(tmp_path / "images", "data.labels=folders", "linear.few=[]")
    heads = f"linear.probe={run.output / 'linear' / 'heads-features.safetensors'}"
    capsys.readouterr()
    of_folder(tmp_path / "images" / "train", "data.labels=folders", heads, code=2)
    assert "the classifier was trained on all 6 images of folder that would be tested" in capsys.readouterr().err


def test_training_images_that_cannot_be_decoded_are_counted_or_refused(of_folder, tmp_path, capsys):
    root = folder(tmp_path / "images")
    (root / "train").mkdir()
    for name in CLASSES:
        (root / name).rename(root / "train" / name)
    folder(root / "val", each=3)
    for path in sorted((root / "train").rglob("00[0-5].png")):
        path.write_bytes(b"no image")
    words = ["data.labels=folders", "linear.lr=1", "linear.epochs=3"]
    record = of_folder(root, *words, "linear.protocol=published")["published"]
    told = "; 18 of 36 images that are trained on are left out, since they could not be decoded"
    assert record["unreadable_trained"] == 18 and told in record["protocol"]
    again = of_folder(root, *words, "linear.protocol=published")["published"]  # trains nothing
    assert again["unreadable_trained"] == 18
    cached = of_folder(root, *words)["features"]
    assert cached["unreadable_trained"] == 18 and told in cached["protocol"]
    for path in [*(root / "train" / "bear").iterdir(), *(root / "val").rglob("000.png")]:
        path.write_bytes(b"no image")
    for protocol in ("features", "published"):
        fewer = of_folder(root, *words, f"linear.protocol={protocol}", output="fewer")[protocol]
        assert fewer["unreadable_trained"] == 24 and fewer["unreadable_tested"] == 3
        assert "; 1 of 3 classes have no image to train on" in fewer["protocol"]
        assert "; 3 of 9 images that are tested are left out, since they could not be decoded" in fewer["protocol"]
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    capsys.readouterr()
    of_folder(root, *words, "linear.protocol=published", code=2, output="none")
    assert "a whole epoch, can be decoded and has finite features" in capsys.readouterr().err
    of_folder(root, *words, code=2, output="none")
    assert "none of the 36 images of folder that would be trained on can be read" in capsys.readouterr().err
