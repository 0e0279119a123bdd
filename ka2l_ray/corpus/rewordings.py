"""A question in other words: what a corpus gives, what templates make, what a chat endpoint replies.

In: a question with its topic and entity; a column's texts, templates by topic, or a reply. Out: wordings that differ
from the question and from each other, the reserved one last.
Refuses to know: files, splits, HTTP, which wording is asked where.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

from ka2l_ray.chat.endpoint import ChatRequest, Completion, meaning
from ka2l_ray.config import CorpusSection, EndpointSection, RewordingsSection
from ka2l_ray.text.normal import normalize, words_of

_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s+")


@cache
def our_templates() -> dict[str, dict[str, list[str]]]:
    """Wordings by format and group, as rewordings.json has them."""
    return json.loads((files("ka2l_ray.corpus") / "rewordings.json").read_text(encoding="utf-8"))


def templates_of(corpus: CorpusSection) -> Mapping[str, Sequence[str]]:
    """Wordings by group: the configured ones, else those of the package."""
    return corpus.rewordings.templates or our_templates()[corpus.format]


def repeated_wording(question: str, wordings: Iterable[str]) -> str | None:
    """The first wording that says the same as the question or an earlier one, apart from case, punctuation and
    articles; None where all differ."""
    said = {normalize(question)}
    for wording in wordings:
        if (key := normalize(wording)) in said:
            return wording
        said.add(key)
    return None


def request(endpoint: EndpointSection, rewordings: RewordingsSection, question: str) -> ChatRequest:
    """What is posted for a question that is to be reworded."""
    return {
        "model": endpoint.model,
        "messages": [
            {"role": "system", "content": rewordings.instruction.replace("{count}", str(rewordings.count))},
            {"role": "user", "content": question},
        ],
        "temperature": endpoint.temperature,
        **endpoint.parameters,
        "max_tokens": rewordings.max_tokens,
    }


def wordings_in(
    endpoint: EndpointSection, rewordings: RewordingsSection, question: str, entity: str | None, reply: Completion
) -> list[str]:
    """The wordings in a reply, a line each without bullet or number, at most `rewordings.count`. Those that do not name
    the entity, or say the same as the question or an earlier one, are left out; a reply that is no answer has none."""
    found: list[str] = []
    name = _spaced(entity) if entity else ""
    for line in (meaning(endpoint, reply).answer or "").splitlines():
        wording = _BULLET.sub("", line).strip()
        if wording and name in _spaced(wording) and repeated_wording(question, [*found, wording]) is None:
            found.append(wording)
    return found[: rewordings.count]


def _spaced(text: str) -> str:
    """The words of a text's form with a space around each, so that a name is found as whole words only."""
    return f" {' '.join(words_of(text))} "
