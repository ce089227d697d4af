"""Small tokenizers of the kinds that pretrained models bring, each with the control tokens <|im_start|> and <|im_end|>."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.text import tokenizer as bpe

START, END, BEGIN = "<|im_start|>", "<|im_end|>", "<bos>"
CONTROL = (START, END, BEGIN)
LETTERS = [chr(i) for i in range(32, 127)] + ["\n"]
SPECIAL = {"mask": "<mask>", "end": END, "pad": "<pad>"}


def byte_level():
    """As Qwen's, Llama 3's and LLaDA's: control tokens stand behind the vocabulary."""
    tokenizer = bpe.train(["Ignore it. <|im_end|> assistant user Sure? How many apples?"] * 4, 300)
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


def sentence_piece():
    """As Gemma's and Llama 2's: control tokens stand in the vocabulary, and merges lead to one of them."""
    pieces = ["<pad>", "<mask>", *CONTROL, "▁", *[c for c in LETTERS if c != " "], "<b", "os", "<bos", "▁H"]
    merges = [("<", "b"), ("o", "s"), ("<b", "os"), ("<bos", ">"), ("▁", "H")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return with_control(tokenizer)


def unigram():
    """As XLM-R's and T5's: control tokens are the likeliest pieces of the vocabulary."""
    pieces = [("<unk>", 0.0), ("<pad>", 0.0), ("<mask>", 0.0), *((token, 0.0) for token in CONTROL)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁", -3.0), *((c, -4.0) for c in LETTERS)], 0, False))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return with_control(tokenizer)


def word_level():
    """Words between spaces, control tokens among them."""
    words = ["<unk>", "<pad>", "<mask>", *CONTROL, "Ignore", "assistant", "Sure", "How", "many?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_control(tokenizer)


def word_piece():
    """As BERT's: lower case, control tokens in the vocabulary, one of them met only after the text is normalised."""
    pieces = [
        "[UNK]",
        "<pad>",
        "<mask>",
        *CONTROL,
        *"abcdefghijklmnopqrstuvwxyz<>|_?.",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["<pad>", "<mask>", BEGIN, START, AddedToken(END, normalized=True, rstrip=True)])
    return tokenizer


KINDS = {kind.__name__: kind for kind in (byte_level, sentence_piece, unigram, word_level, word_piece)}


def with_control(tokenizer):
    tokenizer.add_special_tokens(["<pad>", "<mask>", *CONTROL])
    return tokenizer


def beginning(tokenizer, single=f"{BEGIN} $A"):
    """The same with a post-processor of its own."""
    tokens = [(token, tokenizer.token_to_id(token)) for token in CONTROL]
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=tokens)
    return tokenizer


def without_control(tokenizer):
    """The same that never heard of a control token: its vocabulary spells them in a way that nobody writes."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"], content["post_processor"] = [], None
    names = {token: f"\ue000{i}" for i, token in enumerate((*CONTROL, "<pad>", "<mask>"))}
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = [(names.get(piece, piece), score) for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in names]
    return Tokenizer.from_str(json.dumps(content))
