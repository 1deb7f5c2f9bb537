# Everything sets itself up: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-faults check parity bench clean

demo: $(VENV)/ready                ## four domains, no download: a routed mixture and whether it beats its parts
	$(BIN)/moesaic run recipes/demo.yaml

test: $(VENV)/ready-to-test        ## what is quick and needs no other library to compare with
	$(BIN)/pytest -q -rs -n 2 --dist loadfile -m "not compile and not parity and not gpu and not slow and not faults"

test-faults: $(VENV)/ready-to-test  ## hundreds of rehearsed disasters: kills, full and failing disks, damage, and code without its guards
	$(BIN)/pytest -q -rsP -n 2 -m faults

parity: $(VENV)/ready-to-test      ## against transformers and peft, and what takes more than a few seconds
	$(BIN)/pytest -q -rs -n 2 --dist loadfile -m "parity or slow"
	$(BIN)/pytest -q -rs -m compile -o addopts="--strict-markers"

check: $(VENV)/ready-to-test       ## what a change must pass
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(VENV)/ready-to-test       ## ratios against named peers -> benchmarks/results/
	$(BIN)/python -m benchmarks

$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-to-test: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
