"""A plan for people: bytes by tier and component, the peak of each phase, and what the disk has to do."""

from engine.planning.checkpoints import Traffic
from engine.planning.components import DEVICE, DISK, HOST, KEPT_BY_ALLOCATOR, LIBRARIES, PHASES, TRAINING, WORDS, Plan


def plan_text(plan: Plan) -> str:
    """Of each rank where there are several; the disk of all."""
    lines = []
    for tier in (DEVICE, HOST, DISK):
        of_tier = [one for one in plan.components if one.tier == tier]
        note = "" if plan.ranks == 1 else " of all ranks" if tier == DISK else " of each rank"
        lines.append(f"{tier}{note}")
        if tier == HOST and plan.libraries_bytes:
            lines.append(_line(plan.libraries_bytes, f"{LIBRARIES} (measured)"))
        for one in of_tier:
            when = "" if one.phases == PHASES or tier == DISK else f" ({_when(one.phases)})"
            lines.append(
                _line(one.bytes, one.name + one.how + when + (", beside the run's process" if one.beside else ""))
            )
        if tier == DISK:
            lines.append(_line(plan.disk_bytes(), "in all, at the most"))
    where = "process" if plan.device_is_host else "process, without the device"
    lines.append(f"{where}{' of each rank' if plan.ranks > 1 else ''}")
    for phase in PHASES:
        kept = plan.kept_bytes(phase)
        note = f", of which {kept / 2**20:,.1f} MiB are {KEPT_BY_ALLOCATOR}" if kept else ""
        lines.append(_line(plan.process_bytes(phase), WORDS[phase] + note))
    if not plan.device_is_host:
        lines.append(f"device{' of each rank' if plan.ranks > 1 else ''}")
        lines += [_line(plan.bytes_in(phase, DEVICE), WORDS[phase]) for phase in PHASES]
    lines.append("at the most")
    lines.append(_line(plan.process_peak(), "process"))
    if plan.host_peak() != plan.process_peak():
        lines.append(_line(plan.host_peak(), "with the loader's workers"))
    if plan.ranks_here > 1:
        lines.append(_line(plan.machine_peak(), f"host of a machine with {plan.ranks_here} ranks"))
    if not plan.libraries_bytes:
        lines.append("(without the libraries, which were not measured)")
    return "\n".join(lines)


def traffic_text(work: Traffic, steps: int, step_seconds: float | None) -> str:
    """What the disk reads and writes, and how long the run takes where a step's time is known."""
    text = f"disk: {_mib(work.read)} MiB read and {_mib(work.written)} MiB written a step"
    if step_seconds is None:
        return text + "; plan.step_seconds=... tells bandwidth and days"
    read, written = work.read / step_seconds, work.written / step_seconds
    days = steps * step_seconds / 86_400
    took = (
        f"{days:,.1f} days"
        if days >= 1
        else f"{24 * days:,.1f} hours"
        if days >= 1 / 24
        else f"{1440 * days:,.1f} minutes"
    )
    return f"{text}; with {step_seconds:g} s a step {_mib(read)} MiB/s and {_mib(written)} MiB/s; {steps:,} steps take {took}"


def _when(phases: tuple[str, ...]) -> str:
    return "while it trains" if phases == TRAINING else " and ".join(WORDS[phase] for phase in phases)


def _line(count: int, what: str) -> str:
    return f"  {count / 2**20:14,.1f} MiB  {what}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f}" if count >= 2**20 else f"{count / 2**20:,.3f}"
