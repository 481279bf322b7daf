"""A plan adds up what is there together, and what the allocator keeps of what is not."""

from engine.planning.components import (
    CHECKPOINT,
    DEVICE,
    DISK,
    EVALUATION,
    HOST,
    START,
    STEP,
    TRAINING,
    Component,
    passing,
    plan_of,
)

MIB = 2**20


def plan(*parts: Component, ranks: int = 1, here: int = 1, device_is_host: bool = True, libraries: int = 0):
    return plan_of(parts, libraries_bytes=libraries, ranks=ranks, ranks_here=here, device_is_host=device_is_host)


ALWAYS = Component(HOST, "window", 10 * MIB)
SMALL = passing(DEVICE, "activations", 30 * MIB, TRAINING, piece=MIB)
LARGE = passing(HOST, "features", 100 * MIB, (EVALUATION,), piece=100 * MIB)


def test_small_pieces_that_a_step_frees_stay_resident_in_an_evaluation_and_large_ones_do_not() -> None:
    found = plan(ALWAYS, SMALL, LARGE, libraries=5 * MIB)
    assert found.process_bytes(START) == 15 * MIB
    assert found.process_bytes(STEP) == found.process_bytes(CHECKPOINT) == 45 * MIB
    assert found.process_bytes(EVALUATION) == (15 + 30 + 100) * MIB == found.process_peak()
    assert [found.kept_bytes(phase) for phase in (START, STEP, EVALUATION)] == [0, 0, 30 * MIB]


def test_the_memory_of_a_gpu_is_not_the_hosts() -> None:
    found = plan(ALWAYS, SMALL, LARGE, device_is_host=False)
    assert found.process_bytes(STEP) == 10 * MIB and found.device_peak() == 30 * MIB
    assert found.tiers()[DEVICE] == {"activations": 30 * MIB}


def test_ranks_of_one_machine_share_its_host_and_workers_count_there_but_not_in_the_process() -> None:
    workers = Component(HOST, "workers", 7 * MIB, beside=True)
    found = plan(ALWAYS, workers, ranks=4, here=2)
    assert found.process_peak() == 10 * MIB
    assert found.host_peak() == 17 * MIB
    assert found.machine_peak() == 34 * MIB


def test_plan_json_has_counts_of_bytes_alone_and_tells_what_is_there_always_apart() -> None:
    found = plan(ALWAYS, SMALL, LARGE, Component(DISK, "rows", 3)).tiers()
    assert found[HOST] == {"window": 10 * MIB} and found[DISK] == {"rows": 3}
    assert found["host, in an evaluation"] == {"features": 100 * MIB}
    assert all(type(size) is int for items in found.values() for size in items.values())


def test_parts_of_one_name_are_added_up_and_empty_ones_left_out() -> None:
    found = plan(ALWAYS, ALWAYS, Component(HOST, "nothing", 0))
    assert [one.bytes for one in found.components] == [20 * MIB]
