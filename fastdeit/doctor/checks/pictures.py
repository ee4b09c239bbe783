"""Checks of decoders, and of the data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdeit.doctor.findings import Finding, Target, absent, fail, good, warn, warn_of
from fastdeit.doctor.images import COUNT, NoImagesError, locate_images, make_jpegs

if TYPE_CHECKING:
    import numpy as np

    from fastdeit.data.formats.detect import SplitLocation

_NEAR = 2.0  # mean difference, of 255: a GPU's decoder rounds differently
_NAMED = 3


def check_decoder(target: Target) -> Finding:
    """Decode a JPEG file with DALI, and compare the pixels with Pillow's."""
    (data,) = make_jpegs(1)
    wanted = _decode_with_pillow(data)
    difference = _mean_difference(_decode(data, "cpu", {}), wanted)
    if difference:
        found = f"DALI's pixels differ from Pillow's by {difference:.2f} of 255"
        return warn(found, "install the tested versions (constraints.txt): runs differ elsewhere")
    if not _has_gpu():
        return good("DALI decodes on the CPU, equal to Pillow bit for bit")
    return _check_gpu_decoders(data, wanted)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_gpu_decoders(data: bytes, wanted: "np.ndarray") -> Finding:
    from fastdeit.data.graphs.options import DECODERS

    works = ["cpu"]
    faults = []
    for name in ("mixed", "hardware"):
        options = {key: value for key, value in DECODERS[name].items() if key != "device"}
        try:
            difference = _mean_difference(_decode(data, "mixed", options), wanted)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-120:]
            faults.append((f"{name} fails: {reason}", f"do not use --decoder {name}"))
            continue
        works.append(f"{name} (mean difference {difference:.2f})")
        if difference > _NEAR:
            faults.append((f"{name} decodes other pixels", "use --decoder cpu"))
    return warn_of(f"DALI decodes: {', '.join(works)}", faults)


def _decode(data: bytes, device: str, options: dict[str, Any]) -> "np.ndarray":
    """Return DALI's pixels, uint8 (H, W, 3). Raises RuntimeError as DALI does."""
    import numpy as np
    from nvidia.dali import Pipeline, fn

    gpu = None if device == "cpu" else 0
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=gpu)
    encoded = [np.frombuffer(data, np.uint8)]
    with pipeline:
        source = fn.external_source(lambda: encoded)
        pipeline.set_outputs(fn.decoders.image(source, device=device, **options))
    pipeline.build()
    (images,) = pipeline.run()
    return np.asarray(images.as_cpu()[0] if gpu is not None else images[0])


def _decode_with_pillow(data: bytes) -> "np.ndarray":
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _mean_difference(one: "np.ndarray", other: "np.ndarray") -> float:
    import numpy as np

    return float(np.abs(one.astype(np.int16) - other).mean())


def check_data(target: Target) -> Finding:
    """Check the format of the data set, decode some of its images, and look for an index."""
    from fastdeit.data.formats.detect import find_split, refuse_unordered
    from fastdeit.data.formats.listing import DataError

    if not target.data_path:
        return absent("no --data-path")
    root = Path(target.data_path)
    try:
        refuse_unordered(root, target.train_split)
        found = find_split(root, target.train_split)
        sample, damaged = _check_images(target, found)
    except (DataError, OSError) as error:
        return fail(str(error), "see docs/data.md")
    faults = []
    if damaged:
        bad = f"{len(damaged)} damaged: {'; '.join(damaged[:_NAMED])}"
        faults.append((bad, f"fastdeit index {root} lists them; --bad-images skip excludes them"))
    if not _has_index(root, target.train_split):
        faults.append(("no index yet", f"fastdeit index {root}: else the first start waits"))
    if not _has_validation(root):
        faults.append(("no val", "name the validation images with --val-split"))
    return warn_of(f"{root}, {target.train_split}: {found.kind}, {sample}", faults)


def _has_index(root: Path, split: str) -> bool:
    from fastdeit.data.table import table_places

    return any(place.is_file() for place in table_places(root.absolute(), split, None))


def _has_validation(root: Path) -> bool:
    from fastdeit.data.formats.detect import find_split
    from fastdeit.data.formats.listing import DataError

    try:
        find_split(root, "val")
    except DataError:
        return False
    return True


def _check_images(target: Target, found: "SplitLocation") -> tuple[str, list[str]]:
    """Return a text with the number of decoded images, and the faults of those that do not decode.
    Raises DataError for files of pixels that are damaged."""
    from fastdeit.data.formats.check import check_place
    from fastdeit.data.formats.detect import list_split

    try:
        places = locate_images(target.data_path, target.train_split)
    except NoImagesError:
        listing = list_split(Path(target.data_path), found, None, 1)
        return f"{len(listing.labels):,} images", []
    checked = {place: check_place(place) for place in places[:COUNT]}
    faults = [f"{place[0]}: {fault}" for place, fault in checked.items() if isinstance(fault, str)]
    return f"{len(checked) - len(faults)} of {len(checked)} images decode", faults
