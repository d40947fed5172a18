# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up .venv first.

VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint suite setup mnist cifar10 clean

demo: setup
	$(BIN)/compress-models bench digits --out reports/digits

# Both at once: tests that wait leave the cores to the type checker.
test: setup
	$(MAKE) --no-print-directory --jobs=2 lint suite

lint: setup
	@found=$$( { $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && \
	for folder in distillation gpu int8 lowrank measurement pretrained pruning recommend robustness search; do \
		MYPYPATH=benchmarks/$$folder:benchmarks/robustness:benchmarks/measurement:benchmarks/int8:benchmarks/pruning $(BIN)/mypy \
		--no-warn-unused-configs --explicit-package-bases benchmarks/$$folder/*.py || exit; done; } 2>&1 ); \
	code=$$?; [ $$code = 0 ] && echo "ruff and mypy: no issues" || echo "$$found"; exit $$code

# Two tests at once: a thread that waits lets the other test have its core. In the order of files,
# since the plug-in's own begins with those of the most tests, which end soonest.
suite: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The tables in reports/: each takes long and needs its data (see README).
mnist: setup
	$(BIN)/compress-models bench mnist --out reports/mnist

cifar10: setup
	$(BIN)/compress-models bench cifar10 --out reports/cifar10

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt .ci/make-venv
	sh .ci/make-venv $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
