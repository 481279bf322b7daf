"""Ranks that end or fail by themselves, and a table that goes: one message or none, and nobody hangs."""

import threading
import time

import pytest

from tests.engine.ranks.watched import BEAT_SECONDS, CLOSED, LIMIT_SECONDS, TIMEOUT_SECONDS, eventually, in_thread, name


def test_ranks_that_ended_are_never_lost(make_run):
    run = make_run()
    run.watches[1].ended()
    run.pass_seconds(1.5 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes
    run.watches[2].ended()
    run.watches[0].ended()
    assert not run.said and not run.codes


def test_rank_0_ends_last(make_run):
    run = make_run(timeout_seconds=60.0)
    run.watches[1].ended()
    first = in_thread(run.watches[0].ended)
    run.pass_seconds(TIMEOUT_SECONDS)
    assert first.is_alive()
    run.watches[2].ended()
    eventually(lambda: not first.is_alive())
    assert not run.said and not run.codes


def test_a_table_that_goes_after_its_keeper_ended_alarms_nobody(make_run):
    run = make_run(2)
    in_thread(run.watches[0].ended)
    eventually(lambda: run.watches[1]._lines[0].ended)
    run.table.gone = True
    run.pass_seconds(1.5 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes
    run.watches[1].ended()


def test_the_same_error_on_all_ranks_is_said_by_the_first(make_run):
    run = make_run(4, beat_seconds=0.2)
    says: dict[int, bool] = {}
    threads = [
        in_thread(lambda rank=rank: says.update({rank: run.watches[rank].failed("no space left")}))
        for rank in (3, 1, 0, 2)
    ]
    eventually(lambda: not any(thread.is_alive() for thread in threads))
    assert says == {0: True, 1: False, 2: False, 3: False}
    assert not run.said and not run.codes


def test_the_words_of_one_rank_are_its_own_and_the_others_leave_silently(make_run):
    run = make_run()
    assert run.watches[2].failed("cannot read /data/3.png")
    run.until(lambda: len(run.codes) == 2)
    assert not run.said and run.codes == {0: 1, 1: 1}


def test_words_end_a_diagnosis_at_once_and_silently(make_run):
    run = make_run(timeout_seconds=60.0, beats_missed_seconds=30.0)
    in_thread(lambda: run.watches[0].failed("no space left"))
    run.diagnose(1)
    assert not run.said and run.codes == {1: 1}


def test_the_keeper_that_fails_waits_until_the_others_have_heard_it(make_run):
    run = make_run(beats_missed_seconds=30.0, timeout_seconds=2.0, beat_seconds=0.2)
    assert run.watches[0].failed("no space left")
    assert all(watch._lines[0].words == "no space left" for watch in run.watches)
    run.table.gone = True
    run.pass_seconds(1.5 * TIMEOUT_SECONDS)
    assert not run.said


def test_one_that_stops_by_itself_while_its_thread_has_spoken_says_nothing_more(make_run):
    run = make_run()
    run.watches[1].stop()
    run.until(lambda: bool(run.said))
    assert run.watches[0].failed("Connection closed by peer") is False
    assert len(run.said) == 1


@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_without_the_table_rank_1_and_the_first_process_of_other_machines_name_rank_0(make_run, how):
    run = make_run(6, node_ranks=[0, 1, 2, 0, 1, 2])
    run.watches[0].stop()
    if how == "gone":
        run.table.gone = True
    else:
        run.table.answers.clear()
    run.until(lambda: len(run.codes) == 5)
    assert sorted(rank for rank, _ in run.said) == [1, 3]
    for _, text in run.said:
        assert text.startswith(f"error: {name(0)}") and ", or its launcher, was lost after step 17: " in text


def test_rank_0_whose_launcher_kept_the_table_leaves_the_word_to_rank_1(make_run):
    run = make_run()
    run.table.gone = True
    run.until(lambda: len(run.codes) == 3)
    assert [rank for rank, _ in run.said] == [1]


@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_a_diagnosis_ends_though_the_table_does_not_answer(make_run, how):
    run = make_run(2, timeout_seconds=60.0)
    run.watches[0].stop()
    if how == "gone":
        run.table.gone = True
    else:
        run.table.answers.clear()
    run.diagnose(1)
    assert run.codes == {1: 1} and "it is gone" in run.message()


@pytest.mark.parametrize("way_out", ["ended", "failed"])
def test_no_way_out_hangs_in_a_frozen_table(make_run, way_out):
    run = make_run(timeout_seconds=2.0)  # long after the last has left: before that, none is to find the table lost
    run.table.answers.clear()
    run.pass_seconds(2 * BEAT_SECONDS)
    begin = time.monotonic()
    for watch in reversed(run.watches):
        watch.ended() if way_out == "ended" else watch.failed("no space left")
    assert time.monotonic() - begin < 5
    assert not run.codes


def test_only_one_thread_of_a_process_uses_the_table(make_run):
    run = make_run(2)
    last = in_thread(run.watches[0].ended)
    run.watches[1].failed("no space left")
    last.join(LIMIT_SECONDS)
    assert len(run.table.threads) == 2 and threading.current_thread() not in run.table.threads


def test_alone_there_is_no_thread_and_every_call_is_trivial(make_run):
    run, before = make_run(1, starts=False), threading.active_count()
    (watch,) = run.watches
    watch.start()
    assert threading.active_count() == before
    assert watch.failed("no space left")
    with pytest.raises(RuntimeError, match="closed by peer"):
        watch.diagnose(CLOSED)
    watch.ended()
    assert not run.table.texts and not run.codes


def test_a_mistake_of_the_watch_itself_is_said_of_its_own_rank_and_of_no_other(make_run, capsys):
    run = make_run(3)
    run.until(lambda: all(watch.beats > 2 for watch in run.watches))

    def mistaken():
        raise ZeroDivisionError("a mistake of ours")

    run.watches[1]._calls = mistaken
    run.until(lambda: 1 in run.codes)
    rank, words = run.said[0]
    assert rank == 1 and words.startswith("error: rank 1 (process")
    assert "cannot watch the others after step 17: ZeroDivisionError: a mistake of ours; checkpoints" in words
    assert "Traceback" in capsys.readouterr().err
