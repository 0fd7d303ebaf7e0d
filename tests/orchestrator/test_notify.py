"""Hooks: told once, never stopping anything, never giving a secret away."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from orchestrator import doctor, notify, settings
from orchestrator.queue import Queue
from orchestrator.store import open_store


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "assay").mkdir(parents=True)
    queue = Queue(open_store(f"sqlite://{tmp_path}/s.sqlite"), "sweep")
    queue.add([{"assay": {"identity": str(n), "attempt": 0}, "batch_id": 1} for n in range(2)])
    queue.submit()
    return queue


def configure(tmp_path, text):
    (tmp_path / "config" / "assay" / "config.yaml").write_text(text)


def finish(queue, status):
    (claim,) = queue.claim({"_id": "w", "place": {"array_job": None}}, 1)
    queue.finish(claim, status, {"assay.error": "it broke"} if status == "FAILED" else {})


def test_first_failure_and_end_are_told_once_each(queue, tmp_path):
    told = tmp_path / "told"
    configure(tmp_path, f'notify: {{command: [sh, -c, "echo \\"$0\\" >> {told}", "{{text}}"]}}\n')
    notify.of_progress(queue)
    assert not told.exists()
    finish(queue, "FAILED")
    for _ in range(3):
        notify.of_progress(queue)
    assert told.read_text().splitlines() == ["sweep sweep: experiment 1 failed: it broke"]
    finish(queue, "COMPLETED")
    for _ in range(3):
        notify.of_progress(queue)
    assert told.read_text().splitlines()[1:] == ["sweep sweep is finished: 1 completed, 1 not"]
    queue.retry()
    finish(queue, "COMPLETED")
    notify.of_progress(queue)
    assert told.read_text().splitlines()[2:] == ["sweep sweep is finished: 2 completed"]


def test_a_webhook_gets_the_text():
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.handle_request, daemon=True).start()
    notify.tell("done", {"webhook": f"http://127.0.0.1:{server.server_port}/secret-path"})
    server.server_close()
    assert got == [{"text": "done"}]


def test_hooks_that_fail_stop_nothing_and_keep_their_secret(caplog):
    notify.tell("x", {"webhook": "http://127.0.0.1:1/secret", "command": ["no-such-program"]})
    assert "no-such-program" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notify: {commnd: [x]}", "has the keys"),
        ("notify: {command: rm -rf /}", "write a list"),
        ("notify: {webhook: ftp://x}", "https://"),
        ("notify: [", "cannot read"),
    ],
)
def test_mistakes_in_the_configuration(queue, tmp_path, text, message):
    configure(tmp_path, text)
    with pytest.raises(settings.SettingsError, match=message):
        settings.notify()


def test_the_doctor_warns_of_a_database_that_anybody_can_reach():
    assert doctor._without_login("mongodb://me:secret@db.example.org/x") is None
    assert "db.example.org" in doctor._without_login("mongodb://db.example.org/x")
    assert doctor._without_login("mongodb://127.0.0.1:1/x") is None
