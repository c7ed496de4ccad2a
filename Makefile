# Everything runs in the checkout's own .venv, which the first target makes.

PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready
PEERS := .venv-peers/bin/python
PEERS_READY := .venv-peers/.ready
CORE := build/.core
BENCHMARKS := report trials memory journal checkpoint simulate pbt
PLOTTED := core scale
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-gpu lint compile debug sanitized asan fuzz torture bench bench-peers clean

demo: $(CORE)  ## the four methods side by side on a small DCGAN, a few minutes; a second time it only summarises
	$(PY) examples/gan/compare.py --out examples/gan/out --runs 16 --steps 150

test: $(CORE)  ## what runs on every change: two files at a time, since half of the tests wait for processes
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(CORE)  ## the slow tests; none collected (pytest's status 5) is no failure
	$(PY) -m pytest -m "slow and not gpu" --timeout 600 --override-ini faulthandler_timeout=590 || { status=$$?; [ $$status -eq 5 ] && echo "there are no slow tests" || exit $$status; }

test-gpu: $(CORE)  ## what only a GPU can show; ASYNCTUNE_MNIST names the folder of MNIST's four idx gzip files
	$(PY) -m pytest -m gpu -rs

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

compile: $(CORE)

debug: $(READY)  ## the tests against a core with bounds checks, under asyncio's debug mode
	rm -rf build/debug
	ASYNCTUNE_DEBUG=1 $(PY) setup.py --quiet build
	PYTHONASYNCIODEBUG=1 PYTHONPATH=$(CURDIR)/build/debug/lib:$(CURDIR) $(PY) -P -m pytest -m "not slow and not gpu"

sanitized: $(READY)
	rm -rf build/asan
	ASYNCTUNE_SANITIZE=1 $(PY) setup.py --quiet build

# The sanitizers' runtime has to come first, and Python has to take its objects from malloc to have them watched. What CPython
# keeps to its end would be reported as leaks; tests/test_limits.py looks for the core's.
ASAN = LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/build/asan/lib:$(CURDIR) $(PY) -P

asan: sanitized  ## the core's tests and a short fuzz under AddressSanitizer and UndefinedBehaviorSanitizer
	$(ASAN) -m pytest --capture=sys -m "not slow" $(wildcard $(patsubst %,tests/test_%.py,core schedulers population tpe limits))
	$(ASAN) -m tests.fuzz --seconds 20

SECONDS ?= 600
fuzz: sanitized  ## the array API under arguments that nobody should pass: SECONDS=600 long, from SEED on
	$(ASAN) -m tests.fuzz --seconds $(SECONDS) $(SEED:%=--seed %)

torture: $(CORE)  ## whatever can go wrong, injected for real: faults, survived, lost (some ten minutes; SECONDS=60, SEED=1)
	$(PY) -m tests.torture --seconds $(SECONDS) $(SEED:%=--seed %)

bench: $(CORE)  ## every budget but TPE's measured, beside its floor; figures in build/bench (twenty minutes, on an idle machine)
	for name in $(BENCHMARKS); do $(PY) bench/$$name.py --json build/bench/$$name.json || exit; done
	for name in $(PLOTTED); do $(PY) bench/$$name.py --json build/bench/$$name.json --plot build/bench/$$name.png || exit; done

bench-peers: $(PEERS_READY)  ## our decisions, and TPE's budgets, beside Ray Tune, Optuna, Rustuna, Syne Tune and hyperopt (some seven minutes)
	$(PEERS) setup.py --quiet build_ext --inplace
	for name in peers tpe; do $(PEERS) bench/$$name.py --json build/bench/$$name.json || exit; done

clean:  ## all that was built; the environments stay
	rm -rf build dist *.egg-info asynctune/_core*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(INSTALL) setuptools Cython
	$(INSTALL) --no-build-isolation --editable '.[demo,dev]'
	touch $@

$(PEERS_READY): pyproject.toml constraints.txt bench/constraints.txt  # 1.5 GB: XGBoost, which Syne Tune asks for, brings NCCL
	test -x $(PEERS) || $(PYTHON) -m venv .venv-peers
	$(PEERS) -m pip install --quiet --disable-pip-version-check --constraint bench/constraints.txt setuptools Cython
	$(PEERS) -m pip install --quiet --disable-pip-version-check --constraint bench/constraints.txt --no-build-isolation --editable '.[bench]'
	touch $@

$(CORE): $(READY) asynctune/_core.pyx asynctune/_core.pxd setup.py
	$(PY) setup.py --quiet build_ext --inplace
	mkdir -p build && touch $@
