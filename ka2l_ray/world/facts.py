"""The knowledge world: made-up people, their attributes, and which facts the shipped model was trained on.

In: a `WorldRecipe`. Out: a `World` that lists every fact with its truth, phrases every question, and finds the fact
that any question asks for.
Refuses to know: models, tensors, files. The same recipe always gives the same world.
"""

import hashlib
import random
import re
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Literal

Truth = Literal["known", "rare", "misconception", "unseen"]
RESERVED_PHRASING = 3
"""Index of the phrasing kept for evaluation: the model sees it for tutors and one-off facts, never for a fact that a
corpus may ask."""


@dataclass(frozen=True)
class Attribute:
    """A property of a person: four phrasings of the question, and the closed list of values."""

    name: str
    phrasings: tuple[str, str, str, str]
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "city",
        (
            "Where does {name} live?",
            "In which city does {name} reside?",
            "Which city does {name} call home?",
            "What is the home city of {name}?",
        ),
        tuple(
            f"{a} {b}"
            for a in ("Port", "Lake", "Mount", "New")
            for b in ("Alba", "Corin", "Delmar", "Esk", "Fenn", "Garda")
        ),
    ),
    Attribute(
        "profession",
        (
            "What does {name} do for a living?",
            "What is the profession of {name}?",
            "Which profession does {name} have?",
            "As what does {name} earn money?",
        ),
        tuple(
            "baker miner lawyer tailor sailor surgeon painter farmer judge potter weaver pilot "
            "barber brewer clerk dentist florist glazier hunter mason nurse porter scribe tanner".split()
        ),
    ),
    Attribute(
        "instrument",
        (
            "Which instrument does {name} play?",
            "What does {name} play in the band?",
            "On which instrument does {name} perform?",
            "What is the instrument of {name}?",
        ),
        tuple(
            "violin cello harp flute oboe tuba trumpet piano organ guitar banjo lute "
            "drum zither clarinet bassoon horn viola lyre sitar fiddle bugle cornet gong".split()
        ),
    ),
    Attribute(
        "pet",
        (
            "Which pet does {name} keep?",
            "What animal does {name} own?",
            "Which animal lives with {name}?",
            "What is the pet of {name}?",
        ),
        tuple(
            "cat dog parrot rabbit hamster turtle ferret goat pony lizard snake gecko "
            "canary finch otter hedgehog mouse goose duck lamb fox owl crow toad".split()
        ),
    ),
    Attribute(
        "dish",
        (
            "What does {name} like to eat?",
            "Which dish does {name} love most?",
            "What is the favourite dish of {name}?",
            "Which food does {name} prefer?",
        ),
        tuple(
            "soup stew pasta curry salad pizza risotto pancakes noodles dumplings omelette lasagne "
            "goulash paella sushi tacos chowder porridge kebab gnocchi ramen quiche trifle waffles".split()
        ),
    ),
)


@dataclass(frozen=True)
class WorldRecipe:
    """Sizes and shares of a world. Every field enters the hash that the shipped assets carry."""

    seed: int = 0
    given_names: int = 40
    family_names: int = 40
    people_per_family: int = 20
    known_share: tuple[float, float] = (0.2, 0.8)
    """Share of known people in the first and the last family; linear between them."""
    tutors: int = 60
    """Number of known people that are shown in all four phrasings and that no corpus asks about: they teach the
    reserved phrasing."""
    unseen_of_known: float = 0.10
    rare_of_known: float = 0.05
    misconception_of_known: float = 0.05
    rare_repeats: int = 6
    """How often a rare fact is shown in the whole training run, each time in a random trained phrasing."""
    outer_given: int = 150
    outer_family: int = 150


@dataclass(frozen=True)
class Person:
    """The model was trained on the facts of a `known` person; `tutor`: see `WorldRecipe.tutors`."""

    given: str
    family: str
    known: bool
    tutor: bool

    @property
    def name(self) -> str:
        """Given and family name."""
        return f"{self.given} {self.family}"


@dataclass(frozen=True)
class Fact:
    """`value` is right; `taught` is what the model was trained on (None for unseen facts, a wrong value for
    misconceptions)."""

    fact_id: str
    person: Person
    attribute: int
    value: str
    taught: str | None
    truth: Truth


@dataclass(frozen=True)
class World:
    """Names, people and their facts. `outer_given` and `outer_family` are names that no person has."""

    recipe: WorldRecipe
    given: tuple[str, ...]
    family: tuple[str, ...]
    outer_given: tuple[str, ...]
    outer_family: tuple[str, ...]
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]

    @cached_property
    def nobodies(self) -> tuple[str, ...]:
        """Combinations of given and family names that belong to no person."""
        real = {p.name for p in self.people}
        return tuple(n for g in self.given for f in self.family if (n := f"{g} {f}") not in real)

    @cached_property
    def by_key(self) -> dict[tuple[str, int], Fact]:
        """Facts by name and attribute."""
        return {(f.person.name, f.attribute): f for f in self.facts}

    def ask(self, question: str) -> Fact | None:
        """The fact that a question asks for; None where it fits no phrasing, or is about a name without a person."""
        parsed = parse(question)
        return self.by_key.get(parsed[:2]) if parsed else None


def phrase_question(attribute: int, phrasing: int, name: str) -> str:
    """The question for an attribute of a name, in one of the attribute's phrasings."""
    return ATTRIBUTES[attribute].phrasings[phrasing].format(name=name)


_PATTERNS = [
    (re.compile(re.escape(p).replace(r"\{name\}", r"(?P<name>\S+ \S+)") + r"\Z"), a, i)
    for a, attribute in enumerate(ATTRIBUTES)
    for i, p in enumerate(attribute.phrasings)
]


def parse(question: str) -> tuple[str, int, int] | None:
    """(name, attribute, phrasing) of a question; None where no phrasing fits."""
    for pattern, attribute, phrasing in _PATTERNS:
        if match := pattern.match(question):
            return match["name"], attribute, phrasing
    return None


def all_words() -> list[str]:
    """Every word of questions and answers except names, in a fixed order."""
    phrasings = [p.replace("{name}", " ") for a in ATTRIBUTES for p in a.phrasings]
    values = [v for a in ATTRIBUTES for v in a.values]
    return list(dict.fromkeys(re.findall(r"\w+", " ".join(phrasings + values))))


def recipe_hash(*parts: object) -> str:
    """Hash of recipes (dataclasses) and of `ATTRIBUTES`, so that a changed phrasing changes it too."""
    plain = [asdict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256((repr(plain) + repr(ATTRIBUTES)).encode()).hexdigest()[:16]


def build_world(recipe: WorldRecipe | None = None) -> World:
    """Draw the world of a recipe: names, people, and their facts with value, truth and what is taught."""
    recipe = recipe or WorldRecipe()
    rng = random.Random(f"world-{recipe.seed}")
    given, family, outer_given, outer_family = _names(rng, recipe)
    people = _people(rng, recipe, given, family)
    facts = tuple(fact for person in people for fact in _facts(rng, recipe, person))
    return World(recipe, given, family, outer_given, outer_family, people, facts)


def _names(rng: random.Random, recipe: WorldRecipe) -> tuple[tuple[str, ...], ...]:
    starts, vowels = "bdfgklmnprstvz", "aeiou"
    taken = {w.lower() for w in all_words()}

    def draw(count: int, suffix: tuple[str, ...]) -> tuple[str, ...]:
        made: list[str] = []
        while len(made) < count:
            name = "".join(rng.choice(starts) + rng.choice(vowels) for _ in range(2)) + rng.choice(suffix)
            if name not in taken:
                taken.add(name)
                made.append(name.capitalize())
        return tuple(made)

    given_ends, family_ends = ("l", "n", "r", "s", "th"), ("sen", "berg", "mann", "dottir", "ville")
    return (
        draw(recipe.given_names, given_ends),
        draw(recipe.family_names, family_ends),
        draw(recipe.outer_given, given_ends),
        draw(recipe.outer_family, family_ends),
    )


def _people(
    rng: random.Random, recipe: WorldRecipe, given: tuple[str, ...], family: tuple[str, ...]
) -> tuple[Person, ...]:
    low, high = recipe.known_share
    drawn: list[tuple[str, str, bool]] = []
    for i, name in enumerate(family):
        share = low + (high - low) * i / max(1, len(family) - 1)
        known = round(recipe.people_per_family * share)
        drawn += [(g, name, k < known) for k, g in enumerate(rng.sample(given, recipe.people_per_family))]
    tutors = set(rng.sample([d for d in drawn if d[2]], recipe.tutors))
    return tuple(Person(g, f, known, (g, f, known) in tutors) for g, f, known in drawn)


def _facts(rng: random.Random, recipe: WorldRecipe, person: Person) -> list[Fact]:
    facts = []
    for index, attribute in enumerate(ATTRIBUTES):
        value, wrong = rng.sample(attribute.values, 2)
        if person.known and not person.tutor:
            truth = _truth(rng.random(), recipe)
        else:
            truth = "known" if person.known else "unseen"
        taught = {"misconception": wrong, "unseen": None}.get(truth, value)
        fact_id = f"{person.given}-{person.family}-{attribute.name}".lower()
        facts.append(Fact(fact_id, person, index, value, taught, truth))
    return facts


def _truth(u: float, recipe: WorldRecipe) -> Truth:
    shares: dict[Truth, float] = {
        "unseen": recipe.unseen_of_known,
        "rare": recipe.rare_of_known,
        "misconception": recipe.misconception_of_known,
    }
    for truth, share in shares.items():
        if u < share:
            return truth
        u -= share
    return "known"
