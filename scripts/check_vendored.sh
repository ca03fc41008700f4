#!/bin/sh
# Compares rust/vendor/aec3 with the release it was made from: what is there is as it was, but for what its README names.
set -eu
cd "$(dirname "$0")/.."
ours=$PWD/rust/vendor/aec3
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir "$place/src"
touch "$place/src/lib.rs"
printf '[package]\nname = "place"\nedition = "2024"\n[dependencies]\naec3 = "=0.4.0"\n' >"$place/Cargo.toml"
(cd "$place" && cargo vendor --quiet >/dev/null)
released=$place/vendor/aec3

bad=0
changed() { # changed FILE LINES
  if [ "$(diff "$released/$1" "$ours/$1" | grep -c '^[<>]')" -gt "$2" ]; then bad=1; echo "$1: more changed"; fi
}
for file in $(cd "$ours" && find LICENSE PATENT src -type f); do
  case $file in
    src/lib.rs | */mod.rs)
      # Lists of modules: fewer.
      if diff "$released/$file" "$ours/$file" | grep '^>' | grep -v kalman_gain; then bad=1; fi ;;
    */aec3_fft.rs) changed "$file" 20 ;;
    */adaptive_fir_filter.rs) changed "$file" 20 ;;
    */subtractor.rs) changed "$file" 110 ;;
    */aec_state.rs) changed "$file" 25 ;;
    */kalman_gain.rs | */reverb_model_estimator.rs) ;; # ours
    *) diff -q "$released/$file" "$ours/$file" || bad=1 ;;
  esac
done
[ $bad = 0 ] && echo 'rust/vendor/aec3 is the release, but for what its README names'
exit $bad
