"""What the answer in a generated text is: without thoughts, and whether it is an answer at all.

In: a text as a model or an endpoint wrote it, with its special tokens where there are any. Out: the answer, or that
there is none: a thought without an end, nothing, a refusal.
Refuses to know: tokens, gold answers, tables. What is true of an answer's content is for `grading`.
"""

import re
from collections.abc import Sequence

_THOUGHT = r"(?:think|thinking|thoughts?|reasoning)"
_MARKS = re.compile(
    rf"(?P<open><(?:\w+:)?{_THOUGHT}>|\[THINK\]|<\|(?:start|begin)(?:_of)?_{_THOUGHT}\|>|◁{_THOUGHT}▷"
    r"|<\|channel\|?>(?!final\b)\w*[^<\n]*(?:<\|message\|>)?|\Aanalysis(?=[A-Z\"]))"
    rf"|(?P<close></(?:\w+:)?{_THOUGHT}>|\[/THINK\]|<\|end(?:_of)?_{_THOUGHT}\|>|◁/{_THOUGHT}▷|<channel\|>"
    r"|<\|channel\|>final\b[^<]*<\|message\|>|assistantfinal|<(?:answer|response)>|\[BEGIN FINAL RESPONSE\])",
    re.IGNORECASE,
)
"""Where thoughts begin, and where they end or the answer begins: tags in any of the brackets that templates use,
channels other than `final`, and channels whose special tokens a server has dropped."""
_AFTER = re.compile(r"</(?:answer|response)>|\[END FINAL RESPONSE\]|<\|\w+\|>|</s>", re.IGNORECASE)
"""What may follow an answer, and is no part of it."""
_QUOTES = dict(zip("\"'“‘«„‚`「『*_", "\"'”’»“‘`」』*_", strict=True))
_SILENCE = " \t\n.…-–—_?*\"'`"


def answer_start(text: str, thinks: bool = False) -> int | None:
    """Where the answer begins: after the last thought, 0 without one; None where a thought has not ended.

    `thinks`: the prompt has opened a thought already.

    >>> [answer_start(text) for text in ("<think>Hm.</think> Rome", "Rome", "<think>Hm.")], answer_start("Hm.", True)
    ([18, 0, None], None)
    """
    start = 0
    for mark in _MARKS.finditer(text):
        start, thinks = mark.end(), mark.lastgroup == "open"
    return None if thinks else start


def without_end(text: str) -> str:
    """The text before a closing tag or a special token that ends its answer, without outer spaces."""
    return _AFTER.split(text, maxsplit=1)[0].strip()


def answer_in(text: str) -> str | None:
    """The answer in a whole reply; None where it ends inside a thought.

    >>> answer_in("<think>A city in Italy.</think>\\n\\n<answer>Rome</answer>"), answer_in("<think>A city in")
    ('Rome', None)
    """
    return None if (start := answer_start(text)) is None else without_end(text[start:])


def closed(prompt: str) -> str:
    """A prompt that ends inside a thought, with the thought ended at once; any other prompt unchanged.

    >>> closed("Where? <think>\\n"), closed("Where?")
    ('Where? <think>\\n\\n</think>\\n\\n', 'Where?')
    """
    return f"{prompt.rstrip()}\n\n{_end_of(mark)}\n\n" if (mark := _last_mark(prompt)) else prompt


def ends_in_thought(prompt: str) -> bool:
    """Whether what is generated after a prompt begins inside a thought."""
    return bool(_last_mark(prompt))


def _last_mark(prompt: str) -> str:
    """The mark that opens a thought at a prompt's end, where only spaces may follow it; empty where there is none."""
    marks = [m for m in _MARKS.finditer(prompt) if not prompt[m.end() :].strip()]
    return marks[-1][0] if marks and marks[-1].lastgroup == "open" else ""


def _end_of(mark: str) -> str:
    """The mark that ends the thought that a mark opens."""
    if "channel" in mark:
        return "<|channel|>final<|message|>" if mark.startswith("<|channel|>") else "<channel|>"
    if mark.startswith("<|"):
        return re.sub("start|begin", lambda m: "END" if m[0].isupper() else "end", mark, flags=re.IGNORECASE)
    return f"{mark[0]}/{mark[1:]}"


def unquoted(text: str) -> str:
    """A text without the quotation marks or emphasis that surround all of it.

    >>> unquoted("**“Rome”.**"), unquoted('"Ja" and "Nein"')
    ('Rome', '"Ja" and "Nein"')
    """
    whole = text.strip()
    bare = whole if whole.endswith("...") else whole.removesuffix(".")
    close = _QUOTES.get(bare[:1], "")
    inner = bare[1:-1].strip()
    if not close or len(bare) < 3 or bare[-1] != close or inner.strip(close) == "" or _reopens(inner, bare[0], close):
        return whole
    return unquoted(inner)


def _reopens(inner: str, opening: str, close: str) -> bool:
    """Whether a mark inside belongs to the outer ones, as in `"a" and "b"`; emphasis may be doubled."""
    core = inner.strip(close) if opening in "*_" else inner
    apostrophes = re.sub(r"(?<=\w)['’](?=\w)", "", core)
    return close in apostrophes or opening in apostrophes


def says(text: str, phrases: Sequence[str]) -> bool:
    """Whether a text says one of some phrases: it begins or ends with it, word by word, whatever the case and
    punctuation; a phrase of one word must be all of it.

    A name is not what it says: a title has capitals where a sentence has none, and may be quoted.

    >>> says("I can't help with that.", ["I can't help"]), says("I Can't Help Myself", ["I can't help"])
    (True, False)
    """
    words = [(w[0].replace("’", "'"), w.start()) for w in re.finditer(r"[\w'’]+", text)]
    folded = [word.casefold() for word, _ in words]
    for wanted in (re.findall(r"[\w']+", p.casefold().replace("’", "'")) for p in phrases):
        count = len(wanted)
        for first in {0, len(folded) - count} if 0 < count <= len(folded) else ():
            if folded[first : first + count] == wanted and (count > 1 or len(folded) == 1):
                said, before = [w for w, _ in words[first : first + count]], text[: words[first][1]]
                if not _is_title(said) and not (count < len(folded) and before[-1:] in _QUOTES and before):
                    return True
    return False


def _is_title(words: Sequence[str]) -> bool:
    """Whether words after the first are written as in a title: each of more than two letters has one capital."""
    marked = [w for w in words[1:] if len(w) > 2]
    return bool(marked) and all(w[0].isupper() and not w.isupper() for w in marked)


def abstains(answer: str, refusals: Sequence[str]) -> bool:
    """Whether an answer is none: empty, or one of the refusals.

    >>> abstains(" …", []), abstains("I don't know.", ["I don't know"]), abstains("%", []), abstains("Rome", [])
    (True, True, False, False)
    """
    return not answer.strip(_SILENCE) or says(answer, refusals)
