#!/bin/sh
# Prints the path of uv, in the version that the scripts are written for, after fetching it into .cache if need be.
set -eu
cd "$(dirname "$0")/.."

uv_version=0.13.9
uv=.cache/uv/bin/uv
if [ "$("$uv" --version 2>/dev/null | awk '{ print $2 }')" != $uv_version ]; then
  rm -rf .cache/uv
  .venv/bin/python -m venv .cache/uv
  .cache/uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$uv_version
fi
echo $uv
