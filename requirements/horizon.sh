#!/bin/sh
# make horizon: what breaks with the newest release of everything. In a copy of this clone all pins are resolved anew,
# Horovod is compiled against the newest TensorFlow, and two ranks sum with both. Needs uv (on PyPI).
set -eu
cd "$(dirname "$0")/.."
here=$PWD
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
trap 'exit 130' INT TERM

git ls-files -z --cached | xargs -0 cp --parents --target-directory="$aside"
cd "$aside"
sed -i 's/==\([0-9]\)/>=\1/g' pyproject.toml # none older than now: a solver would go back with one for the sake of another
sh requirements/lock.sh --upgrade
echo "horizon: newer than the pins of this clone:"
for file in requirements/*.txt; do
    diff "$here/$file" "$file" | sed -n 's/^> \([a-z][^=]*==[^ ]*\).*/  \1/p'
done | sort -u
make --no-print-directory setup doctor
