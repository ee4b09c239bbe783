"""Images decoded by DALI with the options of training."""

import numpy as np
from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def decoding(data: bytes | np.ndarray, start: tuple[int, int], shape: tuple[int, int]) -> object:
    source = fn.external_source(
        lambda _: [np.frombuffer(data, np.uint8)], dtype=types.UINT8, ndim=1
    )
    kinds = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    return fn.decoders.image(source, **kinds), fn.decoders.image_slice(
        source,
        start=np.array(start, np.int32),
        shape=np.array(shape, np.int32),
        axis_names="HW",
        **kinds,
    )


def by_dali(
    data: bytes | np.ndarray, start: tuple[int, int] = (1, 2), shape: tuple[int, int] = (3, 4)
) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and a window of it: uint8 (H, W, 3). Raise RuntimeError if DALI cannot."""
    pipeline = decoding(data, start, shape)
    pipeline.build()
    whole, window = pipeline.run()
    return np.asarray(whole.as_array()[0]), np.asarray(window.as_array()[0])
