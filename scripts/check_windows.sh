#!/bin/sh
# Checks that the Rust code fits Windows, on Linux with Debian's cross compiler, and tries it with Wine where that is.
# Builds the extension's wheel into dist/windows.
# Needs Rust's standard library for the target (rustup target add x86_64-pc-windows-gnu) and gcc-mingw-w64-x86-64; the tests need
# Debian's wine64. What Wine does is not what Windows does: only the workflows run there.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
target=x86_64-pc-windows-gnu
cargo clippy --manifest-path rust/Cargo.toml --locked --workspace --all-targets --target $target -- -D warnings

for tool in x86_64-w64-mingw32-gcc wine; do
  command -v $tool >/dev/null || {
    echo "check_windows.sh: $tool is missing; on Debian: apt-get install gcc-mingw-w64-x86-64 wine64 wine" >&2
    exit 1
  }
done
export WINEPREFIX="$root/.cache/wine" WINEDEBUG=-all CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=wine
mkdir -p .cache
wine winecfg -v win10 | cat
# Rust's random numbers are from a library that Wine has only since its version 9.
if [ ! -e "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" ]; then
  printf '%s\n' '#include <windows.h>' '#include <ntsecapi.h>' \
    '__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) { return RtlGenRandom(data, (ULONG)size); }' |
    x86_64-w64-mingw32-gcc -shared -x c - -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" -ladvapi32
fi
DAMAGED_COUNT=3000 cargo test --manifest-path rust/Cargo.toml --locked --target $target -p checkpoint -p kernels -p lm -p mimi --lib --tests
# The simulations of hours are left out: they would take long, and do not depend on the system.
cargo test --manifest-path rust/Cargo.toml --locked --target $target -p echo -p rings --lib --test capture --test canceller --test allocations

rm -rf dist/windows
.venv/bin/python -m maturin build --release --locked --target $target --out dist/windows -m rust/mimi-pyo3/Cargo.toml
ls dist/windows
