# `make` alone prints the list of targets.
.DEFAULT_GOAL := help

# A checkout from before .gitattributes may have carriage returns, which no shell can read.
ifneq ($(shell tr -dc '\r' <docker/lib.sh | head -c 1 | wc -c),0)
$(error this checkout has Windows line ends; to write it anew (uncommitted changes are lost): git rm -rq --cached . && git reset --hard)
endif

.PHONY: help demo up down logs status doctor env install uninstall build sbom test torture bench bench-loss bench-saving lint lock .venv export backup restore verify new-run clean-demo

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## train a small model end to end in a few minutes, and see it answer
	@docker/demo.sh

up: ## start (or update) the stack on this machine
	@docker/up.sh

down: ## stop the stack; the next `make up` continues from there
	@docker/compose.sh down

logs: ## follow the logs of data-prep and trainer
	@docker/compose.sh logs --follow --tail 100 data-prep trainer

status: ## show phase, step, losses, speed and the last events on one screen
	@docker/tools.sh status

doctor: ## check engine, CPUs, memory, disk and volumes, with a remedy for each problem
	@docker/doctor.sh

env: ## write a .env that fits this machine; keeps values that are set
	@docker/env.sh

install: ## install the Docker engine if it is missing, and start the stack at boot (as root)
	@docker/install.sh

uninstall: ## remove the boot unit (as root); keeps engine, images and volumes
	@docker/install.sh --remove

build: ## build the images
	@docker/build.sh

export: ## write the best model so far to export/model, for transformers
	@docker/tools.sh export

backup: ## copy everything, even while training: DEST=folder or DEST=user@host:folder
	@docker/backup.sh "$(DEST)"

restore: ## verify and restore a backup: FROM=folder (FORCE=1: also over a newer run)
	@FORCE="$(FORCE)" docker/restore.sh "$(FROM)"

verify: ## check every shard, checkpoint and exported file against its digest
	@docker/tools.sh verify

new-run: ## move the current run aside and start a new one; deletes nothing
	@YES="$(YES)" docker/new-run.sh

sbom: ## list every package in the images, as CycloneDX JSON in sbom/
	@docker/sbom.sh

test: lint ## run all tests; container tests only if an engine answers
	@docker/dev.sh docker/test.sh

torture: lint ## run all tests with more cuts, kills and damage, about an hour; SEED=… repeats one
	@SVITLO_TORTURE=1 SVITLO_SEED="$(SEED)" docker/dev.sh docker/test.sh

bench: ## compare step speed with this machine's matrix products and the Hugging Face Trainer, about 5 minutes
	@docker/dev.sh .venv/bin/python -m benchmarks.speed

bench-loss: ## compare validation loss over time with the Trainer, side by side: MINUTES=30, on the data in volumes/
	@docker/dev.sh .venv/bin/python -m benchmarks.loss --minutes "$(or $(MINUTES),30)"

bench-saving: ## measure what a save costs on this disk and on slower ones, about a minute
	@docker/dev.sh .venv/bin/python -m benchmarks.saving

lint: ## check style, types, scripts, Dockerfile and compose.yaml
	@docker/dev.sh docker/lint.sh

lock: ## update the hash-locked requirements to the newest versions
	@docker/lock.sh

clean-demo: ## remove what the demo left behind
	@SVITLO_PROJECT=svitlo-demo docker/compose.sh down && rm -rf volumes-demo

.venv:
	@docker/dev.sh true
