"""The words that prompts stand in: round trips, and chats taken apart."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.text import tokenizer as bpe
from pipeline.text.prompt_template import PromptTemplate, around, read, write

CHATS = {
    "none": str,
    "plain": lambda prompt: f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
    "stripping": lambda prompt: f"<|user|> {prompt.strip()} <|end|>",
    "nothing before": lambda prompt: f"{prompt}\n\nAnswer:",
}


@pytest.mark.parametrize("chat", CHATS)
@given(question=st.text(max_size=12), template=st.sampled_from(["{question}", "Q: {question}\n", " {question} "]))
def test_a_prompt_is_asked_as_the_chat_asks_it(chat, question, template):
    asked = PromptTemplate(template, {}, *around(CHATS[chat])).filled({"question": question})
    assert asked == CHATS[chat](template.format(question=question))


COUNT = itertools.count()


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (lambda prompt: "Hello!", "writes a prompt 0 times, not once; set QuestionAnswers.chat = False"),
        (lambda prompt: f"{prompt} or {prompt}", "writes a prompt 2 times"),
        (str.upper, "changes what a prompt says"),
        (lambda prompt: f"<{prompt.lstrip()}>", "changes what a prompt says"),
        (lambda prompt: f"<{' '.join(prompt.split())}>", "changes what a prompt says"),
        (lambda prompt: f"{next(COUNT)}: {prompt}", "or writes another text each time; set"),
    ],
)
def test_a_chat_that_does_not_stand_around_a_prompt_is_refused(chat, message):
    with pytest.raises(DataError, match=message):
        around(chat)


def test_words_come_back_with_the_tokenizer(tmp_path):
    encoding = bpe.trained(["12 apples"], 270)
    for special in (encoding.special, {"end": "<end>", "pad": "<pad>"}):
        wording = PromptTemplate("Q: {question}\n", dict(special), "a ", " b", True)
        write(tmp_path, encoding, wording)
        found, words = read(tmp_path)
        assert words == wording and found.special == special and found.encode("12 apples") == encoding.encode("12 apples")
