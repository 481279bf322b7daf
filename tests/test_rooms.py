"""Who may import what: the arrows between the rooms, and the one module that each heavy package has."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.slow_tests import is_slow, measured, slow_tests

ROOMS = ("configs", "datasets", "engine", "kernels", "launch", "tests")
SOURCES = [
    path
    for room in ("configs", "datasets", "engine", "kernels", "tests")
    for path in sorted((REPOSITORY / room).rglob("*.py"))
] + [REPOSITORY / "launch.py"]
# The engine's rooms, from the top floor down: a room imports itself and what is below it.
SUB_ROOMS = (
    "jobs",
    "profiling",
    "scaling",
    "planning",
    "training",
    "probing",
    "evaluation",
    "methods",
    "results",
    "disk",
    "rows",
    "trunk",
    "ranks",
)
STANDARD = set(sys.stdlib_module_names)


@cache  # each of several tests looks at all files
def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    return names_imported(path, path.read_text())


def names_imported(path: Path, text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def outside(path: Path) -> set[str]:
    """Top-level packages that are neither the standard library nor a room."""
    return {name.split(".")[0] for name in imports(path)} - STANDARD - set(ROOMS)


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} & set(ROOMS)


def in_room(room: str) -> list[Path]:
    return [path for path in SOURCES if path.relative_to(REPOSITORY).parts[0] == room]


@pytest.mark.parametrize(
    ("room", "packages", "rooms"),
    [
        ("kernels", {"torch", "numpy"}, {"kernels"}),
        (
            "datasets",
            {"torch", "numpy", "PIL", "fontTools", "google_crc32c", "simplejpeg", "cv2"},
            {"datasets"},
        ),
    ],
)
def test_a_room_imports_only_what_it_may(room, packages, rooms):
    for path in in_room(room):
        assert outside(path) <= packages, path
        assert rooms_of(path) <= rooms, path


def test_the_schema_imports_pydantic_alone_and_of_the_other_rooms_how_names_are_shown():
    for path in in_room("configs"):
        assert outside(path) <= {"pydantic"}, path
        modules = {name for name in imports(path) if name.startswith(ROOMS)}
        assert all(name.startswith(("configs.", "datasets.shown")) for name in modules), (path, modules)


def upward(path: Path, text: str) -> list[str]:
    """The imports of a file of the engine by which an arrow runs up, or out of the engine to where it may not."""
    room = path.relative_to(REPOSITORY / "engine").parts[0]
    below = SUB_ROOMS[SUB_ROOMS.index(room) :]
    may = [f"engine.{one}" for one in below] + ["kernels", "datasets.batch", "datasets.shown"]
    may += ["configs", "datasets"] if room == "jobs" else []
    found = {
        name
        for name in names_imported(path, text)
        if name.split(".")[0] in ROOMS and name not in ("engine", "datasets")
    }
    return sorted(name for name in found if not any(name == one or name.startswith(f"{one}.") for one in may))


def test_arrows_between_the_rooms_of_the_engine_go_down_and_jobs_alone_see_configs_and_datasets():
    there = {path.name for path in (REPOSITORY / "engine").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert there == set(SUB_ROOMS)
    for path in in_room("engine"):
        if path != REPOSITORY / "engine" / "__init__.py":
            assert not upward(path, path.read_text()), path


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("rows", "from engine.disk.files import Files"),
        ("rows", "import engine.disk.files"),
        ("disk", "from engine.training import checkpoint"),
        ("training", "from engine.jobs.parts import open_data"),
        ("training", "from datasets.schedule import Schedule"),
        ("ranks", "from configs import schema"),
        ("results", "def f():\n    from engine.training.run import Run"),
    ],
)
def test_a_planted_upward_arrow_is_found(room, line):
    path = REPOSITORY / "engine" / room / "planted.py"
    assert upward(path, line)
    assert not upward(
        path, f"from engine.{room} import other\nfrom datasets.batch import Batch\nfrom engine.ranks.lanes import Lanes"
    )


def test_nothing_imports_from_a_file_of_tests():
    for path in SOURCES:
        assert not [name for name in imports(path) if re.match(r"tests(\.\w+)*\.test_\w+", name)], path


def test_nothing_imports_launch_but_tests():
    for path in SOURCES:
        if path.relative_to(REPOSITORY).parts[0] != "tests":
            assert "launch" not in rooms_of(path), path


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("deepspeed", "engine/trunk/zero.py"),
        ("faiss", "engine/evaluation/knn.py"),
        ("torch.distributed", "engine/ranks/ranks.py"),
        ("zarr", "engine/disk/zarr_format.py"),
        ("jinja2", "engine/results/page.py"),
        ("plotly", "engine/results/page.py"),
        ("matplotlib", "engine/jobs/store_picture.py"),
        ("simplejpeg", "datasets/plain_jpeg.py"),
        ("cv2", "datasets/views/opencv.py"),
        ("timm", "engine/trunk/timm_models.py"),
    ],
)
def test_a_heavy_package_has_one_home(package, home):
    homes = {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        if path.relative_to(REPOSITORY).parts[0] != "tests"
        and any(name == package or name.startswith(package + ".") for name in imports(path))
    }
    assert homes == ({home} if home else set())


def test_the_oracle_imports_torch_and_the_standard_library_alone():
    path = REPOSITORY / "tests" / "oracle.py"
    assert outside(path) == {"torch"}
    assert not rooms_of(path)
    assert len(path.read_text().splitlines()) < 100


def test_a_wrong_config_is_refused_before_torch_is_imported():
    code = (
        "import sys, launch\n"
        "assert launch.main(['--config', 'configs/pic_sampled.json', 'optimizer.lr=no']) == 2\n"
        "heavy = {'torch', 'deepspeed', 'faiss', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.json")), ids=lambda path: path.name)
def test_every_config_that_ships_is_read_and_planned(path, capsys, tmp_path):
    import launch

    source = json.loads(path.read_text())["data"]["source"]
    if source == "fashion_mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    words = []
    if source == "folder":
        words = [f"data.root={tmp_path / 'images'}", f"output={tmp_path / 'run'}"]
        for number in range(320):
            image = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (number % 256, 0, 0)).save(image)
    assert launch.main(["--config", str(path), "--dry-run", *words]) == 0
    is_sweep = json.loads(path.read_text())["job"] == "scale"
    assert ("cells" if is_sweep else "steps of") in capsys.readouterr().out


def test_the_config_for_imagenet_has_the_published_sizes():
    from configs import schema
    from engine.jobs.chosen_sizes import sized

    config = sized(schema.load(str(REPOSITORY / "configs" / "imagenet_resnet50.json"), []), 1_281_167)
    schedule = config.schedule
    assert (schedule.window, schedule.stride, config.rows.active) == (131_072, 16_384, 65_536)
    assert schedule.batch // schedule.micro_batches == 64


def test_every_key_of_the_schema_is_explained_in_the_docs():
    from configs.schema import _known_keys

    text = (REPOSITORY / "configs" / "README.md").read_text()
    missing = [key for key in _known_keys() if f"`{key.split('.')[-1]}`" not in text]
    assert not missing


# Where a section is read under another name: what holds it, beside the section itself.
HOLDERS = {"method": {"config.rows", "settings"}, "data.augment.crops": {"crop"}}
# These are made of data.augment, key by key, so that what they read of themselves is read of it.
AUGMENTATIONS = {REPOSITORY / "datasets" / "grey.py", REPOSITORY / "datasets" / "photos.py"}
# Keys that are read under another name: by a property of their section, or as an argument.
READ_AS = {"optimizer.rows_weight_decay": "decay_of_rows", "data.augment.views": "view_count"}


def chain_of(node: ast.AST) -> str:
    """`a.b.c` as written; "" where it does not begin with a name."""
    if isinstance(node, ast.Name):
        return node.id
    above = chain_of(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{above}.{node.attr}" if above and isinstance(node, ast.Attribute) else ""


def attributes_read(text: str) -> set[str]:
    """Every `a.b.c` that a file reads; where a was assigned d.e in that file, `d.e.b.c` as well."""
    tree, given = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (
                    zip(target.elts, node.value.elts, strict=False)
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    else [(target, node.value)]
                )
                given += [(one.id, chain_of(value)) for one, value in pairs if isinstance(one, ast.Name)]
    reads = {
        chain_of(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for name, value in given:
        if value:
            reads |= {value + read.removeprefix(name) for read in reads if read.startswith(f"{name}.")}
    return reads


def unread_keys(keys: list[str], reads: set[str]) -> list[str]:
    """Keys `section.key` of which nothing reads that attribute of that section."""
    ends = {
        ".".join(parts[-depth:]) for parts in (read.split(".") for read in reads) for depth in range(1, len(parts) + 1)
    }
    unread = []
    for key in keys:
        section, _, name = key.rpartition(".")
        name = READ_AS.get(key, name)
        holders = {section.rpartition(".")[2] or "config", *HOLDERS.get(section, ())}
        if not any(f"{holder}.{name}" in ends for holder in holders):
            unread.append(key)
    return unread


def test_every_key_of_the_schema_is_read_somewhere():
    from configs.schema import _known_keys

    reads: set[str] = set()
    for path in [*in_room("engine"), *in_room("datasets"), REPOSITORY / "launch.py"]:
        of_file = attributes_read(path.read_text())
        reads |= of_file
        if path in AUGMENTATIONS:
            reads |= {f"augment.{read.removeprefix('self.')}" for read in of_file if read.startswith("self.")}
    assert unread_keys(_known_keys(), reads) == []


def test_a_key_that_nothing_reads_is_found_whatever_else_has_its_name():
    keys = ["steps", "evaluate.k", "evaluate.limit", "store.step", "optimizer.rows_weight_decay"]
    named = "k = 1\nprint(run.k, 'evaluate.k', self.limit, batch.step, steps)\nconfig.evaluate.k = 2\n"
    assert unread_keys(keys, attributes_read(named)) == keys
    read = "asked, wanted = config.evaluate, self.config.store\nuse(asked.k, wanted.step, config.steps, asked.limit)\n"
    assert unread_keys(keys, attributes_read(read)) == keys[4:]
    assert unread_keys(keys[4:], attributes_read("config.optimizer.decay_of_rows")) == []


MOST_LINES, MOST_ARGUMENTS = 60, 10
# What may be longer, or take more, and why.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_CALLS = {
    "softmax_rows_update_": "a call into the kernels, which take tensors and numbers and no objects",
}


def long_functions(text: str) -> list[str]:
    """Functions of more than MOST_LINES lines, from `def` to their last line."""
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MOST_LINES
    ]


def long_calls(text: str) -> list[str]:
    """What is called with more than MOST_ARGUMENTS arguments."""
    return [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > MOST_ARGUMENTS
    ]


def test_no_function_is_long_and_no_call_takes_many_arguments():
    for path in SOURCES:
        if path.relative_to(REPOSITORY).parts[0] not in ("kernels", "tests"):
            text = path.read_text()
            assert not set(long_functions(text)) - LONG_FUNCTIONS.keys(), path
            assert not set(long_calls(text)) - LONG_CALLS.keys(), path


def test_every_exception_is_needed():
    text = [path.read_text() for room in ("engine", "datasets", "configs", "launch.py") for path in in_room(room)]
    assert LONG_FUNCTIONS.keys() <= {name for one in text for name in long_functions(one)}
    assert LONG_CALLS.keys() <= {name for one in text for name in long_calls(one)}


def test_a_planted_function_of_61_lines_and_a_planted_call_with_11_arguments_are_found():
    body = "    x = 1\n" * (MOST_LINES - 1)
    assert long_functions(f"class A:\n  def f():\n{body}") == []
    assert long_functions(f"class A:\n  def f():\n{body}    y = 2\n") == ["f"]
    assert long_calls(f"g({', '.join(['1'] * 10)})") == []
    assert long_calls(f"h.g({', '.join(['1'] * 8)}, a=1, b=2, c=3)") == ["h.g"]


def test_launch_is_short():
    assert len((REPOSITORY / "launch.py").read_text().splitlines()) <= 120


def test_the_room_of_the_run_knows_nothing_of_rows():
    words = ("ActiveRows", "HostTier", "MemoryStore", "RowTable", "engine.rows.active_rows", "engine.rows.host_tier")
    for path in sorted((REPOSITORY / "engine" / "training").glob("*.py")):
        assert not [word for word in words if word in path.read_text()], path


def test_configs_are_json_schema_and_readme():
    there = {
        path.name
        for path in (REPOSITORY / "configs").iterdir()
        if path.suffix != ".json" and path.name != "__pycache__"
    }
    assert there == {
        "README.md",
        "__init__.py",
        "schema.py",
        "augment.py",
        "data.py",
        "fields.py",
        "linear.py",
        "methods.py",
        "optimizer.py",
        "scale.py",
        "texts.py",
        "earlier.py",
    }


def test_every_slow_test_is_there():
    for line in sorted(slow_tests()):
        name, *parts = line.split("::")
        path = REPOSITORY / name
        assert path.is_file(), line
        # A class may have its tests from elsewhere.
        assert not parts or re.search(rf"^(class|def|) ?{parts[0]}\b", path.read_text(), re.MULTILINE), line


def test_a_test_is_slow_by_the_sum_of_its_cases_and_with_its_file():
    printed = (
        "0.30s call     tests/a.py::test_b[1]\n0.30s setup    tests/a.py::test_b[x::y]\n0.40s call tests/a.py::test_c\n"
    )
    assert measured(printed) == {"tests/a.py::test_b"}
    assert is_slow("tests/a.py::test_b[2]", {"tests/a.py::test_b"}) and is_slow("tests/a.py::test_b", {"tests/a.py"})
    assert not is_slow("tests/a.py::test_bc", {"tests/a.py::test_b"})
