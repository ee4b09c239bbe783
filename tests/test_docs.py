"""README, CONTRIBUTING and docs: links, commands, flags, file names and words."""

import ast
import dataclasses
import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastdeit.__main__ import COMMANDS
from fastdeit.config.peer_flags import PEER_FLAGS
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.plan.build import build_plan
from fastdeit.storage.run_folder import RunFolder
from tests.support.launching import ROOT

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = [ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "LOG.md"]  # may name what is gone

# flags of programs that are not ours
FOREIGN_FLAGS = {
    "deepspeed": "--hostfile --no_ssh --node_rank --master_addr --no_local_rank --module "
    "--num_gpus --num_accelerators",
    "sbatch": "--nodes --array --gpus --cpus-per-task --requeue --no-requeue --signal --wrap",
    "scancel": "--batch",
    "srun": "--nodes --ntasks-per-node",
    "curl": "--location --remote-name",
    "torchrun": "--nproc_per_node",
    "timm": "--mixup-off-epoch",
    "tensorboard": "--logdir",
    "node_exporter": "--collector",
    "deit": "--output_dir --num_workers",
    "benchmarks.resources": "--write",
    "benchmarks.bench_official": "--deit --python",
    "benchmarks.bench_pipeline": "--pillow-simd --data --sizes --copies --stages --rounds --images",
    "benchmarks.rehearsal": "--folder --scale --stages",
    "pip": "--no-deps --no-binary --target --no-index --find-links",
    "docker": "--rm --gpus --ipc --ulimit --user --volume --entrypoint --time --build-arg --file "
    "--tag",
    "apptainer": "--nv",
}

# words that a stranger has to translate -> the field's words
AVOIDED = {
    r"tak(e|es|ing|en) up|took up": "restore, read, accept",
    r"(go|goes|going|went|gone) on": "resume, continue",
    r"(go|goes|going|went) back": "roll back",
    r"pass(es|ed|ing)? over": "skip",
    r"left out|leav(e|es|ing) out": "exclude",
    r"a person|persons": "a user",
    r"tells?|told": "report, name",
    r"(come|comes|came) to grief": "fail",
    r"for good": "permanently",
    r"once more": "again",
    r"(speak|speaks|hear|hears|knows) of": "name, read",
    r"average of the weights|and average": "EMA",
    r"laws?": "distribution",
    r"retaken?|taken again": "replay",
}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)}


def code(text: str) -> Iterator[str]:
    """Yield the code blocks and the code spans of Markdown."""
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    yield from re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`([^`]+)`", without_blocks)


@functools.cache
def flags_of_parsers() -> set[str]:
    """Return the flags of every `add_argument` and `addoption` of the repository."""
    found: set[str] = set()
    sources = [*ROOT.glob("fastdeit/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    for source in [*sources, *ROOT.glob("tests/**/conftest.py")]:
        for node in ast.walk(ast.parse(text_of(source))):
            if not isinstance(node, ast.Call):
                continue
            if getattr(node.func, "attr", "") in ("add_argument", "addoption"):
                found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def flags_of_training() -> set[str]:
    """Return the flags of `fastdeit train`, from the fields of `Config`."""
    found = set()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            name = field.name.replace("_", "-")
            found |= {f"--{name}", f"--no-{name}"}
    return found


def flags_of_commands() -> set[str]:
    """Return the flags of the other commands, from the fields of their dataclasses."""
    found = set()
    rooms = [ROOT / "fastdeit" / name for name in ("commands", "inference")]
    for source in (file for room in rooms for file in room.glob("**/*.py")):
        for node in ast.walk(ast.parse(text_of(source))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id.replace("_", "-")
                found |= {f"--{name}", f"--no-{name}"}
    return found


def known_paths(text: str) -> Iterator[str]:
    """Yield the paths of files of this repository that a text names, without placeholders."""
    roots = r"(?:fastdeit|kernels|benchmarks|tests|docs|\.ci)"
    for found in re.findall(rf"(?<![\w./<-]){roots}/[\w./<>*{{}}-]*", text):
        path = found.rstrip(".")
        if not re.search(r"[<>*{}]", path):
            yield path
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)?)", text):
        yield module.replace(".", "/") + ("" if module == "benchmarks" else ".py")


@pytest.mark.parametrize("path", [*GUIDES, *HISTORY], ids=lambda path: path.name)
def test_relative_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name}: no file {link}"
        assert not heading or heading in anchors(target), f"{path.name}: no heading {link}"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    missing = [name for name in known_paths(text_of(path)) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_named_tests_exist(path: Path) -> None:
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text_of(path)):
        assert re.search(rf"^\s*def {test}\(", text_of(ROOT / file), re.MULTILINE), (file, test)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_named_flags_exist(path: Path) -> None:
    known = flags_of_parsers() | flags_of_training() | flags_of_commands()
    known |= {flag for flags in FOREIGN_FLAGS.values() for flag in flags.split()}
    known |= {"--help", *PEER_FLAGS}
    named = {
        flag for part in code(text_of(path)) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", part)
    }
    assert not named - known


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_named_commands_exist(path: Path) -> None:
    usage = text_of(ROOT / "fastdeit" / "commands" / "cache" / "command.py")
    for part in code(text_of(path)):
        for command, action in re.findall(r"(?:^|\s)fastdeit ([a-z]+)(?: ([a-z]+))?", part):
            assert command in COMMANDS, part
            assert command != "cache" or not action or f"fastdeit cache {action}" in usage, part


def test_readme_names_the_files_of_a_run() -> None:
    section = text_of(ROOT / "README.md").partition("## What a run writes")[2].partition("\n## ")[0]
    kinds = "yaml|jsonl|json|safetensors|html|parquet"
    named = set(re.findall(rf"`([a-z_]+(?:-[a-z]+)*\.(?:{kinds}))`", section))
    folder = RunFolder(Path("run"))
    members = (name for name in vars(RunFolder) if not name.startswith("_"))
    values = (getattr(folder, name) for name in members)
    assert named == {value.name for value in values if isinstance(value, Path) and value.suffix}


def test_readme_has_the_plan_of_the_default_recipe() -> None:
    plan = build_plan(RECIPES["deit"](), np.full((1024, 2), 224, dtype=np.int32))
    assert f"    {plan.spec.describe()}\n" in text_of(ROOT / "README.md")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_words_are_plain(path: Path) -> None:
    text = re.sub(r"^## Words$.*?(?=^## |\Z)", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\s+", " ", text)
    found = {
        f"{prose[max(0, match.start() - 30) : match.end() + 20]!r}: write {better}"
        for pattern, better in AVOIDED.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", prose, re.IGNORECASE)
    }
    assert not found


def test_the_start_page_leads_to_every_page() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", text_of(ROOT / "docs" / "index.md"))
    reached = {*linked, "index.md", "machines.md", "gpu.md"}  # these two: from clusters.md
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == reached


def test_glossary_has_the_words_of_readme() -> None:
    glossary = text_of(ROOT / "docs" / "glossary.md")
    section = text_of(ROOT / "README.md").partition("| word | meaning |\n|---|---|\n")[2]
    rows = section.partition("\n\n")[0].splitlines()
    assert len(rows) > 3
    assert not [row for row in rows if row not in glossary]


def test_glossary_has_each_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", text_of(ROOT / "docs" / "glossary.md"), re.MULTILINE)
    words = [word for row in rows if row != "word" for word in row.split(", ")]
    assert len(words) == len(set(words)) > 60


def test_pictures_are_small_and_described() -> None:
    for page in GUIDES:
        for text, link in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text_of(page)):
            assert len(text) > 20, f"{page.name}: {link} needs a description"
            assert (page.parent / link).stat().st_size < 300_000, link


def test_the_drawing_of_the_data_flow_has_the_labels_of_its_source() -> None:
    source = text_of(ROOT / "docs" / "architecture.dot")
    labels = {
        line.strip()
        for label in re.findall(r'label="([^"]+)"', source)
        for line in label.split("\\n")
    }
    drawn = re.findall(r"<text[^>]*>([^<]+)</text>", text_of(ROOT / "docs" / "architecture.svg"))
    assert labels == {html.unescape(line).strip() for line in drawn} and len(labels) > 10
