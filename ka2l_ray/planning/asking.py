"""What a run asks others, and what that may cost: annotations, and rewordings from an endpoint.

In: a configuration, an `Extent`. Out: `Line`s; prices are upper bounds. Refuses to know: models, Ray.
"""

from ka2l_ray.config import Config, EndpointSection
from ka2l_ray.corpus.again import questions_again
from ka2l_ray.planning.corpora import Extent
from ka2l_ray.planning.line import TEXT_BYTES, Line

LETTERS_A_TOKEN = 4
"""For prompts to an annotator's endpoint, whose tokenizer is not known."""


def annotating(config: Config, extent: Extent, curves: int, sampling: int) -> Line:
    """The whole budget of every curve, and the pool's sampling for so many strategies."""
    annotate, endpoint, budget = config.annotate, config.annotate.endpoint, config.active.budget
    rows, by_token = budget * curves, annotate.source == "endpoint"
    instruction = len(endpoint.system + endpoint.template) // LETTERS_A_TOKEN
    read, written = rows * (extent.own + instruction) * by_token, rows * endpoint.max_tokens * by_token
    tokens = _token_price(endpoint, read, written)
    sampled = sampling * extent.splits["pool"] * config.acquire.sampling_cost
    price = rows * annotate.cost + tokens + sampled
    parts = [f"{annotate.cost:g} each"] + [f"{tokens:,.6g} for tokens"] * by_token
    parts += [f"{sampled:,.6g} for sampling the pool"] * (sampled > 0)
    return Line(
        "annotate",
        rows,
        annotate.source,
        read_tokens=read,
        written_tokens=written,
        storage_bytes=rows * TEXT_BYTES,
        does=f"{budget:,} annotations for each of {curves} curves, at {', and '.join(parts)}: {price:,.10g} at most",
        price=price,
    )


def rewording(config: Config, extent: Extent) -> Line:
    """Every pool and eval question, once."""
    section, pool = config.corpus.rewordings, extent.splits["pool"]
    rows = pool + extent.splits["eval"] - questions_again(config) * pool
    read = rows * (extent.own + len(section.instruction) // LETTERS_A_TOKEN)
    written = rows * section.max_tokens
    price = rows * section.cost + _token_price(config.annotate.endpoint, read, written)
    return Line(
        "reword",
        rows,
        "endpoint",
        read_tokens=read,
        written_tokens=written,
        storage_bytes=rows * section.count * TEXT_BYTES,
        does=f"{section.count} wordings of every pool and eval question: {price:,.10g} at most",
        price=price,
    )


def _token_price(endpoint: EndpointSection, read: int, written: int) -> float:
    """What an endpoint charges for tokens."""
    millionths = read * endpoint.cost_per_million_prompt_tokens
    return (millionths + written * endpoint.cost_per_million_completion_tokens) / 1e6
