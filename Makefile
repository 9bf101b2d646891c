# `make demo` and `make test` are the project's two commands; README.md has both without make.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile
BYTECODE := $(CURDIR)/$(VENV)/bytecode
COMPILE := PYTHONPYCACHEPREFIX=$(BYTECODE) $(RUN) -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib

.PHONY: demo docs test test-all test-newest constraints clean
.NOTPARALLEL:

# Train the default tree on scikit-learn's digits, then check that both frameworks agree on it.
demo: $(VENV)/.installed
	rm -rf runs/demo
	$(RUN) -m trunk_jax.train --dataset digits --out runs/demo
	$(RUN) -m parity.check --checkpoint runs/demo

# The quick tests. Two processes on two cores: PyTorch's threads would only wait for each other.
# Bytecode is kept, also where Python is told not to; what the packages have is made at their
# install, by all cores, instead of by both processes of the first run at once (a file that does
# not compile is one that nothing here imports). For --quick-compile see docs/testing.md.
# mypy gives its workers 3 seconds to start; on a busy machine that is too little (exit code 2).
test: export OMP_NUM_THREADS = 1
test test-all: export PYTHONDONTWRITEBYTECODE =
test test-all: export PYTHONPYCACHEPREFIX = $(BYTECODE)
test: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy || { test $$? -eq 2 && $(RUN) -m mypy --num-workers 0; }
	$(RUN) -m pytest -n 2 --dist worksteal --quick-compile -m "not slow"

# The documentation as a site in build/site; a broken link is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# With the slow ones too: self-tests, rehearsals, whole trainings. Before every release.
test-all: $(VENV)/.installed-test
	$(RUN) -m pytest -n 2 --dist worksteal

# The JAX side's quick tests with the newest versions that pyproject.toml admits, without PyTorch
# and in an environment of its own: make test-newest PYTHON=python3.13
NEWEST := $(VENV)-newest
JAX_SIDE = "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = p['optional-dependencies']; \
print(*(d for d in p['dependencies'] + extras['test'] + extras['hf'] + extras['onnx'] \
if not d.startswith(('torch', 'transformers', 'ruff', 'mypy', p['name']))), sep='\n')"

test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -c $(JAX_SIDE) > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check -r $(NEWEST)/requirements.txt
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(NEWEST)/bin/python -m pytest -m "not slow"

# The stamps keep pip from running again until one of the files that decide what it does changes.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV): one to two minutes, without the downloads"
	$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV): one to two minutes, without the downloads"
	$(INSTALL) --constraint constraints.txt --editable ".[test]"
	$(COMPILE) || true
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(INSTALL) --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# Write constraints.txt anew: the newest versions that pyproject.toml admits. "+cpu" and the like
# name a build of PyTorch, not a version, and are left out.
constraints:
	rm -rf $(VENV)-fresh
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/pip install --quiet --disable-pip-version-check --editable ".[test,docs]"
	@{ echo "# The standard environment: what Python 3.11 gets for pyproject.toml with the extras"; \
	   echo "# \"test\" and \"docs\". Written by \`make constraints PYTHON=python3.11\`; do not edit by hand."; \
	   $(VENV)-fresh/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-fresh

# Everything that the commands above made; other runs under runs/ stay.
clean:
	rm -rf $(VENV) $(VENV)-fresh $(NEWEST) constraints.new runs/demo build dist *.egg-info
	rm -rf .mypy_cache .mypy_worker.* .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
