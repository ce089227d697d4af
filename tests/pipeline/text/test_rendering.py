"""Kinds of sequences: each writes its ids as text and says what can be asked of it; prepared data names one of them."""

import pytest

from pipeline.corpora.prepared import SENTENCES, Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.text import tokenizer as bpe
from pipeline.text.prompt_template import TOKENIZER, WORDING, PromptTemplate, write
from pipeline.text.rendering import rendering_of
from tests.support.trained import PUZZLES, TEXTS


def test_a_puzzle_is_a_grid_that_is_drawn_and_asked_for_by_its_clues(tmp_path):
    kind = rendering_of("sudoku")
    assert kind.renderer(PUZZLES, tmp_path)([0, 1, 2, 3] * 3 + [4] * 4) == "1234/1234/1234/...."
    assert [kind.cell(token) for token in range(4)] == ["1", "2", "3", "4"]
    example = kind.example(PUZZLES)
    assert kind.prompts(PUZZLES, tmp_path, 16).canvas(example, None) == [PUZZLES.mask_id] * 16
    assert kind.encoding(tmp_path) is None and kind.files == ()


def test_text_comes_with_its_tokenizer_and_the_words_of_its_prompts(tmp_path):
    kind, encoding = rendering_of("text"), bpe.trained(TEXTS, 290)
    write(tmp_path, encoding, PromptTemplate("Q: {question}\n", encoding.special))
    vocabulary = Vocabulary(encoding.size, encoding.id("mask"), encoding.id("pad"), 48, "text")
    assert kind.renderer(vocabulary, tmp_path)(encoding.encode("12 apples")) == "12 apples"
    assert kind.encoding(tmp_path).special == encoding.special and kind.cell is None
    ids = kind.prompts(vocabulary, tmp_path, 48).canvas("How many?", 3)
    assert ids == [*encoding.encode("Q: How many?\n"), *[vocabulary.mask_id] * 3]
    assert set(kind.files) == {TOKENIZER, WORDING} == {file.name for file in tmp_path.iterdir()}


def test_sentences_are_joined_and_answer_no_prompt(tmp_path):
    (tmp_path / SENTENCES).write_text('"One."\n"Two."\n')
    kind, vocabulary = rendering_of("sentences"), Vocabulary(4, 2, 3, 5, "sentences", causal=True)
    assert kind.predicts == "embeddings" and kind.cell is None and kind.encoding(tmp_path) is None
    assert kind.renderer(vocabulary, tmp_path)([1, 0, 3, 3]) == "Two. One."
    with pytest.raises(ConfigError, match="predicts embeddings of sentences; only models of tokens answer prompts"):
        kind.prompts(vocabulary, tmp_path, 5)


def test_a_kind_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(DataError, match=r"Vocabulary.rendering is 'chess'; expected one of sudoku, text, sentences"):
        rendering_of("chess")
