#!/usr/bin/env bash
# Prints the path of cargo-deny: one in PATH, or the cached one, which is built when there is none (a minute or two).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=0.20.2
cached="$PWD/.cache/cargo-deny/$version"

if in_path=$(command -v cargo-deny); then
    echo "$in_path"
    exit
fi
if [ ! -x "$cached/bin/cargo-deny" ]; then
    echo "get-cargo-deny: building cargo-deny $version" >&2
    # Beside the workspace's own target folder, so that neither waits for the other.
    # Unoptimized: it runs once, and is built faster than it would save.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$cached/target" \
        cargo install cargo-deny --debug --quiet --locked --version "$version" --root "$cached" >&2
    rm -rf "$cached/target"
fi
echo "$cached/bin/cargo-deny"
