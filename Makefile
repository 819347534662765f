# `make` or `make help` lists what there is.

.DEFAULT_GOAL := help
# rustup's folder, for shells that were opened before it was installed.
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help demo demo-postgres build test torture torture-postgres torture-postgres-failover damage crash faults away fuzz bench lint fmt deny test-matrix test-matrix-postgres

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 28

demo: ## loses the data of a real MongoDB replica set, and brings them back as they were a second before
	@scripts/setup.sh
	cargo build --release -p hindsight -p hindsight-demo
	@$${CARGO_TARGET_DIR:-target}/release/hindsight-demo

demo-postgres: ## the same on PostgreSQL, into a new cluster
	@scripts/setup.sh
	cargo build --release -p hindsight -p hindsight-demo
	@$${CARGO_TARGET_DIR:-target}/release/hindsight-demo postgres

build: ## the program: target/release/hindsight
	@scripts/setup.sh build
	cargo build --release -p hindsight

test: ## all tests, on real servers
	@scripts/setup.sh
	@# Most wait for a server or a clock.
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --workspace

torture: ## the long form of the test that restores random moments of a hostile workload (about an hour)
	@scripts/setup.sh
	TORTURE_SEEDS=$${TORTURE_SEEDS:-1,2,3} TORTURE_MOMENTS=$${TORTURE_MOMENTS:-150} TORTURE_MEMBERS=$${TORTURE_MEMBERS:-3} \
		cargo test --release -p hindsight-jobs --test real torture -- --nocapture

torture-postgres: ## the same for PostgreSQL, with programs and servers killed and frozen meanwhile (about an hour)
	@scripts/setup.sh
	TORTURE_SEEDS=$${TORTURE_SEEDS:-1,2,3} TORTURE_MOMENTS=$${TORTURE_MOMENTS:-20} \
		cargo test --release -p hindsight --test cli postgres::torture -- --nocapture

damage: ## every stored object harmed in every way, with a restore after each
	@scripts/setup.sh
	DAMAGE_ALL=1 cargo test --release -p hindsight-jobs --test real integrity -- --nocapture

crash: ## programs and servers killed and frozen at random moments, hundreds of times (about an hour)
	@scripts/setup.sh
	CRASH_SEEDS=$${CRASH_SEEDS:-1,2,3} CRASH_RUNS=$${CRASH_RUNS:-100} \
		cargo test --release -p hindsight --test cli crash -- --nocapture
	IN_PLACE_KILLS=$${IN_PLACE_KILLS:-60} \
		cargo test --release -p hindsight-postgres --test restore killed_at_any_time -- --nocapture

faults: ## every call of the repository goes wrong, one at a time, in each kind of job (about half an hour)
	@scripts/setup.sh
	FAULTS_STEP=1 cargo test --release -p hindsight-jobs --test real faults -- --nocapture

away: ## the repository is away for minutes, and comes back
	@scripts/setup.sh
	AWAY_SECS=$${AWAY_SECS:-180} cargo test --release -p hindsight --test cli away -- --nocapture

torture-postgres-failover: ## PostgreSQL primaries killed under load, dozens of times: no acknowledged commit may be lost
	@scripts/setup.sh
	FAILOVER_SEEDS=$${FAILOVER_SEEDS:-1,2,3} FAILOVER_ROUNDS=$${FAILOVER_ROUNDS:-10} FAILOVER_MOMENTS=$${FAILOVER_MOMENTS:-20} \
		cargo test --release -p hindsight --test cli failover -- --nocapture
	BRANCHES=$${BRANCHES:-3} cargo test --release -p hindsight --test cli branches -- --nocapture

fuzz: ## the long form of the fuzz targets: with cargo-fuzz where that is there (FUZZ_SECONDS for each target)
	@scripts/fuzz.sh

test-matrix: ## the tests of everything that talks to a server, on MongoDB 4.4, 5.0 and 6.0, and from each to the next
	@scripts/setup.sh
	for version in 4.4.2 5.0.4 6.0.27; do \
		HINDSIGHT_MONGOD=$$(scripts/get-mongod.sh $$version) cargo test --workspace --test diff_against_server \
			--test replica_set --test state --test workload --test real --test cli || exit 1; \
	done
	TEST_VERSIONS=4.4.2:5.0.4,5.0.4:6.0.5 cargo test --workspace --test real versions -- --nocapture

test-matrix-postgres: ## the tests of everything that talks to PostgreSQL, on 17: there also incremental backups
	@scripts/setup.sh
	HINDSIGHT_PG_BIN=$$(scripts/get-postgres.sh 17) && export HINDSIGHT_PG_BIN && \
		cargo test -p hindsight-postgres && cargo test -p hindsight --test cli -- postgres incremental

bench: ## measures backup and restore
	@scripts/setup.sh
	cargo run --release -p hindsight-bench

lint: ## rustfmt and clippy, as CI runs them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## formats the code
	cargo fmt --all

deny: ## licences, advisories, banned crates and sources of the dependencies
	"$$(scripts/get-cargo-deny.sh)" check
