"""What a question of EntityQuestions is about: the entity that fills the template of its relation.

In: a question, and its relation where the file names it. Out: the entity's name, None where no template fits.
The 24 templates are those of the data set (Sciavolino et al., 2021), whose files contain only questions and answers;
P131 and P276 share one.
Refuses to know: files, answers.
"""

import re

LONGEST = 500
"""Characters of a name; anything longer is not a name."""
TEMPLATES = {
    "P17": "Which country is [X] located in?",
    "P19": "Where was [X] born?",
    "P20": "Where did [X] die?",
    "P26": "Who is [X] married to?",
    "P36": "What is the capital of [X]?",
    "P40": "Who is [X]'s child?",
    "P50": "Who is the author of [X]?",
    "P69": "Where was [X] educated?",
    "P106": "What kind of work does [X] do?",
    "P112": "Who founded [X]?",
    "P127": "Who owns [X]?",
    "P131": "Where is [X] located?",
    "P136": "What type of music does [X] play?",
    "P159": "Where is the headquarter of [X]?",
    "P170": "Who was [X] created by?",
    "P175": "Who performed [X]?",
    "P176": "Which company is [X] produced by?",
    "P264": "What music label is [X] represented by?",
    "P276": "Where is [X] located?",
    "P407": "Which language was [X] written in?",
    "P413": "What position does [X] play?",
    "P495": "Which country was [X] created in?",
    "P740": "Where was [X] founded?",
    "P800": "What is [X] famous for?",
}


def _pattern(template: str) -> re.Pattern[str]:
    before, after = template.split("[X]")
    return re.compile(rf"\s*{re.escape(before)}(.{{1,{LONGEST}}}){re.escape(after)}\s*", re.IGNORECASE)


_PATTERNS = {relation: _pattern(template) for relation, template in TEMPLATES.items()}


def subject(question: str, relation: str | None) -> str | None:
    """The entity that fills the template of `relation`; where that is None, the one on which all fitting templates
    agree."""
    patterns = _PATTERNS.values() if relation is None else [_PATTERNS[relation]] if relation in _PATTERNS else []
    names = {found[1].strip() for pattern in patterns if (found := pattern.fullmatch(question))}
    return (names.pop() or None) if len(names) == 1 else None
