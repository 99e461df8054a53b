# Two commands set everything up: `make demo` and `make test`. Both install only into .venv/ in this directory.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types
SAMPLE := models/demo/samples/nodule_right_upper.png

.PHONY: demo test lint types check parity slow sanitize train clean

demo: $(VENV)/installed
	$(BIN)/bimedix-edge ask --model demo -v --image $(SAMPLE) "Where do you see the nodule?"
	$(BIN)/bimedix-edge ask --model demo -v --image $(SAMPLE) "أين توجد العقيدة؟"
	@echo
	@echo "To talk with it: $(BIN)/bimedix-edge chat --image $(SAMPLE)"

test: $(VENV)/installed-test lint types
	$(BIN)/pytest -m "not parity and not slow"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy sees the layout of an installed package: converters/ inside bimedix_edge/
types: $(VENV)/installed-test
	rm -rf $(TYPES) && mkdir -p $(TYPES)/bimedix_edge
	ln -s $(CURDIR)/bimedix_edge/* $(CURDIR)/converters $(TYPES)/bimedix_edge/
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p bimedix_edge

# compares with torch and transformers, live
parity: $(VENV)/installed-parity
	$(BIN)/pytest -m parity

# all cases of the tests that `make test` samples
slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow -s

# the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
sanitize:
	$(MAKE) -C tests/native -j 2

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml CMakeLists.txt $(wildcard kernels/*.cpp kernels/*.h kernels/vision/*.cpp kernels/vision/*.h)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/installed-parity: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --editable ".[parity]"
	touch $@
