#!/bin/sh
# Tests aarch64 on an x86-64 Debian machine, with QEMU: the Rust tests, NEON kernels included, then the extension's wheel, built
# here and installed into an empty environment together with the package's. Needs Debian's packages qemu-user-static,
# the cross compilers gcc- and g++-aarch64-linux-gnu, and Rust's standard library for the target. Nothing is
# installed here: the arm64 system, a few dozen packages of this machine's own release, is unpacked into .cache/aarch64.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
target=aarch64-unknown-linux-gnu
for tool in qemu-aarch64-static aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ apt-get dpkg-deb; do
  command -v $tool >/dev/null || {
    echo "check_aarch64.sh: $tool is missing; on Debian: apt-get install qemu-user-static gcc-aarch64-linux-gnu g++-aarch64-linux-gnu" >&2
    exit 1
  }
done

system=$root/.cache/aarch64
if [ ! -x "$system/usr/bin/python3" ]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  trap 'exit 130' INT TERM
  mkdir -p "$place/state/lists/partial" "$place/cache/archives/partial" "$place/system"
  : >"$place/status"
  # With its own status file, apt resolves the packages as on an empty machine.
  apt_arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)" \
      -o Dir::State="$place/state" -o Dir::State::status="$place/status" -o Dir::Cache="$place/cache" "$@"
  }
  apt_arm64 update
  apt_arm64 install --yes --no-install-recommends --download-only python3 libstdc++6
  for package in "$place"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$place/system"; done
  rm -rf "$system"
  mkdir -p .cache
  mv "$place/system" "$system"
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L $system"
# The test with all 100,000 damaged files runs only on this machine's own processor.
DAMAGED_COUNT=3000 cargo test --manifest-path rust/Cargo.toml --locked --release --target $target -p checkpoint -p kernels -p lm -p mimi
# The simulations of hours are left out: they would take long, and do not depend on the processor.
cargo test --manifest-path rust/Cargo.toml --locked --release --target $target -p echo -p rings --lib --test capture --test canceller --test allocations

rm -rf dist/aarch64
.venv/bin/python -m maturin build --release --locked --target $target --out dist/aarch64 -m rust/mimi-pyo3/Cargo.toml
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/aarch64 .
sh scripts/check_wheels.sh aarch64 "$system"
