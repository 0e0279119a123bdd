"""What is asked already about the things that new questions are about.

In: entities, rows of questions. Out: of each entity the questions about it. Refuses to know: states, Ray, files.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ka2l_ray.text.normal import normalize

MOST_ASKED = 64
"""Questions about one entity that are looked at to find out what is left to ask."""
AskedAbout = dict[str, list[dict[str, str | None]]]
"""By entity `question` and `group` of what is asked about it."""


def asked_about(
    entities: Collection[str], questions: Iterable[Mapping[str, Any]], decoded: Iterable[Mapping[str, Any]] = ()
) -> AskedAbout:
    """Of each entity the `questions` about it (`question`, `group`, `entity`), at most `MOST_ASKED`, and those of
    `decoded` (`question`, `asks`, `name` in its one form, `status`) that were kept."""
    found: AskedAbout = {entity: [] for entity in entities}
    for row in questions:
        if (asked := found.get(row["entity"] or "")) is not None and len(asked) < MOST_ASKED:
            asked.append({"question": row["question"], "group": row["group"]})
    by_name = {normalize(entity): entity for entity in entities}
    for row in decoded:
        if row["status"] == "kept" and (entity := by_name.get(row["name"] or "")):
            found[entity].append({"question": row["question"], "group": row["asks"]})
    return found
