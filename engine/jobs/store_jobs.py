"""Looking after the rows on the disk: what job=store does, one function a verb; export is in store_export.py.
Each prints, and returns the exit code.

    verify    reads every byte that a checkpoint names, a block that several share once
    scrub     removes what the engine wrote and no checkpoint names: what a killed run left. What somebody put there stays
    repair    goes back to the newest checkpoint that is whole, to the last block
    inspect   what is on the disk, and a picture of when each block was last active
    digest    one sha256 over all that was trained, from the bytes on the disk; the summary's, where nothing went wrong

Damage is never mended by guessing: a checkpoint that lacks a block is of no use, and the one before is. So `repair` only renames:
the manifests of newer checkpoints become *.damaged, which nothing reads. Their files stay until the run goes on, whose start
removes what no manifest names; until then the renaming can be undone by hand. Only the zarr.json files of a generation
follow from what the manifest says of it, and are written anew.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from engine.disk import manifest, shapes
from engine.disk.files import DIRECTORY, Files, remove_tree
from engine.disk.manifest import Known
from engine.disk.patrol import look
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.disk.sweep import foreign, foreign_line
from engine.jobs.store_picture import ages_of, by_decade, draw
from engine.results import exports
from engine.results.progress import bytes_text
from engine.results.whole_files import refuse_links
from engine.rows.active_rows import ActiveRows
from engine.rows.checks import CHECKED
from engine.rows.damaged import Damaged
from engine.rows.snapshots import RowReader, resident_checks
from engine.training.checkpoint import read_trunk
from engine.training.online_probe import COMPONENT
from engine.training.summary import digest

SET_ASIDE = ".damaged"  # how the name of a manifest ends that repair has set aside
_REMEDY = "store.verb=repair goes back to the newest that is whole"
_LISTED_GENERATIONS = 20


def verify(files: Files, step: int | None) -> int:
    """Check all checkpoints, or that of a step; 0: all are whole. ValueError where there is none."""
    return 1 if _verified(files, step)[1] else 0


def scrub(files: Files) -> int:
    """Remove what no checkpoint names; nothing at all, and 1, where one is damaged, or it is not known what one names."""
    checkpoints, damaged = _verified(files, None)
    aside = _set_aside(files)
    unknown = [line for line in aside.values() if isinstance(line, str)]
    if unknown:
        print("\n".join(unknown))
    if damaged or unknown:
        print("nothing was removed")
        return 1
    stay = [one for one in aside.values() if isinstance(one, SavedCheckpoint)]
    total = _remove(files, _unnamed(files, checkpoints, stay, aside.keys()))
    print("there was nothing to remove" if total is None else f"removed {total:,} bytes in all")
    if line := foreign_line(foreign(files)):
        print(line)
    for path in aside:
        print(f"{path} stays, with what it names; the next start of the run removes both")
    return 0


def repair(files: Files) -> int:
    """Go back to the newest checkpoint that is whole; 1 where none is, and then nothing is changed."""
    known: Known = {}
    damaged: list[tuple[int, str, list[str]]] = []
    for number in _numbers(files):
        try:
            name, checkpoint, lines = _examined(files, number, known)
        except OSError as error:
            print(f"checkpoint number {number} may be whole, and cannot be read: {error}")
            print("nothing was changed; repair again when it can be read")
            return 1
        if checkpoint and not lines:
            break
        damaged.append((number, name, lines))
    else:
        shown = next((lines for _, _, lines in damaged if len(lines) > 1), damaged[0][2])
        for _, name, lines in damaged:
            for line in lines if lines is shown else lines[:1]:
                print(f"checkpoint {name}: {line}")
        print(
            "no checkpoint is whole, and nothing was changed; put the files back from a copy, or start over with --fresh"
        )
        return 1
    # The newest first: wherever this is cut short, the checkpoints that are left are the older ones.
    for number, name, lines in damaged:
        path = manifest.path_of(number)
        aside = path.removesuffix(".json") + SET_ASIDE
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        try:
            files.rename(path, aside)
        except Damaged:  # a link
            print(f"checkpoint {name} stays where it is, and is passed over: {lines[0]}{more}")
        else:
            print(f"checkpoint {name} is set aside as {aside}: {lines[0]}{more}")
    if damaged:
        files.sync_directory(manifest.MANIFESTS)
    mended, code = False, 0
    try:
        mended = _write_metadata(checkpoint)
    except Damaged as error:
        print(f"generation of checkpoint {checkpoint.name}: {error}")
        code = 1
    for number in manifest.numbers(files)[1:]:
        with suppress(Damaged):  # an older one that is damaged stays as it is, and goes in its turn
            mended |= _write_metadata(manifest.read(files, number))
    if damaged:
        print(
            f"the next start goes on after step {checkpoint.step} from {checkpoint.name}, and then removes what was set aside; "
            f"until then nothing is lost, and renaming *{SET_ASIDE} to *.json undoes this"
        )
    elif not mended and not code:
        print(f"nothing is to be repaired: the newest checkpoint, {checkpoint.name}, is whole")
    return code


def inspect(checkpoint: SavedCheckpoint, picture: Path) -> int:
    """Print what a checkpoint has on the disk, and draw `picture`, a PNG.

    Raises Damaged; ValueError where `picture` is a link, or the run has no rows.
    """
    refuse_links(picture.parent, [picture.name])
    store, rows = checkpoint.store(), checkpoint.row_sizes()
    entries = checkpoint.entries(store)
    blocks = rows.blocks
    print(f"checkpoint {checkpoint.name}: number {checkpoint.number}, after {checkpoint.step:,} steps")
    print(f"positions: {rows.positions:,}, in {blocks:,} blocks of {rows.block:,}; rows of {rows.dim:,} {rows.dtype}")
    print(f"stored: {_count(len(entries), 'block')} ({len(entries) / blocks:.1%}); the others were never visited")

    table = []
    for number, count in zip(*(part.tolist() for part in entries.generations()), strict=True):
        columns = store.generations[number].columns
        columns_text = ", ".join(f"{column.name} {column.dtype}" for column in columns)
        table.append(
            (
                store.generations[number].name,
                columns_text,
                count,
                count * sum(c.chunk_bytes(rows.block) for c in columns),
            )
        )
    table.sort(key=lambda line: -line[3])
    print(f"rows on the disk: {bytes_text(sum(line[3] for line in table))} in {_count(len(table), 'generation')}")
    for name, columns_text, count, count_bytes in table[:_LISTED_GENERATIONS]:
        print(f"  {name}  {_count(count, 'block'):>16}  {bytes_text(count_bytes):>10}  {columns_text}")
    if rest := table[_LISTED_GENERATIONS:]:
        print(
            f"  and {len(rest):,} smaller ones  {sum(r[2] for r in rest):,} blocks  {bytes_text(sum(r[3] for r in rest))}"
        )
    sizes = {path.rpartition("/")[2].partition(".")[0]: size for path, size in checkpoint.body.sizes.items()}
    columns_text = ", ".join(f"{name} {bytes_text(size)}" for name, size in sorted(sizes.items()))
    print(f"its own files: {bytes_text(sum(sizes.values()))} ({columns_text})")

    ages = ages_of(checkpoint, blocks)
    print("steps since a block last had an active row:")
    for label, count in by_decade(ages):
        print(f"  {label:>24}  {count / blocks:6.1%}  {_count(count, 'block')}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(ages, rows.block, checkpoint.step, picture)
    print(f"a picture of that is in {picture}")
    return 0


def digest_of(checkpoint: SavedCheckpoint, rows: ActiveRows | None) -> str:
    """The digest of the run at this checkpoint (engine/training/summary.py). Reads every block. Raises Damaged.

    rows    of the checkpoint; None: the run has none
    """
    checks: list[np.ndarray] = []
    if rows is not None:
        store, resident = checkpoint.store(), set(rows.host.blocks())
        stored = checkpoint.entries(store).items()
        away = [(block, tuple(store.read_checks(block, entry))) for block, entry in stored if block not in resident]
        checks = [np.array(away, CHECKED), resident_checks(RowReader(rows))]
    named = [name for name in checkpoint.body.shared if name != COMPONENT]  # nothing of the run depends on the probe
    shared = {name: checkpoint.tensors(f"shared-{name}") for name in named}
    return digest(exports.backbone_of(read_trunk(checkpoint)), checks, shared)


def print_digest(checkpoint: SavedCheckpoint, rows: ActiveRows | None, summary: dict[str, Any]) -> int:
    """Print it, and what the run's summary.json says, where that is of the same step; 1 where they differ."""
    found = digest_of(checkpoint, rows)
    print(f"the digest of {checkpoint.name}, after {checkpoint.step:,} steps, is {found}")
    if summary.get("steps") != checkpoint.step or "digest" not in summary:
        print("there is no summary.json of this step to compare it with")
        return 0
    if summary["digest"] == found:
        print("summary.json has the same")
        return 0
    other = shapes.shown(str(summary["digest"]))
    print(f"summary.json has {other}: these are not the files that the run left, or an earlier version wrote it")
    return 1


def _verified(files: Files, step: int | None) -> tuple[list[SavedCheckpoint], int]:
    """(checkpoints that are whole, newest first; how many are damaged), printed."""
    whole: list[SavedCheckpoint] = []
    of_unknown_step: list[str] = []
    damaged, examined, newest_is_whole, what = 0, 0, False, "damaged"
    known: Known = {}
    for number in _numbers(files):
        try:
            name, checkpoint, lines = _examined(files, number, known, step)
        except OSError as error:
            name, checkpoint, lines = f"number {number}", None, [f"it may be whole, and cannot be read: {error}"]
            what = "damaged, or cannot be read"
        if step is not None and (checkpoint is None or checkpoint.step != step):
            of_unknown_step += [] if checkpoint else [f"checkpoint {name}: {line}" for line in lines]
            continue
        if checkpoint:
            lines += _metadata_problems(checkpoint).values()
        if lines and number not in manifest.numbers(files):
            continue  # a run that goes on meanwhile has removed it
        examined += 1
        newest_is_whole |= examined == 1 and not lines
        for line in lines:
            print(f"checkpoint {name}: {line}")
        if checkpoint and not lines:
            whole.append(checkpoint)
            print(f"checkpoint {name}: {_sizes_text(checkpoint)}: whole")
        damaged += bool(lines)
    if step is not None and not examined:
        print("".join(f"{line}\n" for line in of_unknown_step), end="")
        sought = "checkpoint that can be read" if of_unknown_step else "checkpoint"
        there = ", ".join(str(one) for one in sorted(manifest.steps(files))) or "none"
        raise ValueError(f"there is no {sought} of step {step} (there are: {there}); set store.step to one of these")
    if not examined:
        print("nothing was verified: the run replaced every checkpoint meanwhile; let it have a higher checkpoint.keep")
        return whole, 1
    if damaged:
        then = "the newest is whole, and the others go in their turn" if newest_is_whole else _REMEDY
        are = "is" if damaged == 1 else "are"
        print(f"{damaged} of {_count(examined, 'checkpoint')} {are} {what}; {then}")
    return whole, damaged


def _numbers(files: Files) -> list[int]:
    found = manifest.numbers(files)
    if not found:
        raise ValueError("there is no checkpoint in this output directory; train with job=pretrain")
    return found


def _examined(
    files: Files, number: int, known: Known, step: int | None = None
) -> tuple[str, SavedCheckpoint | None, list[str]]:
    """(name for people; the checkpoint, None where its manifest cannot be read; what is wrong with its files and blocks).

    Raises OSError where the machine fails in a way that may pass.

    step   look no further into those of other steps
    """
    try:
        checkpoint = manifest.read(files, number)
    except (Damaged, OSError) as error:
        return f"number {number}", None, [manifest.told(error)]
    examined = step is None or checkpoint.step == step
    return (
        checkpoint.name,
        checkpoint,
        manifest.problems_of(checkpoint, every_block=True, known=known) if examined else [],
    )


def _metadata_problems(checkpoint: SavedCheckpoint) -> dict[int, str]:
    """Of the generations that have blocks of this checkpoint, by number: those that zarr would not open, and why."""
    store = checkpoint.store()
    try:
        entries = checkpoint.entries(store)
    except (Damaged, OSError):  # named already
        return {}
    found = ((number, store.metadata_problem(number)) for number in entries.generations()[0].tolist())
    return {number: line for number, line in found if line}


def _write_metadata(checkpoint: SavedCheckpoint) -> bool:
    """Write the zarr.json files anew that need it; whether any did."""
    problems = _metadata_problems(checkpoint)
    store = checkpoint.store()
    store.generations = checkpoint.generations()
    for number, line in problems.items():
        store.write_metadata(number)
        print(f"{line}; its zarr.json files were written anew")
    return bool(problems)


def _sizes_text(checkpoint: SavedCheckpoint) -> str:
    store = checkpoint.store()
    entries = checkpoint.entries(store)
    row_bytes = sum(
        count * column.chunk_bytes(store.block)
        for number, count in zip(*(part.tolist() for part in entries.generations()), strict=True)
        for column in store.generations[number].columns
    )
    total = bytes_text(row_bytes + sum(checkpoint.body.sizes.values()))
    return f"{_count(len(entries), 'block')}, {_count(len(checkpoint.body.files), 'file')}, {total}"


def _set_aside(files: Files) -> dict[str, SavedCheckpoint | str]:
    """By path, the checkpoints that repair has set aside. A text says why it is not known what one names: its tables cannot be read."""
    found: dict[str, SavedCheckpoint | str] = {}
    for name, size in sorted(files.listing(manifest.MANIFESTS).items()):
        if name.endswith(SET_ASIDE) and size >= 0 and shapes.manifest_number(name) is not None:
            path = f"{manifest.MANIFESTS}/{name}"
            try:
                checkpoint = manifest.read_at(files, path)
                checkpoint.generations()
                found[path] = checkpoint
            except (Damaged, OSError) as error:
                found[path] = (
                    f"{path} was set aside, and what it names is not known: {error}. Put it back from a copy; or remove it, "
                    "where nothing of it is needed, and scrub again"
                )
    return found


def _unnamed(
    files: Files, checkpoints: list[SavedCheckpoint], aside: list[SavedCheckpoint], paths: Collection[str]
) -> list[str]:
    """Paths of what no checkpoint names.

    checkpoints  all of them, whole      aside, paths   those that were set aside and stay too, and their manifests
    """
    store = checkpoints[0].store()
    maps = [(one.number, one.entries(store)) for one in reversed(checkpoints)]
    versions = store.restore(maps, store.generations, next_generation=1)
    garbage = [path for found in look(store, versions, store.generations.has_name) for path in found.garbage]
    named = {manifest.path_of(one.number) for one in checkpoints} | {
        path for one in checkpoints for path in one.body.files
    }
    for one in aside:
        named |= one.body.files.keys()
        generations = one.generations()
        garbage = [path for path in garbage if not generations.has_name(path.split("/")[1])]
    return garbage + manifest.unnamed(files, named | set(paths))


def _remove(files: Files, garbage: list[str]) -> int | None:
    """Remove these paths and say so, a line for a directory or for the files in one; returns the bytes, None where nothing went."""
    inside: dict[str, list[str]] = {}
    for path in garbage:
        above, _, name = path.rpartition("/")
        inside.setdefault(above, []).append(name)
    total, went = 0, False
    for above, names in sorted(inside.items()):
        sizes = files.listing(above)  # once: it may have very many names
        root = f"{above}/" if above else ""
        for name in sorted(name for name in names if sizes[name] == DIRECTORY):
            count_bytes = remove_tree(files, root + name)
            if name in files.listing(above) and not count_bytes:
                continue  # nothing in it was ours
            print(f"removed {root}{name}: {count_bytes:,} bytes")
            total, went = total + count_bytes, True
        alone = sorted(name for name in names if sizes[name] >= 0)
        for name in alone:
            files.remove(root + name)
        if alone:
            count_bytes = sum(sizes[name] for name in alone)
            shown = root + alone[0] if len(alone) == 1 else f"{len(alone):,} files of {above}"
            print(f"removed {shown}: {count_bytes:,} bytes")
            total, went = total + count_bytes, True
    return total if went else None


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
