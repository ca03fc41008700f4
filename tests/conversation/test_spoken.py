"""Text cut into words and pauses, against a slow and obvious version of the same."""

import itertools
import random
import re

import pytest

from msh_mlx import InputError, Turn
from msh_mlx.conversation.spoken import Pause, SpokenWord, cut, dialogue


def words(text, speaker=0):
    return [SpokenWord(word, speaker) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two", words("one two")),
        ("  one\n\ttwo\u00a0three ", words("one two three")),
        ("It’s (not) 12:30: a", words("It's not 12 30 a")),
        ("(:)", []),
        ('a <break time="1.5s"/> b', [*words("a"), Pause(1.5), *words("b")]),
        ("a<break time='250ms' />b", [*words("a"), Pause(0.25), *words("b")]),
        ("<break time=2s><BREAK TIME = 60s/>", [Pause(2.0), Pause(60.0)]),
        ("a<b <breakfast> 1 < 2 <", words("a<b <breakfast> 1 < 2 <")),
    ],
)
def test_words_and_pauses(text, parts):
    assert list(cut([text])) == parts
    assert list(cut(text)) == parts, "letter by letter"


@pytest.mark.parametrize(
    "text",
    [
        "<break",
        "a <break/> b",
        "a <break >",
        '<break time="1.5"/>',
        '<break time="-1s"/>',
        '<break time="1s',
        '<break time="1s" strength="x"/>',
        "<break time=61s/>",
        "<break time=1e9s/>",
        '<break time="١s"/>',
        "</break>",
        "<break time=1s " + " " * 200 + "/>",
        "x" * 1001,
        "\ud800",
    ],
)
def test_what_is_refused(text):
    for pieces in ([text], list(text), [f"one {text} two"]):
        with pytest.raises(InputError) as caught:
            list(cut(pieces))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_text_in_any_pieces():
    """Random pieces give what the whole text gives, and what the rules say about it as a whole."""
    rng = random.Random(7)
    atoms = ["one", "It’s", "(", ")", ":", " ", "\n", '<break time="1s"/>', "<break", "<", ">", "é", "A:", "x" * 40]
    for _ in range(2000):
        text = "".join(rng.choice(atoms) for _ in range(rng.randrange(12)))
        pieces, rest = [], text
        while rest:
            size = rng.randrange(1, 9)
            pieces.append(rest[:size])
            rest = rest[size:]
        try:
            parts = list(cut(pieces))
        except InputError:
            with pytest.raises(InputError):
                list(cut([text]))
            assert re.search(r"<break\s|<break>|<break/", text.replace('<break time="1s"/>', "|") + " ")
            continue
        assert parts == list(cut([text]))
        slow = []
        for part in re.split(r'(<break time="1s"/>)', text):
            plain = part.replace("’", "'").replace("(", "").replace(")", "").replace(":", " ")
            slow += [Pause(1.0)] if part.startswith("<break t") else words(plain)
        assert parts == slow


def test_a_part_comes_before_the_next_piece_is_read():
    read = []

    def pieces():
        for piece in ("one tw", "o three", "\n", "four"):
            read.append(piece)
            yield piece

    parts = cut(pieces())
    assert [(next(parts).text, len(read)) for _ in range(4)] == [("one", 1), ("two", 2), ("three", 3), ("four", 4)]


def test_a_text_without_end():
    endless = itertools.chain(["one"], itertools.cycle([" two", " three"]))
    assert list(itertools.islice(cut(endless), 10_000)) == words("one" + " two three" * 5000)[:10_000]


def test_turns():
    pieces = ["one tw", Turn("o", 1), " three", Turn("four"), Turn("", 1), "five"]
    assert list(cut(pieces)) == [*words("one tw"), *words("o three", 1), *words("four"), *words("five", 1)]


def test_a_dialogue():
    text = "zero\nA: one\nB: two\nthree B: four A:\n  B: five\nAB: six\nB:seven\n A : eight\nb: nine\nA:\nB:\n\nA:"
    said = [(part.text, part.speaker) for part in cut(dialogue([text]))]
    assert said == [
        ("zero", 0), ("one", 0), ("two", 1), ("three", 1), ("B", 1), ("four", 1), ("A", 1), ("five", 1), ("AB", 1), ("six", 1),
        ("B", 1), ("seven", 1), ("A", 1), ("eight", 1), ("b", 1), ("nine", 1),
    ]  # fmt: skip
    rng = random.Random(3)
    for _ in range(200):
        pieces, rest = [], text
        while rest:
            size = rng.randrange(1, 7)
            pieces.append(rest[:size])
            rest = rest[size:]
        assert [(part.text, part.speaker) for part in cut(dialogue(pieces))] == said


def test_a_dialogue_is_read_as_it_comes():
    read = []

    def pieces():
        for piece in ("A: one tw", "o\n", "B", ": three "):
            read.append(piece)
            yield piece

    parts = cut(dialogue(pieces()))
    assert [(next(parts).text, len(read)) for _ in range(3)] == [("one", 1), ("two", 2), ("three", 4)]
