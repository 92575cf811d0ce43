# Sourced by the other scripts: makes .venv in this checkout and says what it installs. Needs only Debian's python3.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[%s] %s\n' "$(basename "$0")" "$*" >&2; }
die() { printf '[%s] %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# help_of_head "$@" : for -h and --help the script's own head comment, and nothing else happens.
help_of_head() {
  case ${1:-} in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "scripts/$(basename "$0")"; exit 0 ;; esac
}

# apt_install PACKAGE... : install Debian packages if this user may; false otherwise.
apt_install() {
  local as=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
    as=(sudo)
  fi
  command -v apt-get >/dev/null || return 1
  say "installing Debian packages: $*"
  "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 || true
  "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >&2
}

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  die "needs Python 3.11 or newer; on Debian 12 or 13: apt-get install python3"
}

# Where the Python packages go; another one serves another Python (VENV=.venv-3.13 PYTHON=python3.13 ./scripts/test).
VENV=${VENV:-.venv}

# ensure_venv EXTRAS [VENV OPTION...] : $VENV with this checkout and the extras in it; nothing to do when
# pyproject.toml is unchanged.
ensure_venv() {
  local extras=$1 python stamp installed=$VENV/installed.${1//,/+}
  shift
  stamp=$(sha256sum pyproject.toml | cut -d' ' -f1)
  if [ -x "$VENV/bin/python" ] && [ "$(cat "$installed" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install python3-venv || die "Python's venv module is missing; as root: apt-get install python3-venv"
  fi
  say "setting up Python packages in $(pwd)/$VENV (extras: $extras; from PyPI, nothing outside this folder)"
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$@" "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
  printf '%s' "$stamp" > "$installed"
}

# ensure_mosquitto : a mosquitto to run by ourselves; false when there is none and we may not install it.
ensure_mosquitto() {
  PATH=$PATH:/usr/sbin:/usr/local/sbin
  command -v mosquitto >/dev/null && return
  apt_install mosquitto || return 1
  say "note: where systemd runs, Debian's package also starts a broker of its own on 127.0.0.1:1883; it is not used here"
}
