# `make` alone lists the targets. Everything runs inside .venv, which the first target that needs it creates.

PYTHON ?= python3
MODEL ?= uper_ddsm_lite0_camvid
IMAGES ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BROWSER := $(VENV)/browser
BROWSER_READY := $(BROWSER)/.ready
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

.DEFAULT_GOAL := help
.PHONY: help test test-numeric test-browser demo-picture lint demo docs table wheel release-check test-lowest clean

help:
	@echo "make test    check style, types and layering, then run the tests"
	@echo "make test-numeric"
	@echo "             run the numeric tests as on a processor without AVX, where sums are rounded differently"
	@echo "make test-browser"
	@echo "             run the tests of the demo's page, in a headless Chromium that is installed already"
	@echo "make demo-picture"
	@echo "             take the picture of that page for docs/demo.md, docs/assets/demo.png"
	@echo "make lint    only the checks that come before the tests"
	@echo "make demo    label rendered street scenes with the bundled model, pictures go to demo/, and score it on them"
	@echo "             (IMAGES=\"a.jpg folder\" labels your own images too, MODEL=NAME takes another model)"
	@echo "make docs    build the documentation as a site, in site/"
	@echo "make table   rewrite the tables of models, recipes and errors in README.md and docs/"
	@echo "make wheel   build the sdist and the wheel into dist/"
	@echo "make release-check"
	@echo "             build both, look at what they hold, install the wheel in a new environment and use it with no network"
	@echo "make test-lowest"
	@echo "             test the wheel with the oldest version of each dependency that pyproject.toml allows"
	@echo "make clean   remove what the other targets made, .venv included"

# A process a core, each with one thread: together they keep all cores busy, where threads within a test rarely do
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Sums as an old processor rounds them: neither PyTorch's kernels nor those of oneDNN and MKL, which it calls, use AVX
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE

test-numeric: $(READY)
	OMP_NUM_THREADS=1 $(PLAIN) $(BIN)/python -m pytest -n logical -m numeric

test-browser: $(BROWSER_READY)
	$(BROWSER)/bin/python -m pytest tests/browser

demo-picture: $(BROWSER_READY)
	$(BROWSER)/bin/python -m tests.support.demo_picture docs/assets/demo.png

define RENDER
from torchvision.transforms.v2.functional import to_pil_image
from ddsm_zoo.data.datasets import open_dataset
scenes = open_dataset("scenes:3", "val")
for index, pair in enumerate(scenes.pairs):
    to_pil_image(scenes[index][0]).save(f"demo/scenes/{pair.name}.png")
endef
export RENDER

demo: $(READY)
	@rm -rf demo && mkdir -p demo/scenes demo/sample/val demo/sample/valannot
	@cp ddsm_zoo/data/sample/street.png demo/sample/val/street.png
	@cp ddsm_zoo/data/sample/street_mask.png demo/sample/valannot/street.png
	@$(BIN)/python -c "$$RENDER"
	$(BIN)/ddsm-zoo predict ddsm_zoo/data/sample/street.png demo/scenes $(IMAGES) --model $(MODEL) -o demo/predictions
	$(BIN)/ddsm-zoo evaluate --model $(MODEL) --data camvid:demo/sample --split val
	$(BIN)/ddsm-zoo evaluate --model $(MODEL) --data scenes:8 --split val
	@echo "Pictures written:" && find demo/scenes demo/predictions -name '*.png' | sort

# Material announces at every start when its development ends
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html is the first page"

table: $(READY)
	$(BIN)/python tools/model_table.py

wheel: $(READY)
	$(BIN)/python -m build --no-isolation

release-check: $(READY)
	$(BIN)/python tools/release_check.py

test-lowest: $(READY)
	$(BIN)/python tools/release_check.py --lowest

clean:
	rm -rf $(VENV) build demo dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Checked before `python -m venv` runs, which fails in several lines and leaves half an environment behind.
define CAN_MAKE_VENV
import importlib.util, sys
if sys.version_info < (3, 10):
    sys.exit("ddsm-zoo needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": name another, make PYTHON=python3.12")
if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    sys.exit("this Python cannot create virtual environments: install its venv package (Debian: python3-venv)")
endef
export CAN_MAKE_VENV

$(READY): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c "$$CAN_MAKE_VENV" && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing ddsm-zoo and its tools into $(VENV); the first time this downloads PyTorch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# An environment on top of the other: gradio takes an older Pillow, which stays in here
$(BROWSER_READY): $(READY) pyproject.toml
	$(BIN)/python -m venv --clear $(BROWSER)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(BROWSER)/bin/python $(PURELIB))/below.pth"
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	@touch $@
