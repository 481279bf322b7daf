"""A run that is planned to take more memory than there is says so before it trains, and what to set."""

from engine.jobs import start
from engine.jobs.planned import facts_of, planned
from engine.jobs.too_large import too_large
from engine.profiling.limits import HostLimit
from tests.engine.jobs.test_planned import PHOTOS, SCHEDULE, Images, config

IMAGES = Images([(300, 400, 3)])
CROPS = {"kind": "photos", "crops": [{"size": 224, "count": 4}]}


def plan_of(asked):
    facts = facts_of(asked, IMAGES, None, ranks=1, ranks_here=1, device="cpu", libraries_bytes=0)
    return facts, planned(asked, SCHEDULE, facts)


def said(limit_bytes, workers=4):
    asked = config(data={**PHOTOS, "augment": CROPS, "workers": workers})
    facts, plan = plan_of(asked)
    return too_large(asked, SCHEDULE, facts, plan, HostLimit(limit_bytes, "the limit of the control group jobs"))


def peak(workers):
    return plan_of(config(data={**PHOTOS, "augment": CROPS, "workers": workers}))[1].machine_peak()


def test_the_most_workers_that_fit_are_named_and_a_plan_that_fits_is_no_news():
    assert said(peak(4)) == ""
    for workers in (0, 2, 3):
        text = said(peak(workers))
        assert f"It would fit with data.workers={workers} (" in text and text.endswith("or a smaller schedule.batch")
        assert "the limit of the control group jobs" in text and "are the loader's" in text
    assert peak(0) < peak(2) < peak(3) < peak(4)


def test_where_no_number_of_workers_helps_none_is_named():
    assert "data.workers" not in said(2**20)
    assert said(2**20).endswith("It would fit with a smaller schedule.batch, window or backbone")


def test_a_run_says_it_before_its_first_step_and_goes_on(run, capsys, monkeypatch):
    monkeypatch.setattr(start, "host_limit", lambda: HostLimit(2**20, "the limit of the control group jobs"))
    assert run("steps=2") == 0
    out = capsys.readouterr().out
    assert out.index("more than the limit of the control group jobs (1 MiB)") < out.index("step 2/2")
