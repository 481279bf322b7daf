"""The bench of the two ways to share rows out measures what it says: one whole run on tiny sizes, claim by claim."""

import re

import pytest

from tests import bench_ranks

SMALL, LARGE, SAMPLES, DIM = 1024, 16384, 128, 128
ROWS_MIB = 2 * 4 * LARGE * DIM / 2**20  # weights and momentum of all ranks


@pytest.fixture(scope="module")
def tables():
    """Of a whole run at R = 2: each table's title, and of its lines first cell -> the others as numbers."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(bench_ranks, "print", printed.append, raising=False)
        words = (
            f"--rows {SMALL} {LARGE} --samples {SAMPLES} --dim {DIM} --lanes 4 --steps 6 --bytes-ranks --memory-ranks 1"
        )
        bench_ranks.main(words.split())
    for paragraph in "\n".join(printed).split("\n\n"):
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in paragraph.splitlines() if "|" in line
        ]
        if lines:
            found[lines[0][0]] = {cells[0]: [numbers(cell) for cell in cells[1:]] for cells in lines[2:]}
    return found


def numbers(cell):
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d,.]*\d", cell)]


def firsts(cells):
    return [cell[0] for cell in cells]


@pytest.fixture
def sent(tables):
    return {name: firsts(cells) for name, cells in tables["bytes a step and rank, R = 2"].items()}


def test_the_bytes_of_lanes_do_not_depend_on_the_rows(sent):
    for name in [name for name in sent if name.startswith("lanes: ")]:
        assert sent[name][0] == sent[name][1], name
    assert sent["lanes: features"] == sent["lanes: features' gradient"] == [4 * SAMPLES * DIM / 2] * 2
    assert 1 < sent["**lanes**"][0] / sent["lanes, predicted"][0] < 1.05
    small, large = sent["lanes, by TCP (gloo)"]
    assert large == pytest.approx(small, rel=0.02)


def test_the_bytes_of_zero3_are_in_proportion_to_the_rows(sent):
    for way in ("**zero3**", "zero3, by TCP (gloo)"):
        assert sent[way][1] / sent[way][0] == pytest.approx(LARGE / SMALL, rel=0.03), way
    rows = [4 * active * DIM / 2 for active in (SMALL, LARGE)]
    assert sent["zero3: all_gather_into_tensor"] == sent["zero3: reduce_scatter_tensor"] == rows
    assert sent["**zero3**"] == pytest.approx(sent["zero3, predicted"], rel=0.01)


@pytest.mark.parametrize("way", bench_ranks.WAYS)
def test_what_was_counted_went_over_the_wire_and_not_more_than_twice_that(sent, way):
    """Libraries are free to reduce and scatter as an all-reduce, which is twice as much; gloo does."""
    for counted, went in zip(sent[f"**{way}**"], sent[f"{way}, by TCP (gloo)"], strict=True):
        assert counted <= went < 2 * counted + 10_000


def test_the_total_is_the_sum_of_what_was_sent_and_the_ratio_that_of_the_totals(sent):
    for way in bench_ranks.WAYS:
        parts = [cells for name, cells in sent.items() if name.startswith(f"{way}: ")]
        assert sent[f"**{way}**"] == pytest.approx([sum(column) for column in zip(*parts, strict=True)], abs=5)
    ratios = [zero3 / lanes for lanes, zero3 in zip(sent["**lanes**"], sent["**zero3**"], strict=True)]
    assert sent["zero3 / lanes"] == pytest.approx(ratios, abs=0.06)


def test_every_number_of_rows_has_a_line_of_times(tables):
    for rows in (SMALL, LARGE):
        lanes, zero3, ratio, *_, lanes_stages, zero3_stages = tables["K"][f"{rows:,}"]
        for median, low, high in (lanes, zero3, ratio):
            assert 0 < low <= median <= high
        # Medians of parts may add up to more than the median of the whole, on a busy machine to much more; but a part is in the whole.
        for longest, stages in ((lanes[2], lanes_stages), (zero3[2], zero3_stages)):
            assert len(stages) == 3 and all(0 < stage <= longest for stage in stages)


def test_the_ratio_is_that_of_neighbouring_turns_and_quartiles_lie_within_them():
    """The machine is ten times slower in the second turn; zero3 takes twice and three times as long as lanes."""

    def turn(seconds):
        return [{"all": seconds, "cpu": seconds, "loss": 1.0, "back": 1.0} | dict.fromkeys(bench_ranks.STAGES, seconds)]

    told = {"turns": {"lanes": [turn(0.001), turn(0.01)], "zero3": [turn(0.002), turn(0.03)]}}
    table = bench_ranks.time_table([bench_ranks.case_of(SMALL, SAMPLES, DIM, 4)], [[told]])
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells[1:4] == ["5.5 (3.2 - 7.8)", "16.0 (9.0 - 23.0)", "2.50 (2.25 - 2.75)"]


def test_ranks_share_the_memory_of_rows(tables):
    for ranks in (1, 2):
        tensors, resident = firsts(tables["ranks"][str(ranks)])
        assert tensors == ROWS_MIB / ranks
        assert resident == pytest.approx(tensors, abs=3)


def test_a_step_of_zero3_holds_all_rows_and_their_gradient_and_one_of_lanes_does_not(tables):
    lines = tables[f"MiB of a rank, R = 2, K = {LARGE:,}"]
    for way in bench_ranks.WAYS:
        tensors, made, between, most, planned = firsts(lines[way])
        assert tensors == ROWS_MIB / 2 <= planned
        assert tensors - 3 < made and tensors - 3 < between <= most + 1
        beyond = most - tensors
        assert beyond >= ROWS_MIB if way == "zero3" else beyond < ROWS_MIB / 2


@pytest.mark.parametrize(
    ("op", "size", "sent"),
    [
        ("all_gather_into_tensor", 100, 300),
        ("reduce_scatter_tensor", 400, 300),
        ("all_reduce", 400, 600),
        ("broadcast", 400, 300),
        ("barrier", 0, 0),
    ],
)
def test_the_ring_convention_for_four_ranks(op, size, sent):
    assert bench_ranks.ring_bytes(op, size, 4) == sent


def test_an_op_that_the_convention_does_not_know_is_not_left_out():
    with pytest.raises(KeyError, match="all_to_all"):
        bench_ranks.ring_bytes("all_to_all", 100, 2)


def test_ways_that_do_not_do_the_same_are_not_compared():
    step = {"loss": 5.0, "back": 3}
    bench_ranks.check_same([step], [{**step, "loss": 5.0001}])
    for other in ({"loss": 5.01}, {"back": 2}):
        with pytest.raises(AssertionError):
            bench_ranks.check_same([step], [{**step, **other}])


@pytest.mark.parametrize("words", ["--ranks 1", "--bytes-ranks 1", "--steps 3"])
def test_what_cannot_be_measured_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        bench_ranks.main(words.split())
    assert "must be at least" in capsys.readouterr().err
