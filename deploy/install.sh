#!/usr/bin/env bash
# Install ffedge as a systemd service, or upgrade it: samples, weights and settings stay.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: sudo deploy/install.sh [--wheel FILE] [--jetpack 6|7|none] [--torch REQUIREMENT]
                              [--torch-index URL] [--extras NAMES] [--python PROGRAM]
                              [--root DIR] [--no-start]

  --wheel FILE      install this wheel; without it, this checkout
  --jetpack N       which JetPack the packages are for; without it, read from /etc/nv_tegra_release
  --torch REQ       the torch to install, a requirement or a wheel; system: the one that is there
  --torch-index URL where that torch comes from
  --extras NAMES    extras of the package, such as jetson (jetson-stats in our own environment)
  --python PROGRAM  which Python makes the environment (/usr/bin/python3, TensorRT's)
  --root DIR        install into a root file system at DIR, and start nothing
  --no-start        install, but neither start nor restart the service
USAGE
}

say() { printf 'ffedge: %s\n' "$*"; }
fail() {
  printf 'ffedge: %s\n' "$*" >&2
  exit 1
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheel='' jetpack='' torch='' torch_index='' extras='' python=/usr/bin/python3 named='' root='' start=yes
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --no-start) start=no; shift; continue ;;
    # An empty one, of a variable that is not set, would mean this very system.
    --root) [ -n "${2-}" ] || fail "--root wants a directory" ;;
    --wheel | --jetpack | --torch | --torch-index | --extras | --python)
      [ -n "${2-}" ] || fail "$1 wants a value; --help lists the options" ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  case $1 in
    --wheel) wheel=$2 ;;
    --jetpack) jetpack=$2 ;;
    --torch) torch=$2 ;;
    --torch-index) torch_index=$2 ;;
    --extras) extras=$2 ;;
    --python) python=$2 named=yes ;;
    --root) root=${2%/} ;;
  esac
  shift 2
done

[ "$(id -u)" -eq 0 ] || fail "needs root: sudo $0"
for file in passwd group; do
  [ -f "$root/etc/$file" ] || fail "$root holds no /etc/$file: --root wants a root file system"
done
# Root may write to whatever is not read-only.
for folder in "$root/etc" "$root/etc/systemd/system" "$root/opt" "$root/var" "$root/var/lib"; do
  [ ! -d "$folder" ] || [ -w "$folder" ] || fail "$folder is read-only: mount it writable first"
done
[ -z "$wheel" ] || [ -f "$wheel" ] || fail "no wheel $wheel"
[ -z "$root" ] || root=$(cd "$root" && pwd)
program=$(command -v "$python") || fail "no $python: name a Python 3.10 to 3.13 by --python"
# Below another root the paths are that system's.
case $root$(realpath "$program") in
  /root/* | /home/*) fail "$program lies in a home, which the service cannot see: name another by --python" ;;
esac
# As root no Python looks for modules in the current folder: -I.
version() { "$1" -I -c 'import platform; print(platform.python_version())'; }
case $(version "$program" 2>/dev/null || true) in
  3.10.* | 3.11.* | 3.12.* | 3.13.*) ;;
  *) fail "$program is not Python 3.10 to 3.13: name one by --python" ;;
esac
environment=$root/opt/ffedge configuration=$root/etc/ffedge state=$root/var/lib/ffedge
unit=$root/etc/systemd/system/ffedge.service cuda=$root/usr/local/cuda

# What was interrupted while it was made lacks pip, or the line that venv writes last.
whole=no
if "$environment/bin/python" -I -m pip --version >/dev/null 2>&1 &&
  grep -qsx 'include-system-site-packages = true' "$environment/pyvenv.cfg"; then
  whole=yes
fi
if [ -n "$named" ] && [ $whole = yes ]; then
  there=$(version "$environment/bin/python") asked=$(version "$program")
  [ "$there" = "$asked" ] ||
    fail "$environment is of Python $there and $program is $asked: rm -r $environment, or leave --python out"
fi

if [ -z "$jetpack" ]; then
  case $(cat "$root/etc/nv_tegra_release" 2>/dev/null || true) in
    '# R36'*) jetpack=6 ;;
    '# R39'*) jetpack=7 ;;
    '') jetpack=none ;;
    *) fail "$root/etc/nv_tegra_release is neither R36 nor R39: name the nearest by --jetpack" ;;
  esac
fi
# TensorRT 10.3's bindings misread arrays of numpy 2, and torch has to hold code for sm_87, which wheels
# of the usual index do not.
numpy=''
case $jetpack in
  6)
    numpy='numpy==1.26.4'
    : "${torch:=torch==2.8.0}" "${torch_index:=https://pypi.jetson-ai-lab.io/jp6/cu126}"
    ;;
  7)
    numpy='numpy>=2,<2.4'
    [ -n "$torch" ] || fail "JetPack 7: name a torch with code for sm_87 by --torch (docs/jetson.md)"
    ;;
  none) ;;
  *) fail "--jetpack is 6, 7 or none, not $jetpack" ;;
esac

# It must import, and on a board hold code for its GPU.
check_torch() {
  local found
  found=$("$1" -I -W ignore -c "
import sys
try:
    import torch
    codes = torch.cuda.get_arch_list()
except Exception as error:
    print(f'torch cannot be imported: {error}')
    sys.exit(1)
if '$jetpack' != 'none' and 'sm_87' not in codes:
    print(f'torch {torch.__version__} has code for {codes}, not for sm_87')
    sys.exit(1)
") || fail "${found:-torch cannot be imported} ($1): name another by --torch (docs/jetson.md)"
}
if [ "$torch" = system ]; then
  if [ $whole = yes ]; then check_torch "$environment/bin/python"; else check_torch "$program"; fi
fi

# What TensorRT engines are built from.
[ "$jetpack" = none ] || extras=onnx${extras:+,$extras}

identity() { awk -F: -v name="$2" '$1 == name { print $3 }' "$root/etc/$1"; }
# Groups that own the GPU's nodes and jtop's socket; the unit names them, so they must exist.
for group in video render jtop ffedge; do
  groupadd --force --system ${root:+--prefix "$root"} "$group"
done
if [ -z "$(identity passwd ffedge)" ]; then
  useradd ${root:+--prefix "$root"} --system --gid ffedge --no-create-home \
    --home-dir /var/lib/ffedge --shell /usr/sbin/nologin ffedge
  say "made the user ffedge"
fi
# The unit gives it these by itself; `sudo -u ffedge ffedge doctor` needs them too.
usermod ${root:+--prefix "$root"} --append --groups video,render,jtop ffedge
user=$(identity passwd ffedge) group=$(identity group ffedge)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "$wheel" ]; then
  package=$(realpath "$wheel")
else
  # Built from a copy: a build as root leaves nothing in the checkout.
  package=$work/ffedge
  mkdir "$package"
  (cd "$checkout" && cp -r daemon engines models pyproject.toml README.md LICENSE "$package")
fi
# What is decided above takes the place of its line in constraints.txt; ml_dtypes' is for a newer numpy.
constraints=$work/constraints.txt
sed -e "${torch:+/^torch[=<>;]/d}" -e "${numpy:+/^\(numpy\|ml_dtypes\)[=<>;]/d}" "$checkout/constraints.txt" \
  >"$constraints"
[ -z "$numpy" ] || echo "$numpy" >>"$constraints"

# TensorRT's Python package comes from apt, never from PyPI: the environment must see the system's.
[ $whole = yes ] || "$program" -I -m venv --clear --system-site-packages "$environment"
pip=("$environment/bin/python" -I -m pip --disable-pip-version-check --quiet)
if [ -n "$torch" ] && [ "$torch" != system ]; then
  # Alone: what torch needs in turn comes from the usual index.
  "${pip[@]}" install --no-deps ${torch_index:+--index-url "$torch_index"} "$torch"
  "${pip[@]}" install --constraint "$constraints" torch
  check_torch "$environment/bin/python"
fi
"${pip[@]}" install --constraint "$constraints" "$package${extras:+[$extras]}"
# Once more, alone: pip takes a wheel of the same version for installed.
"${pip[@]}" install --force-reinstall --no-deps "$package"
if [ "$jetpack" != none ]; then
  # TensorRT's memory and our own kernels go through it. There is no wheel: nvcc's CUDA is compiled against.
  if [ -x "$cuda/bin/nvcc" ]; then
    PATH=$cuda/bin:$PATH LIBRARY_PATH=$cuda/lib64/stubs \
      "${pip[@]}" install --constraint "$constraints" pycuda==2026.1 ||
      fail "pycuda does not compile, see above: it wants apt's g++ and python3-dev"
  else
    say "no $cuda/bin/nvcc, so no pycuda: torch will serve, TensorRT and the CUDA kernels will not"
  fi
  # Once more: pip replaces a torch that is too old for the package.
  check_torch "$environment/bin/python"
fi
if [ -n "$root" ]; then
  # What was installed under DIR will run without it.
  { grep -rlIZ --exclude-dir=lib --exclude-dir=lib64 -F "$environment" "$environment" || true; } |
    xargs -0 --no-run-if-empty sed -i "s|$environment|/opt/ffedge|g"
fi
say "installed $("$environment/bin/python" -I -c 'import importlib.metadata as m; print("ffedge", m.version("ffedge"))')"

install -d -m 0750 -o 0 -g "$group" "$configuration"
install -d -m 0750 -o "$user" -g "$group" "$state"
fresh=no
if [ ! -e "$configuration/ffedge.toml" ]; then
  fresh=yes
  sed 's|^directory = "./var" |directory = "/var/lib/ffedge" |' "$checkout/deploy/ffedge.toml" \
    >"$work/ffedge.toml"
  install -m 0640 -o 0 -g "$group" "$work/ffedge.toml" "$configuration/ffedge.toml"
  say "wrote $configuration/ffedge.toml: set input_shape and max_classes in it"
fi
install -D -m 0644 -o 0 -g 0 "$checkout/deploy/ffedge.service" "$unit"
if ! command -v systemctl >/dev/null; then
  say "no systemctl here: enable ffedge.service yourself"
  exit 0
fi
systemctl ${root:+--root="$root"} --quiet enable ffedge.service
[ -z "$root" ] || { say "installed into $root; it starts with that system"; exit 0; }
[ -d /run/systemd/system ] || { say "systemd does not run here: nothing started"; exit 0; }
systemctl daemon-reload
if [ $fresh = yes ]; then
  say "then: sudo systemctl start ffedge"
elif [ $start = yes ]; then
  systemctl restart ffedge.service
  say "ffedge runs"
fi
