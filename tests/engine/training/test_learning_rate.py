"""The learning rate of every step: warm-up, cosine, steps down, and a base rate for another batch."""

import math

import pytest

from configs import schema
from datasets.schedule import Schedule
from engine.jobs import parts, sizes
from engine.training.learning_rate import learning_rate, stepped_rate
from tests.conftest import TINY


def config(**optimizer):
    tree = {**TINY, "output": "/nowhere", "optimizer": {"lr": 0.03, **optimizer}}
    return schema._checked(tree)


# 20 steps an epoch.
ORDER = Schedule(seed=0, size=1280, window=640, stride=320, batch=64, block=16, lanes=4, reshuffle=False)


def rates(asked, total=200):
    return [parts.learning_rate_at(asked, ORDER, total, step) for step in range(total)]


def test_the_published_steps_of_moco_v1_are_taken_at_120_and_160_of_200_epochs():
    assert sizes.steps_of(1, ORDER) == 20
    found = rates(config(schedule="steps", milestones=[120, 160, 200]), 4000)
    assert len(found) == 4000
    assert set(found[:2400]) == {0.03}
    assert found[2400:3200] == pytest.approx([3e-3] * 800, rel=1e-15)
    assert found[3200:] == pytest.approx([3e-4] * 800, rel=1e-15)


def test_the_warm_up_is_the_same_before_either_schedule():
    warm = {"warmup_epochs": 2.0, "warmup_factor": 0.1}
    cosine, steps = rates(config(**warm)), rates(config(schedule="steps", milestones=[5], gamma=0.5, **warm))
    assert cosine[:40] == steps[:40] == [0.03 * (0.1 + 0.9 * step / 40) for step in range(40)]
    assert steps[40:] == [0.03] * 60 + [0.015] * 100
    assert cosine[40] == 0.03 and 1e-6 < cosine[199] < 1e-5


def test_without_a_milestone_yet_a_rate_is_the_highest_and_each_multiplies_it_by_gamma():
    stepped = [
        stepped_rate(step, warmup=0, highest=2.0, warmup_factor=0.0, drops=[1, 1, 3], gamma=0.5) for step in range(5)
    ]
    assert stepped == [2.0, 0.5, 0.5, 0.25, 0.25]


def test_a_rate_for_another_batch_is_scaled_by_the_batch_in_either_schedule_and_where_the_rows_shrink():
    plain = config()
    scaled = config(lr_batch=256)
    assert sizes.highest_rate(plain) == 0.03 and sizes.highest_rate(scaled) == 0.03 * 64 / 256
    assert rates(scaled)[0] == 0.03 * 64 / 256 == rates(config(lr_batch=256, schedule="steps", milestones=[3]))[0]
    for asked in (plain, scaled):  # the end is not scaled
        assert parts.learning_rate_at(asked, ORDER, 200, 200) == 1e-6
    # TINY has no decay of rows; with much of it, and a rate that only the scaling makes large, the rows would be lost.
    lost = {"rows_weight_decay": 10.0, "rows_lr_scale": 1.0, "lr": 1e-4}
    sizes.check_shrink(config(**lost), ORDER, 200)
    with pytest.raises(ValueError, match="rows_weight_decay"):
        sizes.check_shrink(config(**lost, lr_batch=1), ORDER, 200)


def test_a_cosine_is_what_it_is_by_its_formula():
    for step in (0, 7, 50, 199):
        expected = 1e-6 + (0.03 - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / 200))
        assert rates(config())[step] == pytest.approx(expected, rel=1e-14)
        assert rates(config())[step] == learning_rate(
            step, total=200, warmup=0, highest=0.03, lowest=1e-6, warmup_factor=0.01
        )
