#!/usr/bin/env bash
# mlflow-skinny 3.17.2, file store: a metric `loss` and a metric `loss/step_0` cannot both be kept in a run.
#
# Both names are valid and the usual way to group curves. The file store makes a file of the first and wants it as a folder for the
# second: NotADirectoryError, not MLflow's own error. It also keeps a value that is sent twice (same step, same time) twice, the SQLite
# store once, so that sending again after a lost answer changes curves in one and not in the other. The file store has to be asked for
# (MLFLOW_ALLOW_FILE_STORE); what is written here is read back through MLflow's client.
#
# Output seen on 2026-11-29, Python 3.11:
#   file store: NotADirectoryError; a value sent twice is there 2 times
#   SQLite: both kept; a value sent twice is there 1 times
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 SQLAlchemy==2.1.9 alembic==1.20.1
cat > "$folder/names.py" <<'PYTHON'
import logging
import sys

from mlflow import MlflowClient

logging.disable(logging.WARNING)
client = MlflowClient(sys.argv[1])
run = client.create_run(client.create_experiment("e")).info.run_id
client.log_metric(run, "loss", 1.0, step=0)
try:
    client.log_metric(run, "loss/step_0", 1.0, step=0)
    said = "both kept"
except Exception as error:
    said = type(error).__name__
for _ in range(2):
    client.log_metric(run, "other", 1.0, timestamp=5, step=0)
print(f"{said}; a value sent twice is there {len(client.get_metric_history(run, 'other'))} times")
PYTHON
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_FILE_STORE=true HOME="$folder"
seen="file store: $("$folder/env/bin/python" "$folder/names.py" "file://$folder/files" 2> /dev/null)
SQLite: $("$folder/env/bin/python" "$folder/names.py" "sqlite:///$folder/runs.db" 2> /dev/null)"
echo "$seen"
expected="file store: NotADirectoryError; a value sent twice is there 2 times
SQLite: both kept; a value sent twice is there 1 times"
[ "$seen" = "$expected" ]
