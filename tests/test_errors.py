"""Errors: what was wrong and what to do are fields, so that nobody has to take a sentence apart."""

import ast
import errno
from pathlib import Path

import pytest

import msh_mlx
from msh_mlx import InputError
from msh_mlx.errors import MshError, WriteError, write_error


@pytest.mark.parametrize("kind", [MshError, InputError, WriteError])
def test_the_message_has_both_parts(kind):
    error = kind("x.wav is a folder", "give the file in it")
    assert str(error) == "x.wav is a folder; give the file in it."
    assert (error.what, error.advice) == ("x.wav is a folder", "give the file in it")
    assert error.clause == "x.wav is a folder; give the file in it"


@pytest.mark.parametrize("kind", [MshError, InputError, WriteError])
def test_a_whole_sentence_stays_as_it_is(kind):
    error = kind("There is no file x.wav.")
    assert str(error) == "There is no file x.wav."
    assert (error.what, error.advice, error.clause) == ("There is no file x.wav", "", "There is no file x.wav")


def test_a_file_that_cannot_be_written():
    error = write_error("x.wav", OSError(errno.ENOSPC, "No space left on device"))
    assert str(error) == (
        "x.wav cannot be written: No space left on device; make room, or name a place on another disk."
    )
    assert error.advice == "make room, or name a place on another disk"
    assert (error.errno, isinstance(error, OSError)) == (errno.ENOSPC, True)


def test_nobody_cuts_a_sentence_at_its_semicolon():
    cuts = {"split", "rsplit", "partition", "rpartition", "find", "index"}
    for path in Path(msh_mlx.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in cuts:
                values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                assert not {";", "; "} & {value for value in values if isinstance(value, str)}, f"{path}:{node.lineno}"


def test_nobody_writes_the_advice_into_the_sentence():
    for path in Path(msh_mlx.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) != 1:
                continue
            if not (node.func.id if isinstance(node.func, ast.Name) else "").endswith("Error"):
                continue
            parts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            assert not any("; " in str(part) for part in parts), f"{path}:{node.lineno}"
