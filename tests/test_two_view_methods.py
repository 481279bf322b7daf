"""What MoCo and SimCLR ask of a config is refused by its key where it is not so, also where a size is chosen later; what they plan."""

import json

import pytest

from configs.schema import load, refuse_other_run
from tests.conftest import REPOSITORY, TINY

VIEWS = {**TINY["data"], "augment": {"kind": "grey", "views": 2}}
MOCO = {**TINY, "data": VIEWS, "method": {"kind": "moco", "queue": 256, "dim": 16}, "optimizer": {"lr": 0.03}}
SIMCLR = {**MOCO, "method": {"kind": "simclr", "dim": 16}}


@pytest.fixture
def read(tmp_path):
    def _read(tree, *words):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(tree))
        return load(str(path), list(words))

    return _read


@pytest.mark.parametrize(
    ("tree", "word", "said"),
    [
        (
            MOCO,
            "data.augment.views=1",
            "method moco wants two views of each image, and there are 1; set data.augment.views",
        ),
        (SIMCLR, "data.augment.views=3", "method simclr wants two views of each image, and there are 3"),
        (SIMCLR, 'data.augment={"kind":"photos"}', "and there are 4; set data.augment.crops for two"),
        (
            MOCO,
            "method.queue=300",
            "schedule.batch 64 does not divide; a step's keys would not lie together. Set method.queue to 256 or 320",
        ),
        (MOCO, "method.queue=32", "Set method.queue to 64"),
        (MOCO, "method.queue=1280", "method.queue is 1280, more than schedule.window 640"),
        (MOCO, "deepspeed.zero_optimization.stage=3", "set the stage to 0, 1 or 2"),
        (MOCO, "backbone.name=given", "set backbone.name to a network"),
        (MOCO, "optimizer.rows_lr_scale=2", "but method moco has no rows"),
        (
            SIMCLR,
            "schedule.micro_batches=2",
            "takes its negatives from the whole batch, and schedule.micro_batches is 2; set it to 1",
        ),
        (SIMCLR, "method.loss=mean", "method.loss is"),
        (MOCO, "method.key_momentum=1.5", "method.key_momentum is 1.5"),
        (MOCO, "backbone.head=mlp3", "backbone.head is"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(read, tree, word, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what is looked at
        read(tree, word)
    assert said in str(caught.value) and len(str(caught.value)) <= 300


def test_a_queue_longer_than_a_window_that_was_chosen_is_refused_before_anything_is_written(run, capsys):
    config = {**MOCO, "schedule": {"batch": 64}, "method": {**MOCO["method"], "queue": 2048}}
    assert run(config=config) == 2
    assert "method.queue is 2048, more than schedule.window" in capsys.readouterr().err
    assert not run.output.exists()


@pytest.mark.parametrize(("word", "goes_on"), [("method.kernels=aten", True), ("method.key_momentum=0.5", False)])
def test_what_computes_may_differ_when_a_run_goes_on_and_what_is_computed_may_not(read, word, goes_on):
    saved, asked = json.loads(read(MOCO).model_dump_json()), read(MOCO, word)
    if goes_on:
        refuse_other_run(asked, saved)
    else:
        with pytest.raises(ValueError, match=word.split("=")[0]):
            refuse_other_run(asked, saved)


def test_a_run_from_before_there_were_heads_goes_on_with_the_head_that_it_had(read):
    saved = json.loads(read(TINY).model_dump_json())
    del saved["backbone"]["head"]
    refuse_other_run(read(TINY), saved)
    with pytest.raises(ValueError, match=r"backbone\.head"):
        refuse_other_run(read(TINY, "backbone.head=linear"), saved)


def test_the_queue_and_the_copy_are_in_the_plan_and_in_what_a_checkpoint_takes(read):
    weights, keys = 10_000, 256 * 16
    settings = read(MOCO).method
    assert settings.planned_bytes(64, 32, weights)["device"] == {"method moco": 4 * (weights + keys + 32 * 16)}
    assert settings.shared_bytes(weights) == 4 * (weights + keys) + 8 * 256
    assert read(SIMCLR).method.shared_bytes(weights) == 0
    assert read(SIMCLR).method.planned_bytes(64, 32, weights)["device"]["method simclr"] > 3 * 4 * 64 * 128


@pytest.mark.parametrize(
    ("name", "kind", "head", "temperature"),
    [("moco_v1", "moco", "linear", 0.07), ("moco_v2", "moco", "mlp", 0.2), ("simclr", "simclr", "mlp", 0.1)],
)
def test_shipped_configs_have_the_published_head_and_temperature(name, kind, head, temperature):
    config = load(str(REPOSITORY / "configs" / f"{name}.json"), [])
    assert (config.method.kind, config.backbone.head) == (kind, head)
    assert config.method.model_dump()["temperature"] == temperature
