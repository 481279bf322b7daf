"""Nobody is lost, and the ranks that keep the others waiting are named."""

from tests.engine.ranks.watched import TIMEOUT_SECONDS, name


def test_a_rank_that_is_alive_but_behind_is_named_by_the_lowest_that_is_not(make_run):
    run = make_run(4)
    run.calls[:] = [41, 42, 42, 41]
    run.diagnose(1, 2)
    run.until(lambda: len(run.codes) == 4)
    assert [rank for rank, _ in run.said] == [1]
    assert name(0) in run.message() and name(3) in run.message()
    assert "are alive but have not come to where the others wait (41 exchanges begun of 42)" in run.message()
    assert run.message().endswith(": Connection closed by peer [127.0.0.1]")


def test_a_rank_whose_wait_was_in_vain_is_not_called_behind(make_run):
    run = make_run(3)
    run.calls[:] = [41, 41, 42]
    run.diagnose(0)
    run.until(lambda: len(run.codes) == 3)
    assert name(1) in run.message() and name(0) not in run.message()
    assert "is alive but has not come to where the others wait (41 exchanges begun of 42)" in run.message()


def test_a_rank_that_keeps_the_others_waiting_within_a_step_is_named_though_nothing_raises(make_run):
    run = make_run(3)
    run.calls[:], run.tensors[:] = [42, 42, 41], [30, 30, 29]
    run.until(lambda: len(run.codes) == 3)
    assert [rank for rank, _ in run.said] == [0] and name(2) in run.message()
    assert run.message().endswith("(41 exchanges begun of 42): no exchange for 0.4 s")


def test_a_rank_that_the_others_wait_for_between_steps_has_all_the_time_it_needs(make_run):
    run = make_run(3)
    run.calls[:] = [41, 42, 42]  # words: rank 0 decodes, or writes
    run.pass_seconds(3 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes


def test_a_step_that_goes_on_slowly_is_nobodys_fault(make_run):
    run = make_run(2)
    for count in range(10, 20):
        run.calls[:], run.tensors[:] = [count, count - 1], [count, count - 1]
        run.pass_seconds(TIMEOUT_SECONDS / 4)
    assert not run.said and not run.codes


def test_where_nobody_is_lost_or_behind_rank_0_says_what_was_raised(make_run):
    run = make_run()
    run.diagnose(1, 2)
    run.until(lambda: len(run.codes) == 3)
    assert run.said == [(0, "error: Connection closed by peer [127.0.0.1]")]
