"""Records of steps: what is done, its rows, and the seconds of all attempts."""

from types import SimpleNamespace

import pytest

from ka2l_ray.dataflow import records as records_module
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.storage import Folder


def test_seconds_of_every_attempt_count_even_if_it_fails(tmp_path, monkeypatch):
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 34.0])
    monkeypatch.setattr(records_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    records = Records(Folder.of(str(tmp_path)))
    assert records.all() == {}
    with pytest.raises(KeyError), records.timed("label"):
        raise KeyError
    assert not records.is_done("label")
    with records.timed("label"):
        pass
    records.finish("label", {"in": 3, "out": 3, "errors": 1}, "result")
    with records.timed("score"):
        pass
    assert records.seconds() == {"label": 1.75, "score": 4.0}
    assert (records.done(), records.result("label")) == ({"label"}, "result")
    assert records.rows() == {"label": {"in": 3, "out": 3, "errors": 1}}
    records.reopen("label")
    assert (records.done(), records.result("label"), records.rows()) == (
        set(),
        None,
        {"label": {"in": 3, "out": 3, "errors": 1}},
    )
    assert records.seconds()["label"] == 1.75
    records.forget({"label"})
    assert records.seconds() == {"score": 4.0}
