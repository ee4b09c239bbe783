"""The published figures of GPUs: those of the page, which names their source."""

from fastdeit.estimate.gpus import GPUS
from tests.support.launching import ROOT


def test_the_page_has_the_figures_of_each_gpu() -> None:
    page = (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")
    for name, gpu in GPUS.items():
        figures = (gpu.memory_gb, gpu.tb_per_s, gpu.tflops, gpu.link_gb_per_s)
        assert f"| `{name}` | {' | '.join(f'{figure:g}' for figure in figures)} | " in page
