"""Images decoded by DALI with the options of training."""

import numpy as np
from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def build_graph(data: bytes | np.ndarray, start: tuple[int, int], shape: tuple[int, int]) -> object:
    encoded = np.frombuffer(data, np.uint8)
    source = fn.external_source(lambda _: [encoded], dtype=types.UINT8, ndim=1)
    kinds = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    first = np.array(start, np.int32)
    size = np.array(shape, np.int32)
    whole = fn.decoders.image(source, **kinds)
    window = fn.decoders.image_slice(source, start=first, shape=size, axis_names="HW", **kinds)
    return whole, window


def decode_by_dali(
    data: bytes | np.ndarray, start: tuple[int, int] = (1, 2), shape: tuple[int, int] = (3, 4)
) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and a window of it: uint8 (H, W, 3). Raise RuntimeError if DALI cannot."""
    pipeline = build_graph(data, start, shape)
    pipeline.build()
    whole, window = pipeline.run()
    return np.asarray(whole.as_array()[0]), np.asarray(window.as_array()[0])
