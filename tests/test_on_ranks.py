"""The helper that runs a function on several ranks: results, failures, hangs, and nothing left behind."""

import os
import time
import warnings

import numpy as np
import pytest
import torch

from tests.on_ranks import on_ranks


def report(ranks, *arguments):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    return ranks.rank, ranks.size, [os.environ[name] for name in names], *arguments


def total(ranks, value):
    return ranks.sum(torch.tensor([value + ranks.rank]), "test")


def tensors(ranks):
    values = torch.arange(3, dtype=torch.float64) + ranks.rank
    return {"plain": values, "inside": [(values.bfloat16(), torch.nn.Parameter(values)), values.numpy()]}


def environment_and_threads(ranks):
    return os.environ.get("SET_BY_THE_TEST"), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def fail_on(ranks, failing):
    print(f"rank {ranks.rank} was here")
    ranks.wait()
    if ranks.rank in failing:
        time.sleep(0.5 if len(failing) < ranks.size else 0.0)
        raise ValueError(f"rank {ranks.rank} does not like it")
    ranks.wait()  # for ever


class OfTwo(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def fail_strangely(ranks):
    raise OfTwo(1, 2)


def hang(ranks, path):
    (path / str(ranks.rank)).write_text(str(os.getpid()))
    print("before it hangs")
    if ranks.rank == 1:
        linger_in_this_function()


def linger_in_this_function():
    time.sleep(600)


def die(ranks):
    if ranks.rank == 1:
        os._exit(7)
    ranks.wait()


def leave_early(ranks):
    if ranks.rank == 0:
        return None
    time.sleep(0.3)
    return ranks.rank


def warn(ranks):
    warnings.warn("careful", UserWarning, stacklevel=1)


def count_threads(ranks):
    return len(os.listdir(f"/proc/{os.getppid()}/task"))


def process_seconds(ranks):
    return time.process_time()


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_ranks(count):
    expected = [(rank, count, [str(rank), str(rank), str(count)], "word", 4) for rank in range(count)]
    assert on_ranks(count, report, "word", 4) == expected


def test_ranks_share_one_group():
    assert on_ranks(3, total, 1.0) == [6.0, 6.0, 6.0]
    assert on_ranks(2, total, torch.tensor(0.5)) == [2.0, 2.0]


def test_tensors_come_back_as_arrays():
    for rank, result in enumerate(on_ranks(2, tensors)):
        (half, parameter), array = result["inside"]
        for values in (result["plain"], half, parameter, array):
            assert type(values) is np.ndarray
            np.testing.assert_array_equal(values, np.arange(3) + rank)
        assert result["plain"].dtype == parameter.dtype == np.float64 and half.dtype == np.float32


def test_a_rank_has_the_callers_environment_and_one_thread(monkeypatch):
    monkeypatch.setenv("SET_BY_THE_TEST", "yes")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert on_ranks(2, environment_and_threads) == [("yes", 1, "1")] * 2
    monkeypatch.delenv("SET_BY_THE_TEST")
    assert on_ranks(1, environment_and_threads) == [(None, 1, "1")]


def test_an_exception_comes_with_its_traceback_and_what_the_others_did():
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^rank 1 does not like it") as caught:
        on_ranks(3, fail_on, [1])
    assert time.monotonic() - start < 150  # not after the 200 s in which the others' collective times out
    note = "\n".join(caught.value.__notes__)
    assert "in fail_on" in note and "Traceback" in note
    assert "rank 2 is at work" in note and "in wait" in note  # by its stack
    assert "rank 0 was here" in note and "rank 2 was here" in note


def test_an_exception_that_cannot_be_pickled_keeps_its_text():
    with pytest.raises(RuntimeError, match="OfTwo: 1 and 2"):
        on_ranks(1, fail_strangely)


def test_where_all_fail_it_is_rank_0_that_is_heard(monkeypatch):
    monkeypatch.setattr("tests.on_ranks._GRACE_SECONDS", 60.0)
    with pytest.raises(ValueError, match=r"^rank 0 does not like it"):  # at the start: the notes tell of all
        on_ranks(3, fail_on, [0, 1, 2])


def test_a_hang_is_ended_and_shown(tmp_path):
    on_ranks(1, report)  # so that the server is there
    with pytest.raises(TimeoutError, match="no answer from rank 1 of 2 in 10 s") as caught:
        on_ranks(2, hang, tmp_path, timeout_seconds=10)
    note = "\n".join(caught.value.__notes__)
    assert "linger_in_this_function" in note and "before it hangs" in note and "rank 0 has returned" in note
    assert not any(is_there(int((tmp_path / str(rank)).read_text())) for rank in range(2))


def test_a_process_that_ends_without_an_answer_is_named():
    with pytest.raises(ChildProcessError, match="rank 1 ended without an answer, exit code 7"):
        on_ranks(2, die)


def test_a_rank_that_has_nothing_more_to_do_waits_for_the_others():
    assert on_ranks(3, leave_early) == [None, 1, 2]


def test_a_warning_is_an_error_on_a_rank_where_it_is_one_here():
    with pytest.raises(UserWarning, match="careful"):
        on_ranks(1, warn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert on_ranks(1, warn) == [None]


def test_a_function_without_a_name_is_refused_here():
    with pytest.raises((AttributeError, TypeError), match="lambda"):
        on_ranks(2, lambda ranks: 0)


def test_the_server_has_no_threads():
    """A thread of the server would be missing in every rank, and a lock that it held would stay locked there."""
    assert on_ranks(1, count_threads) == [1]


def test_a_rank_starts_without_importing_torch_again():
    on_ranks(1, report)
    assert on_ranks(1, process_seconds)[0] < 1.0
