# Sourced by the scripts that need a virtual environment with this package in it.
#
# setup_venv FOLDER CONSTRAINTS EXTRAS: makes FOLDER once, and installs again only when what is asked for has changed;
# an environment with further extras before these will do.
setup_venv() {
    local venv=$1 constraints=$2 extras=$3 stamp wanted
    wanted=$(cat pyproject.toml "$constraints" | sha256sum)
    for stamp in "$venv"/installed-*"$extras"; do
        [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    done
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
    # Most of what is installed is never imported: compiling all of it takes longer than the rest, so that is done for
    # what is imported.
    "$venv/bin/python" -m pip install -qq --no-compile --constraint "$constraints" --editable ".[$extras]"
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c "import hf_effpt.comparison.experiment"
    echo "$wanted" > "$venv/installed-$extras"
}
