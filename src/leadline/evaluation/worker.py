"""The process that measures one candidate: `python -m leadline.evaluation.worker`, JSON lines in and out.

Orders: `{"open": REF, "threads": T, "size": [h, w] or null}`, then `{"time": RUNS}` and `{"memory": 1}` at will.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from leadline.errors import LeadlineError

if TYPE_CHECKING:
    from leadline.runtimes.base import Session


def main() -> None:
    """Obey orders until stdin ends; every answer is one line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever an engine prints goes to stderr
    session: Session | None = None
    size: tuple[int, int] | None = None
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        try:
            if "open" in order:
                size = (order["size"][0], order["size"][1]) if order["size"] else None
                session, answer = _open(order["open"], order["threads"], size)
            elif session is None:
                answer = {"error": "nothing is open"}
            elif "time" in order:
                from leadline.evaluation.latency import time_session

                answer = dict(time_session(session, order["time"], size))
            else:
                answer = {"peak_mib": peak_mib()}
        except LeadlineError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _open(ref: str, threads: int, size: tuple[int, int] | None) -> tuple[Session, dict[str, Any]]:
    from leadline.reference import open_session
    from leadline.runtimes.base import SessionOptions

    session = open_session(ref, SessionOptions(threads=threads), size)
    spec = session.contract.input
    facts = {
        "engine": session.engine,
        "precision_ran": session.precision_ran,
        "size": list(size or (spec.height, spec.width)),
        "notes": session.notes,
    }
    return session, facts


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
