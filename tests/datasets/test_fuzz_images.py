"""Damaged images end in pixels or in a reason, whatever the decoders do; and a decoder that does otherwise is found."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.decode import decode_by_pillow
from tests.datasets import fuzz_images
from tests.datasets.fuzz_images import BAD, GOOD, damaged, originals, run
from tests.datasets.workers.made_batches import soon


def test_damaged_images_are_decoded_or_refused_and_none_is_lost() -> None:
    outcomes = run(0, 0, 512)
    assert [one.number for one in outcomes] == list(range(512))
    assert not [one for one in outcomes if one.result in BAD]
    seen = Counter((one.kind.split()[0], one.result) for one in outcomes)
    assert all(seen[kind, result] for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff") for result in GOOD), seen


def test_the_same_damage_is_the_same_pixels_in_another_process() -> None:
    """Memory that nobody wrote into would be another image each time."""
    assert [one[:5] for one in run(3, 20, 148)] == [one[:5] for one in run(3, 0, 148)[20:]]


def test_all_originals_are_whole_and_damage_is_a_function_of_seed_and_number() -> None:
    whole = originals()
    assert all(decode_by_pillow(content).shape[2] == 3 for content in whole.values())
    again = originals()
    for number in range(0, 256, 5):
        assert damaged(1, number, whole) == damaged(1, number, again)
    assert sum(damaged(1, number, whole)[2] != damaged(2, number, whole)[2] for number in range(256)) > 250
    assert all(content not in whole.values() for _, _, content in (damaged(1, number, whole) for number in range(96)))


FAULTY = """
import os, signal, sys
import numpy as np
from tests.datasets import fuzz_images

real, made = fuzz_images.damaged, []

def damaged(seed, number, whole):
    made.append(number)
    return real(seed, number, whole)

def decode(content):
    number = made[-1]
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    while number == 4:
        pass
    if number == 5:
        raise KeyError("oh")
    if number == 6:
        raise MemoryError
    if number == 7:
        return np.zeros((4, 4), np.uint8)
    if number == 8:
        raise fuzz_images.Undecodable("two\\nlines")
    if number == 9:
        return np.zeros((1, 1, 3), np.uint8)
    if number == 10:
        os._exit(3)
    raise fuzz_images.Undecodable("no")

fuzz_images.CPU_SECONDS = 0.5
fuzz_images.damaged, fuzz_images.decode = damaged, decode
sys.exit(fuzz_images.main(sys.argv[1:]))
"""


def test_a_decoder_that_crashes_hangs_or_lies_is_found_and_the_rest_is_decoded_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(f"import sys\nsys.path.insert(0, '.')\n{FAULTY}")
    outcomes = run(0, 0, 12, (sys.executable, str(tmp_path / "faulty.py")))
    assert [one.number for one in outcomes] == list(range(12))
    found = {one.number: (one.result, one.told) for one in outcomes if one.result != "refused"}
    assert found == {
        2: ("crash", "SIGSEGV"),
        4: ("hang", "SIGPROF"),
        5: ("wrong", "KeyError: 'oh'"),
        6: ("memory", ""),
        7: ("wrong", found[7][1]),
        8: ("wrong", repr("two\nlines")),
        9: ("wrong", "other pixels than Pillow's"),
        10: ("crash", "exit 3"),
    }
    assert found[7][1].startswith("not uint8")


def test_a_worker_that_sleeps_for_ever_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "asleep.py"
    script.write_text(
        "import json, sys, time\n"
        "first, stop = int(sys.argv[3]), int(sys.argv[4])\n"
        "with open(sys.argv[5], 'a') as file:\n"
        "    for number in range(first, stop):\n"
        "        print(json.dumps([number, 'png', 'cut']), file=file, flush=True)\n"
        "        time.sleep(3600 if number == 1 else 0)\n"
        "        print(json.dumps([number, 'png', 'cut', 'refused', 'no']), file=file, flush=True)\n"
    )

    class TimedFromImage1(subprocess.Popen):
        """Not from its start: before a worker has said which image it begins, its end is another result."""

        def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[None, None]:
            lines = Path(self.args[-1])
            begun = json.dumps([1, "png", "cut"]) + "\n"
            assert soon(lambda: self.poll() is not None or (lines.exists() and lines.read_text().endswith(begun)))
            return super().communicate(input, timeout)

    monkeypatch.setattr(subprocess, "Popen", TimedFromImage1)
    monkeypatch.setattr(fuzz_images, "WALL_SECONDS", 0.5)
    outcomes = run(0, 0, 3, (sys.executable, str(script)))
    assert [(one.number, one.result, one.told) for one in outcomes] == [
        (0, "refused", "no"),
        (1, "hang", "no end"),
        (2, "refused", "no"),
    ]


def test_a_worker_that_cannot_begin_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="the worker that began at image 0 ended with exit 1 between two images"):
        run(0, 0, 3, ("false",))


def test_pixels_are_compared_with_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    content = originals()["jpeg"]
    assert fuzz_images.outcome_of(content)[0] == "decoded"
    monkeypatch.setattr(fuzz_images, "decode", lambda content: np.asarray(Image.new("RGB", (133, 97))))
    assert fuzz_images.outcome_of(content) == ("wrong", "other pixels than Pillow's")
