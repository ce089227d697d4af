#!/usr/bin/env bash
# transformers 5.23.0 with jinja2 3.1.6: a date, a path, a set or a function that `apply_chat_template` is given for the template
# arrives there as the name of its type, in angle brackets.
#
# The documentation of the method says that further keywords go to the template and are accessible there. Text, numbers, lists,
# mappings and dataclasses do; almost any other value becomes a string such as "<date>". Where the template writes it, that string
# stands in the prompt, and nothing is raised or logged; the same holds for the content of a message. Where the template calls a
# function, "'str' object is not callable" is raised, also for a clock of one's own named `strftime_now`, for the string hides the
# library's function of that name. This is meant as a protection from what a template could do with objects. It matters since a
# prompt changes in silence: turn values into text or numbers first.
#
# Output seen on 2026-11-29, Python 3.11:
#   a date, written: Today is <date>.
#   a path, written: See <PosixPath>.
#   a set, joined: < s e t >
#   a date as the content of a message: <date>
#   a function, called: TypeError: 'str' object is not callable
#   a function named strftime_now, called: TypeError: 'str' object is not callable
#   warnings: 0
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$folder/values.py" <<'PYTHON'
import logging
import sys
import warnings
from datetime import date
from pathlib import PosixPath

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

DAY = date(2026, 11, 29)
CALL = "TypeError: 'str' object is not callable"
CASES = {
    "a date, written": ("Today is {{ day }}.", {"day": DAY}, "Today is <date>."),
    "a path, written": ("See {{ path }}.", {"path": PosixPath("notes.txt")}, "See <PosixPath>."),
    "a set, joined": ("{{ names | join(' ') }}", {"names": {"one"}}, "< s e t >"),
    "a date as the content of a message": ("{{ messages[0].content }}", {}, "<date>"),
    "a function, called": ("{{ loud('hello') }}", {"loud": lambda text: text.upper()}, CALL),
    "a function named strftime_now, called": ("{{ strftime_now('%Y') }}", {"strftime_now": DAY.strftime}, CALL),
}


class Count(logging.Handler):
    records = 0

    def emit(self, record):
        Count.records += 1


logging.getLogger("transformers").addHandler(Count(logging.WARNING))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"hello": 0}, unk_token="hello")))
as_described = True
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for case, (template, values, expected) in CASES.items():
        try:
            messages = [{"role": "user", "content": DAY}]
            seen = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **values)
        except Exception as error:
            seen = f"{type(error).__name__}: {error}"
        print(f"{case}: {seen}")
        as_described &= seen == expected
warned = len(caught) + Count.records
print(f"warnings: {warned}")
sys.exit(not (as_described and warned == 0))
PYTHON
HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$folder/env/bin/python" "$folder/values.py"
