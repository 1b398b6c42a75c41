# Two commands do everything: `make train` and `make test`. Both install what they need, once.
PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ALL_INSTALLED := $(VENV)/.all-installed
DOCS_INSTALLED := $(VENV)/.docs-installed
TRAIN_FLAGS ?= --capture-video --env-id LunarLander-v2 --total-timesteps 500000 --ortho-init --num-envs 2 --num-steps 2048 --seed 1
TEST_FLAGS ?=
# in the order of their names, so that tests/processes, with the long files, comes first, and tests/unit last
TEST_ORDER := --dist loadfile --no-loadscope-reorder
# fabric run would take 29400, where another run may be
FREE_PORT = "$(BIN)/python" -c 'import socket; free = socket.socket(); free.bind(("127.0.0.1", 0)); print(free.getsockname()[1])'
BENCH_FLAGS ?= all --rounds 5
RESULTS := benchmarks/results
STRESS_FLAGS ?=
FUZZ_FLAGS ?=
ZOO_FLAGS ?=
GPU_CHECK_FLAGS ?=
NOTEBOOKS ?=

.PHONY: train test test-fast wheel-check gpu-check stress fuzz zoo check format lint types bench bench-growth bench-compare bench-chart bench-fast bench-install install install-all docs flags notebooks clean

train: install
	@echo "Paths and commands below are meant in $(CURDIR), after: source .venv/bin/activate"
	@touch "$(VENV)/.train-started"
	cd "$(CURDIR)" && "$(BIN)/fabric" run --accelerator=cpu --strategy=ddp --devices=2 --main-port=$$($(FREE_PORT)) train_fabric.py $(TRAIN_FLAGS)
	@cd "$(CURDIR)" && "$(BIN)/python" -m fabric_ppo.tools.report.after_training "$(VENV)/.train-started" $(TRAIN_FLAGS)

# Three workers for two cores: what the tests start is waited for, and one core in six was idle with two.
test: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m pytest -n 3 $(TEST_ORDER) $(TEST_FLAGS)

# What needs neither processes of its own nor seconds of computing: a minute or two.
test-fast: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m pytest -n 2 $(TEST_ORDER) --ignore tests/processes -m "not processes and not slow" $(TEST_FLAGS)

# The package in an environment of its own, away from this folder: half a minute. With FABRIC_PPO_WHEEL=real pip
# installs its dependencies anew, too, which takes minutes; without it, those of .venv are used.
wheel-check: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m pytest tests/processes/test_wheel.py

# What works on a GPU of this machine, and how fast: eight minutes. benchmarks/carry_wheels.sh fetches what a machine
# without a package registry lacks; there it is `python3 -m benchmarks.gpu_check`.
gpu-check: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.gpu_check $(GPU_CHECK_FLAGS)

# Kills training some 150 times, resumes it and compares: 5 to 20 minutes.
stress: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m tests.processes.stress $(STRESS_FLAGS)

# Thousands of hostile command lines and files, and 800 odd environments: 10 to 25 minutes.
fuzz: install-all
	cd "$(CURDIR)" && FABRIC_PPO_FUZZ=1 "$(BIN)/python" -m pytest -s \
		tests/processes/test_fuzz.py tests/processes/test_fuzz_environments.py $(FUZZ_FLAGS)

# Trains, tests and resumes in all environments of Gymnasium, MiniGrid and ALE: half an hour.
zoo: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m tests.processes.zoo $(ZOO_FLAGS)

check: lint types test

lint: install-all
	cd "$(CURDIR)" && "$(BIN)/ruff" format --check . && "$(BIN)/ruff" check .

types: install-all
	cd "$(CURDIR)" && "$(BIN)/mypy"

format: install-all
	cd "$(CURDIR)" && "$(BIN)/ruff" format . && "$(BIN)/ruff" check --fix .

# Other programs and ours on the same work, in benchmarks/results; the other programs in environments of their own.
bench: bench-growth bench-compare bench-chart

bench-growth: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.growth --table $(RESULTS)/growth.md --plot $(RESULTS)/growth.svg

bench-compare: bench-install
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.compare $(BENCH_FLAGS)

# The tables' medians as pictures.
bench-chart: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.chart
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.chart p1 --out $(RESULTS)/p1.svg

# A part of one workload, with the other programs that are installed soonest: whether everything works, no figures.
bench-fast: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.install stable-baselines3
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.compare p1 --only train_fabric.py Stable-Baselines3 SBX --scale 0.125 --rounds 1 --out logs/bench-fast

bench-install: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m benchmarks.install

# The documentation site, in site/: site/index.html opens in a browser, search included.
docs: $(DOCS_INSTALLED)
	cd "$(CURDIR)" && NO_MKDOCS_2_WARNING=1 PYTHONPATH="$(CURDIR)" "$(BIN)/python" -m mkdocs build --quiet --strict
	@echo "$(CURDIR)/site/index.html"

# The tables of docs/flags.md, from the fields of fabric_ppo/config.py.
flags: install
	cd "$(CURDIR)" && PYTHONPATH="$(CURDIR)" "$(BIN)/python" docs/hooks/reference.py

# Executes the notebooks in examples/, and writes them back with what they print and draw: two to three minutes.
notebooks: install-all
	cd "$(CURDIR)" && "$(BIN)/python" -m tests.fixtures.notebooks $(NOTEBOOKS)

$(DOCS_INSTALLED): $(INSTALLED) $(CURDIR)/requirements-docs.txt
	"$(BIN)/python" -m pip install --quiet --requirement "$(CURDIR)/requirements-docs.txt"
	touch "$(DOCS_INSTALLED)"

# What training needs.
install: $(INSTALLED)

# All optional packages besides, and what the tests need: some have no version for Python 3.10.
install-all: $(ALL_INSTALLED)

$(INSTALLED): $(CURDIR)/requirements.txt $(CURDIR)/pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, as PYTHON=python3.x")'
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --requirement "$(CURDIR)/requirements.txt"
	"$(BIN)/python" -m pip install --quiet --no-deps --editable "$(CURDIR)"
	@# training is faster with a C compiler: that of the system, else one from PyPI
	{ command -v cc || command -v gcc || command -v clang; } > /dev/null || "$(BIN)/python" -m pip install --quiet ziglang==0.17.1
	touch "$(INSTALLED)"

$(ALL_INSTALLED): $(INSTALLED) $(CURDIR)/requirements-dev.txt
	"$(BIN)/python" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "The tests need Python 3.11 or newer: make clean, then make PYTHON=python3.11 test")'
	"$(BIN)/python" -m pip install --quiet --requirement "$(CURDIR)/requirements-dev.txt"
	touch "$(ALL_INSTALLED)"

clean:
	rm -rf "$(VENV)" "$(CURDIR)/.venv-bench"
