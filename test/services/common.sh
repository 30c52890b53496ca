# What the scripts of this folder share. They put real servers for tests into one folder below node_modules, do nothing
# when that is done already, and print where. What is printed else goes to stderr.
set -eu
cd "$(dirname "$0")"
script=$PWD/$(basename "$0")
cd ../..

cache=$PWD/node_modules/.cache/capstan
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null; }

# Runs a command that is only worth reading about when it fails.
quietly() {
  "$@" >"$work/log" 2>&1 </dev/null && return
  tail -n 20 "$work/log" >&2
  return 1
}

# install_debian PACKAGE…: fails where there is no apt-get, or no right to use it.
install_debian() {
  has apt-get || return 1
  as_root=''
  if [ "$(id -u)" != 0 ]; then
    has sudo && sudo -n true 2>/dev/null || return 1
    as_root='sudo -n'
  fi
  say "Installing $* with apt-get."
  apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120"
  # The list of packages may be missing or too old. Word splitting is meant.
  # shellcheck disable=SC2086
  $apt install -y --no-install-recommends "$@" >/dev/null 2>&1 </dev/null ||
    { quietly $apt update && quietly $apt install -y --no-install-recommends "$@"; }
}

# is_installed FOLDER STAMP: whether it was completed, with these versions.
is_installed() { [ "$(cat "$1/stamp" 2>/dev/null)" = "$2" ]; }
