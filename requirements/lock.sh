#!/bin/sh
# Renew the *.txt beside this file, which `make setup` installs, from the lists in pyproject.toml: one version of each with
# the hashes of all its files, for every supported Python, and no address to download them from. Needs uv (on PyPI).
#
#     sh requirements/lock.sh                          a version in pyproject.toml has changed; others stay
#     sh requirements/lock.sh --upgrade-package NAME   a newer one of what others bring along; --upgrade: of all
set -eu
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND='sh requirements/lock.sh'

options=$*
lock() { # lock FILE ARGUMENT...
    file=requirements/$1.txt
    shift
    # shellcheck disable=SC2086 # several words
    uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate \
        $options "$@" -o "$file"
}

lock base pyproject.toml --group build --group cpu --no-emit-package tensorflow-cpu
for group in cpu gpu cuda horovod; do # what they need beyond base.txt is in the group itself
    lock $group --group $group --no-deps
done
for group in mpi site dev; do
    lock $group --group $group --constraint requirements/base.txt
done
for group in mdanalysis docs; do # what is installed by who wants it; `make setup` does not
    lock extras/$group --group $group --constraint requirements/base.txt --constraint requirements/dev.txt
done
