import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code, *, cwd):
    """Run code in a fresh interpreter; the sources are put on its path only where nothing is installed."""
    search = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" if not _installed() else ""
    return subprocess.run(
        [sys.executable, "-c", search + code], cwd=cwd, capture_output=True, text=True, check=False
    )


def _installed():
    found = subprocess.run(
        [sys.executable, "-c", "import scale_callbacks"], cwd="/", capture_output=True, check=False
    )
    return found.returncode == 0


def test_adapters_are_not_importable_by_their_folders_name(tmp_path):
    if not _installed():
        pytest.skip("needs an installed package: a path to the sources would show the folder")
    result = python("import integrations", cwd=tmp_path)
    assert "ModuleNotFoundError" in result.stderr


def test_the_core_loads_no_framework(tmp_path):
    heavy = "torch", "lightning", "mlflow", "transformers", "matplotlib", "scipy"
    code = f"import sys, scale_callbacks; print([m for m in {heavy!r} if m in sys.modules])"
    result = python(code, cwd=tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_watching_a_plain_loop_loads_no_framework(tmp_path):
    code = (
        "import sys; from scale_callbacks import Monitor, LossForecaster, Schedule\n"
        "m = Monitor(LossForecaster(Schedule.constant(1.0, 100)))\n"
        "for t in range(1, 101): m.observe(t, 1 + 1 / t)\n"
        "print(m.forecast.value > 0, [x for x in ('torch', 'lightning', 'mlflow') if x in sys.modules])"
    )
    assert python(code, cwd=tmp_path).stdout.strip() == "True []"


def test_every_public_name_can_be_imported_and_an_unknown_one_is_an_attribute_error():
    import scale_callbacks

    for name in scale_callbacks.__all__:
        assert getattr(scale_callbacks, name).__name__ == name
    assert set(scale_callbacks.__all__) <= set(dir(scale_callbacks))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        scale_callbacks.Nothing  # noqa: B018


@pytest.mark.slow
def test_the_wheel_holds_the_adapters_the_priors_and_the_type_marker(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "scale_callbacks/py.typed",
        "scale_callbacks/laws/__init__.py",
        "scale_callbacks/integrations/lightning.py",
        "scale_callbacks/integrations/mlflow.py",
        "scale_callbacks/integrations/torch.py",
        "scale_callbacks/commands/replay.py",
        "scale_callbacks/logs/tensorboard.py",
        "scale_callbacks/page/report.html",
        "scale_callbacks/page/uPlot.iife.min.js",
        "scale_callbacks/page/uPlot.LICENSE",
    } <= names
    assert any(name.startswith("scale_callbacks/priors/") and name.endswith(".json") for name in names)
    assert not any(name.startswith(("integrations/", "tests/", "examples/")) for name in names)
