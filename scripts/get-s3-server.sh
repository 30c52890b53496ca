#!/bin/sh
# Builds versitygw, which serves a folder as S3, for the tests that need a real S3 server. Says nothing when it is
# there; where it cannot be built it says why and ends well, and those tests are skipped.
set -eu
cd "$(dirname "$0")/.."

version=v1.8.0
folder=$PWD/node_modules/.cache/capstan
binary=$folder/versitygw-$version

[ -x "$binary" ] && exit 0
command -v versitygw >/dev/null && exit 0
if ! command -v go >/dev/null; then
  echo 'There is no Go to build versitygw with, so the tests of S3 are skipped.' >&2
  exit 0
fi

mkdir -p "$folder"
work=$(mktemp -d "$folder/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
echo 'Building versitygw, an S3 server for the tests. This takes a minute or two.' >&2
if GOBIN=$work go install "github.com/versity/versitygw/cmd/versitygw@$version" >"$work/log" 2>&1 </dev/null; then
  # Renamed at the end, so that nobody finds half of it.
  mv "$work/versitygw" "$binary"
else
  tail -n 5 "$work/log" >&2
  echo 'versitygw could not be built, so the tests of S3 are skipped.' >&2
fi
