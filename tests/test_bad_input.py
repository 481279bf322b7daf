"""What a user can get wrong ends with exit code 2, at most three lines that say what to change, and nothing half-written."""

import json
import os

import pytest

from tests.conftest import TINY, folder_config, refused


@pytest.mark.parametrize(
    ("word", "expect"),
    [
        ("optimiser.lr=1", "unknown key optimiser; the nearest known one is optimizer"),
        ("lr=1", "unknown key lr; the nearest known ones are optimizer.lr, linear.lr"),
        ("dim=1", "unknown key dim; the nearest known one is method.dim"),
        ("data.rot=x", "unknown key data.rot; the nearest known one is data.root"),
        ("schedule.batch=lots", "schedule.batch"),
        ("epochs=0", "epochs is 0"),
        ("evaluate.more_k=[20,0]", "evaluate.more_k.1 is 0"),
        ("evaluate.more_temperatures=[0]", "evaluate.more_temperatures.0 is 0"),
        ("evaluate.views=-1", "evaluate.views is -1"),
        ("evaluate.statistics=[[0,0,0],[1,1,1]]", "evaluate.statistics is for evaluate.backbone, which is null"),
        ("evaluate.backbone=x evaluate.statistics=[[0,0,0],[1,0,1]]", "evaluate.statistics.1.1 is 0"),
        ("evaluate.online_probe=true backbone.name=given backbone.layers=null", "looks at the features of a network"),
        ('evaluate.jittered=true data.augment={"kind":"photos"}', "whose side is 160, and data.image_size is"),
        ("optimizer.lr=NaN", "optimizer.lr is NaN"),
        ("optimizer.lr=-1", "optimizer.lr is -1"),
        ("optimizer.momentum=1", "optimizer.momentum is 1"),
        ('optimizer={"momentum":0,"nesterov":true}', "nesterov needs a momentum above 0"),
        ("optimizer.trunk=lamb", "optimizer.trunk is"),
        ("optimizer.trunk=lars deepspeed.zero_optimization.stage=2", "set deepspeed.zero_optimization.stage to 0"),
        ("optimizer.trunk=lars optimizer.nesterov=true", "LARS has no such form; set it to false"),
        (
            "optimizer.betas=[0.9,0.99]",
            "which is for optimizer.trunk adamw alone, and that is sgd; leave optimizer.betas out",
        ),
        ("optimizer.trunk=adamw optimizer.trust=0.1", "which is for optimizer.trunk lars alone"),
        ("optimizer.trunk=adamw optimizer.betas=[0.9,1.0]", "optimizer.betas.1 is 1.0"),
        ("optimizer.schedule=steps", "has no milestones; set optimizer.milestones"),
        ("optimizer.schedule=steps optimizer.milestones=[3,2]", "must ascend"),
        ("optimizer.schedule=steps optimizer.milestones=[0.5]", "begin after the warm-up of 0.5 epochs; change 0.5"),
        ("optimizer.schedule=steps optimizer.milestones=[3] optimizer.min_lr=0.1", "optimizer.schedule cosine alone"),
        ("optimizer.milestones=[3]", "which is for optimizer.schedule steps alone"),
        ("backbone.stem=small", "backbone.stem small is for ResNets, and backbone.name is vgg"),
        ("backbone.stem=small backbone.name=vit_b_16", "and vit_b_16 does not; set it to imagenet"),
        ("method.active=32", "below schedule.batch"),
        ("classifier.active=32", "method.active (32) is below schedule.batch (64)"),
        ("method.active=130", "does not divide method.active"),
        ("method.active=768", "above schedule.window"),
        ("schedule.batch=66", "lanes (4) does not divide batch (66); set schedule.batch to 64 or 80"),
        ("schedule.batch=96", "does not divide window"),
        ("schedule.stride=300", "block x lanes (64) does not divide stride (300)"),
        ("schedule.window=700", "stride (320) does not divide window (700)"),
        ("schedule.window=1280", "reshuffle"),
        ("schedule.window=32000", "fill only 1472 positions"),
        ("backbone.name=resnet19", "the nearest one is"),
        ("data.limit=100", "data.limit is for fashion_mnist"),
        ('data.augment={"kind":"photos"}', "these images are grey"),
        ("deepspeed.gradient_clipping=1", "set optimizer.clip instead"),
        ("deepspeed.bf16.enabled=true", "set deepspeed.torch_autocast instead"),
        ("deepspeed.zero_optimisation={}", "the nearest known one is deepspeed.zero_optimization"),
        ("deepspeed.zero_optimization.stage=7", "deepspeed refuses its block"),
        ("optimizer.rows_weight_decay=0.9", "rows_weight_decay to 0"),
        ("method.init=feature schedule.micro_batches=2", "micro_batches to 1"),
        ("backbone.layers=[]", "no convolution"),
        ('backbone.layers=["M",8,"M","M","M","M"]', "the backbone cannot take images of side 16"),
        ("store.dtype=bfloat16 store.kind=memory", "set store.kind to zarr or store.dtype to float32"),
        ("store.read_ahead=0", "store.read_ahead is 0"),
        ("store.verb=mend", "store.verb"),
        ("output=", "output"),
        ("no_equals_sign", "write section.key=value"),
    ],
)
def test_a_mistake_in_the_config(run, capsys, word, expect):
    config = json.loads(json.dumps(TINY))
    if "backbone.name" in word:
        config["backbone"]["layers"] = None
    refused(run, capsys, *word.split(" "), config=config, expect=expect)


def test_a_config_that_is_not_there_or_not_json(run, capsys):
    import launch

    assert launch.main(["--config", "/nowhere.json"]) == 2
    assert "cannot read the config /nowhere.json" in capsys.readouterr().err
    path = run.directory / "broken.json"
    path.write_text('{"output": ')
    assert launch.main(["--config", str(path)]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_rank_that_alone_finds_a_mistake_says_it_once_the_first_had_its_time(capsys, monkeypatch):
    import launch

    waited = []
    monkeypatch.setattr(launch.time, "sleep", waited.append)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launch.main(["--config", "/nowhere.json"]) == 2
    assert "cannot read the config /nowhere.json" in capsys.readouterr().err
    assert waited == [10]


def test_output_that_cannot_be_written(run, capsys):
    run.directory.joinpath("file").write_text("")
    run.output = run.directory / "file" / "run"
    assert run("steps=1") == 2
    assert "cannot write into output" in capsys.readouterr().err


def test_read_only_output(run, capsys, monkeypatch):
    # Root may write into directories whose mode forbids it, so the answer of the system is made up here.
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    assert run("steps=1") == 2
    assert f"{run.directory} is read-only; set output to a directory of your own" in capsys.readouterr().err
    assert not run.output.exists()


def test_a_number_of_processes_that_does_not_divide_the_lanes(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    refused(run, capsys, expect="3 ranks were launched, which do not divide schedule.lanes (4)")


def test_processes_whose_launcher_did_not_say_where_the_others_are(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    refused(run, capsys, expect="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set")


def test_an_empty_and_a_missing_folder(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(run, capsys, config=folder_config(tmp_path / "empty"), expect="empty")
    refused(run, capsys, config=folder_config(tmp_path / "missing"), expect="does not exist")
    refused(run, capsys, "data.root=null", config=folder_config(tmp_path), expect="data.root is null")


def test_fewer_images_than_a_batch(run, capsys, photos):
    words = ("schedule.batch=32", "schedule.window=32", "schedule.stride=32", "method.active=32")
    refused(run, capsys, *words, config=folder_config(photos), expect="24 images do not fill one batch")


def test_a_label_file_that_does_not_match(run, capsys, photos):
    labels = photos.parent / "labels.csv"
    labels.write_text("path,label\ndogs/00.jpg,dog\n")
    refused(run, capsys, config=folder_config(photos, labels=str(labels)), expect="labels")


def test_missing_fashion_mnist_says_what_to_install(run, capsys):
    config = {**TINY, "data": {"source": "fashion_mnist", "root": "/nowhere", "image_size": 28}}
    refused(run, capsys, config=config, expect="dataset-fashion-mnist")


def test_an_unknown_font_family(run, capsys):
    config = {**TINY, "data": {"source": "glyphs", "held_out": ["DejaVu Serief"]}}
    refused(run, capsys, config=config, expect="DejaVu Serif")


def test_a_probe_of_labels_that_there_are_not_is_refused(run, photos, capsys):
    expect = "evaluate.online_probe learns labels, and folder has no labels; set data.labels"
    refused(run, capsys, "evaluate.online_probe=true", config=folder_config(photos), expect=expect)


def test_photos_without_labels_train_and_are_told_by_rankme(run, photos):
    assert run(config=folder_config(photos)) == 0
    evaluation = run.lines("evaluations.jsonl")[-1]
    assert evaluation["figures"] == {}
    assert evaluation["rankme"] >= 1 and evaluation["alignment"] > 0 and evaluation["own_row_found"] is not None
    assert run.summary()["knn_top1"] is None


def test_photos_with_labels_get_a_knn_figure(run, photos):
    assert run("steps=3", config=folder_config(photos, labels="folders")) == 0
    assert 0 <= run.summary()["knn_top1"] <= 1


def test_unreadable_images_are_skipped_named_and_counted(run, capsys, photos):
    (photos / "cats" / "01.jpg").write_bytes(b"no image at all")
    whole = (photos / "dogs" / "02.jpg").read_bytes()
    (photos / "dogs" / "02.jpg").write_bytes(whole[: len(whole) // 2])
    # Two of the sixteen images that a window has here are more than a tenth.
    assert run(config=folder_config(photos, max_unreadable=0.2)) == 0
    out = capsys.readouterr().out
    assert "cannot read cats/01.jpg" in out
    assert "cannot read dogs/02.jpg" in out
    summary = run.summary()
    assert summary["unreadable_images"] == out.count("cannot read")
    assert summary["visited"] == 22
    assert run("epochs=5", config=folder_config(photos, labels="folders", max_unreadable=0.2), flags=("--fresh",)) == 0
    assert 0 <= run.summary()["knn_top1"] <= 1


def test_unreadable_images_can_be_refused(run, capsys, photos):
    (photos / "cats" / "01.jpg").write_bytes(b"no image at all")
    assert run(config=folder_config(photos, on_unreadable="stop")) == 2
    error = capsys.readouterr().err
    assert "cats/01.jpg" in error
    assert len(error[error.index("error: ") :].strip().splitlines()) <= 3


def test_a_changed_image_is_named_and_another_set_is_refused_when_a_run_goes_on(run, capsys, photos):
    assert run("steps=3", config=folder_config(photos)) == 0
    with (photos / "cats" / "01.jpg").open("ab") as file:
        file.write(b"more")
    assert run("steps=4", config=folder_config(photos)) == 0
    assert "another size than when they were listed, and taken as they are now: cats/01.jpg" in capsys.readouterr().out
    for number in range(3, 9, 2):
        (photos / "cats" / f"{number:02}.jpg").unlink()
    assert run("steps=5", config=folder_config(photos)) == 2
    error = capsys.readouterr().err
    assert "the images changed" in error and "3 images are gone" in error and "data.max_unreadable" in error


def test_export_and_knn_without_a_run(run, capsys):
    refused(run, capsys, "job=export", expect="no whole checkpoint")
    refused(run, capsys, "job=knn", expect="there is no backbone")
    refused(run, capsys, "job=store", "store.verb=repair", "store.step=3", expect="leave store.step out")
    for verb in ("inspect", "export", "repair", "scrub", "verify"):
        refused(run, capsys, "job=store", f"store.verb={verb}", expect="checkpoint")
    assert run("job=export", flags=("--dry-run",)) == 2
    assert "--dry-run is for job=pretrain, linear, profile and scale, not for job=export" in capsys.readouterr().err
