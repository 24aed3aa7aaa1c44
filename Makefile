# make demo · make test · make check · make bench
PYTHON ?= python3
DATA ?=
BIN := .venv/bin
EXP ?= exp/demo
WORKERS ?= 2

.PHONY: .venv demo test check format bench clean

.venv: .venv/ready  ## set-up alone

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,synth]'
	touch $@

demo: .venv/ready  ## digits: prepare, train, decode, live; then English with the model in the package
	PATH="$(CURDIR)/$(BIN):$$PATH" egs/digits/run.sh --data-dir "$(DATA)" --exp $(EXP)
	$(BIN)/python egs/english/listen.py

test: .venv/ready  ## by WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready  ## against the peers, ratios in one process
	for bench in rnnt fused pruned ctc scan lstm attention fbank conformer recurrent; do $(BIN)/python tools/bench/$$bench.py || exit 1; done

clean:
	rm -rf .venv build *.egg-info
