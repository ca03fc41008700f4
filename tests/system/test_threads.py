"""Turns of threads."""

import sys

import pytest

from msh_mlx.system.threads import short_turns


def test_turns_are_short_until_the_end_of_the_context():
    before = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(1e-3)
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
