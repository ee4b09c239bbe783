# make train: set up and train the demo, a distilled DeiT on handwritten digits. make test: set up and run every check.
# Both are safe to repeat; what is done stays done. PYTHON=python3.12 make ... takes another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU)
# the launcher counts GPUs by itself; without one it is told to start two processes on the CPU
ifeq ($(GPUS),0)
LAUNCH := DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/deepspeed -q --no_local_rank --num_accelerators 2
else
LAUNCH := $(BIN)/deepspeed -q --no_local_rank
endif
LAUNCH += --master_port $(shell shuf -i 20000-60000 -n 1)
# a file's tests run in one process, in order: they share runs
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

# a process starts twice as fast when its imports are compiled once and kept
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup train test pytest test-slow lint docs pictures clean

setup: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $@

train: $(READY)
	PATH=$(CURDIR)/$(BIN):$$PATH $(LAUNCH) fastdeit/train.py --recipe digits_teacher
	PATH=$(CURDIR)/$(BIN):$$PATH $(LAUNCH) fastdeit/train.py --recipe digits

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# side by side: mypy needs one core for a small part of the time that the tests take
test: $(READY)
	$(MAKE) --no-print-directory --jobs=2 lint pytest

# the augmentation is compiled once, before several processes of the tests need it at the same time
pytest: $(READY)
	$(BIN)/python -m tests.support.compile_augment
	$(PYTEST)

# the full-length forms of what `make test` does in short
test-slow: $(READY)
	$(PYTEST) -m slow

# the pages of docs/ as a site, site/index.html, which needs no server and no network
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)
	$(BIN)/mkdocs build --strict

pictures: $(READY)
	$(BIN)/python -m tests.support.pictures

clean:
	rm -rf $(VENV) data runs build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
