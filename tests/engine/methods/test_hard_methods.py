"""Methods that have nothing in common with PIC go through run, step, checkpoints and report as PIC does: MoCo, SimCLR, and two of tests.

`momentum_queue.py` has state that is the same on every rank, sends one of two views through the trunk, and looks at the other before it.
`whole_batch.py` has a loss that no micro-batch can be cut out of. Neither has rows. Nothing else in the repository knows of them.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.methods import REGISTRY
from datasets.batch import UnreadableImage
from datasets.digits import Digits
from tests.conftest import Runner, leave_out_drawings
from tests.engine.methods.hard import HARD, register
from tests.engine.methods.momentum_queue import MomentumQueue
from tests.engine.methods.poisoned import poisoned_steps
from tests.engine.methods.two_view_configs import config_of
from tests.ranked_runs import Runs, killed_in

KINDS = [*sorted(HARD), "moco", "simclr"]
FIGURE = {
    "momentum_queue": "keys_enqueued",
    "whole_batch": "view_agreement",
    "moco": "own_keys_masked",
    "simclr": "own_view_found",
}


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        for kind, entry in HARD.items():
            patch.setitem(REGISTRY, kind, entry)
        yield


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def whole(_registered, kind, tmp_path_factory):
    """One run of the method to its end; nobody trains on in it."""
    runner = Runner(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        leave_out_drawings(patch)
        assert runner(config=config_of(kind)) == 0
    return runner


def test_it_learns_and_its_figures_are_in_metrics_summary_and_report(whole, kind):
    run = whole
    summary, lines, name = run.summary(), run.lines(), FIGURE[kind]
    assert summary["status"] == "finished" and summary["method"] == kind
    assert summary["loss"] < 0.9 * summary["chance_loss"]
    assert lines[-1][name] == summary[name] != 0 and name in summary["figures"]
    assert "active" not in summary and "active" not in lines[-1]
    html = (run.output / "report.html").read_text()
    assert name.replace("_", " ") in html and "active rows" not in html and "ln K" not in html
    assert "admit" not in lines[-1]["seconds"] and "slide" not in lines[-1]["seconds"]
    plan = json.loads((run.output / "plan.json").read_text())
    assert not any("row" in item for items in plan.values() for item in items)


def test_a_run_in_three_pieces_ends_where_the_whole_run_ends_to_the_bit(run, kind, whole):
    config = config_of(kind)
    for words in (["steps=17"], ["steps=44"], []):
        assert run(*words, config=config) == 0
    for key in ("digest", "loss", "steps", FIGURE[kind]):
        assert run.summary()[key] == whole.summary()[key], key
    assert run("job=store", "store.verb=verify", config=config) == 0
    assert run(config=config) == 0  # and has nothing more to do


def test_a_digest_knows_what_the_method_keeps(run, monkeypatch):
    config = config_of("momentum_queue")
    assert run("steps=5", config=config) == 0
    digest = run.summary()["digest"]
    real = MomentumQueue.shared

    def shared(method):
        components = real(method)
        components["keys"]["queue"][3, 3] += 1e-7
        return components

    monkeypatch.setattr(MomentumQueue, "shared", shared)
    assert run("steps=5", config=config, flags=("--fresh",)) == 0
    assert run.summary()["digest"] != digest


def test_a_skipped_step_leaves_the_method_as_it_was(run, kind, monkeypatch):
    kept = poisoned_steps(monkeypatch, lambda method: method.shared())
    assert run("steps=20", config=config_of(kind)) == 0
    assert run.summary()["skipped_steps"] == 2 and np.isfinite(run.summary()["loss"])
    assert len(kept) == 2
    for before, after in kept:
        for component, tensors in before.items():
            for name, tensor in tensors.items():
                assert torch.equal(tensor, after[component][name]), (component, name)


class HardRuns(Runs):
    fault = staticmethod(register)

    def on_two_ranks(self, *words):
        code, out = self(2, *words)
        assert code == 0, out[-4000:]


def test_two_ranks_take_the_steps_of_one_and_go_on_to_the_bit_from_their_checkpoint(tmp_path, run, kind):
    config = config_of(kind, log_every=1, optimizer={"lr": 0.003})
    assert run("steps=24", config=config) == 0
    one, losses_of_one = run.summary(), [line["loss"] for line in run.lines()]
    del config["output"]  # each has its own
    two, pieces = HardRuns(tmp_path / "two", **config), HardRuns(tmp_path / "pieces", **config)
    two.on_two_ranks("steps=24")
    losses_of_two = list(two.losses().values())
    # Sums of other order: what they differ by in the last bit grows with every step of training.
    np.testing.assert_allclose(losses_of_one[:12], losses_of_two[:12], rtol=1e-4)
    np.testing.assert_allclose(losses_of_one, losses_of_two, rtol=5e-3)
    pieces.on_two_ranks("steps=10")
    pieces.on_two_ranks("steps=24")
    assert two.summary()["ranks"] == 2 and pieces.summary()["digest"] == two.summary()["digest"]
    assert pieces.losses() == two.losses()
    assert two.summary()[FIGURE[kind]] == pytest.approx(one[FIGURE[kind]], rel=5e-3)


@pytest.mark.parametrize("kind", ["moco", "simclr"])
def test_a_killed_rank_costs_no_checkpoint_and_the_run_ends_as_one_that_was_never_killed(tmp_path, kind):
    changes = {"log_every": 1, "checkpoint": {"every_steps": 4, "keep": 2}, "ranks": {"timeout_seconds": 30}}
    config = config_of(kind, **changes)
    del config["output"]
    whole, killed = HardRuns(tmp_path / "whole", **config), HardRuns(tmp_path / "killed", **config)
    whole.on_two_ranks("steps=20")
    killed.fault = partial(killed_in, 1, 6)
    code, _ = killed(2, "steps=20")
    assert code != 0
    killed.fault = None
    code, out = killed(2, "steps=20")
    assert code == 0 and "going on after step 4 " in out, out
    assert killed.summary()["digest"] == whole.summary()["digest"]
    assert killed.losses() == whole.losses()


@pytest.mark.parametrize("kind", ["moco", "simclr"])
def test_images_that_cannot_be_read_and_empty_places_take_no_part_and_the_run_goes_on_to_the_bit(
    run, kind, monkeypatch, tmp_path
):
    """TINY's last batches of a pass have empty places; here every eleventh image is unreadable, too."""
    real = Digits.image

    def image(source, instance):
        if instance % 11 == 5:
            raise UnreadableImage(f"digit {instance}", "for the test")
        return real(source, instance)

    monkeypatch.setattr(Digits, "image", image)
    config = config_of(kind, log_every=1)
    config["data"]["max_unreadable"] = 0.5
    assert run("steps=30", f"output={tmp_path / 'whole'}", config=config) == 0
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    for words in (["steps=20"], ["steps=30"]):
        assert run(*words, config=config) == 0
    assert (
        run.summary()["digest"] == whole["digest"] and whole["unreadable_images"] > 20 and whole["skipped_steps"] == 0
    )
    assert np.isfinite([line["loss"] for line in run.lines()]).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_momentum_network_follows_a_trunk_under_zero_as_it_does_without(run, tmp_path, stage):
    config = config_of("moco", log_every=1)
    assert run("steps=6", config=config) == 0
    whole = [line["loss"] for line in run.lines()]
    words = (f"deepspeed.zero_optimization.stage={stage}", f"output={tmp_path / 'other'}")
    assert run("steps=6", *words, config=config) == 0
    other = [json.loads(line)["loss"] for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(whole, other, rtol=1e-4)


def test_micro_batches_of_a_queue_make_the_step_of_the_whole_batch(run, tmp_path):
    config = config_of(
        "momentum_queue", log_every=1, optimizer={"lr": 1e-6}, backbone={"name": "vgg", "layers": [8], "hidden": 16}
    )
    assert run("steps=3", config=config) == 0
    whole = [line["loss"] for line in run.lines()]
    assert run("steps=3", "schedule.micro_batches=2", f"output={tmp_path / 'other'}", config=config) == 0
    parts = [json.loads(line)["loss"] for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(whole, parts, rtol=0.05)  # batch statistics are those of a micro-batch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (['data.augment={"kind":"grey"}'], "wants two views of each image; set data.augment.views to 2"),
        (["schedule.micro_batches=2"], "takes its negatives from the whole batch; set schedule.micro_batches to 1"),
        (["optimizer.rows_lr_scale=2"], "optimizer.rows_lr_scale is 2.0, but method whole_batch has no rows"),
        (["store.fold=true"], "store.fold is true, but method whole_batch has no rows"),
        (["method.active=128"], "unknown key method.active; the nearest known one is"),
    ],
)
def test_what_the_method_cannot_take_is_refused(run, capsys, words, said):
    assert run(*words, config=config_of("whole_batch")) == 2
    assert said in capsys.readouterr().err
    assert not run.output.exists()


@pytest.mark.parametrize("words", [["job=store"], ["job=store", "store.verb=export"]])
def test_jobs_that_look_at_rows_say_that_there_are_none_and_leave_nothing(run, capsys, words):
    config = config_of("whole_batch")
    assert run("steps=4", config=config) == 0
    there = sorted(path for path in run.output.rglob("*") if path.is_file())
    capsys.readouterr()
    assert run(*words, config=config) == 2
    assert "has no rows" in capsys.readouterr().err
    assert sorted(path for path in run.output.rglob("*") if path.is_file()) == there


def test_an_export_has_all_but_rows(whole, kind):
    run, config = whole, config_of(kind)
    assert run("job=export", config=config) == 0
    there = {path.name for path in (run.output / "exports").iterdir()}
    assert there == {"backbone.safetensors", "embeddings.npy", "manifest.json", "names.txt"}
    assert np.load(run.output / "exports" / "embeddings.npy").shape == (1437, 64)
    assert run("job=knn", config=config) == 0


def test_the_digest_from_the_files_is_that_of_the_run(whole, kind, capsys):
    run, config = whole, config_of(kind)
    assert run("job=store", "store.verb=digest", config=config) == 0
    assert f"is {run.summary()['digest']}\nsummary.json has the same" in capsys.readouterr().out


def test_another_method_does_not_go_on_with_the_run(run, capsys):
    assert run("steps=4", config=config_of("whole_batch")) == 0
    assert run("steps=8", config=config_of("momentum_queue")) == 2
    assert 'holds a run with method.kind = "whole_batch", now it is "momentum_queue"' in capsys.readouterr().err


def test_the_two_methods_are_files_of_less_than_90_lines():
    for kind in HARD:
        path = Path(__file__).with_name(f"{kind}.py")
        assert len(path.read_text().splitlines()) < 90
