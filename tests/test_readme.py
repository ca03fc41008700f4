"""What the README shows is run."""

import re
import subprocess
import sys

import soundfile
from paths import ROOT


def test_the_example_of_the_api_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["four", "one", "three", "eight", "nine", "zero"]
    assert soundfile.info(tmp_path / "reply.wav").samplerate == 24000
