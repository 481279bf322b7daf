"""Dense PIC in float64: what the engine must equal. Imports torch and the standard library alone.

All N rows are held and trained by torch.optim.SGD; the softmax of a step runs over the active set only, which this file works
out by itself from the visits: the K/L most recently visited rows of each lane, a batch's visits refreshed before any row
is evicted. Rows outside the active set get a zero gradient and go on moving by momentum and weight decay.
"""

import torch
import torch.nn.functional as F


class DensePIC:
    """rows_ND float64: the rows at step 0. lanes: the lane of each instance. capacity: active rows of a lane (K/L).

    all_active      every row is active from step 0 on (full PIC)
    feature_norm    None, or a row starts at this times the feature of its first view and does not exist before
    norm_floor      a row that becomes active while shorter than this is rescaled to it, with its momentum
    decoupled       the own row is left out of the sum of the softmax
    """

    def __init__(self, rows_ND, lanes, capacity, *, momentum, weight_decay, nesterov, temperature,
                 all_active=False, feature_norm=None, norm_floor=0.0, decoupled=False):  # fmt: skip
        self.rows = torch.nn.Parameter(rows_ND.clone().double())
        self.sgd = torch.optim.SGD([self.rows], lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        self.momentum = torch.zeros_like(self.rows)
        self.sgd.state[self.rows]["momentum_buffer"] = self.momentum
        self.lanes, self.capacity, self.temperature = lanes, capacity, temperature
        self.feature_norm, self.norm_floor, self.decoupled = feature_norm, norm_floor, decoupled
        self.born = torch.full((len(rows_ND),), feature_norm is None)
        self.visits = {lane: [] for lane in set(lanes)}  # instances of a lane, most recent last
        if all_active:
            for instance, lane in enumerate(lanes):
                self.visits[lane].append(instance)

    def active(self):
        """A_t, ascending."""
        return sorted(i for lane, seen in self.visits.items() for i in seen[-self.capacity :])

    def step(self, ids, z_VGD, eta, *, rows_grad=None, skip=False):
        """One step. ids: the instance of each place or None; z_VGD: normalised features. Returns (mean loss, dz)."""
        before = set(self.active())
        z = z_VGD.detach().double().requires_grad_()
        for place, i in enumerate(ids):
            if i is None:
                continue
            seen = self.visits[self.lanes[i]]
            if i in seen:
                seen.remove(i)
            seen.append(i)
            if not self.born[i]:
                self.born[i] = True
                self.rows.data[i] = self.feature_norm * z_VGD[0, place].double()
                self.momentum[i] = 0
        active = self.active()
        for i in set(active) - before:
            length = self.rows.data[i].norm()
            if 0 < length < self.norm_floor:
                self.rows.data[i] *= self.norm_floor / length
                self.momentum[i] *= self.norm_floor / length
        place_of = {i: k for k, i in enumerate(active)}
        filled = [g for g, i in enumerate(ids) if i is not None]
        targets = torch.tensor([place_of[ids[g]] for g in filled])
        self.sgd.zero_grad(set_to_none=False)
        losses = []
        for view, z_GD in enumerate(z):
            rows = self.rows if rows_grad is None or rows_grad[view] else self.rows.detach()
            logits = F.normalize(z_GD[filled]) @ F.normalize(rows[active]).T / self.temperature
            loss = F.cross_entropy(logits, targets, reduction="none")
            if self.decoupled:
                own = logits.gather(1, targets[:, None])
                loss = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1) - own[:, 0]
            losses.append(loss)
        loss = torch.cat(losses).mean()
        loss.backward()
        if self.rows.grad is None:
            self.rows.grad = torch.zeros_like(self.rows)
        if not skip:
            unborn = self.rows.data[~self.born].clone()
            for group in self.sgd.param_groups:
                group["lr"] = eta
            self.sgd.step()
            self.rows.data[~self.born] = unborn
        return loss.item(), z.grad
