"""An index beside what is there now: what is new, gone, resized and touched, by a merge of runs in byte order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.index.rescan import NO_CHANGES, compared, in_byte_order
from datasets.index.rows import Labels
from tests.datasets.index.sets import found, index_of, paths_of

NAMES = ["a", "a/a", "a/b", "a0", "b", "b.c", "b/a", "c/a/b", "d"]
FILES = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=9)


@settings(max_examples=150, deadline=None)
@given(st.lists(FILES.filter(bool), min_size=2, max_size=4))
def test_each_start_finds_what_sets_and_dicts_find(states: list[dict[str, tuple[int, int]]]) -> None:
    index = index_of((name.encode(), *states[0][name]) for name in sorted(states[0]))
    numbers = {name: number for number, name in enumerate(sorted(states[0]))}
    listed = dict(states[0])
    for state in states[1:]:
        labels = Labels(index.label_names)
        added, changes = compared(index, ((name.encode(), *state[name]) for name in sorted(state)), labels)
        assert [path.decode() for path in added.each_path()] == sorted(set(state) - set(numbers))
        assert changes.gone.tolist() == sorted(number for name, number in numbers.items() if name not in state)
        resized = {
            n: state[name][0] for name, n in numbers.items() if name in state and state[name][0] != listed[name][0]
        }
        assert dict(zip(changes.resized.tolist(), changes.sizes.tolist(), strict=True)) == resized
        assert [changes.size_of(number) for number in range(len(index))] == [resized.get(n) for n in range(len(index))]
        same = [name for name in numbers if name in state and state[name][0] == listed[name][0]]
        assert changes.touched == sum(state[name][1] != listed[name][1] for name in same)
        known = len(index)
        rows = index.piece(0, known)
        index = type(index)("folder", _held(index.grown(added, labels.names)), _runs(index, added), labels.names)
        assert list(index.piece(0, known).each_path()) == list(rows.each_path())
        numbers |= {name: known + n for n, name in enumerate(sorted(set(state) - set(numbers)))}
        listed |= {name: state[name] for name in state if name not in listed}
        assert paths_of(index) == sorted(numbers, key=numbers.__getitem__)
        assert [path for path, *_ in in_byte_order(index)] == sorted(name.encode() for name in numbers)


def _held(index):
    from datasets.index.image_index import Held

    return Held(index.piece(0, len(index)))


def _runs(index, added):
    return [*index.runs, len(index)] if len(added) else index.runs


def test_what_could_not_be_read_before_may_be_repaired_or_taken_away() -> None:
    index = index_of(found("a", "b", "c", "d"))
    _, changes = compared(index, [(b"b", 99, 5), (b"c", 8, 5), (b"d", 99, 5)], Labels())
    assert changes.lost({}) == 3
    assert changes.lost({0: 1, 3: 1, 2: 1}) == 1
    assert changes.notes() == (
        "1 image is gone and skipped; a number is never given to another one: a",
        "2 images are of another size than when they were listed, and taken as they are now: b, d",
    )


def test_a_set_that_was_copied_is_the_same_and_told_of_once() -> None:
    index = index_of(found("a", "b"))
    added, changes = compared(index, found("a", "b", stamp=77), Labels())
    assert not len(added) and changes.lost({}) == 0
    assert changes.notes() == ("2 images are as large as before, but written at another time: copies, or changed",)
    assert NO_CHANGES.notes() == ()
