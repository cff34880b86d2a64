PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart
LAUNCH := $(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 1 --config_file accelerate_configs/$(if $(shell command -v nvidia-smi 2>/dev/null),single_gpu,cpu).yaml

.PHONY: quickstart test lint clean

quickstart: .venv/installed  ## The whole chain on the embedded model and dialogues, and a table of all phases.
	@echo "Phases 1 and 2: Gemma 3 270M on 128 Korean dialogues. Go on after a stop with: make quickstart"
	$(LAUNCH) recipes/sft.py --output_dir $(RUN) --resume_from_checkpoint true
	test $(RUN)/results.json -nt $(RUN)/phase2/manifest.json || \
		$(LAUNCH) recipes/evaluate.py --model embedded $(RUN)/phase1 $(RUN)/phase2 \
		--dataset_path embedded-ko --output_dir $(RUN) --overwrite_output_dir true
	@echo "Reward model: samples of phase 2, labels, pairs, training, report."
	$(LAUNCH) recipes/reward.py --sft_model $(RUN)/phase2 --output_dir $(RUN)/reward \
		--max_train_rows 40 --max_eval_rows 24 --samples 1 --resume_from_checkpoint true
	@echo "Phase 3: PPO from phase 2, paid by the reward model."
	$(LAUNCH) recipes/ppo.py --sft_model $(RUN)/phase2 --reward_model $(RUN)/reward --output_dir $(RUN)/ppo \
		--allow_unfit true --max_eval_rows 16 --resume_from_checkpoint true
	test $(RUN)/ppo/evaluated/results.json -nt $(RUN)/ppo/phase3/manifest.json || \
		$(LAUNCH) recipes/evaluate.py --model $(RUN)/ppo/phase3 \
		--dataset_path embedded-ko --output_dir $(RUN)/ppo/evaluated --overwrite_output_dir true
	$(BIN)/python recipes/evaluate.py --compare $(RUN) $(RUN)/ppo/evaluated \
		--output_dir $(RUN)/report --overwrite_output_dir true

test: .venv/installed  ## Run the tests, in two processes that do not get in each other's way.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed  ## Check style and types.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Yoyak needs Python 3.11 or newer; name one with: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --editable '.[dev]' --constraint constraints.txt
	touch $@

clean:  ## Remove the environment; results in runs/ stay.
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache
