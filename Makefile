# Commands that need only Python (3.11 or newer) and make:
#   make demo   trains a small model on moving digits, generates from it and writes the pictures
#   make test   linter, type checker and tests
#   make docs   the documentation as a site, site/index.html
# All work in $(VENV), which the first one creates; nothing is installed outside it.

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  && echo "$$python" && break; done)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Large memory pages: on a CPU a training step takes a fifth less time (glibc 2.35 and newer).
HUGE_PAGES = glibc.malloc.hugetlb=1
METADATA = pyproject.toml requirements.txt

.PHONY: demo test docs clean

demo: $(VENV)/runtime
	GLIBC_TUNABLES=$(HUGE_PAGES) $(VENV)/bin/python -m nova_jax.demo --out=demo_output

test: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses=auto --dist=loadfile

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The files below only mark when the environment was last brought up to date.
$(VENV)/runtime: $(METADATA) | $(VENV)/bin/python
	@echo "Installing into $(VENV) (about a minute the first time) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/docs: $(METADATA) | $(VENV)/bin/python
	@echo "Installing into $(VENV) (about a minute the first time) ..."
	$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/runtime

$(VENV)/dev: $(METADATA) | $(VENV)/bin/python
	@echo "Installing into $(VENV) (about a minute the first time) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/runtime $(VENV)/docs
