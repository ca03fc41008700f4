#!/bin/sh
# Checks that rust/vendor/aec3 is the published release with rust/vendor/patches applied, without the files that are left out.
# Prints differences as a patch. Needs the network, or the release in cargo's cache.
set -eu
cd "$(dirname "$0")/../rust/vendor"
ours=$PWD/aec3
patches=$PWD/patches
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
touch src/lib.rs
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ours/Cargo.toml")
printf '[package]\nname = "place"\nedition = "2024"\n[dependencies]\naec3 = "=%s"\n' "$version" >Cargo.toml
cargo vendor --quiet >/dev/null
mv vendor/aec3 a
cp -R "$ours" b

# Remove these files before the patches are applied, so that no patch can change them.
(cd a && find . -type f) | while read -r file; do [ -e "b/$file" ] || rm "a/$file"; done
for patch in "$patches"/*.patch; do
  (cd a && git apply --whitespace=nowarn "$patch") || {
    echo "check_vendored: $(basename "$patch") does not apply to aec3 $version" >&2
    exit 1
  }
done
diff -ruN a b || {
  echo 'check_vendored: no patch in rust/vendor/patches has the lines above' >&2
  exit 1
}
echo "rust/vendor/aec3 is aec3 $version with $(find "$patches" -name '*.patch' | wc -l | tr -d ' ') patches"
