"""Completions as real shells give them: bash, zsh and fish, each with a script of ours."""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

_SHOW = "\x18"
"""Ctrl-X: print the line as it is now, between marks, and clear it."""
_ZSH = """
fpath=(%s $fpath)
PS1='> ' LISTMAX=0 zle_bracketed_paste=()
autoload -Uz compinit && compinit -u -D
setopt no_beep
show() { zle -I; print -r -- "$BUFFER #end""#"; BUFFER= }
zle -N show && bindkey '^X' show
print ready "to ask"
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x1f]")


def complete(shell: str, script: Path, lines: Sequence[str], folder: Path) -> list[set[str]]:
    """Return the words that a shell proposes at the end of each line, in a folder; those of zsh
    have its descriptions among them. Skip where the shell is absent."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "zsh":
        return _ask_zsh(script, lines, folder)
    ask = {"bash": _ask_bash, "fish": _ask_fish}[shell]
    return [ask(script, line, folder) for line in lines]


def _ask_bash(script: Path, line: str, folder: Path) -> set[str]:
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    function = "_shtab_fastdeit"
    code = (
        f"source {shlex.quote(str(script))}; complete -p fastdeit | grep -q {function} || exit 3; "
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; {function}; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    command = ["bash", "--norc", "--noprofile", "-c", code]
    return set(_run(command, folder).split("\n")) - {""}


def _ask_fish(script: Path, line: str, folder: Path) -> set[str]:
    code = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
    lines = _run(["fish", "--no-config", "-c", code], folder).splitlines()
    return {line.partition("\t")[0] for line in lines}


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout


def _ask_zsh(script: Path, lines: Sequence[str], folder: Path) -> list[set[str]]:
    """Type each line and a tab into one interactive zsh; return the words that it then shows."""
    start = script.with_name("start.zsh")
    start.write_text(_ZSH % shlex.quote(str(script.parent)))
    shutil.copy(script, script.with_name("_fastdeit"))
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], os.environ | {"TERM": "dumb", "COLUMNS": "200"})
    try:
        os.write(terminal, f"source {shlex.quote(str(start))}\n".encode())
        _read(terminal, "ready to ask")
        return [_type(terminal, line) for line in lines]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def _type(terminal: int, line: str) -> set[str]:
    os.write(terminal, f"{line}\t{_SHOW}".encode())
    return set(_ESCAPES.sub(" ", _read(terminal, "#end#")).split())


def _read(terminal: int, end: str) -> str:
    """Return what a terminal shows up to `end`. Raise AssertionError after a minute."""
    shown = ""
    limit = time.monotonic() + 60
    while end not in shown:
        assert time.monotonic() < limit, shown
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
