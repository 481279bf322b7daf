"""The row table as a method gets it: the active rows with the tiers below them, and what the config says of their training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.rows.active_rows import ActiveRows

if TYPE_CHECKING:
    from engine.trunk.zero import PartitionedRows


@dataclass(frozen=True)
class RowTable:
    """
    rows        of this rank's lanes, without content
    partitioned the active rows where DeepSpeed partitions them; None: `rows` keeps them itself
    lr_scale    learning rate of the rows over the trunk's
    clip        largest norm of the gradient of all active rows together; 0: any
    read_ahead  slides of the window by which blocks are read before they are needed
    """

    rows: ActiveRows
    partitioned: "PartitionedRows | None"
    lr_scale: float
    clip: float
    read_ahead: int

    def close(self) -> None:
        """Release threads and DeepSpeed's buffers."""
        if self.partitioned:
            self.partitioned.zero.close()
        self.rows.host.close()
