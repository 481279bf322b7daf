"""What was written with the names of earlier versions means what it meant: config files, words of a command line, checkpoints."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from configs.earlier import translated
from configs.schema import Config, load, refuse_other_run
from tests.conftest import REPOSITORY, TINY

# The configs that shipped before the section was called method, as they stood.
SHIPPED = {
    "pic_sampled.json": """{
        "job": "pretrain",
        "seed": 0,
        "output": "runs/pic_sampled",
        "epochs": 9,
        "log_every": 20,
        "data": {
            "source": "glyphs",
            "image_size": 32,
            "held_out": ["DejaVu Serif", "DejaVu Serif Display"],
            "augment": {"kind": "grey", "degrees": 8, "scale": [0.85, 1.15], "shear": 0.2, "elastic": 0.06}
        },
        "schedule": {"batch": 256, "window": 4096, "stride": 512, "block": 64, "lanes": 8},
        "backbone": {"name": "vgg", "layers": [16, "M", 32, "M", 64, "M", 128], "grid": 4, "hidden": 512},
        "classifier": {"active": 2048, "dim": 128, "temperature": 0.1, "init": "feature", "init_norm": 1.0},
        "optimizer": {"lr": 0.1, "warmup_epochs": 1, "rows_lr_scale": 30, "weight_decay": 1e-4, "rows_weight_decay": 0},
        "checkpoint": {"every_steps": 500, "keep": 2},
        "evaluate": {"every_steps": 600, "k": 1, "features": "backbone"},
        "deepspeed": {"zero_optimization": {"stage": 0}}
    }""",
    "fashion_mnist.json": """{
        "job": "pretrain",
        "seed": 0,
        "output": "runs/fashion_mnist",
        "epochs": 20,
        "log_every": 60,
        "data": {
            "source": "fashion_mnist",
            "image_size": 28,
            "limit": 6000,
            "augment": {"kind": "grey", "degrees": 15, "shift": 0.1, "scale": [0.8, 1.0], "shear": 0, "elastic": 0,
                        "thickness": 0, "blur": 0, "flip": 0.5, "contrast": 0.3}
        },
        "schedule": {"batch": 100, "window": 1500, "stride": 300, "block": 15, "lanes": 4},
        "backbone": {"name": "vgg", "layers": [16, "M", 32, "M", 64], "grid": 7, "hidden": 256},
        "classifier": {"active": 372, "dim": 128, "temperature": 0.1, "init": "random", "init_norm": 1.0},
        "optimizer": {"lr": 0.05, "warmup_epochs": 1, "rows_lr_scale": 20, "weight_decay": 5e-4, "rows_weight_decay": 0},
        "checkpoint": {"every_steps": 1200, "keep": 1},
        "evaluate": {"k": 5, "temperature": 0.07, "features": "backbone", "query_limit": 2000}
    }""",
}
CHANGED_SINCE = {"pic_sampled.json": ("optimizer.rows_lr_scale=300",)}
NO_SECTION = {key: value for key, value in TINY.items() if key != "method"}
OLD = {**NO_SECTION, "classifier": {"method": "pic", **TINY["method"]}}
OLD_KEYS = (
    *("method", "active", "dim", "temperature", "init", "init_norm", "norm_floor", "sharding", "kernels"),
    *("method.x", "active.x", "", "kind", "unheard_of"),
)


@pytest.fixture
def read(tmp_path):
    """Reads a config: a tree or its text, and words."""

    def _read(tree: dict | str, *words: str) -> Config:
        path = tmp_path / "config.json"
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
        return load(str(path), list(words))

    return _read


@pytest.fixture
def refusal(read):
    """What is said of a config that is refused: one line."""

    def _refusal(tree: dict | str, *words: str) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what the caller looks at
            read(tree, *words)
        assert type(caught.value) is ValueError
        message = str(caught.value)
        assert len(message.splitlines()) == 1 and len(message) <= 400 and message.isprintable(), message
        return message

    return _refusal


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_config_that_shipped_under_the_old_names_is_the_one_that_ships_now(read, name):
    path = REPOSITORY / "configs" / name
    assert "classifier" not in path.read_text()
    assert read(SHIPPED[name], *CHANGED_SINCE.get(name, ())) == load(str(path), [])


def test_every_key_of_the_old_section_has_its_place_in_the_new_one(read):
    given = {
        **{"method": "pic", "active": 192, "dim": 24, "temperature": 0.3, "init": "feature", "init_norm": 0.5},
        **{"norm_floor": 0.1, "sharding": "zero3", "kernels": "aten"},
    }
    method = read({**NO_SECTION, "classifier": given}).method.model_dump()
    assert method.pop("loss") == "cross_entropy"  # the old section had no other
    assert method == {"kind": "pic", **{key: value for key, value in given.items() if key != "method"}}
    assert read({**NO_SECTION, "classifier": {}}) == read(NO_SECTION)


@pytest.mark.parametrize("tree", [TINY, OLD, NO_SECTION], ids=["new file", "old file", "no section"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["classifier.active=192"], ["method.active=192"]),
        (["classifier.active=null", "classifier.dim=24"], ["method.active=null", "method.dim=24"]),
        (["classifier.method=pic"], ["method.kind=pic"]),
        (['classifier={"active":192,"method":"pic"}'], ['method={"active":192,"kind":"pic"}']),
        (["classifier={}"], ["method={}"]),
        (['classifier={"dim":24}', "classifier.active=192"], ['method={"dim":24}', "method.active=192"]),
        (["classifier.active=192", 'classifier={"dim":24}'], ['method={"dim":24}']),
        (["classifier.active=192", "classifier.active=256"], ["method.active=256"]),
        (["classifier.active=192", "method.dim=24"], ["method.active=192", "method.dim=24"]),
    ],
    ids=str,
)
def test_a_word_with_an_old_name_replaces_what_the_file_says_by_either_name(read, tree, old, new):
    assert read(tree, *old) == read(TINY if tree is OLD else tree, *new)
    assert read(tree, *new) == read(TINY if tree is OLD else tree, *new)


def test_both_sections_are_joined_where_they_do_not_overlap(read):
    tree = {**NO_SECTION, "classifier": {"active": 192, "method": "pic"}, "method": {"dim": 24}}
    assert read(tree) == read({**NO_SECTION, "method": {"active": 192, "dim": 24}})
    assert read(tree, "classifier.dim=16", "method.active=256").method.model_dump(include={"active", "dim"}) == {
        "active": 256,
        "dim": 16,
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"active": 192}, {"active": 192}, "classifier.active and method.active are the same key"),
        ({"dim": 8, "active": 192}, {"active": 256}, "leave classifier.active out"),
        ({"method": "pic"}, {"kind": "pic"}, "classifier.method and method.kind are the same key"),
        ({"x\u202e" * 200: 1}, {"x\u202e" * 200: 1}, "are the same key"),
        ({"method": "pic", "kind": "pic"}, {}, "classifier.method and classifier.kind are the same key"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_key_with_both_of_its_names_is_refused_in_a_file_and_among_the_words(refusal, old, new, said):
    assert said in refusal({**NO_SECTION, "classifier": old, "method": new})
    if len(str(old)) < 100:
        words = [f"classifier={json.dumps(old)}", *(f"method.{key}={json.dumps(new[key])}" for key in new)]
        assert said in refusal(NO_SECTION, *words)
        apart = [f"classifier.{key}={json.dumps(old[key])}" for key in old]
        assert said in refusal(TINY, *apart, *words[1:]) if new else refusal(TINY, *apart)


VALUES = ["[]", "[1, 2]", "null", "7", "-0.5", "true", '"pic"', '""', '"' + "y" * 10_000 + '"', "[" * 40 + "]" * 40]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_a_section_that_is_none_is_refused_by_the_name_that_it_was_given(refusal, value):
    for tree in (NO_SECTION, {**NO_SECTION, "method": {"dim": 24}}):
        told = refusal(json.dumps({**tree, "classifier": 0}).replace('"classifier": 0', f'"classifier": {value}'))
        assert told.startswith("classifier is ") and "it is called method now" in told
        assert refusal(tree, f"classifier={value}").startswith("classifier is ")
    both = json.dumps({**OLD, "method": 0}).replace('"method": 0', f'"method": {value}')
    assert refusal(both).startswith("method is ")
    assert refusal(NO_SECTION, f"method={value}", "classifier.dim=24").startswith(
        "classifier.dim: method is not a section"
    )
    assert refusal(NO_SECTION, "classifier.dim=24", f"method={value}").startswith("method is ")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("classifier.active=no", "method.active is"),
        ("classifier.temperature=0", "method.temperature is 0"),
        ("classifier.actve=192", "unknown key method.actve; the nearest known one is method.active"),
        ("classifier.method=byol", 'method.kind is "byol", which is no known method; set it to one of "pic"'),
        ("classifier.method=[]", "method.kind is []"),
        ("classifier.method.x=1", "method.kind is {"),
        ("classifier.active.x=1", "method.active is {"),
        ("classifier.=1", "unknown key method."),
        ("classifier.init_norm=1e999", "method.init_norm is Infinity"),
        ("classifier." + "k" * 5000 + "=1", "unknown key method.kkk"),
        ("classifier." + ".".join("k" * 60) + "=1", "is nested more than 50 deep"),
        ("classifier.init=a\x1bb", "method.init holds characters that cannot be shown"),
        ("classifier.a\x1bb=1", "holds characters that cannot be shown"),
    ],
    ids=lambda value: value[:30],
)
def test_a_wrong_value_by_an_old_name_is_refused_by_the_new_one(refusal, word, said):
    assert said in refusal(NO_SECTION, word)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=6,
)
sections = json_values | st.dictionaries(st.sampled_from(OLD_KEYS), json_values, max_size=4)


@settings(max_examples=300, deadline=None)
@given(old=sections, new=sections, key=st.sampled_from(OLD_KEYS), value=json_values)
def test_whatever_stands_by_an_old_name_is_taken_or_refused_in_a_line(tmp_path_factory, old, new, key, value):
    file = tmp_path_factory.getbasetemp() / "old.json"
    kept = {**json.loads(schema.Config.model_validate_json(json.dumps(TINY)).model_dump_json()), "classifier": old}
    for tree in ({**NO_SECTION, "classifier": old}, {**NO_SECTION, "classifier": old, "method": new}, NO_SECTION):
        for words in ([], [f"classifier.{key}={json.dumps(value)}"]):
            file.write_text(json.dumps(tree))
            try:
                config = load(str(file), words)
                refuse_other_run(config, {**kept, "method": new})
            except ValueError as error:
                assert type(error) is ValueError  # noqa: PT017
                message = str(error)
                assert len(message) <= 500 and len(message.splitlines()) == 1 and not set(message) & set("\0\x1b\r"), (
                    message
                )


def test_the_tree_that_is_translated_stays_as_it_was():
    tree = json.loads(json.dumps(OLD))
    assert translated(tree) == {**NO_SECTION, "method": {"kind": "pic", **TINY["method"]}}
    assert tree == OLD
    assert translated(translated(tree)) == translated(tree)
    assert translated(TINY) == TINY


# Going on


def kept_of_old(config: Config) -> dict:
    """As an earlier version kept it in its checkpoints."""
    kept = json.loads(config.model_dump_json())
    method = kept.pop("method")
    return {**kept, "classifier": {"method": method.pop("kind"), **method}}


@pytest.mark.parametrize("name", [*sorted(SHIPPED), "tiny"])
def test_a_run_of_an_earlier_version_goes_on(read, name):
    config = read(SHIPPED.get(name, OLD))
    kept = kept_of_old(config)
    before = json.dumps(kept)
    refuse_other_run(config, kept)
    assert json.dumps(kept) == before
    kept["classifier"] |= {"kernels": "aten", "sharding": "zero3"}
    refuse_other_run(config, kept)
    for key in ("method", "norm_floor", "kernels", "sharding"):  # of an earlier one still, without them
        del kept["classifier"][key]
    refuse_other_run(config, kept)
    del kept["classifier"]
    if config.method == schema.Pic():
        refuse_other_run(config, kept)
    else:
        with pytest.raises(ValueError, match=r"holds a run with method\.active = null"):
            refuse_other_run(config, kept)


@pytest.mark.parametrize(
    ("key", "value"),
    [("active", 256), ("dim", 8), ("temperature", 0.5), ("init", "feature"), ("init_norm", 0.5), ("norm_floor", 0.25)],
)
def test_a_run_of_an_earlier_version_that_differs_is_refused_by_the_new_name(read, key, value):
    config = read(OLD)
    kept = kept_of_old(config)
    now = json.dumps(kept["classifier"][key])
    kept["classifier"][key] = value
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is looked at
        refuse_other_run(config, kept)
    assert str(caught.value) == (
        f"{config.output} holds a run with method.{key} = {json.dumps(value)}, now it is {now}; "
        "set it back, choose another output, or start over with --fresh"
    )


@pytest.mark.parametrize("value", [[], None, 7, True, "pic", [[[1]]]], ids=str)
def test_a_kept_config_without_a_section_that_can_be_read_is_refused_in_a_line(read, value):
    config = read(OLD)
    for kept, said in (
        ({**kept_of_old(config), "classifier": value}, "whose config cannot be read: classifier is "),
        ({**kept_of_old(config), "method": value}, "whose config cannot be read: method is "),
        ({**kept_of_old(config), "method": {"active": 1}}, "classifier.active and method.active are the same key"),
        ({**json.loads(config.model_dump_json()), "method": value}, "holds a run with method"),
    ):
        with pytest.raises(ValueError, match="start over with --fresh") as caught:
            refuse_other_run(config, kept)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def rewritten(output: Path) -> None:
    """The checkpoints of a run as the version before wrote them: the config in the old form, under a checksum that is right."""
    for path in (output / "checkpoints" / "manifests").iterdir():
        body = json.loads(path.read_text())["body"]
        method = body["config"].pop("method")
        body["config"]["classifier"] = {"method": method.pop("kind"), **method}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}))


def test_checkpoints_of_an_earlier_version_are_gone_on_from_to_the_bit(run, capsys):
    assert run("steps=12") == 0
    whole = run.summary()["digest"]
    assert run("steps=6", flags=("--fresh",)) == 0
    rewritten(run.output)
    assert run("steps=12", "classifier.temperature=0.3", config=OLD) == 2
    assert "holds a run with method.temperature = 0.2, now it is 0.3" in capsys.readouterr().err
    assert run("steps=12", config=OLD) == 0
    assert run.summary()["digest"] == whole
    written = json.loads((run.output / "config.json").read_text())
    assert "classifier" not in written and written["method"]["kind"] == "pic"
