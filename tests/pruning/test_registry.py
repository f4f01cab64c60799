"""Plug-ins are found in their folder, functions of the user's in their module; every mistake is one line."""

from __future__ import annotations

import pickle
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import DataError, ModelError, OptionError, PruningError, UnknownNameError
from pruning.registry import Registry, check_options, find_function

PLUG_INS = {
    "__init__": "from pruning.registry import Registry\nSHAPES = Registry('shape', 'own_shapes')",
    "square": "from own_shapes import SHAPES\n@SHAPES.register('square', 'quadrat')\n"
    "def square(size, name='none'):\n    return size * size, name",
    "_circle": "from own_shapes import SHAPES\n@SHAPES.register('circle')\ndef circle(*, radius: float = 1.0):\n"
    "    return 3 * radius**2",
}


def write_module(folder: Path, name: str, source: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.fixture
def shapes(tmp_path) -> Registry:
    for name, source in PLUG_INS.items():
        write_module(tmp_path / "own_shapes", name, source)
    from own_shapes import SHAPES

    return SHAPES


def test_a_registry_finds_every_module_of_its_folder(shapes):
    assert shapes.names() == ("circle", "quadrat", "square")
    assert shapes.options("square") == ("size", "name")
    assert shapes.build("circle", radius=2.0) == 12
    assert shapes.build("quadrat", size=3) == shapes.build("square", size=3) == (9, "none")


def test_an_option_may_be_called_name(shapes):
    assert shapes.build("square", size=3, name="mine") == (9, "mine")
    with pytest.raises(OptionError, match="shape 'circle': unknown option 'name'; there are: radius"):
        shapes.build("circle", name="mine")


def test_a_registry_tells_the_nearest_name_and_what_an_entry_takes(shapes):
    with pytest.raises(UnknownNameError, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes.build("sqare", size=1)
    with pytest.raises(OptionError, match="shape 'square': unknown option 'sise'; did you mean 'size'"):
        shapes.build("square", sise=1)
    with pytest.raises(OptionError, match=r"missing a required argument: 'size'; it takes \(size, name='none'\)"):
        shapes.build("square")


def test_a_name_belongs_to_one_entry(shapes):
    entry = shapes.get("circle")
    assert shapes.register("circle")(entry) is entry
    with pytest.raises(ValueError, match="shape 'circle' is registered twice"):
        shapes.register("circle")(lambda: 0)


def test_a_function_is_found_by_module_and_name(tmp_path):
    write_module(tmp_path / "own_package", "part", "def double(x): return 2 * x")
    assert find_function("model", "own_package.part:double", ModelError)(4) == 8


@given(name=st.text(alphabet="ab.:3 ", max_size=8))
def test_nothing_but_package_module_and_function_is_imported(name):
    parts = name.replace(":", ".").split(".")
    if name.count(":") == 1 and name.rpartition(":")[2].count(".") == 0 and all(part.isidentifier() for part in parts):
        return
    with pytest.raises(ModelError, match=r"expected package\.module:function$"):
        find_function("model", name, ModelError)


def test_a_function_that_is_not_there_is_told_with_the_nearest(tmp_path):
    write_module(tmp_path, "own_part", "def double(x): return 2 * x\ntriple = 3")
    with pytest.raises(UnknownNameError, match="unknown model 'own_part:doubel'; did you mean 'own_part:double'"):
        find_function("model", "own_part:doubel", ModelError)
    with pytest.raises(DataError, match="data source 'own_part:triple': expected a function 'triple' in 'own_part'"):
        find_function("data source", "own_part:triple", DataError)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import own_missing", "No module named 'own_missing'"),
        ("from math import tau, tao", "cannot import name 'tao' from 'math'"),
        ("raise ImportError", "ImportError: "),
        ("def net(:", r"SyntaxError: .*own_faulty\.py, line 1"),
        ("width = widht", "NameError: name 'widht' is not defined"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first$"),
    ],
)
@pytest.mark.parametrize("error", [ModelError, DataError])
def test_a_module_that_cannot_be_imported_is_named_in_one_line(tmp_path, source, reason, error: type[PruningError]):
    write_module(tmp_path, "own_faulty", source)
    with pytest.raises(error, match=f"^thing 'own_faulty:net': cannot import 'own_faulty': {reason}") as caught:
        find_function("thing", "own_faulty:net", error)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None  # the whole story, for who asks for it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing a required argument: 'classes'"),
        ({"classes": 3, "widht": 2}, "got an unexpected keyword argument 'widht'"),
        ({"classes": 3, "place": 2}, "'place' parameter is positional only"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_what_is_taken(options, message):
    def build(place=0, /, *, classes: int, width: int = 4) -> None: ...

    with pytest.raises(OptionError, match=f"^model 'x': .*{message}.*; it takes \\(place=0, /, \\*, classes, width=4"):
        check_options("model 'x'", build, options)


def test_options_that_fit_pass_and_nothing_is_called():
    check_options("model 'x'", lambda classes, **others: 1 / 0, {"classes": 3, "width": 4, "place": 1, "options": 2})


def test_what_has_no_signature_is_no_function_of_the_users():
    with pytest.raises(OptionError, match="model 'x': expected a Python function or class, got <class 'dict'>"):
        check_options("model 'x'", dict, {})


@pytest.mark.parametrize("error", [DataError("images: none"), UnknownNameError("shape", "squar", ["square"])])
def test_a_mistake_comes_back_from_another_process_as_it_was(error):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found)) == (type(error), str(error))
