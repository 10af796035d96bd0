#!/usr/bin/env bash
# PostgreSQL of this stack: `pg.sh init` makes the cluster once, `pg.sh run` becomes the server. PostgreSQL refuses to run as
# root, so root hands both to the system's user `postgres`.
#
#   LLM_STACK_DATA      the data folder (./data; /var/lib/razar-llm-stack for root where `postgres` cannot reach the clone)
#   POSTGRES_PASSWORD   of the user `agent`, needed by init
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=${LLM_STACK_DATA:-$here/data}
as_owner=()
if [ "$(id -u)" -eq 0 ]; then
  as_owner=(setpriv --reuid=postgres --regid=postgres --init-groups --)
  mkdir -p "$data"
  if ! "${as_owner[@]}" test -x "$data"; then
    [ -z "${LLM_STACK_DATA:-}" ] || { echo "LLM_STACK_DATA=$data cannot be reached by user postgres" >&2; exit 1; }
    data=/var/lib/razar-llm-stack
  fi
fi
# The link's target: the clone itself may be out of the owner's reach.
program() { readlink -f "$here/.bin/$1"; }

init() {
  : "${POSTGRES_PASSWORD:?pg.sh init needs POSTGRES_PASSWORD}"
  if [ -s "$data/pg/PG_VERSION" ]; then
    keep
    return
  fi
  rm -rf "$data/pg"
  mkdir -p "$data/pg"
  local password
  password=$(mktemp)
  # shellcheck disable=SC2064 # the name is wanted as it is now
  trap "rm -f '$password'" EXIT
  printf '%s' "$POSTGRES_PASSWORD" > "$password"
  if [ ${#as_owner[@]} -gt 0 ]; then chown -R postgres: "$data/pg" "$password"; fi
  chmod 700 "$data/pg"
  cd /
  "${as_owner[@]}" "$(program initdb)" --pgdata="$data/pg" --username=agent --pwfile="$password" --auth=scram-sha-256 \
    --encoding=UTF8 --no-locale >/dev/null
  echo "cluster made"
}

# The cluster may be older than the clone's secrets (another clone's, under /var/lib): give it this password. A running server
# keeps the one that it has.
keep() {
  local pid
  pid=$(head -n 1 "$data/pg/postmaster.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
    echo "cluster is there already, and runs"
    return
  fi
  local postgres
  postgres=$(program postgres)
  printf "alter user agent password '%s'\n" "${POSTGRES_PASSWORD//\'/\'\'}" |
    (cd / && "${as_owner[@]}" "$postgres" --single -D "$data/pg" postgres >/dev/null)
  echo "cluster is there already"
}

run() {
  local postgres
  postgres=$(program postgres)
  cd /
  exec "${as_owner[@]}" "$postgres" -D "$data/pg" -p "$1" -c listen_addresses=127.0.0.1 -c unix_socket_directories=
}

case "${1:-}" in
  init) init ;;
  run) run "${2:?pg.sh run needs a port}" ;;
  *) echo "usage: pg.sh init | run PORT" >&2; exit 64 ;;
esac
