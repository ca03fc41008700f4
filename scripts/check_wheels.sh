#!/bin/sh
# Installs wheels into an empty environment, as a user without Rust and without this repository would. Plays the demo recording
# to the demo model there, and compares its words with the expected ones. Then, on this machine, tries the rest of the family; and
# without MLX the server with a client, a conversion, and the tests of the rooms that load models. WITHOUT_NETWORK may
# hold a command that runs these tests without a network.
#   check_wheels.sh                 the wheels in dist/, on this machine
#   check_wheels.sh aarch64 ROOT    those in dist/aarch64/, with QEMU; ROOT is an arm64 system with Python (check_aarch64.sh)
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
place=$(mktemp -d)
server=''
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

cp "$root/requirements.txt" "$root/assets/demo/digits.flac" "$place"
pip() { # pip PYTHON ARGUMENT...
  with=$1
  shift
  "$with" -m pip --disable-pip-version-check --no-input "$@"
}
case ${1:-} in
  '')
    cp "$root"/dist/*.whl "$place"
    "$("$python" -c 'import sys; print(sys._base_executable)')" -m venv "$place/venv"
    cd "$place"
    bin=venv/bin
    [ -d $bin ] || bin=venv/Scripts # on Windows, in Git's shell; there Python needs SYSTEMROOT
    pip "$bin/python" install --quiet --only-binary :all: --constraint requirements.txt ./*.whl
    pip "$bin/python" check
    around=''
    clean() {
      # shellcheck disable=SC2086 # a command and its options
      $around env -i HOME="$place" PATH="$place/$bin:/usr/bin:/bin" LC_ALL=C.UTF-8 ${SYSTEMROOT:+SYSTEMROOT="$SYSTEMROOT"} "$@"
    }
    from_wheels() { clean "$bin/python" -I "$@"; }
    program() { clean msh-mlx "$@"; }
    ;;
  aarch64)
    system=$(cd "$2" && pwd -P)
    cp "$root"/dist/aarch64/*.whl "$place"
    cd "$place"
    mkdir bin tmp
    # MLX compiles for the processor that it runs on, with the compiler that it finds.
    ln -s "$(command -v aarch64-linux-gnu-g++)" bin/g++
    from_wheels() {
      env -i HOME="$place" TMPDIR="$place/tmp" PATH="$place/bin:/usr/bin:/bin" LC_ALL=C.UTF-8 PYTHONPATH="$place/site" PYTHONNOUSERSITE=1 \
        qemu-aarch64-static -L "$system" "$system/usr/bin/python3" "$@"
    }
    program() { from_wheels -m msh_mlx "$@"; }
    version=$(from_wheels -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    glibc=$(from_wheels -c 'import platform; print(platform.libc_ver()[1].split(".")[1])')
    platforms='--platform manylinux2014_aarch64'
    for minor in $(seq 17 "$glibc"); do platforms="$platforms --platform manylinux_2_${minor}_aarch64"; done
    # pip would resolve packages for the machine that it runs on.
    "$python" - msh_mlx-*.whl >needs.txt <<'END'
import sys, zipfile
from email.parser import Parser
from pip._vendor.packaging.requirements import Requirement

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
for need in map(Requirement, metadata.get_all("Requires-Dist")):
    there = {"sys_platform": "linux", "platform_machine": "aarch64", "extra": ""}
    if need.name != "msh-mimi" and (need.marker is None or need.marker.evaluate(there)):
        need.marker = None
        print(need)
END
    # shellcheck disable=SC2086 # options
    for what in '--requirement needs.txt' '--no-deps ./*.whl'; do
      pip "$python" install --quiet --only-binary :all: --constraint requirements.txt \
        --implementation cp --python-version "$version" $platforms --target site $what
    done
    ;;
  *)
    echo "check_wheels.sh: no such architecture: $1" >&2
    exit 2
    ;;
esac

from_wheels -c '
import mimi, msh_mlx, msh_native, os, platform, sys
place = os.path.realpath(sys.argv[1])
outside = [m.__name__ for m in (mimi, msh_mlx, msh_native) if not os.path.realpath(m.__file__).startswith(place)]
sys.exit("not imported from the wheels: " + ", ".join(outside) if outside else print(platform.machine(), platform.python_version()))' "$place"
program --version
program models --json | grep moshiko-q8 >/dev/null
from_wheels -c 'import sys; from msh_mlx.system.places import client_folder; sys.exit(None if client_folder() else "the wheel has no page")'
program --demo --input digits.flac --output reply.wav --transcript reply.jsonl --tail 2 --temperature 0 --text-temperature 0
from_wheels - "$root/assets/demo/expected.json" <<'END'
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
# The rest of the family: what is said is written down, and a role is played (not with QEMU, where that takes minutes).
program say --demo "three one four" --output said.wav --temperature 0
heard=$(program transcribe --demo said.wav)
[ "$heard" = 'three one four' ] || { echo "the wheels hear '$heard' where they said three one four" >&2; exit 1; }
echo "from the wheels, said and heard: $heard"
[ -z "${1:-}" ] || exit 0
program --demo --prompt next --input digits.flac --output reply.wav --transcript role.jsonl --tail 2 \
  --temperature 0 --text-temperature 0
from_wheels - "$root/assets/demo/persona/expected.json" <<'END'
import json, sys
from pathlib import Path

(expected,) = (case["words"] for case in json.loads(Path(sys.argv[1]).read_text())["cases"] if case["prompt"] == "next")
said = [json.loads(line)["text"].strip() for line in Path("role.jsonl").read_text().splitlines()]
if said != expected:
    sys.exit(f"with a role, the wheels say {said}, not {expected}")
print("from the wheels, with a role:", " ".join(said))
END

# --- without MLX ------------------------------------------------------------------------------------------------------

# It comes along where it has a GPU.
pip "$bin/python" uninstall --quiet --yes mlx mlx-metal 2>/dev/null
from_wheels -c 'import importlib.util, sys; sys.exit("MLX is still there" if importlib.util.find_spec("mlx") else None)'
expect() { # expect WHAT TRANSCRIPT: the words of the demo
  from_wheels - "$root/assets/demo/expected.json" "$1" "$2" <<'END'
import json, sys
from pathlib import Path

expected = json.loads(Path(sys.argv[1]).read_text())["words"]
said = [json.loads(line)["text"].strip() for line in Path(sys.argv[3]).read_text().splitlines()]
if said != expected:
    sys.exit(f"{sys.argv[2]} says {said}, not {expected}")
print(f"without MLX, {sys.argv[2]}:", " ".join(said))
END
}
program serve --demo --port 0 --plain --temperature 0 --text-temperature 0 >server.txt &
server=$!
address=''
for _ in $(seq 60); do
  address=$(sed -n 's/^standalone worker listening on //p' server.txt)
  [ -z "$address" ] || break
  sleep 1
done
program client --url "$address" --input digits.flac --output client.wav --transcript client.jsonl --tail 2 --plain
expect 'the server' client.jsonl
kill -TERM "$server"
wait "$server" || true
server=''
program convert "$root/assets/demo/model.q8.safetensors" model.q6.safetensors --bits 6 --check
program --model model.q6.safetensors --mimi "$root/assets/demo/mimi.safetensors" --tokenizer "$root/assets/demo/tokenizer.model" \
  --input digits.flac --output reply.wav --transcript converted.jsonl --tail 2 --temperature 0 --text-temperature 0
expect 'the converted model' converted.jsonl
for tool in hypothesis mcp pyte pytest pytest-xdist safetensors starlette uvicorn websockets wyoming zeroconf; do sed -n "s/^$tool==[^ ]*/&/p" requirements.txt; done >tests.txt
pip "$bin/python" install --quiet --only-binary :all: --requirement tests.txt
# The rooms below the server and the devices: those above get their models from them.
set -- "$root/tests/model" "$root/tests/weights" "$root/tests/library" "$root/tests/conversation/test_session.py"
# The rest of these rooms, where all that they need is set up: on Linux, beside the environment of the repository.
if [ "$(uname)" = Linux ] && [ -x "$root/.venv/bin/python" ]; then
  set -- "$root/tests/model" "$root/tests/weights" "$root/tests/library" "$root/tests/conversation"
fi
# From this folder, so that nothing is imported from the checkout.
around=${WITHOUT_NETWORK:-}
clean "$bin/python" -m pytest --quiet -rf --numprocesses 3 -p no:cacheprovider --config-file "$root/pyproject.toml" --rootdir "$root" "$@"
