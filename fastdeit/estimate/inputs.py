"""The CPU cores and the bandwidth that the images of a run need."""

from collections.abc import Iterator

from fastdeit.estimate.lines import Line, Source, Span, make_line, spread
from fastdeit.estimate.rates import find_loader, find_rates
from fastdeit.estimate.samples import DataSet, Samples

LOADERS = ("exact", "native", "timm")
LAYOUTS = ("folder", "tars")
_OTHER_CPU = (0.7, 2.0)
"""The range of factors from the CPU of the rows to another CPU, whose cores may be threads of half
a core."""


def time_loader(impl: str, data: str, size: int, copies: int) -> Span:
    """Return the CPU milliseconds for an image. Those of the rows are of photographs of 500 x 375,
    so for small images the range begins lower.

    Arguments: as for `find_loader`.
    """
    value = find_loader(impl, data, size, copies).value
    return spread(value, 0.1 if size < 100 else _OTHER_CPU[0], _OTHER_CPU[1])


def list_cores(rate: Span | None, size: int, copies: int) -> Iterator[Line]:
    """Yield the CPU time of each loader, and the cores that feed a GPU; rate: images/s of a GPU,
    None on a CPU."""
    for data in LAYOUTS:
        for impl in LOADERS:
            found = find_loader(impl, data, size, copies)
            name = f"{impl}, {data}"
            source: Source = "measured" if found.measured else "model"
            yield Line("CPU", f"{name}: an image", found.value, "CPU ms", source, found.source)
            if rate is not None:
                each = time_loader(impl, data, size, copies)
                cores = Span(
                    rate.value * each.value / 1e3,
                    rate.low * each.low / 1e3,
                    rate.high * each.high / 1e3,
                )
                basis = "images/s of a GPU x CPU ms"
                yield make_line("CPU", f"{name}: cores a GPU", cores, "cores", basis)
    packed = find_rates("packed")[0]
    basis = f"CPU time divided by that of the source: {packed.source}"
    yield Line("CPU", "exact, packed to 288 px", packed.value, "x", "measured", basis)


def list_bandwidths(
    rate: Span | None, samples: Samples, data: DataSet, ranks: int, per_machine: int
) -> Iterator[Line]:
    """Yield the bytes that are read in an epoch, and the bandwidth for them; rate: images/s of a
    GPU."""
    if data.image_bytes is None:
        reason = "no index has the bytes of the images (fastdeit index)"
        yield Line("disk", "bytes of an image", None, "kB", "unknown", reason)
        return
    kilobytes = data.image_bytes / 1e3
    yield Line(
        "disk", "bytes of an image", kilobytes, "kB", "counted", f"mean of {data.image_basis}"
    )
    whole = data.image_bytes * samples.images / 1e9
    basis = "memory that holds all images makes later epochs read no disk"
    yield Line("disk", "the data set, page cache", whole, "GB", "counted", basis)
    read = data.image_bytes * samples.different / 1e9
    basis = "different images x bytes"
    yield Line("disk", "read in the first epoch", read, "GB", "counted", basis)
    if rate is None:
        return
    share = samples.different / samples.epoch_samples
    each = rate.times(share * data.image_bytes / 1e6)
    basis = "images/s x different images a sample x bytes; nothing once in the page cache"
    machine = min(ranks, per_machine)
    yield make_line("disk", "first epoch, a GPU", each, "MB/s", basis)
    yield make_line("disk", "first epoch, a machine", each.times(machine), "MB/s", basis)
    yield make_line("disk", "first epoch, all machines", each.times(ranks), "MB/s", basis)
