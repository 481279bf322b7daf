"""A profile that is put together after memory has ended: by the run itself, or by the sampler of a run that was killed."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.profiling.changes import Change, enough
from engine.profiling.page import profile_page
from engine.profiling.result import DIRECTORY, profile_of
from engine.profiling.samples import read_samples
from engine.results.charts import value_text
from engine.results.output import Output

DEVICE, HOST = "device", "host"


def tier_that_ended(output: Path) -> str | None:
    """ "device" or "host", if a rank says that its memory has ended."""
    for path in sorted((output / DIRECTORY).glob("ended-*")):
        if (how := path.read_text()) in (DEVICE, HOST):
            return how
    return None


def tell_of_a_lost_run(output: Path, is_out_of_memory: bool) -> None:
    """Write profile.json and profile.html of a run that is gone, and say what grew."""
    if not (output / DIRECTORY / "facts.json").exists():
        print("error: the run ended before it had planned anything; there is no profile", file=sys.stderr)
        return
    tier = HOST if is_out_of_memory else tier_that_ended(output)
    why = (
        "killed by the kernel: host memory has ended"
        if is_out_of_memory
        else f"{tier} memory has ended"
        if tier
        else "killed"
    )
    advice = write_profile(output, why, tier)
    print(
        "\n".join([f"error: the run: {why}", *advice, f"profile: {output / 'profile.html'}"]),
        file=sys.stderr,
        flush=True,
    )


def write_profile(output: Path, status: str, tier_that_ended: str | None = None) -> list[str]:
    """Write profile.json and profile.html; returns what to tell the user, a line each.

    tier_that_ended   "device" or "host", where memory has ended
    """
    samples = read_samples(output / DIRECTORY)
    whole = profile_of(output, status)
    advice = [] if tier_that_ended is None else advice_of(whole, tier_that_ended)
    own = Output(output, ("profile.json", "profile.html"))
    own.write_json("profile.json", {**whole, "advice": advice})
    own.write_text("profile.html", profile_page(whole, samples, advice))
    return advice


def advice_of(whole: Mapping[str, Any], tier: str) -> list[str]:
    """Which part grew, and the three cheapest changes that would fit."""
    plan, process = whole["plan"], whole["process"]
    limit = plan["device_limit"] if tier == DEVICE else process["limit"]
    planned = plan["device_peak"] if tier == DEVICE else plan["machine_peak"]
    if tier == DEVICE:
        reached = max((rank["reserved_bytes"] for rank in whole["ranks"]), default=0)
    else:
        reached = sum(rank["peak_bytes"] + rank["worker_bytes"] for rank in whole["ranks"])
    last = whole["ranks"][0] if whole["ranks"] else {"last_stage": "start", "last_step": 0}
    whose = "the device's memory" if tier == DEVICE else process["limit_words"]
    lines = [
        f"{whose} is {value_text(limit, 'bytes')}; {value_text(reached, 'bytes')} were taken in the stage {last['last_stage']} "
        f"of step {last['last_step']:,}, and {value_text(planned, 'bytes')} are planned at the most",
        "largest parts: " + "; ".join(_largest(whole["components"], plan["components"], tier, plan["device_is_host"])),
    ]
    changes = [Change.read(one) for one in whole["changes"]]
    found = enough(changes, tier, max(planned, reached), limit)
    lines += [f"would fit: {one.words} ({one.cost}; saves {value_text(one.saved[tier], 'bytes')})" for one in found]
    if not found:
        lines.append("no change that is known here would fit; job=plan with plan.fit tells the largest sizes that do")
    return lines


def _largest(
    compared: Sequence[Mapping[str, Any]], planned: Sequence[Mapping[str, Any]], tier: str, device_is_host: bool
) -> list[str]:
    """Of the components on the tier: what was counted, or planned where nothing was."""
    tiers = {tier, DEVICE} if tier == HOST and device_is_host else {tier}
    counted = {row["name"]: row["counted"] for row in compared}
    sizes = {one["name"]: counted.get(one["name"]) or one["bytes"] for one in planned if one["tier"] in tiers}
    most = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return [f"{name} {value_text(count, 'bytes')}" for name, count in most]
