"""The cost ledger of a round's annotations: asked, answered, rejected, paid.

In: an `annotations` table. Out: counts and costs. Refuses to know: who answered, Ray.
"""

from ka2l_ray import schema
from ka2l_ray.dataflow.manifests import Table


def ledger(table: Table) -> dict[str, float]:
    """`asked` is `answered` plus `rejected`, which is the sum of every other status, each counted under its own name.

    `cost` is what the round's annotations are worth: the figure of learning curves, in which each strategy stands
    alone. `paid` is what was spent on them, without the `cached` rows, whose answer another row of the run has paid
    for.
    """
    rows = table.read(["cost", "status", "cached"]).to_pylist()
    counts = {status: sum(r["status"] == status for r in rows) for status in schema.ANNOTATION_STATUSES}
    return {
        "asked": len(rows),
        "rejected": len(rows) - counts["answered"],
        **counts,
        "cached": sum(bool(r["cached"]) for r in rows),
        "cost": sum(r["cost"] for r in rows),
        "paid": sum(r["cost"] for r in rows if not r["cached"]),
    }
