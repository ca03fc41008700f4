#!/bin/sh
# Installs the wheels in dist/ into an empty environment, as somebody without Rust and without this repository would,
# plays the demo recording to the demo model from there and compares its words with those expected.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
trap 'exit 130' INT TERM

cp "$root/requirements.txt" "$root/assets/demo/digits.flac" "$root"/dist/*.whl "$place"
"$("$python" -c 'import sys; print(sys._base_executable)')" -m venv "$place/venv"
cd "$place"
venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --only-binary :all: --constraint requirements.txt ./*.whl
venv/bin/python -m pip --disable-pip-version-check check

clean() { env -i HOME="$place" PATH="$place/venv/bin:/usr/bin:/bin" LC_ALL=C.UTF-8 "$@"; }
clean venv/bin/python -I -c '
import mimi, msh_mlx, sys
inside = [m.__name__ for m in (mimi, msh_mlx) if not m.__file__.startswith(sys.prefix)]
sys.exit("not imported from the wheels: " + ", ".join(inside) if inside else 0)'
clean msh-mlx --version
clean msh-mlx --demo --input digits.flac --output reply.wav --transcript reply.jsonl --tail 2 --temperature 0 --text-temperature 0
clean venv/bin/python - "$root/assets/demo/expected.json" <<'END'
import json, sys
from pathlib import Path
import soundfile

expected = json.loads(Path(sys.argv[1]).read_text())["words"]
said = [json.loads(line)["text"].strip() for line in Path("reply.jsonl").read_text().splitlines()]
if said != expected:
    sys.exit(f"the wheels say {said}, not {expected}")
reply = soundfile.info("reply.wav")
if reply.samplerate != 24000 or reply.channels != 1 or reply.duration < 1:
    sys.exit(f"the reply is odd: {reply}")
print("from the wheels:", " ".join(said), f"({reply.duration:.1f} s)")
END
