"""A network that was trained before, for jobs that look at its features."""

from pathlib import Path
from typing import TYPE_CHECKING

from configs import schema
from engine.jobs import parts

if TYPE_CHECKING:
    from engine.disk.saved_checkpoint import SavedCheckpoint
    from engine.trunk.network import Network


def saved_network(config: schema.Config) -> "tuple[Network, str, SavedCheckpoint | None]":
    """(network, what it is called, the checkpoint that it is of): evaluate.backbone, or the output's own backbone.

    Where evaluate.features asks for the head, the newest checkpoint of the output: a saved backbone has none.
    Raises ValueError where there is nothing, or another network than the config says.
    """
    if config.evaluate.features == "head":
        return _of_checkpoint(config, parts.network_of(config))
    path = parts.backbone_path(config)
    network, what = parts.network_of_file(config, path)
    print(f"the network is of {what}", flush=True)
    return network, str(path), None


def _of_checkpoint(config: schema.Config, network: "Network") -> "tuple[Network, str, SavedCheckpoint | None]":
    from engine.disk.chosen import chosen_checkpoint, while_it_is_there
    from engine.training.checkpoint import read_trunk

    if config.evaluate.backbone is not None:
        raise ValueError(
            "a saved backbone has no head; set evaluate.features to backbone, or leave evaluate.backbone out"
        )
    checkpoint, _ = chosen_checkpoint(Path(config.output), None)
    with while_it_is_there(checkpoint):
        model = read_trunk(checkpoint)
    try:
        network.load_state_dict(model)
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint of step {checkpoint.step} is of another network: {str(error).splitlines()[1].strip()}; "
            "set backbone and method.dim as they were"
        ) from None
    return network, f"{config.output} at step {checkpoint.step}", checkpoint
