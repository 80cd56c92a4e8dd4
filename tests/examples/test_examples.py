"""The examples and the README's quickstart run as they stand, against a real peer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORECASTER = ROOT / "examples" / "forecaster"
PAPER = ROOT.parent / "shared" / "data" / "node_3_utilisation_sample_dataset.csv"

pytestmark = [pytest.mark.net, pytest.mark.slow]


@pytest.fixture
def endpoint(tmp_path):
    command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
    command += ["--data-dir", str(tmp_path / "data"), "--listen", "tcp://127.0.0.1:0"]
    command += ["--executors", "1", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["endpoint"]
        finally:
            process.terminate()
            process.wait(20)


def run(script: Path | str, *arguments: str, endpoint: str = "") -> str:
    """Run a program as a user would and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ACTIVESTORE_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_of_the_readme_runs_as_printed(endpoint, tmp_path):
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"<!-- quickstart -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 25
    script = tmp_path / "quickstart.py"
    script.write_text(code.replace("tcp://127.0.0.1:7400", endpoint))

    assert run(script).splitlines() == ["6 6", "10"]


def test_counter_remembers_its_runs(endpoint):
    script = ROOT / "examples" / "counter" / "counter.py"

    printed = [run(script, endpoint, endpoint=endpoint) for _ in range(3)]

    assert printed == [f"this is run number {n}\n" for n in (1, 2, 3)]


@pytest.fixture
def forecasting(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(FORECASTER))
    import forecaster
    import series

    yield forecaster, series
    for name in ("forecaster", "series"):
        sys.modules.pop(name, None)


def test_predict_works_for_any_horizon_and_refuses_none(forecasting):
    forecaster, series = forecasting
    model = forecaster.Forecaster(series.read_rows(series.DATA)[:200])

    assert [len(model.predict(n)) for n in (1, 7, 50)] == [1, 7, 50]
    with pytest.raises(ValueError, match="horizon is 0"):
        model.predict(0)


def test_shipped_series_is_a_recording_of_2000_rows_or_more(forecasting):
    _, series = forecasting
    rows = series.read_rows(series.DATA)

    assert len(rows) >= 2000
    assert all(0 <= value <= 100 for row in rows for value in row)
    assert len({row[0] for row in rows}) > 50, "the machine did real work"


def test_metrics_on_the_papers_series_are_near_the_reference(forecasting):
    """Source: shared data notes: CPU MSE 8.042 +- 0.485, MEM MSE 0.513 +- 0.146."""
    if not PAPER.exists():
        pytest.skip(f"the paper's series is not at {PAPER}")
    forecaster, series = forecasting
    model = forecaster.Forecaster(series.read_rows(PAPER))

    for _ in model.train(epochs=100):
        pass
    metrics = model.evaluate()

    assert metrics["CPU"]["MSE"] == pytest.approx(8.04, abs=1.0)
    assert metrics["MEM"]["MSE"] == pytest.approx(0.51, abs=0.3)


def test_demo_ends_bit_identical_after_kills(tmp_path, forecasting):
    """Baseline, offloaded training, and one killed half-way: the same bits."""
    _, series = forecasting
    few = tmp_path / "few.csv"
    few.write_text("\n".join(series.DATA.read_text().splitlines()[:400]))

    printed = run(
        FORECASTER / "demo.py",
        "--csv",
        str(few),
        "--epochs",
        "10",
        "--out",
        str(tmp_path),
    )

    assert "predictions equal: True" in printed
    assert "end bit-identical: True" in printed
    for name in ("memory.png", "time.png", "prediction.png", "demo.json"):
        assert (tmp_path / name).stat().st_size > 500
