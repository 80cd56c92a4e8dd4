"""The examples and the README's quickstart run as they stand, against a real peer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
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
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(FORECASTER))
    import forecaster
    import series

    # Threads that wait for each other on busy cores take 2 to 4 times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield forecaster, series
    torch.set_num_threads(threads)
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


def processes_of(directory: Path) -> list[psutil.Process]:
    """Return the running processes whose command lines name a test's own directory."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(directory) in " ".join(process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def few(tmp_path, forecasting):
    """Return the path of a short series."""
    _, series = forecasting
    path = tmp_path / "few.csv"
    path.write_text("\n".join(series.DATA.read_text().splitlines()[:400]))
    return path


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return where the demo's peers have their data: a directory of the test's own."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    for process in processes_of(path):
        process.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("edge-edge-cloud", "kill -9 of edge-1, with the data and the client"),
        ("five-edges", "kill -9 of edge-3, for good; predictions equal: True"),
    ],
)
def test_demo_ends_bit_identical_after_kills(tmp_path, few, temporary, topology, said):
    """Baseline, offloaded training, and one killed half-way: the same bits."""
    out = tmp_path / "out"
    printed = run(
        FORECASTER / "demo.py",
        "--topology",
        topology,
        "--csv",
        str(few),
        "--epochs",
        "6",
        "--out",
        str(out),
    )

    assert said in printed
    assert "end bit-identical: True" in printed
    assert "predictions equal: False" not in printed
    assert printed.count("predictions equal: True") >= 1
    for name in ("memory.png", "time.png", "prediction.png", "demo.json"):
        assert (out / name).stat().st_size > 500
    assert list(temporary.glob("activestore-*")) == []
    assert processes_of(temporary) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGTERM, "activestore-node up"), (signal.SIGINT, "publishing")],
)
def test_demo_that_is_interrupted_leaves_nothing_running(
    tmp_path, few, temporary, number, word
):
    """While the peers start, and while they work."""
    words = ["--csv", str(few), "--epochs", "1", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-u", str(FORECASTER / "demo.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if word in line:
                break
        while not processes_of(temporary):
            time.sleep(0.05)

        process.send_signal(number)
        process.stdout.read()

    assert process.returncode == 128 + number
    assert processes_of(temporary) == []
    assert list(temporary.glob("activestore-*")) == []


@pytest.mark.timeout(120)
def test_demo_whose_client_fails_leaves_nothing_running(tmp_path, few, temporary):
    done = subprocess.run(
        [
            sys.executable,
            str(FORECASTER / "demo.py"),
            "--csv",
            str(few),
            "--epochs",
            "1",
            "--thin-python",
            "/bin/false",
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "thin_client.py failed with 1" in done.stderr
    assert processes_of(temporary) == []
    assert list(temporary.glob("activestore-*")) == []
