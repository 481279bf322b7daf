"""The section `method` is checked by the class that its kind has in the registry, whichever kinds there are when a config is read."""

import json
from collections.abc import Sequence
from typing import Literal

import pytest

from configs import methods, schema
from configs.fields import Fraction
from configs.methods import REGISTRY, MethodSettings, Pic, RowsSettings
from configs.schema import Config, load, refuse_other_run
from tests.conftest import TINY


class Part(methods.Section):
    share: Fraction = 0.5


class Plain(MethodSettings):
    """Keeps no rows."""

    kind: Literal["plain"] = "plain"
    widths: tuple[int, ...] = (1, 2)
    part: Part = Part()

    def trunk_views(self, sides: Sequence[int]) -> tuple[int, ...]:
        return (0,)


class Ranked(RowsSettings):
    """Keeps rows, and has no temperature."""

    kind: Literal["ranked"] = "ranked"
    margin: float = 0.25


NO_ROWS = {**TINY, "method": {"kind": "plain"}, "optimizer": {"lr": 0.03}}


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "plain", (Plain, "nowhere"))
    monkeypatch.setitem(REGISTRY, "ranked", (Ranked, "nowhere"))

    def _read(tree: dict, *words: str) -> Config:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(tree))
        return load(str(path), list(words))

    return _read


def test_a_kind_that_was_registered_later_is_read_by_its_class_and_written_with_all_of_its_keys(read):
    config = read(NO_ROWS, "method.widths=[3]", "method.part.share=1.0")
    assert config.method == Plain(widths=(3,), part=Part(share=1.0))
    written = json.loads(config.model_dump_json())
    assert written["method"] == {"kind": "plain", "dim": 128, "widths": [3], "part": {"share": 1.0}}
    assert Config.model_validate_json(json.dumps(written)) == config
    assert config.model_dump()["method"]["widths"] == (3,)
    assert Config.model_validate({**written, "data": config.data}, strict=False).method == config.method
    assert list(config.method.trunk_views([8] * 4)) == [0]


def test_without_a_kind_or_a_section_it_is_pic(read):
    assert read(TINY).method == Pic(**TINY["method"])
    assert read({key: value for key, value in TINY.items() if key != "method"}).method == Pic()
    assert Pic().trunk_views([8] * 3) == (0, 1, 2)
    assert Pic().planned_bytes(64, 64, 1000) == {}
    assert json.loads(read(TINY).model_dump_json())["method"] == {
        **{"kind": "pic", "active": 128, "dim": 16, "temperature": 0.2, "init": "random", "init_norm": 1.0},
        **{"norm_floor": 0.0, "sharding": "lanes", "kernels": "auto", "loss": "cross_entropy"},
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "method.kind=byol",
            'method.kind is "byol", which is no known method; set it to one of "pic", ',
        ),
        ("method.kind=null", "method.kind is null"),
        ('method.kind={"pic":1}', 'method.kind is {"pic": 1}'),
        ("method=plain", 'method is "plain", and must be a section; method.kind may be "pic", '),
        ("method=null", "method is null"),
        ("method.dim=0", "method.dim is 0: input should be greater than or equal to 1"),
        ("method.dim=8.5", "method.dim is 8.5"),
        ('method.widths=[1,"x"]', 'method.widths.1 is "x"'),
        ("method.part.share=2", "method.part.share is 2"),
        ("method.part.shar=2", "unknown key method.part.shar; the nearest known one is method.part.share"),
        ("method.width=[]", "unknown key method.width; the nearest known one is method.widths"),
        ("method.active=64", "unknown key method.active; the nearest known one is"),  # of another kind
        ("method.kind=ranked method.temperature=1", "unknown key method.temperature; the nearest known one is"),
        ("method.kind=pic method.widths=[]", "unknown key method.widths; the nearest known one is"),
    ],
)
def test_a_mistake_is_told_by_its_key(read, words, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what is looked at
        read(NO_ROWS, *words.split(" "))
    message = str(caught.value)
    assert message.startswith(said)
    assert len(message.splitlines()) == 1 and len(message) <= 300
    key = said.removeprefix("unknown key ").split(";")[0]
    assert not message.endswith(f"is {key}")  # no key is unknown and the nearest known one


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer.rows_lr_scale=10.0", "optimizer.rows_lr_scale"),
        ("optimizer.rows_weight_decay=0.0", "optimizer.rows_weight_decay"),
        ("optimizer.rows_clip=1.0", "optimizer.rows_clip"),
        ("store.kind=memory", "store.kind"),
        ("store.dtype=bfloat16", "store.dtype"),
        ("store.fold=true", "store.fold"),
        ("store.read_ahead=2", "store.read_ahead"),
        ("store.write_behind=8", "store.write_behind"),
    ],
)
def test_a_method_without_rows_refuses_keys_about_rows(read, word, key):
    value = word.split("=")[1]
    shown = value if value[0] in "0123456789t" else json.dumps(value)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is looked at
        read(NO_ROWS, word)
    assert str(caught.value) == f"{key} is {shown}, but method plain has no rows; leave {key} out"
    default = getattr(getattr(read(NO_ROWS), key.split(".")[0]), key.split(".")[1])
    read(NO_ROWS, f"{key}={json.dumps(default)}")
    read(NO_ROWS, "method.kind=ranked", word)


def test_the_rows_of_a_method_without_rows_are_refused(read):
    with pytest.raises(ValueError, match=r"^method plain has no rows; set method.kind to one that has them"):
        _ = read(NO_ROWS).rows
    assert read(TINY).rows is not None
    config = read(NO_ROWS, "method.kind=ranked")
    assert config.rows is config.method
    assert (MethodSettings.has_rows, Plain.has_rows, Ranked.has_rows, Pic.has_rows) == (False, False, True, True)


def test_the_keys_of_all_registered_classes_are_known(read):
    known = schema._known_keys()
    assert len(known) == len(set(known))
    assert {"method.kind", "method.active", "method.temperature", "method.widths", "method.part.share"} <= set(known)
    assert "method.margin" in schema._known_keys("ranked")
    assert not {"method.widths", "method.temperature"} & set(schema._known_keys("ranked"))


def test_a_run_of_another_kind_is_refused_by_its_kind(read):
    plain, pic = read(NO_ROWS), read({**TINY, "optimizer": {"lr": 0.03}})
    kept_plain, kept_pic = (json.loads(config.model_dump_json()) for config in (plain, pic))
    refuse_other_run(plain, kept_plain)
    with pytest.raises(ValueError, match=r'holds a run with method.kind = "pic", now it is "plain"'):
        refuse_other_run(plain, kept_pic)
    with pytest.raises(ValueError, match=r'holds a run with method.kind = "plain", now it is "pic"'):
        refuse_other_run(pic, kept_plain)
    del kept_pic["method"]["kind"]
    refuse_other_run(pic, kept_pic)
    with pytest.raises(ValueError, match=r'holds a run with method.kind = "pic", now it is "plain"'):
        refuse_other_run(plain, kept_pic)
