"""The format of sound: its numbers fit each other, and stand in one place."""

import ast
from pathlib import Path

import msh_mlx
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE

PACKAGE = Path(msh_mlx.__file__).parent
# The same numbers, of something else.
OTHERS = {
    "net/server.py": {0.08},  # a bound of a histogram
    "sound/headset.py": {24000},  # a rate of Bluetooth's
    "sound/ogg.py": {1920},  # samples of a packet at 48 kHz
}


def test_numbers_stand_in_one_place():
    numbers = {SAMPLE_RATE, FRAME_SIZE, FRAME_SECONDS}
    assert numbers == {24_000, 1_920, 0.08}
    found = {}
    for path in PACKAGE.rglob("*.py"):
        values = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if here := values & numbers:
            found[path.relative_to(PACKAGE).as_posix()] = here
    assert found == OTHERS | {"format.py": {SAMPLE_RATE, FRAME_SIZE}}
