"""A lost rank is noticed within a bounded time, all others stop, and exactly one message names it."""

import errno
import math
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

from engine.ranks.beats import place
from engine.ranks.process_table import is_there
from tests.engine.ranks.watched import BEAT_SECONDS, MISSED_SECONDS, TIMEOUT_SECONDS, eventually, name


def test_ranks_that_beat_are_left_alone(make_run):
    run = make_run()
    run.pass_seconds(2 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes


def test_a_silent_rank_is_named_once_by_the_lowest_and_all_others_leave(make_run):
    run = make_run()
    run.watches[1].stop()
    run.until(lambda: len(run.codes) == 2)
    assert run.codes == {0: 1, 2: 1}
    assert [rank for rank, _ in run.said] == [0]
    assert run.message().startswith(f"error: {name(1)}")
    assert run.message().endswith(
        ") was lost after step 17: nothing was heard of it for 0.4 s; "
        "checkpoints that were written before are whole, and the same command goes on from the newest"
    )


def test_a_rank_that_never_beats_is_lost_too(make_run):
    run = make_run(starts=False)
    for watch in run.watches[:2]:
        watch.start()
    run.until(lambda: len(run.codes) == 2)
    assert run.message().startswith("error: rank 2 (process unknown) was lost")


def test_a_rank_that_never_beats_is_not_called_alive_though_the_table_answers_late(make_run):
    """The talking thread of a loaded machine is behind the judging one."""
    run = make_run(starts=False)
    watch = run.watches[0]
    watch._lines[0], watch._lines[1] = (replace(watch._lines[rank], tensors=9, calls=17, beat=3) for rank in (0, 1))
    verdicts = []
    for now_seconds in (0.02, 0.04, 0.46, 0.48):
        watch._now_seconds, watch._clock_seconds = now_seconds, run.clock.seconds
        watch._changed_seconds = [now_seconds - 0.1, now_seconds - 0.1, 0.0]
        verdicts.append(watch._verdict())
    assert verdicts == [None] * 4
    watch._changed_seconds = [watch._now_seconds, watch._now_seconds, 0.0]
    assert "rank 2 (process unknown) was lost" in (watch._verdict() or "")


def test_the_next_rank_speaks_where_the_lowest_is_lost_as_well(make_run):
    run = make_run(4)
    for rank in (0, 2):
        run.watches[rank].stop()
    run.until(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [1]
    assert name(0) in run.message() and name(2) in run.message() and " were lost after step 17" in run.message()


def test_after_a_collective_raised_a_few_missed_beats_are_enough_for_every_rank(make_run):
    run = make_run(timeout_seconds=60.0, beats_missed_seconds=0.5)
    run.watches[1].stop()
    run.diagnose(2)
    run.until(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [0]
    assert run.message().startswith(f"error: {name(1)}") and " was lost after step 17: it is gone; " in run.message()


def test_thread_and_main_thread_at_once_say_one_message(make_run):
    run = make_run(timeout_seconds=2.0, beats_missed_seconds=0.5)
    run.watches[2].stop()
    run.pass_seconds(2.0 - 0.5)
    run.diagnose(0, 1)
    assert len(run.said) == 1 and run.codes == {0: 1, 1: 1}


def test_a_process_that_another_of_its_machine_misses_is_lost_after_some_beats(make_run, monkeypatch):
    run = make_run(3, timeout_seconds=60.0)
    monkeypatch.setattr("engine.ranks.watch.is_there", lambda process: False)
    run.pass_seconds(2 * MISSED_SECONDS)
    # A process that beats is there, whatever the system says.
    assert not run.codes and not any(line.raised for watch in run.watches for line in watch._lines)
    run.watches[2].stop()
    run.until(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [0]
    assert name(2) in run.message() and " was lost after step 17: it is gone; " in run.message()


def test_a_process_that_is_not_looked_for_in_its_own_place_is_not_missed(make_run, monkeypatch):
    places = iter(["here", "there"])
    monkeypatch.setattr("engine.ranks.watch.place", lambda: next(places))
    run = make_run(2, timeout_seconds=60.0)
    monkeypatch.setattr("engine.ranks.watch.is_there", lambda process: False)
    run.watches[1].stop()
    run.pass_seconds(4 * MISSED_SECONDS)
    assert not run.codes


def test_a_process_is_there_until_it_has_ended_and_while_nobody_can_look(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    assert is_there(child.pid) and is_there(os.getpid())
    child.kill()
    eventually(lambda: not is_there(child.pid))  # a zombie
    child.wait()
    assert not is_there(child.pid)

    def too_many(path, *arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", too_many)
    assert is_there(child.pid)
    assert place().startswith("nowhere else")


def test_a_verdict_that_nobody_reads_is_carried_out_all_the_same(make_run):
    def closed(text):
        raise BrokenPipeError

    run = make_run(2, starts=False)
    run.watches[1]._say = closed
    run.start()
    run.watches[0].stop()
    run.until(lambda: run.codes == {1: 1})


def test_a_message_that_cannot_be_said_does_not_keep_a_diagnosis(make_run):
    run, stuck = make_run(2, starts=False), threading.Event()
    run.watches[1]._say = lambda text: stuck.wait()
    run.watches[1].hangs = True
    try:
        run.start()
        run.watches[0].stop()
        run.diagnose(1, seconds=math.inf)  # the main thread leaves by itself, and may be late
        assert run.codes == {1: 1}
    finally:
        run.codes.clear()
        stuck.set()


def test_time_in_which_the_watcher_itself_stood_still_is_nobodys_loss(make_run):
    run = make_run()
    for watch in run.watches:
        with watch._news:  # the first that it does then is to judge
            run.clock.seconds += 3600.0
            assert watch._verdict() is None
    run.pass_seconds(3 * MISSED_SECONDS)
    assert not run.said and not run.codes


def test_a_rank_that_stood_still_itself_blames_no_other(make_run):
    run = make_run(2)
    run.watches[0].stop()
    run.pass_seconds(2 * BEAT_SECONDS)
    run.table.gone = True
    with run.watches[1]._news:  # nothing of it runs meanwhile
        run.clock.seconds += 90.0
        run.watches[1]._now()
    run.until(lambda: len(run.codes) == 1)
    assert run.message().startswith(f"error: {name(1)}")
    assert ") stood still for 90 s after step 17, and the others went without it; " in run.message()
