# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-slow lint browser bench clean

demo: $(VENV)/.demo
	$(BIN)/leadline optimize leadline-s-indoor --data rendered --out runs/demo

test: $(VENV)/.dev lint browser
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of the web page drive Chromium and skip where there is none; on a bare Debian, as in CI, root installs it.
browser:
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null || \
	echo "Chromium could not be installed: tests of the web page will be skipped"

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(BIN)/python $$script; done

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: the CPU build where an index of this machine offers one, else the default build
	$(PIP) "$(TORCH)+cpu" 2>/dev/null || $(PIP) "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[openvino]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]"
	@# LiteRT's converter asks for versions that clash with its own; without its dependencies it works beside ours
	$(PIP) --no-deps $(shell sed -n 's/^# no-deps: //p' constraints.txt)
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs
