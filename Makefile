# Each target sets up what it needs in .venv, from Python 3.11 alone: `make demo` first, if you are new.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread for each of pytest's workers: more only makes them wait for each other.
export TOKENIZERS_PARALLELISM := false

# Where subspaces are found and updates formed, merged and cut: what a processor's instructions could change.
NUMERIC := $(addprefix tests/test_,$(addsuffix .py,linalg basis adapter merging analysis initialisation_methods contrastive_directions adapted_linear injection noising))

.PHONY: demo studio test processes numeric emulated lint format docs bench clean help
help: ## Say what each target does
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

demo: $(VENV)/.run ## Train a subject and a style on one picture each, merge them, draw: out/demo
	$(BIN)/qrlora demo --output out/demo $(DEMO)

studio: $(VENV)/.studio ## Train and mix on pages in a browser: http://127.0.0.1:8810, everything in out/studio
	$(BIN)/qrlora studio out/studio

test: $(VENV)/.test ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not processes" $(TESTS)

processes: $(VENV)/.test ## Run the tests that start, interrupt and kill whole commands, or launch several processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m processes $(TESTS)

numeric: $(VENV)/.test ## Run the numeric tests as on processors without AVX-512, with one thread and with two
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(NUMERIC)
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 $(BIN)/python -m pytest -n 0 $(NUMERIC)

emulated: $(VENV)/.test ## Run the product on an emulated GPU, which g++ builds once: tests/gpu
	PYTHON=$(BIN)/python bash tests/gpu/run.sh -m pytest -n auto tests/gpu/emulated.py $(TESTS)

lint: $(VENV)/.dev ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev ## Mend what lint can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## Build the documentation site: out/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What takes long is not among them: bench/crossed_fusion.py, memory.py and pretraining.py, for docs/findings.md, hardware.md, log.md.
bench: $(VENV)/.run ## Print the measured claims: out/bench; BENCH="--device cuda" on a GPU, at real sizes
	for script in $(filter-out bench/harness.py bench/test_%.py bench/memory.py bench/crossed_fusion.py bench/pretraining.py,$(wildcard bench/*.py)); do $(BIN)/python $$script $(BENCH) || exit 1; done

clean: ## Remove what runs have written, not .venv
	rm -rf out build dist packages/qrlora-bases/dist .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch alone and first: another request for it may fetch gigabytes of GPU libraries.
$(VENV)/.run: pyproject.toml packages/qrlora-bases/pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) $(TORCH)
	$(INSTALL) -e '.[diffusers]' -e packages/qrlora-bases
	touch $@

$(VENV)/.studio: $(VENV)/.run
	$(INSTALL) -e '.[studio]'
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.test
