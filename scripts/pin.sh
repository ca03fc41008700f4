#!/bin/sh
# Resolves pyproject.toml into requirements.txt, for every supported Python on Linux and macOS. Versions that still fit are kept
# (UPGRADE=1 takes the newest). With --check it writes nothing, and fails if requirements.txt is out of date.
set -eu
cd "$(dirname "$0")/.."

uv=$(sh scripts/uv.sh)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
# The extension is built here, not fetched.
grep -v '"msh-mimi==' pyproject.toml >"$place/pyproject.toml"
cp README.md "$place/"
grep -v '^#' requirements.txt >"$place/requirements.txt"
# uv asks the registry that it is set up for. No address is written to the file.
"$uv" pip compile --quiet --universal --python-version 3.10 --group "$place/pyproject.toml:dev" \
  ${UPGRADE:+--upgrade} --no-emit-index-url --no-annotate --no-header --output-file "$place/requirements.txt" "$place/pyproject.toml"
{
  echo "# Pinned for every Python from 3.10 to 3.14 on Linux and macOS; made by 'make pin' from pyproject.toml."
  cat "$place/requirements.txt"
} >"$place/pinned.txt"
if [ "${1:-}" = --check ]; then
  diff -u requirements.txt "$place/pinned.txt" || {
    echo "requirements.txt is out of date: run 'make pin'." >&2
    exit 1
  }
  echo 'requirements.txt fits pyproject.toml'
else
  cp "$place/pinned.txt" requirements.txt
fi
