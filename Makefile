# Everything sets itself up: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Tests start processes by the dozen: what one has compiled the next need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-real test test-rooms test-faults check lint wheel parity bench bench-pretrain clean

demo: $(VENV)/ready                ## four domains, no download: a routed mixture and whether it beats its parts
	$(BIN)/moesaic run recipes/demo.yaml

# `make demo-real SMOLLM2=FOLDER DATA=FOLDER` downloads neither the model nor the texts that are there already.
SMOLLM2 ?= HuggingFaceTB/SmolLM2-135M-Instruct
DATA    ?= build/smollm2
demo-real: $(VENV)/ready           ## three experts over a real language model: at most 20 minutes on two quiet cores
	@echo "base: $(SMOLLM2) (270 MB from the hub unless it is a folder); texts: $(DATA) (about 30 MB for what is missing)"
	$(BIN)/python recipes/smollm2/texts.py $(DATA)
	$(BIN)/moesaic run recipes/smollm2.yaml base.path=$(SMOLLM2) data_root=$(abspath $(DATA))

QUICK := -q -rs -n 2 --dist loadfile -m "not compile and not parity and not gpu and not slow and not faults"
# Whole runs and the engine call the same layers again and again: the shape checks would take two thirds of their time.
# All other rooms are tested with shape checks here, and WHOLE with them in `make parity`.
WHOLE := $(wildcard $(addprefix tests/,adoption cli generate golden journeys report serve stages tasks))

test: test-rooms                   ## what is quick and needs no other library to compare with
	$(BIN)/pytest $(QUICK) $(WHOLE) -o addopts="--strict-markers"

test-rooms: $(VENV)/ready-to-test
	$(BIN)/pytest $(QUICK) $(WHOLE:%=--ignore=%)

test-faults: $(VENV)/ready-to-test  ## hundreds of rehearsed disasters: kills, full and failing disks, damage, and code without its guards
	$(BIN)/pytest -q -rsP -n 2 -m faults
	$(BIN)/pytest -q -n 2 -m "hypothesis and not faults" --hypothesis-profile=exploring

parity: $(VENV)/ready-to-test      ## against transformers and peft, and what takes more than a few seconds
	$(BIN)/pytest -q -rs -n 2 --dist loadfile -m "(parity or slow) and not faults"
	$(BIN)/pytest -q -rs -m compile -o addopts="--strict-markers"
	$(BIN)/pytest $(QUICK) $(WHOLE)

check: lint test wheel             ## what a change must pass

lint: $(VENV)/ready-to-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

WHEEL := build/wheel
FROM_WHEEL = cd $(WHEEL)/elsewhere && PYTHONPATH=$(abspath $(WHEEL)/site) $(abspath $(BIN))/python
wheel: $(VENV)/ready-to-test       ## a built wheel, unpacked elsewhere, runs, generates and starts a recipe from another folder
	rm -rf $(WHEEL)
	$(PIP) wheel --no-deps --wheel-dir $(WHEEL) .
	$(PIP) install --no-deps --target $(WHEEL)/site $(WHEEL)/*.whl
	mkdir $(WHEEL)/elsewhere
	$(FROM_WHEEL) -m moesaic --version
	$(FROM_WHEEL) -m moesaic run demo train.steps=2 experts.dialogue.train.steps=2 experts.math.train.steps=2 \
		experts.prose.train.steps=2 evaluate.joint.steps=2 evaluate.joint_wide.steps=2 evaluate.limit=4 evaluate.samples=0 router.examples=20 router.compare=[] --quiet
	$(FROM_WHEEL) -m moesaic generate shipped:tiny "Once" --max-new-tokens 8
	$(FROM_WHEEL) -m moesaic init mine/recipe.yaml
	$(FROM_WHEEL) -m moesaic run mine/recipe.yaml train.steps=2 --quiet
	$(FROM_WHEEL) -c "import moesaic; assert moesaic.__file__.startswith('$(abspath $(WHEEL))'), moesaic.__file__"

bench: $(VENV)/ready-to-test       ## every page of benchmarks/results: measured here, or of runs (hours)
	$(BIN)/python -m benchmarks

# `make bench-pretrain SHARED=FOLDER`: the folder has data/gutenberg, data/wikitext2 and data/tinystories.
SHARED ?= ../shared
bench-pretrain: $(VENV)/ready-to-test  ## four architectures at four depths with three seeds, compared: an hour on two quiet cores
	$(BIN)/python -m benchmarks pretrain --shared $(abspath $(SHARED))
	@echo "page: runs/bench/pretrain/result/index.html"

# Errors only: warnings of pip would drown what a demo or a test prints.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/pip --quiet --quiet
# What is never imported need not be compiled: that halves the time this takes.
INSTALL = $(PIP) install --no-compile --constraint constraints.txt --editable

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/ready-to-test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
