"""Format, writer and reader of a teacher cache: records come back, damaged ones are not used."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdeit.teacher_cache.check import check_coverage, check_soft
from fastdeit.teacher_cache.format import (
    LARGEST_CHUNK,
    CacheError,
    Manifest,
    decode,
    encode,
    list_differences,
    read_manifest,
)
from fastdeit.teacher_cache.reader import Cache, CachedTeacher
from fastdeit.teacher_cache.writer import CacheWriter, create_cache

CLASSES, SAMPLES = 300, 1000
FACTS = {"plan": {"seed": 0, "reprob": 0.25}, "data set": "abc", "teacher": {"sha256": "123"}}


def manifest(kind: str = "hard", k: int = 1, chunk: int = 256) -> Manifest:
    return Manifest(kind, k, CLASSES, SAMPLES, FACTS, {"torch": "2"}, chunk)


def images(epoch: int, ordinals: np.ndarray) -> np.ndarray:
    return (ordinals * 7 + epoch) % SAMPLES


def logits_of(epoch: int, ordinals: np.ndarray) -> torch.Tensor:
    """Return each sample's own logits, in whatever batch it is computed."""
    rows = [
        torch.randn(CLASSES, generator=torch.Generator().manual_seed(10_000 * epoch + int(o)))
        for o in ordinals
    ]
    return torch.stack(rows) * 3


def build(
    folder: Path,
    epochs: tuple[int, ...] = (0, 1),
    kind: str = "hard",
    k: int = 1,
    skip: tuple[int, ...] = (),
    chunk: int = 256,
) -> Cache:
    facts = manifest(kind, k, chunk)
    create_cache(folder, facts)
    recorder = CacheWriter(folder)
    for epoch in epochs:
        for number in set(range(facts.chunks)) - set(skip):
            ordinals = facts.ordinals(number)
            recorder.write(
                epoch, number, encode(logits_of(epoch, ordinals), facts), images(epoch, ordinals)
            )
    recorder.close()
    return Cache(folder)


def test_copies_wait_for_the_disk_once_for_many_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = manifest(chunk=20)
    source = build(tmp_path / "source", epochs=(1,), chunk=20)
    create_cache(tmp_path / "target", facts)
    writer = CacheWriter(tmp_path / "target")
    recorded: list[int] = []

    def sync(handle: int) -> None:
        recorded.append(int(Cache(tmp_path / "target").coverage().sum()))

    monkeypatch.setattr("os.fdatasync", sync)
    writer.copy(source, 1, range(facts.chunks))
    writer.close()
    # no digest is there before its records are on the disk
    assert recorded == [0, 16, 32, 48] and facts.chunks == 50
    target = Cache(tmp_path / "target")
    assert target.coverage()[1].all() and target.find_fault(1, 49, images) is None


def test_hard_records_are_read_back(tmp_path: Path) -> None:
    cache = build(tmp_path / "c", epochs=(0, 2))
    assert (tmp_path / "c" / "records.bin").stat().st_size == 3 * SAMPLES * 2  # two bytes a sample
    for epoch in (0, 2):
        ordinals = np.array([999, 0, 255, 256, 511, 3])
        raw, fault = cache.look_up(epoch, ordinals, images)
        assert fault is None
        answer = decode(torch.from_numpy(raw), cache.manifest, hard=True)
        assert torch.equal(answer, logits_of(epoch, ordinals).argmax(1))
    assert cache.coverage().tolist() == [[True] * 4, [False] * 4, [True] * 4]


@pytest.mark.parametrize("k", [1, 10, CLASSES])
def test_topk_records_have_fp16_logits_and_the_mass_of_the_rest(tmp_path: Path, k: int) -> None:
    cache = build(tmp_path / "c", epochs=(0,), kind="topk", k=k)
    assert cache.record_bytes == 4 * k + 8
    ordinals = np.arange(40)
    logits = logits_of(0, ordinals)
    raw = torch.from_numpy(cache.look_up(0, ordinals, images)[0])
    assert torch.equal(decode(raw, cache.manifest, hard=True), logits.argmax(1))
    answer = decode(raw, cache.manifest, hard=False)
    top, classes = logits.topk(k)
    top = (top - top[:, :1]).half().float()
    assert torch.equal(answer.gather(1, classes), top)
    # the normaliser at tau 1 is recorded: a kept class has its probability
    torch.testing.assert_close(
        answer.softmax(1).gather(1, classes),
        logits.softmax(1).gather(1, classes),
        rtol=5e-3,
        atol=1e-5,
    )
    if k == 10:  # what was left out, evenly, and never above what was kept
        rest = answer.scatter(1, classes, -torch.inf)
        assert (rest.amax(1) <= top[:, -1]).all()
        spread = rest.masked_fill(rest == -torch.inf, 0).sum(1) / (CLASSES - k)
        torch.testing.assert_close(rest.amax(1), spread)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("k", [1, 10, CLASSES])
def test_kept_probabilities_are_exact_at_both_temperatures(k: int, tau: float) -> None:
    """And so is the mass of the others, who share it evenly."""
    facts = replace(manifest("topk", k), tau=tau)
    logits = logits_of(0, np.arange(40))
    raw = torch.from_numpy(encode(logits, facts).view(np.uint8).reshape(40, -1).copy())
    classes = logits.topk(k).indices
    for each in (1.0, tau):
        found = (decode(raw, facts, hard=False, tau=each) / each).softmax(1)
        expected = (logits / each).softmax(1)
        kept = found.gather(1, classes)
        # fp16 has 11 bits of logits of up to about 30
        torch.testing.assert_close(kept, expected.gather(1, classes), rtol=2e-2 / each, atol=1e-6)
        rest = found.scatter(1, classes, 0)
        if k < CLASSES:
            mass = expected.scatter(1, classes, 0).sum(1)
            torch.testing.assert_close(rest.sum(1), mass, rtol=1e-2, atol=1e-4)
            torch.testing.assert_close(rest.amax(1), rest.sum(1) / (CLASSES - k))


def test_older_records_have_one_temperature(tmp_path: Path) -> None:
    """Format 1: 4k + 4 bytes, exact at the temperature 1; it is read and continued."""
    facts = replace(manifest("topk", 10), format=1)
    create_cache(tmp_path, facts)
    values = json.loads((tmp_path / "manifest.json").read_text())
    del values["tau"]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert read_manifest(tmp_path) == facts
    create_cache(tmp_path, facts)
    ordinals = facts.ordinals(0)
    recorder = CacheWriter(tmp_path)
    recorder.write(0, 0, encode(logits_of(0, ordinals), facts), images(0, ordinals))
    recorder.close()
    cache = Cache(tmp_path)
    assert cache.record_bytes == 44
    raw, fault = cache.look_up(0, np.arange(8), images)
    assert fault is None
    expected = logits_of(0, np.arange(8)).softmax(1).amax(1)
    found = decode(torch.from_numpy(raw), cache.manifest, hard=False).softmax(1).amax(1)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)
    check_soft(cache, 1.0)
    advice = "or record again: fastdeit cache build .* --kind topk --distillation-tau 3 -o NEW"
    with pytest.raises(CacheError, match=rf"--distillation-tau must be 1, .* \(got 3\); {advice}"):
        check_soft(cache, 3.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(2, 40), st.integers(1, 40), st.sampled_from([0.1, 3.0, 200.0]), st.integers(0, 100)
)
def test_topk_decodes_at_any_size_and_scale(classes: int, k: int, scale: float, seed: int) -> None:
    facts = replace(manifest("topk", min(k, classes)), num_classes=classes)
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)) * scale
    raw = torch.from_numpy(encode(logits, facts).view(np.uint8).reshape(5, -1).copy())
    answer = decode(raw, facts, hard=False)
    assert answer.isfinite().all()
    top, ids = logits.topk(facts.k)
    assert torch.equal(answer.gather(1, ids), (top - top[:, :1]).half().float())


@pytest.mark.parametrize("k", [2, CLASSES])
def test_logits_beyond_fp16_stay_finite(k: int) -> None:
    facts = manifest("topk", k)
    raw = (
        encode(torch.linspace(-1e6, 1e6, CLASSES).repeat(2, 1), facts)
        .view(np.uint8)
        .reshape(2, -1)
        .copy()
    )
    answer = decode(torch.from_numpy(raw), facts, hard=False)
    assert (
        answer.isfinite().all()
        and (answer.argmax(1) == decode(torch.from_numpy(raw), facts, hard=True)).all()
    )


def test_class_ids_use_all_sixteen_bits() -> None:
    facts = replace(manifest(), num_classes=65_535)
    logits = torch.zeros(2, 65_535)
    logits[0, 65_534] = logits[1, 40_000] = 1
    raw = torch.from_numpy(encode(logits, facts).view(np.uint8).reshape(2, 2).copy())
    assert decode(raw, facts, hard=True).tolist() == [65_534, 40_000]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_first_recorded_class_is_the_argmax_of_equal_logits(k: int) -> None:
    """bf16 logits are often equal; the class that a loss uses must not depend on the recording."""
    logits = torch.randint(0, 3, (500, 12), generator=torch.Generator().manual_seed(1)).bfloat16()
    facts = replace(manifest("topk", k), num_classes=12)
    raw = torch.from_numpy(encode(logits, facts).view(np.uint8).reshape(500, -1).copy())
    assert torch.equal(decode(raw, facts, hard=True), logits.argmax(1))
    values = logits.float().gather(1, decode(raw, facts, hard=False).topk(k).indices)
    assert torch.equal(values, logits.float().topk(k).values)


def test_too_many_classes_fail(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"classes must be 2 to 65535 \(got 65536\)"):
        create_cache(tmp_path / "c", replace(manifest(), num_classes=65_536))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "soft"}, r"kind must be one of hard, topk \(got .soft.\)"),
        ({"kind": "topk", "k": 301}, r"k must be 1 to 300 \(got 301\)"),
    ],
)
def test_wrong_kind_or_k_fails(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        create_cache(tmp_path / "c", replace(manifest(), **change))


def test_fault_of_a_missing_record_names_its_place(tmp_path: Path) -> None:
    cache = build(tmp_path / "c", skip=(1,))
    assert cache.look_up(0, np.array([255, 512]), images)[1] is None
    raw, fault = cache.look_up(1, np.array([255, 256]), images)
    assert (
        fault is not None and "epoch 1, ordinals from 256: not recorded" in fault and not raw.any()
    )
    assert "not recorded" in str(cache.look_up(7, np.array([0]), images)[1])


def test_incomplete_epoch_is_readable(tmp_path: Path) -> None:
    """The file does not yet contain its later chunks."""
    build(tmp_path / "c", epochs=(0,))
    cache = build(tmp_path / "c", epochs=(1,), skip=(1, 2, 3))
    assert cache.coverage().tolist() == [[True] * 4, [True, False, False, False]]


def test_a_chunk_of_which_a_run_needs_a_part_must_be_recorded(tmp_path: Path) -> None:
    cache = build(tmp_path / "c", epochs=(0,), skip=(2,))
    check_coverage(cache, 1, 2 * 256)
    with pytest.raises(CacheError, match="epochs not recorded: 0;"):
        check_coverage(cache, 1, 2 * 256 + 2)


def test_more_chunks_than_fit_in_memory_are_readable(tmp_path: Path) -> None:
    cache = build(tmp_path / "c", epochs=tuple(range(12)))
    for epoch in [*range(12), *range(12)]:
        raw, fault = cache.look_up(epoch, np.array([998, 3, 300, 600]), images)
        assert fault is None
        answer = decode(torch.from_numpy(raw), cache.manifest, hard=True)
        assert torch.equal(answer, logits_of(epoch, np.array([998, 3, 300, 600])).argmax(1))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 511, 2 * 256])
def test_flipped_byte_damages_its_chunk_only(tmp_path: Path, place: int) -> None:
    build(tmp_path / "c")
    flip(tmp_path / "c" / "records.bin", place)
    cache = Cache(tmp_path / "c")
    chunk = place // 512
    assert "damaged" in str(cache.look_up(0, np.array([256 * chunk + 9]), images)[1])
    assert cache.look_up(0, np.array([256 * (1 - chunk), 600]), images)[1] is None


def test_flipped_digest_damages_its_chunk(tmp_path: Path) -> None:
    build(tmp_path / "c")
    flip(tmp_path / "c" / "chunks.bin", 3)
    assert "damaged" in str(Cache(tmp_path / "c").find_fault(0, 0, images))


@pytest.mark.parametrize("name", ["records.bin", "chunks.bin"])
def test_truncated_file_loses_its_end_only(tmp_path: Path, name: str) -> None:
    build(tmp_path / "c")
    path = tmp_path / "c" / name
    os.truncate(path, path.stat().st_size - 7)
    cache = Cache(tmp_path / "c")
    assert cache.find_fault(1, 3) is not None and cache.find_fault(1, 2, images) is None
    assert cache.look_up(1, np.array([700]), images)[1] is None
    os.truncate(path, 0)
    assert Cache(tmp_path / "c").find_fault(0, 0) is not None


def test_records_of_other_images_are_not_used(tmp_path: Path) -> None:
    cache = build(tmp_path / "c")

    def without_one(epoch: int, ordinals: np.ndarray) -> np.ndarray:
        rows = images(epoch, ordinals)
        return np.where(rows == images(1, np.array([300]))[0], 5, rows)

    assert cache.look_up(1, np.array([300]), images, version=0)[1] is None
    assert "other images" in str(cache.look_up(1, np.array([300]), without_one, version=1)[1])
    assert cache.look_up(1, np.array([3]), without_one, version=1)[1] is None  # another chunk
    assert cache.look_up(1, np.array([300]), images, version=2)[1] is None


def test_manifest_of_a_newer_version_fails(tmp_path: Path) -> None:
    build(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"format": 3, "more": 1}))
    with pytest.raises(CacheError, match=r"manifest.json: format must be 1 or 2 .got 3."):
        Cache(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": "1000"}, "samples: missing or of another type"),
        ({"samples": True}, "samples: missing or of another type"),
        ({"chunk": 0}, "must be an even number"),
        ({"chunk": 7}, r"chunk must be an even number from 2 \(got 7\)"),
        ({"tau": 3.0}, r"tau must be a temperature of the records \(got 3.0\)"),
        ({"tau": "3"}, "tau: missing or of another type"),
        ({"facts": {"teacher": None}}, "facts: teacher must be a mapping"),
        ({"num_classes": 70_000}, r"got 70000\)"),
        ({"kind": "../../etc/passwd"}, "kind"),
    ],
)
def test_manifest_with_wrong_values_fails(tmp_path: Path, change: dict, words: str) -> None:
    build(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CacheError, match=words):
        Cache(tmp_path / "c")


def test_paths_in_a_manifest_are_ignored(tmp_path: Path) -> None:
    """File names are fixed: other names in a manifest, also outside the folder, change nothing."""
    build(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    values = json.loads(path.read_text())
    assert "records.bin" not in path.read_text()
    path.write_text(json.dumps(values | {"records": "../../outside.bin", "chunks": "/etc/passwd"}))
    cache = Cache(tmp_path / "c")
    assert cache.find_fault(0, 0, images) is None and asdict(cache.manifest) == {
        name: values[name] for name in values
    }


def test_missing_manifest_and_wrong_json_fail(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="No such file"):
        Cache(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="must be JSON"):
        Cache(tmp_path)


def test_equal_manifest_continues_and_another_fails(tmp_path: Path) -> None:
    build(tmp_path / "c", epochs=(0,))
    build(tmp_path / "c", epochs=(1,))
    assert Cache(tmp_path / "c").coverage().all()
    other = replace(manifest(), facts=FACTS | {"plan": {"seed": 1, "reprob": 0.25}})
    with pytest.raises(CacheError, match=r"facts.plan.seed 0 in the cache, 1 here$"):
        create_cache(tmp_path / "c", other)
    create_cache(
        tmp_path / "c", replace(manifest(), versions={"torch": "3"})
    )  # not what decides an answer
    assert read_manifest(tmp_path / "c").versions == {"torch": "2"}


def test_folder_with_other_files_fails_and_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(CacheError, match=r"holds other files: thesis.txt"):
        create_cache(tmp_path, manifest())
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_differences_are_named_by_path() -> None:
    now = {"plan": {"seed": 1, "reprob": 0.25}, "teacher": {"sha256": "9"}, "new": 3}
    assert list_differences(FACTS, now) == [
        "plan.seed 0 in the cache, 1 here",
        "teacher.sha256 '123' in the cache, '9' here",
        "new None in the cache, 3 here",
    ]


def test_writer_locks_its_part(tmp_path: Path) -> None:
    build(tmp_path / "c", epochs=(0,))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fastdeit.teacher_cache.writer import CacheWriter\n"
        "CacheWriter(Path(sys.argv[1])).reserve(4, 8); print('ready', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        recorder = CacheWriter(tmp_path / "c")
        recorder.reserve(0, 4)
        with pytest.raises(CacheError, match="another process is recording the same part"):
            recorder.reserve(7, 12)
    finally:
        other.kill()
        other.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            recorder.reserve(7, 12)
            break
        except CacheError:
            time.sleep(0.1)
    recorder.reserve(7, 12)


def test_read_only_folder_can_be_read_but_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = build(tmp_path / "c")
    opened = os.open

    def refuse(
        path: str, flags: int, *rest: int
    ) -> int:  # root may write anywhere, so the system's answer is put in
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CacheError, match="cannot be written: Permission denied"):
        CacheWriter(tmp_path / "c")
    assert cache.find_fault(0, 0, images) is None  # reading goes on
    assert Cache(tmp_path / "c").find_fault(1, 3, images) is None


def test_full_disk_loses_no_recorded_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "c", epochs=(0,))
    before = {name: (tmp_path / "c" / name).read_bytes() for name in ("records.bin", "chunks.bin")}
    recorder = CacheWriter(tmp_path / "c")
    facts = manifest()
    wrote = os.pwrite

    def half(handle: int, data: bytes, offset: int) -> int:
        if len(data) < 300:
            raise OSError(28, "No space left on device")
        return wrote(handle, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", half)
    ordinals = facts.ordinals(0)
    with pytest.raises(CacheError, match="No space left on device; what is recorded stays"):
        recorder.write(1, 0, encode(logits_of(1, ordinals), facts), images(1, ordinals))
    monkeypatch.undo()
    cache = Cache(tmp_path / "c")
    assert cache.coverage()[0].all() and cache.find_fault(1, 0) is not None
    for name, data in before.items():
        assert (tmp_path / "c" / name).read_bytes()[: len(data)] == data
    build(tmp_path / "c", epochs=(1,))
    assert Cache(tmp_path / "c").find_fault(1, 0, images) is None


@pytest.mark.parametrize(("kind", "k"), [("hard", 1), ("topk", 3)])
def test_missing_record_follows_cache_miss(
    kind: str, k: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = build(tmp_path / "c", kind=kind, k=k, skip=(1,))
    ordinals, labels = np.array([256, 257, 258, 259]), np.array([10, 11, 12, 13])
    lam = np.array([0.7, 0.7, 0.2, 0.2], np.float32)
    there = np.array([4, 5, 6, 7])
    with pytest.raises(CacheError, match=r"not recorded; use --cache-miss live or ground-truth"):
        CachedTeacher(cache, "error", images).records(0, ordinals, labels, lam, 0)
    live = CachedTeacher(cache, "live", images)
    assert (
        live.records(0, ordinals, labels, lam, 0) is None
        and live.records(0, there, labels, lam, 0) is not None
    )
    assert live.missed == 4 and "the live teacher instead" in caplog.text
    truth = CachedTeacher(cache, "ground-truth", images)
    raw = truth.records(0, ordinals, labels, lam, 0)
    assert raw is not None
    assert truth.decoder(hard=True)(torch.from_numpy(raw)).tolist() == [10, 11, 13, 12]


def test_warnings_are_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = CachedTeacher(build(tmp_path / "c"), "live", images)
    none = np.zeros(2, np.int64)
    for epoch in range(2, 40):
        assert live.records(epoch, np.array([6, 7]), none, none.astype(np.float32), 0) is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 10 and "metrics.jsonl counts" in told[-1] and live.missed == 76


def test_large_cache_is_mapped_and_checked_by_the_chunk(tmp_path: Path) -> None:
    """Opening reads no records, and a lookup checks each chunk once; without timing."""
    facts = replace(manifest(), samples=1_281_166, num_classes=1000, chunk=LARGEST_CHUNK)
    create_cache(tmp_path / "c", facts)
    recorder = CacheWriter(tmp_path / "c")
    ordinals = facts.ordinals(100)
    recorder.write(299, 100, np.zeros(LARGEST_CHUNK, facts.record), images(299, ordinals))
    recorder.close()
    assert (tmp_path / "c" / "records.bin").stat().st_size > 300 * 1_281_166 * 2 - 2_000_000
    cache = Cache(tmp_path / "c")
    calls = []

    def counted(epoch: int, ordinals: np.ndarray) -> np.ndarray:
        calls.append(len(ordinals))
        return images(epoch, ordinals)

    for _ in range(3):
        assert cache.look_up(299, ordinals[:1024], counted)[1] is None
    assert calls == [LARGEST_CHUNK]
