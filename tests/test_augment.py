"""The kinds of `data.augment` are the published recipes, and what is given beside a kind takes the place of its values."""

from typing import Any

import pytest

from configs import schema
from configs.augment import KINDS
from tests.conftest import REPOSITORY


def section(words: str) -> dict[str, Any]:
    config = schema.load(str(REPOSITORY / "configs" / "photos.json"), [f"data.augment={words}"])
    return config.data.augment.model_dump()


# By kind: sides of the views, share of the area, jitter and its probability, grey, blur's probability
PUBLISHED = {
    "photos": ([160, 96, 96, 96], (0.14, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),
    "simclr": ([224, 224], (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),
    "mocov2": ([224, 224], (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5),
    "instdisc": ([224], (0.2, 1.0), (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0),
    "randaug": ([224], (0.2, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),
    "null": ([224], (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_kind_has_the_values_of_its_recipe(kind: str) -> None:
    found = section(f'{{"kind":"{kind}"}}')
    sides, scale, jitter, jittered, grey, blurred = PUBLISHED[kind]
    assert [crop["size"] for crop in found["crops"] for _ in range(crop["count"])] == sides
    assert found["crops"][0]["scale"] == scale
    assert (found["jitter"], found["jitter_probability"]) == (jitter, jittered)
    assert (found["grey"], found["blur_probability"], found["blur_sigma"]) == (grey, blurred, (0.1, 2.0))
    assert found["flip"] == 0.5
    operations = {"layers": 2, "magnitude": 10.0, "deviation": 0.5}
    assert found["rand_augment"] == (operations if kind == "randaug" else None)


def test_every_kind_is_known_by_its_name() -> None:
    assert set(PUBLISHED) | {"grey"} == set(KINDS)


def test_what_is_given_beside_a_kind_takes_the_place_of_its_value() -> None:
    found = section('{"kind":"mocov2","grey":0.3,"rand_augment":{"magnitude":5},"crops":[{"size":64}]}')
    assert found["grey"] == 0.3 and found["jitter"] == (0.4, 0.4, 0.4, 0.1)
    assert found["rand_augment"] == {"layers": 2, "magnitude": 5.0, "deviation": 0.5}
    assert [crop["size"] for crop in found["crops"]] == [64]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('{"kind":"simclr2"}', "'simclr'"),
        (
            '{"kind":"simclr","jiter":[0,0,0,0]}',
            "^unknown key data.augment.jiter; the nearest known one is data.augment.jitter",
        ),
        ('{"kind":"randaug","rand_augment":{"magnitude":11}}', "^data.augment.rand_augment.magnitude is 11"),
        ('{"kind":"null","crops":[{"size":9,"rows_grad":false}]}', "^data.augment.crops: no crop has rows_grad true"),
    ],
)
def test_a_mistake_is_named_by_its_key(words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        section(words)
