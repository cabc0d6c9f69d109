import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_oldest_versions_that_are_promised_are_those_that_are_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    promised = dict(requirement.split(">=") for requirement in extras["hf"])
    tested = dict(re.findall(r"^(\w+)==(.+)$", (ROOT / ".ci" / "constraints-oldest.txt").read_text(), re.M))
    assert promised
    for name, version in promised.items():
        assert tested[name] == f"{version}.0"
