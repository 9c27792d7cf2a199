"""The chart's alerts and dashboard, by promtool: well formed, and each alert fires when it should, and only then."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from scripts.chart_tools import CHART, ROOT, CommandFailed, promtool, run, template_command

TESTS = ROOT / "tests" / "chart" / "alerts.yaml"
PANEL_TESTS = ROOT / "tests" / "chart" / "panels.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
_VALUES = CHART / "ci" / "monitoring-values.yaml"
_VARIABLES = {"$__rate_interval": "5m", "$job": "serinette/serinette"}


def check() -> str:
    """Run promtool on what the chart renders. Raises CommandFailed, ToolMissing."""
    rules = rendered()
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    with tempfile.TemporaryDirectory() as directory:
        for name, content in (("rules", rules), ("panels", _panels())):
            (Path(directory) / f"{name}.yaml").write_text(yaml.safe_dump(content))
            run([promtool(), "check", "rules", "--lint-fatal", f"{name}.yaml"], cwd=Path(directory))
        for file in (TESTS, PANEL_TESTS):
            panel = _filled(_expressions("Busy workers, and KEDA's target")[0])
            text = file.read_text().replace("KEDA_PANEL", json.dumps(panel))
            (Path(directory) / file.name).write_text(text)
            run([promtool(), "test", "rules", file.name], cwd=Path(directory))
    if untested := sorted(set(names) - set(fired()) | set(names) - set(quiet())):
        raise CommandFailed(f"{TESTS.name} has no case in which they fire, or none in which they do not: {untested}")
    return f"{len(names)} alerts"


def rendered() -> dict[str, Any]:
    """The PrometheusRule of a release called serinette in the namespace serinette."""
    objects = yaml.safe_load_all(run(template_command([_VALUES], ['fullnameOverride="serinette"'])))
    (rule,) = (found["spec"] for found in objects if found and found["kind"] == "PrometheusRule")
    return dict(rule)


def fired() -> Iterator[str]:
    """Alerts that a case of the tests sees firing."""
    return (case["alertname"] for case in _cases() if case.get("exp_alerts"))


def quiet() -> Iterator[str]:
    """Alerts that a case of the tests sees not firing."""
    return (case["alertname"] for case in _cases() if not case.get("exp_alerts"))


def _cases() -> Iterator[dict[str, Any]]:
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        yield from test.get("alert_rule_test", [])


def _panels() -> dict[str, Any]:
    """The dashboard's queries as recording rules, which promtool can read."""
    rules: list[dict[str, str]] = []
    for expression in expressions():
        rules.append({"record": f"panel:{len(rules)}", "expr": _filled(expression)})
    return {"groups": [{"name": "dashboard", "rules": rules}]}


def _filled(expression: str) -> str:
    return reduce(lambda text, variable: text.replace(*variable), _VARIABLES.items(), expression)


def expressions() -> list[str]:
    """The dashboard's queries."""
    return _expressions()


def _expressions(title: str | None = None) -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [each["expr"] for panel in panels if title in {None, panel["title"]} for each in panel.get("targets", [])]
