"""Packaging of fastdeit.

`fastdeit.kernels` is the tracked link to `kernels/`, which has no `__init__.py` so that it can
never hide an installed distribution named `kernels`. `find_packages` skips it;
`find_namespace_packages` finds the folders in it.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ONNX = ["onnx>=1.21", "onnxruntime>=1.20", "onnxscript>=0.5"]  # fastdeit export to ONNX
REMOTE = ["s3fs>=2024.6", "gcsfs>=2024.6"]  # --data-path s3://... and gs://...
REPORT = ["plotly>=6"]  # the plots of report.html
WANDB = ["wandb>=0.19"]  # --log-wandb
BENCH = ["simplejpeg>=1.9", "webdataset>=1.0"]  # the peers of bench_pipeline
DOCS = ["mkdocs-material>=9.6,<10"]  # the site; MkDocs 2 reads no hooks

VERSION = re.search(r'^__version__ = "(.+)"', Path("fastdeit/__init__.py").read_text(), re.M)[1]

setup(
    name="fastdeit",
    version=VERSION,
    description="A high-throughput training pipeline for Data-efficient image Transformers (DeiT)",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["fastdeit", "fastdeit.*"]),
        "fastdeit.kernels",
        *(
            f"fastdeit.kernels.{name}"
            for name in find_namespace_packages("fastdeit/kernels", include=["*_kernels"])
        ),
    ],
    package_data={
        "fastdeit": ["py.typed"],
        "fastdeit.estimate": ["*.json"],
        "fastdeit.kernels": ["*.json"],
        "fastdeit.report.page": ["templates/*"],
    },
    install_requires=[
        "torch>=2.11,<2.16",  # the newest tried is 2.15
        "torchvision>=0.26",
        "timm>=1.0.31",  # 1.0.29 saves no sizes with a model of other sizes than its name's
        "nvidia-dali-cuda120>=2.4",
        "deepspeed>=0.19.8,<0.20",
        # no kernel spills registers with 3.6 to 3.9 (tests/kernels/test_resources.py); 3.10 will
        # have another default for fused multiply-add
        "triton>=3.6,<3.10; platform_system == 'Linux'",
        "pillow>=12.3,<13",  # 13 resizes to other pixels, and refuses timm's posterize to 0 bits
        "numpy>=2.0",
        "numba>=0.61",  # the exact augmentation
        "pyarrow>=25",  # 17 starts threads to read a file, which may abort a process
        "pydantic>=2",  # reads what DeepSpeed refuses in a settings file
        "psutil>=5.9",  # who launched a rank, who holds a run folder; DeepSpeed brings it too
        "safetensors>=0.5",
        "huggingface-hub>=1.0",  # 0.30 has other errors; timm brings it too
        "fsspec>=2024.6",  # data sets at a URL; torch brings it too
        "httpx2>=2",  # those at a web server
        "tyro>=1.0,<2",
        "shtab>=1.13",  # shell completion
        "rich>=13",
        "pyyaml>=6",
        "jinja2>=3.1.6",  # the page of a report; torch brings it too
        "tensorboard>=2.17.1",  # older ones need NumPy 1
        "matplotlib>=3.8",
        "scipy>=1.12",  # reads ImageNet's meta.mat
        "scikit-learn>=1.5",  # the embedded data set of the recipe `digits`
        "typing-extensions>=4.10",  # torch brings it too
    ],
    extras_require={
        "onnx": ONNX,
        "remote": REMOTE,
        "report": REPORT,
        "wandb": WANDB,
        "all": [*ONNX, *REMOTE, *REPORT, *WANDB],
        "bench": BENCH,
        "docs": DOCS,
        "dev": [
            # S3 and a server for it; moto's extra "server" would bring all of AWS
            "s3fs>=2024.6",
            "moto[s3]>=5",
            "flask>=3",
            "flask-cors>=5",
            "accelerate>=1",  # runs the examples of docs/library.md
            *ONNX,
            *REPORT,
            *WANDB,
            *BENCH,
            *DOCS,
            "pytest>=8",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.13",
            "types-PyYAML",
            "prometheus-client>=0.20",  # reads what --prometheus writes
            "markdown-it-py>=3",  # what a viewer shows of a page of docs/; rich brings it too
            "playwright>=1.50",  # drives the machine's Chromium
            "axe-playwright-python>=0.1.7",  # checks that a page can be read by everybody
            "webdataset>=1.0",  # reads what `fastdeit pack` writes
        ],
    },
    entry_points={"console_scripts": ["fastdeit = fastdeit.__main__:main"]},
)
