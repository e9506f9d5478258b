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
sed -i -E 's/^([^"]*"[][A-Za-z0-9._-]+)==[^"]+"/\1"/; s/(, "[][A-Za-z0-9._-]+)==[^"]+"/\1"/g' pyproject.toml
sh requirements/lock.sh --upgrade
echo "horizon: newer than the pins of this clone:"
for file in requirements/*.txt; do
    diff "$here/$file" "$file" | sed -n 's/^> \([a-z].*==[^ ]*\).*/  \1/p'
done | sort -u
make --no-print-directory setup doctor
