# What a visitor and a developer type. Each target installs what a fresh Debian machine lacks (.ci/setup) and
# builds in one cache outside the clone, so that RocksDB is compiled once and not once for each clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/quorate
export CARGO_TARGET_DIR ?= $(CACHE)/target
export PATH := $(HOME)/.cargo/bin:$(CACHE)/bin:$(PATH)

CARGO ?= cargo
BIN := $(CARGO_TARGET_DIR)/release
# One profile for everything: tests run on the binary that is shipped.
FLAGS := --release --locked

.PHONY: help setup build demo test system interop verify fmt clippy deny doc tidy fix bench peers bench-compare bench-apply bench-trie bench-log bench-codec bench-instructions sim jepsen jepsen-full conformance

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup:
	@.ci/setup

build: setup ## the release binaries
	$(CARGO) build $(FLAGS) --workspace --bins
	@echo "built: $(BIN)/quorate and $(BIN)/quorate-bench"

demo: setup ## three nodes, load, the leader killed, a verdict; ARGS=--once exits after it
	$(CARGO) build $(FLAGS) -p quorate
	$(BIN)/quorate demo $(ARGS)

# Properties are tried on the same histories each time, so that what is red is red because of a change. To search:
# `make test PROPTEST_RNG_SEED=7 PROPTEST_CASES=50000`.
test: export PROPTEST_RNG_SEED ?= 1
test: setup ## every test; ARGS are passed on
	@if command -v cargo-nextest >/dev/null; then \
		$(CARGO) nextest run $(FLAGS) --workspace $(ARGS); \
		$(CARGO) test $(FLAGS) --workspace --doc; \
	else \
		$(CARGO) test $(FLAGS) --workspace $(ARGS); \
	fi

system: setup ## only the tests of real processes; ARGS are passed on
	$(CARGO) test $(FLAGS) -p quorate --test 'system_*' $(ARGS)

interop: setup ## clients that we did not write, on three real nodes, each also with a node killed; ARGS are passed on
	@command -v python3 >/dev/null || { echo "interop: needs python3 with venv, node with npm, openssl (Debian: python3-venv npm openssl)" >&2; exit 1; }
	$(CARGO) build $(FLAGS) -p quorate
	interop/run --broker "$(BIN)/quorate" --cache "$(CACHE)" $(ARGS)
	$(CARGO) test $(FLAGS) -p quorate --test system_interop_rumqttc --test system_interop_rumqttc_ways

verify: fmt clippy deny doc tidy ## all checks that are not tests; writes nothing into the tree

fmt: setup
	$(CARGO) fmt --all --check

clippy: setup
	$(CARGO) clippy $(FLAGS) --workspace --all-targets -- -D warnings

# Advisories need a download of their database; without it licences, bans and sources are still checked.
deny: setup
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --quiet --root "$(CACHE)" cargo-deny
	$(CARGO) deny --locked check licenses bans sources
	@if $(CARGO) deny --locked fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check advisories; \
	else echo "deny: advisories not checked, their database cannot be had from here"; fi

# With private items, for those who work here: so links to them lead somewhere.
doc: setup
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc $(FLAGS) --workspace --no-deps --document-private-items

tidy: setup
	$(CARGO) test $(FLAGS) -p quorate-jepsen --test tidy

fix: setup ## formats, applies clippy's suggestions
	$(CARGO) fmt --all
	$(CARGO) clippy $(FLAGS) --workspace --all-targets --fix --allow-dirty --allow-staged

bench: setup ## the figures of docs/PERFORMANCE.md on this machine; ARGS are passed on
	$(CARGO) build $(FLAGS) -p quorate -p quorate-bench
	$(BIN)/quorate-bench suite --broker $(BIN)/quorate $(ARGS)

peers: ## other brokers to measure beside Quorate, unpacked and not installed
	@bench/peers.sh "$(CACHE)/peers"

bench-compare: setup peers ## Quorate and other brokers under the same loads; ARGS are passed on
	$(CARGO) build $(FLAGS) -p quorate -p quorate-bench
	$(BIN)/quorate-bench compare --broker $(BIN)/quorate --peers-dir "$(CACHE)/peers" --out "$(CACHE)/compare" $(ARGS)

bench-apply: setup ## what it costs to apply a message and its acknowledgement
	$(CARGO) bench --locked -p quorate-store --bench apply -- $(ARGS)

bench-instructions: setup ## the same in instructions, held against bench/instructions.txt (needs valgrind)
	@CARGO=$(CARGO) bench/instructions $(ARGS)

bench-trie: setup ## what it costs to find the subscriptions of a topic
	$(CARGO) bench --locked -p quorate-store --bench trie -- $(ARGS)

bench-log: setup ## what the log on disk takes, on both engines; BENCH_DIR chooses the disk
	$(CARGO) bench --locked -p quorate-store --bench log -- $(ARGS)

bench-codec: setup ## what a packet costs on its way in
	$(CARGO) bench --locked -p quorate --bench codec -- $(ARGS)

sim: setup ## three nodes on virtual time, with faults by chance; ARGS are passed on
	$(CARGO) build $(FLAGS) -p quorate-sim
	$(BIN)/quorate-jepsen sim $(or $(ARGS),--seeds 0..1000)

# Histories of runs that failed stay there, those of good ones do not.
RUNS := $(CACHE)/jepsen
jepsen: setup ## simulated nodes, then real ones under faults, judged by what their clients saw; ARGS are passed on
	# All of the workspace: of a part, dependencies would be compiled once more with that part's features.
	$(CARGO) build $(FLAGS) --workspace --bins
	$(BIN)/quorate-jepsen sim --seeds 0..40 --check
	$(BIN)/quorate-faults campaign --time 30 --out $(RUNS)/brief $(ARGS)

HOURS ?= 4
SEED ?= 1
jepsen-full: setup ## hours of it over the whole matrix (HOURS=4 SEED=1), and docs/PROOF.md; ARGS are passed on
	# All of the workspace: of a part, dependencies would be compiled once more with that part's features.
	$(CARGO) build $(FLAGS) --workspace --bins
	$(BIN)/quorate-jepsen sim --seeds 0..2000 --summary docs/proof/sim.json
	$(BIN)/quorate-faults campaign --hours $(HOURS) --seed $(SEED) --out $(RUNS)/full $(ARGS)
	$(BIN)/quorate-faults report --fresh $(RUNS)/full

# The results of the page are those of this run, also when a test failed. Reports go under the workspace, whatever the
# target directory.
REPORT := target/nextest/conformance/junit.xml
conformance: setup ## docs/CONFORMANCE.md from the tests that hold a statement of MQTT, after running them
	@command -v cargo-nextest >/dev/null || $(CARGO) install --locked --quiet --root "$(CACHE)" cargo-nextest
	$(CARGO) build $(FLAGS) -p quorate-jepsen --bin quorate-conformance
	rm -f $(REPORT)
	filter=$$($(BIN)/quorate-conformance filter || true); \
	$(CARGO) nextest run $(FLAGS) --workspace --profile conformance -E "$$filter" || true
	$(BIN)/quorate-conformance write $(REPORT)
