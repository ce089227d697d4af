"""The words that prompts stand in: round trips, and chats taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_words_come_back_with_the_tokenizer(tmp_path):
    encoding = bpe.trained(["12 apples"], 270)
    for special in (encoding.special, {"end": "<end>", "pad": "<pad>"}):
        wording = PromptTemplate("Q: {question}\n", dict(special), "a ", " b", True)
        write(tmp_path, encoding, wording)
        found, words = read(tmp_path)
        assert words == wording and found.special == special and found.encode("12 apples") == encoding.encode("12 apples")
