#!/bin/sh
# Installs the oldest versions that pyproject.toml allows into a separate environment, with the oldest supported Python that is
# here (3.10, if possible). Then tries the demo, the server with a client, and some tests. `make setup` must have built the
# extension, which is the same for all Pythons.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
export UV_PYTHON_DOWNLOADS=never

uv=$(sh scripts/uv.sh)
place=$(mktemp -d)
server=''
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

base=''
for version in 3.10 3.11 3.12 3.13 3.14; do
  # Look in the path, then where pyenv keeps its Pythons.
  base=$("$uv" python find --system "$version" 2>/dev/null) && break
  base=$(find "${PYENV_ROOT:-$HOME/.pyenv}/versions" -path "*/$version.*/bin/python" 2>/dev/null | sed -n 1p)
  [ -z "$base" ] || break
done
[ -n "$base" ] || {
  echo 'check_floors: there is no Python from 3.10 to 3.14.' >&2
  exit 1
}
"$uv" venv --quiet --python "$base" "$place/venv"
python=$place/venv/bin/python
echo "check_floors: $("$python" --version) ($base)"

# The extension is built here, not fetched.
grep -v '"msh-mimi==' pyproject.toml >"$place/pyproject.toml"
cp README.md LICENSE "$place"
"$uv" pip install --quiet --python "$python" --resolution lowest-direct \
  --group "$place/pyproject.toml:dev" --requirement "$place/pyproject.toml"
printf '%s\n' "$root" "$root/rust/mimi-pyo3/python" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/here.pth"
"$uv" pip freeze --quiet --python "$python" | grep -E '^(aiohttp|huggingface-hub|mlx|numpy|sentencepiece|soundfile)=' | paste -s -d ' ' -

words() { # words FILE: those of a transcript
  "$python" -c 'import json, sys; print(*(json.loads(line)["text"].strip() for line in open(sys.argv[1], encoding="utf-8")))' "$1"
}
expected=$("$python" -c 'import json; print(*json.load(open("assets/demo/expected.json"))["words"])')
compare() { # compare WHAT FILE
  said=$(words "$2")
  [ "$said" = "$expected" ] || {
    echo "check_floors: $1 says '$said', not '$expected'" >&2
    exit 1
  }
  echo "check_floors: $1: $said"
}

greedy='--temperature 0 --text-temperature 0'
# shellcheck disable=SC2086 # options
"$python" local_mlx.py --demo --input assets/demo/digits.flac --output "$place/demo.wav" --transcript "$place/demo.jsonl" \
  --tail 2 --plain $greedy >"$place/demo.txt"
compare 'the demo' "$place/demo.jsonl"

# shellcheck disable=SC2086 # options
"$python" server_opus.py --demo --port 0 --plain $greedy >"$place/server.txt" &
server=$!
address=''
for _ in $(seq 60); do
  address=$(sed -n 's/^standalone worker listening on //p' "$place/server.txt")
  [ -z "$address" ] || break
  sleep 1
done
"$python" client_opus.py --url "$address" --input assets/demo/digits.flac --output "$place/client.wav" \
  --transcript "$place/client.jsonl" --tail 2 --plain >"$place/client.txt"
compare 'the client' "$place/client.jsonl"
kill -TERM "$server"
wait "$server" || true
server=''

# What touches these packages most, and compiles least: MLX makes each of its functions anew here.
"$python" -m pytest --quiet -p no:cacheprovider tests/test_imports.py tests/weights/test_lora.py tests/model/test_step.py \
  tests/net/test_tls.py tests/net/test_visitor.py tests/net/test_mcp_tools.py tests/conversation/test_tokenizer.py tests/weights/test_checkpoint.py
