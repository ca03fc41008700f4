#!/bin/sh
# Makes a working environment in .venv: the pinned packages, the extension built in release mode, and the package itself
# (editable). Adds what is missing, repairs what is broken, and uses the network only to fetch something new. `make setup` calls
# it; PYTHON=/path/to/python3 chooses the interpreter.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

# Variables that the caller's shell has set for another environment must not affect this one.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV \
  PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV PIP_PYTHON CARGO_BUILD_TARGET
# If this environment is activated, do not make the new one from it.
PATH=$(printf '%s\n' "$PATH" | tr ':' '\n' | grep -vxF "$root/.venv/bin" | paste -s -d : -)
PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
export PATH

venv=.venv
py=$venv/bin/python
stamps=$venv/.stamps
manifest=rust/mimi-pyo3/Cargo.toml
packages='' # system packages to install
processor=$(uname -m)
# Under Rosetta it is said to be Intel's.
[ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" != 1 ] || processor=arm64
minimum_rust=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' rust/Cargo.toml)
minimum_rust=${minimum_rust:-1.85}

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# --- stamps: the steps that were done, by the content of their inputs ---------------------------------------------------

stamped() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }
stamp() { printf '%s' "$2" >"$stamps/$1"; }
checksum() { cksum <"$1"; }

# The sources, and the installed file: a debug build from `maturin dev` is replaced by a release build.
extension_state() {
  {
    find rust \( -name target -o -name __pycache__ \) -prune -o -type f ! -name '*.so' ! -name '*.pyc' -exec cksum {} +
    find $venv/lib rust/mimi-pyo3 -name target -prune -o -type f -path '*/msh_native/*.so' -exec cksum {} +
  } | LC_ALL=C sort | cksum
}

# --- system packages --------------------------------------------------------------------------------------------------

as_root=''
can_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  [ "$(id -u)" -ne 0 ] || return 0
  as_root='sudo -n'
  command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null
}

install_packages() {
  [ -n "$packages" ] || return 0
  can_install || die "these system packages are missing; install them with 'sudo apt-get install$packages' and run this again."
  say "installing the system packages$packages"
  # shellcheck disable=SC2086 # a list, and a prefix of two words
  {
    $as_root apt-get update -qq </dev/null || true
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages </dev/null >/dev/null ||
      die "apt-get could not install$packages; install them and run this again."
  }
}

# --- Python -----------------------------------------------------------------------------------------------------------

# Prints the interpreter to make an environment from, if $1 fits.
base_python() {
  "$1" -c '
import os, sys, sysconfig
base = getattr(sys, "_base_executable", None) or sys.executable
base = base if os.path.exists(base) else sys.executable
fits = (3, 10) <= sys.version_info[:2] <= (3, 14) and sys.maxsize > 2**32 and not sysconfig.get_config_var("Py_GIL_DISABLED")
print(base) if fits else sys.exit(1)' 2>/dev/null
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    base=$(base_python "$PYTHON") || die "PYTHON=$PYTHON does not fit: Python 3.10 to 3.14 (64 bits, with the GIL) is needed."
    return
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do
    base=$(base_python "$name") && return
  done
  if [ "$(uname)" = Darwin ]; then
    die "Python 3.10 to 3.14 is needed; install it with 'brew install python@3.13', or name one with 'make setup PYTHON=/path/to/python3'."
  fi
  die "Python 3.10 to 3.14 is needed; install python3 and python3-venv with your system's packages, or name one with 'make setup PYTHON=/path/to/python3'."
}

# MLX, which computes on Apple silicon, has wheels for it from macOS 14. Elsewhere the native engine computes the models.
check_platform() {
  [ "$(uname)" != Darwin ] || "$base" -c '
import platform, sys
if platform.machine() != sys.argv[1]:
    sys.exit("a Python for " + sys.argv[1] + " is needed; this one is for " + platform.machine() + ".")
version = platform.mac_ver()[0]
if platform.machine() == "arm64" and int(version.split(".")[0]) < 14:
    sys.exit("macOS 14 or later is needed; this is " + version + ".")' "$processor" || exit 1
}

# Prints why MLX cannot be installed, on Linux, or nothing if it can.
without_mlx() {
  "$py" -c '
import platform, sys
if sys.platform == "linux":
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < (2, 35):
        print("it needs glibc 2.35, and this is " + (name + " " + version).strip())
    elif platform.machine() not in ("x86_64", "aarch64"):
        print("it has no wheel for " + platform.machine())'
}

has_ensurepip() { "$base" -c 'import ensurepip, venv' 2>/dev/null; }

make_environment() {
  rm -rf $venv
  say "making $venv with $("$base" --version) ($base)"
  "$base" -m venv $venv || die "$base could not make $venv."
  mkdir -p $stamps
  : >$venv/.incomplete
}

# --- Rust -------------------------------------------------------------------------------------------------------------

rustup_command="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
check_rust() {
  found=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
  if [ -n "$found" ] && cargo --version >/dev/null 2>&1; then
    printf '%s\n' "$minimum_rust" "$found" | awk -F. '{ v[NR] = $1 * 1000 + $2 } END { exit v[2] < v[1] }' && return
    if command -v rustup >/dev/null 2>&1; then
      die "Rust $minimum_rust or later is needed to build the extension and this is $found; update it with: rustup update stable"
    fi
    die "Rust $minimum_rust or later is needed to build the extension and this is $found; install a newer one with: $rustup_command"
  fi
  if command -v rustup >/dev/null 2>&1; then
    die "Rust $minimum_rust or later is needed to build the extension; install it with: rustup default stable"
  fi
  die "Rust $minimum_rust or later is needed to build the extension; install it with: $rustup_command"
}

check_compilers() {
  # Rust links with the C compiler; MLX calls the C++ compiler when it compiles a function for the CPU.
  if cc --version >/dev/null 2>&1 && c++ --version >/dev/null 2>&1; then return; fi
  [ "$(uname)" != Darwin ] || die "a C compiler is needed; install it with: xcode-select --install"
  packages="$packages gcc g++ libc6-dev"
}

is_library() { [ -n "$(find /usr/lib /usr/lib64 /usr/local/lib -name "$1" 2>/dev/null)" ]; }

# On macOS PortAudio comes with its Python package.
check_live() {
  [ "$(uname)" != Linux ] || is_library 'libportaudio.so.2*' || packages="$packages libportaudio2"
}

check_virtual() {
  [ "$(uname)" = Linux ] || die 'virtual sound devices are made with PulseAudio, on Linux.'
  for tool in pulseaudio:pulseaudio pactl:pulseaudio-utils tmux:tmux; do
    command -v ${tool%%:*} >/dev/null 2>&1 || packages="$packages ${tool##*:}"
  done
  is_library libasound_module_pcm_pulse.so || packages="$packages libasound2-plugins"
}

# The sources of the page. Its tests also need the packages that `npm ci` installs.
page_state() {
  find client \( -name node_modules -o -name dist -o -name .cache \) -prune -o -type f -exec cksum {} + | LC_ALL=C sort | cksum
}

has_node() {
  command -v npm >/dev/null 2>&1 &&
    node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

check_page() {
  [ -f client/dist/index.html ] && [ -d client/node_modules ] && stamped page "$(page_state)" || do_page=yes
  if [ $do_page = yes ] && ! has_node; then
    [ "$(uname)" = Linux ] || die "the page is built with Node.js 20.19 or later; install it with 'brew install node'."
    packages="$packages nodejs npm"
  fi
}

check_browsers() {
  [ "$(uname)" = Linux ] || die 'the page is tested in the browsers of Debian, on Linux.'
  # Firefox plays no sound without a device, which PulseAudio provides. WebKit needs a screen.
  for tool in chromium:chromium firefox-esr:firefox-esr WebKitWebDriver:webkit2gtk-driver Xvfb:xvfb pulseaudio:pulseaudio; do
    command -v ${tool%%:*} >/dev/null 2>&1 || packages="$packages ${tool##*:}"
  done
}

# The proxies in front of the server in its tests.
check_proxy() {
  [ "$(uname)" = Linux ] || die 'the server is tested behind the proxies of Debian, on Linux.'
  for tool in nginx caddy; do
    PATH="$PATH:/usr/sbin" command -v $tool >/dev/null 2>&1 || packages="$packages $tool"
  done
}

# --- find out what is missing -----------------------------------------------------------------------------------------

reason=''
if [ ! -e $venv ] && [ ! -L $venv ]; then
  reason='new'
elif [ -e $venv/.incomplete ]; then
  reason='an earlier setup did not finish'
elif [ -f $stamps/root ] && ! stamped root "$root"; then
  reason="it was made in $(cat $stamps/root)"
elif ! reason=$("$py" -I scripts/check_environment.py 2>/dev/null); then
  reason=${reason:-'its Python does not run'}
elif [ -n "${PYTHON:-}" ]; then
  find_python
  if [ "$("$py" -c 'import sys; print(sys.version)')" != "$("$base" -c 'import sys; print(sys.version)')" ]; then
    reason="another Python was asked for"
  fi
fi

do_requirements=no do_extension=no do_package=no
requirements=$(checksum requirements.txt)
package=$(checksum pyproject.toml)
if [ -n "$reason" ]; then
  do_requirements=yes do_extension=yes do_package=yes
else
  stamped requirements "$requirements" || do_requirements=yes
  stamped extension "$(extension_state)" || do_extension=yes
  stamped package "$package" || do_package=yes
fi
do_page=no
for extra; do
  case $extra in
    page) check_page ;;
    browsers) check_browsers ;;
    proxy) check_proxy ;;
    live) check_live ;;
    virtual) check_virtual ;;
    *) die "there is no $extra to set up; name live, virtual, page, browsers or proxy." ;;
  esac
done
case $do_requirements$do_extension$do_package$do_page$packages in
  nononono)
    say "$venv is up to date"
    exit 0
    ;;
esac

# Look for everything that may be missing before the first download.
if [ -n "$reason" ]; then
  find_python
  check_platform
  check_compilers
  if ! has_ensurepip; then
    packages="$packages python$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  fi
fi
[ $do_extension = no ] || check_rust
install_packages
if [ -n "$reason" ]; then
  has_ensurepip || die "$base has no venv module (ensurepip is missing); install its venv package or name another Python with PYTHON=."
  [ "$reason" = new ] || say "making $venv again: $reason"
  make_environment
fi
mkdir -p $stamps

VIRTUAL_ENV=$root/$venv
export VIRTUAL_ENV
pip() { "$py" -m pip --disable-pip-version-check --no-input "$@"; }

if [ $do_requirements = yes ]; then
  say 'installing the pinned packages'
  : >$venv/.incomplete
  pinned=requirements.txt
  why=$(without_mlx)
  if [ -n "$why" ]; then
    say "MLX is left out: $why; the native engine computes the models"
    pinned=$stamps/pinned.txt
    grep -v '^mlx' requirements.txt >$pinned
  fi
  pip install -q -r $pinned || die 'the packages of requirements.txt could not be installed.'
  stamp requirements "$requirements"
  rm -f $venv/.incomplete
fi

if [ $do_extension = yes ]; then
  say 'building the extension in release mode (a minute or two)'
  # Fetch the tests' crates, too, so that `make test` needs no network later.
  host=$(rustc -vV | sed -n 's/^host: //p')
  cargo fetch --quiet --locked --manifest-path rust/Cargo.toml --target "$host" || die 'the crates of rust/Cargo.lock could not be fetched.'
  "$py" -m maturin develop --release --locked -m $manifest >$stamps/build.log 2>&1 || {
    cat $stamps/build.log >&2
    die 'the extension could not be built.'
  }
  # Remove a library that an older checkout left under another name: it would get into the wheels.
  find rust/mimi-pyo3/python -name '*.so' ! -path '*/msh_native/*' -exec rm -f {} +
  stamp extension "$(extension_state)"
fi

if [ $do_package = yes ]; then
  pip install -q --no-deps --no-build-isolation -e . || die 'the package could not be installed.'
  stamp package "$package"
fi

if [ $do_page = yes ]; then
  has_node || die "the page is built with Node.js 20.19 or later, and this is $(node --version 2>/dev/null || echo none); install it from nodejs.org."
  say 'building the page'
  (cd client && npm ci --silent --no-audit --no-fund && npm run --silent build) >$stamps/page.log 2>&1 || {
    cat $stamps/page.log >&2
    die 'the page could not be built.'
  }
  stamp page "$(page_state)"
fi

"$py" -c 'import mimi, msh_mlx, msh_native' || die "what is in $venv cannot be imported; 'make clean setup' makes it again."
stamp root "$root"
say "$venv is ready"
