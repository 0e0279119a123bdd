"""What a tokenizer returns, as plain types: one text, one id.

In: a Hugging Face tokenizer. Out: strings and integers, or a clear error where it has no such token. Refuses to know:
models.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ka2l_ray.errors import ConfigError


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of some tokens, without special tokens and outer spaces."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, special_tokens: bool = True) -> list[int]:
    """The token ids of a text; with `special_tokens`, including those that the tokenizer adds."""
    return [int(i) for i in tokenizer(text, add_special_tokens=special_tokens).input_ids]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token. Raises `ConfigError` where there is none."""
    return _checked(tokenizer.pad_token_id, "padding", tokenizer)


def end_id(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> int:
    """The token that ends an answer: the first of `stop` that is a special token, such as the end of a chat's turn,
    else the tokenizer's own. Raises `ConfigError` where there is none."""
    special = special_tokens(tokenizer)
    marks = [special[text] for text in stop if text in special]
    return marks[0] if marks else _checked(tokenizer.eos_token_id, "end", tokenizer)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """{text: id} of the tokens that are no text and are left out where tokens become text."""
    return {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _checked(token: object, name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(token, int):
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no {name} token")
    return token
