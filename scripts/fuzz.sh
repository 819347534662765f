#!/usr/bin/env bash
# The long form of the fuzz targets: with cargo-fuzz where it and a nightly toolchain are there, else with seeded changes
# of the corpus on any toolchain.
#
# FUZZ_SECONDS: how long each target runs under cargo-fuzz (600); FUZZ_TARGETS: which ones (all).
# FUZZ_EXECUTIONS, FUZZ_SEED: how many changed inputs each target gets without it (1000000), and which.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
toolchain=nightly
if ! command -v cargo-fuzz >/dev/null || ! cargo +"$toolchain" --version >/dev/null 2>&1; then
    echo "fuzz: without cargo-fuzz and a nightly toolchain (cargo install cargo-fuzz; rustup toolchain install nightly)" >&2
    FUZZ_EXECUTIONS=${FUZZ_EXECUTIONS:-1000000} exec cargo test --release -p hindsight-fuzz --test mutations -- --nocapture
fi
for target in ${FUZZ_TARGETS:-$(cargo +"$toolchain" fuzz list)}; do
    # What it finds on its way is kept apart from the corpus that is committed.
    mkdir -p "fuzz/grown/$target"
    cargo +"$toolchain" fuzz run "$target" "fuzz/grown/$target" "fuzz/corpus/$target" -- \
        -max_total_time="${FUZZ_SECONDS:-600}" -max_len=65536 -rss_limit_mb=2048 -timeout=20 -print_final_stats=1
done
