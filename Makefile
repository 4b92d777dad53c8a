# One command does everything: it sets up .venv where that is missing or out of date, then does the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Files of tests that run side by side: one more than there are cores, since many wait for a process. Each has one thread,
# or they would wait for one another.
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
# No suite outlasts this, whatever hangs; a single test ends after the seconds in setup.cfg.
LIMIT ?= 60m
test-all conformance: LIMIT := 5h
BOUNDED = $(if $(shell command -v timeout),timeout --foreground --kill-after=30 $(LIMIT))
# A process that a test takes down is not replaced: its test fails by name, and the suite with it.
SIDE_BY_SIDE = OMP_NUM_THREADS=1 $(BOUNDED) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --max-worker-restart 0
ONE_BY_ONE = $(BOUNDED) $(BIN)/python -m pytest

# What slurm/devcluster needs of Debian or Ubuntu.
SLURM := slurmctld slurmd slurm-client munge slurmdbd mariadb-server

# What the tests of the report's page and LaTeX need of Debian or Ubuntu.
REPORT := chromium chromium-driver texlive-latex-base texlive-latex-recommended

# Where pip-audit lives, apart from what it looks at.
AUDIT := .audit

.PHONY: quickstart report-tools slurm-tools test test-slow test-chaos test-slurm test-all conformance docs lint audit clean

quickstart: $(READY)
	$(BIN)/python -m harness.sweep sweeps/quickstart.yaml --via local

report-tools:
	@test "$$(id -u)" != 0 || { command -v chromium && command -v chromedriver && command -v pdflatex; } >/dev/null || ! command -v apt-get >/dev/null || \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
		$(REPORT)) >/dev/null 2>&1 || echo "a browser and LaTeX could not be installed; their tests say so" >&2

test: $(READY)
	$(SIDE_BY_SIDE)

test-slow: $(READY)
	$(SIDE_BY_SIDE) -m "slow and not slurm and not chaos and not long"

test-chaos: $(READY)
	$(SIDE_BY_SIDE) -m chaos tests/chaos -rs

slurm-tools:
	@test "$$(id -u)" != 0 || command -v slurmctld slurmdbd >/dev/null || ! command -v apt-get >/dev/null || \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
		$(SLURM)) >/dev/null 2>&1 || echo "Slurm's packages could not be installed; its tests say so" >&2

test-slurm: $(READY) slurm-tools
	$(ONE_BY_ONE) -m "slurm and not long" tests/slurm -rs

# Everything, with what is left out above for its time (marked long): two hours and more.
test-all: test slurm-tools
	$(SIDE_BY_SIDE) -m "(slow or chaos or long or conformance) and not slurm" --ignore tests/slurm
	$(ONE_BY_ONE) -m "slurm or conformance" tests/slurm -rs

conformance: $(READY)
	$(ONE_BY_ONE) -m conformance

# The documentation, its reference filled in from the code, into site/; a warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml harness tost

# Looks for known vulnerabilities of what is installed; it needs a network, and says so where there is none.
audit: $(READY)
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@if $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 --force-reinstall \
		pip-audit; \
	then $(AUDIT)/bin/pip-audit --skip-editable \
		--path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	else echo "not audited: pip-audit could not be fetched; a network is needed" >&2; fi

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB, and silent for some minutes" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) $(AUDIT) build site *.egg-info
