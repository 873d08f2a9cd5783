# `make run` and `make test` need nothing but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadgroup --no-loadscope-reorder

.PHONY: run test lint types tests unit publish benchmark calibrate again soak picture audit clean
.DELETE_ON_ERROR:

run: $(SETUP)
	$(BIN)/python -m bench run --matrix full

test: lint types tests

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP)
	$(BIN)/mypy

# On all cores; tests that share a run keep to one of them.
tests: $(SETUP)
	$(PYTEST)

# The developer's loop: every test that starts no process.
unit: $(SETUP)
	$(PYTEST) -m 'not process'

benchmark: $(SETUP)
	mkdir -p .benchmarks
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable -q --benchmark-json .benchmarks/latest.json
	$(BIN)/python tests/benchmarks/plot.py .benchmarks/latest.json .benchmarks/jsma-scaling.png

# The thresholds of the flags, measured again where docs/calibration.json has no figure: without it
# half an hour of one core.
calibrate: $(SETUP)
	$(BIN)/python tests/calibration/calibrate.py

# Cells of published runs, drawn at random and made anew: what nobody measured does not pass.
AGAIN := agreement-digits full-digits tabular transfer-digits verdict-digits
again: $(SETUP)
	set -e; for r in $(AGAIN); do \
		$(BIN)/python -m bench verify leaderboard/published/$$r --again 2; done

# Runs killed at random, plugins that leave traces, two runs over one cache, forgeries: an hour.
soak: $(SETUP)
	$(BIN)/python -m pytest tests/soak -s -q

# A plain torch and torchvision, installed together, work on machines with and without a GPU.
$(SETUP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,peers]'
	touch $@

# The published runs that need no download, and all that is made of them. A result whose key has not
# changed is reused from runs/. The longer ones are run by hand, with RETORT_DATA or a download, and
# published by `python -m bench publish RUN`; seconds of work as their timings.json has them, which
# two cores halve: papernot-mnist 2,600, papernot-mnist-seeds 1,200, papernot-mnist-recipes with
# --recipe fast-2 1,000 and with sgd-12 2,400, papernot-cifar10 7,400, verdict-mnist 5,400 a seed, carlini-wagner 1,300, broken 1,040, linear on MNIST 260,
# logits-mnist 14,700.
CURVES := full verdict
DIGITS := agreement fooling linear logits students transfer transfer-networks
publish: $(SETUP)
	set -e; for m in $(CURVES); do $(BIN)/python -m bench run --matrix $$m --figures; done
	set -e; for m in $(DIGITS); do $(BIN)/python -m bench run --matrix $$m; done
	$(BIN)/python -m bench run --matrix tabular --out runs/tabular
	set -e; for m in $(CURVES) $(DIGITS); do $(BIN)/python -m bench publish runs/$$m-digits; done
	$(BIN)/python -m bench publish runs/tabular
	$(BIN)/python -m leaderboard.pages.readme README.md

# The README's picture, of what is published; needs chromium.
picture: $(SETUP)
	$(BIN)/python -m tests.leaderboard.site.shoot leaderboard/published/verdict-digits/index.html docs/page.png

# Known vulnerabilities of what is installed: asks a network, so it is no part of `make test`.
audit: $(SETUP)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --local --skip-editable

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
