"""After a power cut at any moment, the newest checkpoint is there, whole, and ends where a run that never stopped ends."""

import random
import re
from collections import Counter

import pytest

from engine.disk import manifest
from engine.disk.files import remove_any
from engine.disk.zarr_store import ZarrStore
from engine.rows.damaged import Damaged
from engine.rows.store import MemoryStore
from engine.training.checkpoint import Checkpoints
from tests.engine.disk.small_runs import EVERY, KEEP, SMALL, SmallCase, files_below, named_files, record
from tests.engine.faulty_files import (
    EverythingSurvives,
    NamesSurvive,
    NothingSurvives,
    SomeSurvive,
    VolatileFiles,
)
from tests.engine.harness import make_engine
from tests.engine.small_training import Training

CASES = {
    "float32": SmallCase(**SMALL),
    # So little momentum that a row can be folded after 7 steps.
    "folded bfloat16": SmallCase(**SMALL, fold=True, bfloat16=True, momentum=0.01, weight_decay=1e-2),
}


def fates(k):
    yield NothingSurvives()
    yield EverythingSurvives()
    yield NamesSurvive()
    yield SomeSurvive(k, 512)
    yield SomeSurvive(k, 4096)


def recovered(case, files, states, lowest, highest, at_least_kept, **kinds):
    """A training on what the disk holds now, looked at from every side."""
    training = Training(case, files, keep=KEEP, **kinds)
    assert not training.complaints
    assert lowest <= training.first_step <= highest, "the newest checkpoint was lost"
    assert training.state() == states[training.first_step]
    assert len(training.kept) >= at_least_kept
    known = {}
    for kept in training.kept:
        assert manifest.problems_of(kept, every_block=True, known=known) == []
    # Nothing is left that no checkpoint names, and nothing is missing.
    seen = files.before.copy()
    for operation in files.journal:
        seen.follow(operation)
    tree = seen.after_power_cut(EverythingSurvives())
    assert set(files_below(tree)) == {path for kept in training.kept for path in named_files(kept)}
    return training


def survey(recorded, checkpoints_class=Checkpoints, first=0, train_each=10, kill_each=1):
    """Cut the power after every operation from `first` on; returns what was done.

    train_each, kill_each   after how many operations a run is trained to its end, and the process killed; 0: never
    """
    case, states, done = recorded.case, recorded.states, Counter()
    trained, looked_at = set() if train_each else set(states), []
    end = states[case.steps]
    for k, platter in recorded.files.platters():
        if k < first:
            continue
        acknowledged, begun = recorded.acknowledged_before(k), recorded.begun_before(k)
        promised = max(acknowledged, default=0), max(begun, default=0), min(KEEP, len(acknowledged))
        before, looked_at = looked_at, []
        try:
            for number, fate in enumerate(fates(k)):
                tree = platter.after_power_cut(fate)
                chosen = train_each and k % train_each == 0 and number == k // train_each % 5
                done["states"] += 1
                seen = (tree, promised) in before or (tree, promised) in looked_at
                looked_at.append((tree, promised))
                if seen and not chosen:
                    continue  # the same disk as after the operation before, or as another fate left
                training = recovered(case, VolatileFiles(tree), states, *promised)
                done["distinct states"] += 1
                if chosen or training.first_step not in trained:
                    trained.add(training.first_step)
                    saves = not train_each or k % (4 * train_each) != 0
                    assert training.finish(EVERY if saves else 0) == end
                    done["trained"] += 1
                    if saves:
                        done["second cuts"] += second_cut(case, training, states, promised[0], k)
            busy = names_a_manifest(recorded.files.journal[k - 1 : k])
            if busy or (kill_each and k % kill_each == 0):
                # The process is killed here, and the power goes while the next one begins, or while it trains.
                training = recovered(case, platter.after_kill(), states, *promised, checkpoints_class=checkpoints_class)
                trains = train_each and k % (5 * train_each) == 1
                if trains:
                    assert training.finish(EVERY) == end
                for again in range(10 if busy else 5 if trains else 1):
                    done["cuts after kills"] += second_cut(case, training, states, promised[0], 10 * k + again)
        except Exception as error:
            error.add_note(f"after {k} operations")
            raise
    done["operations"] = len(recorded.files.journal)
    return done


def names_a_manifest(operations):
    return any(
        what == "named" and rest[0].endswith(".json") and rest[0][:9].isdigit()
        for o in operations
        for what, _, *rest in o
    )


def second_cut(case, training, states, lowest, seed):
    """Cut the power at a random moment of a training that has been through one already."""
    cut = random.Random(seed).randrange(len(training.files.journal) + 1)
    for k, platter in training.files.platters():
        if k == cut:
            tree = platter.after_power_cut(SomeSurvive(seed, 512))
            recovered(case, VolatileFiles(tree), states, lowest, case.steps, 0)
    return 1


@pytest.mark.parametrize("name", CASES)
def test_a_power_cut_after_any_operation_loses_no_checkpoint_and_changes_no_bit(name):
    case = CASES[name]
    recorded = record(case, VolatileFiles())
    assert [step for step, _ in recorded.acknowledged] == [6, 12, 18]
    assert recorded.columns == ({2, 3} if case.fold else {3})
    if not case.bfloat16:
        assert recorded.states[case.steps] == undisturbed(case)
    done = survey(recorded, kill_each=3 if case.fold else 1)
    print(dict(done))
    assert done["operations"] >= 500 and done["states"] >= 5 * done["operations"]
    assert done["trained"] >= done["operations"] // 10


def undisturbed(case):
    """The state at the end of a run without a disk."""
    training = Training(case, VolatileFiles())
    training.rows = make_engine(case, store=MemoryStore())
    return training.finish()


class UnsyncedBytes(VolatileFiles):
    def _sync_file(self, file):
        pass


def without_sync_of(pattern):
    class UnsyncedNames(VolatileFiles):
        def sync_directory(self, path):
            if not re.fullmatch(pattern, path):
                super().sync_directory(path)

    return UnsyncedNames


class LateNames(ZarrStore):
    """Names of blocks become durable after the manifest that speaks of them."""

    def sync(self):
        pass

    def committed(self, number):
        super().committed(number)
        super().sync()


class BlocksBeforeManifests(Checkpoints):
    """Blocks go before the manifest that names them has gone for good."""

    def _drop_old_manifests(self):
        if len(self._saved) >= self.keep:  # the new one is not among them yet
            self.disk.disk.drop_before(self._saved[len(self._saved) + 1 - self.keep].number)
        super()._drop_old_manifests()


class SweepAtOnce(Checkpoints):
    """What a process finds is taken for durable."""

    def _remove_garbage(self):
        for path in self._garbage:
            remove_any(self.files, path)
        self._garbage = []


def publish_before_files(monkeypatch):
    """The manifest is published, and then the files that it names are written."""
    late = []
    publish = manifest.publish

    class LateFiles(VolatileFiles):
        def put_whole(self, path, parts):
            if path.startswith("step-"):
                late.append((path, parts))
            else:
                super().put_whole(path, parts)

    def publish_first(files, body):
        publish(files, body)
        for path, parts in late:
            VolatileFiles.put_whole(files, path, parts)
        files.sync_directory(body.directory)
        late.clear()

    monkeypatch.setattr(manifest, "publish", publish_first)
    return {"files": LateFiles()}


def publish_after_removal(monkeypatch):
    """Blocks that the new checkpoint does not name go before it is there."""
    publish, committed = manifest.publish, ZarrStore.committed
    stores = []

    class Store(ZarrStore):
        def __init__(self, *args, **sizes):
            super().__init__(*args, **sizes)
            stores.append(self)

        def committed(self, number):
            pass

    def publish_last(files, body):
        committed(stores[0], body.number)
        stores[0].drop_before(body.number)
        publish(files, body)

    monkeypatch.setattr(manifest, "publish", publish_last)
    return {"store_class": Store}


BROKEN = {
    "bytes are not synced": lambda _: {"files": UnsyncedBytes()},
    **{
        f"names are not synced in {where}": lambda _, pattern=pattern: {"files": without_sync_of(pattern)()}
        for where, pattern in {
            "a column": r"rows/[^/]+/.+",
            "a generation": r"rows/[^/]+",
            "rows": "rows",
            "a checkpoint": "step-.*",
            "the root": "",
            "manifests": "manifests",
        }.items()
    },
    "the manifest comes before the blocks' names": lambda _: {"store_class": LateNames},
    "the manifest comes before the files": publish_before_files,
    "blocks go before the old manifest has": lambda _: {"checkpoints_class": BlocksBeforeManifests},
    "blocks go before the new manifest is there": publish_after_removal,
    "the sweep does not sync what it found": lambda _: {"checkpoints_class": SweepAtOnce},
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_power_cuts_notice_that(how, monkeypatch):
    case = CASES["float32"]
    kinds = BROKEN[how](monkeypatch) or {}
    recorded = record(case, kinds.pop("files", None) or VolatileFiles(), **kinds)
    monkeypatch.undo()
    assert recorded.states[case.steps] == record(case, VolatileFiles()).states[case.steps]
    # Most show at the first checkpoint; what is about removal at the second or third.
    which = 2 if "sweep" in how else 1 if "blocks go" in how else 0
    with pytest.raises((AssertionError, Damaged)) as caught:
        survey(
            recorded,
            kinds.get("checkpoints_class", Checkpoints),
            first=recorded.acknowledged[which][1] - 40,
            train_each=0,
            kill_each=0,
        )
    print(caught.value, getattr(caught.value, "__notes__", ""))
