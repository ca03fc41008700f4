#!/bin/sh
# Double-click this in Finder to talk with Moshi. It sets up what is missing, saying so before and asking before anything
# is installed outside this folder, and starts a conversation with the best model that suits this machine, else the demo.
# In a terminal, options are passed on: ./Moshi.command --help
set -u

# --- words ------------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

# After a double click, keep the window open to show what went wrong. Do not keep a script waiting.
finish() { # finish EXIT-CODE
  if [ "$1" -ne 0 ] && [ -t 0 ] && [ -t 2 ] && [ -z "${MAKELEVEL:-}" ]; then
    printf '\nPress return to close. ' >&2
    read -r _ || true
  fi
  exit "$1"
}

fail() {
  printf '%s\n' "$*" >&2
  finish 1
}

ask() { # ask QUESTION: succeeds on yes, and fails on no or without an answer
  printf '%s [y/n] ' "$1"
  answer=''
  read -r answer || say ''
  case $answer in [yY]*) return 0 ;; *) return 1 ;; esac
}

there_is() { command -v "$1" >/dev/null 2>&1; }

# --- where this is ----------------------------------------------------------------------------------------------------

self=$0
while [ -L "$self" ]; do
  target=$(readlink "$self")
  case $target in /*) self=$target ;; *) self=$(dirname -- "$self")/$target ;; esac
done
here=$(CDPATH='' cd -- "$(dirname -- "$self")" && pwd -P) || fail "The folder of $0 cannot be opened."
cd "$here" || fail "The folder $here cannot be opened."
self=$here/$(basename -- "$self")
if [ ! -f local_mlx.py ] || [ ! -f scripts/setup.sh ]; then
  fail "$(basename -- "$self") has to stay in the folder it came in; make a link to it, if you want it elsewhere."
fi

# What the caller's shell has set for another environment must not leak into this one.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
# A shell that Finder opens may know nothing of these.
homebrew=${HOMEBREW_PREFIX:-/opt/homebrew}/bin
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:$homebrew:$HOME/.local/bin
export PATH

# --- the machine ------------------------------------------------------------------------------------------------------

system=$(uname)
processor=$(uname -m)
if [ "$system" = Darwin ]; then
  if [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" = 1 ]; then
    [ -z "${MSH_NATIVE:-}" ] || fail 'This terminal runs under Rosetta and cannot be left; open another one.'
    MSH_NATIVE=1 exec arch -arm64 /bin/sh "$self" "$@"
  fi
  version=$(sw_vers -productVersion)
  if [ "$processor" = arm64 ]; then
    [ "${version%%.*}" -ge 14 ] 2>/dev/null || fail "macOS 14 or later is needed; this is macOS $version."
  fi
  for file in "$here" "$self" "$here/local_mlx.py"; do
    if xattr -p com.apple.quarantine "$file" >/dev/null 2>&1; then
      say "Removing the mark of a download (com.apple.quarantine) from $here, so that macOS lets it run."
      xattr -dr com.apple.quarantine "$here" || say 'Some of it is still marked.'
      break
    fi
  done
fi

# --- what setting up needs --------------------------------------------------------------------------------------------

has_compilers() {
  # Without the tools, macOS answers `cc` and `python3` with a dialog, so that they must not be tried.
  if [ "$system" = Darwin ]; then tools=$(xcode-select -p 2>/dev/null) && [ -d "$tools" ]; fi
}

install_compilers() {
  say "Apple's command-line tools (the C compiler) are missing. They are free, come from Apple and need about 3 GB."
  ask 'Install them now?' || fail 'They can be installed with: xcode-select --install'
  xcode-select --install || true
  say 'Answer the dialog of macOS; this goes on when the tools are installed (Ctrl-C gives up).'
  until has_compilers; do sleep 5; done
}

has_rust() { cargo --version >/dev/null 2>&1 && rustc --version >/dev/null 2>&1; }

install_rust() {
  say "Rust, in which the codec is written, is missing. Its installer, rustup, puts about 600 MB into $HOME/.rustup and"
  say "$HOME/.cargo; 'rustup self uninstall' removes them again."
  ask 'Install it now?' || fail "It can be installed as https://rustup.rs says; then open this again."
  there_is curl || fail 'curl is needed for that; install it, or Rust by hand as https://rustup.rs says.'
  # Whole, before any of it runs.
  installer=$(curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs) || fail 'The installer could not be downloaded.'
  printf '%s\n' "$installer" | sh -s -- -y --no-modify-path --profile minimal ||
    fail 'Rust could not be installed; what went wrong is above.'
  has_rust || fail 'Rust was installed and yet does not run; open this again in a new terminal.'
}

fits() { # fits PYTHON: whether an environment can be made from it
  "$1" -c '
import platform, sys, sysconfig
fits = (3, 10) <= sys.version_info[:2] <= (3, 14) and not sysconfig.get_config_var("Py_GIL_DISABLED")
sys.exit(not fits or sys.platform == "darwin" and platform.machine() != sys.argv[1])' "$processor" >/dev/null 2>&1
}

# Puts one that fits into $python: first those that the shell finds, then where they are installed on a Mac.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    fits "$python" || fail "PYTHON=$PYTHON does not fit: Python 3.10 to 3.14 is needed$native."
    return
  fi
  frameworks=/Library/Frameworks/Python.framework/Versions
  for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do
    for folder in '' "$homebrew/" "$frameworks/${name#python}/bin/" "$HOME/.local/bin/"; do
      python=$(command -v "$folder$name") || continue
      [ "$python" != /usr/bin/python3 ] || has_compilers || continue
      ! fits "$python" || return 0
    done
  done
  there_is uv && python=$(uv python find --system '>=3.10,<3.15' 2>/dev/null) && fits "$python"
}

install_python() {
  found=''
  if there_is python3 && has_compilers; then
    found=$(python3 -c 'import platform; print(", and python3 is", platform.python_version())' 2>/dev/null)
  fi
  say "Python 3.10 to 3.14$native is needed$found."
  if there_is uv; then
    set -- uv python install 3.13
  elif there_is brew; then
    set -- brew install python@3.13
  else
    fail 'Install it from https://www.python.org/downloads/ and open this again.'
  fi
  ask "Install Python 3.13 now, with '$*'?" || fail "It can be installed with: $*"
  "$@" || fail 'Python could not be installed; what went wrong is above.'
  find_python || fail 'Python was installed and yet is not found; open this again in a new terminal.'
}

native=''
[ "$system-$processor" != Darwin-arm64 ] || native=' for Apple silicon'

# --- the environment --------------------------------------------------------------------------------------------------

# Prints the wheels of the extension and the package for this machine, if both are in dist/, here or beside this folder.
find_wheels() {
  case $system in
    Darwin) kind="macosx*$processor" ;;
    *) kind="linux*$processor" ;;
  esac
  for folder in dist . ..; do
    extension='' package=''
    # shellcheck disable=SC2231 # a pattern
    for file in "$folder"/msh_mimi-*$kind.whl; do [ ! -f "$file" ] || extension=$file; done
    for file in "$folder"/msh_mlx-*.whl; do [ ! -f "$file" ] || package=$file; done
    if [ -n "$extension" ] && [ -n "$package" ]; then
      printf '%s\n%s\n' "$extension" "$package"
      return
    fi
  done
}

# The state of an environment that was made from wheels.
wheels_state() {
  cat "$extension" "$package" requirements.txt | cksum
  pwd -P
}

made_by_setup() { [ -x .venv/bin/python ] && [ -f .venv/.stamps/root ] && [ ! -e .venv/.incomplete ]; }
made_from_wheels() {
  [ -n "$wheels" ] && [ -x .venv/bin/python ] && [ -f .venv/.wheels ] && [ "$(cat .venv/.wheels)" = "$(wheels_state)" ]
}

by_setup() { # by_setup [PYTHON]
  if [ -n "${1:-}" ]; then
    PYTHON=$1
    export PYTHON
  fi
  sh scripts/setup.sh live || fail 'The setup failed; what went wrong is above. Open this again to go on with it.'
}

from_wheels() {
  rm -rf .venv
  "$python" -m venv .venv || fail "$python could not make .venv; install its venv module."
  .venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --only-binary :all: \
    --constraint requirements.txt "$extension" "$package" ||
    fail 'The packages could not be installed; what went wrong is above. Open this again to try once more.'
  wheels_state >.venv/.wheels
}

wheels=$(find_wheels)
extension=$(printf '%s\n' "$wheels" | sed -n 1p)
package=$(printf '%s\n' "$wheels" | sed -n 2p)

if made_by_setup; then
  by_setup # does nothing where nothing has changed
elif ! made_from_wheels; then
  say "This is the first start from $here, so it is set up now:"
  if [ -n "$wheels" ] && ! { has_compilers && has_rust; }; then
    say "  - Python's packages (about 200 MB) and $extension are installed into .venv, in this folder."
    say 'Nothing outside this folder is changed without asking. It takes a minute or two.'
    find_python || install_python
    from_wheels
  else
    say "  - Python's packages (about 300 MB) are installed into .venv, in this folder;"
    say '  - the codec is built with Rust in rust/target, in this folder (about 700 MB).'
    if [ "$system" = Darwin ]; then
      say 'Nothing outside this folder is changed without asking. It takes some minutes.'
    else
      say '  - system packages that are missing are installed with apt-get where that is possible without asking.'
      say 'It takes some minutes.'
    fi
    if [ "$system" = Darwin ]; then
      has_compilers || install_compilers
      find_python || install_python
    else
      # The setup finds Python, or says how to get it.
      find_python || python=''
    fi
    has_rust || install_rust
    by_setup "$python"
  fi
  say 'Everything is set up.'
fi

# --- the conversation -------------------------------------------------------------------------------------------------

# The program chooses the model. --or-demo: whoever opened this should hear something in any case.
case ${1:-} in '' | -*) set -- --or-demo "$@" ;; esac
if [ ! -t 0 ] || [ ! -t 2 ] || [ -n "${MAKELEVEL:-}" ]; then
  exec .venv/bin/python local_mlx.py "$@"
fi
# The terminal also sends Ctrl-C to the program; wait for its end.
trap : INT
.venv/bin/python local_mlx.py "$@"
code=$?
trap - INT
case $code in
  129 | 130 | 143) exit $code ;;
esac
finish $code
