# Sourced by scripts that test with other versions: $python finds its own packages, then those of the environment given
# ($1, else that of the other checks). It is gone when the script ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
newest=${1:-.venv/bin/python}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$newest" -m venv "$work/venv"
python="$work/venv/bin/python"
where='import sysconfig; print(sysconfig.get_path("purelib"))'
"$newest" -c "$where" >"$("$python" -c "$where")/newest.pth"
