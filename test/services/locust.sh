#!/bin/sh
# Installs Locust for tests, into a virtual environment of its own.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

version=2.47.0
folder=$cache/locust

# Without ensurepip there is a venv module that makes no environment with pip.
has_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null; }

ensure_tools() {
  has_venv || install_debian python3-venv || true
  has_venv || fail 'Locust needs Python 3 with its venv module, which is not here and could not be installed.'
}

# A virtual environment holds paths and links to its Python.
stamp="$version $folder $(cksum <"$script")"
if ! is_installed "$folder" "$stamp" || ! "$folder/bin/python" -c 'import locust' 2>/dev/null; then
  ensure_tools
  say "Installing Locust $version for tests."
  rm -rf "$folder"
  mkdir -p "$cache"
  quietly python3 -m venv "$folder" || fail 'Python could not make a virtual environment; its words are above.'
  quietly "$folder/bin/python" -m pip install --quiet --no-input "locust==$version" ||
    fail "pip could not install Locust $version; its words are above."
  echo "$stamp" >"$folder/stamp"
fi
echo "$folder"
