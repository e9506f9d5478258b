#!/bin/sh
# Print the Python that the environment is made with: $PYTHON if set, else the first in PATH that runs, is 3.11 to
# 3.13 and has what an environment needs (a pyenv shim may exist and not run; Debian's may lack the venv module).
usable='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
complete='import ensurepip, os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'

runs() { "$1" -c "$2" </dev/null >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then
    runs "$PYTHON" "$usable" && echo "$PYTHON" && exit 0
    echo "make setup: PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs; give the path of one" >&2
    exit 78
fi

fallback=
for name in python3.11 python3.12 python3.13 python3; do
    IFS=:
    for folder in $PATH; do
        [ -e "$folder/../pyvenv.cfg" ] && continue # an activated environment, perhaps the one to be replaced
        python=$folder/$name
        runs "$python" "$usable" || continue
        runs "$python" "$complete" && echo "$python" && exit 0
        fallback=${fallback:-$python}
    done
done

# One that lacks a part still serves: install.py then says which part, and the command that installs it.
[ -n "$fallback" ] && echo "$fallback" && exit 0
echo "make setup: no Python 3.11, 3.12 or 3.13 in PATH. Install one: \`sudo apt-get install python3 python3-venv" \
    "python3-dev\` (Debian, Ubuntu), \`sudo dnf install python3.11-devel\` (RHEL, Fedora), your cluster's module," \
    "or pyenv; or name one: \`make setup PYTHON=/path/to/python3.11\`" >&2
exit 70
