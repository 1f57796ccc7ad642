"""A dvc.lock that was cut off, as by a run that was killed while DVC wrote it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows import lock
from flows.pipeline import call_dvc

GRAPH = """
stages:
  one: {cmd: echo 1 > one, deps: [seed], outs: [one]}
  two: {cmd: cat one one > two, deps: [one], outs: [two]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "seed").write_text("0")
    assert call_dvc("repro", "-q") == 0
    return tmp_path


def test_a_run_goes_on_with_the_lock_of_before(project, capfd):
    assert call_dvc("status", "-q") == 0  # keeps what the run wrote
    whole = lock.LOCK.read_bytes()
    for cut in (0, len(whole) // 2 + 3, len(whole) - 1):
        lock.LOCK.write_bytes(whole[:cut])
        assert call_dvc("repro", "-q") == 0
        assert lock.LOCK.read_bytes() == whole and lock.BROKEN.read_bytes() == whole[:cut]
        assert "dvc.lock: broken" in capfd.readouterr().err
    lock.LOCK.write_bytes(whole)
    assert call_dvc("repro", "-q") == 0 and capfd.readouterr().err == ""


def test_the_first_lock_cut_off_is_begun_anew(project):
    lock.KEPT.unlink(missing_ok=True)
    lock.LOCK.write_text("schema: '2.0'\nstages:\n  one:\n    cmd: ec")
    assert call_dvc("repro", "-q") == 0 and "two:" in lock.LOCK.read_text()


def test_a_link_to_a_volume_stays_one_and_a_conflict_is_left_to_people(project):
    call_dvc("status", "-q")
    volume = project / "volume.lock"
    volume.write_bytes(b"")
    lock.LOCK.unlink()
    lock.LOCK.symlink_to(volume)
    lock.keep_lock()
    assert lock.LOCK.is_symlink() and "two:" in volume.read_text()
    volume.write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n")
    assert call_dvc("repro", "-q") != 0 and volume.read_text().startswith("<<<<<<<")
