"""How good a run's decoder is, by every measure that the run asks for.

In: decoded and true questions. Out: `metrics.Reconstruction` as plain numbers, with `bert_f1` where an encoder is
named; that is a Ray task, because the driver may have neither time nor a GPU. Refuses to know: who decoded.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.placement import gpus_used
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.tasks import fetch, placed
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.decode.bertscore import bert_f1
from ka2l_ray.decode.metrics import reconstruction


def measures(
    run: Run, written: Sequence[str], true: Sequence[str], entities: Sequence[str | None]
) -> dict[str, float | None]:
    """Averages over N decoded (`written`) and true questions and their entities. Raises `ValueError` where there are
    none, `ConfigError` as `bertscore.bert_f1` does."""
    found, decode = asdict(reconstruction(written, true, entities)), run.config.decode
    if decode.bertscore.encoder is None:
        return found
    log.info("BERTScore of %d questions by %s", len(true), decode.bertscore.encoder, extra={"stage": "decode"})
    pool, gpus = decode.pool, gpus_used(run.config.model, decode.pool.gpus)
    task: Any = ray.remote(_scored).options(num_cpus=pool.cpus, num_gpus=gpus, **placed(pool.nodes))
    device = "cuda" if gpus else "cpu"
    score = task.remote(vault(), list(written), list(true), decode.bertscore, run.config.model.cache, device)
    return found | {"bert_f1": fetch(score)}


def _scored(token: Any, *of: Any) -> float:
    open_vault(token)
    return bert_f1(*of)
