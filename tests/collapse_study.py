"""A made-up study of three arms with all that can go wrong, and its pages, for tests of reports."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.table import Aggregation, aggregate, write
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import Lineage
from glass_cnn.report.page import write_report
from glass_cnn.study import Study
from hpc.records import append_record
from tests import synthetic

ARMS = {
    "constant-1e-3": {"train.learning_rate.initial": 1e-3},
    "constant-1e-4": {"train.learning_rate.initial": 1e-4},
    "threshold": {
        "train.learning_rate": {
            "kind": "threshold",
            "initial": 1e-3,
            "levels": [{"above": 0.9, "rate": 1e-4}],
        }
    },
}
FATES = {
    "constant-1e-3": ["survived"] * 2 + ["permanent_collapse"] * 6 + ["transient_collapse"] * 4,
    "constant-1e-4": ["survived"] * 11 + ["never_learned"],
    "threshold": ["survived"] * 9 + ["transient_collapse", "non_finite", "survived"],
}
EVIL = "<script>alert(1)</script>"


def pages(study: Study, place: StudyDir) -> tuple[str, str]:
    result = aggregate(study, place)
    write(result)
    write_report(result, estimate(result))
    return place.report.read_text(), place.results_log.read_text()


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def others(page: str) -> Any:
    """Curves of the runs that a page does not draw, as its script unpacks them."""
    found = re.search(r'<script type="application/gzip" id="others">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def with_report(root: Path) -> Aggregation:
    """Three arms on twelve seeds, with all that can go wrong; its report is written."""
    study = synthetic.study("collapse", 12, arms=ARMS, description=f"Why? {EVIL}")
    place = synthetic.directory(study, root)
    for run in study.runs:
        kind = FATES[run.point.label][run.seed]
        if (run.point.label, run.seed) == ("threshold", 11):
            synthetic.write_run(place, run, kind, done=False, count=30)
        else:
            synthetic.write_run(place, run, kind)
    again = replace(
        synthetic.START,
        time="2017-11-27T08:00:00+00:00",
        hosts=["node2"],
        resumed_step=300,
        reason=f"preempted {EVIL}",
        lineage=Lineage("parent-s0-01234567", step=600, which="best"),
    )
    append_record(RunDir(place.runs / study.runs[0].name).provenance, again)
    (place.runs / f"odd {EVIL.replace('/', '')}").mkdir()
    result = aggregate(study, place)
    write(result)
    write_report(result, estimate(result))
    return result
