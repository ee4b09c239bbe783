"""`RunFolder`: every file has a name of its own, which the docstring explains."""

from pathlib import Path

from fastdeit.storage.run_folder import RunFolder


def file_names() -> list[str]:
    """Return every name, with R for a rank and N for a step."""
    folder = RunFolder(Path("run"))
    values = [getattr(folder, name) for name in dir(folder) if not name.startswith("_")]
    names = [value.name for value in values if isinstance(value, Path) and value != folder.path]
    assert len(names) > 15
    numbered = [folder.debug_bundle(8), folder.replay(8)]
    names += [path.name.replace("8", "N") for path in numbered]
    return [*names, folder.failure(3).name.replace("3", "R")]


def test_names_are_distinct() -> None:
    names = file_names()
    assert len(names) == len(set(names))


def test_docstring_explains_every_name() -> None:
    text = " ".join((RunFolder.__doc__ or "").split())
    assert [
        name for name in file_names() if f" {name}" not in text and f"`{name}`" not in text
    ] == []


def test_lists_of_failures_and_bundles_are_sorted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rank in (2, 0):
        folder.failure(rank).touch()
    for step in (9, 4):
        folder.debug_bundle(step).mkdir()
    folder.failures.touch()
    folder.bad_steps.touch()
    assert folder.failure_files() == [folder.failure(0), folder.failure(2)]
    assert folder.debug_bundles() == [folder.debug_bundle(4), folder.debug_bundle(9)]


def test_weights_of_an_earlier_version_are_found_until_the_run_has_newer_ones(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    assert folder.weights() == folder.model
    (tmp_path / "student.safetensors").touch()
    assert folder.weights().name == "student.safetensors"
    folder.model.touch()
    assert folder.weights() == folder.model
