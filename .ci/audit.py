"""Look the pinned versions up in PyPI's list of vulnerabilities: fail on one, go on where nobody answers.

    python .ci/audit.py [constraints.txt]

Left out of the audit is what IGNORED names, each with the reason why it cannot hurt here.
"""

import json
import subprocess
import sys

IGNORED: dict[str, str] = {}  # identifier of a vulnerability: why it does not concern this package
PATIENCE = 300  # seconds; a machine without a way out may take long to say so


def main(path: str = "constraints.txt") -> int:
    """Audit, print, and give the exit status."""
    ignoring = [f"--ignore-vuln={name}" for name in IGNORED]
    command = [sys.executable, "-m", "pip_audit", "--requirement", path, "--no-deps", "--disable-pip"]
    command += ["--format=json", "--progress-spinner=off", *ignoring]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as fault:
        print(
            f"audit: the list of vulnerabilities was not reached ({type(fault).__name__}); going on without"
        )
        return 0
    found = [(package, hole) for package in packages for hole in package.get("vulns", ())]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    print(
        f"audit: {len(packages) - len(unknown)} of {len(packages)} packages found there, {len(found)} holes"
    )
    if unknown:
        print(
            f"audit: not in the list that was asked: {', '.join(unknown[:8])}{' ...' if unknown[8:] else ''}"
        )
    for package, hole in found:
        fixed = ", ".join(hole.get("fix_versions") or ()) or "nothing yet"
        print(f"  {package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
