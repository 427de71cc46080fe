# Sourced by the scripts that need a virtual environment with this package in it.
#
# setup_venv FOLDER CONSTRAINTS EXTRAS: makes FOLDER once, and installs again only when what is asked for has changed.
setup_venv() {
    local venv=$1 constraints=$2 extras=$3 stamp=$1/installed-$3 wanted
    wanted=$(cat pyproject.toml "$constraints" | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
    # most of what is installed is never imported, and compiling all of it takes longer than the rest
    "$venv/bin/python" -m pip install -qq --no-compile --constraint "$constraints" --editable ".[$extras]"
    echo "$wanted" > "$stamp"
}
