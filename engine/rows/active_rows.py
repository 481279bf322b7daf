"""The active rows: the K most recently visited rows of the classifier, on the device, each lane its own K/L slots.

A rank has those of its lanes; everything here is about them alone.

`admit` makes a step's visited rows active. In order:

    1. rows of the batch that are active already are refreshed (their visit is now the latest of their lane)
    2. the others take free slots, or the slots of the lane's least recently visited rows, which are evicted to the host tier with
       last_step = step
    3. each newcomer is caught up: the steps it missed, last_step .. step - 1, are applied at once (engine/rows/transitions.py), on its
       way from the host tier's arrays into its slot (kernels/catch_up)

`update` is one step of torch.optim.SGD for all K rows (kernels/row_update). A row in a slot is therefore always where dense SGD
would have put it at the start of the step, and a row outside is there after its catch-up.

Catching up in one go or in two differs in the last bit, so it happens at admission only; engine/rows/snapshots.py reads a copy for
exports and leaves everything as it is.

Rows of a method that does not train them by SGD have no momentum (engine/methods/instdisc.py). Nothing moves such a row while it is away,
so its catch-up is a copy, and `update` is not for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.ranks.lanes import Lanes
from engine.rows.host_tier import NOT_ACTIVE, HostTier
from engine.rows.initial_rows import initial_rows
from engine.rows.recency import VisitQueue
from engine.rows.store import NEVER_VISITED
from engine.rows.transitions import TransitionLog, catch_up
from kernels.catch_up import catch_up_
from kernels.row_update import row_update_

EMPTY = -1


@dataclass(frozen=True)
class Start:
    """How a row starts: `feature` False: uniform numbers keyed by (seed, instance); True: the feature of its first view."""

    seed: int
    norm: float
    feature: bool


class ActiveRows:
    """Rows w and their momentum u in slots, [K, D] each; u is None where the host tier has no momentum.

    host          the tier that rows come from and are evicted to
    log           the transitions applied so far; its length is the step
    lanes         those of this rank
    capacities    slots of each of them (K/L each; a lane's number of rows for the full PIC)
    start         how a row starts
    full          every row is active from step 0 on (K >= N, and rows that start at random)
    norm_floor    an admitted row shorter than this is rescaled to it, with its momentum; 0: never
    kernels       the backend of each op that works on these rows (engine/rows/implementations.py): here row_update and catch_up, and
                  sampled_softmax for the step
    row_storage   (w, u) to work in, of at least [sum of capacities, D], where another object keeps them; None: they are made here
    """

    def __init__(
        self,
        host: HostTier,
        log: TransitionLog,
        *,
        lanes: Lanes,
        capacities: list[int],
        start: Start,
        full: bool,
        norm_floor: float,
        device: torch.device,
        kernels: dict[str, str],
        row_storage: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.kernels = kernels
        self.host, self.log, self.lanes, self.start, self.norm_floor = host, log, lanes, start, norm_floor
        self.full = full
        dtype = torch.float64 if host.weight.dtype == np.float64 else torch.float32
        dim = host.weight.shape[1]
        self.capacities = capacities
        self.first_slots = np.concatenate([[0], np.cumsum(capacities)])
        self.size = int(self.first_slots[-1])
        self.u_KD: torch.Tensor | None = None
        if row_storage:
            assert host.momentum is not None
            self.w_KD, self.u_KD = (rows[: self.size] for rows in row_storage)
            assert self.w_KD.shape == (self.size, dim) and self.w_KD.dtype == dtype, (self.w_KD.shape, self.w_KD.dtype)
        else:
            self.w_KD = torch.zeros(self.size, dim, dtype=dtype, device=device)
            if host.momentum is not None:
                self.u_KD = torch.zeros_like(self.w_KD)
        self.position_K = np.full(self.size, EMPTY, dtype=np.int64)
        self.stamp_K = np.full(self.size, EMPTY, dtype=np.int64)
        self.used = [0] * len(lanes)  # slots of a lane are taken from the left
        self.visited = 0  # distinct instances visited
        self.readmitted = 0  # rows that were evicted and admitted again
        self._queues = self._make_queues()

    def fill(self, instances_of_positions: Callable[[np.ndarray], np.ndarray]) -> None:
        """Make all N rows active before step 0 (full PIC). `instances_of_positions` is the schedule's map."""
        assert self.full and self.log.steps == 0
        for block in self.lanes.chosen(range(-(-self.host.size // self.host.block))).tolist():
            positions = np.arange(block * self.host.block, min((block + 1) * self.host.block, self.host.size))
            lane = self.lanes.local(block)
            first = int(self.first_slots[lane]) + self.used[lane]
            slots = np.arange(first, first + len(positions))
            rows = initial_rows(self.start.seed, instances_of_positions(positions), self.w_KD.shape[1], self.start.norm)
            self.w_KD[slots] = torch.from_numpy(rows).to(self.w_KD)
            self.position_K[slots] = positions
            self.host.activate(self.host.indices(positions), slots)
            self.used[lane] += len(positions)

    def admit(
        self, step: int, positions_G: np.ndarray, ids_G: np.ndarray, first_view_GD: torch.Tensor | None
    ) -> np.ndarray:
        """Make the batch's rows active; returns the slot of each place, int64 [G/R], -1 where the place is empty.

        positions_G, ids_G   as in Batch, grouped by lane; positions within a step are distinct
        first_view_GD        normalised features of the first view, for rows that start there; None where they start at random
        """
        assert step == self.log.steps, (step, self.log.steps)
        filled_G = positions_G >= 0
        slots_G = np.full(len(positions_G), EMPTY, dtype=np.int64)
        indices_G = np.full(len(positions_G), EMPTY, dtype=np.int64)
        indices_G[filled_G] = indices = self.host.indices(positions_G[filled_G])
        slots_G[filled_G] = self.host.slot[indices]
        if first_view_GD is not None:
            unborn_G = np.zeros_like(filled_G)
            unborn_G[filled_G] = (self.host.slot[indices] == NOT_ACTIVE) & (
                self.host.last_step[indices] == NEVER_VISITED
            )
            if unborn_G.any():
                # A row cannot start at a feature that is not finite; its place stays empty, and the step will be skipped.
                unborn = np.flatnonzero(unborn_G)
                filled_G[unborn] = torch.isfinite(first_view_GD[torch.from_numpy(unborn)]).all(dim=1).cpu().numpy()
        known_G = slots_G != NOT_ACTIVE

        # A later step's are above all earlier ones, on however many ranks either was made.
        stamps_G = step * len(positions_G) * self.lanes.ranks + np.arange(len(positions_G))
        self.visited += int((self.stamp_K[slots_G[known_G]] == EMPTY).sum())
        self.stamp_K[slots_G[known_G]] = stamps_G[known_G]

        new_G = filled_G & ~known_G
        share = len(positions_G) // len(self.lanes)
        evicted = []
        for lane in range(len(self.lanes)):
            newcomers = lane * share + np.flatnonzero(new_G[lane * share : (lane + 1) * share])
            free = min(len(newcomers), self.capacities[lane] - self.used[lane])
            first = int(self.first_slots[lane]) + self.used[lane]
            slots_G[newcomers[:free]] = np.arange(first, first + free)
            self.used[lane] += free
            if free < len(newcomers):
                oldest = self._queues[lane].pop(len(newcomers) - free)
                slots_G[newcomers[free:]] = oldest
                evicted.append(oldest)
        if evicted:
            self._evict(np.concatenate(evicted), step)
        if new_G.any():
            first_view = None if first_view_GD is None else first_view_GD[torch.from_numpy(np.flatnonzero(new_G))]
            self._place(slots_G[new_G], positions_G[new_G], indices_G[new_G], ids_G[new_G], first_view, step)
            self.stamp_K[slots_G[new_G]] = stamps_G[new_G]
        for lane in range(len(self.lanes)):
            lane_slots = slots_G[lane * share : (lane + 1) * share]
            self._queues[lane].push(lane_slots[lane_slots != EMPTY])
        return slots_G

    def mask(self) -> torch.Tensor | None:
        """bool [K], True where a slot holds a row; None when all do."""
        if sum(self.used) == self.size:
            return None
        return torch.from_numpy(self.position_K != EMPTY).to(self.w_KD.device)

    def update(self, eta: float, drows_KD: torch.Tensor) -> None:
        """One SGD step of all rows: torch.optim.SGD(lr=eta, momentum, weight_decay, nesterov), dampening 0."""
        assert self.u_KD is not None
        row_update_(
            self.w_KD,
            self.u_KD,
            drows_KD,
            eta=eta,
            momentum=float(self.log.momentum),
            weight_decay=float(self.log.weight_decay),
            nesterov=self.log.nesterov,
            backend=self.kernels["row_update"],
        )

    def state(self) -> dict[str, np.ndarray]:
        """A copy of what a resume needs, to the bit: slots as they are, since their order is the order of sums. "u" where rows have one."""
        numbers = {"w": self.w_KD} if self.u_KD is None else {"w": self.w_KD, "u": self.u_KD}
        return {
            **{name: rows_KD.to("cpu", copy=True).numpy() for name, rows_KD in numbers.items()},
            "position": self.position_K.copy(),
            "stamp": self.stamp_K.copy(),
            "counters": np.array([self.visited, self.readmitted]),
        }

    def load(self, state: dict[str, np.ndarray], counts: bool = True) -> None:
        """Take up the rows of these lanes out of `state`, which may have been another rank's: call it for each that has some.

        The host tier holds the blocks of the rows already. A row keeps its place among the slots of its lane, which were taken from
        the left. counts: whether this rank takes up the counters, too; one of those that share a state does.
        """
        if counts:
            self.visited += int(state["counters"][0])
            self.readmitted += int(state["counters"][1])
        occupied = np.flatnonzero(state["position"] != EMPTY)
        blocks = state["position"][occupied] // self.host.block
        for lane, number in enumerate(self.lanes.numbers):
            there = occupied[blocks % self.lanes.count == number]
            first = int(self.first_slots[lane])
            slots = np.arange(first, first + len(there))
            assert len(there) <= self.capacities[lane], (number, len(there))
            if len(there):
                self._put(slots, state["w"][there], None if self.u_KD is None else state["u"][there])
                self.position_K[slots] = state["position"][there]
                self.stamp_K[slots] = state["stamp"][there]
                self.host.activate(self.host.indices(self.position_K[slots]), slots)
                self.used[lane] = len(there)
        self._queues = self._make_queues()

    def caught_up(
        self, w_BD: np.ndarray, u_BD: np.ndarray | None, last_step_B: np.ndarray, new_B: np.ndarray, step: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows as they are at `step`, given how they were after last_step_B transitions. new_B: bool [B], never visited before."""
        if u_BD is None:
            return w_BD, None
        if self.host.folding:
            return self.host.folding.catch_up(w_BD, u_BD, last_step_B, new_B, step)
        return catch_up(w_BD, u_BD, self.log.products(last_step_B, step))

    @property
    def bytes(self) -> int:
        """Rows and momentum on the device."""
        return self.w_KD.nbytes + (0 if self.u_KD is None else self.u_KD.nbytes)

    @property
    def slot_bytes(self) -> int:
        """What the host keeps of the slots."""
        return self.position_K.nbytes + self.stamp_K.nbytes + sum(queue.bytes for queue in self._queues)

    def _evict(self, slots: np.ndarray, step: int) -> None:
        self.host.evict(self.position_K[slots], *self._get(slots), step)

    def _place(
        self,
        slots: np.ndarray,
        positions: np.ndarray,
        indices: np.ndarray,
        ids: np.ndarray,
        first_view: torch.Tensor | None,
        step: int,
    ) -> None:
        """Put caught-up rows into slots. indices: of the positions in the host tier, whose blocks are in the window and stay.

        On a GPU the host tier's arrays are read when the stream comes to it. They change at the next admission or slide, and
        before that the step has waited for its loss.
        """
        last_step = self.host.last_step[indices]
        never = last_step == NEVER_VISITED
        self.visited += int(never.sum())
        self.readmitted += int((~never).sum())
        dim, dtype = self.host.weight.shape[1], self.host.weight.dtype
        newborn = np.empty((0, dim), dtype=dtype)
        if never.any() and self.start.feature:
            assert first_view is not None
            newborn = first_view[torch.from_numpy(never)].cpu().numpy() * self.start.norm
            last_step = np.where(never, step, last_step)  # the row exists from this visit on
        elif never.any():
            newborn = initial_rows(self.start.seed, ids[never], dim, self.start.norm)
            last_step = np.where(never, 0, last_step)
        newborn = newborn.astype(dtype, copy=False)
        if self.host.folding or self.host.momentum is None:
            w, u = self.host.weight[indices], None if self.host.momentum is None else self.host.momentum[indices]
            w[never] = newborn
            self._put(slots, *self.caught_up(w, u, last_step, never, step))
        else:
            products = self.log.products(last_step, step)
            back = ~never
            self._catch_up(slots[back], self.host.weight, self.host.momentum, indices[back], products[back])
            rest = np.zeros_like(newborn)
            if self.start.feature:  # it has missed nothing
                self._put(slots[never], newborn, rest)
            else:
                self._catch_up(slots[never], newborn, rest, np.arange(len(newborn)), products[never])
        if self.norm_floor:
            w, u = self._get(slots)
            assert u is not None, "a length that nothing shrinks needs no floor"
            self._put(slots, *raise_to_floor(w, u, self.norm_floor))
        self.position_K[slots] = positions
        self.host.activate(indices, slots)

    def _catch_up(
        self, slots_M: np.ndarray, w_PD: np.ndarray, u_PD: np.ndarray, indices_M: np.ndarray, product_M22: np.ndarray
    ) -> None:
        """Rows of host arrays, through what they missed, into slots."""
        if len(slots_M):
            slots, w, u, indices, products = (
                torch.from_numpy(part) for part in (slots_M, w_PD, u_PD, indices_M, product_M22)
            )
            assert self.u_KD is not None
            catch_up_(self.w_KD, self.u_KD, slots, w, u, indices, products, backend=self.kernels["catch_up"])

    def _get(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        index = torch.from_numpy(slots).to(self.w_KD.device)
        return self.w_KD[index].cpu().numpy(), None if self.u_KD is None else self.u_KD[index].cpu().numpy()

    def _put(self, slots: np.ndarray, w_BD: np.ndarray, u_BD: np.ndarray | None) -> None:
        index = torch.from_numpy(slots).to(self.w_KD.device)
        self.w_KD[index] = torch.from_numpy(w_BD).to(self.w_KD)
        if self.u_KD is not None:
            assert u_BD is not None
            self.u_KD[index] = torch.from_numpy(u_BD).to(self.u_KD)

    def _make_queues(self) -> list[VisitQueue]:
        bounds = zip(self.first_slots[:-1], self.first_slots[1:], strict=True)
        lanes = [np.arange(a, b) for a, b in bounds]
        # Rows of the full PIC that were not visited yet (stamp -1) never have to leave, so no queue needs them.
        return [VisitQueue(self.stamp_K, s[self.stamp_K[s] != EMPTY], 2 * len(s) + 1) for s in lanes]


def raise_to_floor(w_BD: np.ndarray, u_BD: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Rescale (w, u) of rows shorter than `floor` to that length; the softmax sees directions only, so the loss is the same.

    A row of exact zeros has no direction and stays as it is.
    """
    length_B1 = np.linalg.norm(w_BD.astype(np.float64), axis=1, keepdims=True)
    factor = np.where((length_B1 < floor) & (length_B1 > 0), floor / np.where(length_B1 > 0, length_B1, 1), 1.0)
    return (w_BD * factor).astype(w_BD.dtype), (u_BD * factor).astype(u_BD.dtype)
