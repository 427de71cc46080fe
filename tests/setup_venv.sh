# Sourced by the scripts that need a virtual environment with this package in it.
#
# setup_venv FOLDER CONSTRAINTS EXTRAS: makes FOLDER once, and installs again only when what is asked for has changed;
# an environment with further extras before these will do.
setup_venv() {
    install_venv "$@"
    compile_imported "$1"
}

install_venv() {
    local venv=$1 constraints=$2 extras=$3 stamp wanted links
    wanted=$(cat pyproject.toml "$constraints" | sha256sum)
    for stamp in "$venv"/installed-*"$extras"; do
        [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    done
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
    # uv takes a quarter of pip's time. It reads none of pip's settings; where it fails, pip does it.
    links=$("$venv/bin/python" -m pip config list | sed -n "s/.*find-links='\(.*\)'/\1/p" | tail -n 1 | tr ' ' ',')
    {
        "$venv/bin/python" -m pip install -qq --constraint "$constraints" uv &&
            env ${links:+"UV_FIND_LINKS=$links"} "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
                --constraint "$constraints" --editable ".[$extras]"
    } || "$venv/bin/python" -m pip install -qq --no-compile --constraint "$constraints" --editable ".[$extras]"
    touch "$venv/uncompiled"
    echo "$wanted" > "$venv/installed-$extras"
}

# Most of what is installed is never imported: compiling all of it takes longer than the rest, so that is done for what
# is imported.
compile_imported() {
    [[ -f $1/uncompiled ]] || return 0
    env -u PYTHONDONTWRITEBYTECODE "$1/bin/python" -c "import hf_effpt.comparison.experiment"
    rm "$1/uncompiled"
}
