#!/usr/bin/env bash
# Boots this stack, uses it, hurts each part of it, and demands that it is well again each time. CI runs it; so can you.
#
#   RAZAR     the razar to use (../../bin/razar)
#   BOOT      the longest that the boot may take (300s); importing 1.2 GB of Python on a cold disk is slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
razar=${RAZAR:-../../bin/razar}
# A mesh of its own: one that you run goes on undisturbed (but the stack's ports have to be free).
RAZAR_STATE_DIR=$(mktemp -d)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
RAZAR_SERVER=${RAZAR_SERVER:-nats://127.0.0.1:$(free_port)}
# A cluster of its own, too: what is hurt here is nobody's.
LLM_STACK_DATA=$(mktemp -d)
chmod 755 "$LLM_STACK_DATA"
export LLM_STACK_DATA RAZAR_STATE_DIR RAZAR_MESH=llm-stack-check RAZAR_SERVER
boot=${BOOT:-300s}
patience_seconds=120
# A ladder of a program that imports for a quarter of a minute, four starts and a rung.
ladder_seconds=240
declare -A kept
passed=0
failed=0
pids=()

check() { # check WHAT COMMAND…
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "ok   $what"
  else
    failed=$((failed + 1))
    echo "FAIL $what"
  fi
}

within() { # within SECONDS COMMAND…: until it succeeds
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.05
  done
}

pid_of() { "$razar" status "$1" --pid; }
is_well() { "$razar" status --check >/dev/null; }
agent_is_ready() { curl -sf --max-time 5 http://127.0.0.1:18080/ready >/dev/null; }
answers() {
  curl -sf --max-time 40 http://127.0.0.1:18080/ask -H 'content-type: application/json' -d "{\"question\": \"$1\"}" |
    grep -q 'A mesh heals what it watches.'
}
remembers() { curl -sf --max-time 5 http://127.0.0.1:18080/history | grep -q "$1"; }
is_another() { local now; now=$(pid_of "$1") && [ -n "$now" ] && [ "$now" != "$2" ]; }
has_traces() { curl -sf --max-time 5 'http://127.0.0.1:16006/v1/projects/default/spans?limit=100' | grep -q '"store answer"'; }

# hurt NAME SIGNAL: well again means another process, the whole stack ready, and a new question answered and kept.
hurt() {
  local name=$1 signal=$2 before started
  before=$(pid_of "$name")
  started=$(date +%s%N)
  kill "-$signal" "$before"
  within $patience_seconds is_another "$name" "$before" && within $patience_seconds is_well &&
    within $patience_seconds agent_is_ready && answers "after $signal to $name?" || return 1
  echo "     $name: signal $signal, well again and answering after $((($(date +%s%N) - started) / 1000000)) ms"
}

is_isolated() { "$razar" status "$1" | grep -q quarantined; }

# isolated NAME WORDS DEPENDENT…: no rung helped NAME, for the reason WORDS; its dependents run on as the same processes, and nobody blames them.
isolated() {
  local name=$1 words=$2 dependent
  shift 2
  within $ladder_seconds is_isolated "$name" || { echo "     $name is not isolated"; return 1; }
  "$razar" quarantine --list | grep -E " $name +quarantined " | grep -q "$words" || { "$razar" quarantine --list; return 1; }
  for dependent in "$@"; do
    [ "$(pid_of "$dependent")" = "${kept[$dependent]}" ] || { echo "     $dependent was started anew"; return 1; }
    if "$razar" incidents --open 2>/dev/null | grep -q "^$dependent@"; then echo "     $dependent is blamed"; return 1; fi
  done
}

keep() { # keep NAME…: remembers who they are
  local name
  for name in "$@"; do kept[$name]=$(pid_of "$name"); done
}

# mended NAME: a hand releases it, and the whole stack is well and answers.
mended() {
  "$razar" release "$1" --note "mended by the check" --timeout "${patience_seconds}s" &&
    within $patience_seconds is_well && within $patience_seconds agent_is_ready && answers "after $1 was mended?"
}

data_unreadable() {
  keep agent litellm redis
  chmod 000 "$LLM_STACK_DATA/pg"
  kill -KILL "$(pid_of postgres)"
  isolated postgres "Permission denied" agent litellm redis
}
data_readable() { chmod 700 "$LLM_STACK_DATA/pg" && mended postgres; }

bad_config() {
  keep agent postgres redis
  printf 'model_list: [\n' > "$RAZAR_STATE_DIR/bad.yaml"
  if LITELLM_CONFIG="$RAZAR_STATE_DIR/bad.yaml" "$razar" up razar.yaml --detach --timeout "${ladder_seconds}s" >/dev/null; then
    echo "     a boot with a bad config was well"
    return 1
  fi
  isolated litellm . agent postgres redis
}
good_config() { "$razar" up razar.yaml --detach --no-wait >/dev/null && mended litellm; }

dependency_gone() {
  keep agent postgres litellm
  mv .bin/redis-server .bin/redis-server.away
  kill -KILL "$(pid_of redis)"
  isolated redis "not found" agent postgres litellm
}
dependency_back() { mv .bin/redis-server.away .bin/redis-server && mended redis; }

is_gone() { ! kill -0 "$1" 2>/dev/null; }
nothing_is_left() {
  local pid
  for pid in "${pids[@]}"; do
    within 10 is_gone "$pid" || { echo "     $pid lives: $(tr '\0' ' ' < "/proc/$pid/cmdline")"; return 1; }
  done
}

finish() {
  local status=$?
  if [ $status -ne 0 ] || [ $failed -gt 0 ]; then
    timeout 20 "$razar" status --all || true
    timeout 20 "$razar" events --since 15m || true
    timeout 20 "$razar" logs --since 15m litellm agent postgres 2>&1 | tail -n 60 || true
  fi
  timeout 90 "$razar" down >/dev/null 2>&1 || true
  [ ! -e .bin/redis-server.away ] || mv .bin/redis-server.away .bin/redis-server
  rm -rf "$RAZAR_STATE_DIR" "$LLM_STACK_DATA"
  exit $status
}

./install.sh
trap finish EXIT
"$razar" validate razar.yaml
"$razar" up razar.yaml --detach --timeout "$boot"
check "everything is ready" within $patience_seconds is_well
check "the agent answers through the gateway" answers "why?"
check "and keeps what it answered" remembers "why?"
check "its trace is in Phoenix" within 30 has_traces
for name in redis agent postgres litellm; do
  check "$name comes back after kill -9" hurt "$name" KILL
done
for name in redis litellm postgres; do
  check "$name comes back after it hung" hurt "$name" STOP
done
check "postgres with an unreadable data folder is isolated, and nobody is punished" data_unreadable
check "postgres is released once it is mended" data_readable
check "litellm with a bad config is isolated, and nobody is punished" bad_config
check "litellm is released once its config is mended" good_config
check "redis without its program is isolated, and nobody is punished" dependency_gone
check "redis is released once it is back" dependency_back
check "nothing was lost" remembers "why?"
for name in postgres redis litellm phoenix agent; do pids+=("$(pid_of "$name")"); done
check "razar down" "$razar" down --timeout 90s
check "no process is left" nothing_is_left
echo "llm-stack: $passed passed, $failed failed"
[ $failed -eq 0 ]
