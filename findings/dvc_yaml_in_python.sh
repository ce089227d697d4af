#!/usr/bin/env bash
# DVC 3.67.1 installed by itself comes with ruamel.yaml 0.19.1 and reads dvc.yaml and dvc.lock by a parser written in Python.
#
# ruamel.yaml's safe loader uses the library in C where the package ruamel.yaml.clib is installed. Up to 0.18 that package came as a
# dependency; since 0.19 it does not, and DVC asks for ruamel.yaml alone and says nothing. With ruamel.yaml.clib beside it, the same
# version reads the same file in C, to the same result, some four times as fast: of a `dvc repro` that has nothing to do, an eighth of
# the time went there (a dvc.lock of 800 lines).
#
# Output seen on 2026-11-29, Python 3.11 (in C it took a quarter of the time, 1 / 3.9, beside other work):
#   dvc 3.67.1, ruamel.yaml 0.19.1, alone: parser Parser
#   dvc 3.67.1, ruamel.yaml 0.19.1, ruamel.yaml.clib 0.2.15 beside: parser CParser
#   same result: True; in C more than twice as fast: True
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check dvc==3.67.1 ruamel.yaml==0.19.1
cat > "$folder/read.py" <<'PYTHON'
"""Write how a lock file of 1,000 outputs is read: by which parser, to what, in how many seconds at best."""

import hashlib
import json
import sys
import time
from pathlib import Path

from dvc.utils.serialize import parse_yaml
from ruamel.yaml import YAML

outs = "".join(f"    - path: part-{n}\n      hash: md5\n      md5: {n:032x}\n      size: {n}\n" for n in range(1000))
text = f"schema: '2.0'\nstages:\n  one:\n    cmd: python one.py\n    outs:\n{outs}"
seconds = []
for _ in range(3):
    began = time.perf_counter()
    result = parse_yaml(text, "dvc.lock")
    seconds.append(time.perf_counter() - began)
digest = hashlib.sha256(json.dumps(result).encode()).hexdigest()
Path(sys.argv[1]).write_text(f"{YAML(typ='safe').Parser.__name__} {digest} {min(seconds)}")
PYTHON
export DVC_NO_ANALYTICS=1 HOME="$folder"
"$folder/env/bin/python" "$folder/read.py" "$folder/alone"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check ruamel.yaml.clib==0.2.15
"$folder/env/bin/python" "$folder/read.py" "$folder/beside"
read -r parser digest seconds < "$folder/alone" || true
read -r parser_beside digest_beside seconds_beside < "$folder/beside" || true
echo "dvc 3.67.1, ruamel.yaml 0.19.1, alone: parser $parser"
echo "dvc 3.67.1, ruamel.yaml 0.19.1, ruamel.yaml.clib 0.2.15 beside: parser $parser_beside"
same=$([ "$digest" = "$digest_beside" ] && echo True || echo False)
fast=$(python3 -c "print($seconds > 2 * $seconds_beside)")
ratio=$(python3 -c "print(round($seconds / $seconds_beside, 1))")
echo "same result: $same; in C more than twice as fast: $fast"
echo "ratio here: $ratio" >&2
[ "$parser $parser_beside $same $fast" = "Parser CParser True True" ]
