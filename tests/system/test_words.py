"""Numbers and foreign text in sentences."""

import pytest

from msh_mlx.system.words import human_size, printable, shortened, valid


@pytest.mark.parametrize(
    ("count", "digits", "text"),
    [(None, 1, "?"), (0, 1, "0.0 MB"), (20_200_000, 1, "20.2 MB"), (10**9, 1, "1.0 GB"), (9_731_000_000, 2, "9.73 GB")],
)
def test_bytes_have_a_unit(count, digits, text):
    assert human_size(count, digits) == text


def test_a_terminal_gets_no_commands():
    assert printable("a\tb\r\nc\x1b[31m\u2028d\u202ee é") == "a b  c\ufffd[31m d\ufffde é"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\x1b[31m", "a b\ufffd[31m"), ("  a  ", "a"), ("x" * 10, "x" * 10), ("x" * 11, "x" * 9 + "…"), ("", "")],
)
def test_what_others_sent_is_shown_on_one_short_line(text, line):
    assert shortened(text, 10) == line


@pytest.mark.parametrize(
    ("text", "good"),
    [("é \U0001f600", "é \U0001f600"), ("\ud83d\ude00", "\U0001f600"), ("a\ud83d b", "a\ufffd b"), ("", "")],
)
def test_halves_of_characters_are_joined(text, good):
    assert valid(text) == good
