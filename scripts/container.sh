#!/bin/sh
# Builds the image of the server with the builder that is here: container.sh [EXTRA]
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
name=msh-mlx${extra:+-$extra}
for builder in docker podman buildah; do
  if "$builder" info >/dev/null 2>&1; then
    exec "$builder" build --file containers/Containerfile --build-arg EXTRA="$extra" --tag "$name" .
  fi
done
echo 'container: neither Docker, Podman nor Buildah works here; install one, or start its service.' >&2
exit 1
