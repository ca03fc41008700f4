"""The standard output that only this program writes to."""

import subprocess
import sys

CODE = """
import os
from msh_mlx.system.streams import only_ours, open_standard
open_standard()
print("before")
with only_ours():
    print("within")
    os.system("echo lost")
    print("größer", end="")
print(flush=True)
os.system("echo after")
"""


def test_what_other_programs_print_is_kept_out():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == ["before", "within", "größer", "after"]
    assert done.stderr == b""
