"""The working copy of a run brought to what its URL has."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastdeit.checkpoint.files import NewerFormat
from fastdeit.checkpoint.store import list_checkpoints, rename_aside, step_of, verify_checkpoint
from fastdeit.mirror.contents import CHECKPOINTS, MANIFEST, group_checkpoints, is_mirrored
from fastdeit.mirror.store import RunStore
from fastdeit.storage.run_folder import RunFolder


def restore(
    folder: RunFolder, store: RunStore, listed: Mapping[str, int], say: Callable[[str], None]
) -> None:
    """Bring a working copy to what a store has, unless it is ahead of it.

    listed: the store's files; say: called with lines for the user. The starts of the run decide
    this (attempts.jsonl): the store is ahead if it has more of them, or the same ones and a newer
    checkpoint. Raises ValueError if each has a start that the other lacks, or if no checkpoint of
    the store is whole; OSError; and FetchStopped, after which the copy is behind the store, and the
    next start restores it again.
    """
    if not any(is_mirrored(folder, name) for name in listed):
        return
    theirs = _read_lines(_read(store, folder.attempts.name))
    ours = _read_lines(folder.attempts.read_bytes() if folder.attempts.is_file() else None)
    if ours[: len(theirs)] != theirs and theirs[: len(ours)] != ours:
        raise ValueError(
            f"--output-dir: {store.url} and its working copy {folder} have gone different ways; "
            f"remove {folder} to resume what is at the URL"
        )
    complete = _list_complete(listed)
    if len(ours) > len(theirs) or (ours == theirs and not _is_newer(complete, folder)):
        return
    say(f"restoring {store.url} to {folder}")
    restored = _restore_checkpoints(folder, store, complete, say)
    if complete and not restored:
        raise ValueError(f"--output-dir: {store.url} has no whole checkpoint")
    for path in list_checkpoints(folder.checkpoints):
        if step_of(path) not in restored:
            rename_aside(path)
    _restore_files(folder, store, listed)


def _read(store: RunStore, name: str) -> bytes | None:
    """Return the content of a small file, tried again after faults that may pass."""
    return store.retry(lambda: store.read(name))


def _read_lines(data: bytes | None) -> list[bytes]:
    return [line for line in (data or b"").splitlines() if line.strip()]


def _list_complete(listed: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the files of each checkpoint that has a manifest, the newest checkpoint first."""
    groups = group_checkpoints(iter(listed))
    return {
        step: names for step, names in groups.items() if f"{CHECKPOINTS}/{step}/{MANIFEST}" in names
    }


def _is_newer(complete: Mapping[str, Sequence[str]], folder: RunFolder) -> bool:
    """Return True if the newest checkpoint of a store is later than that of a folder."""
    own = [step_of(path) for path in list_checkpoints(folder.checkpoints)[:1]]
    return any(not own or step_of(Path(step)) > own[0] for step in list(complete)[:1])


def _restore_checkpoints(
    folder: RunFolder,
    store: RunStore,
    complete: Mapping[str, Sequence[str]],
    say: Callable[[str], None],
) -> list[int]:
    """Download the checkpoints that a folder lacks; return the steps of those that are whole, the
    latest first. A damaged one is skipped, with a line."""
    steps = []
    for step, names in complete.items():
        final = folder.checkpoints / step
        manifest = final / MANIFEST
        remote = _read(store, f"{CHECKPOINTS}/{step}/{MANIFEST}")
        if not (manifest.is_file() and manifest.read_bytes() == remote):
            fault = _restore_checkpoint(final, store, names)
            if fault:
                say(f"checkpoint skipped: {fault}")
                continue
        steps.append(step_of(final))
    return steps


def _restore_checkpoint(final: Path, store: RunStore, names: Sequence[str]) -> str:
    """Download a checkpoint; return what is wrong with it, or "".

    Raises NewerFormat, and FetchError for what the store refuses, which is no damage.
    """
    work = final.with_name(f"{final.name}.tmp-restore")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for name in names:
            store.download(name, work / name.rpartition("/")[2])
        fault = _find_damage(work, f"{store.url}/{CHECKPOINTS}/{final.name}")
        if not fault:
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return fault


def _find_damage(work: Path, address: str) -> str:
    """Return what is wrong with a downloaded checkpoint, or "". Raises NewerFormat."""
    try:
        verify_checkpoint(work)
    except NewerFormat as error:
        raise NewerFormat(str(error).replace(str(work), address)) from None
    except ValueError as error:
        return str(error).replace(str(work), address)
    return ""


def _restore_files(folder: RunFolder, store: RunStore, listed: Mapping[str, int]) -> None:
    """Download the files outside of checkpoints, the list of starts last: until that exists, the
    copy is behind, and is restored again; remove files that the store lacks."""
    names = [name for name in listed if is_mirrored(folder, name)]
    for file in [each for each in folder.path.rglob("*") if each.is_file()]:
        name = file.relative_to(folder.path).as_posix()
        if is_mirrored(folder, name) and name not in listed:
            file.unlink()
    for name in sorted(names, key=lambda name: name == folder.attempts.name):
        store.download(name, folder.path / name)
