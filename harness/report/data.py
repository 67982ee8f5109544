"""The run as one JSON value for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.report.history import trends
from harness.report.model import Report
from harness.report.verdict import Verdict, exit_phrase

FORMAT = 1
"""Raised when a key changes its meaning or goes."""


def as_data(report: Report, verdict: Verdict) -> dict[str, Any]:
    """Verdict, failures, stages (seconds), checks, findings, facts, resources, and trends (seconds, octets)."""
    return {
        "format": FORMAT,
        "run": {"id": report.run.id, "appliance": report.appliance, "cloud": report.cloud, "version": report.version,
                "started": report.run.started, "seconds": round(report.seconds, 2), "state": report.run.state},
        "verdict": {"outcome": verdict.outcome, "sentence": verdict.sentence, "exit_code": verdict.exit_code,
                    "exit_phrase": None if verdict.exit_code is None else exit_phrase(verdict.exit_code)},
        "failures": [asdict(failure) for failure in verdict.failures],
        "stages": [asdict(stage) for stage in report.stages],
        "findings": [asdict(finding) for finding in report.findings],
        "checks": [asdict(check) for check in report.checks],
        "resources": [asdict(made) for made in report.made],
        "trends": [{"name": trend.name, "values": trend.values, "change": trend.change, "word": trend.word}
                   for trend in trends(report)],
        "facts": {name: value for name, value in report.facts.items() if name != "failures"},
    }
