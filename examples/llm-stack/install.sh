#!/usr/bin/env bash
# Installs what this stack runs: PostgreSQL and Redis from the system's packages, LiteLLM, Phoenix and FastAPI in a virtual
# environment of exact versions. May be run again at any time; what is there already is kept.
#
#   RAZAR_CACHE   where the virtual environment lives (~/.cache/razar); nothing big is put into the clone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
cache="${RAZAR_CACHE:-$HOME/.cache/razar}/llm-stack"
uv_version=0.13.9

say() { printf 'llm-stack: %s\n' "$*"; }
die() { printf 'llm-stack: %s\n' "$*" >&2; exit 1; }

find_python() {
  local python
  for python in "${PYTHON:-python3}" python3.11 python3.12 python3.13; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      printf '%s\n' "$python"
      return
    fi
  done
  die "needs Python 3.11, 3.12 or 3.13; install it with: apt-get install python3 python3-venv"
}

# Where PostgreSQL's own programs are: on PATH, or in the newest of Debian's version folders.
postgres_programs() {
  local folder
  for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) $(pg_config --bindir 2>/dev/null || true); do
    if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ]; then
      printf '%s\n' "$folder"
      return
    fi
  done
  return 1
}

install_system_packages() {
  local missing=()
  postgres_programs >/dev/null || missing+=(postgresql)
  command -v redis-server >/dev/null || missing+=(redis-server)
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    die "needs ${missing[*]}; install with: sudo apt-get install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  # The packages' own services are not wanted: this stack brings its own cluster and its own port.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
  fi
  apt-get update -qq
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_python_packages() {
  local python version key venv
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  key=$(sha256sum requirements.txt | cut -c 1-12)
  venv="$cache/python$version-$key"
  mkdir -p "$cache"
  # Two installs at once (tests, CI) wait for one another.
  exec 9> "$cache/lock"
  flock 9
  if [ ! -e "$venv/.complete" ]; then
    say "installing $(grep -c '==' requirements.txt) Python packages into $venv (about 1.2 GB, this once)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "uv==$uv_version"
    "$venv/bin/uv" pip install --quiet --no-deps --python "$venv/bin/python" -r requirements.txt
    touch "$venv/.complete"
  fi
  ln -sfn "$venv" .venv
}

link_programs() {
  local folder program
  folder=$(postgres_programs)
  mkdir -p .bin
  for program in postgres initdb pg_isready psql; do
    ln -sfn "$folder/$program" ".bin/$program"
  done
  for program in redis-server redis-cli; do
    ln -sfn "$(command -v "$program")" ".bin/$program"
  done
}

# One secret a file, readable by the owner alone, never printed, made once.
make_secret() {
  local file="secrets/$1" prefix="${2:-}"
  [ ! -s "$file" ] || return 0
  (umask 077 && mkdir -p secrets && printf '%s%s' "$prefix" "$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')" > "$file")
}

install_system_packages
install_python_packages
link_programs
make_secret postgres
make_secret litellm sk-
say "ready; now: razar up $(pwd)/razar.yaml"
