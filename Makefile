# Everything starts from a bare checkout: each target makes .venv itself, and a second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS := constraints/workstation.txt

.PHONY: setup demo test check bench proto clean

setup: $(STAMP)

# torch first and pinned: with it in place nothing else pulls an accelerator build of several GB.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[server,train,clap,onnx,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/streamsplit demo $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(or $(ARGS),all) --out out/bench

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/streamsplit/v1/streamsplit.proto
	mv streamsplit/v1/* streamsplit/wire/v1/ && rmdir streamsplit/v1
	sed -i.bak 's/^from streamsplit\.v1 import/from streamsplit.wire.v1 import/' streamsplit/wire/v1/streamsplit_pb2_grpc.py && rm streamsplit/wire/v1/*.bak

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
