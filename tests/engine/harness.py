"""The engine and the oracle side by side on given features: what every exactness test runs."""

import collections.abc
import itertools
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from datasets.batch import Batch
from datasets.schedule import Schedule
from engine.methods.instdisc import InstDisc
from engine.methods.lane_softmax import LaneSoftmax
from engine.methods.pic import Pic
from engine.methods.row_gradients import row_gradient
from engine.methods.stages import Stages
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows, Start
from engine.rows.folding import Folding
from engine.rows.host_tier import HostTier
from engine.rows.implementations import implementations, names
from engine.rows.initial_rows import initial_rows
from engine.rows.row_table import RowTable
from engine.rows.snapshots import RowReader
from engine.rows.store import MemoryStore
from engine.rows.transitions import TransitionLog, still_log
from engine.training.learning_rate import learning_rate
from engine.training.step import Dealing, train_step
from tests.datasets.schedule_inverse import positions_of
from tests.oracle import DensePIC

ALONE = Ranks(0, 1, torch.device("cpu"), 60.0)


@lru_cache(maxsize=2**12)
def drawn(dim, *words):
    """Normal numbers [dim] in float64: a function of the words."""
    generator = torch.Generator().manual_seed(hash(words) % 2**31)
    return torch.randn(dim, generator=generator, dtype=torch.float64)


class RememberingSchedule(Schedule):
    """Computes an answer once: tests ask the same schedule for the same steps hundreds of times. What it remembers has a bound."""

    @lru_cache(maxsize=256)  # noqa: B019 (the last answers of all schedules)
    def _positions(self, step):
        return super().positions(step)

    def positions(self, step):
        return self._positions(step).copy()

    @lru_cache(maxsize=256)  # noqa: B019
    def _window_stripes(self, window):
        return super().window_stripes(window)

    def window_stripes(self, window):
        return self._window_stripes(window).copy()

    @lru_cache(maxsize=256)  # noqa: B019
    def _window_blocks(self, window):
        return super().window_blocks(window)

    def window_blocks(self, window):
        return self._window_blocks(window).copy()

    @lru_cache(maxsize=256)  # noqa: B019
    def _instances(self, positions, shape):
        return super().instances(np.frombuffer(positions, dtype=np.int64).reshape(shape))

    def instances(self, positions_B):
        return self._instances(np.asarray(positions_B, dtype=np.int64).tobytes(), np.shape(positions_B)).copy()


remembering_schedule = cache(RememberingSchedule)


class GivenFeatures:
    """A trunk whose features are made up for each step; it keeps the gradients it is sent."""

    def __init__(self, dtype, views, dim, seed=0):
        self.dtype, self.views, self.dim, self.seed = dtype, views, dim, seed
        self.step, self.skip = 0, False
        self.dz = []

    def features(self, ids):
        """z [V, len(ids), D] of unit length in float64: a function of (seed, step, instance, view)."""
        z = torch.zeros(self.views, len(ids), self.dim, dtype=torch.float64)
        for view, (place, i) in itertools.product(range(self.views), enumerate(ids)):
            always = drawn(self.dim, self.seed, int(i), view)
            z[view, place] = always + 0.5 * drawn(self.dim, self.seed, self.step, int(i), view)
        return torch.nn.functional.normalize(z, dim=2)

    def forward(self, views):
        # The "images" carry nothing but the instance's number.
        ids = views[0][:, 0, 0, 0].to(torch.int64).tolist()
        z = self.features(ids).reshape(-1, self.dim).to(self.dtype)
        if self.skip:
            z = z * float("nan")
        return z.requires_grad_()

    def backward(self, z_XD, dz_XD):
        self.dz.append(dz_XD)

    def update(self, lr):
        return True

    def discard(self):
        pass


@dataclass
class Case:
    """One configuration; the defaults are ragged everywhere: N is no multiple of a stripe, passes are no multiple of a window."""

    size: int = 200
    active: int = 64
    window: int = 96
    stride: int = 48
    batch: int = 8
    block: int = 6
    lanes: int = 4
    dim: int = 8
    views: int = 1
    micro_batches: int = 1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    nesterov: bool = False
    temperature: float = 0.2
    decoupled: bool = False
    lr: float = 0.5
    passes: float = 3.3
    seed: int = 3
    feature_init: bool = False
    norm_floor: float = 0.0
    rows_grad: tuple = ()
    skips: collections.abc.Collection = ()  # no set among a test's parameters: the order in which one is printed may change
    reshuffle: bool = True
    dtype: type = np.float64
    fold: bool = False
    bfloat16: bool = False
    readers: int = 0
    read_ahead: int = 1
    kernels: str = "auto"
    bank_momentum: float | None = None  # of InstDisc; None: the method is PIC

    @property
    def start_norm(self):
        return 0.3 if self.bank_momentum is None else 1.0

    @property
    def schedule(self):
        return remembering_schedule(
            self.seed, self.size, self.window, self.stride, self.batch, self.block, self.lanes, self.reshuffle
        )

    @property
    def steps(self):
        return int(self.passes * self.schedule.steps_per_pass)

    def eta(self, step):
        return learning_rate(
            step, total=self.steps, warmup=self.steps // 10, highest=self.lr, lowest=1e-4, warmup_factor=0.01
        )


# As ragged as the default case, and half as long.
SHORT = {"size": 110, "window": 48, "stride": 24, "active": 32}


def capacities(case, lanes):
    """Slots of each of a rank's lanes."""
    if case.active >= case.size:
        return [case.schedule.lane_size(lane) for lane in lanes.numbers]
    return [case.active // case.lanes] * len(lanes)


def make_engine(
    case, rows_class=ActiveRows, log_class=TransitionLog, store=None, resumes=False, ranks=ALONE, row_storage=None
):
    """Fresh rows for a case, as launch.py makes them; their store is in memory unless one is given.

    resumes: they will be loaded from a checkpoint. row_storage: as in ActiveRows.
    """
    schedule, lanes = case.schedule, Lanes(case.lanes, ranks.rank, ranks.size)
    full = case.active >= case.size
    everything_active = full and not case.feature_init
    places = (case.window + 2 * case.stride) // case.block
    trained = case.bank_momentum is None
    log = log_class(case.momentum, case.weight_decay, case.nesterov) if trained else still_log()
    host = HostTier(
        MemoryStore() if store is None else store,
        block=case.block,
        size=case.size,
        dim=case.dim,
        dtype=case.dtype,
        places=places,
        has_momentum=trained,
        readers=case.readers,
        folding=Folding(log) if case.fold else None,
        rewrite=case.bfloat16,
    )
    rows = rows_class(
        host,
        log,
        lanes=lanes,
        capacities=capacities(case, lanes),
        start=Start(case.seed, case.start_norm, case.feature_init),
        full=everything_active,
        norm_floor=case.norm_floor,
        device=torch.device("cpu"),
        kernels=names(
            implementations(
                torch.device("cpu"),
                {np.float64: torch.float64, np.float32: torch.float32}[case.dtype],
                case.dim,
                case.kernels,
                trained,
            )
        ),
        row_storage=row_storage,
    )
    if everything_active and not resumes:
        host.slide(lanes.chosen(range(-(-case.size // case.block))), step=0)
        rows.fill(schedule.instances)
    return rows


def make_oracle(case):
    """The dense twin, told nothing but the initial rows and which lane an instance belongs to."""
    positions = positions_of(case.schedule, np.arange(case.size))
    return DensePIC(
        torch.from_numpy(initial_rows(case.seed, np.arange(case.size), case.dim, 0.3)),
        [int(p) // case.block % case.lanes for p in positions],
        case.size if case.active >= case.size else case.active // case.lanes,
        momentum=case.momentum,
        weight_decay=case.weight_decay,
        nesterov=case.nesterov,
        temperature=case.temperature,
        all_active=case.active >= case.size and not case.feature_init,
        feature_norm=0.3 if case.feature_init else None,
        norm_floor=case.norm_floor,
        decoupled=case.decoupled,
    )


def make_batch(case, step, lanes=None):
    """The batch of a step, or the part of it that belongs to some lanes."""
    schedule = case.schedule
    positions = schedule.positions(step)
    if lanes is not None:
        positions = positions.reshape(case.lanes, -1)[lanes.numbers].reshape(-1)
    ids = schedule.instances(positions)
    image = torch.from_numpy(ids).to(torch.float64).view(-1, 1, 1, 1)
    return Batch(step, [image] * case.views, positions, ids, ids >= 0)


def lane_softmax(case, rows, ranks=ALONE):
    gradient = row_gradient(rows, ranks, micro_batches=case.micro_batches, clip=0.0)
    return LaneSoftmax(rows, ranks, gradient, temperature=case.temperature, decoupled=case.decoupled)


def method_of(case, rows, ranks=ALONE, softmax=None):
    """The method of the case with these rows; softmax: of PIC."""
    table = RowTable(rows, partitioned=None, lr_scale=1.0, clip=0.0, read_ahead=case.read_ahead)
    if case.bank_momentum is not None:
        settings = {"temperature": case.temperature, "bank_momentum": case.bank_momentum}
        return InstDisc(table, ranks, case.schedule, **settings)
    softmax = softmax or lane_softmax(case, rows, ranks)
    return Pic(table, softmax, ranks, case.schedule, rows_grad_V=list(case.rows_grad) or [True] * case.views)


def engine_step(case, rows, trunk, step, ranks=ALONE, softmax=None):
    schedule = case.schedule
    window = schedule.window_of(step)
    if step % schedule.steps_per_window == 0:
        rows.host.slide(rows.lanes.chosen(schedule.window_blocks(window)), step)
        ahead = [schedule.window_blocks(window + 1 + slides) for slides in range(case.read_ahead)]
        rows.host.read_ahead(rows.lanes.chosen(np.concatenate(ahead)))
    trunk.step, trunk.skip = step, step in case.skips
    return train_step(
        make_batch(case, step, rows.lanes),
        trunk,
        method_of(case, rows, ranks, softmax),
        ranks,
        lr=case.eta(step),
        dealing=Dealing(len(rows.lanes), case.micro_batches, range(case.views)),
        stages=Stages(),
    )


def oracle_step(case, oracle, trunk, step):
    ids = [int(i) if i >= 0 else None for i in make_batch(case, step).ids_G]
    trunk.step = step
    features = trunk.features([-1 if i is None else i for i in ids])
    return oracle.step(ids, features, case.eta(step), rows_grad=case.rows_grad or None, skip=step in case.skips)


def run_both(case, rows_class=ActiveRows, log_class=TransitionLog, compare_dz=False):
    """Train both to the end; returns (engine's rows, oracle, losses of both [steps, 2]). compare_dz: the gradient at z, too."""
    rows, oracle = make_engine(case, rows_class, log_class), make_oracle(case)
    trunk = GivenFeatures(torch.float64 if case.dtype is np.float64 else torch.float32, case.views, case.dim, case.seed)
    losses = []
    for step in range(case.steps):
        trunk.dz.clear()
        result = engine_step(case, rows, trunk, step)
        loss, dz_VGD = oracle_step(case, oracle, trunk, step)
        losses.append((result.loss, loss))
        if compare_dz and step not in case.skips:
            filled = make_batch(case, step).filled_G
            assert filled.sum() >= 2  # fewer, and the engine keeps empty places in
            got = trunk.dz[0].reshape(case.views, -1, case.dim)
            torch.testing.assert_close(got, dz_VGD[:, torch.from_numpy(filled)], rtol=1e-9, atol=1e-12)
    return rows, oracle, np.array(losses)


def rows_of_engine(case, rows):
    """(w, u) of all N instances, caught up, float64 [N, D]; 0 where a row is another rank's."""
    reader, schedule = RowReader(rows), case.schedule
    w, u = np.zeros((case.size, case.dim)), np.zeros((case.size, case.dim))
    for block in rows.lanes.chosen(range(-(-case.size // case.block))).tolist():
        positions = np.arange(block * case.block, min((block + 1) * case.block, case.size))
        ids = schedule.instances(positions)
        w[ids], block_u = reader.caught_up(block, schedule.instances)
        u[ids] = 0 if block_u is None else block_u
    return w, u


def errors(case, w, u, true_w, true_u):
    """Per-row errors: |dw|/|w| and |du|/max(|u|, lambda|w|/(1-m), 1e-12|w|) over rows."""
    length_w, length_u = np.linalg.norm(true_w, axis=1), np.linalg.norm(true_u, axis=1)
    scale_u = np.maximum.reduce([length_u, case.weight_decay * length_w / (1 - case.momentum), 1e-12 * length_w])
    error_w = np.linalg.norm(w - true_w, axis=1) / length_w
    error_u = np.linalg.norm(u - true_u, axis=1) / scale_u
    return error_w, error_u


def dense_float32(case):
    """The oracle's own procedure in float32: the yardstick for a float32 engine."""
    oracle = make_oracle(case)
    oracle.rows.data = oracle.rows.data.float()
    oracle.momentum = torch.zeros_like(oracle.rows.data)
    oracle.sgd.state[oracle.rows]["momentum_buffer"] = oracle.momentum
    trunk = GivenFeatures(torch.float32, case.views, case.dim, case.seed)
    double = torch.Tensor.double
    torch.Tensor.double = torch.Tensor.float
    try:
        for step in range(case.steps):
            oracle_step(case, oracle, trunk, step)
    finally:
        torch.Tensor.double = double
    return oracle.rows.detach().numpy().astype(np.float64), oracle.momentum.numpy().astype(np.float64)


def worst(case, w, u, oracle):
    """The largest error of any row."""
    error_w, error_u = errors(case, w, u, oracle.rows.detach().numpy(), oracle.momentum.numpy())
    # torch keeps no momentum where it is 0; nobody reads it then.
    return max(error_w.max(), error_u.max() if case.momentum else 0.0)
