"""Recent negatives for peers: the K instances that were visited last, the batch first."""

import torch


class Recent:
    """active: K. No more than that are kept; fewer while fewer were visited."""

    def __init__(self, active: int) -> None:
        self.active = active
        self.ids_K = torch.empty(0, dtype=torch.int64)

    def visit(self, ids_B: torch.Tensor) -> torch.Tensor:
        """The instances of the softmax, int64 [up to K], each once; the batch's are the first of them, in its order."""
        others = self.ids_K[~torch.isin(self.ids_K, ids_B)]
        self.ids_K = torch.cat([ids_B, others])[: max(self.active, len(ids_B))]
        return self.ids_K
