"""What the trunk takes under DeepSpeed, by ZeRO stage. P: bytes of its weights in float32, R: ranks.

    stage   weights                     gradients      optimizer   what travels
    0       P                           P              n P         R > 1: P, all gradients in one piece
    1       P + P/R                     P              n P/R       P, the bucket of gradients
    2       P + P/R                     P/R            n P/R       P
    3       2P/R, P while gathered      P/R            n P/R       P

The optimizer keeps n numbers for each weight: none without momentum, one for SGD and LARS, two for AdamW.

At stages 1 and 2 ZeRO puts the weights into one piece, and has a master of a rank's part. At stage 3 each rank keeps its part twice (the
master, and what is gathered), and layers are gathered one after the other. Gradients go into a
bucket of `reduce_bucket_size` numbers; where the user does not say, engine/trunk/zero.py makes it as large as the weights, up to
5 x 10^8 numbers. What of a larger bucket is never written is not resident on a CPU, but on a GPU it is.

The table was found by counting all tensors of a process after each part of a step, with 1 and 2 ranks. Buffers are those of batch
normalisation, once in the network and once as they were before the step. Left out: offload, and the other keys of `zero_optimization`.
"""

from dataclasses import dataclass

from engine.planning import components as names
from engine.planning.components import DEVICE, EVALUATION, HOST, PHASES, TRAINING, Component, passing

_FLOAT_BYTES = 4
_MOST_BUCKET = 5 * 10**8  # numbers, DeepSpeed's default


@dataclass(frozen=True)
class TrunkSizes:
    """
    weights, buffers   numbers
    stage, ranks       of ZeRO; R
    bucket             numbers, None: chosen by the engine
    kept               n, numbers that the optimizer keeps for each weight
    """

    weights: int
    buffers: int
    stage: int
    ranks: int
    bucket: int | None
    kept: int


def bucket_numbers(weights: int, asked: int | None) -> int:
    """Of the bucket in which gradients travel."""
    return asked if asked is not None else min(weights, _MOST_BUCKET)


def trunk_components(sizes: TrunkSizes) -> list[Component]:
    """On the device of a rank, and a copy on the host where ranks have parts of the weights."""
    whole = sizes.weights * _FLOAT_BYTES
    part = -(-whole // sizes.ranks)
    buffers = 2 * sizes.buffers * _FLOAT_BYTES
    bucket = bucket_numbers(sizes.weights, sizes.bucket) * _FLOAT_BYTES
    many = sizes.ranks > 1
    weights, gradients, optimizer, travels = {
        0: (whole, whole, whole, whole if many else 0),
        1: (whole + part, whole, part, bucket),
        2: (whole + part, part, part, bucket),
        3: (2 * part, part, part, bucket),
    }[sizes.stage]
    # Stage 3 keeps its part of the gradients, and the bucket, from the start on.
    in_steps = PHASES if sizes.stage == 3 else TRAINING
    found = [
        Component(DEVICE, names.TRUNK_WEIGHTS, weights + buffers),
        passing(DEVICE, names.TRUNK_GRADIENTS, gradients, in_steps),
        Component(DEVICE, names.TRUNK_OPTIMIZER, sizes.kept * optimizer),
        passing(DEVICE, names.TRUNK_BUCKETS, travels, in_steps, travels),
    ]
    if sizes.stage == 3:
        found.append(passing(DEVICE, names.TRUNK_GATHERED, whole, TRAINING))
        if many:
            found.append(Component(HOST, names.NETWORK_COPY, whole + sizes.buffers * _FLOAT_BYTES))
            found.append(passing(HOST, names.GATHERED_TO_EVALUATE, 2 * whole, (EVALUATION,)))
    return found


def trunk_state_bytes(sizes: TrunkSizes) -> int:
    """Of a checkpoint: weights, buffers and what the optimizer keeps, float32."""
    return (sizes.weights + sizes.buffers) * _FLOAT_BYTES + optimizer_state_bytes(sizes)


def optimizer_state_bytes(sizes: TrunkSizes) -> int:
    """Of them, what the optimizer keeps."""
    return sizes.kept * sizes.weights * _FLOAT_BYTES
