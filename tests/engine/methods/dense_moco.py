"""MoCo written to be read: float64, the whole batch, the published order, logits of one query after the other; torch and nothing else.

1. theta_k <- m theta_k + (1 - m) theta_q       2. keys, in groups       3. queries, in groups; cross entropy, label 0
4. a step of SGD for theta_q                    5. the keys enter the queue, which moves by a whole batch
"""

import torch
from torch.nn.functional import cross_entropy, normalize


class DenseMoco:
    def __init__(self, make_network, keys_KD, *, temperature, momentum):
        self.q, self.k = make_network(), make_network().requires_grad_(False)
        self.keys_KD, self.ids, self.pointer = normalize(keys_KD.double()), [-1] * len(keys_KD), 0
        self.temperature, self.momentum, self.masked = temperature, momentum, 0

    def step(self, views, ids, query_groups, key_groups, lr):
        for key, query in zip(self.k.parameters(), self.q.parameters(), strict=True):
            key.mul_(self.momentum).add_(query.detach(), alpha=1 - self.momentum)
        filled = [place for place, instance in enumerate(ids) if instance >= 0]
        keys, losses = {}, []
        for group in key_groups:  # empty places do not go through the networks
            here = [place for place in group if place in filled]
            keys.update(zip(here, self.k([views[1][here]]), strict=True))
        for group in query_groups:
            here = [place for place in group if place in filled]
            for place, query in zip(here, self.q([views[0][here]]), strict=True):
                others = [j for j, instance in enumerate(self.ids) if instance != ids[place]]
                self.masked += len(others) < len(self.ids)
                logits = torch.stack([keys[place], *self.keys_KD[others]]) @ normalize(query, dim=0) / self.temperature
                losses.append(cross_entropy(logits, torch.tensor(0)))
        loss = torch.stack(losses).mean()
        for weight, slope in zip(self.q.parameters(), torch.autograd.grad(loss, self.q.parameters()), strict=True):
            weight.data.sub_(slope, alpha=lr)
        for place in filled:
            self.keys_KD[self.pointer + place], self.ids[self.pointer + place] = keys[place], ids[place]
        self.pointer = (self.pointer + len(ids)) % len(self.ids)
        return float(loss.detach())
