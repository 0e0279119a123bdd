"""What a command shows at its end says what its numbers are over."""

from typing import Any

import pytest
from finished_run import results

from ka2l_ray.cli.terminal import print_comparison, print_results


@pytest.mark.parametrize(
    ("eval_scope", "facts"),
    [
        ("pool", "facts that pool questions ask, in a wording of their own"),
        ("other", "facts that no pool question asks"),
    ],
)
def test_rounds_and_comparisons_say_what_accuracy_is_over(
    eval_scope: str, facts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_results("runs/r", results() | {"eval_scope": eval_scope})
    comparison: Any = {"eval_scope": eval_scope, "seeds": [0], "random_budget": 10, "strategies": []}
    print_comparison("runs/c", comparison)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count(f"accuracy, and so saving, is over {facts}") == 2
