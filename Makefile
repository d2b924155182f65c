# make demo   install into .venv, fit the bundled keypoint files with the embedded hand, write out/demo/report.html
# make test   install with the test extras and run the tests
PYTHON ?= python3
# Where pip should look for torch, for those who want PyTorch's own CPU or CUDA builds; empty takes pip's default.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
# Found before any folder named handloop that a script happens to lie beside, such as this clone.
EDITABLE := --config-settings editable_mode=compat -e

.PHONY: demo test lint bench clean

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "handloop needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) $(EDITABLE) .
	# Compiles the fit into the user's cache, which would otherwise happen at the first fit.
	$(BIN)/handloop doctor > /dev/null
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) $(EDITABLE) '.[test]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/handloop fit examples/data/openpose examples/data/mediapipe examples/data/hands.npz --out out/demo \
		--save overlays meshes
	@echo "open out/demo/report.html"

test: $(VENV)/tested
	$(BIN)/python -m pytest -q

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/tested
	$(BIN)/python -m benchmarks.recovery

clean:
	rm -rf $(VENV) out build dist *.egg-info
