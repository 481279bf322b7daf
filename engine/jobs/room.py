"""Whether the memory of this machine is enough for what a run is planned to take. Where it is not, the run is refused at its start.

Otherwise the kernel would kill it later, without a word and perhaps after hours. The plan was within 8 % of what was measured
(engine/RUNS.md), so a run a little above the limit may still fit: `plan.refuse=false` lets it try. A run that goes on has fitted
before; it is warned and not refused.
"""

import torch

from configs import schema
from datasets.schedule import Schedule
from engine.jobs.planned import Facts
from engine.jobs.smaller import smaller
from engine.planning.components import Plan
from engine.planning.fit import GIB
from engine.profiling.changes import enough
from engine.profiling.limits import host_limit


def lack_of_memory(
    config: schema.Config,
    schedule: Schedule,
    facts: Facts,
    plan: Plan,
    device: torch.device,
) -> str | None:
    """What is missing and which changes of the config would fit; None where the plan fits."""
    limit = host_limit()
    tiers = [("host", plan.machine_peak(), limit.bytes, limit.words)]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        tiers.append(("device", plan.device_peak(), total, f"the memory of {device}"))
    over = [tier for tier in tiers if tier[1] > tier[2]]
    if not over:
        return None
    tier, need, there, words = over[0]
    lines = [f"the run would take {need / GIB:.2f} GiB of {tier} memory, and there are {there / GIB:.2f} GiB ({words})"]
    loading = plan.ranks_here * sum(one.bytes for one in plan.components if one.name.startswith("loader: "))
    if tier == "host" and loading > 0.1 * need:
        lines.append(
            f"  {loading / GIB:.2f} GiB of it are the loader's: data.workers, schedule.batch and the sizes of views make them"
        )
    changes = enough(smaller(config, schedule, facts), tier, need, there)
    lines += [f"  {one.words}    saves {one.saved[tier] / GIB:.2f} GiB; {one.cost}" for one in changes]
    if not changes:
        lines.append(
            "  no change of one or two sizes is enough: job=plan with plan.fit tells the largest sizes that fit"
        )
    return "\n".join(lines)
