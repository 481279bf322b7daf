"""The bank of InstDisc, dense and in one array: what the engine must equal. Imports torch alone; the gradient is autograd's.

Which vectors are active it works out by itself from the visits: those of the last `capacity` instances of each lane.
"""

import torch
import torch.nn.functional as F


class DenseBank:
    """bank_ND: the vectors at step 0; its dtype is that of all that is computed. lanes: of each instance.

    at_features: a vector is the feature of its first visit, instead of what bank_ND has
    """

    def __init__(self, bank_ND, lanes, capacity, *, temperature, bank_momentum, all_active, at_features=False):
        self.bank, self.lanes, self.capacity = bank_ND.clone(), lanes, capacity
        self.temperature, self.bank_momentum = temperature, bank_momentum
        self.visits = {lane: [] for lane in set(lanes)}  # instances of a lane, most recent last
        self.new = set(range(len(lanes)) if at_features else [])
        for instance, lane in enumerate(lanes if all_active else []):
            self.visits[lane].append(instance)

    def step(self, ids, z_GD, skip=False):
        """ids: the instance of each place or None. Returns (mean loss, dz [G, D]); 0 where a place is empty."""
        z = z_GD.detach().to(self.bank.dtype).requires_grad_()
        filled = [place for place, i in enumerate(ids) if i is not None]
        for i in [ids[place] for place in filled]:
            seen = self.visits[self.lanes[i]]
            if i in seen:
                seen.remove(i)
            seen.append(i)
        for place in filled:
            if ids[place] in self.new:
                self.new.remove(ids[place])
                self.bank[ids[place]] = F.normalize(z.detach()[place], dim=0)
        active = sorted(i for seen in self.visits.values() for i in seen[-self.capacity :])
        targets = torch.tensor([active.index(ids[place]) for place in filled])
        logits = F.normalize(z[filled]) @ F.normalize(self.bank[active]).T / self.temperature
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        for place in [] if skip else filled:
            old, share = self.bank[ids[place]], self.bank_momentum
            self.bank[ids[place]] = F.normalize(share * old + (1 - share) * z.detach()[place], dim=0)
        return loss.item(), z.grad
