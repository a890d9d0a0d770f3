# The only commands that a newcomer must know: make setup | test | check | demo | bench
PYTHON ?= python3
BIN := .venv/bin
DATA ?= digits
CIFAR ?= digit-images

.PHONY: setup test check demo bench

# The stamp is remade when what is to be installed changes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "ffedge needs Python 3.10 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/ready

# A file's tests share what they set up, so a file stays with one worker; tests/conftest.py has the
# order of files.
test: .venv/ready
	$(BIN)/pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: .venv/ready
	$(BIN)/ffedge demo --json

# A small version of every figure and table of benchmarks/RECORDS.md, tables here, plots in var/bench.
# DATA=<folder with MNIST's IDX files> and CIFAR=<ImageFolder folder or .zip> take the place of
# scikit-learn's digits.
BENCH := $(BIN)/python -m benchmarks
SMALL := --limit 6000 --epochs 3
EAGER := --fusion eager
bench: .venv/ready
	mkdir -p var/bench
	$(BENCH).table5 --json var/bench/table5.json --methods bp-fp32,bp-gdai8-like,ff-int8 --seeds 0 \
	  --repeats 1 --network "--model mlp --data '$(DATA)' $(SMALL)" \
	  --network "--model resnet8 --width 0.5 --data '$(CIFAR)' --limit 1000 --epochs 2 --learning-rate 4e-3 $(EAGER)"
	$(BENCH).collapse --json var/bench/collapse.json --data '$(DATA)' $(SMALL) $(EAGER) --batch 32 --seeds 0 \
	  --depths 1,3 --hidden-width 200 --methods bp-fp32,bp-int8,ff-int8
	$(BENCH).gradients --json var/bench/gradients.json --data '$(DATA)' --limit 2000 --epochs 2 $(EAGER) \
	  --hidden-width 200
	$(BENCH).look_ahead --json var/bench/look_ahead.json --data '$(DATA)' $(SMALL) $(EAGER) --seeds 0 \
	  --hidden 200,200,200
	$(BENCH).operations --json var/bench/operations.json --rounds 5 --widths 0.5,1,1.5,2
	$(BENCH).streams --json var/bench/streams.json --data '$(DATA)' --samples 1400 --memory 200 --hidden 100,100 \
	  --seeds 0 --streams class-pairs,drift-labels,bursty

# What the daemon's learner makes of streams that change, at full size: hours.
.PHONY: streams
streams: .venv/ready
	mkdir -p var/bench
	$(BENCH).streams --json var/bench/streams_full.json --data '$(DATA)' --fusion compiled --keep

# The slow tests at full size, in pieces of at most ten minutes, each by itself as `make torture-kill`,
# and so on; what the harnesses find goes to var/torture.jsonl, figures to benchmarks/RECORDS.md.
# `sudo make torture` where mounting needs root; without it the power is not cut.
HARNESS := $(BIN)/pytest -q --torture-json var/torture.jsonl tests/torture
PIECES := kill retry power power-daemon xfs crash damage flips disk io clock bugs bodies overload swaps weights learner resume poison power-readings onnx
.PHONY: torture $(PIECES:%=torture-%)
torture: $(PIECES:%=torture-%)
$(PIECES:%=torture-%): torture-%: .venv/ready
	mkdir -p var
	$(TORTURE)
torture-kill: TORTURE = for seed in 1 2 3; do \
	  $(HARNESS)/test_kill.py -k kill_9 --kill-cycles 100 --torture-seed $$seed || exit 1; done
torture-retry: TORTURE = $(HARNESS)/test_kill.py -k retry --retry-posts 100000
torture-power: TORTURE = $(HARNESS)/test_power_cut.py -k 'ext4 and not daemon' --power-cuts 2000
torture-power-daemon: TORTURE = $(HARNESS)/test_power_cut.py -k 'ext4 and daemon' --power-cuts 2000
torture-xfs: TORTURE = $(HARNESS)/test_power_cut.py -k xfs --power-cuts 500
torture-crash: TORTURE = $(HARNESS)/test_crash_states.py --crash-states 10000
torture-damage: TORTURE = $(HARNESS)/test_damage.py -k 'not anywhere' --damaged-logs 200 --flips 5000
torture-flips: TORTURE = $(HARNESS)/test_damage.py -k anywhere --damaged-logs 300
torture-disk: TORTURE = $(HARNESS)/test_full_disk.py --fills 50
torture-io: TORTURE = $(HARNESS)/test_io_errors.py --io-points 1000
torture-clock: TORTURE = $(HARNESS)/test_clock.py --jumps 200
torture-bugs: TORTURE = $(HARNESS)/test_bugs.py
torture-bodies: TORTURE = $(HARNESS)/test_bad_bodies.py --bad-bodies 10000 --decoder-runs 300000 \
	  --timeout 1200
torture-overload: TORTURE = $(HARNESS)/test_overload.py --load-seconds 20 --timeout 900
torture-learner: TORTURE = for seed in 1 2 3 4 5; do \
	  $(HARNESS)/test_learner_kills.py -k stopped --learner-kills 100 --torture-seed $$seed || exit 1; done; \
	  $(HARNESS)/test_learner_kills.py -k memory --learner-ooms 50
torture-poison: TORTURE = $(HARNESS)/test_poison.py --poison-runs 40 --timeout 7200
torture-resume: TORTURE = $(HARNESS)/test_resume.py --resume-kills 100 --timeout 3600
torture-swaps: TORTURE = $(HARNESS)/test_swaps.py -k swap --swaps 10000 --timeout 1200
torture-weights: TORTURE = $(HARNESS)/test_version_faults.py --weight-mutations 5000 --swap-kills 200 \
	  --timeout 1200
torture-power-readings: TORTURE = $(BIN)/pytest -q --every-failure \
	  tests/test_power_monitor.py tests/test_power_daemon.py tests/test_jtop.py
torture-onnx: TORTURE = $(BIN)/pytest -q tests/test_onnx_parity.py -k exported --onnx-inputs 10000 \
	  --timeout 3600

# P4: predictions beside training, on a machine that does nothing else; 12 minutes.
.PHONY: bench-serving
bench-serving: .venv/ready
	mkdir -p var/bench
	$(BENCH).serving_latency --json var/bench/serving_latency.json --rounds 10 --seconds 12 \
	  --variant '' --variant governor.max_duty=0.5
