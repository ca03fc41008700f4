#!/bin/sh
# Finds what must not be in the repository: addresses of package registries, paths of somebody's machine, built files.
set -eu
cd "$(dirname "$0")/.."

status=0
fail() {
  printf '%s\n' "$*" >&2
  status=1
}

# The brackets keep this file from finding itself. Cargo.lock names its registry by definition.
hosts='py[p]i\.org|python[h]osted\.org|cr[a]tes\.io/(api|index)|(static|index)\.cr[a]tes\.io|reg[i]stry\.npmjs|deb\.[d]ebian\.org|(security|ports)\.[d]ebian|proxy\.g[o]lang|--index[-]url|--extra[-]index'
paths='/(ho[m]e|Us[e]rs|ro[o]t|wo[r]k)/[A-Za-z0-9._-]+/|/va[r]/folders/'
found=$(git grep -nIE "$hosts" -- ':!rust/Cargo.lock' ':!*/Cargo.lock') && fail "addresses of package registries:
$found"
found=$(git grep -nIE "$paths") && fail "paths of a machine:
$found"
found=$(git ls-files -ci --exclude-standard)
[ -z "$found" ] || fail "files that .gitignore excludes are tracked:
$found"
found=$(git ls-files -- ':!tests/cases' | grep -E '\.(whl|so|dylib|pyd|wav|jsonl)$') && fail "built files are tracked:
$found"
for script in scripts/*.sh .ci/run Moshi.command; do
  [ -x "$script" ] || fail "$script is not executable"
done
exit $status
