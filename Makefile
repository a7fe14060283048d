# demo        repair a small backdoored model, from upload to table
# serve       the service on http://127.0.0.1:8000
# test        every test          lint          every check that reads the code
# bench       the quick figures: bench-speed and bench-upload
# bench-real  the two published models by preset authors; bench-default: by preset default, three seeds
# bench-speed a step beside its slow transcription and its floor; bench-upload: memory under a 2 GB upload
# bench-faults   hundreds of faults on real jobs: processes, broker, database, disk, clock; root, for the small disk
# bench-hostile  thousands of files that mean harm, through intake, and one of each kind through the service
# bench-load  many who poll, upload, post, list and connect; PARTS="--only posting --scale 0.1" chooses
# bench-tables  the paper's tables and figures, by our code and its rivals: hours; what is measured is kept
# bench-architectures  a step of cloning with each, for the index; again when torch changes, with 10 GB of memory
#
# Each target makes the .venv it needs, and makes it again only when pyproject.toml or constraints.txt changed.
# PYTHON=/path/to/python3.11 chooses the interpreter.

IS_3_11 := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
PYTHON ?= $(shell for name in python3.11 python3; do $$name $(IS_3_11) && echo $$name && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo serve test lint bench bench-real bench-default bench-speed bench-upload bench-faults bench-hostile bench-load bench-tables \
	bench-architectures

demo: $(INSTALLED)
	$(BIN)/medic demo --out demo-out

serve: $(INSTALLED)
	$(BIN)/medic serve

# tests wait for services much of the time; threads without work must not spin beside those that have some
test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint docker/*.Dockerfile

bench: bench-speed bench-upload

bench-real: $(INSTALLED)
	$(BIN)/python -m benchmarks.real

bench-default: $(INSTALLED)
	$(BIN)/python -m benchmarks.real --preset default --seed 0 --seed 1 --seed 2

bench-speed: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed

bench-upload: $(INSTALLED)
	$(BIN)/python -m benchmarks.upload_memory

bench-faults: $(INSTALLED)
	$(BIN)/python -m benchmarks.faults

bench-hostile: $(INSTALLED)
	$(BIN)/python -m benchmarks.hostile

bench-load: $(INSTALLED)
	$(BIN)/python -m benchmarks.load $(PARTS)

bench-tables: $(INSTALLED)
	$(BIN)/python -m benchmarks.tables $(TABLES)

bench-architectures: $(INSTALLED)
	$(BIN)/python -m benchmarks.architectures all

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" $(IS_3_11) || { echo "MEDIC needs Python 3.11: install it, or name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
