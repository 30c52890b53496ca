#!/bin/sh
# Installs FerretDB for tests, which speaks MongoDB's protocol and keeps its documents in PostgreSQL. It is built from
# its Go module; the last version that needs no extension of PostgreSQL.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

module=github.com/FerretDB/FerretDB
version=v1.24.2
folder=$cache/mongo
# Go 1.21 and newer fetch whichever Go a module asks for.
go_needed=21

has_go() {
  has go && [ "$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')" -ge $go_needed ] 2>/dev/null
}

build() {
  quietly go mod download -json "$module@$version" || fail "Go could not fetch FerretDB $version; its words are above."
  source=$(sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p' "$work/log")
  cp -R "$source" "$work/source"
  chmod -R u+w "$work/source"
  # Its build is told its version by a file that the module does not hold.
  echo "$version" >"$work/source/build/version/version.txt"
  (cd "$work/source" && GOWORK=off CGO_ENABLED=0 quietly go build -trimpath -ldflags='-s -w' \
    -o "$folder/ferretdb" ./cmd/ferretdb) || fail "FerretDB $version could not be built; Go's words are above."
}

stamp="$version $(cksum <"$script")"
if ! is_installed "$folder" "$stamp"; then
  has_go || fail "FerretDB is built with Go 1.$go_needed or newer, which is not here."
  say "Building FerretDB $version for tests. The first time this takes a minute or two."
  rm -rf "$folder"
  mkdir -p "$folder"
  build
  echo "$stamp" >"$folder/stamp"
fi
echo "$folder"
