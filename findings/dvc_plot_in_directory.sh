#!/usr/bin/env bash
# DVC 3.67.1 with dvc-data 3.18.3 (git 2.39): in a fresh clone, `dvc exp run STAGE` fails after STAGE has run, for a plot that
# STAGE has nothing to do with.
#
# A pipeline has two stages that do not depend on each other; the first one's output is a directory, and a top-level plot of
# dvc.yaml shows a file in it. A clone of the git repository holds neither the directory nor a cache, and there is no remote.
# There, `dvc exp run second` runs its command and then ends with "failed to load directory" and status 255, and no experiment is
# stored, if the plot is named by the file's path, with or without the field that it shows. With the path in a mapping below `y`
# it succeeds, as does `dvc repro second` either way. It matters since a long stage has run when the command fails, and since the
# second and the third form below show the same field of the same file.
#
# Output seen on 2026-11-29, Python 3.11:
#   - table/curve.csv: exp run 255 (failed to load directory), result: done, experiments 0; repro 0
#   - table/curve.csv: {y: loss}: exp run 255 (failed to load directory), result: done, experiments 0; repro 0
#   - table/curve.csv: {y: {table/curve.csv: loss}}: exp run 0, result: done, experiments 1; repro 0
#   - curve: {x: step, y: {table/curve.csv: loss}}: exp run 0, result: done, experiments 1; repro 0
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check dvc==3.67.1 dvc-data==3.18.3
export PATH="$folder/env/bin:$PATH" HOME="$folder" XDG_CONFIG_HOME="$folder/config" DVC_NO_ANALYTICS=1 GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=me GIT_AUTHOR_EMAIL=me@example.org GIT_COMMITTER_NAME=me GIT_COMMITTER_EMAIL=me@example.org
seen=""
while read -r plot; do
  work=$(mktemp -d -p "$folder")
  git init --quiet "$work/origin"
  cd "$work/origin"
  dvc init --quiet
  cat > dvc.yaml <<YAML
stages:
  first:
    cmd: mkdir -p table && printf 'step,loss\n1,2\n' > table/curve.csv
    outs:
      - table
  second:
    cmd: echo done > result
    outs:
      - result
plots:
  $plot
YAML
  dvc repro --quiet
  git add --all
  git commit --quiet --message start
  for clone in run repro; do
    git clone --quiet "$work/origin" "$work/$clone"
  done
  cd "$work/run"
  run=0
  dvc exp run second > run.log 2>&1 || run=$?
  why=$(grep -o "failed to load directory" run.log || true)
  result=$(cat result 2> /dev/null || echo missing)
  experiments=$(dvc exp list --name-only | wc --lines)
  cd "$work/repro"
  repro=0
  dvc repro second > repro.log 2>&1 || repro=$?
  echo "$plot: exp run $run${why:+ ($why)}, result: $result, experiments $experiments; repro $repro"
  seen+="$run,$why,$result,$experiments,$repro;"
done <<'PLOTS'
- table/curve.csv
- table/curve.csv: {y: loss}
- table/curve.csv: {y: {table/curve.csv: loss}}
- curve: {x: step, y: {table/curve.csv: loss}}
PLOTS
fails="255,failed to load directory,done,0,0;"
[ "$seen" = "${fails}${fails}0,,done,1,0;0,,done,1,0;" ]
