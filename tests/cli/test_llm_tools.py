"""Which tools the command line names, and that no other is offered."""

import shlex
import subprocess
import sys

import mcp_numbers
import pytest
from paths import ROOT
from test_chat_completions import Server

from msh_mlx.cli import main
from msh_mlx.cli.cascade import check_llm, thinking
from msh_mlx.cli.llm_tools import named_tools
from msh_mlx.errors import InputError

LIMIT = 60  # seconds
MCP = shlex.join([sys.executable, mcp_numbers.__file__])
FUNCTIONS = """
def double(a: int) -> int:
    return 2 * a


def half(a: int) -> float:
    return a / 2
"""


def arguments(*options):
    args = main.parser().parse_args(["--llm", "http://127.0.0.1:1", "--demo", *options])
    check_llm(args, main.parser)
    return args


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


def offered(*options):
    """The names of the tools that the options offer, and what is told of them."""
    with named_tools(arguments(*options)) as (tools, told):
        return [each["function"]["name"] for each in tools.offered], told


def test_a_file_names_its_functions(file):
    names, told = offered("--tools", file)
    assert names == ["double", "half"]
    assert told == [f"The language model may call double and half of {file}."]


@pytest.mark.parametrize(
    ("named", "names"),
    [
        (["half"], ["half"]),
        (["h*", "double"], ["double", "half"]),
        (["*"], ["double", "half"]),
    ],
)
def test_only_those_of_a_file_that_are_named(file, named, names):
    assert offered("--tools", file, *(word for name in named for word in ("--tool", name)))[0] == names


def test_only_those_of_a_server_that_are_named(file):
    names, told = offered("--tools", file, "--mcp", MCP, "--tool", "half", "--tool", "add", "--tool", "pair*")
    assert names == ["half", "add", "pairs"]
    assert told[1].startswith("The language model may call add and pairs of the MCP server ")


def test_none_are_offered_without_the_options():
    assert offered() == ([], [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--mcp", MCP],
            r"No tool of the MCP server .* may be run: it has add, pairs, fail, wait, leave and token; "
            r"name those that may with --tool, or all with '\*'\.",
        ),
        (["--tools", "FILE", "--tool", "x"], r"No tool of .*functions\.py may be run: it has double and half; .*\."),
        (["--tools", "FILE", "--tool", "half", "--tool", "x"], r"There is no tool x; there is half\."),
        (["--tools", "FILE", "--tools", "FILE"], r"Two tools have the name double: one of .* and one of .*\."),
        (["--tools", "none.py"], r"There is no file of tools .*none\.py\."),
    ],
)
def test_what_does_not_fit(file, options, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        offered(*(file if option == "FILE" else option for option in options))


@pytest.mark.parametrize("option", ["--tools", "--mcp", "--tool", "--filler"])
def test_tools_are_for_a_language_model(option):
    args = main.parser().parse_args(["--demo", option, "x"])
    with pytest.raises(InputError, match=f"{option} is for a conversation with a language model; add --llm"):
        check_llm(args, main.parser)


@pytest.mark.parametrize("option", ["--tool", "--filler"])
def test_what_is_only_for_tools(option):
    with pytest.raises(InputError, match=f"{option} is for tools, and there are none; name them with --tools or --mcp"):
        arguments(option, "x")


@pytest.mark.parametrize(("option", "package"), [("--tools", "pydantic"), ("--mcp", "mcp")])
def test_without_the_package_it_says_what_to_install(file, monkeypatch, option, package):
    for module in ("msh_mlx.conversation.python_tools", "msh_mlx.net.mcp_tools"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{option} needs .*{package}.* not installed; pip install 'msh-mlx\[mcp\]'"):
        offered(option, file)


def test_one_function_makes_the_language_model_with_its_tools(file):
    with Server() as server:
        args = main.parser().parse_args(["--llm", server.url, "--demo", "--tools", file])
        check_llm(args, main.parser)
        with thinking(args) as (thinker, told):
            assert thinker.server.model == "small"
        assert [sentence.split(" of ")[0] for sentence in told] == [
            "The language model is small",
            "The language model may call double and half",
        ]


@pytest.mark.parametrize(
    ("option", "code", "sentence"),
    [
        ("no-such-command", 2, "The MCP server no-such-command cannot be started: No such file or directory"),
        (
            shlex.join([sys.executable, "-c", "exit('not today')"]),
            1,
            "ended at its start (not today); try its command.",
        ),
    ],
)
def test_exit_codes(option, code, sentence):
    with Server() as server:
        done = subprocess.run(
            [sys.executable, str(ROOT / "local_mlx.py"), "--llm", server.url, "--demo", "--mcp", option],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert done.returncode == code
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
