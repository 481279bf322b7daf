"""What job=store does: damage of every kind is found and named, nothing that counts is removed, a run goes on from what is whole."""

import errno
import json
import shutil

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import zarr

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.zarr_store import ROWS
from engine.jobs import store_export, store_picture
from engine.jobs.store_export import export
from engine.jobs.store_jobs import inspect, repair, scrub, verify
from tests.conftest import Runner, leave_out_drawings
from tests.engine.disk_runs import DiskRun
from tests.engine.harness import Case, rows_of_engine

CASE = Case(active=32, passes=1.5)
CASES = {
    "float64": CASE,
    "bfloat16": Case(active=32, passes=1.5, dtype=np.float32, bfloat16=True),
    "folded": Case(active=32, passes=3.0, dtype=np.float32, momentum=0.1, weight_decay=1e-2, fold=True),
}
EARLIER, LATER = 30, 45


def saved(case, root, keep=2, stops=(EARLIER, LATER)):
    run = DiskRun(case, root, keep=keep)
    for stop in stops:
        run.train(stop)
        run.save()
    run.finish().close()
    return run.files


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template") / "checkpoints"
    saved(CASE, root)
    return root


@pytest.fixture
def root(template, tmp_path):
    """Two checkpoints of a harness case, to be damaged."""
    return shutil.copytree(template, tmp_path / "checkpoints")


def checkpoint_of(root, step):
    files = DiskFiles(root)
    return next(kept for n in manifest.numbers(files) if (kept := manifest.read(files, n)).step == step)


def blocks_of(root, step):
    """block -> (the name of its generation, entry)."""
    kept = checkpoint_of(root, step)
    store = kept.store()
    return {block: (store.generations[entry.generation].name, entry) for block, entry in kept.entries(store).items()}


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def chunk(root, generation, column, block):
    return root / ROWS / generation / column / (f"c.{block}" + ("" if column == "last_step" else ".0"))


def flip(path, at=5):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def new_block(root):
    """A block that both checkpoints have, each its own version, and both generations."""
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    block = next(block for block in sorted(later) if block in earlier and earlier[block] != later[block])
    return block, earlier[block][0], later[block][0]


@pytest.mark.parametrize("name", CASES)
def test_whole_checkpoints_are_said_to_be_whole(tmp_path, capsys, name):
    case = CASES[name]
    steps = (case.steps // 2, case.steps)
    files = saved(case, tmp_path, stops=steps)
    assert verify(files, None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, step in zip(lines, reversed(steps), strict=True):
        stored = len(blocks_of(tmp_path, step))
        own = len(checkpoint_of(tmp_path, step).body.files)
        assert line.startswith(f"checkpoint step-{step:09d}: {stored} blocks, {own} files, ")
        assert line.endswith(" MiB: whole")
    assert verify(files, steps[0]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert scrub(files) == 0
    assert "there was nothing to remove" in capsys.readouterr().out
    assert repair(files) == 0
    assert "nothing is to be repaired" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["weight", "momentum", "last_step"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "does not match its checksum"),
        (lambda path: flip(path, at=-1), "does not match its checksum"),
        (zero, "does not match its checksum"),
        (truncate, "bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["flipped bit", "flipped bit of zarr's checksum", "zeroed", "truncated", "missing"],
)
def test_a_damaged_block_is_named_by_block_column_and_generation(root, capsys, column, damage, complaint):
    block, _, generation = new_block(root)
    damage(chunk(root, generation, column, block))
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    assert f"step-{LATER:09d}: block {block} ({column}) of generation {generation} " in out
    assert complaint in out
    assert out.count("of generation") == 1
    assert f"checkpoint step-{EARLIER:09d}: {len(blocks_of(root, EARLIER))} blocks" in out
    assert "1 of 2 checkpoints is damaged; store.verb=repair" in out.splitlines()[-1]


def test_two_blocks_that_changed_places_are_both_named(root, capsys):
    block, _, generation = new_block(root)
    other = next(b for b, (name, _) in blocks_of(root, LATER).items() if name == generation and b != block)
    one, two = (chunk(root, generation, "weight", number) for number in (block, other))
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    for number in (block, other):
        line = f"block {number} (weight) of generation {generation} holds another block, or an older version of it"
        assert f"checkpoint step-{LATER:09d}: {line}\n" in out
    assert out.count("of generation") == 2


def test_an_older_version_in_place_of_a_block_is_named(root, capsys):
    block, old, generation = new_block(root)
    for column in ("weight", "momentum", "last_step"):
        shutil.copyfile(chunk(root, old, column, block), chunk(root, generation, column, block))
    assert verify(DiskFiles(root), LATER) == 1
    line = f"block {block} (weight) of generation {generation} holds another block, or an older version of it"
    assert line in capsys.readouterr().out
    assert verify(DiskFiles(root), EARLIER) == 0


def test_every_damaged_block_and_file_is_named_in_one_go(root, capsys):
    later = blocks_of(root, LATER)
    for block, (generation, _) in later.items():
        flip(chunk(root, generation, "momentum", block))
    zero(root / f"step-{LATER:09d}" / "trunk.safetensors")
    assert verify(DiskFiles(root), LATER) == 1
    out = capsys.readouterr().out
    for block, (generation, _) in later.items():
        assert f"block {block} (momentum) of generation {generation} does not match" in out
    assert "trunk.safetensors does not match its checksum" in out


def test_a_damaged_block_that_two_checkpoints_share_is_named_for_both(root, capsys):
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    block = next(block for block in later if earlier.get(block) == later[block])
    flip(chunk(root, later[block][0], "weight", block))
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    for step in (EARLIER, LATER):
        assert f"step-{step:09d}: block {block} (weight)" in out
    assert "2 of 2 checkpoints are damaged" in out


def test_a_block_that_checkpoints_share_is_read_once(root):
    read = []

    class Counting(DiskFiles):
        def read_into(self, path, parts):
            read.append(path)
            return super().read_into(path, parts)

    assert verify(Counting(root), None) == 0
    assert len(read) == len(set(read)) == len(list((root / ROWS).rglob("c.*")))


@pytest.mark.parametrize("name", ["zarr.json", "weight/zarr.json", "last_step/zarr.json"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "has no "),
        (truncate, "is no zarr group"),
        (lambda path: path.write_text(""), "is no zarr group"),
    ],
    ids=["missing", "truncated", "empty"],
)
def test_a_generation_that_zarr_cannot_open_is_named_and_mended(root, capsys, name, damage, complaint):
    generation = new_block(root)[2]
    before = tree(root)
    damage(root / ROWS / generation / name)
    assert verify(DiskFiles(root), LATER) == 1
    assert f"generation {generation} {complaint}" in capsys.readouterr().out
    assert scrub(DiskFiles(root)) == 1
    assert repair(DiskFiles(root)) == 0
    assert f"generation {generation} {complaint}" in capsys.readouterr().out
    assert tree(root) == before
    assert verify(DiskFiles(root), None) == 0


def test_metadata_of_other_chunks_is_not_taken_for_the_generation_s_own(root, capsys):
    generation = new_block(root)[2]
    path = root / ROWS / generation / "weight" / "zarr.json"
    content = json.loads(path.read_text())
    content["chunk_grid"]["configuration"]["chunk_shape"][0] += 1
    path.write_text(json.dumps(content))
    assert verify(DiskFiles(root), None) == 1
    assert f"generation {generation} has metadata that is not its own" in capsys.readouterr().out


def test_a_manifest_that_cannot_be_read_is_named_and_leaves_the_others(root, capsys):
    (root / manifest.path_of(2)).write_text("{")
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    assert "checkpoint number 2: its manifest cannot be read" in out
    assert f"checkpoint step-{EARLIER:09d}" in out
    assert verify(DiskFiles(root), EARLIER) == 0


def test_a_step_that_is_not_there_is_refused_with_those_that_are(root):
    with pytest.raises(ValueError, match=rf"no checkpoint of step 7 \(there are: {EARLIER}, {LATER}\)"):
        verify(DiskFiles(root), 7)
    for job in (lambda files: verify(files, None), scrub, repair):
        with pytest.raises(ValueError, match="there is no checkpoint"):
            job(DiskFiles(root / "nowhere"))


def test_scrub_removes_what_no_checkpoint_names_and_nothing_else(root, capsys):
    before = tree(root)
    _, _, generation = new_block(root)
    strays = {
        f"rows/{generation}/weight/c.0.0.part": 5,
        f"rows/{generation}/last_step/c.999": 6,
        f"rows/{generation}/zarr.json.part": 7,
        "rows/000099-abcdef/weight/c.1.0": 8,
        f"step-{LATER:09d}/active.safetensors.part": 9,
        "step-000000060/trunk.safetensors": 10,
        "manifests/000000003.json.part": 11,
    }
    for path, size in strays.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(size))
    (root / "notes.txt").write_text("not ours")
    assert scrub(DiskFiles(root)) == 0
    out = capsys.readouterr().out
    assert tree(root) == before | {"notes.txt": b"not ours"}
    assert not (root / "rows" / "000099-abcdef").exists()
    assert not (root / "step-000000060").exists()
    assert f"removed rows/{generation}/weight/c.0.0.part: 5 bytes" in out
    assert "removed rows/000099-abcdef: 8 bytes" in out
    assert "removed step-000000060: 10 bytes" in out
    assert f"removed {sum(strays.values())} bytes in all" in out


def test_scrub_removes_nothing_where_something_is_damaged(root, capsys):
    block, _, generation = new_block(root)
    flip(chunk(root, generation, "weight", block))
    (root / "step-000000060").mkdir()
    (root / "step-000000060" / "trunk.safetensors.part").write_bytes(b"half")
    before = tree(root)
    assert scrub(DiskFiles(root)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was removed"
    assert tree(root) == before


def test_repair_goes_back_and_the_run_continues_as_if_nothing_had_happened(root, capsys):
    whole = DiskRun(CASE, root.parent / "whole").train(CASE.steps).finish()
    block, _, generation = new_block(root)
    flip(chunk(root, generation, "weight", block))
    assert repair(DiskFiles(root)) == 0
    out = capsys.readouterr().out
    assert f"checkpoint step-{LATER:09d} is set aside as manifests/000000002.damaged: block {block} (weight)" in out
    assert f"goes on after step {EARLIER}" in out
    assert verify(DiskFiles(root), None) == 0  # a manifest that was set aside is none
    assert repair(DiskFiles(root)) == 0
    before = tree(root)
    assert scrub(DiskFiles(root)) == 0
    assert "manifests/000000002.damaged stays" in capsys.readouterr().out
    assert tree(root) == before

    again = DiskRun(CASE, root).looked()
    assert not again.complaints
    assert again.step == EARLIER
    assert not list(root.glob("manifests/*.damaged"))
    assert not (root / ROWS / generation).exists()
    again.train(LATER)
    again.save()
    assert again.finish().train(CASE.steps).digest() == whole.digest()
    again.close()
    whole.close()
    assert verify(DiskFiles(root), None) == 0


@pytest.mark.parametrize("is_readable", [True, False], ids=["damaged", "not read"])
def test_scrub_removes_nothing_while_it_is_not_known_what_was_set_aside(root, capsys, monkeypatch, is_readable):
    aside = "manifests/000000002.damaged"
    flip(root / manifest.path_of(2))
    assert repair(DiskFiles(root)) == 0
    before = tree(root)
    if not is_readable:
        flip(root / aside)
        real = DiskFiles.read

        def refuse(files, path):
            if path == aside:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(files, path)

        monkeypatch.setattr(DiskFiles, "read", refuse)
        before = tree(root)
    assert scrub(DiskFiles(root)) == 1
    out = capsys.readouterr().out
    assert f"{aside} was set aside, and what it names is not known" in out
    assert out.splitlines()[-1] == "nothing was removed" and tree(root) == before
    (root / aside).unlink()
    assert scrub(DiskFiles(root)) == 0
    assert not (root / f"step-{LATER:09d}").exists()


def test_where_only_an_older_checkpoint_is_damaged_nothing_has_to_be_repaired(root, capsys):
    block, generation, _ = new_block(root)
    flip(chunk(root, generation, "weight", block))
    assert verify(DiskFiles(root), None) == 1
    assert "1 of 2 checkpoints is damaged; the newest is whole" in capsys.readouterr().out
    before = tree(root)
    assert repair(DiskFiles(root)) == 0
    assert f"nothing is to be repaired: the newest checkpoint, step-{LATER:09d}, is whole" in capsys.readouterr().out
    assert tree(root) == before


def test_what_repair_did_can_be_undone_until_the_run_goes_on(root):
    before = tree(root)
    path = root / f"step-{LATER:09d}" / "trunk.safetensors"
    flip(path)
    assert repair(DiskFiles(root)) == 0
    flip(path)
    (root / "manifests" / "000000002.damaged").rename(root / "manifests" / "000000002.json")
    assert tree(root) == before


def test_repair_passes_over_every_checkpoint_that_is_not_whole(tmp_path, capsys):
    files = saved(CASE, tmp_path, keep=4, stops=(20, 30, 40, 50))
    flip(tmp_path / manifest.path_of(4))
    flip(tmp_path / "step-000000040" / "momentum.safetensors")
    assert repair(files) == 0
    out = capsys.readouterr().out
    assert "checkpoint number 4 is set aside as manifests/000000004.damaged: its manifest" in out
    assert "checkpoint step-000000040 is set aside as manifests/000000003.damaged: momentum.safetensors" in out
    assert manifest.numbers(files) == [2, 1]
    run = DiskRun(CASE, tmp_path, keep=4)
    assert run.step == 30
    run.close()


def test_where_no_checkpoint_is_whole_repair_says_so_and_changes_nothing(root, capsys):
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    shared = [block for block in later if earlier.get(block) == later[block]][:2]
    for block in shared:
        flip(chunk(root, later[block][0], "weight", block))
    before = tree(root)
    assert repair(DiskFiles(root)) == 1
    out = capsys.readouterr().out
    for block in shared:
        assert f"checkpoint step-{LATER:09d}: block {block} (weight) of generation {later[block][0]}" in out
    assert "no checkpoint is whole" in out
    assert tree(root) == before


@pytest.mark.parametrize("name", CASES)
def test_inspect_adds_up_to_what_is_on_the_disk(tmp_path, capsys, name):
    case = CASES[name]
    saved(case, tmp_path, keep=1, stops=(case.steps,))
    kept = checkpoint_of(tmp_path, case.steps)
    assert inspect(kept, tmp_path / "store.png") == 0
    out = capsys.readouterr().out
    blocks = -(-case.size // case.block)
    assert f"{case.size:,}, in {blocks} blocks of {case.block}" in out
    assert f"number {kept.number}, after {case.steps:,} steps" in out
    for generation in kept.generations().values():
        chunks = len(list((tmp_path / ROWS / generation.name / "weight").glob("c.*")))
        line = next(line for line in out.splitlines() if generation.name in line)
        assert f" {chunks} block" in line
        assert ("momentum" in line) == (tmp_path / ROWS / generation.name / "momentum").is_dir()
    widths = {len(generation.columns) for generation in kept.generations().values()}
    assert widths == ({2, 3} if case.fold else {3})
    assert matplotlib.image.imread(tmp_path / "store.png").shape == (990, 1500, 4)


@pytest.mark.parametrize("name", CASES)
def test_the_age_of_a_block_is_that_of_its_latest_row(tmp_path, name):
    case = CASES[name]
    run = DiskRun(case, tmp_path, keep=1)
    blocks = -(-case.size // case.block)
    expected = np.full(blocks, -1)
    for step in range(run.step, case.steps * 2 // 3):
        run.train(step + 1)
        # A block with active rows is as old as nothing; it ages from the step on that takes the last of them.
        active = np.unique(run.rows.position_K[run.rows.position_K >= 0] // case.block)
        expected[expected >= 0] += 1
        expected[active] = 0
    run.save()
    run.finish()
    kept = run.checkpoints.newest
    ages = store_picture.ages_of(kept, blocks)
    run.close()
    assert (ages >= 0).any() and (ages == 0).any()
    # A row that leaves in the middle of step s has done s steps: the block was seen with it after step s - 1, s steps done.
    assert ages.tolist() == expected.tolist()
    by_decade = store_picture.by_decade(ages)
    assert sum(count for _, count in by_decade) == blocks
    assert dict(by_decade)["never visited"] == (expected == -1).sum()


@pytest.mark.parametrize("blocks", [1, 20, 16_000, 16_001, 500_000])
def test_a_picture_of_any_number_of_blocks_has_the_colours_of_its_ages(tmp_path, blocks):
    ages = np.arange(blocks) * 100 // blocks
    ages[blocks // 2 :] = -1
    store_picture.draw(ages, 64, 1000, tmp_path / "store.png")
    cells = matplotlib.image.imread(tmp_path / "store.png")[:800, 160:1250, :3].reshape(-1, 3)  # no text, no colour bar
    never, now = (0xD9, 0xDD, 0xE4), matplotlib.colormaps["viridis_r"](0.0, bytes=True)[:3]
    for colour, is_there in ((never, True), (now, blocks > 1)):
        assert (np.abs(cells * 255 - np.array(colour)).max(axis=1) < 2).any() == is_there


@pytest.mark.parametrize("name", CASES)
def test_exports_are_the_caught_up_rows_in_instance_order_in_both_formats(tmp_path, name, monkeypatch):
    case = CASES[name]
    run = DiskRun(case, tmp_path / "checkpoints").train(case.steps)
    expected = rows_of_engine(case, run.rows)[0].astype(np.float32)
    monkeypatch.setattr(store_export, "_CHUNK_BYTES", 4 * case.dim * 33)  # 200 rows are seven chunks, the last ragged
    exports = tmp_path / "exports"
    for form in ("npy", "zarr", "zarr"):  # again over what is there
        assert export(exports, run.rows, case.size, case.schedule.instances, case.steps, form) == 0
    run.close()
    name = f"rows-{case.steps}"
    assert sorted(path.name for path in exports.iterdir()) == [f"{name}.json", f"{name}.npy", f"{name}.zarr"]
    assert np.load(exports / f"{name}.npy").tobytes() == expected.tobytes()
    array = zarr.open_array(str(exports / f"{name}.zarr"), mode="r")
    assert array.shape == (case.size, case.dim)
    assert array.chunks == (33, case.dim)
    assert array.dtype == np.float32
    assert np.asarray(array[:]).tobytes() == expected.tobytes()
    about = json.loads((exports / f"{name}.json").read_text())
    assert about == {"order": "row i belongs to instance i", "step": case.steps, "shape": [case.size, case.dim]}


def test_an_export_that_is_cut_short_leaves_no_final_name(tmp_path, monkeypatch):
    run = DiskRun(CASE, tmp_path / "checkpoints").train(20)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_export, "create_export", killed)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "exports", run.rows, CASE.size, CASE.schedule.instances, 20, "zarr")
    run.close()
    assert [path.name for path in (tmp_path / "exports").iterdir()] == []


# Through launch.py, on digits


@pytest.fixture(autouse=True, scope="module")
def _nobody_looks_at_reports():
    with pytest.MonkeyPatch.context() as patch:
        leave_out_drawings(patch)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory, _nobody_looks_at_reports):
    """(a run that was stopped at step 30, exported, and went on to 35; the rows at step 30)."""
    runner = Runner(tmp_path_factory.mktemp("digits"))
    assert runner("steps=30") == 0
    assert runner("job=export") == 0
    rows = np.load(runner.output / "exports" / "rows.npy")
    assert runner("steps=35") == 0
    return runner, rows


@pytest.fixture
def run(digits, tmp_path):
    """A copy of that run, to be damaged."""
    runner = Runner(tmp_path)
    shutil.copytree(digits[0].output, runner.output)
    return runner


def test_every_verb_runs_on_a_whole_run_and_exits_with_0(run, capsys):
    for verb, said in {
        "verify": "checkpoint step-000000030: ",
        "scrub": "there was nothing to remove",
        "repair": "nothing is to be repaired",
        "inspect": "a picture of that is in ",
        "export": "exported the rows of step 35",
    }.items():
        assert run("job=store", f"store.verb={verb}") == 0, verb
        assert said in capsys.readouterr().out, verb
    assert (run.output / "store.png").exists()


def test_an_older_checkpoint_exports_the_rows_that_it_had(run, digits):
    for form in ("npy", "zarr"):
        assert run("job=store", "store.verb=export", "store.step=30", f"store.format={form}") == 0
    exports = run.output / "exports"
    assert np.load(exports / "rows-30.npy").tobytes() == digits[1].tobytes()
    array = zarr.open_array(str(exports / "rows-30.zarr"), mode="r")
    assert np.asarray(array[:]).tobytes() == digits[1].tobytes()
    assert json.loads((exports / "rows-30.json").read_text())["step"] == 30


@pytest.mark.parametrize("verb", ["verify", "inspect", "export"])
def test_a_step_that_is_not_kept_is_a_mistake_that_lists_those_that_are(run, capsys, verb):
    assert run("job=store", f"store.verb={verb}", "store.step=7") == 2
    assert "of step 7 (there are: 30, 35)" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["verify", "scrub", "repair", "inspect", "export"])
def test_where_nothing_was_trained_every_verb_says_so(tmp_path, capsys, verb):
    runner = Runner(tmp_path)
    assert runner("job=store", f"store.verb={verb}") == 2
    assert "train" in capsys.readouterr().err
    assert not runner.output.exists()


def test_a_repaired_run_ends_with_the_digest_of_one_that_was_never_damaged(run, tmp_path, capsys):
    root = run.output / "checkpoints"
    earlier, later = blocks_of(root, 30), blocks_of(root, 35)
    block = next(block for block in later if earlier.get(block) != later[block])
    flip(chunk(root, later[block][0], "momentum", block))
    assert run("job=store", "store.verb=verify") == 1
    assert f"block {block} (momentum) of generation {later[block][0]}" in capsys.readouterr().out
    assert run("job=store", "store.verb=scrub") == 1
    assert run("job=store", "store.verb=repair") == 0
    assert run("steps=40") == 0
    assert "going on after step 30" in capsys.readouterr().out
    assert run("job=store", "store.verb=verify") == 0
    whole = Runner(tmp_path / "whole")
    whole.directory.mkdir()
    assert whole("steps=40") == 0
    assert run.summary()["digest"] == whole.summary()["digest"]
