"""What a run does at this moment is read from outside, also after it was killed."""

import os
import signal

from engine.profiling.now import STAGES, START, Moment, Now


def test_what_was_written_last_is_read_after_a_kill(tmp_path):
    Now(tmp_path / "now", is_new=True).close()
    process = os.fork()
    if process == 0:
        writer = Now(tmp_path / "now", is_new=False)
        for step in range(1000):
            writer.write(STAGES[step % 5], step, step * 2, step * 3)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    reader = Now(tmp_path / "now", is_new=False)
    assert reader.read() == Moment(STAGES[4], 999, 1998, 2997)
    reader.close()


def test_a_new_one_begins_at_the_start(tmp_path):
    (tmp_path / "now").write_bytes(b"\xff" * 100)
    now = Now(tmp_path / "now", is_new=True)
    assert now.read() == (START, 0, 0, 0)
    now.close()
