# The targets that people use. What they do is in scripts/.

PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest
# Debian's own, whose files are all in /usr: containers get them to measure files with.
BENCH = /usr/bin/python3 -m bench
# Two workers suit two cores; virtual machines under emulation keep one busy each.
JOBS ?= 2

.PHONY: run install test soak lint bench bench-quick docs clean uninstall dev help

help:
	@echo "make run        install hako and run a first container in its own virtual machine"
	@echo "make test       install what the tests need and run all of them"
	@echo "make soak       the tests with hundreds of virtual machines: ten minutes and more"
	@echo "make lint       the checks of the source alone: types, style, imports, documents"
	@echo "make bench      measure hako beside runc; make bench-quick does it in three minutes"
	@echo "make docs       write the pages that are made from tables"
	@echo "make clean      remove what was made inside this directory"
	@echo "make uninstall  remove hako, its images, its containers and its packages"

run: install
	@bash scripts/first-run.sh

install:
	@bash scripts/install.sh

dev:
	@bash scripts/install-test-deps.sh

test: dev
	$(PYTEST) -n $(JOBS) $(ARGS)

# Hundreds of virtual machines, one after the other and many at once.
soak: dev
	$(PYTEST) -p no:xdist -m soak --timeout 1800 tests/system tests/e2e/engines $(ARGS)

lint: dev
	$(PYTEST) tests/repo $(ARGS)

bench:
	@bash scripts/install-bench-deps.sh
	@$(BENCH) $(ARGS)

bench-quick:
	@bash scripts/install-bench-deps.sh
	@$(BENCH) --quick $(ARGS)

docs: dev
	PYTHONPATH=src $(PYTHON) -m hako.config.reference docs/configuration.md

clean:
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

uninstall:
	@bash scripts/uninstall.sh
