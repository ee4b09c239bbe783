# make train: set up and train the demo, a distilled DeiT on handwritten digits. make test: set up and run every check.
# Both are safe to repeat; what is done stays done. PYTHON=python3.12 make ... takes another interpreter.
PYTHON ?= python3
ENGINE ?= docker
COMMIT = $(shell git describe --always --dirty=+dirty 2>/dev/null)
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
# one process more than cores, up to five, as tests of launched runs wait a third of their time; a
# file's tests run in one process, in order: they share runs
WORKERS := $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 5)))
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# a process starts twice as fast when its imports are compiled once and kept
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup train test pytest test-slow lint docs pictures wheel completion image sif clean help

setup: $(READY) ## install into .venv

$(READY): setup.py constraints.txt
	@echo "installing torch, DALI and others into $(VENV), 7 GB, most of it CUDA; once, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $@

train: $(READY) ## train the demo: a teacher, then a distilled DeiT, on handwritten digits
	@echo "training a teacher, then a student; the first lines of each come after some seconds"
	PATH=$(CURDIR)/$(BIN):$$PATH $(LAUNCH) fastdeit/train.py --recipe digits_teacher
	PATH=$(CURDIR)/$(BIN):$$PATH $(LAUNCH) fastdeit/train.py --recipe digits

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# side by side: mypy needs one core for a small part of the time that the tests take
test: $(READY) ## ruff, mypy and every test
	$(MAKE) --no-print-directory --jobs=2 lint pytest

# the augmentation is compiled once, before several processes of the tests need it at the same time
pytest: $(READY) ## every test
	$(BIN)/python -m tests.support.compile_augment
	$(PYTEST)

# the full-length forms of what `make test` does in short
test-slow: $(READY) ## the full-length forms of the tests
	$(PYTEST) -m slow

# the pages of docs/ as a site, site/index.html, which needs no server and no network
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY) ## the pages of docs/ as a site, in site/
	$(BIN)/mkdocs build --strict

pictures: $(READY) ## draw the pictures of docs/ again
	$(BIN)/python -m tests.support.pictures

# from a copy of the sources: what an older build has left in build/ is in no wheel
wheel: $(READY) ## build dist/*.whl and dist/*.tar.gz
	$(BIN)/uv build --quiet --out-dir dist
	ls dist

completion: $(READY) ## the scripts of completion for bash, zsh and fish, in dist/completion/
	mkdir -p dist/completion
	$(BIN)/fastdeit completion bash > dist/completion/fastdeit
	$(BIN)/fastdeit completion zsh > dist/completion/_fastdeit
	$(BIN)/fastdeit completion fish > dist/completion/fastdeit.fish

image: ## build the container image fastdeit; ENGINE=podman takes another program
	$(ENGINE) build --file containers/Dockerfile --tag fastdeit --build-arg COMMIT=$(COMMIT) .

sif: ## build fastdeit.sif for Apptainer
	apptainer build fastdeit.sif containers/fastdeit.def

clean: ## remove what these commands have made
	rm -rf $(VENV) data runs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

help: ## print these lines
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1: \2/p' Makefile
