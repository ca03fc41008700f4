"""Tools of a language model: the functions of a Python file, calls and their results, and what a dialogue keeps of them."""

import asyncio
import json
import threading
import time

import pytest

from msh_mlx.conversation.dialogue import Dialogue, Thought
from msh_mlx.conversation.python_tools import python_tools
from msh_mlx.conversation.tools import Tool, ToolCall, Tools, think
from msh_mlx.errors import InputError, MshError
from msh_mlx.events import Called, Calling

PATIENCE = 10.0  # seconds
ASKED = [{"role": "user", "content": "four one"}]

FILE = '''
from __future__ import annotations

import asyncio
import json  # an imported module is no tool, and what comes from one is none either
import threading
from dataclasses import dataclass
from json import dumps
from typing import Annotated, Literal

from pydantic import Field

limit = 5


@dataclass
class Place:
    name: str
    height: float = 0.0


def add(a: int, b: Annotated[int, Field(description="the other")] = 1) -> int:
    """Add two numbers.

    That is all.
    """
    return a + b


async def find(place: Place, unit: Literal["m", "km"] = "m"):
    await asyncio.sleep(0)
    return {"place": place, "unit": unit}


def thread():
    return threading.current_thread().name


def nothing() -> None:
    pass


def fail():
    raise KeyError("no luck")


def leave():
    raise SystemExit(3)


async def stop():
    raise KeyboardInterrupt


def _hidden():
    pass
'''


def written(folder, text, name="numbers.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.fixture
def functions(tmp_path):
    with python_tools(written(tmp_path, FILE)) as tools:
        yield {tool.name: tool for tool in tools}


def result(tool, **arguments):
    return asyncio.run(tool.run(arguments))


# ---- the functions of a file -----------------------------------------------------------------------------------------------


def test_the_functions_of_a_file_are_its_tools(functions):
    assert list(functions) == ["add", "find", "thread", "nothing", "fail", "leave", "stop"]
    add = functions["add"]
    assert add.description == "Add two numbers.\n\nThat is all."
    assert add.parameters["required"] == ["a"]
    assert add.parameters["properties"]["a"]["type"] == "integer"
    assert add.parameters["properties"]["b"]["description"] == "the other"
    assert functions["find"].parameters["properties"]["unit"]["enum"] == ["m", "km"]
    json.dumps(functions["find"].parameters)


def test_arguments_are_converted_and_results_are_text(functions):
    assert result(functions["add"], a="4") == "5"
    found = result(functions["find"], place={"name": "Rigi", "height": 1798})
    assert json.loads(found) == {"place": {"name": "Rigi", "height": 1798.0}, "unit": "m"}
    assert result(functions["nothing"]) == "Done."


def test_each_call_of_a_plain_function_has_a_thread(functions):
    assert result(functions["thread"]) == "msh-tool-thread"


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("add", {"a": "x"}, r"The arguments are wrong \(a: Input should be a valid integer.*\)\."),
        ("add", {"a": 1, "c": 2}, r"The arguments are wrong \(c: Unexpected keyword argument\)\."),
        ("find", {"place": {}}, r"The arguments are wrong \(place\.name: Field required\)\."),
        ("fail", {}, "no luck"),
        ("leave", {}, r"It wanted to end the program \(SystemExit: 3\)\."),
        ("stop", {}, r"It wanted to end the program \(KeyboardInterrupt\)\."),
    ],
)
def test_what_goes_wrong_in_a_function_is_told(functions, name, arguments, error):
    with pytest.raises(Exception, match=error):
        result(functions[name], **arguments)


def test_a_function_that_is_given_up_does_not_hold_up_the_loop(tmp_path):
    """Neither a plain one, which goes on, nor a coroutine that blocks its own loop."""

    async def give_up(tool):
        begin = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(tool.run({}), 0.05)
        return time.monotonic() - begin

    text = "import time\n\ndef plain():\n    time.sleep(2)\n\nasync def blocks():\n    time.sleep(2)\n"
    with python_tools(written(tmp_path, text)) as tools:
        for tool in tools:
            assert asyncio.run(give_up(tool)) < 1.5


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def f(:", r"numbers\.py is not Python: .* in line 1; give a file of Python functions\."),
        ("raise ValueError('no key')", r"numbers\.py cannot be imported: ValueError: no key\."),
        ("import sys; sys.exit(3)", r"numbers\.py cannot be imported: SystemExit: 3\."),
        ("import nothing_like_this", r"numbers\.py cannot be imported: ModuleNotFoundError: .*nothing_like_this.*\."),
        ("x = 1", r"numbers\.py has no function for the language model; define one whose name does not begin with _\."),
        (
            "def f(*a, **b): pass",
            r"The function f of .*numbers\.py cannot be a tool: .*; give its arguments types .*\.",
        ),
        (
            "def f(*a): pass",
            r"The function f of .* cannot be a tool: its arguments have no names; give them some, or .*\.",
        ),
        (
            "def f(a, /): pass",
            r"The function f of .* cannot be a tool: its arguments have no names; give them some, or .*\.",
        ),
        ("def größe(): pass", r"größe of .* its name is not made of a to z, digits and _; rename it\."),
        ("f = lambda a: a", r"<lambda> of .* its name is not made of a to z, digits and _; rename it\."),
        ("\0", r"numbers\.py .*null bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, text, error):
    with pytest.raises(InputError, match=error) as caught, python_tools(written(tmp_path, text)):
        pass
    assert "\n" not in str(caught.value)
    assert "None" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with (
        pytest.raises(InputError, match=r"There is no file of tools .*none\.py"),
        python_tools(str(tmp_path / "none.py")),
    ):
        pass


# ---- calls and results -----------------------------------------------------------------------------------------------------


def returning(name, value=None):
    async def run(arguments):
        if isinstance(value, BaseException):
            raise value
        return str(arguments if value is None else value)

    return Tool(name, "", {"type": "object"}, run)


class Model:
    """Answers each request with the next of its answers: a text, calls, or one after the other."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def ask(self, messages):
        self.asked.append(json.loads(json.dumps(messages)))
        answer = self.answers.pop(0)
        for part in answer if isinstance(answer, tuple) else (answer,):
            await asyncio.sleep(0)
            yield part


class Told:
    """A thought, with all that is told of it and said."""

    def __init__(self):
        self.events, self.said = [], []
        self.thought = Thought(lambda: None, self.events.append)

    def take(self):
        """Take the parts that have come."""
        while not (self.thought.waits or self.thought.over):
            self.said.append("".join(piece for piece in self.thought.pieces() if piece).split())
        return self.said

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def thinks(model, *tools, **options):
    told = Told()

    async def go():
        await think(model.ask, ASKED, told.thought, Tools(tools, **options))

    asyncio.run(go())
    told.thought.end()
    told.take()
    return told


def call(name, arguments="{}", id="c1"):
    return ToolCall(id, name, arguments)


def test_the_model_gets_the_results_of_what_it_calls_in_order():
    model = Model(
        ("Let me look.", [call("add", '{"a": 4}'), call("one", "", "c2")]), ([call("one", "{}", "c3")]), "Five."
    )
    told = thinks(model, returning("add"), returning("one", 1))
    function = {"name": "add", "arguments": '{"a": 4}'}
    first = [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": {"name": "one", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "{'a': 4}", "tool_call_id": "c1"},
        {"role": "tool", "content": "1", "tool_call_id": "c2"},
    ]
    assert model.asked[1] == [*ASKED, *first]
    assert [message["role"] for message in model.asked[2][4:]] == ["assistant", "tool"]
    assert told.said == [["Let", "me", "look."], ["Five."]]
    assert [event.name for event in told.of(Calling)] == ["add", "one", "one"]
    assert [(event.name, event.result, event.failed) for event in told.of(Called)][2] == ("one", "1", False)
    assert told.thought.messages({0: ["Let", "me", "look."], 1: ["Five."]}) == [
        *first,
        *model.asked[2][4:],
        {"role": "assistant", "content": "Five."},
    ]


def test_calls_run_together():
    both = threading.Barrier(2, timeout=PATIENCE)

    async def meet(_):
        await asyncio.to_thread(both.wait)
        return "met"

    told = thinks(Model([call("a"), call("b", id="c2")], "Done."), *(Tool(name, "", {}, meet) for name in ("a", "b")))
    assert [event.result for event in told.of(Called)] == ["met", "met"]


@pytest.mark.parametrize(
    ("wanted", "result"),
    [
        (call("nobody"), "Error: there is no tool 'nobody', only good, bad, late, gone, poor, long and slow."),
        (call("good", "{a: 1}"), "Error: the arguments are not a JSON object (Expecting property name"),
        (call("good", "[1]"), "Error: the arguments are not a JSON object (it is list)."),
        (call("good", '{"a": NaN}'), "Error: the arguments are not a JSON object (NaN is no number of JSON)."),
        (
            call("good", '{"a": ' + "[" * 200_000),
            "Error: the arguments are not a JSON object (it is nested too deeply).",
        ),
        (call("bad"), "Error: ValueError: no luck"),
        (call("late"), "Error: TimeoutError: the door"),
        (call("gone"), "Error: this call was given up before its result came."),
        (call("poor"), "Error: It is closed; come again."),
        (call("good", '{"a": "\\ud83d"}'), "fine"),
        (call("long"), f"{'x' * 8000}\n(This is cut: the result has 10000 characters.)"),
        (call("slow"), "Error: this took longer than 0.05 s, and was given up."),
    ],
)
def test_whatever_goes_wrong_the_model_and_the_user_are_told(wanted, result):
    ran = []

    async def slow(_):
        await asyncio.sleep(PATIENCE)
        ran.append("slow")

    tools = [
        *(returning("good", "fine"), returning("bad", ValueError("no luck"))),
        *(returning("late", TimeoutError("the door")), returning("gone", asyncio.CancelledError())),
        *(returning("poor", MshError("It is closed", "come again")), returning("long", "x" * 10000)),
        Tool("slow", "", {}, slow),
    ]
    model = Model([wanted], "Well.")
    told = thinks(model, *tools, limit=0.05)
    asked, got = model.asked[1][1:]
    assert got["content"].startswith(result)
    (called,) = told.of(Called)
    assert (called.result, called.failed) == (got["content"], result != "fine" and wanted.name != "long")
    json.loads(asked["tool_calls"][0]["function"]["arguments"].encode())  # what servers read again
    assert told.said == [["Well."]]
    assert not ran


def test_no_tool_runs_that_is_not_offered():
    ran = []

    async def run(_):
        ran.append(1)
        return ""

    hidden = Tool("hidden", "", {}, run)
    told = thinks(Model([call("hidden"), call("Good", id="2")], "So."), returning("good"))
    assert not ran
    assert hidden.name not in [each["function"]["name"] for each in Tools([returning("good")]).offered]
    assert [event.failed for event in told.of(Called)] == [True, True]


def test_calls_without_identifiers_get_different_ones():
    model = Model([call("one", id=""), call("one", id=""), call("one", id="c"), call("one", id="c")], "So.")
    thinks(model, returning("one", 1))
    ids = [each["id"] for each in model.asked[1][1]["tool_calls"]]
    assert len(set(ids)) == 4
    assert ids[2] == "c"
    assert all(len(id) == 9 and id.isalnum() for id in (*ids[:2], ids[3]))
    assert [each["tool_call_id"] for each in model.asked[1][2:]] == ids


def test_a_model_that_only_calls_tools_is_stopped():
    model = Model(*[[call("one")]] * 20)
    with pytest.raises(MshError, match=r"The language model called tools 8 times and did not answer; ask again"):
        thinks(model, returning("one", 1))
    assert len(model.asked) == 8


@pytest.mark.parametrize(
    ("before", "filler", "said"),
    [
        ("", "One moment.", [["One", "moment."], ["Five."]]),
        ("Let me see.", "One moment.", [["Let", "me", "see."], ["Five."]]),
        ("", "", [["Five."]]),
    ],
)
def test_a_filler_is_said_while_a_tool_takes_long_and_nothing_was_said(before, filler, said):
    async def slow(_):
        await asyncio.sleep(0.2)
        return "5"

    model = Model((before, [call("slow")]), "Five.")
    told = thinks(model, Tool("slow", "", {}, slow), filler=filler, patience=0.01)
    assert told.said == said
    heard = dict(enumerate(said))
    assert told.thought.messages(heard)[-1] == {"role": "assistant", "content": "Five."}  # the filler is not kept


def test_a_tool_that_is_quick_needs_no_filler():
    told = thinks(Model([call("one")], "Five."), returning("one", 1), filler="One moment.", patience=PATIENCE)
    assert told.said == [["Five."]]


def test_who_interrupts_ends_the_tools_and_no_call_is_without_result():
    """The call that was done is kept with its result: what it did was done."""
    ended = []

    async def slow(_):
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            ended.append("slow")
            raise

    told = Told()
    tools = Tools([Tool("slow", "", {}, slow), returning("one", 1)])

    async def go():
        model = Model(("So ", [call("slow"), call("one", id="c2")]))
        task = asyncio.ensure_future(think(model.ask, ASKED, told.thought, tools))
        while not told.of(Called):
            await asyncio.sleep(0.001)
        told.thought.end()  # as `cancel` does
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    asyncio.run(go())
    assert ended == ["slow"]
    asked, *results = told.thought.messages({})
    assert [each["id"] for each in asked["tool_calls"]] == ["c1", "c2"]
    given_up = "Error: this call was given up before its result came."
    assert [each["content"] for each in results] == [given_up, "1"]
    assert [(event.name, event.failed) for event in told.of(Called)] == [("one", False), ("slow", True)]


# ---- a dialogue with calls -------------------------------------------------------------------------------------------------

CALLS = [
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}]},
    {"role": "tool", "content": "5", "tool_call_id": "c1"},
]


def roles(dialogue):
    return [message["role"] for message in dialogue.messages]


def test_a_dialogue_keeps_calls_between_turns():
    dialogue = Dialogue("Be brief.")
    dialogue.say("user", "four one")
    dialogue.keep([*CALLS, {"role": "assistant", "content": "Five."}])
    dialogue.say("user", "three")
    assert roles(dialogue) == ["system", "user", "assistant", "tool", "assistant", "user"]


def test_where_nothing_was_heard_behind_a_result_the_order_stays():
    dialogue = Dialogue()
    dialogue.say("user", "four one")
    dialogue.keep(CALLS)
    dialogue.say("user", "three")
    assert roles(dialogue) == ["user", "assistant", "tool", "assistant", "user"]
    assert dialogue.messages[3]["content"] == "..."


@pytest.mark.parametrize("turns", range(1, 6))
@pytest.mark.parametrize("rounds", range(4))
def test_what_is_left_after_forgetting_begins_with_the_user(turns, rounds):
    dialogue = Dialogue("Be brief.")
    for number in range(turns):
        dialogue.say("user", f"turn {number}")
        if number < turns - 1:
            dialogue.keep([*CALLS * rounds, {"role": "assistant", "content": "Five."}])
    dialogue.keep(CALLS * rounds)
    before = dialogue.messages
    while dialogue.forget():
        assert roles(dialogue)[:2] == ["system", "user"]
        assert len(dialogue.messages) < len(before)
        assert dialogue.messages[1:] == before[len(before) - len(dialogue.messages) + 1 :]
        before = dialogue.messages
    assert [message["content"] for message in before if message["role"] == "user"] == [f"turn {turns - 1}"]
