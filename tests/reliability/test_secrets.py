"""The secrets in a store's address are shown nowhere, written nowhere and sent nowhere."""

import pytest

SECRET = "hunter2Zz91"
ADDRESSES = {
    "token": f"https://{SECRET}@127.0.0.1:9",
    "password": f"postgresql://maria:{SECRET}@127.0.0.1:9/runs",
    "query of a password": f"postgresql://127.0.0.1:9/runs?user=maria&password={SECRET}",
    "query of a token": f"http://127.0.0.1:9/?token={SECRET}",
    "odbc": f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BPWD%3D{SECRET}",
}
SWEEP = ("impl=torch", "workload=tiny", "timer=none", "device=cpu")
pytestmark = pytest.mark.long


@pytest.mark.parametrize("form", ADDRESSES)
def test_a_secret_of_an_address_is_masked_wherever_it_could_be(place, monkeypatch, form):
    address = ADDRESSES[form]
    typed = f"tracking.uri='{address}'"
    commands = [
        (*SWEEP, typed),
        ("sync", "--to", address),
        ("report", str(place.folder / "multirun")),
        ("sync",),  # to the store here: the tags, the configuration and the report
        (*SWEEP, typed, "impl.threads=0"),  # what is refused says what was typed
        (*SWEEP, typed, typed),
        (*SWEEP, typed.replace("uri", "url")),
        ("report", address),
    ]
    done = [place.run(*words) for words in commands]
    assert [one.returncode for one in done] == [0, 1, 0, 0, 2, 2, 2, 2], [one.stderr for one in done]
    for one in done:
        assert SECRET not in one.stdout + one.stderr
    assert all("***" in done[number].stderr for number in (0, 1, 5, 7)), [one.stderr for one in done]

    monkeypatch.setattr(type(place), "environment", place.environment | {"MLFLOW_TRACKING_URI": address})
    done = place.run(*SWEEP)
    assert (done.returncode, SECRET in done.stdout + done.stderr) == (0, False)
    files = [file for file in place.folder.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    masked = {file.name for file in files if b"***" in file.read_bytes()}
    assert masked >= {"multirun.yaml", "config.yaml", "overrides.yaml"}
    assert {"mlflow.db", "report.html", "command.json"} <= {file.name for file in files}
