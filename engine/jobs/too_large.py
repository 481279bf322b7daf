"""Whether the host has the memory that a run is planned to take, said before the run begins: the kernel kills without a word.

Batches that wait between the loader's workers and the run lie in memory without a name (datasets/parcel.py). It is no part of /dev/shm,
but a control group counts it as it counts all other memory. So the limit that can be met is that of the group, or the machine's.
"""

from configs import schema
from datasets.schedule import Schedule
from engine.jobs.planned import Facts, planned
from engine.jobs.smaller import smaller
from engine.planning.components import Plan
from engine.profiling.changes import enough
from engine.profiling.limits import HostLimit
from engine.results.progress import bytes_text


def too_large(config: schema.Config, schedule: Schedule, facts: Facts, plan: Plan, limit: HostLimit) -> str:
    """One line that says what to set; empty where the plan fits. config: with a number for each size."""
    needed = plan.machine_peak()
    if needed <= limit.bytes:
        return ""
    loading = plan.ranks_here * sum(one.bytes for one in plan.components if one.name.startswith("loader: "))
    ways = []
    for workers in reversed(range(config.data.workers)):
        fewer = schema.with_words(config, [f"data.workers={workers}"])
        if planned(fewer, schedule, facts).machine_peak() <= limit.bytes:
            ways.append(f"data.workers={workers} (images may come later)")
            break
    changes = enough(smaller(config, schedule, facts), "host", needed, limit.bytes)
    ways += [f"{one.words} ({one.cost})" for one in changes if not one.words.startswith("data.workers=")]
    ways.append("a smaller schedule.batch" if ways else "a smaller schedule.batch, window or backbone")
    return (
        f"the run is planned to take {bytes_text(needed)} of host memory, more than {limit.words} ({bytes_text(limit.bytes)}), "
        f"and may be killed for it; {bytes_text(loading)} of it are the loader's. It would fit with {', or '.join(ways)}"
    )
