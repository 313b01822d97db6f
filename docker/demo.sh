#!/usr/bin/env bash
# The whole job on a small scale, from nothing to an answer: the same stack with config/demo, its own volumes and its own
# project name. Every call starts from scratch. The volumes and containers of the real run are never touched.
set -euo pipefail
cd "$(dirname "$0")/.."
export SVITLO_PROJECT=svitlo-demo
. docker/lib.sh

QUESTION='What should I do if the power goes out at night?'
MOST_SECONDS=${DEMO_TIMEOUT:-1800}
DEMO_VOLUMES=./volumes-demo

export SVITLO_VOLUMES=$DEMO_VOLUMES SVITLO_CONFIG=./config/demo
engine_answers || docker/install-engine.sh
while IFS='=' read -r name value; do
    value=$(setting "$name" "$value")
    export "$name=$value"
done < <(docker/env.sh --print)
need_readable_mounts
docker/build.sh

health() { docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{end}}' "svitlo-demo-$1-1" 2>/dev/null || true; }

say "starting from scratch in $DEMO_VOLUMES"
docker compose --progress quiet down --remove-orphans
rm -rf "$DEMO_VOLUMES" || die "cannot remove $DEMO_VOLUMES; run: sudo rm -rf $DEMO_VOLUMES"
mkdir -p "$DEMO_VOLUMES"/{raw,config}
cp -r config/demo/raw/. "$DEMO_VOLUMES/raw/"
cp config/demo/*.yaml "$DEMO_VOLUMES/config/"
# The speed that it shows is that of this machine: a thread for each CPU that the trainer may use.
threads=$(expand_cpus "$TRAINER_CPUS" | wc -l)
sed -i "s/threads: [0-9]*/threads: $threads/" "$DEMO_VOLUMES"/config/phase*.yaml
SVITLO_CONFIG=$DEMO_VOLUMES/config
chmod -R a+rX "$DEMO_VOLUMES"
docker compose --progress quiet up --detach --no-build

# compose puts a terminal's "erase line" code before each line, even in a file.
docker compose logs --follow --no-log-prefix data-prep trainer 2>/dev/null > >(sed -u 's/\x1b\[2K//') &
follower=$!
trap 'kill "$follower" 2>/dev/null || true' EXIT
trap 'docker compose --progress quiet down; exit 130' INT TERM

deadline=$((SECONDS + MOST_SECONDS))
until [ -e "$DEMO_VOLUMES/checkpoints/complete.json" ]; do
    for service in data-prep trainer; do
        if [ "$(health "$service")" = unhealthy ]; then
            die "$service says: $(docker compose exec -T "$service" sed -n 2p /tmp/health)"
        fi
    done
    [ "$SECONDS" -lt "$deadline" ] || die "not finished after $MOST_SECONDS s; see: docker compose -p svitlo-demo logs"
    sleep 1
done
kill "$follower" 2>/dev/null || true
wait "$follower" 2>/dev/null || true

echo
docker/tools.sh status
# The status shows losses on validation data. A model this small only memorises its conversations, so the training loss
# says more.
loss() {
    grep "\"kind\": \"step\", \"phase\": $1," "$DEMO_VOLUMES/logs/metrics.jsonl" | sed -n "$2s/.*\"loss\": \([0-9]*\.[0-9]\{1,3\}\).*/\1/p"
}
echo "Training loss: phase 1 $(loss 1 1) → $(loss 1 '$'), phase 2 $(loss 2 1) → $(loss 2 '$') (the model memorises the conversations)"
echo "Checkpoints: $(cd "$DEMO_VOLUMES/checkpoints" && echo phase?/*.pt), in $DEMO_VOLUMES/checkpoints"
echo "Model:       $DEMO_VOLUMES/export/model, opens with AutoModelForCausalLM.from_pretrained"
echo
echo "Question:    $QUESTION"
echo "Answer:      $(docker/tools.sh generate "$QUESTION" 2>/dev/null)"
echo
docker compose --progress quiet down
echo "The demo took $SECONDS s. To ask more: SVITLO_VOLUMES=$DEMO_VOLUMES docker/tools.sh generate \"...\""
echo "To start the real run: make up"
