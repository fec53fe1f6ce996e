# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SOURCES := galip_hf tests examples benchmarks

.PHONY: demo test test-slow test-lowest soak quality style gpu-check phantom-model clean

# Installed again only when the dependencies change.
$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,quality]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO_ARGUMENTS)

test: $(INSTALLED)
	# Some library sets the C locale when it is loaded, and with it Python's encoding of text files.
	PYTHONUTF8=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGUMENTS)

# What needs a browser (Debian's chromium, or `playwright install chromium`) or minutes: the page, the notebook.
test-slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[slow]"
	PYTHONUTF8=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGUMENTS)

# The tests with every dependency at its lower bound in setup.cfg, in an environment of their own (several GB).
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python .ci/lowest_constraints.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[slow]" -c .venv-lowest/constraints.txt
	PYTHONUTF8=1 .venv-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGUMENTS)
	PYTHONUTF8=1 .venv-lowest/bin/python -m pytest -m slow $(PYTEST_ARGUMENTS)

# Mutated files of every format, for SOAK_MINUTES; prints the counts, and each failure with its seed.
SOAK_MINUTES ?= 60
soak: $(INSTALLED)
	PYTHONUTF8=1 PYTHONPATH=tests:tests/data $(BIN)/python tests/data/soak.py $(SOAK_MINUTES) $(SOAK_FIRST_SEED)

quality: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

style: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Parity, speed and memory of this machine's GPU, as a table; without a GPU, a trial on the CPU in a minute.
gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu_check $(GPU_CHECK_ARGUMENTS)

# Makes the model in examples/phantom_model again from nothing; see its card for the time it takes.
phantom-model: $(INSTALLED)
	$(BIN)/python examples/make_phantom_model.py

clean:
	rm -rf .venv .venv-lowest outputs build *.egg-info
