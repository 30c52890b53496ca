#!/bin/sh
# Gets Prometheus for tests from Debian's package, which is unpacked and not installed: that would start it.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

folder=$cache/prometheus

fetch() {
  cd "$work"
  # The list of packages may be missing or too old.
  quietly apt-get -qq download prometheus || { quietly apt-get -qq update && quietly apt-get -qq download prometheus; } ||
    fail "Debian's package prometheus could not be had; apt-get's words are above."
  mkdir unpacked
  quietly dpkg-deb -x prometheus_*.deb unpacked || fail 'dpkg-deb could not unpack prometheus; its words are above.'
  cp unpacked/usr/bin/prometheus "$folder/prometheus"
}

stamp=$(cksum <"$script")
if ! is_installed "$folder" "$stamp"; then
  has apt-get && has dpkg-deb || fail 'Prometheus is taken from Debian, whose apt-get and dpkg-deb are not here.'
  say 'Getting Prometheus for tests.'
  rm -rf "$folder"
  mkdir -p "$folder"
  (fetch)
  "$folder/prometheus" --version >/dev/null 2>&1 || fail 'The Prometheus of Debian does not run here.'
  echo "$stamp" >"$folder/stamp"
fi
echo "$folder"
