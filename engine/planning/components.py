"""The parts of which the memory of a run is made, and a plan as their list. A measurement (measured.py) has the same names.

A part is on a tier, has bytes, and is there in some phases of a run:

    start        network and rows are made; an earlier checkpoint is read
    step         a step of training
    checkpoint   a step while the checkpoint before it is still written
    evaluation   the network is evaluated; no step is made meanwhile

The largest sum over the parts of a phase is what a process takes at most. On a CPU the device is host memory too, so both tiers count;
on a GPU each has its own peak. What libraries take is measured and not computed (resident.py).

What a process frees does not all go back to the system: glibc keeps what it gave in pieces below 32 MiB, and uses it again for such
pieces only. So the small pieces of the phase that has most of them stay resident in every later phase; they are a line of their own,
"freed, and kept by the allocator". Without it the plan of ResNet-18 on two ranks under ZeRO-3 was a fifth too low.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# glibc's largest threshold: pieces of this size and more go back to the system when they are freed.
SMALL_BYTES = 32 * 2**20

DEVICE, HOST, DISK = "device", "host", "disk"
START, STEP, CHECKPOINT, EVALUATION = "start", "step", "checkpoint", "evaluation"
PHASES = (START, STEP, CHECKPOINT, EVALUATION)
TRAINING = (STEP, CHECKPOINT)
WORDS = {
    START: "at the start",
    STEP: "in a step",
    CHECKPOINT: "in a step while a checkpoint is written",
    EVALUATION: "in an evaluation",
}

# On the device.
TRUNK_WEIGHTS = "trunk: weights"
TRUNK_GRADIENTS = "trunk: gradients"
TRUNK_OPTIMIZER = "trunk: optimizer state"
TRUNK_BUCKETS = "trunk: bucket of gradients that travel"
TRUNK_GATHERED = "trunk: gathered weights"
ACTIVATIONS = "trunk: activations"
ACTIVE_ROWS = "active rows: weights"
ROWS_MOMENTUM = "active rows: momentum"
ROWS_GRADIENT = "active rows: written gradient"
ROWS_GATHERED = "active rows: gathered, with their gradient"
SOFTMAX = "softmax: work space"
ONLINE_PROBE = "online probe: weights and momentum"
EVALUATED = "evaluation: images and what the network makes of them"
GATHERED_TO_EVALUATE = "evaluation: gathered weights, and the network that takes them"
# On the host.
LIBRARIES = "libraries"
KEPT_BY_ALLOCATOR = "freed, and kept by the allocator"
NETWORK_COPY = "network as it started"
SLOTS = "active rows: position, stamp, queue of each slot"
WINDOW = "host window, blocks read ahead and behind"
WAITING = "blocks waiting to be written (at most)"
STORE_IN_MEMORY = "store of visited rows (memory)"
BLOCK_MAP = "block map and generations"
LOG = "loss and learning rate of every step"
ORDER = "order of a window"
SNAPSHOT = "checkpoint: snapshot and files being made"
BATCHES = "loader: batches ready"
DECODING = "loader: images while they are decoded"
KEPT = "loader: decoded images that are kept"
WORKERS = "loader: worker processes"
FEATURES = "evaluation: features of gallery and queries"
FEATURES_BEFORE = "evaluation: features of the one before"
INDEX = "evaluation: index (faiss), neighbours and votes"
OTHER_STAGES = "evaluation: raw pixels or singular values, beyond the index"
# On the disk.
STORED_ROWS = "visited rows"
OLDER_ROWS = "their older versions, and those since the last checkpoint"
CHECKPOINT_FILES = "files of checkpoints"


@dataclass(frozen=True)
class Component:
    """
    bytes    of one rank; on the disk of all ranks
    phases   in which it is there
    beside   True: host memory outside of the run's own process, in its workers or between the processes
    how      how it is known where it is an estimate, for people
    small    the most of it that is in pieces below SMALL_BYTES at a time; large: the same of other pieces, None: all that is not small
    """

    tier: str
    name: str
    bytes: int
    phases: tuple[str, ...] = PHASES
    beside: bool = False
    how: str = ""
    small: int = 0
    large: int | None = None

    @property
    def of_passing_phases(self) -> bool:
        return self.phases != PHASES and not self.beside


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    components       without the libraries; those of 0 bytes left out
    libraries_bytes  resident memory of the process before anything was made; 0 where it was not measured
    ranks, ranks_here   in all; on one machine
    device_is_host   the device is a CPU
    """

    components: tuple[Component, ...]
    libraries_bytes: int
    ranks: int
    ranks_here: int
    device_is_host: bool

    def bytes_in(self, phase: str, tier: str, beside: bool = True) -> int:
        """Of a rank, on a tier in a phase. beside: with what is outside of the run's own process."""
        return sum(
            one.bytes
            for one in self.components
            if one.tier == tier and phase in one.phases and (beside or not one.beside)
        )

    def process_bytes(self, phase: str) -> int:
        """What the process of a rank takes of the host in a phase, libraries and what the allocator keeps included."""
        always = sum(one.bytes for one in self._resident() if phase in one.phases and not one.of_passing_phases)
        large = sum(
            one.bytes - one.small if one.large is None else one.large
            for one in self._resident()
            if phase in one.phases and one.of_passing_phases
        )
        return self.libraries_bytes + always + large + self._small_in(phase) + self.kept_bytes(phase)

    def kept_bytes(self, phase: str) -> int:
        """What the allocator keeps of small pieces that other phases freed; before the first step there are none."""
        return 0 if phase == START else max(map(self._small_in, PHASES)) - self._small_in(phase)

    def _resident(self) -> list[Component]:
        """Components in the memory of the process."""
        tiers = (DEVICE, HOST) if self.device_is_host else (HOST,)
        return [one for one in self.components if one.tier in tiers and not one.beside]

    def _small_in(self, phase: str) -> int:
        return sum(one.small for one in self._resident() if phase in one.phases and one.of_passing_phases)

    def process_peak(self) -> int:
        return max(map(self.process_bytes, PHASES))

    def host_peak(self) -> int:
        """What a rank takes of the host, its worker processes included."""
        beside = {phase: self.bytes_in(phase, HOST) - self.bytes_in(phase, HOST, beside=False) for phase in PHASES}
        return max(self.process_bytes(phase) + beside[phase] for phase in PHASES)

    def machine_peak(self) -> int:
        """What all ranks of one machine take of its host."""
        return self.ranks_here * self.host_peak()

    def device_peak(self) -> int:
        return max(self.bytes_in(phase, DEVICE) for phase in PHASES)

    def disk_bytes(self) -> int:
        return self.bytes_in(STEP, DISK)

    def tiers(self) -> dict[str, dict[str, int]]:
        """What plan.json keeps: bytes by tier and name. What is there in some phases only has a tier of its own, "host, in a step"; but a
        GPU's memory is one tier, as its allocator tells the largest sum. "process": libraries, and all of each phase.
        """
        tiers: dict[str, dict[str, int]] = {DEVICE: {}, HOST: {}, DISK: {}}
        for one in self.components:
            always = one.phases == PHASES or one.tier == DISK or (one.tier == DEVICE and not self.device_is_host)
            tier = one.tier if always else f"{one.tier}, {' or '.join(WORDS[phase] for phase in one.phases)}"
            tiers.setdefault(tier, {})[one.name + one.how] = one.bytes
        phases = {WORDS[phase]: self.process_bytes(phase) for phase in PHASES}
        kept = max(map(self.kept_bytes, PHASES))
        return {**tiers, "process": {LIBRARIES: self.libraries_bytes, KEPT_BY_ALLOCATOR: kept, **phases}}

    def of(self, name: str) -> int:
        """Bytes of the component of this name; 0 where there is none."""
        return sum(one.bytes for one in self.components if one.name == name)


def plan_of(parts: Iterable[Component], **facts: Any) -> Plan:
    """A plan of components, of which those of the same name and tier are added up."""
    merged: dict[tuple[str, str], Component] = {}
    for one in parts:
        key = one.tier, one.name
        if key in merged:
            assert merged[key].phases == one.phases and merged[key].beside == one.beside, one
            more = merged[key]
            one = replace(one, bytes=one.bytes + more.bytes, small=one.small + more.small, how=one.how or more.how)
        if one.bytes:
            merged[key] = one
    return Plan(tuple(merged.values()), **facts)


def extra_components(tiers: Mapping[str, Mapping[str, int]]) -> list[Component]:
    """Components of what a method plans beyond the others, by tier and item."""
    return [Component(tier, name, count) for tier, items in tiers.items() for name, count in items.items()]


def passing(
    tier: str, name: str, count: int, phases: tuple[str, ...], piece: int | None = None, how: str = ""
) -> Component:
    """A component of some phases. piece: bytes of its largest piece; None: small ones."""
    small = count if piece is None or piece < SMALL_BYTES else 0
    return Component(tier, name, count, phases, how=how, small=small)
