"""The cost ledger: what was asked, answered, rejected, paid."""

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder


def test_what_an_answer_is_worth_and_what_was_paid_for_it(tmp_path):
    given = [
        ("answered", 1.5, False),
        ("answered", 1.5, True),
        ("refused", 1.25, False),
        ("failed", 0.0, False),
        ("blank", 1.0, None),
    ]
    rows = [{"id": str(n), "status": s, "cost": c, "cached": served} for n, (s, c, served) in enumerate(given)]
    table = Table(Folder.of(str(tmp_path)))
    table.write((None, pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS)))
    book = ledger(table)
    assert (book["asked"], book["answered"], book["rejected"], book["cached"]) == (5, 2, 3, 1)
    assert sum(book[s] for s in schema.ANNOTATION_STATUSES if s != "answered") == book["rejected"]
    assert (book["cost"], book["paid"]) == (5.25, 3.75)
