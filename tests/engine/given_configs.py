"""Configs of runs on given features: one of 20,000 images to be planned, one of 1,000 to be compared with its rivals."""

from tests.conftest import TINY

TO_PLAN = {
    **TINY,
    "epochs": 1,
    "data": {"source": "synthetic", "limit": 20_000},
    "backbone": {"name": "given"},
    "schedule": {"batch": 64, "window": 2048, "stride": 512, "block": 64, "lanes": 4},
    "method": {"active": 512, "dim": 32},
    "evaluate": {},
    "deepspeed": {},
}

TO_SCALE = {
    **{key: value for key, value in TINY.items() if key not in ("deepspeed", "evaluate")},
    "data": {"source": "synthetic", "limit": 1000},
    "schedule": {"batch": 64, "block": 16, "lanes": 4},
    "backbone": {"name": "given"},
    "log_every": 1,
}
